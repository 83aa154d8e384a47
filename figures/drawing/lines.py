"""Lines that readers tell apart and can name: a colour and a dash each, with the name beside the line's end, or in a key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.drawing import style

NAMES_ROOM = 1.2
"""Most room that names beside the lines' ends may take, inches of a paper."""


LEADER = 0.14
"""Inches from the axes' edge to a name; a thin line leads from the line's end to it."""


def line_inches() -> float:
    """Height of a line of text in the style in use."""
    return style.look().small * 1.25 / 72


def widest(names: Sequence[str]) -> float:
    """Printed width of the longest name, inches."""
    return max(style.text_inches(style.printable(name), style.look().small) for name in names)


@dataclass(frozen=True)
class LineStyle:
    """How a line is drawn.

    Attributes:
        colour: as matplotlib takes it.
        dash: likewise.
    """

    colour: str
    dash: Any


def looks(names: Sequence[str]) -> dict[str, LineStyle]:
    """A look for each name, in order: each round through the colours has a dash of its own."""
    colours, dashes = style.look().series, style.SERIES_LINES
    return {
        name: LineStyle(colours[at % len(colours)], dashes[at // len(colours) % len(dashes)])
        for at, name in enumerate(dict.fromkeys(names))
    }


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places as near as can be to the wanted ones (least squares) that keep their order, a gap, and the limits.

    Args:
        wanted: at least one place, in any order.
        gap: least distance of two.
        low: least place.
        high: largest place; where there is no room for all, they go beyond it.
    """
    order = np.argsort(np.asarray(wanted), kind="stable")
    shifted = np.asarray(wanted, float)[order] - gap * np.arange(len(wanted))
    blocks: list[list[float]] = []
    for value in shifted:  # pool adjacent violators
        blocks.append([float(value)])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    fitted = np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])
    limited = np.clip(fitted, low, max(low, high - gap * (len(wanted) - 1)))
    places = np.empty(len(wanted))
    places[order] = limited + gap * np.arange(len(wanted))
    return places.tolist()


def room_beside(names: Sequence[str], height: float) -> float | None:
    """Inches that names beside axes of that height take; None where there are too many, or too long ones: they need a key."""
    room = LEADER + widest(names) + 0.04
    return room if room <= NAMES_ROOM * style.look().zoom and len(names) * line_inches() <= height else None


def name_ends(axes: Axes, lines: Mapping[str, tuple[LineStyle, pd.Series]]) -> None:
    """Write names right of axes, each as near to its line's last point as the others leave room.

    Args:
        axes: placed; its limits along y, linear, are now kept.
        lines: name to look and to the line's heights in data units; one without a finite height is left out.
    """
    known = {name: values.dropna() for name, (_, values) in lines.items()}
    ends = {name: float(values.iloc[-1]) for name, values in known.items() if len(values)}
    if not ends:
        return
    width, height = style.axes_inches(axes)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    at = [(value - low) / (high - low) * height for value in ends.values()]
    line = line_inches()
    for name, end, place in zip(ends, at, spread(at, line, line / 2, height - line / 2), strict=True):
        colour = lines[name][0].colour
        across = [1 + 0.01 / width, 1 + (LEADER - 0.02) / width]
        axes.plot(across, [end / height, place / height], color=colour, linewidth=0.5, transform=axes.transAxes, clip_on=False)
        beside = 1 + LEADER / width
        axes.text(beside, place / height, style.printable(name), color=colour, va="center_baseline", transform=axes.transAxes)


def key_room(names: Sequence[str]) -> float:
    """Room that a key takes in a figure of two columns, inches."""
    return -(-len(names) // _key_columns(names)[0]) * line_inches() + 0.08


def _key_columns(names: Sequence[str]) -> tuple[int, float]:
    """How many columns a key of two columns' width has, and how wide each is, inches."""
    width = style.look().two - 0.1
    pitch = min(widest(names) + 0.5, width)
    return max(1, min(len(names), int(width / pitch))), pitch


def draw_key(figure: Figure, look: Mapping[str, LineStyle], top: float) -> None:
    """A key of names and lines, its upper edge `top` inches below the figure's."""
    width, height = figure.get_size_inches()
    columns, pitch = _key_columns(list(look))
    for index, (name, one) in enumerate(look.items()):
        row, column = divmod(index, columns)
        x, y = (0.05 + column * pitch) / width, 1 - (top + (row + 0.5) * line_inches()) / height
        figure.add_artist(Line2D([x, x + 0.25 / width], [y, y], color=one.colour, linestyle=one.dash, transform=figure.transFigure))
        figure.text(x + 0.3 / width, y, style.wrapped(name, pitch - 0.35, 1), va="center_baseline")


def line_panels(
    title: str,
    subtitle: str,
    look: Mapping[str, LineStyle],
    count: int,
    columns: int,
    *,
    down: float,
    margins: tuple[float, float, float, float],
    beside: bool = True,
) -> tuple[Figure, list[Axes], bool]:
    """Equal panels of lines over two columns, with room for the names beside the axes or, where they do not fit, a key above them.

    Args:
        title: of the whole figure.
        subtitle: of the whole figure.
        look: of each name.
        count: number of panels.
        columns: panels side by side.
        down: height of a panel's axes, inches of a paper.
        margins: left, right, top, bottom room of a panel, inches of a paper.
        beside: False for a key in any case.

    Returns:
        The figure, its panels, and whether the caller has to write the names beside their lines (`name_ends`).
    """
    zoom, two, names = style.look().zoom, style.look().two, list(look)
    left, right, top, bottom = margins
    room = room_beside(names, down * zoom) if beside else None
    right += (room or 0.0) / zoom
    across = two / columns - (left + right) * zoom
    key = 0.0 if room else key_room(names)
    figure, every = style.panels(
        title, subtitle, count, columns, panel=(across, down), margins=(left, right, top, bottom), legend_room=key / zoom
    )
    if not room:
        draw_key(figure, look, style.titles_inches(two, title, subtitle))
    return figure, every, room is not None
