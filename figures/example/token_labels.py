"""Tokens in figures: their text as the font can draw it, the looks of roles, and labels of tokens along an axis."""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from figures.drawing import style
from figures.drawing.lines import line_inches, spread
from figures.example.read import Example
from interp.tables.errors import InputError

NUMBER_ROLES = ("question_number", "operand", "intermediate_result", "final_answer")
"""Roles of numbers, in the order of their keys."""


MARKED_ROLES = (*NUMBER_ROLES, "operator")
"""Roles with a colour of their own: the look's first five, in this order."""


MARKERS: dict[str, str] = dict(zip(MARKED_ROLES, ("o", "s", "^", "D", "P"), strict=True))
"""Marker of each role, so that colour alone never tells."""


GROUNDS: dict[str, dict[str, str]] = {
    "white": dict(zip(MARKED_ROLES, ("#cfe6f7", "#fbe0c8", "#d3efdf", "#f6d3e6", "#f7f0b5"), strict=True)),
    "dark": dict(zip(MARKED_ROLES, ("#123f5e", "#5c3210", "#0f4a35", "#5b1f44", "#4d470c"), strict=True)),
}
"""Ground behind a token of each role, on a white and on a dark page; those of the pages (templates/page.css)."""


PRIORITY = ("final_answer", "question_number", "intermediate_result", "operand", "operator")
"""Whose labels come first where there is no room for all."""


STRIP, LEADER, MARK, LABEL = 0.045, 0.13, 0.17, 0.22
"""Inches of a paper from an axis outwards: end of the strip of colours, end of the leaders, middle of the marks, begin of the labels."""


FAR = 1.5
"""How far from its slots a label may stand, lines of text."""


LONGEST = 0.8
"""Most room of a label's text, inches of a paper."""


def boxed(text: str) -> str:
    """Text as the figures' font can draw it: a line's end is "⏎", and a letter that the font lacks is the box "▯"."""
    known = _letters()
    text = text.replace("\r\n", "\n").replace("\n", "⏎").replace("\t", " ")
    return "".join(letter if ord(letter) in known else "▯" for letter in text)


@functools.cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


@functools.lru_cache(maxsize=20_000)
def _inches(text: str, size: float, dpi: int) -> float:
    return style.text_inches(text, size)


def inches(text: str) -> float:
    """Printed width of a text at the smallest font, inches, blanks at its ends included."""
    at = style.look()
    return _inches(f"|{text}|", at.small, at.dpi) - _inches("||", at.small, at.dpi)


def cut(text: str, room: float) -> str:
    """A text that is at most `room` inches wide; a longer one ends in "…"."""
    if inches(text) <= room:
        return text
    end = len(text)
    while end and inches(f"{text[:end]}…") > room:
        end -= 1
    return f"{text[:end]}…"


def colour(role: str) -> str:
    """Colour of a role in the style in use; grey for one without a mark."""
    return style.look().series[MARKED_ROLES.index(role)] if role in MARKED_ROLES else style.look().grey


def ground(role: str) -> str:
    """Ground behind a token of a role in the style in use."""
    return GROUNDS["white" if style.look().background == "white" else "dark"].get(role, style.look().background)


def tokens_of(example: Example, model: str) -> pd.DataFrame:
    """The tokens of a model in the order of the text, with plain columns, indexed by position."""
    tokens = example.tokens[example.tokens["model"].astype(str) == model]
    tokens = tokens.assign(**{name: tokens[name].astype(str) for name in ("model", "region", "role")})
    return tokens.sort_values("position").set_index("position", drop=False)


def edges_of(example: Example, model: str, head: tuple[int, int]) -> pd.DataFrame:
    """The attention of one head of a model: columns query, key, probability."""
    edges = example.edges
    chosen = (edges["layer"] == head[0]) & (edges["head"] == head[1]) & (edges["model"] == model)
    return edges.loc[chosen, ["query", "key", "probability"]]


def need_watched(example: Example, head: tuple[int, int]) -> None:
    """Check that a head's whole map is in the folder.

    Raises:
        InputError: it is not; the message names the heads that are.
    """
    if tuple(head) not in example.watched:
        raise InputError(
            f"head {head[0]}.{head[1]} was not watched, so its whole map is not there; watched: {heads_text(example.watched)}. "
            "Look at the problem again with that head among the watched ones"
        )


def heads_text(heads: Sequence[tuple[int, int]], most: int = 20) -> str:
    """Heads as "layer.head", the first of many."""
    named = ", ".join(f"{layer}.{head}" for layer, head in heads[:most]) or "none"
    return f"{named} and {len(heads) - most} more" if len(heads) > most else named


def problem_text(example: Example) -> str:
    """Which problem, and whose text was read, for a subtitle: of a file of problems its name without folder and ending."""
    problem = example.run["problem"]
    index, source = problem.get("index"), str(problem.get("source") or "")
    told = "own question" if index is None else f"{_stem(source) or 'own'} problem {index}"
    return style.joined(boxed(told), f"{example.run['text']} text")


def _stem(source: str) -> str:
    path = PureWindowsPath(source) if "\\" in source else PurePath(source)
    return path.name.removesuffix("".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]))


def script_note(texts: Sequence[str]) -> str:
    """What a subtitle says of scripts that a text set letter by letter from left to right shows wrongly; "" where there is none."""
    letters = set().union(*texts)
    leftwards = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in letters)
    # Selectors of a letter's look (U+FE0F after an emoji) are marks by category, and draw nothing.
    marks = any(unicodedata.category(letter).startswith("M") and not "\ufe00" <= letter <= "\ufe0f" for letter in letters)
    if not (leftwards or marks):
        return ""
    what = "right-to-left text is" if not marks else "right-to-left text and combining marks are" if leftwards else "combining marks are"
    return f"{what} drawn letter by letter; the page shows {'them' if marks else 'it'} right"


def label_of(shown: str, token: str) -> str:
    """A token as a label: without the blanks around it; "␣" for a blank one."""
    return boxed(shown or token).strip() or "␣"


# --- labels along an axis -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """A row or a column: a token, or all tokens of a number.

    Attributes:
        text: its label.
        role: of its first token.
        region: likewise.
        step: likewise; -1 outside of the response.
        number: the number's count in the text, -1 for other tokens.
        positions: of its tokens in the text.
    """

    text: str
    role: str
    region: str
    step: int
    number: int
    positions: tuple[int, ...]


def token_slots(tokens: pd.DataFrame) -> list[Slot]:
    """A slot for each of these rows of `tokens_of`."""
    rows = zip(*(tokens[name] for name in ("shown", "token", "role", "region", "step", "number", "position")), strict=True)
    return [
        Slot(label_of(shown, token), role, region, int(step), int(number), (int(position),))
        for shown, token, role, region, step, number, position in rows
    ]


def number_slots(tokens: pd.DataFrame) -> list[Slot]:
    """A slot for each number among these rows of `tokens_of`."""
    slots = []
    for number, part in tokens[tokens["number"] >= 0].groupby("number", sort=True):
        first = part.iloc[0]
        text = boxed("".join(part["shown"])).strip() or "␣"
        slots.append(
            Slot(text, first["role"], first["region"], int(first["step"]), int(str(number)), tuple(int(at) for at in part["position"]))
        )
    return slots


@dataclass(frozen=True)
class Label:
    """A label of one or more neighbouring slots.

    Attributes:
        text: to draw.
        role: of its slots.
        middle: of its slots, in slots from the axis' begin.
    """

    text: str
    role: str
    middle: float


def chosen_labels(slots: Sequence[Slot], length: float) -> list[Label]:
    """Labels that fit along an axis, in its order.

    Every slot's where each has a line's height. Else those of numbers only, a label a number; where even these are too many, first the
    final answer's, then the question's numbers', results' and operands', the earlier ones of a kind first, each where it need not stand
    farther than a line and a half from its slots.

    Args:
        slots: of the axis.
        length: of the axis, inches.
    """
    if not slots:
        return []
    if length / len(slots) >= line_inches():
        return [Label(slot.text, slot.role, at + 0.5) for at, slot in enumerate(slots)]
    labels = _number_labels(slots)
    first = sorted(range(len(labels)), key=lambda at: (PRIORITY.index(labels[at].role) if labels[at].role in PRIORITY else 9, at))
    line, taken = line_inches(), []
    for at in first:
        trial = sorted([*taken, at])
        wanted = [labels[one].middle * length / len(slots) for one in trial]
        places = spread(wanted, line, line / 2, length - line / 2)
        near = max(abs(place - want) for place, want in zip(places, wanted, strict=True)) <= FAR * line
        if near and len(trial) * line <= length:
            taken = trial
    return [labels[at] for at in taken]


def left_out(slots: Sequence[Slot], length: float) -> int:
    """How many numbers have no label in `chosen_labels` of the same axis, because there is no room."""
    if not slots or length / len(slots) >= line_inches():
        return 0
    return len(_number_labels(slots)) - len(chosen_labels(slots, length))


def left_out_note(count: int) -> str:
    """Labels that are left out as a subtitle says it; "" for none."""
    return f"{count} {'label' if count == 1 else 'labels'} left out for room" if count else ""


def _number_labels(slots: Sequence[Slot]) -> list[Label]:
    """A label for each number."""
    runs: list[list[int]] = []
    for at, slot in enumerate(slots):
        if slot.number < 0:
            continue
        if runs and slots[runs[-1][-1]].number == slot.number:
            runs[-1].append(at)
        else:
            runs.append([at])
    return [Label("".join(slots[at].text for at in run), slots[run[0]].role, (run[0] + run[-1] + 1) / 2) for run in runs]


def label_room(slots: Sequence[Slot], length: float) -> float:
    """Room that labels take outside of an axis of at most that length, inches."""
    zoom = style.look().zoom
    shown = slots if slots and length / len(slots) >= line_inches() else _number_labels(slots)
    return LABEL * zoom + min(LONGEST * zoom, max((inches(one.text) for one in shown), default=0.0)) + 0.02


def draw_labels(axes: Axes, slots: Sequence[Slot], labels: Sequence[Label], side: str) -> None:
    """Draw a strip of the roles' colours along an axis, and labels outside of it, each led to its slots.

    Args:
        axes: placed; its ticks along the axis are taken away.
        slots: of the axis, equally wide.
        labels: of `chosen_labels`.
        side: "left" (slots run downwards) or "bottom" (slots run rightwards).
    """
    down = side == "left"
    (axes.set_yticks if down else axes.set_xticks)([])
    width, height = style.axes_inches(axes)
    length, zoom = (height if down else width), style.look().zoom
    pitch = length / max(len(slots), 1)

    def place(along: float, out: float) -> tuple[float, float]:
        """Inches along the axis and out of it, as fractions of the axes."""
        return (-out / width, 1 - along / height) if down else (along / width, -out / height)

    outside = {"transform": axes.transAxes, "clip_on": False}
    for at, slot in enumerate(slots):
        if slot.role in MARKED_ROLES:
            (x0, y0), (x1, y1) = place(at * pitch, 0.015 * zoom), place((at + 1) * pitch, STRIP * zoom)
            box = (min(x0, x1), min(y0, y1)), abs(x1 - x0), abs(y1 - y0)
            axes.add_patch(Rectangle(*box, facecolor=colour(slot.role), edgecolor="none", **outside))
    if not labels:
        return
    line = line_inches()
    wanted = [label.middle * pitch for label in labels]
    for label, want, along in zip(labels, wanted, spread(wanted, line, line / 2, length - line / 2), strict=True):
        ends = place(want, STRIP * zoom), place(along, LEADER * zoom)
        shade = colour(label.role)
        axes.plot(*zip(*ends, strict=True), color=shade, linewidth=0.4 * zoom, **outside)
        if label.role in MARKERS:
            x, y = place(along, MARK * zoom)
            axes.plot([x], [y], MARKERS[label.role], color=shade, markersize=2.6 * zoom, markeredgewidth=0, **outside)
        text = cut(label.text, LONGEST * zoom)
        x, y = place(along, LABEL * zoom)
        turned: dict[str, Any] = {"ha": "right", "va": "center_baseline"} if down else {"ha": "center", "va": "top", "rotation": 90}
        axes.text(x, y, text, transform=axes.transAxes, **turned)


def draw_borders(line: Callable[..., Any], slots: Sequence[Slot]) -> None:
    """Lines between slots: whole between regions, dotted between the response's steps. `line` is an axes' axhline or axvline."""
    at = style.look()
    for place, (before, after) in enumerate(itertools.pairwise(slots)):
        if before.region != after.region:
            line(place + 0.5, color=at.undefined_hatch, linewidth=0.8 * at.zoom)
        elif before.step != after.step:
            line(place + 0.5, color=at.undefined_hatch, linewidth=0.5 * at.zoom, linestyle=":")


# --- keys ---------------------------------------------------------------------------------------------------------------


def flow(widths: Sequence[float], inches_across: float, gap: float = 0.14) -> list[tuple[float, int]]:
    """Where entries of these widths go, one beside another in as many lines as they need: inches from the left, and line."""
    places, x, line = [], 0.0, 0
    for width in widths:
        if x and x + width > inches_across:
            x, line = 0.0, line + 1
        places.append((x, line))
        x += width + gap * style.look().zoom
    return places


def _key_widths(roles: Sequence[str]) -> list[float]:
    return [0.14 * style.look().zoom + inches(role.replace("_", " ")) for role in roles]


def role_key_room(roles: Sequence[str], width: float) -> float:
    """Room that the roles' key takes in a figure of that width, inches."""
    places = flow(_key_widths(roles), width - 0.1)
    return (places[-1][1] + 1) * line_inches() + 0.05 if places else 0.0


def draw_role_key(figure: Figure, roles: Sequence[str], top: float) -> None:
    """A key of the roles' marks and colours, its upper edge `top` inches below the figure's."""
    width, height = figure.get_size_inches()
    zoom = style.look().zoom
    for role, (x, line) in zip(roles, flow(_key_widths(roles), width - 0.1), strict=True):
        y = 1 - (top + (line + 0.5) * line_inches()) / height
        mark = Line2D(
            [(0.05 + x + 0.05 * zoom) / width],
            [y],
            linestyle="",
            marker=MARKERS[role],
            color=colour(role),
            markersize=3.2 * zoom,
            markeredgewidth=0,
            transform=figure.transFigure,
        )
        figure.add_artist(mark)
        figure.text((0.05 + x + 0.13 * zoom) / width, y, role.replace("_", " "), va="center_baseline")


def roles_in(frames: Mapping[str, pd.DataFrame] | Sequence[pd.DataFrame], known: Sequence[str] = MARKED_ROLES) -> list[str]:
    """The roles with a mark that these tables' column role has, in order."""
    tables = frames.values() if isinstance(frames, Mapping) else frames
    found = {role for frame in tables for role in np.unique(frame["role"].to_numpy(str))}
    return [role for role in known if role in found]
