"""Labels of tokens along an axis, borders between them, and the legend of their roles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from figures.drawing.layout import axes_inches
from figures.drawing.lines import spread
from figures.drawing.style import active_style
from figures.drawing.text import line_inches, plural
from figures.example.tokens import MARKED_ROLES, MARKERS, boxed, label_of, printed_inches, role_color, truncated

LABEL_PRIORITY = ("final_answer", "question_number", "intermediate_result", "operand", "operator")
"""Roles by priority of their labels where there is no room for all."""

_STRIP, _LINE_END, _MARK, _LABEL = 0.045, 0.13, 0.17, 0.22
"""Inches of a paper from an axis outward: end of the strip of colors, end of the lines, middle of the markers, start of the labels."""

_FARTHEST = 1.5
"""Largest distance of a label from its slots, in lines of text."""

_LONGEST = 0.8
"""Largest width of a label, in inches of a paper."""


@dataclass(frozen=True)
class Slot:
    """A row or a column: a token, or all tokens of a number.

    Attributes:
        text: its label.
        role: of its first token.
        region: of its first token.
        step: of its first token; -1 outside of the response.
        number: index of the number in the text, -1 for other tokens.
        positions: of its tokens in the text.
    """

    text: str
    role: str
    region: str
    step: int
    number: int
    positions: tuple[int, ...]


def token_slots(tokens: pd.DataFrame) -> list[Slot]:
    """Return a slot for each of these rows of `figures.example.tokens.tokens_of`."""
    rows = zip(*(tokens[name] for name in ("shown", "token", "role", "region", "step", "number", "position")), strict=True)
    return [
        Slot(label_of(shown, token), role, region, int(step), int(number), (int(position),))
        for shown, token, role, region, step, number, position in rows
    ]


def number_slots(tokens: pd.DataFrame) -> list[Slot]:
    """Return a slot for each number among these rows of `figures.example.tokens.tokens_of`."""
    slots = []
    for number, part in tokens[tokens["number"] >= 0].groupby("number", sort=True):
        first = part.iloc[0]
        text = boxed("".join(part["shown"])).strip() or "␣"
        positions = tuple(int(position) for position in part["position"])
        slots.append(Slot(text, first["role"], first["region"], int(first["step"]), int(str(number)), positions))
    return slots


@dataclass(frozen=True)
class Label:
    """A label of one or more neighboring slots.

    Attributes:
        text: to draw.
        role: of its slots.
        middle: of its slots, in slots from the start of the axis.
    """

    text: str
    role: str
    middle: float


def chosen_labels(slots: Sequence[Slot], length: float) -> list[Label]:
    """Return labels that fit along an axis, in its order.

    If every slot has the height of a line, all slots have a label. Otherwise only numbers have one, one label per number. If even these
    are too many, labels are chosen by priority: final answer, the question's numbers, results, operands; within a kind the earlier ones
    first; each only if it stays within a line and a half of its slots.

    Args:
        slots: of the axis.
        length: of the axis, in inches.
    """
    if not slots:
        return []
    if length / len(slots) >= line_inches():
        return [Label(slot.text, slot.role, index + 0.5) for index, slot in enumerate(slots)]
    labels = _number_labels(slots)
    by_priority = sorted(
        range(len(labels)),
        key=lambda index: (LABEL_PRIORITY.index(labels[index].role) if labels[index].role in LABEL_PRIORITY else 9, index),
    )
    line, taken = line_inches(), []
    for index in by_priority:
        trial = sorted([*taken, index])
        wanted = [labels[one].middle * length / len(slots) for one in trial]
        places = spread(wanted, line, line / 2, length - line / 2)
        near = max(abs(place - want) for place, want in zip(places, wanted, strict=True)) <= _FARTHEST * line
        if near and len(trial) * line <= length:
            taken = trial
    return [labels[index] for index in taken]


def labels_left_out(slots: Sequence[Slot], length: float) -> int:
    """Return how many numbers have no label in `chosen_labels` of the same axis, because there is no room."""
    if not slots or length / len(slots) >= line_inches():
        return 0
    return len(_number_labels(slots)) - len(chosen_labels(slots, length))


def left_out_note(count: int, noun: str = "label") -> str:
    """Return for a subtitle how many labels are left out; "" for none."""
    return f"{plural(count, noun)} left out for lack of room" if count else ""


def _number_labels(slots: Sequence[Slot]) -> list[Label]:
    """Return a label for each number."""
    runs: list[list[int]] = []
    for index, slot in enumerate(slots):
        if slot.number < 0:
            continue
        if runs and slots[runs[-1][-1]].number == slot.number:
            runs[-1].append(index)
        else:
            runs.append([index])
    return [Label("".join(slots[index].text for index in run), slots[run[0]].role, (run[0] + run[-1] + 1) / 2) for run in runs]


def label_room(slots: Sequence[Slot], length: float) -> float:
    """Return the width of labels outside of an axis of at most that length, in inches."""
    zoom = active_style().zoom
    shown = slots if slots and length / len(slots) >= line_inches() else _number_labels(slots)
    return _LABEL * zoom + min(_LONGEST * zoom, max((printed_inches(one.text) for one in shown), default=0.0)) + 0.02


def draw_labels(axes: Axes, slots: Sequence[Slot], labels: Sequence[Label], side: str) -> None:
    """Draw a strip of the roles' colors along an axis, and labels outside of it with lines to their slots.

    Args:
        axes: already placed; its ticks along the axis are removed.
        slots: of the axis, equally wide.
        labels: of `chosen_labels`.
        side: "left" (slots from top to bottom) or "bottom" (slots from left to right).
    """
    down = side == "left"
    (axes.set_yticks if down else axes.set_xticks)([])
    width, height = axes_inches(axes)
    length, zoom = (height if down else width), active_style().zoom
    pitch = length / max(len(slots), 1)

    def place(along: float, out: float) -> tuple[float, float]:
        """Return inches along the axis and away from it as fractions of the axes."""
        return (-out / width, 1 - along / height) if down else (along / width, -out / height)

    outside = {"transform": axes.transAxes, "clip_on": False}
    for index, slot in enumerate(slots):
        if slot.role in MARKED_ROLES:
            (x0, y0), (x1, y1) = place(index * pitch, 0.015 * zoom), place((index + 1) * pitch, _STRIP * zoom)
            box = (min(x0, x1), min(y0, y1)), abs(x1 - x0), abs(y1 - y0)
            axes.add_patch(Rectangle(*box, facecolor=role_color(slot.role), edgecolor="none", **outside))
    if not labels:
        return
    line = line_inches()
    wanted = [label.middle * pitch for label in labels]
    for label, want, along in zip(labels, wanted, spread(wanted, line, line / 2, length - line / 2), strict=True):
        ends = place(want, _STRIP * zoom), place(along, _LINE_END * zoom)
        color = role_color(label.role)
        axes.plot(*zip(*ends, strict=True), color=color, linewidth=0.4 * zoom, **outside)
        if label.role in MARKERS:
            x, y = place(along, _MARK * zoom)
            axes.plot([x], [y], MARKERS[label.role], color=color, markersize=2.6 * zoom, markeredgewidth=0, **outside)
        text = truncated(label.text, _LONGEST * zoom)
        x, y = place(along, _LABEL * zoom)
        turned: dict[str, Any] = {"ha": "right", "va": "center_baseline"} if down else {"ha": "center", "va": "top", "rotation": 90}
        axes.text(x, y, text, transform=axes.transAxes, **turned)


def draw_borders(line: Callable[..., Any], slots: Sequence[Slot]) -> None:
    """Draw lines between slots: solid between regions, dotted between steps of the response.

    Args:
        line: `axhline` or `axvline` of the axes.
        slots: of the axis.
    """
    style = active_style()
    for place, (before, after) in enumerate(itertools.pairwise(slots)):
        if before.region != after.region:
            line(place + 0.5, color=style.undefined_hatch, linewidth=0.8 * style.zoom)
        elif before.step != after.step:
            line(place + 0.5, color=style.undefined_hatch, linewidth=0.5 * style.zoom, linestyle=":")


# --- legends ------------------------------------------------------------------------------------------------------------


def flow(widths: Sequence[float], inches_across: float, gap: float = 0.14) -> list[tuple[float, int]]:
    """Return where entries of these widths go on as many lines as they need: inches from the left, and line."""
    places, x, line = [], 0.0, 0
    for width in widths:
        if x and x + width > inches_across:
            x, line = 0.0, line + 1
        places.append((x, line))
        x += width + gap * active_style().zoom
    return places


def _legend_widths(roles: Sequence[str]) -> list[float]:
    return [0.14 * active_style().zoom + printed_inches(role.replace("_", " ")) for role in roles]


def role_legend_room(roles: Sequence[str], width: float) -> float:
    """Return the height of the roles' legend in a figure of that width, in inches."""
    places = flow(_legend_widths(roles), width - 0.1)
    return (places[-1][1] + 1) * line_inches() + 0.05 if places else 0.0


def draw_role_legend(figure: Figure, roles: Sequence[str], top: float) -> None:
    """Draw a legend of the roles' markers and colors, `top` inches below the figure's upper edge."""
    width, height = figure.get_size_inches()
    zoom = active_style().zoom
    for role, (x, line) in zip(roles, flow(_legend_widths(roles), width - 0.1), strict=True):
        y = 1 - (top + (line + 0.5) * line_inches()) / height
        mark = Line2D(
            [(0.05 + x + 0.05 * zoom) / width],
            [y],
            linestyle="",
            marker=MARKERS[role],
            color=role_color(role),
            markersize=3.2 * zoom,
            markeredgewidth=0,
            transform=figure.transFigure,
        )
        figure.add_artist(mark)
        figure.text((0.05 + x + 0.13 * zoom) / width, y, role.replace("_", " "), va="center_baseline")
