"""Line styles that readers can tell apart in print and without color vision, and the names of the lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.drawing.layout import axes_inches, equal_panels, titles_inches
from figures.drawing.style import SERIES_LINES, active_style
from figures.drawing.text import line_inches, printable, text_inches, wrapped

_NAMES_ROOM = 1.2
"""Largest width of names written next to the ends of lines, in inches of a paper."""

NAME_OFFSET = 0.14
"""Inches from the edge of the axes to a name; a thin line leads from the line's end to it."""


@dataclass(frozen=True)
class LineStyle:
    """How a line is drawn.

    Attributes:
        color: as matplotlib takes it.
        dash: line style, as matplotlib takes it.
    """

    color: str
    dash: Any


def line_styles(names: Sequence[str]) -> dict[str, LineStyle]:
    """Return a line style for each name, in order: after each round through the colors the dash changes."""
    colors = active_style().series
    return {
        name: LineStyle(colors[index % len(colors)], SERIES_LINES[index // len(colors) % len(SERIES_LINES)])
        for index, name in enumerate(dict.fromkeys(names))
    }


def widest(names: Sequence[str]) -> float:
    """Return the printed width of the longest name, in inches."""
    return max(text_inches(printable(name), active_style().small) for name in names)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return the places closest to the wanted ones (least squares) that keep their order, a gap and the limits.

    Args:
        wanted: at least one place, in any order.
        gap: smallest distance between two places.
        low: smallest place.
        high: largest place; exceeded where there is no room for all.
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


def _names_room(names: Sequence[str], height: float) -> float | None:
    """Return the width of names next to axes of that height, in inches; None where they are too many or too long and need a legend."""
    room = NAME_OFFSET + widest(names) + 0.04
    fits = room <= _NAMES_ROOM * active_style().zoom and len(names) * line_inches() <= height
    return room if fits else None


def name_line_ends(axes: Axes, lines: Mapping[str, tuple[LineStyle, pd.Series]]) -> None:
    """Write names to the right of axes, each as close to the end of its line as the others allow.

    Args:
        axes: already placed; its limits along y, which are linear, no longer change.
        lines: name to line style and values in data units; a line without a finite value is left out.
    """
    known = {name: values.dropna() for name, (_, values) in lines.items()}
    ends = {name: float(values.iloc[-1]) for name, values in known.items() if len(values)}
    if not ends:
        return
    width, height = axes_inches(axes)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    wanted = [(value - low) / (high - low) * height for value in ends.values()]
    line = line_inches()
    for name, end, place in zip(ends, wanted, spread(wanted, line, line / 2, height - line / 2), strict=True):
        color = lines[name][0].color
        across = [1 + 0.01 / width, 1 + (NAME_OFFSET - 0.02) / width]
        axes.plot(across, [end / height, place / height], color=color, linewidth=0.5, transform=axes.transAxes, clip_on=False)
        x = 1 + NAME_OFFSET / width
        axes.text(x, place / height, printable(name), color=color, va="center_baseline", transform=axes.transAxes)


def _legend_room(names: Sequence[str]) -> float:
    """Return the height of a legend in a figure of two columns, in inches."""
    return -(-len(names) // _legend_columns(names)[0]) * line_inches() + 0.08


def _legend_columns(names: Sequence[str]) -> tuple[int, float]:
    """Return how many columns a legend of two columns' width has, and the width of each in inches."""
    width = active_style().two - 0.1
    pitch = min(widest(names) + 0.5, width)
    return max(1, min(len(names), int(width / pitch))), pitch


def _draw_legend(figure: Figure, styles: Mapping[str, LineStyle], top: float) -> None:
    """Draw names and lines, `top` inches below the figure's upper edge."""
    width, height = figure.get_size_inches()
    columns, pitch = _legend_columns(list(styles))
    for index, (name, line) in enumerate(styles.items()):
        row, column = divmod(index, columns)
        x, y = (0.05 + column * pitch) / width, 1 - (top + (row + 0.5) * line_inches()) / height
        figure.add_artist(Line2D([x, x + 0.25 / width], [y, y], color=line.color, linestyle=line.dash, transform=figure.transFigure))
        figure.text(x + 0.3 / width, y, wrapped(name, pitch - 0.35, 1), va="center_baseline")


def line_panels(
    title: str,
    subtitle: str,
    styles: Mapping[str, LineStyle],
    count: int,
    columns: int,
    *,
    down: float,
    margins: tuple[float, float, float, float],
    beside: bool = True,
) -> tuple[Figure, list[Axes], bool]:
    """Return equal panels of lines over two columns, with room for names next to the axes or, where they do not fit, a legend above.

    Args:
        title: of the whole figure.
        subtitle: of the whole figure.
        styles: line style of each name.
        count: number of panels.
        columns: panels side by side.
        down: height of a panel's axes, in inches of a paper.
        margins: room left, right, above and below a panel, in inches of a paper.
        beside: False for a legend in any case.

    Returns:
        The figure, its panels, and whether the caller has to write the names next to their lines (`name_line_ends`).
    """
    zoom, two, names = active_style().zoom, active_style().two, list(styles)
    left, right, top, bottom = margins
    room = _names_room(names, down * zoom) if beside else None
    right += (room or 0.0) / zoom
    across = two / columns - (left + right) * zoom
    legend = 0.0 if room else _legend_room(names)
    figure, every = equal_panels(
        title, subtitle, count, columns, panel=(across, down), margins=(left, right, top, bottom), legend_room=legend / zoom
    )
    if not room:
        _draw_legend(figure, styles, titles_inches(two, title, subtitle))
    return figure, every, room is not None


def draw_seeds(axes: Axes, by_student: pd.DataFrame, line: LineStyle, **mean: Any) -> pd.Series:
    """Draw the mean of several students as a thick line, and each student as a thin one; a single student is a thick line only.

    Args:
        axes: where to draw.
        by_student: values by x, a column a student; NaN leaves a gap.
        line: color and dash of all of them.
        mean: settings of the thick line.

    Returns:
        The mean over students, by x.
    """
    if by_student.shape[1] > 1:
        axes.plot(by_student.index, by_student, color=line.color, linestyle=line.dash, linewidth=0.5, alpha=0.6)
    thick = by_student.mean(axis=1)
    marker = "o" if thick.notna().sum() == 1 else ""
    axes.plot(thick.index, thick, color=line.color, linestyle=line.dash, marker=marker, markersize=3, **mean)
    return thick
