"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const page = JSON.parse($("data").textContent);
  const { models, layers, n_heads: H, measures, regions, quantities, shared, unit: UNIT } = page;
  const N_HEADS = layers.length * H;
  const FIELDS = { value: 0, mean: 1, t: 2, q: 3 };  // of a packed `standing`
  const LISTED = 6, TOP = 12, FIRST = 5, ARCS = 12, ARC_LEAST = UNIT / 100, NUMBER_ARCS = 200, NUMBER_LEAST = UNIT / 20;
  const NUMERIC = new Set(["question_number", "operand", "intermediate_result", "final_answer"]);
  const watched = new Set(page.watched.map(([layer, head]) => `${layer}.${head}`));
  const name = (head) => head.join(".");
  const place = ([layer, head]) => layers.indexOf(layer) * H + head;
  const headAt = (index) => [layers[Math.floor(index / H)], index % H];

  // What is shown. `pin`, `hover` (the pointer's token) and `key` (the keyboard's token, or that of the panel that has the focus) are {model, token}.
  const FIRST_HEAD = page.chosen[0] ?? [layers[0], 0];
  const state = { head: FIRST_HEAD, pin: null, hover: null, key: null, step: 0 };
  let views = [];  // attention of the head shown, one view per model
  let standing = [], steps = [];

  // --- numbers and texts

  const tenths = (share) => Math.sign(share) * Math.floor(Math.abs(share) * 1000 + 0.5) / 10;
  const percent = (share) => tenths(share).toFixed(1) + " %";
  const stored = (steps) => (Math.floor((steps + UNIT / 2000) / (UNIT / 1000)) / 10).toFixed(1) + " %";  // of 1 / UNIT
  const signed = (text, number) => (number > 0 && !/^0\.?0*( %| pp)?$/.test(text) ? "+" : "") + text.replace("-", "−").replace(/^−(0\.0( %| pp))$/, "$1");
  const points = (share) => signed(tenths(share).toFixed(1) + " pp", share);  // percentage points
  const isShare = (unit) => unit === "probability" || unit === "share";
  const inUnit = (value, unit) => Number.isNaN(value) ? "–" : isShare(unit) ? percent(value) : String(Number(value.toPrecision(3))).replace("-", "−");
  const differenceIn = (value, unit) => Number.isNaN(value) ? "–" : isShare(unit) ? points(value) : signed(inUnit(value, unit), value);

  const code = (c) => "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  const escaped = (text) => text.replace(/\p{Cf}/gu, (c) => c.length > 1 ? code(c) : "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
  /** A model's name within a sentence; the writing direction of the name does not change that of the sentence. */
  const called = (m) => `\u2068${escaped(models[m].name)}\u2069`;
  function visible(text) {
    if (text === "") return "◦";
    const marked = text.replace(/\n/g, "⏎").replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)));
    if (/^[\p{Cf}\p{M}]+$/u.test(marked)) return [...marked].map((c) => page.invisible[c] ?? code(c)).join(" ");
    return marked.trim() === "" ? marked.replace(/ /g, "␣") : marked;
  }
  const shown = (m, i) => visible(models[m].shown[i]);
  const role = (m, i) => page.roles[models[m].role[i]];

  function el(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children);
    return made;
  }
  const partOf = (text) => text.includes("\ufffd") ? page.not_whole : null;
  /** An element for a token; a token of a number is shown within the complete number. */
  function bdi(m, i) {
    const { number, shown: texts } = models[m], title = partOf(texts[i]);
    if (number[i] < 0) return el("bdi", { class: role(m, i), title }, shown(m, i));
    let first = i, last = i;
    while (number[first - 1] === number[i]) first--;
    while (number[last + 1] === number[i]) last++;
    const before = texts.slice(first, i).join("").trimStart(), after = texts.slice(i + 1, last + 1).join("").trimEnd();
    return el("bdi", { class: role(m, i), title }, before, before || after ? el("b", {}, shown(m, i).trim()) : shown(m, i), after);
  }
  const stepOf = (m, i) => models[m].number[i] >= 0 && models[m].step[i] >= 0 ? [el("small", { class: "of" }, `· step ${models[m].step[i] + 1}`)] : [];
  /** A button for a head; `list` distinguishes buttons of the same head in a box with several lists. */
  const headButton = (head, list = "") => el("button", { type: "button", class: "head-button", "data-key": `${list} ${name(head)}`, onclick: () => selectHead(head) }, name(head));
  const say = (text) => { $("said").textContent = text; };

  // --- the keyboard focus, which must survive every redraw

  let giving = false;  // the page itself moves the focus, which selects no token
  function giveFocus(element) {
    giving = true;
    element.focus({ preventScroll: true });
    giving = false;
  }
  /** Move the focus to a token, and scroll to it where the keyboard is in use. */
  function giveToken(m, i) {
    rove(m, i);
    giveFocus(elements[m][i]);
    if (elements[m][i].matches(":focus-visible")) inSight(m, i);
  }
  /** Replace the content of a box. A focus within it stays with the same button (`data-key`); where that button is gone, `otherwise` moves it. */
  function fill(box, parts, otherwise) {
    const held = box.contains(document.activeElement), key = document.activeElement?.dataset.key;
    box.replaceChildren(...parts);
    const button = held && [...box.querySelectorAll("button")].find((one) => one.dataset.key === key);
    if (button) giveFocus(button); else if (held) otherwise();
  }
  /** Hide or disable a control (`how`); a focus on it is moved by `otherwise`. */
  function withhold(control, how, gone, otherwise) {
    if (gone && document.activeElement === control) otherwise();
    control[how] = gone;
  }

  function fail(error) {
    $("failed").hidden = false;
    $("failed").textContent = typeof DecompressionStream === "undefined"
      ? "This browser cannot unpack the attention in this page, because it has no DecompressionStream. Use Chrome or Edge 80, Firefox 113, " +
        "Safari 16.4, or a later version."
      : `The page could not be drawn: ${error.message}`;
  }

  // --- packed blocks (figures.example.packing.pack_edges defines their format)

  async function unpack(id) {
    const text = atob($(id).textContent), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return reader(new Uint8Array(await new Response(stream).arrayBuffer()));
  }

  function reader(bytes) {
    let at = 0;
    return (Type, count) => {
      const size = Type.BYTES_PER_ELEMENT, joined = new Uint8Array(count * size);
      for (let plane = 0; plane < size; plane++) {
        for (let i = 0; i < count; i++) joined[i * size + plane] = bytes[at++];
      }
      return new Type(joined.buffer);
    };
  }

  async function readBlock(m, b) {
    const [heads, whole] = models[m].blocks[b];
    const take = await unpack(`pack-edges-${m}-${b}`), rows = heads.length * models[m].n;
    const counts = take(Uint32Array, rows), start = new Uint32Array(rows + 1);
    for (let row = 0; row < rows; row++) start[row + 1] = start[row] + counts[row];
    const keys = take(Uint32Array, start[rows]);
    for (let row = 0; row < rows; row++) {
      for (let e = start[row] + 1; e < start[row + 1]; e++) keys[e] += keys[e - 1];
    }
    const values = take(Uint32Array, start[rows]);
    return { heads: heads.map(name), whole, start, keys, values, rest: whole ? take(Uint32Array, rows) : null };
  }

  const cache = new Map();
  async function view(m, head) {
    const b = models[m].blocks.findIndex(([heads]) => heads.some(([layer, h]) => layer === head[0] && h === head[1]));
    const id = `${m}-${b}`;
    if (!cache.has(id)) cache.set(id, readBlock(m, b));
    const block = await cache.get(id), n = models[m].n, from = block.heads.indexOf(name(head)) * n;
    const { start, keys, values } = block;
    return {
      n, whole: block.whole,
      row: (q) => [start[from + q], start[from + q + 1]],
      keys, values,
      entries(q) {
        const found = [];
        for (let e = start[from + q]; e < start[from + q + 1]; e++) found.push([keys[e], values[e]]);
        return found;
      },
      at(q, k) {
        for (let e = start[from + q]; e < start[from + q + 1]; e++) if (keys[e] === k) return values[e];
        return null;
      },
      incoming(k) {
        const found = [];
        for (let q = k; q < n; q++) {
          const value = this.at(q, k);
          if (value !== null) found.push([q, value]);
        }
        return found;
      },
      rest(q) {
        if (block.rest) return block.rest[from + q];
        return Math.max(0, UNIT - this.entries(q).reduce((sum, [, value]) => sum + value, 0));
      },
    };
  }

  // --- heads: colors of a quantity over all heads

  const DARK = matchMedia("(prefers-color-scheme: dark)");
  let printing = false;
  const STOPS = {
    light: { ground: "#ffffff", later: "#eceef1", ink: "#1a1a1a", map: ["#ffffff", "#c3dcf0", "#4b97c9", "#0d4f8b", "#06254a"],
      both: ["#0d4f8b", "#7fb6dd", "#f5f5f5", "#f0a084", "#a31523"] },
    dark: { ground: "#16181c", later: "#22252b", ink: "#ececec", map: ["#16181c", "#1c456b", "#2f86c4", "#8ac6f2", "#f2faff"],
      both: ["#9fd3fa", "#2f75ab", "#2a2d33", "#b0453c", "#ffb3a6"] },
  };
  const look = () => STOPS[DARK.matches && !printing ? "dark" : "light"];
  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  function color(stops, part) {
    const x = Math.min(1, Math.max(0, part)) * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(x));
    const a = rgb(stops[i]), b = rgb(stops[i + 1]);
    return a.map((from, c) => Math.round(from + (b[c] - from) * (x - i)));
  }
  const css = (parts) => `rgb(${parts.join(",")})`;
  const gradient = (stops) => `linear-gradient(to right, ${stops.join(",")})`;

  const standingAt = (m, field, measure, region, head) =>
    standing[m][((FIELDS[field] * measures.length + measure) * regions.length + region) * N_HEADS + head];
  const stepsAt = (m, step, quantity, head) =>
    step < models[m].steps ? steps[m].values[(step * quantities.length + quantity) * N_HEADS + head] : NaN;
  const QUANTITY_TITLES = { question_numbers: "to the question's numbers", earlier_results: "to earlier results" };

  function chosenQuantity() {
    const [kind, number] = $("quantity").value.split(":"), of = Number($("of").value);
    const minus = $("minus") && $("minus").value !== "" && Number($("minus").value) !== of ? Number($("minus").value) : null;
    if (kind === "step") {
      const title = `step ${state.step + 1}: attention ${QUANTITY_TITLES[quantities[number]]}`;
      return { of, minus, title, unit: "probability", at: (m, head) => stepsAt(m, state.step, Number(number), head), measure: null };
    }
    const measure = Number(number), region = Number($("region").value), t = $("as").value === "t";
    const title = `${measures[measure].title}${t ? ", t compared with the run" : ""}, tokens of ${regions[region] === "all" ? "the entire text" : "the " + regions[region]}`;
    return { of, minus, title, unit: t ? "1" : measures[measure].unit, measure, region, t,
      at: (m, head) => standingAt(m, t ? "t" : "value", measure, region, head) };
  }

  function drawHeads() {
    const chosen = chosenQuantity(), { of, minus, unit } = chosen;
    const value = (head) => minus === null ? chosen.at(of, head) : chosen.at(of, head) - chosen.at(minus, head);
    const values = Float64Array.from({ length: N_HEADS }, (_, head) => value(head));
    // One scale for all models, so that they can be compared.
    let low = Infinity, high = -Infinity;
    (minus === null ? models.map((_, m) => (head) => chosen.at(m, head)) : [value]).forEach((ofModel) => {
      for (let head = 0; head < N_HEADS; head++) {
        const found = ofModel(head);
        if (!Number.isNaN(found)) { low = Math.min(low, found); high = Math.max(high, found); }
      }
    });
    const both = minus !== null || low < 0;
    if (!Number.isFinite(low)) low = high = 0;
    if (both) { high = Math.max(Math.abs(low), Math.abs(high)); low = -high; } else low = Math.min(low, 0);
    const stops = look()[both ? "both" : "map"], text = (v) => minus !== null ? differenceIn(v, unit) : both ? signed(inUnit(v, unit), v) : inUnit(v, unit);
    cells.forEach((cell, head) => {
      const undefinedValue = Number.isNaN(values[head]), label = `${name(headAt(head))}: ${undefinedValue ? "undefined" : text(values[head])}`;
      cell.classList.toggle("undefined", undefinedValue);
      cell.style.background = undefinedValue ? "" : css(color(stops, high > low ? (values[head] - low) / (high - low) : 0));
      cell.title = label;
      cell.setAttribute("aria-label", `head ${label}${watched.has(name(headAt(head))) ? ", watched" : ""}`);
      const selected = head === place(state.head);
      cell.setAttribute("aria-selected", selected);
      cell.tabIndex = selected ? 0 : -1;
    });
    $("scale").style.background = gradient(stops);
    $("scale-low").textContent = text(low);
    $("scale-high").textContent = text(high);
    const who = minus === null ? called(of) : `${called(of)} minus ${called(minus)}`;
    const head = place(state.head);
    $("grid-caption").textContent =
      `${chosen.title}. ${who}. Head ${name(state.head)}: ${text(values[head])}. ` + (high > low || !Number.isFinite(values[head])
        ? `The scale follows the data${minus === null && models.length > 1 ? " of all models" : ""}.`
        : `Every head has the same value${models[of].role.some((_, i) => NUMERIC.has(role(of, i))) ? "" : ": the text has no numbers"}.`);
    $("grid").setAttribute("aria-label", `Heads, ${chosen.title}, ${who}`);
    for (const id of ["region", "as"]) withhold($(id), "disabled", chosen.measure === null, () => giveFocus($("quantity")));
    drawTop(chosen, values, text);
  }

  let allTop = false;
  function drawTop(chosen, values, text) {
    const { of, minus, measure, region } = chosen, compared = measure !== null && minus === null && models[of].compared;
    const by = (head) => compared ? Math.abs(standingAt(of, "t", measure, region, head)) : minus !== null ? Math.abs(values[head]) : values[head];
    const known = [...values.keys()].filter((head) => !Number.isNaN(by(head))), sorted = known.sort((a, b) => by(b) - by(a) || a - b);
    // The quantity by which heads were chosen has one order for all models, the command's; older folders do not have it.
    const own = page.foremost !== null && minus === null && measure !== null && measures[measure].name === page.by && regions[region] === page.region;
    const listed = (own ? page.foremost.map(place) : sorted).slice(0, TOP), heads = listed.slice(0, allTop ? TOP : FIRST);
    const least = compared ? Math.min(...known.map((head) => standingAt(of, "q", measure, region, head)).filter((q) => !Number.isNaN(q))) : Infinity;
    $("top-title").textContent = minus !== null ? "Largest differences" : !compared ? "Heads with the highest values" : least <= 0.05 ? "Outlier heads" : "Heads with the largest |t|";
    const over = own && models.length > 1 ? ", over all models" : "";
    $("top-note").textContent = minus !== null ? `${called(of)} minus ${called(minus)}.`
      : compared ? (least <= 0.05 ? `Sorted by |t| compared with the run's other problems${over}; * marks q ≤ 0.05.`
        : Number.isFinite(least) ? `No head has q ≤ 0.05 (smallest q: ${least.toFixed(2)}). Sorted by |t|${over}.` : "No head has a t.")
        : measure !== null ? `There is no run to compare with. Sorted by value${over}.` : "Sorted by value.";
    const columns = compared ? ["head", "value", "run's mean", "t", "q"] : ["head", minus === null ? "value" : "difference"];
    $("top").tHead.replaceChildren(el("tr", {}, ...columns.map((column) => el("th", { scope: "col" }, column))));
    const rows = heads.map((head) => {
      const at = (field) => standingAt(of, field, measure, region, head);
      const texts = compared
        ? [inUnit(at("value"), measures[measure].unit), inUnit(at("mean"), measures[measure].unit), signed(at("t").toFixed(1), at("t")),
          (at("q") < 0.0005 ? "<0.001" : at("q").toFixed(3)) + (at("q") <= 0.05 ? " *" : "")]
        : [text(values[head])];
      return el("tr", {}, el("th", { scope: "row" }, headButton(headAt(head))), ...texts.map((cell) => el("td", {}, cell)));
    });
    if (!heads.length) rows.push(el("tr", {}, el("td", { colspan: columns.length }, "undefined for every head")));
    fill($("top").tBodies[0], rows, toCell);
    withhold($("top-more"), "hidden", listed.length <= FIRST, () => giveFocus($("quantity")));
    $("top-more").textContent = allTop ? `Show only the first ${FIRST}` : `Show ${listed.length - FIRST} more`;
    $("top-more").setAttribute("aria-expanded", allTop);
  }

  let cells = [];
  const toCell = () => giveFocus(cells[place(state.head)]);
  function buildGrid() {
    const grid = $("grid"), tall = Math.max(6, Math.min(16, Math.floor(340 / layers.length)));
    grid.style.setProperty("--heads", H);
    grid.style.setProperty("--cell", `${tall}px`);
    const everyRow = Math.ceil(12 / tall), everyColumn = H > 20 ? 4 : H > 12 ? 2 : 1;
    const top = el("div", { class: "row", role: "row" }, el("span", { class: "name", role: "columnheader" }, el("span", { class: "unseen" }, "layer")));
    for (let head = 0; head < H; head++) {
      top.append(el("span", { class: "name", role: "columnheader", "aria-label": `head ${head}` }, head % everyColumn === 0 ? String(head) : ""));
    }
    grid.append(top);
    layers.forEach((layer, at) => {
      const row = el("div", { class: "row", role: "row" });
      row.append(el("span", { class: "name", role: "rowheader", "aria-label": `layer ${layer}` }, at % everyRow === 0 ? String(layer) : ""));
      for (let head = 0; head < H; head++) {
        const key = `${layer}.${head}`;
        row.append(el("span", { class: "cell" + (watched.has(key) ? " watched" : "") + (H > 24 || tall < 9 ? " tight" : ""), role: "gridcell", tabindex: -1 }));
      }
      grid.append(row);
    });
    cells = [...grid.querySelectorAll(".cell")];
    grid.addEventListener("click", (event) => {
      const head = cells.indexOf(event.target.closest(".cell"));
      if (head >= 0) selectHead(headAt(head));
    });
    grid.addEventListener("keydown", (event) => {
      const at = cells.indexOf(document.activeElement);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + H, ArrowUp: at - H, Home: 0, End: N_HEADS - 1 }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      if (to < 0 || to >= N_HEADS || ((event.key === "ArrowLeft" || event.key === "ArrowRight") && Math.floor(to / H) !== Math.floor(at / H))) return;
      selectHead(headAt(to));
      cells[to].focus();
    });
  }

  function buildPickers() {
    const list = el("optgroup", { label: "Measures on this problem" });
    measures.forEach((measure, number) => list.append(el("option", { value: `measure:${number}`, selected: measure.name === page.by }, measure.title)));
    $("quantity").append(list);
    if (models.some((model) => model.steps)) {
      const stepList = el("optgroup", { label: "Attention of the chosen step" });
      quantities.forEach((key, number) => stepList.append(el("option", { value: `step:${number}` }, QUANTITY_TITLES[key])));
      $("quantity").append(stepList);
    }
    regions.forEach((key, number) => $("region").append(el("option", { value: number, selected: key === page.region }, key)));
    models.forEach((model, m) => $("of").append(el("option", { value: m }, model.name)));
    if ($("minus")) {
      $("minus").append(el("option", { value: "" }, "nothing"));
      models.forEach((model, m) => $("minus").append(el("option", { value: m }, model.name)));
    }
    if (!models.some((model) => model.compared)) $("as").querySelector('[value="t"]').disabled = true;
    for (const id of ["quantity", "region", "as", "of", "minus"]) $(id)?.addEventListener("change", () => { drawHeads(); writeAddress(); });
    $("top-more").addEventListener("click", () => { allTop = !allTop; drawHeads(); });
    $("differ")?.addEventListener("change", () => drawMap(1));
    $("head-select").append(el("option", { value: "" }, page.watched.length ? "choose" : "none"));
    const first = page.chosen.map(name), rest = page.watched.map(name).filter((key) => !first.includes(key));
    [...first, ...rest].forEach((key) => $("head-select").append(el("option", { value: key }, key + (watched.has(key) ? "" : " (strong entries)"))));
    $("head-select").addEventListener("change", () => { if ($("head-select").value) typed($("head-select").value); });
    $("head-input").addEventListener("change", () => typed($("head-input").value));
    $("bar").addEventListener("submit", (event) => { event.preventDefault(); typed($("head-input").value); });
    $("arcs").addEventListener("change", () => models.forEach((_, m) => drawArcs(m)));
    $("unpin").addEventListener("click", () => pin(null));
  }

  function parseHead(text) {
    const found = /^\s*L?(\d+)\s*[.,:H ]\s*(\d+)\s*$/i.exec(text), head = found && [Number(found[1]), Number(found[2])];
    return head && layers.includes(head[0]) && head[1] < H ? head : null;
  }

  function typed(text) {
    const head = parseHead(text);
    $("head-problem").textContent = head ? "" :
      `Unknown head “${text}”. Write layer.head; layers ${layers[0]} to ${layers[layers.length - 1]}, heads 0 to ${H - 1}.`;
    if (head) selectHead(head);
  }

  let asked = 0;
  async function selectHead(head) {
    state.head = head;
    const number = ++asked;
    try {
      const found = await Promise.all(models.map((_, m) => view(m, head)));
      if (number !== asked) return;
      views = found;
      drawHead();
    } catch (error) { fail(error); }
  }

  function drawHead() {
    const key = name(state.head);
    $("head-input").value = key;
    $("head-problem").textContent = "";
    $("head-select").value = [...$("head-select").options].some((option) => option.value === key) ? key : "";
    document.querySelectorAll(".head-name").forEach((part) => { part.textContent = key; });
    drawHeads();
    models.forEach((_, m) => { drawMap(m); drawSteps(m); drawToken(m); drawBetween(m); });
    drawPinned();
    drawDifference();
    writeAddress();
    say(`Head ${key}${watched.has(key) ? ", watched" : ", strong entries only"}`);
    document.documentElement.dataset.head = key;
  }

  // --- tokens

  const elements = models.map((_, m) => [...document.querySelectorAll(`#text-${m} .t`)]);
  const inModel = (place, m) => place && (place.model === m || place.token < shared) && place.token < models[m].n ? place.token : null;
  const active = (m) => inModel(state.hover, m) ?? inModel(state.key, m) ?? inModel(state.pin, m);
  const panels = models.map((_, m) => $(`detail-${m}`));
  const home = models.map(() => 0);  // token that gets the focus of a panel that loses its content
  const marked = models.map(() => []);

  function buildTokens(m) {
    const text = $(`text-${m}`), tokens = elements[m], index = new Map(tokens.map((token, i) => [token, i]));
    tokens.forEach((token, i) => {
      token.setAttribute("role", "button");
      token.setAttribute("aria-pressed", "false");
      token.tabIndex = i === 0 ? 0 : -1;
      const s = models[m].shown[i];
      if (token.dataset.chip) token.setAttribute("aria-label", token.title);
      else if (s.trim() === "") token.setAttribute("aria-label", s === "" ? "part of the previous character" : s.includes("\n") ? "new line" : "space");
    });
    const of = (event) => index.get(event.target.closest(".t"));
    text.addEventListener("pointerover", (event) => { const i = of(event); if (i !== undefined && event.pointerType !== "touch") hover({ model: m, token: i }); });
    // A panel that has grown under the pointer keeps its content.
    text.addEventListener("pointerleave", (event) => { if (!panels[m].contains(event.relatedTarget)) hover(null); });
    panels[m].addEventListener("pointerleave", (event) => { if (!text.contains(event.relatedTarget)) hover(null); });
    text.addEventListener("focusin", (event) => { if (!giving && of(event) !== undefined && event.target.matches(":focus-visible")) reach({ model: m, token: of(event) }); });
    // The panel stays while the focus moves from a token to the buttons of the panel that shows it.
    const leave = (event) => {
      const to = panels.findIndex((panel) => panel.contains(event.relatedTarget));
      if (to < 0 || inModel(state.key, to) === null) { state.key = null; drawSoon(); }
    };
    text.addEventListener("focusout", leave);
    panels[m].addEventListener("focusout", (event) => { if (event.relatedTarget) leave(event); });
    // A panel that only the pointer has opened does not close while it has the focus.
    panels[m].addEventListener("focusin", () => {
      if (!giving && panels[m].classList.contains("full") && inModel(state.key, m) === null && inModel(state.pin, m) === null) state.key = { model: m, token: home[m] };
    });
    text.addEventListener("click", (event) => { const i = of(event); if (i !== undefined) { rove(m, i); toggle({ model: m, token: i }); inSight(m, i); } });
    text.addEventListener("keydown", (event) => {
      const i = of(event);
      if (i === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle({ model: m, token: i }); return; }
      const backwards = getComputedStyle(tokens[i].closest(".line")).direction === "rtl";
      const to = { ArrowRight: i + (backwards ? -1 : 1), ArrowLeft: i + (backwards ? 1 : -1), Home: 0, End: tokens.length - 1,
        ArrowDown: lineStep(tokens, i, 1), ArrowUp: lineStep(tokens, i, -1) }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      if (tokens[to]) { rove(m, to); tokens[to].focus({ preventScroll: true }); inSight(m, to); }
    });
    new ResizeObserver(() => drawArcs(m)).observe(text);
  }

  /** The nearest token on the line below or above. */
  function lineStep(tokens, i, way) {
    const here = tokens[i].getBoundingClientRect(), x = here.left + here.width / 2;
    let best = i, distance = Infinity, line = null;
    for (let j = i + way; j >= 0 && j < tokens.length; j += way) {
      const box = tokens[j].getClientRects()[0];
      if (!box || Math.abs(box.top - here.top) < 6) continue;
      if (line !== null && Math.abs(box.top - line) > 6) break;
      line = box.top;
      const away = Math.abs(box.left + box.width / 2 - x);
      if (away < distance) { distance = away; best = j; }
    }
    return best;
  }

  function rove(m, i) {
    for (const token of elements[m]) if (token.tabIndex === 0) token.tabIndex = -1;
    elements[m][i].tabIndex = 0;
  }

  /** Scroll so that a token is visible between the bar and its panel. */
  function inSight(m, i) {
    const token = elements[m][i], boxes = token.getClientRects(), first = boxes[0] ?? token.getBoundingClientRect(), last = boxes[boxes.length - 1] ?? first;
    const top = $("bar").getBoundingClientRect().bottom + 6, bottom = Math.min(innerHeight, $(`detail-${m}`).getBoundingClientRect().top) - 6;
    if (first.top < top) scrollBy(0, first.top - top);
    else if (last.bottom > bottom) scrollBy(0, last.bottom - bottom);
  }

  let frame = 0;
  const drawTokens = () => { frame = 0; models.forEach((_, m) => drawToken(m)); };
  const drawSoon = () => { if (views.length) frame ||= requestAnimationFrame(drawTokens); };
  /** Draw the pointer's token in the next frame. */
  function hover(place) {
    state.hover = place;
    drawSoon();
  }
  /** Draw the keyboard's token at once, because the next key may act on what is drawn, and cancel a pending frame; a pointer at rest does not count. */
  function reach(place) {
    state.key = place;
    state.hover = null;
    if (!views.length) return;
    cancelAnimationFrame(frame);
    drawTokens();
  }

  const same = (a, b) => a !== null && b !== null && a.token === b.token && (a.model === b.model || a.token < shared);
  const toggle = (place) => pin(same(state.pin, place) ? null : place);

  function pin(place) {
    const kept = place ?? state.pin;
    state.pin = place;
    if (place === null) state.hover = state.key = null;
    if (!views.length) return;
    models.forEach((_, m) => { drawToken(m); drawMap(m); });
    drawPinned();
    drawDifference();
    writeAddress();
    if (place) say(`Pinned token ${place.token}, ${shown(place.model, place.token)}`);
    else if (kept) say("Token unpinned");
  }

  function drawToken(m) {
    const tokens = elements[m], now = active(m), pinned = inModel(state.pin, m), v = views[m];
    for (const token of marked[m]) token.classList.remove("now", "to", "from");
    marked[m].length = 0;
    const mark = (i, kind) => { tokens[i].classList.add(kind); marked[m].push(tokens[i]); };
    tokens.forEach((token, i) => { if ((token.getAttribute("aria-pressed") === "true") !== (i === pinned)) token.setAttribute("aria-pressed", i === pinned); });
    let outgoing = [], incoming = [];
    if (now !== null) {
      const strongest = (a, b) => b[1] - a[1] || a[0] - b[0];
      outgoing = v.entries(now).sort(strongest);
      incoming = v.incoming(now).sort(strongest);
      outgoing.slice(0, LISTED).forEach(([key]) => mark(key, "to"));
      incoming.slice(0, LISTED).forEach(([query]) => mark(query, "from"));
      mark(now, "now");
    }
    drawDetail(m, now, outgoing, incoming);
    drawArcs(m, now, outgoing, incoming);
  }

  let named = null;  // pinned token that the bar names
  function drawPinned() {
    const kept = state.pin, before = named;
    $("pinned").replaceChildren(...(kept ? ["Pinned: ", bdi(kept.model, kept.token), ` (token ${kept.token}${models.length > 1 && kept.token >= shared ? " of " + models[kept.model].name : ""})`] : ["No token pinned"]));
    withhold($("unpin"), "hidden", !kept, () => giveToken(before.model, before.token));
    named = kept;
  }

  const flow = models.map(() => "2.1rem");  // height of the panel in the page's layout; content for the pointer's token overlays what follows
  function drawDetail(m, now, outgoing, incoming) {
    const box = panels[m], v = views[m], model = models[m], pinned = inModel(state.pin, m), toToken = () => giveToken(m, home[m]);
    box.classList.toggle("full", now !== null);
    box.style.maxHeight = box.style.marginBlockEnd = "";
    if (now === null) {
      const elsewhere = state.hover ?? state.key ?? state.pin;
      fill(box, [el("p", { class: "soft hint" }, elsewhere ? `The token is in a part of the text that only ${called(elsewhere.model)} has. Point at a token here.`
        : "Point at a token to see what it attends to and what attends to it; click to pin it.")], toToken);
      return;
    }
    home[m] = inModel(state.key, m) ?? pinned ?? now;
    const title = el("h4", {}, bdi(m, now), ` token ${now}${models[m].number[now] >= 0 && models[m].step[now] >= 0 ? ` · step ${models[m].step[now] + 1}` : ""}${role(m, now) === "none" ? "" : " · " + role(m, now).replace("_", " ")}`);
    const list = (kind, heading, entries, rest) => {
      const items = entries.slice(0, LISTED).map(([i, value]) => el("li", {}, el("button", { type: "button", "data-token": i, "data-key": `${kind} ${i}`,
        onclick: () => pinToken(m, i) },
      bdi(m, i), el("small", {}, String(i)), ...stepOf(m, i), el("b", {}, stored(value)))));
      items.forEach((item, n) => item.firstChild.style.setProperty("--p", entries[n][1] / UNIT));
      return el("div", { class: kind }, el("h5", {}, heading), el("ol", {}, ...items), el("p", { class: "soft" }, rest));
    };
    const more = outgoing.slice(LISTED), moreShare = more.reduce((sum, [, value]) => sum + value, 0), remainder = v.rest(now);
    const unstored = now + 1 - outgoing.length, least = (v.whole ? page.faint : page.strong) * UNIT;
    const noKey = remainder > unstored * least + UNIT / 1000 ? " or on no token (an attention sink)" : "";
    const restText = (more.length ? `${more.length} more: ${stored(moreShare)}. ` : "") +
      (v.whole ? `${stored(remainder)} spread over keys below 0.05 %${noKey}.` : `${stored(remainder)} on keys below 10 %${noKey}, not stored.`);
    const inText = incoming.length ? (incoming.length > LISTED ? `${incoming.length - LISTED} more.` : "")
      : `No token attends to it with ${v.whole ? "0.05 %" : "10 %"} or more.`;
    const parts = [title, el("div", { class: "looks" }, list("out", "attends to →", outgoing, restText), list("in", "← attended to by", incoming, inText))];
    const expected = model.expected[now];
    if (expected) {
      const [probability, rank, others] = expected;
      const line = el("p", { class: "likely" }, `Probability ${percent(probability)} (rank ${rank})${probability < page.low ? " ▼ low" : ""}; most likely:`);
      others.slice(0, 3).forEach(([token, p]) => line.append(" ", el("span", {}, el("bdi", { title: partOf(token) }, visible(token)), ` ${percent(p)}`)));
      parts.splice(1, 0, line);
    }
    fill(box, parts, () => { const first = box.querySelector("button"); if (first) giveFocus(first); else toToken(); });
    // A panel never covers the token under the pointer, and what follows the text does not move.
    if (pinned !== now && state.hover?.model === m) {
      const boxes = elements[m][now].getClientRects(), below = innerHeight - (boxes[boxes.length - 1]?.bottom ?? 0) - 4;
      box.style.maxHeight = `min(var(--detail), max(2.1rem, ${below}px))`;
    }
    if (pinned === now || pinned === null) flow[m] = pinned === null ? "2.1rem" : `${box.offsetHeight}px`;
    if (pinned !== now) box.style.marginBlockEnd = `calc(${flow[m]} - ${box.offsetHeight}px)`;
  }

  /** List the attention from number to number. */
  function drawBetween(m) {
    const edges = numberEdges(m), box = $(`between-${m}`);
    const item = ([q, key, value]) => el("li", {}, el("button", { type: "button", "data-key": `${q} ${key}`, onclick: () => pinToken(m, q) }, bdi(m, q), el("small", {}, String(q)), ...stepOf(m, q), "→", bdi(m, key),
      el("small", {}, String(key)), ...stepOf(m, key), el("b", {}, stored(value))));
    box.firstElementChild.textContent = edges.length ? `From number to number: ${edges.length} entries of 5 % or more` : "From number to number: no entry of 5 % or more";
    fill(box.lastElementChild, [el("ol", { class: "looks" }, ...edges.slice(0, 2 * LISTED).map(item)),
      ...(edges.length > NUMBER_ARCS ? [el("p", { class: "soft" }, `The strongest ${NUMBER_ARCS} are drawn as arcs.`)] : [])], () => giveFocus(box.firstElementChild));
  }

  /** [query, key, value] from a token of a number to a token of another number, the strongest first. */
  function numberEdges(m) {
    const edges = [], v = views[m], numbers = models[m].number;
    for (let q = 0; q < v.n; q++) {
      if (!NUMERIC.has(role(m, q))) continue;
      for (const [key, value] of v.entries(q)) if (value >= NUMBER_LEAST && numbers[key] !== numbers[q] && NUMERIC.has(role(m, key))) edges.push([q, key, value]);
    }
    return edges.sort((a, b) => b[2] - a[2] || a[0] - b[0] || a[1] - b[1]);
  }

  function pinToken(m, i) {
    rove(m, i);
    pin({ model: m, token: i });
    elements[m][i].focus({ preventScroll: true });
    inSight(m, i);
  }

  function drawArcs(m, now = active(m), outgoing = null, incoming = null) {
    const svg = $(`arcs-${m}`), v = views[m], tokens = elements[m];
    svg.replaceChildren();
    if (!v || !$("arcs").checked || (now === null && state.pin)) return;
    let edges;
    if (now !== null) {
      const enough = ([, value]) => value >= ARC_LEAST;
      const strongest = (a, b) => b[1] - a[1];
      edges = (outgoing ?? v.entries(now).sort(strongest)).filter(enough).slice(0, ARCS).map(([key, value]) => [now, key, value, "to"])
        .concat((incoming ?? v.incoming(now).sort(strongest)).filter(enough).slice(0, ARCS).map(([query, value]) => [query, now, value, "from"]));
    } else {
      edges = numberEdges(m).slice(0, NUMBER_ARCS).map((edge) => [...edge, "to"]);
    }
    const origin = svg.getBoundingClientRect();
    const boxes = new Map();
    const box = (i) => {
      if (!boxes.has(i)) {
        // A token that is split by a line break has two boxes; the wider one has its characters.
        const found = [...tokens[i].getClientRects()].sort((a, b) => b.width - a.width)[0] ?? tokens[i].getBoundingClientRect();
        boxes.set(i, { x: found.left - origin.left + found.width / 2, top: found.top - origin.top, bottom: found.bottom - origin.top });
      }
      return boxes.get(i);
    };
    const paths = edges.map(([query, key, value, kind]) => {
      const a = box(query), b = box(key), path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      let d;
      if (query === key) d = `M${a.x - 4} ${a.top}C${a.x - 10} ${a.top - 12} ${a.x + 10} ${a.top - 12} ${a.x + 4} ${a.top}`;
      else if (Math.abs(a.top - b.top) < 6) {
        const lift = Math.min(14, 5 + Math.abs(a.x - b.x) / 12);
        d = `M${a.x} ${a.top}C${a.x} ${a.top - lift} ${b.x} ${b.top - lift} ${b.x} ${b.top}`;
      } else {
        const upper = b.top < a.top ? b.bottom : b.top, start = b.top < a.top ? a.top : a.bottom, bend = Math.max(12, Math.abs(start - upper) / 2.5);
        const way = b.top < a.top ? -1 : 1;
        d = `M${a.x} ${start}C${a.x} ${start + way * bend} ${b.x} ${upper - way * bend} ${b.x} ${upper}`;
      }
      path.setAttribute("d", d);
      path.setAttribute("class", kind);
      path.setAttribute("stroke-width", (0.8 + 5 * value / UNIT).toFixed(2));
      path.setAttribute("stroke-opacity", (now === null ? 0.25 + 0.5 * value / UNIT : 0.45 + 0.5 * value / UNIT).toFixed(2));
      return path;
    });
    svg.append(...paths);
  }

  // --- map of the head

  const STRIP = 7;  // px of the strips that show the tokens' roles
  const maps = models.map(() => ({ cells: 0, size: 0, cursor: null }));
  const ROLE_COLORS = () => page.roles.map((key) => key === "none" ? null : getComputedStyle(document.documentElement).getPropertyValue(`--${key}`).trim());

  /** Whether a model's map shows its difference from the first model's map. */
  const differs = (m) => m === 1 && ($("differ")?.checked ?? false) && views[0].whole;
  /** [key, second minus first] for a query that both texts share. */
  function changes(query) {
    const found = new Map(views[0].entries(query).map(([key, value]) => [key, -value]));
    for (const [key, value] of views[1].entries(query)) found.set(key, (found.get(key) ?? 0) + value);
    return [...found];
  }

  function drawMap(m) {
    const canvas = $(`map-${m}`), v = views[m], n = models[m].n, width = canvas.clientWidth;
    if (m === 1 && $("differ") && v) withhold($("differ"), "disabled", !v.whole || !shared, () => giveFocus(canvas));
    if (!v || !width || !n) return;
    if (!$(`map-value-${m}`).hasChildNodes()) $(`map-value-${m}`).textContent = "Point at the map, or move over it with the arrow keys.";
    const ratio = devicePixelRatio || 1, size = Math.round(width * ratio), strip = Math.round(STRIP * ratio), plot = size - strip;
    const count = Math.min(n, plot), map = maps[m], { map: stops, both, later, ground, ink } = look();
    Object.assign(map, { cells: count, size, strip, plot });
    const differ = differs(m), pooled = new Int32Array(count * count);
    let most = UNIT;
    for (let q = 0; q < (differ ? shared : n); q++) {
      const row = Math.floor(q * count / n) * count;
      for (const [key, value] of differ ? changes(q) : v.entries(q)) {
        const at = row + Math.floor(key * count / n);
        if (Math.abs(value) > Math.abs(pooled[at])) pooled[at] = value;
      }
    }
    if (differ) most = pooled.reduce((found, value) => Math.max(found, Math.abs(value)), 1);
    const used = differ ? both : stops, root = (part) => differ ? 0.5 + 0.5 * Math.sign(part) * Math.sqrt(Math.abs(part)) : Math.sqrt(part);
    const shades = Array.from({ length: 201 }, (_, i) => color(used, i / 200)), shade = rgb(later), blank = shades[differ ? 100 : 0];
    const image = new ImageData(count, count);
    for (let r = 0; r < count; r++) {
      for (let c = 0; c < count; c++) {
        const value = pooled[r * count + c], beyond = differ && Math.floor(r * n / count) >= shared;
        const parts = c > r || beyond ? shade : value ? shades[Math.round(200 * root(value / most))] : blank;
        image.data.set(parts, 4 * (r * count + c));
        image.data[4 * (r * count + c) + 3] = 255;
      }
    }
    const small = new OffscreenCanvas(count, count);
    small.getContext("2d").putImageData(image, 0, 0);
    canvas.width = canvas.height = size;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.fillStyle = ground;
    context.fillRect(0, 0, size, size);
    context.drawImage(small, strip, strip, plot, plot);
    const colors = ROLE_COLORS(), cell = plot / n;
    for (let i = 0; i < n; i++) {
      const roleColor = colors[models[m].role[i]];
      if (!roleColor) continue;
      context.fillStyle = NUMERIC.has(role(m, i)) ? ink : roleColor;
      context.fillRect(strip + i * cell, NUMERIC.has(role(m, i)) ? strip / 3 : 0, Math.max(cell, ratio), strip);
      context.fillRect(NUMERIC.has(role(m, i)) ? strip / 3 : 0, strip + i * cell, strip, Math.max(cell, ratio));
    }
    // Lines where region or step changes; with very many steps they would hide the map.
    const stepLines = plot / ratio > 10 * models[m].steps;
    context.strokeStyle = ink;
    context.globalAlpha = 0.28;
    context.lineWidth = Math.max(1, Math.round(ratio * 0.75));
    context.beginPath();
    for (let i = 1; i < n; i++) {
      if (models[m].region[i] === models[m].region[i - 1] && (!stepLines || models[m].step[i] === models[m].step[i - 1])) continue;
      const at = Math.round(strip + i * cell) + 0.5;
      context.moveTo(at, at); context.lineTo(at, size);
      context.moveTo(strip, at); context.lineTo(at, at);
    }
    context.stroke();
    context.globalAlpha = 1;
    // Names of regions, on the right, where there are only later tokens.
    const letters = Math.round(11 * ratio);
    context.font = `${letters}px system-ui, sans-serif`;
    context.textAlign = "right";
    context.fillStyle = ink;
    for (let from = 0, to; from < n; from = to) {
      for (to = from + 1; to < n && models[m].region[to] === models[m].region[from];) to++;
      const text = page.token_regions[models[m].region[from]], top = strip + from * cell;
      if ((to - from) * cell >= 1.3 * letters && size - top - letters > context.measureText(text).width + letters) context.fillText(text, size - 4 * ratio, top + 1.1 * letters);
    }
    const pinned = inModel(state.pin, m);
    context.lineWidth = Math.max(1, Math.round(ratio));
    if (pinned !== null) {
      const at = Math.round(strip + (pinned + 0.5) * cell) + 0.5;
      context.setLineDash([]);
      context.beginPath(); context.moveTo(strip, at); context.lineTo(at, at); context.stroke();
      context.setLineDash([4 * ratio, 3 * ratio]);
      context.beginPath(); context.moveTo(at, at); context.lineTo(at, size); context.stroke();
      context.setLineDash([]);
    }
    if (map.cursor) {
      const [r, c] = map.cursor, one = plot / count;
      context.lineWidth = 2 * ratio;
      context.strokeRect(strip + c * one - ratio, strip + r * one - ratio, one + 2 * ratio, one + 2 * ratio);
    }
    document.querySelector(`#model-${m} .map-scale`).style.background = gradient(Array.from({ length: 11 }, (_, i) => css(color(used, root(differ ? i / 5 - 1 : i / 10)))));
    document.querySelector(`#model-${m} .map-low`).textContent = differ ? points(-most / UNIT) : "0 %";
    document.querySelector(`#model-${m} .map-high`).textContent = differ ? points(most / UNIT) : "100 %";
    document.querySelector(`#model-${m} .map-kind`).textContent = differ ? `, minus ${called(0)}` : "";
    document.querySelector(`#model-${m} .map-note`).textContent =
      `Rows: queries; columns: keys. Shade: square root of the ${differ ? "difference" : "probability"}. Ticks: numbers. Lines: regions` + (stepLines ? " and steps." : ".") +
      (count < n ? ` ${Math.ceil(n / count)} × ${Math.ceil(n / count)} tokens per point, showing the largest value.` : "") +
      (v.whole ? "" : " This head is not watched: only entries of at least 10 % are stored.");
  }

  function readMap(m, r, c) {
    const map = maps[m], n = models[m].n, v = views[m], range = (at) => [Math.floor(at * n / map.cells), Math.ceil((at + 1) * n / map.cells) - 1];
    if (!v) return;
    const [q0, q1] = range(r), [k0, k1] = range(c);
    let best = [q0, k0, null];
    const differ = differs(m);
    for (let q = q0; q <= q1; q++) {
      for (const [key, value] of !differ ? v.entries(q) : q < shared ? changes(q) : []) {
        if (key >= k0 && key <= k1 && (best[2] === null || Math.abs(value) > Math.abs(best[2]))) best = [q, key, value];
      }
    }
    const [q, k, value] = best;
    const text = differ && k <= q ? (q >= shared ? "not shared" : value === null ? "below 0.05 % in both" : points(value / UNIT)) : value !== null ? stored(value) : k > q ? "a later token, not visible to the query" : `below ${v.whole ? "0.05 %" : "10 %, not stored"}`;
    $(`map-value-${m}`).replaceChildren(bdi(m, q), ` (${q}) attends to `, bdi(m, k), ` (${k}): `, el("b", {}, text));
    return best;
  }

  function buildMap(m) {
    const canvas = $(`map-${m}`), map = maps[m];
    const at = (event) => {
      const box = canvas.getBoundingClientRect(), scale = map.size / box.width;
      const [c, r] = [event.clientX - box.left - 1, event.clientY - box.top - 1].map((x) => Math.floor((x * scale - map.strip) / map.plot * map.cells));
      return [r, c].every((x) => x >= 0 && x < map.cells) ? [r, c] : null;
    };
    canvas.addEventListener("pointermove", (event) => { const found = at(event); if (found) readMap(m, ...found); });
    canvas.addEventListener("click", (event) => {
      const found = at(event), best = found && readMap(m, ...found);
      if (best) { rove(m, best[0]); pin({ model: m, token: best[0] }); }
    });
    canvas.addEventListener("keydown", (event) => {
      const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!way && event.key !== "Enter") return;
      event.preventDefault();
      const pinned = inModel(state.pin, m), start = Math.floor((pinned ?? 0) * map.cells / models[m].n);
      const from = map.cursor ?? [start, start];
      if (way) {
        map.cursor = from.map((x, axis) => Math.min(map.cells - 1, Math.max(0, x + (map.cursor ? way[axis] * (event.shiftKey ? 10 : 1) : 0))));
        readMap(m, ...map.cursor);
        drawMap(m);
      } else pin({ model: m, token: readMap(m, ...from)[0] });
    });
    canvas.addEventListener("blur", () => { map.cursor = null; drawMap(m); });
    let width = 0;
    new ResizeObserver(() => { if (canvas.clientWidth !== width) { width = canvas.clientWidth; drawMap(m); } }).observe(canvas);
    $(`save-${m}`).addEventListener("click", () => canvas.toBlob((blob) => {
      const link = el("a", { href: URL.createObjectURL(blob), download: `${models[m].name.replace(/[^\w.-]+/g, "_")}-${name(state.head)}.png` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }, "image/png"));
  }

  // --- steps

  function drawSteps(m) {
    const table = $(`steps-${m}`), head = place(state.head);
    if (!table) return;
    [...table.tBodies[0].rows].forEach((row, step) => {
      quantities.forEach((_, quantity) => {
        const value = stepsAt(m, step, quantity, head);
        const change = m && models.length === 2 && models.every((model) => shared >= model.n) ? value - stepsAt(0, step, quantity, head) : NaN;
        row.querySelector(quantity ? ".e" : ".q").replaceChildren(Number.isNaN(value) ? "–" : percent(value),
          ...(Number.isNaN(change) ? [] : [el("small", { title: `minus ${called(0)}` }, points(change))]));
      });
      row.querySelector(".n").textContent = models[m].step.filter((of) => of === step).length;
      row.classList.toggle("now", step === state.step);
      row.querySelector("button").setAttribute("aria-pressed", step === state.step);
    });
    fill($(`highest-${m}`), quantities.map((key, quantity) => {
      const values = Array.from({ length: N_HEADS }, (_, at) => stepsAt(m, state.step, quantity, at));
      const heads = [...values.keys()].filter((at) => !Number.isNaN(values[at])).sort((a, b) => values[b] - values[a] || a - b).slice(0, 5);
      return el("div", {}, el("h5", {}, `Step ${state.step + 1}: most attention ${QUANTITY_TITLES[key]}`),
        heads.length ? el("ol", {}, ...heads.map((at) => el("li", {}, headButton(headAt(at), key), ` ${percent(values[at])}`)))
          : el("p", { class: "soft note" }, state.step >= models[m].steps ? "The text has no such step."
            : key === "question_numbers" ? "The question has no numbers." : "There is no earlier result."));
    }), toCell);
  }

  function selectStep(step) {
    state.step = step;
    models.forEach((_, m) => drawSteps(m));
    drawHeads();
    writeAddress();
    say(`Step ${step + 1}`);
  }

  // --- difference of the pinned token's row

  function drawDifference() {
    const note = $("difference-note"), table = $("difference-table");
    if (!note) return;
    const kept = state.pin;
    table.hidden = !kept || kept.token >= shared;
    if (!kept) {
      note.textContent = `Pin one of the first ${shared} tokens, which all texts share, to compare the models' attention from there.`;
      return;
    }
    if (kept.token >= shared) {
      note.textContent = `Token ${kept.token} is in a part of the text that only ${called(kept.model)} has: the texts are the same only up to token ${shared - 1}, ` +
        "so no other model has this token with the same keys.";
      return;
    }
    const whole = views[0].whole, rows = views.map((v) => new Map(v.entries(kept.token))), keys = new Set(rows.flatMap((row) => [...row.keys()]));
    const change = (key, m) => (rows[m].get(key) ?? 0) - (rows[0].get(key) ?? 0);
    const size = (key) => Math.max(...rows.map((_, m) => Math.abs(change(key, m))));
    const most = [...keys].sort((a, b) => size(b) - size(a) || a - b).slice(0, 12);
    note.replaceChildren("Attention of ", bdi(kept.model, kept.token), ` (token ${kept.token}) in head ${name(state.head)}: the ${most.length} keys that differ most. ` +
      (whole ? "Entries below 0.05 % count as 0." : "The head is not watched: entries below 10 % are not stored, and their differences are unknown (–)."));
    table.tHead.replaceChildren(el("tr", {}, el("th", { scope: "col" }, "key"), ...models.map((model) => el("th", { scope: "col", dir: "auto" }, model.name)),
      ...models.slice(1).map((model) => el("th", { scope: "col", dir: "auto" }, `${escaped(model.name)} minus ${escaped(models[0].name)}`))));
    table.tBodies[0].replaceChildren(...most.map((key) => {
      const known = (m) => whole || rows[m].has(key);
      return el("tr", {}, el("th", { scope: "row" }, bdi(kept.model, key), " ", ...stepOf(kept.model, key), ` ${key}`),
        ...rows.map((row) => el("td", {}, row.has(key) ? stored(row.get(key)) : whole ? "<0.1 %" : "<10 %")),
        ...rows.slice(1).map((_, other) => el("td", {}, known(0) && known(other + 1) ? points(change(key, other + 1) / UNIT) : "–")));
    }));
  }

  // --- address: #head=12.3&token=0:34&step=2&color=entropy_nats&region=question&as=t&model=1&minus=0

  // A page in a notebook (about:srcdoc) has no address.
  const ADDRESSED = location.protocol !== "about:";
  const COLORS = [...measures.map((measure, number) => [measure.name, `measure:${number}`]), ...quantities.map((key, number) => [`step.${key}`, `step:${number}`])];
  /** The pickers in the address: [name, its element, [text in the address, value of the picker]...]. */
  const PICKED = [
    ["color", "quantity", COLORS], ["region", "region", regions.map((key, number) => [key, String(number)])], ["as", "as", [["value", "value"], ["t", "t"]]],
    ["model", "of", models.map((_, m) => [String(m), String(m)])], ["minus", "minus", [["", ""], ...models.map((_, m) => [String(m), String(m)])]],
  ].filter(([, id]) => $(id));
  const initial = {};  // values of the pickers without an address

  function writeAddress() {
    if (!ADDRESSED) return;
    const parts = [`head=${name(state.head)}`, ...(state.pin ? [`token=${state.pin.model}:${state.pin.token}`] : []), ...(state.step ? [`step=${state.step + 1}`] : [])];
    for (const [key, id, known] of PICKED) if ($(id).value !== initial[id]) parts.push(`${key}=${known.find(([, value]) => value === $(id).value)[0]}`);
    history.replaceState(null, "", "#" + parts.join("&"));
  }

  /** Apply the address; return the parts that this page does not have, or null where the address is not a view. */
  function readAddress() {
    const text = location.hash.slice(1);
    if (text === "" || document.getElementById(text)) return null;
    // Addresses of version 0.1 have `colour`.
    const found = new URLSearchParams(text.replace(/(^|&)colour=/, "$1color=")), bad = [], has = (key) => found.has(key);
    const wrong = (key) => bad.push(`${key}=${found.get(key)}`);
    for (const key of found.keys()) if (!["head", "token", "step", ...PICKED.map(([of]) => of)].includes(key)) wrong(key);
    const head = has("head") ? parseHead(found.get("head")) : FIRST_HEAD;
    if (head) state.head = head; else wrong("head");
    const token = /^(\d+):(\d+)$/.exec(found.get("token") ?? ""), place = token && { model: Number(token[1]), token: Number(token[2]) };
    state.pin = place && place.token < (models[place.model]?.n ?? 0) ? place : null;
    if (has("token") && !state.pin) wrong("token");
    const step = has("step") ? Number(found.get("step")) - 1 : 0;
    if (step === 0 || (Number.isInteger(step) && step > 0 && models.some((model) => step < model.steps))) state.step = step; else wrong("step");
    for (const [key, id, known] of PICKED) {
      const value = has(key) ? known.find(([of]) => of === found.get(key))?.[1] : initial[id];
      if (value === undefined || ![...$(id).options].some((option) => option.value === value && !option.disabled)) wrong(key); else $(id).value = value;
    }
    return bad;
  }

  async function followAddress() {
    const bad = readAddress();
    await selectHead(state.head);
    if (bad?.length) $("head-problem").textContent = `Not in this page: ${bad.join(", ")}.`;
    if (bad && state.pin) {
      const { model, token } = state.pin;
      rove(model, token);
      elements[model][token].scrollIntoView({ block: "center" });
      inSight(model, token);
    }
  }

  // --- start

  async function start() {
    const first = measures.length * regions.length * N_HEADS;
    standing = await Promise.all(models.map(async (_, m) => (await unpack(`pack-standing-${m}`))(Float32Array, Object.keys(FIELDS).length * first)));
    steps = await Promise.all(models.map(async (model, m) => {
      const take = await unpack(`pack-steps-${m}`), size = model.steps * quantities.length * N_HEADS;
      return { values: take(Float32Array, size) };
    }));
    buildPickers();
    buildGrid();
    models.forEach((_, m) => { buildTokens(m); buildMap(m); });
    document.querySelectorAll("button.step").forEach((button) => button.addEventListener("click", () => selectStep(Number(button.dataset.step))));
    document.querySelectorAll("button.go").forEach((button) => button.addEventListener("click", () => pinToken(Number(button.dataset.model), Number(button.dataset.token))));
    document.addEventListener("keydown", (event) => { if (event.key === "Escape" && state.pin) pin(null); });
    const redraw = () => { if (views.length) { drawHeads(); models.forEach((_, m) => drawMap(m)); } };
    DARK.addEventListener("change", redraw);
    let folded = [];
    addEventListener("beforeprint", () => {
      printing = true;
      folded = [...document.querySelectorAll("details:not([open])")];
      folded.forEach((part) => { part.open = true; });
      redraw();
    });
    addEventListener("afterprint", () => { printing = false; folded.forEach((part) => { part.open = false; }); redraw(); });
    // Links to sections do not change the address, because it contains the view; a frame in a notebook has no address.
    document.querySelectorAll('nav a[href^="#"]').forEach((link) => link.addEventListener("click", (event) => {
      const target = $(link.getAttribute("href").slice(1));
      event.preventDefault();
      target.tabIndex = -1;
      target.scrollIntoView();
      target.focus({ preventScroll: true });
    }));
    for (const [, id] of PICKED) initial[id] = $(id).value;
    addEventListener("hashchange", followAddress);
    await followAddress();
    document.documentElement.dataset.ready = "yes";
  }

  start().catch(fail);
})();
