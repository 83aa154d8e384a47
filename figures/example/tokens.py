"""Tokens in figures: their tables, their text as the font can draw it, and the colors and markers of their roles."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePath, PureWindowsPath

import numpy as np
import pandas as pd
from matplotlib.font_manager import findfont, get_font

from figures.drawing.style import active_style
from figures.drawing.text import joined, text_inches
from figures.example.read import Example
from interp.tables.errors import InputError

ROLES_OF_NUMBERS = ("question_number", "operand", "intermediate_result", "final_answer")
"""Roles of numbers, in the order of legends."""

MARKED_ROLES = (*ROLES_OF_NUMBERS, "operator")
"""Roles with a color of their own: the style's first five, in this order."""

MARKERS: dict[str, str] = dict(zip(MARKED_ROLES, ("o", "s", "^", "D", "P"), strict=True))
"""Marker of each role, so that color is never the only difference."""

ROLE_BACKGROUNDS: dict[str, dict[str, str]] = {
    "white": dict(zip(MARKED_ROLES, ("#cfe6f7", "#fbe0c8", "#d3efdf", "#f6d3e6", "#f7f0b5"), strict=True)),
    "dark": dict(zip(MARKED_ROLES, ("#123f5e", "#5c3210", "#0f4a35", "#5b1f44", "#4d470c"), strict=True)),
}
"""Background of a token of each role, on a white and on a dark page; the same as on pages (templates/page.css)."""


def boxed(text: str) -> str:
    """Return text as the figures' font can draw it: a line break is "⏎", and a letter that the font lacks is the box "▯"."""
    known = _letters()
    text = text.replace("\r\n", "\n").replace("\n", "⏎").replace("\t", " ")
    return "".join(letter if ord(letter) in known else "▯" for letter in text)


@functools.cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


@functools.lru_cache(maxsize=20_000)
def _inches(text: str, size: float, dpi: int) -> float:
    return text_inches(text, size)


def printed_inches(text: str) -> float:
    """Return the printed width of a text in the smallest font, in inches, with blanks at its ends."""
    style = active_style()
    return _inches(f"|{text}|", style.small, style.dpi) - _inches("||", style.small, style.dpi)


def truncated(text: str, room: float) -> str:
    """Return a text that is at most `room` inches wide; a longer one ends in "…"."""
    if printed_inches(text) <= room:
        return text
    end = len(text)
    while end and printed_inches(f"{text[:end]}…") > room:
        end -= 1
    return f"{text[:end]}…"


def role_color(role: str) -> str:
    """Return the color of a role in the active style; gray for a role without a marker."""
    return active_style().series[MARKED_ROLES.index(role)] if role in MARKED_ROLES else active_style().gray


def role_background(role: str) -> str:
    """Return the background of a token of a role in the active style."""
    page = active_style().background
    return ROLE_BACKGROUNDS["white" if page == "white" else "dark"].get(role, page)


def tokens_of(example: Example, model: str) -> pd.DataFrame:
    """Return the tokens of a model in the order of the text, with text columns, indexed by position."""
    tokens = example.tokens[example.tokens["model"].astype(str) == model]
    tokens = tokens.assign(**{name: tokens[name].astype(str) for name in ("model", "region", "role")})
    return tokens.sort_values("position").set_index("position", drop=False)


def edges_of(example: Example, model: str, head: tuple[int, int]) -> pd.DataFrame:
    """Return the attention of one head of a model: columns query, key, probability."""
    edges = example.edges
    chosen = (edges["layer"] == head[0]) & (edges["head"] == head[1]) & (edges["model"] == model)
    return edges.loc[chosen, ["query", "key", "probability"]]


def require_watched(example: Example, head: tuple[int, int]) -> None:
    """Check that the folder has the complete map of a head.

    Raises:
        InputError: it does not; the message names the heads whose maps it has.
    """
    if tuple(head) not in example.watched:
        raise InputError(
            f"head {head[0]}.{head[1]} was not watched, so its complete map was not stored; watched: {heads_text(example.watched)}. "
            "Run python -m analyses.examples again with that head among the watched ones"
        )


def heads_text(heads: Sequence[tuple[int, int]], most: int = 20) -> str:
    """Return heads as "layer.head", only the first of many."""
    named = ", ".join(f"{layer}.{head}" for layer, head in heads[:most]) or "none"
    return f"{named} and {len(heads) - most} more" if len(heads) > most else named


def problem_text(example: Example) -> str:
    """Return for a subtitle which problem and whose text was read; a file of problems has its name without folder and extension."""
    problem = example.run["problem"]
    index, source = problem.get("index"), str(problem.get("source") or "")
    name = "own question" if index is None else f"{_stem(source) or 'own'} problem {index}"
    return joined(boxed(name), f"{example.run['text']} text")


def _stem(source: str) -> str:
    path = PureWindowsPath(source) if "\\" in source else PurePath(source)
    return path.name.removesuffix("".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]))


def script_note(texts: Sequence[str]) -> str:
    """Return for a subtitle which scripts are not drawn correctly letter by letter from left to right; "" where there are none."""
    letters = set().union(*texts)
    leftwards = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in letters)
    # Variation selectors (U+FE0F after an emoji) are marks by category, but draw nothing.
    marks = any(unicodedata.category(letter).startswith("M") and not "\ufe00" <= letter <= "\ufe0f" for letter in letters)
    if not (leftwards or marks):
        return ""
    what = "right-to-left text is" if not marks else "right-to-left text and combining marks are" if leftwards else "combining marks are"
    return f"{what} drawn letter by letter; the page shows {'them' if marks else 'it'} correctly"


def label_of(shown: str, token: str) -> str:
    """Return a token as a label, without the blanks around it; "␣" for a blank one."""
    return boxed(shown or token).strip() or "␣"


def roles_in(frames: Mapping[str, pd.DataFrame] | Sequence[pd.DataFrame], known: Sequence[str] = MARKED_ROLES) -> list[str]:
    """Return the marked roles that occur in the column `role` of these tables, in order."""
    tables = frames.values() if isinstance(frames, Mapping) else frames
    found = {role for frame in tables for role in np.unique(frame["role"].to_numpy(str))}
    return [role for role in known if role in found]
