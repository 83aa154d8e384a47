"""The HTML page of one problem: what models read, where their heads look, what they expected; a single file that needs no network."""

from __future__ import annotations

import base64
import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from figures.example.packing import PROBABILITY_STEPS, codes, pack_blocks, pack_standing, pack_steps, percent, rows_of
from figures.example.read import Example
from figures.pages import listed_facts, page_environment
from interp.tables.errors import InputError
from interp.tables.example import ALTERNATIVES, FAINT, STEP_QUANTITIES, STRONG
from interp.tables.schema import REGIONS, ROLES, TOKEN_REGIONS

MARKED_BELOW = 0.1
"""A token that was read with a probability below this is marked."""

INVISIBLE = {
    "\u00ad": "SHY", "\u200b": "ZWSP", "\u200c": "ZWNJ", "\u200d": "ZWJ", "\u200e": "LRM", "\u200f": "RLM",
    "\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO", "\u2060": "WJ",
    "\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI", "\ufe0f": "VS16", "\ufeff": "BOM",
}  # fmt: skip
"""Short names of characters that draw nothing themselves; others are shown by their code point."""

NOT_WHOLE = "not a whole character"
"""Shown where the bytes of a token are only a part of a character."""


@dataclass(frozen=True)
class TextBlock:
    """Consecutive tokens of a text in one region and one step.

    Attributes:
        region: of `interp.tables.schema.TOKEN_REGIONS`.
        step: of the response, counted from 0; -1 elsewhere.
        tokens: as HTML, one element per token.
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
        before: the part of its number before it.
        after: the part of its number after it.
        step: of the response, counted from 0; -1 elsewhere.
        probability: of the token that was read.
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
    """Return the page of one problem.

    Args:
        example: as `figures.example.read.read_example` returns it. Every text in it is shown as text, whatever it contains.

    Returns:
        HTML; the same for the same example. Two models with 512 tokens and 30 x 9 heads, 8 of them watched, take about 4 MB.

    Raises:
        InputError: a table has a token or a head that the table of tokens or run.json lacks.
        KeyError: run.json lacks a key.
    """
    run = example.run
    environment = page_environment()
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}
    environment.filters.update(percent=percent, plain=escape_formats, part=lambda text: NOT_WHOLE if "\ufffd" in text else "")
    models, data, packs = [], [], {}
    for number, model in enumerate(run["models"]):
        shown, numbers, packed = _model(example, number, model)
        models.append(shown)
        data.append(numbers)
        packs |= packed
    html = environment.get_template("example.html.j2").render(
        run=run,
        problem=run["problem"],
        models=models,
        title=_title(run["problem"]),
        roles=[role for role in ROLES if role != "none"],
        facts=_facts(run),
        low=MARKED_BELOW,
        alternatives=ALTERNATIVES,
        quantities=STEP_QUANTITIES,
        regions=REGIONS,
        data=_page_data(run) | {"models": data},
        packs={name: base64.b64encode(packed).decode("ascii") for name, packed in packs.items()},
    )
    # JSON can hold half a surrogate pair, UTF-8 cannot.
    return re.sub("[\ud800-\udfff]", "\ufffd", html)


def _model(example: Example, number: int, model: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]:
    """Return what the template shows of a model, what the script reads of it, and its packed blocks by element."""
    name = str(model["name"])
    tokens = rows_of(example.tokens, name).sort_values("position", ignore_index=True)
    if not np.array_equal(tokens["position"].to_numpy(), np.arange(len(tokens))):
        raise InputError(f"tokens: the positions of {name} are not 0 to {len(tokens) - 1}; write the tables again")
    blocks = pack_blocks(example.run, rows_of(example.edges, name), name, len(tokens))
    packs = {f"pack-edges-{number}-{index}": packed for index, (_, _, packed) in enumerate(blocks)}
    packs[f"pack-standing-{number}"] = pack_standing(example, name)
    packs[f"pack-steps-{number}"] = pack_steps(example, name, len(model["steps"]))
    expected = expectations(rows_of(example.next, name), tokens)
    asks_with_numbers = bool((tokens["role"].astype(str) == "question_number").any())
    shown = {
        **model,
        "blocks": text_blocks(tokens, model["steps"]),
        "expected": expected,
        "asks_with_numbers": asks_with_numbers,
    }
    return shown, _model_data(model, tokens, [(heads, whole) for heads, whole, _ in blocks], expected), packs


def escape_formats(text: Any) -> str:
    """Return a text in which format characters (Unicode category Cf), such as those that change the writing direction, are escapes."""
    return "".join(_escape(c) if unicodedata.category(c) == "Cf" else c for c in str(text))


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def text_blocks(tokens: pd.DataFrame, steps: list[dict[str, Any]]) -> list[TextBlock]:
    """Return the text of a model, split where region or step change.

    Blank tokens between two steps, usually line breaks, belong to the step before them.

    Args:
        tokens: of one model, sorted by position.
        steps: of the model, as in run.json.
    """
    region = tokens["region"].astype(str)
    blank = (region == "response") & (tokens["step"] < 0) & (tokens["shown"].str.strip() == "")
    step = tokens["step"].mask(blank & region.eq(region.shift())).ffill().astype(int)
    runs = ((region != region.shift()) | (step != step.shift())).cumsum()
    blocks = []
    for _, rows in tokens.groupby(runs, sort=True):
        number = int(rows["step"].iloc[0])
        html = Markup("").join(_token(shown, role) for shown, role in zip(rows["shown"], rows["role"].astype(str), strict=True))
        blocks.append(TextBlock(str(rows["region"].iloc[0]), number, html, steps[number]["sums"] if 0 <= number < len(steps) else []))
    return blocks


def _token(shown: str, role: str) -> Markup:
    """Return the element of a token; control characters get a symbol, and half a character a mark of its own."""
    if not shown:
        return Markup('<span class="t half {}" title="part of the previous character"></span>').format(role)
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
    """Return what a model expected at each token of a number.

    Args:
        rows: of `interp.tables.example.NEXT`, of one model.
        tokens: of the same model, sorted by position.

    Raises:
        InputError: a position is outside of the text, or has not exactly one token that was read.
    """
    found, number, shown = [], tokens["number"].to_numpy(), tokens["shown"].tolist()
    for position, listed in rows.sort_values(["position", "rank"]).groupby("position", sort=True):
        place = int(position)  # type: ignore[arg-type]
        read = listed.loc[listed["is_read"]]
        if len(read) != 1 or not 0 <= place < len(tokens):
            raise InputError(f"next: position {position} has {len(read)} tokens that were read, of {len(tokens)}; write the tables again")
        top = listed.loc[listed["rank"] <= ALTERNATIVES]
        mine = np.flatnonzero(number == number[place]) if number[place] >= 0 else np.array([place])
        before, after = ("".join(shown[index] for index in side) for side in (mine[mine < place], mine[mine > place]))
        found.append(
            Expected(
                position=place,
                token=str(tokens["shown"].iloc[place] or tokens["token"].iloc[place]),
                before=before.strip(),
                after=after.rstrip(),
                step=int(tokens["step"].iloc[place]),
                probability=float(read["probability"].iloc[0]),
                rank=int(read["rank"].iloc[0]),
                others=[(str(token), float(p)) for token, p in zip(top["token"], top["probability"], strict=True)],
            )
        )
    return found


def _model_data(model: dict[str, Any], tokens: pd.DataFrame, blocks: list, expected: list[Expected]) -> dict[str, Any]:
    return {
        "name": str(model["name"]),
        "n": len(tokens),
        "shown": tokens["shown"].tolist(),
        "role": codes(tokens["role"], ROLES).tolist(),
        "region": codes(tokens["region"], TOKEN_REGIONS).tolist(),
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
        "unit": PROBABILITY_STEPS,
        "invisible": INVISIBLE,
        "not_whole": NOT_WHOLE,
        "measures": [{key: measure[key] for key in ("name", "title", "unit", "formula")} for measure in run["measures"]],
        "shared": run["shared_tokens"],
        "strong": STRONG,
        "faint": FAINT,
        "low": MARKED_BELOW,
        "roles": ROLES,
        "regions": REGIONS,
        "token_regions": TOKEN_REGIONS,
        "quantities": STEP_QUANTITIES,
    }


def _title(problem: dict[str, Any]) -> str:
    """Return which problem of which set."""
    source, index = str(problem["source"]), problem["index"]
    if index is None:
        return "Own question" if source in ("--question", "notebook") else "One problem"
    path = PurePath(source.replace("\\", "/"))
    of = "the shipped problems" if source == "shipped" else " ".join(part for part in (path.parent.name, path.stem) if part)
    return f"Problem {index} of {of}"


def _facts(run: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was run as (name, text); what run.json does not have is left out."""
    texts = {"reference": "question and reference solution, the same for every model", "generated": "question and each model's own answer"}
    problem = run["problem"]
    index = "" if problem["index"] is None else f", number {problem['index']} counted from 0"
    of = "" if problem["n"] is None else f" of {problem['n']}"
    facts = {
        "Problem": f"{problem['source']}{index}{of}",
        "Text read": texts.get(run["text"], run["text"]),
        "Chat template": "applied" if run.get("chat") else "not applied",
        "Heads": f"{len(run['layers'])} layers × {run['n_heads']} heads, written as layer.head, both numbered as in the tables",
        "Seed": run.get("seed"),
        "Versions": run.get("versions"),
    }
    for model in run["models"]:
        compared = model["compared_with"]
        facts[f"{model['name']}: model"] = model.get("identity")
        facts[f"{model['name']}: compared with"] = (
            f"{compared['source']}: {compared['n_examples']} other problems, text {compared['text']}" if compared else "no run"
        )
    return listed_facts(facts)
