"""The page of one problem in a real browser without network: what pointer and keyboard change, accessibility, printing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analyses.examples.notebook import Page
from figures.example.packing import PROBABILITY_STEPS, percent
from figures.example.page import example_page
from figures.example.read import Example, read_example

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra browser: pip install 'primed-heads[browser]'")

WATCHED = [(0, 1), (2, 3)]
PALE = """(least) => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => parts(color).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parts(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return getComputedStyle(at).backgroundColor;
      if (color[3] !== 0) throw new Error(`half transparent: ${at.className}`);
    }
    throw new Error("no ground");
  };
  const pale = [];
  let seen = 0;
  for (const element of document.querySelectorAll("body *")) {
    const before = getComputedStyle(element, "::before");
    const written = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
    const drawn = before.content !== "none" && before.content !== '""';
    if (!(written || drawn) || !element.checkVisibility()) continue;
    if (element.closest(".unseen, option, select, [disabled], script, style")) continue;
    seen++;
    const shades = [light((written ? getComputedStyle(element) : before).color), light(ground(element))].sort();
    const ratio = (Math.max(...shades) + 0.05) / (Math.min(...shades) + 0.05);
    if (ratio < least) pale.push([element.className, element.textContent.slice(0, 30), ratio.toFixed(2)]);
  }
  return { seen, pale };
}"""
"""WCAG's contrast of every text to its background; axe leaves out short texts and texts below a drawing."""
NUMERIC = ["question_number", "operand", "intermediate_result", "final_answer"]


@pytest.fixture
def example(example_folder) -> Example:
    """Two models, two of twelve heads watched."""
    return read_example(example_folder(watched=WATCHED))


def token(page: Any, model: int, position: int) -> Any:
    return page.locator(f"#text-{model} .t").nth(position)


def settle(page: Any) -> None:
    """Wait until the pointer's token is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def choose_head(page: Any, head: str) -> None:
    page.fill("#head-input", head)
    page.press("#head-input", "Enter")
    page.wait_for_selector(f'html[data-head="{head}"]', state="attached")


def shown(p: float) -> str:
    """As the page shows a probability of the table."""
    return f"{np.floor(float(p) * 1000 + 0.5) / 10:.1f} %"


def strongest(example: Example, model: str, head: tuple[int, int], column: str, position: int, count: int = 6) -> list[tuple[str, str]]:
    """(position, percentage) of the strongest entries that have `position` as their query or key."""
    edges = example.edges
    rows: pd.DataFrame = edges.loc[
        (edges["model"] == model) & (edges["layer"] == head[0]) & (edges["head"] == head[1]) & (edges[column] == position)
    ]
    other = "key" if column == "query" else "query"
    rows = rows.assign(steps=np.rint(rows["probability"].astype(float) * PROBABILITY_STEPS)).sort_values(
        ["steps", other], ascending=[False, True]
    )
    return [(str(int(at)), shown(p)) for at, p in zip(rows[other].head(count), rows["probability"].head(count), strict=True)]


def listed(page: Any, model: int, side: str) -> list[tuple[str, str]]:
    buttons = page.locator(f"#detail-{model} .{side} button")
    return buttons.evaluate_all(
        "(all) => all.map((one) => [one.querySelector('small').textContent, one.querySelector(':scope > b').textContent])"
    )


def numbers(example: Example, model: int = 0) -> list[int]:
    rows = example.tokens[example.tokens["model"] == example.models[model]]
    return rows.loc[rows["role"].isin(NUMERIC), "position"].tolist()


def test_pointing_shows_both_directions_and_clicking_pins_them(opened, example):
    page, position = opened(example), numbers(example)[4]
    token(page, 0, position).hover()
    settle(page)
    assert page.locator("#detail-0 .in button").count() > 0
    for side, column in (("out", "query"), ("in", "key")):
        assert [tuple(row) for row in listed(page, 0, side)] == strongest(example, "model-0", (0, 1), column, position)
    row = example.edges.query("model == 'model-0' and layer == 0 and head == 1 and query == @position")["probability"].astype(float)
    assert f"{percent(max(0.0, 1 - row.sum()))} spread over keys below 0.05 %" in page.locator("#detail-0 .out").inner_text()
    page.mouse.move(2, 2)
    settle(page)
    assert page.locator("#detail-0 .out").count() == 0
    token(page, 0, position).click()
    page.mouse.move(2, 2)
    settle(page)
    assert token(page, 0, position).get_attribute("aria-pressed") == "true"
    assert [tuple(row) for row in listed(page, 0, "out")] == strongest(example, "model-0", (0, 1), "query", position)
    assert page.locator("#arcs-0 path.to").count() > 0
    assert page.locator("#arcs-0 path.from").count() > 0
    page.keyboard.press("Escape")
    settle(page)
    assert token(page, 0, position).get_attribute("aria-pressed") == "false"
    assert page.locator("#detail-0 .out").count() == 0


def test_a_head_that_is_not_watched_shows_its_strong_entries(opened, example):
    page = opened(example)
    choose_head(page, "1.2")
    position = int(example.edges.query("model == 'model-1' and layer == 1 and head == 2")["query"].iloc[-1])
    token(page, 1, position).click()
    assert [tuple(row) for row in listed(page, 1, "out")] == strongest(example, "model-1", (1, 2), "query", position)
    assert "on keys below 10 %, not stored" in page.locator("#detail-1").inner_text()
    assert "only entries of at least 10 % are stored" in page.locator("#model-1 .map-note").inner_text()


def test_heads_can_be_chosen_by_grid_keyboard_text_field_and_table(opened, example):
    page = opened(example)
    assert page.locator('#grid [tabindex="0"]').count() == 1
    page.locator("#grid .cell").nth(6).click()
    page.wait_for_selector('html[data-head="1.2"]', state="attached")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector('html[data-head="2.2"]', state="attached")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector('html[data-head="2.3"]', state="attached")
    assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    assert page.locator("#head-input").input_value() == "2.3"
    page.fill("#head-input", "9.9")
    page.press("#head-input", "Enter")
    assert "layers 0 to 2, heads 0 to 3" in page.locator("#head-problem").inner_text()
    first = page.locator("#top tbody button").first
    name = first.inner_text()
    first.click()
    page.wait_for_selector(f'html[data-head="{name}"]', state="attached")
    assert page.locator("#map-title-0").inner_text() == f"Map of head {name}"
    assert page.locator("#grid .watched").count() == len(WATCHED)


def test_outlier_heads_match_the_table(opened, example):
    page = opened(example)
    rows = example.standing.query("model == 'model-0' and measure == @example.run['by'] and region == @example.run['region']")
    rows = rows.set_index(["layer", "head"], drop=False).loc[[tuple(head) for head in example.run["foremost"]]]
    expected = [
        [
            f"{row.layer}.{row.head}",
            percent(float(np.float32(row.value))),
            percent(float(np.float32(row.mean))),
            f"{row.t:+.1f}".replace("-", "−"),
        ]
        for row in rows.rename(columns={"mean": "mean_"}).rename(columns={"mean_": "mean"}).itertuples()
    ]
    assert [line.split("\t")[:4] for line in page.locator("#top tbody").inner_text().split("\n")] == expected
    other = next(number for number, measure in enumerate(example.run["measures"]) if measure["name"] == "entropy_nats")
    page.select_option("#quantity", f"measure:{other}")
    page.click("#top-more")
    rows = example.standing.query("model == 'model-0' and measure == 'entropy_nats' and region == @example.run['region']")
    rows = rows.assign(size=rows["t"].abs()).sort_values("size", ascending=False).head(12)
    heads = [line.split("\t")[0] for line in page.locator("#top tbody").inner_text().split("\n")]
    assert heads == [f"{layer}.{head}" for layer, head in zip(rows["layer"], rows["head"], strict=True)]
    page.select_option("#quantity", f"measure:{[m['name'] for m in example.run['measures']].index('numeric_mass')}")
    page.select_option("#as", "t")
    title = page.locator('#grid [aria-selected="true"]').get_attribute("title")
    t = example.standing.query("model == 'model-0' and measure == 'numeric_mass' and region == 'response' and layer == 0 and head == 1")[
        "t"
    ]
    assert title.split(": ")[0] == "0.1"
    assert float(title.split(": ")[1].replace("−", "-")) == pytest.approx(float(t.iloc[0]), rel=6e-3)


def test_steps_and_differences_of_models_match_the_table(opened, example):
    page = opened(example)
    rows = example.steps.query("model == 'model-1' and layer == 0 and head == 1").set_index(["step", "quantity"])
    for step in range(3):
        line = page.locator("#steps-1 tbody tr").nth(step)
        for cell, quantity in ((".q", "question_numbers"), (".e", "earlier_results")):
            value = float(rows.loc[(step, quantity), "value"])
            assert line.locator(cell).inner_text() == ("–" if np.isnan(value) else percent(float(np.float32(value))))
        assert line.locator(".n").inner_text() == str(rows.loc[(step, "question_numbers"), "n_queries"])
    page.locator("#steps-1 button.step").nth(1).click()
    step = example.steps.query("model == 'model-1' and step == 1 and quantity == 'earlier_results'").sort_values("value", ascending=False)
    best = step.iloc[0]
    highest = page.locator("#highest-1 div").nth(1).locator("li").first.inner_text().split()
    assert highest[0] == f"{best['layer']}.{best['head']}"
    assert " ".join(highest[1:]) == percent(float(np.float32(best["value"])))
    page.select_option("#quantity", "step:1")
    page.select_option("#of", "1")
    page.select_option("#minus", "0")
    both = example.steps.query("step == 1 and quantity == 'earlier_results' and layer == 0 and head == 1").set_index("model")["value"]
    difference = np.float32(both["model-1"]).astype(float) - np.float32(both["model-0"]).astype(float)
    text = f"{'+' if difference > 0 else '−'}{percent(abs(difference))}".replace("%", "pp")
    assert page.locator('#grid [aria-selected="true"]').get_attribute("title") == f"0.1: {text}"


def test_a_shared_token_is_pinned_in_both_texts_and_compared(opened, example):
    page, position = opened(example), numbers(example)[1]
    token(page, 0, position).click()
    assert token(page, 1, position).get_attribute("aria-pressed") == "true"
    edges = example.edges.query("layer == 0 and head == 1 and query == @position").set_index(["model", "key"])["probability"].astype(float)
    for line in page.locator("#difference-table tbody").inner_text().split("\n"):
        key, first, second, change = line.split("\t")
        at = int(key.split()[-1])
        a, b = (edges.get((model, at)) for model in example.models)
        assert [first, second] == ["<0.1 %" if p is None else shown(p) for p in (a, b)]
        steps = int(np.rint((b or 0) * PROBABILITY_STEPS)) - int(np.rint((a or 0) * PROBABILITY_STEPS))
        tenths = (abs(steps) + PROBABILITY_STEPS // 2000) // (PROBABILITY_STEPS // 1000) / 10
        assert change == ("" if not tenths else "+" if steps > 0 else "−") + f"{tenths:.1f} pp"
    own = example.run["shared_tokens"] + 5
    token(page, 1, own).click()
    assert token(page, 0, own).get_attribute("aria-pressed") == "false"
    assert not page.locator("#difference-table").is_visible()
    assert "that only \u2068model-1\u2069 has" in page.locator("#difference-note").inner_text()


def test_the_map_reads_out_each_entry(opened, example):
    page = opened(example)
    page.locator("#map-0").scroll_into_view_if_needed()
    n = int((example.tokens["model"] == "model-0").sum())
    query, key = 60, 8
    box = page.locator("#map-0").bounding_box()
    plot = box["width"] - 2 - 7
    page.mouse.move(box["x"] + 8 + (key + 0.5) * plot / n, box["y"] + 8 + (query + 0.5) * plot / n)
    p = example.edges.query("model == 'model-0' and layer == 0 and head == 1 and query == @query and key == @key")["probability"]
    text = page.locator("#map-value-0").inner_text()
    assert f"({query}) attends to" in text
    assert text.endswith(f"({key}): {shown(p.iloc[0]) if len(p) else 'below 0.05 %'}")
    page.locator("#map-0").focus()
    for press in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(press)
    assert "(1) attends to" in page.locator("#map-value-0").inner_text()
    page.keyboard.press("Enter")
    assert token(page, 0, 1).get_attribute("aria-pressed") == "true"
    with page.expect_download() as download:
        page.locator("#save-0").click()
    assert download.value.suggested_filename == "model-0-0.1.png"
    assert Path(download.value.path()).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_keys_move_between_tokens(opened, example):
    page = opened(example)
    assert page.locator('#text-0 [tabindex="0"]').count() == 1
    token(page, 0, 0).focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert token(page, 0, 5).get_attribute("aria-pressed") == "true"
    page.keyboard.press("ArrowDown")
    here, below = token(page, 0, 5).bounding_box(), page.evaluate("document.activeElement.getBoundingClientRect().top")
    assert below > here["y"]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.textContent") == "<|im_end|>"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "<|im_end|>"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_every_control_can_be_reached_by_tab(opened, example):
    page = opened(example)
    reached = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        at = page.evaluate("(() => { const e = document.activeElement; return e.id || e.className || e.tagName; })()")
        reached.add(at)
        if at == "BODY":
            break
    wanted = {
        "head-input",
        "head-select",
        "arcs",
        "quantity",
        "region",
        "as",
        "of",
        "minus",
        "map-0",
        "map-1",
        "save-0",
        "step",
        "go",
        "head-button",
    }
    assert wanted <= reached
    assert any("cell" in name for name in reached)
    assert any(name.startswith("t ") for name in reached)


def test_the_address_restores_the_view(opened, example):
    position = numbers(example)[2]
    page = opened(example, address=f"#head=2.3&token=0:{position}&step=2")
    assert page.locator("#head-input").input_value() == "2.3"
    assert token(page, 0, position).get_attribute("aria-pressed") == "true"
    assert page.locator("#steps-0 button.step").nth(1).get_attribute("aria-pressed") == "true"
    choose_head(page, "0.1")
    page.keyboard.press("Escape")
    assert page.evaluate("location.hash") == "#head=0.1&step=2"
    bad = opened(example, address="#head=99.1&token=7:1&step=x&color=beauty&other=1")
    assert bad.locator("#head-input").input_value() == "0.1"
    for part in ("head=99.1", "token=7:1", "step=x", "color=beauty", "other=1"):
        assert part in bad.locator("#head-problem").inner_text()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast_names_and_aria_roles_are_accessible(opened, example, dark):
    example.run["warnings"] = ["Look out."]
    page = opened(example, dark=dark, reduced_motion="reduce")
    idle = page.evaluate(PALE, 4.5)
    token(page, 0, numbers(example)[5]).click()
    page.mouse.move(2, 2)
    kept = page.evaluate(PALE, 4.5)
    assert min(idle["seen"], kept["seen"]) > 300
    assert idle["pale"] + kept["pale"] == []
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
    found = axe.Axe().run(page, options=rules).response["violations"]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found] == []
    assert page.evaluate("getComputedStyle(document.querySelector('.cell')).transitionDuration") == "0s"


def test_the_contrast_check_finds_a_low_contrast(opened, example):
    page = opened(example, reduced_motion="reduce")
    page.add_style_tag(content=".operand { color: #6f6f6f !important; }")
    pale = page.evaluate(PALE, 4.5)["pale"]
    assert pale
    assert [one for one in pale if "operand" not in one[0].split()] == []


@pytest.mark.parametrize("answers", [1, 2])
def test_a_narrow_screen_does_not_scroll_sideways(opened, example_folder, answers):
    texts = ("She has 3*12=36 " + "pencils" * 12 + ".\n#### 36", "#### 7")[:answers]
    page = opened(read_example(example_folder(answers=texts, watched=WATCHED)), width=390, height=844)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    boxes = [page.locator(f"#text-{model}").bounding_box() for model in range(answers)]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
    if answers == 2:
        assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"]


def test_models_are_side_by_side_on_a_wide_screen(opened, example):
    page = opened(example)
    first, second = (page.locator(f"#text-{model}").bounding_box() for model in (0, 1))
    assert first["y"] == second["y"]
    assert first["x"] + first["width"] <= second["x"]


def test_right_to_left_scripts_and_half_characters_are_shown(opened, example_folder):
    question = "דני קנה 3 קופסאות של 12 עפרונות 🙂. כמה?"
    page = opened(read_example(example_folder(question=question, answers=("هناك 36+1250=1286 شيئا.\n#### 1286",))))
    assert page.locator("#text-0 .question .line").evaluate("(line) => getComputedStyle(line).direction") == "rtl"
    words = page.locator("#text-0 .question .t")
    first, second = words.nth(0).bounding_box(), words.nth(1).bounding_box()
    assert first["x"] > second["x"], "the first Hebrew word stands on the right"
    page.locator("#text-0 .question .t").nth(0).focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.textContent") == words.nth(1).inner_text()
    half = page.locator("#text-0 .half").first
    assert half.get_attribute("title") == "part of the previous character"
    half.hover()
    settle(page)
    assert "◦" in page.locator("#detail-0 h4").inner_text()
    answer = page.locator("#text-0 .response .line").first
    assert answer.evaluate("(line) => getComputedStyle(line).direction") == "rtl"


def test_markup_in_the_problem_is_shown_as_text(opened, example_folder):
    question = "</script><img src=x onerror=alert(1)> has 3 boxes?"
    page = opened(read_example(example_folder(question=question, answers=("<b>3</b>*12=36\n#### 36",), watched=WATCHED)))
    assert question in page.locator("#text-0 .question .line").inner_text()
    assert page.locator("main img, #text-0 b").count() == 0
    for position in numbers(read_example(example_folder(question=question, answers=("<b>3</b>*12=36\n#### 36",), watched=WATCHED)))[:2]:
        token(page, 0, position).click()
    page.locator("#map-0").focus()
    page.keyboard.press("ArrowDown")


def test_a_page_without_watched_heads_comparison_and_numbers_works(opened, example_folder):
    bare = read_example(example_folder(question="Why?", answers=("Because.", "So."), watched=[], compared=False))
    page = opened(bare)
    assert page.locator("#top-title").inner_text() == "Heads with the highest values"
    assert "no run to compare with" in page.locator("#top-note").inner_text()
    token(page, 0, 3).click()
    assert page.locator("#detail-0 .out").count() == 1


def test_three_models_are_compared_with_the_first(opened, example_folder):
    page = opened(read_example(example_folder(answers=("3*12=36\n#### 36", "3*12=35\n#### 35", "#### 7"), watched=WATCHED)))
    token(page, 2, 5).click()
    assert page.locator('.t[aria-pressed="true"]').count() == 3
    assert page.locator("#difference-table thead th").count() == 1 + 3 + 2


def test_a_browser_without_decompression_shows_a_message(browser, example, tmp_path):
    path = tmp_path / "old.html"
    path.write_text(example_page(example), encoding="utf-8")
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(path.as_uri())
    page.wait_for_selector("#failed:not([hidden])")
    assert "DecompressionStream" in page.locator("#failed").inner_text()
    page.close()


def test_the_page_can_be_printed(opened, example):
    page = opened(example, dark=True)
    token(page, 0, 8).click()
    printed = page.pdf(format="A4")
    assert printed[:5] == b"%PDF-"
    page.emulate_media(media="print")
    for seen in ("#detail-0 .out", "#text-0", "#map-0", "#map-1", "#steps-0", "#top", "#grid", "#next-1"):
        assert page.locator(seen).is_visible(), seen
    for unseen in ("#bar", "#save-0"):
        assert not page.locator(unseen).is_visible(), unseen
    cut = page.evaluate(
        "[...document.querySelectorAll('.scroll, .chooser, .text')].filter((box) => getComputedStyle(box).overflowY === 'auto').length"
    )
    assert cut == 0
    grounds = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--page')")
    assert grounds.strip() == "#ffffff", "paper is white, whatever the screen is"
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


def above_its_panel(page: Any) -> tuple[float, float, float]:
    """Height of the focused token, and its distances from the bar above and from its panel; both positive where it is visible."""
    return page.evaluate(
        """() => {
          const token = document.activeElement.getBoundingClientRect();
          const panel = document.activeElement.closest(".reading").querySelector(".detail").getBoundingClientRect();
          const bar = document.getElementById("bar").getBoundingClientRect();
          return [token.height, token.top - bar.bottom, Math.min(innerHeight, panel.top) - token.bottom];
        }"""
    )


LONG = "\n".join(f"Then she takes {i} boxes of {i + 1} pens, so {i}+{i + 1}={2 * i + 1}." for i in range(2, 40)) + "\n#### 79"


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844), (844, 390)])
def test_no_focused_token_is_covered_by_its_panel(opened, example_folder, width, height):
    example = read_example(example_folder(answers=(LONG,), watched=WATCHED))
    page = opened(example, width=width, height=height)
    assert page.locator("#detail-0").bounding_box()["height"] < 45
    token(page, 0, 0).focus()
    for _ in range(4):
        for _ in range(40):
            page.keyboard.press("ArrowRight")
        size, below_bar, above_panel = above_its_panel(page)
        assert size > 5
        assert min(below_bar, above_panel) >= 0
    for position in (numbers(example)[-1], numbers(example)[len(numbers(example)) // 2], numbers(example)[0]):
        page.locator(f'#next-0 button.go[data-token="{position}"]').click()
        assert token(page, 0, position).get_attribute("aria-pressed") == "true"
        assert min(above_its_panel(page)) >= 0
        assert page.locator("#detail-0").bounding_box()["height"] <= min(0.4 * height, 240) + 1


def test_a_panel_does_not_cover_the_pointers_token(opened, example_folder):
    page = opened(read_example(example_folder(answers=(LONG,), watched=WATCHED)))
    page.evaluate("scrollTo(0, 600)")
    hint = page.locator("#detail-0").bounding_box()
    before = page.evaluate("document.documentElement.scrollHeight")
    x, y, width, height = page.evaluate(
        """(edge) => {
          const boxes = [...document.querySelectorAll("#text-0 .t")].map((token) => token.getBoundingClientRect());
          const lowest = boxes.filter((box) => box.bottom < edge && box.width > 6).reduce((a, b) => b.bottom >= a.bottom ? b : a);
          return [lowest.x, lowest.y, lowest.width, lowest.height];
        }""",
        hint["y"],
    )
    for way in (0, 1, 2):
        page.mouse.move(x + width / 2 + way, y + height / 2)
        settle(page)
        assert page.locator("#detail-0 .out").count() == 1
        assert page.locator("#detail-0").bounding_box()["y"] >= min(y + height, hint["y"])
    assert page.evaluate("document.documentElement.scrollHeight") == before, "nothing moves while the pointer does"


def test_the_page_works_in_a_notebook(browser, example, tmp_path):
    wrong: list[str] = []
    host = tmp_path / "notebook.html"
    framed = Page(example_page(example), 700)._repr_html_()
    host.write_text(f"<!DOCTYPE html><meta charset='utf-8'><title>Notebook</title><p id='top'>cell</p>{framed}", encoding="utf-8")
    context = browser.new_context(offline=True, viewport={"width": 1100, "height": 900})
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(host.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for(state="attached")
    assert not frame.locator("#failed").is_visible()
    frame.locator("#grid .cell").nth(6).click()
    frame.locator('html[data-head="1.2"]').wait_for(state="attached")
    frame.locator("#text-0 .t").nth(5).click()
    assert frame.locator("#text-0 .t").nth(5).get_attribute("aria-pressed") == "true"
    for section in ("expected", "texts"):
        frame.locator(f'nav a[href="#{section}"]').click()
        assert frame.locator(f"#{section}").evaluate("(heading) => document.activeElement === heading")
        top = frame.locator(f"#{section}").evaluate("(heading) => heading.getBoundingClientRect().top")
        assert 0 <= top < 700
    assert frame.locator("#head-input").input_value() == "1.2"
    assert page.url == host.as_uri()
    context.close()
    assert wrong == []


def test_the_address_restores_the_pickers_and_survives_section_links(opened, example):
    page = opened(example)
    page.select_option("#quantity", "step:1")
    page.select_option("#of", "1")
    page.select_option("#minus", "0")
    address = page.evaluate("location.hash")
    assert address == "#head=0.1&color=step.earlier_results&model=1&minus=0"
    page.click('nav a[href="#run"]')
    assert page.evaluate("location.hash") == address
    assert page.evaluate("document.activeElement.id") == "run"
    again = opened(example, address=address)
    assert [again.locator(f"#{id}").input_value() for id in ("quantity", "of", "minus")] == ["step:1", "1", "0"]
    assert again.locator("#top-title").inner_text() == "Largest differences"
    assert again.locator("#head-problem").inner_text() == ""


def test_a_pinned_token_is_scrolled_into_view(opened, example_folder):
    example = read_example(example_folder(answers=(LONG,), watched=WATCHED))
    last = numbers(example)[-1]
    page = opened(example, address=f"#head=2.3&token=0:{last}")
    for position in (last, numbers(example)[0]):
        page.evaluate("(at) => { location.hash = `#head=2.3&token=0:${at}`; }", position)
        page.wait_for_selector("#text-0 .t[aria-pressed='true'] >> nth=0")
        page.wait_for_function("(at) => document.querySelectorAll('#text-0 .t')[at].getAttribute('aria-pressed') === 'true'", arg=position)
        settle(page)
        box, panel, bar = (
            token(page, 0, position).bounding_box(),
            page.locator("#detail-0").bounding_box(),
            page.locator("#bar").bounding_box(),
        )
        assert bar["y"] + bar["height"] <= box["y"]
        assert box["y"] + box["height"] <= panel["y"]


def test_the_map_shows_the_difference_of_two_models(opened, example):
    page = opened(example)
    page.locator("#differ").check()
    assert page.locator("#map-title-1").inner_text() == "Map of head 0.1, minus \u2068model-0\u2069"
    edges = example.edges.query("layer == 0 and head == 1 and query < @example.run['shared_tokens']")
    first, second = (edges[edges["model"] == model].set_index(["query", "key"])["probability"].astype(float) for model in example.models)
    change = second.sub(first, fill_value=0)
    most = f"{float(np.floor(change.abs().max() * 1000 + 0.5) / 10):.1f} pp"
    assert page.locator("#model-1 .map-high").inner_text() == f"+{most}"
    assert page.locator("#model-1 .map-low").inner_text() == f"−{most}"
    query, key = change.abs().idxmax()
    n = int((example.tokens["model"] == "model-1").sum())
    page.locator("#map-1").scroll_into_view_if_needed()
    box = page.locator("#map-1").bounding_box()
    plot = box["width"] - 2 - 7
    page.mouse.move(box["x"] + 8 + (key + 0.5) * plot / n, box["y"] + 8 + (query + 0.5) * plot / n)
    assert page.locator("#map-value-1").inner_text().endswith(f"{'+' if change[(query, key)] > 0 else '−'}{most}")
    choose_head(page, "1.2")
    assert page.locator("#differ").is_disabled()
    assert page.locator("#map-title-1").inner_text() == "Map of head 1.2"


def test_a_text_without_numbers_is_reported(opened, example_folder):
    example = read_example(example_folder(question="Why?", answers=("Because.", "So."), watched=WATCHED))
    example.standing["value"] = example.standing["value"].mask(example.standing["measure"] == "numeric_mass", 0.0)
    page = opened(example)
    assert "the text has no numbers" in page.locator("#grid-caption").inner_text()
    assert "The question has no numbers." in page.locator("#highest-0").inner_text()
    assert "There is no earlier result." in page.locator("#highest-0").inner_text()
    rows = example.tokens.query("model == 'model-0' and step == 0")
    assert page.locator("#steps-0 tbody .n").first.inner_text() == str(len(rows))


def test_without_foremost_heads_the_page_sorts_heads_by_t(opened, example):
    del example.run["foremost"]
    page = opened(example)
    rows = example.standing.query("model == 'model-0' and measure == @example.run['by'] and region == @example.run['region']")
    first = rows.assign(size=rows["t"].abs()).sort_values("size", ascending=False).head(5)
    heads = page.locator("#top tbody .head-button").all_inner_texts()
    assert heads == [f"{layer}.{head}" for layer, head in zip(first["layer"], first["head"], strict=True)]


def test_the_page_states_that_no_head_is_significant(opened, example):
    example.standing["q"] = 0.9
    page = opened(example)
    assert page.locator("#top-note").inner_text() == "No head has q ≤ 0.05 (smallest q: 0.90). Sorted by |t|, over all models."
    assert "*" not in page.locator("#top tbody").inner_text()


def test_the_panel_shows_the_most_likely_tokens(opened, example):
    page, position = opened(example), numbers(example)[4]
    token(page, 0, position).click()
    rows = example.next.query("model == 'model-0' and position == @position")
    read = rows[rows["is_read"]].iloc[0]
    line = page.locator("#detail-0 .likely").inner_text()
    assert line.startswith(f"Probability {percent(read['probability'])} (rank {read['rank']})")
    values = rows.sort_values("rank")["probability"].head(3)
    assert [one.split()[-2] for one in page.locator("#detail-0 .likely > span").all_inner_texts()] == [
        percent(p).split()[0] for p in values
    ]
