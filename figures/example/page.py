"""One HTML page for one problem under the lens: what models read, what their heads looked at, what they expected; no network needed.

Attention is in the page as packed blocks, one for each watched head (all its stored entries) and one for each layer's other heads (their
strong entries), so that a browser unpacks only what it shows. `pack_edges` says how. A probability is stored in `UNIT` steps, so rounded
that the percentage shown, with one decimal, is exactly `percent` of the table's value (`in_steps`). A difference of two probabilities is
that of the stored ones: within 0.001 percentage points of the tables'. Values of measures are stored as float32.
"""

from __future__ import annotations

import base64
import re
import unicodedata
import zlib
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from figures.example.read import Example
from interp.tables.errors import InputError
from interp.tables.example import ALTERNATIVES, FAINT, STEP_QUANTITIES, STRONG
from interp.tables.schema import REGIONS, ROLES, TOKEN_REGIONS

UNIT = 200_000
"""Steps of a stored probability of 1."""


LOW = 0.1
"""A token that was read although its probability was below this is marked."""


STANDING_FIELDS = ("value", "mean", "t", "q")
"""Columns of `interp.tables.example.STANDING` that the page has."""


INVISIBLE = {
    "\u00ad": "SHY", "\u200b": "ZWSP", "\u200c": "ZWNJ", "\u200d": "ZWJ", "\u200e": "LRM", "\u200f": "RLM",
    "\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO", "\u2060": "WJ",
    "\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI", "\ufe0f": "VS16", "\ufeff": "BOM",
}  # fmt: skip
"""Short names of characters that leave no mark of their own; others have their number."""


NOT_WHOLE = "not a whole character"
"""Said where a token's bytes are a part of a character only."""


@dataclass(frozen=True)
class Block:
    """Tokens of a text that follow each other in one region and one step.

    Attributes:
        region: of `interp.tables.schema.TOKEN_REGIONS`.
        step: of the response, counted from 0; -1 elsewhere.
        tokens: as HTML, one element a token.
        sums: of the step, as in run.json.
    """

    region: str
    step: int
    tokens: Markup
    sums: list[dict[str, Any]]


@dataclass(frozen=True)
class Expected:
    """What a model expected at a token of a number.

    Attributes:
        position: of the token.
        token: its text.
        before: what its number has before it.
        after: what its number has after it.
        step: of the response, counted from 0; -1 elsewhere.
        probability: of the token that stands there.
        rank: of that token; 1 is the most likely one.
        others: (token, probability) of the most likely ones.
    """

    position: int
    token: str
    before: str
    after: str
    step: int
    probability: float
    rank: int
    others: list[tuple[str, float]]


def example_page(example: Example) -> str:
    """Write the page as one HTML text.

    Args:
        example: as `figures.example.read.read_example` gives it. Every text in it is shown as text, whatever it contains.

    Returns:
        HTML; the same for the same example. Two models of 512 tokens with 30 x 9 heads, 8 of them watched, take some 4 MB.

    Raises:
        InputError: a table has a token or a head that the tokens' table or run.json lacks.
        KeyError: run.json lacks a key.
    """
    run = example.run
    environment = Environment(
        loader=PackageLoader("figures"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}
    environment.filters.update(percent=percent, words=in_words, plain=plain, part=lambda text: NOT_WHOLE if "\ufffd" in text else "")
    models, data, packs = [], [], {}
    for number, model in enumerate(run["models"]):
        name = str(model["name"])
        tokens = _of_model(example.tokens, name).sort_values("position", ignore_index=True)
        if not np.array_equal(tokens["position"].to_numpy(), np.arange(len(tokens))):
            raise InputError(f"tokens: the positions of {name} are not 0 to {len(tokens) - 1}; write the tables again")
        blocks = _blocks(run, _of_model(example.edges, name), name, len(tokens))
        for index, (_, _, packed) in enumerate(blocks):
            packs[f"pack-edges-{number}-{index}"] = packed
        packs[f"pack-standing-{number}"] = pack_standing(example, name)
        packs[f"pack-steps-{number}"] = pack_steps(example, name, len(model["steps"]))
        expected = expectations(_of_model(example.next, name), tokens)
        data.append(_model_data(model, tokens, [(heads, whole) for heads, whole, _ in blocks], expected))
        numbers = bool((tokens["role"].astype(str) == "question_number").any())
        models.append({**model, "blocks": text_blocks(tokens, model["steps"]), "expected": expected, "asks_with_numbers": numbers})
    html = environment.get_template("example.html.j2").render(
        run=run,
        problem=run["problem"],
        models=models,
        title=_title(run["problem"]),
        roles=[role for role in ROLES if role != "none"],
        facts=_facts(run),
        low=LOW,
        alternatives=ALTERNATIVES,
        quantities=STEP_QUANTITIES,
        regions=REGIONS,
        data=_page_data(run) | {"models": data},
        packs={name: base64.b64encode(packed).decode("ascii") for name, packed in packs.items()},
    )
    # JSON can hold half a surrogate pair, UTF-8 cannot.
    return re.sub("[\ud800-\udfff]", "\ufffd", html)


def percent(probability: float) -> str:
    """A share as a percentage with one decimal, rounded half up; the page's script does the same."""
    return f"{np.floor(probability * 1000 + 0.5) / 10:.1f} %"


def in_steps(probability: np.ndarray) -> np.ndarray:
    """Probabilities in steps of 1 / `UNIT`: the nearest step of those that round to the same tenth of a per cent.

    A page that shows floor(steps / `UNIT` * 1000 + 1/2) / 10 so shows what `percent` makes of the table's value, of every value.
    """
    p = np.asarray(probability, np.float64)
    tenth, size = np.floor(p * 1000 + 0.5), UNIT // 1000
    return np.clip(np.rint(p * UNIT), tenth * size - size // 2, tenth * size + size // 2 - 1)


def plain(text: Any) -> str:
    """A printed string whose format characters (Unicode's category Cf), such as those that turn the writing round, are escapes."""
    return "".join(_escape(c) if unicodedata.category(c) == "Cf" else c for c in str(text))


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def in_words(value: Any) -> str:
    """A value of run.json in words: parts with a comma between them."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {in_words(part)}" for key, part in value.items() if part is not None)
    return ", ".join(map(in_words, value)) if isinstance(value, list) else str(value)


def pack_edges(heads: int, tokens: int, head: np.ndarray, query: np.ndarray, key: np.ndarray, p: np.ndarray, *, whole: bool) -> bytes:
    """Pack the attention of some heads of one model.

    Row r is query r mod `tokens` of head r // `tokens`. Little-endian, one after the other, each with its lowest bytes first, then all its
    second bytes and so on (`_planes`), and deflated together (zlib, level 9):

    - entries of each row, uint32 [heads * tokens];
    - gaps, uint32 [entries]: a row's first key, then each key less the one before it;
    - probabilities in steps of 1 / `UNIT`, uint32 [entries];
    - with `whole`: what the row has beyond its entries, 1 less their sum, in the same steps, uint32 [heads * tokens].

    Args:
        heads: how many the block has.
        tokens: of the text.
        head: place of each entry's head in the block, counted from 0, [entries].
        query: position of its query, [entries].
        key: position of its key, [entries].
        p: its probability, [entries].
        whole: whether these are watched heads.

    Returns:
        The packed block.
    """
    row = head.astype(np.int64) * tokens + query
    order = np.lexsort((key, row))
    row, key, p = row[order], key[order].astype(np.int64), p[order].astype(np.float64)
    counts = np.bincount(row, minlength=heads * tokens)
    first = np.ones(len(row), bool)
    first[1:] = row[1:] != row[:-1]
    gaps = np.where(first, key, key - np.concatenate([[0], key[:-1]]))
    packed = _planes(counts, "<u4") + _planes(gaps, "<u4") + _planes(in_steps(p), "<u4")
    if whole:
        packed += _planes(in_steps((1 - np.bincount(row, p, minlength=heads * tokens)).clip(0, 1)), "<u4")
    return zlib.compress(packed, 9)


def pack_standing(example: Example, model: str) -> bytes:
    """Pack a model's measures beside the run's: float32 [field, measure, region, head], NaN where the table has no row.

    Fields are `STANDING_FIELDS`, measures and heads in the order of run.json (layer by layer), regions `interp.tables.schema.REGIONS`. Packed as
    `pack_edges` packs.
    """
    run, rows = example.run, _of_model(example.standing, model)
    measures = [measure["name"] for measure in run["measures"]]
    values = np.full((len(STANDING_FIELDS), len(measures), len(REGIONS), len(run["layers"]) * run["n_heads"]), np.nan)
    rows = rows.loc[rows["measure"].isin(measures)]
    place = _codes(rows["measure"], measures), _codes(rows["region"], REGIONS), _heads(run, rows, "standing")
    for number, field in enumerate(STANDING_FIELDS):
        values[number][place] = rows[field].to_numpy()
    return zlib.compress(_planes(_in_float32(values), "<f4"), 9)


def pack_steps(example: Example, model: str, steps: int) -> bytes:
    """Pack where a model's steps look: float32 [step, quantity, head], then the tokens of each mean, uint32 of the same shape.

    Quantities are `interp.tables.example.STEP_QUANTITIES`; what the table lacks is NaN of 0 tokens. Packed as `pack_edges` packs.
    """
    run, rows = example.run, _of_model(example.steps, model)
    if len(rows) and rows["step"].max() >= steps:
        raise InputError(f"steps: {model} has step {rows['step'].max()}, run.json has {steps} steps; write the tables again")
    values = np.full((steps, len(STEP_QUANTITIES), len(run["layers"]) * run["n_heads"]), np.nan)
    counts = np.zeros_like(values)
    place = rows["step"].to_numpy(), _codes(rows["quantity"], STEP_QUANTITIES), _heads(run, rows, "steps")
    values[place], counts[place] = rows["value"].to_numpy(), rows["n_queries"].to_numpy()
    return zlib.compress(_planes(_in_float32(values), "<f4") + _planes(counts, "<u4"), 9)


def text_blocks(tokens: pd.DataFrame, steps: list[dict[str, Any]]) -> list[Block]:
    """The text of a model, cut where region or step change.

    Args:
        tokens: of one model, sorted by position.
        steps: of the model, as in run.json.

    Blank tokens between two steps, line breaks as a rule, stand with the step before them.
    """
    region = tokens["region"].astype(str)
    blank = (region == "response") & (tokens["step"] < 0) & (tokens["shown"].str.strip() == "")
    step = tokens["step"].mask(blank & region.eq(region.shift())).ffill().astype(int)
    runs = ((region != region.shift()) | (step != step.shift())).cumsum()
    blocks = []
    for _, rows in tokens.groupby(runs, sort=True):
        number = int(rows["step"].iloc[0])
        html = Markup("").join(_token(shown, role) for shown, role in zip(rows["shown"], rows["role"].astype(str), strict=True))
        blocks.append(Block(str(rows["region"].iloc[0]), number, html, steps[number]["sums"] if 0 <= number < len(steps) else []))
    return blocks


def _token(shown: str, role: str) -> Markup:
    """A token's element. Line breaks and other control characters get a sign; half a character gets a mark of its own."""
    if not shown:
        return Markup('<span class="t half {}" title="part of the character before"></span>').format(role)
    if all(unicodedata.category(c) in ("Cf", "Mn", "Mc", "Me") for c in shown):
        signs = " ".join(INVISIBLE.get(c, f"U+{ord(c):04X}") for c in shown)
        names = ", ".join(unicodedata.name(c, "no name").lower() for c in shown)
        return Markup('<span class="t chip {}" data-chip="{}" title="{}"><i>{}</i></span>').format(role, signs, names, shown)
    # Control characters have pictures of their own in Unicode, from U+2400 on.
    visible = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), shown)
    kind = f"alone {role}" if re.search("[\u202a-\u202e\u2066-\u2069]", shown) else role
    title = Markup(' title="{}"').format(NOT_WHOLE) if "\ufffd" in shown else ""
    return Markup('<span class="t {}"{}>{}</span>').format(
        kind, title, Markup('<i class="nl"></i>\n').join(map(escape, visible.split("\n")))
    )


def expectations(rows: pd.DataFrame, tokens: pd.DataFrame) -> list[Expected]:
    """What a model expected at each token of a number.

    Args:
        rows: of `interp.tables.example.NEXT`, of one model.
        tokens: of the same model, sorted by position.
    """
    found, number, shown = [], tokens["number"].to_numpy(), tokens["shown"].tolist()
    for position, listed in rows.sort_values(["position", "rank"]).groupby("position", sort=True):
        read = listed.loc[listed["is_read"]]
        if len(read) != 1 or not 0 <= int(position) < len(tokens):  # type: ignore[arg-type]
            raise InputError(f"next: position {position} has {len(read)} tokens that were read, of {len(tokens)}; write the tables again")
        top = listed.loc[listed["rank"] <= ALTERNATIVES]
        text = tokens["shown"].iloc[int(position)] or tokens["token"].iloc[int(position)]  # type: ignore[arg-type]
        others = [(str(token), float(p)) for token, p in zip(top["token"], top["probability"], strict=True)]
        place = int(position)  # type: ignore[arg-type]
        mine = np.flatnonzero(number == number[place]) if number[place] >= 0 else np.array([place])
        before, after = ("".join(shown[at] for at in side) for side in (mine[mine < place], mine[mine > place]))
        step = int(tokens["step"].iloc[place])
        found.append(
            Expected(
                place,
                str(text),
                before.strip(),
                after.rstrip(),
                step,
                float(read["probability"].iloc[0]),
                int(read["rank"].iloc[0]),
                others,
            )
        )  # type: ignore[arg-type]
    return found


def _blocks(run: dict[str, Any], edges: pd.DataFrame, model: str, tokens: int) -> list[tuple[list[list[int]], bool, bytes]]:
    """(heads, whether their maps are whole, packed) of each block: a watched head each, then a layer's other heads each."""
    _heads(run, edges, "edges")
    for column in ("query", "key"):
        if len(edges) and not 0 <= edges[column].min() <= edges[column].max() < tokens:
            raise InputError(f"edges: {model} has {column} {edges[column].max()}, but {tokens} tokens; write the tables again")
    watched = [[int(layer), int(head)] for layer, head in run["watched"]]
    groups = [([head], True) for head in watched]
    for layer in run["layers"]:
        others = [[int(layer), head] for head in range(run["n_heads"]) if [layer, head] not in watched]
        groups += [(others, False)] if others else []
    columns = {name: edges[name].to_numpy() for name in ("layer", "head", "query", "key", "probability")}
    blocks = []
    for heads, whole in groups:
        mine = columns["layer"] == heads[0][0]
        mine &= np.isin(columns["head"], [head for _, head in heads])
        place = np.searchsorted([head for _, head in heads], columns["head"][mine])
        entries = (columns[name][mine] for name in ("query", "key", "probability"))
        blocks.append((heads, whole, pack_edges(len(heads), tokens, place, *entries, whole=whole)))
    return blocks


def _planes(values: np.ndarray, dtype: str) -> bytes:
    """All lowest bytes, then all second bytes and so on: bytes that are alike stand together, which deflate likes."""
    numbers = np.ascontiguousarray(values, dtype=dtype).reshape(-1)
    return numbers.view(np.uint8).reshape(-1, numbers.itemsize).T.tobytes()


def _in_float32(values: np.ndarray) -> np.ndarray:
    """The nearest float32 of those that round to the same tenth of a per cent, as the page would show a share."""
    near = values.astype(np.float32)
    tenth = np.floor(values * 1000 + 0.5)
    other = np.nextafter(near, np.where(near < values, np.float32(np.inf), np.float32(-np.inf)))
    return np.where(np.floor(near.astype(np.float64) * 1000 + 0.5) == tenth, near, np.where(np.isnan(values), near, other))


def _of_model(table: pd.DataFrame, model: str) -> pd.DataFrame:
    return table.loc[table["model"].astype(str) == model]


def _codes(column: pd.Series, choices: tuple[str, ...] | list[str]) -> np.ndarray:
    places = {choice: place for place, choice in enumerate(choices)}
    return np.array([places[str(value)] for value in column], dtype=np.int64)


def _heads(run: dict[str, Any], rows: pd.DataFrame, table: str) -> np.ndarray:
    """Place of each row's head among all heads, layer by layer."""
    places = {int(layer): place for place, layer in enumerate(run["layers"])}
    layer = rows["layer"].map(places)
    unknown = layer.isna() | (rows["head"] < 0) | (rows["head"] >= run["n_heads"])
    if unknown.any():
        first = rows.loc[unknown].iloc[0]
        raise InputError(
            f"{table}: head {first['layer']}.{first['head']} is not in run.json, which has {run['n_heads']} heads in each of the layers "
            f"{run['layers'][0]} to {run['layers'][-1]}; write the tables again"
        )
    return layer.to_numpy().astype(np.int64) * run["n_heads"] + rows["head"].to_numpy()


def _model_data(model: dict[str, Any], tokens: pd.DataFrame, blocks: list, expected: list[Expected]) -> dict[str, Any]:
    return {
        "name": str(model["name"]),
        "n": len(tokens),
        "shown": tokens["shown"].tolist(),
        "role": _codes(tokens["role"], ROLES).tolist(),
        "region": _codes(tokens["region"], TOKEN_REGIONS).tolist(),
        "number": tokens["number"].tolist(),
        "step": tokens["step"].tolist(),
        "steps": len(model["steps"]),
        "compared": bool(model["compared_with"]),
        "blocks": blocks,
        "expected": {row.position: [row.probability, row.rank, row.others] for row in expected},
    }


def _page_data(run: dict[str, Any]) -> dict[str, Any]:
    return {
        **{key: run[key] for key in ("layers", "n_heads", "watched", "chosen", "by", "region")},
        "foremost": run.get("foremost"),
        "unit": UNIT,
        "invisible": INVISIBLE,
        "not_whole": NOT_WHOLE,
        "measures": [{key: measure[key] for key in ("name", "title", "unit", "formula")} for measure in run["measures"]],
        "shared": run["shared_tokens"],
        "strong": STRONG,
        "faint": FAINT,
        "low": LOW,
        "roles": ROLES,
        "regions": REGIONS,
        "token_regions": TOKEN_REGIONS,
        "quantities": STEP_QUANTITIES,
    }


def _title(problem: dict[str, Any]) -> str:
    """Which problem of which set."""
    source, index = str(problem["source"]), problem["index"]
    if index is None:
        return "Own question" if source in ("--question", "notebook") else "One problem"
    path = PurePath(source.replace("\\", "/"))
    of = "the shipped problems" if source == "shipped" else " ".join(part for part in (path.parent.name, path.stem) if part)
    return f"Problem {index} of {of}"


def _facts(run: dict[str, Any]) -> list[tuple[str, str]]:
    """What was run, as (name, value) in words; what run.json does not say is left out."""
    texts = {"reference": "question and reference solution, the same for every model", "generated": "question and each model's own answer"}
    problem = run["problem"]
    index = "" if problem["index"] is None else f", number {problem['index']} counted from 0"
    of = "" if problem["n"] is None else f" of {problem['n']}"
    facts = {
        "Problem": f"{problem['source']}{index}{of}",
        "Text read": texts.get(run["text"], run["text"]),
        "Chat template": "applied" if run.get("chat") else "not applied",
        "Heads": f"{len(run['layers'])} layers × {run['n_heads']} heads, written layer.head, both counted as in the tables",
        "Seed": run.get("seed"),
        "Versions": run.get("versions"),
    }
    for model in run["models"]:
        compared = model["compared_with"]
        facts[f"{model['name']}: model"] = model.get("identity")
        facts[f"{model['name']}: compared with"] = (
            f"{compared['source']}: {compared['n_examples']} other problems, text {compared['text']}" if compared else "no run"
        )
    return [(name, in_words(value)) for name, value in facts.items() if value not in (None, {}, [])]
