"""Where titles, panels and ticks go, in inches, so that figures of different models line up."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from figures.drawing.style import active_style, new_figure
from figures.drawing.text import tick_text, wrapped


def set_titles(figure: Figure, title: str, subtitle: str) -> None:
    """Write a title and a gray subtitle at the figure's upper left, and keep a constrained layout below them.

    Args:
        figure: its width decides where the texts wrap: the title has at most two lines, the subtitle as many as the style allows.
        title: what is shown, with the unit.
        subtitle: what was run, and what a reader must know about the drawing.
    """
    width, height = figure.get_size_inches()
    title, subtitle, title_room, room = _title_block(title, subtitle, width)
    figure.text(0.05 / width, 1 - 0.05 / height, title, va="top", fontsize=active_style().title)
    figure.text(0.05 / width, 1 - title_room / height, subtitle, va="top", color=active_style().gray)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, 0, 1, 1 - room / height))


def _title_block(title: str, subtitle: str, width: float) -> tuple[str, str, float, float]:
    """Return the wrapped texts, and the inches from the figure's top to the subtitle's top and to its end."""
    style = active_style()
    title = wrapped(title, width - 0.1, 2, style.title)
    subtitle = wrapped(subtitle, width - 0.1, style.subtitle_lines)
    title_room = 0.06 + (title.count("\n") + 1) * style.title * 1.25 / 72 + 0.03
    return title, subtitle, title_room, title_room + (subtitle.count("\n") + 1) * style.small * 1.25 / 72 + 0.04


def titles_inches(figure_width: float, title: str, subtitle: str) -> float:
    """Return the height that `set_titles` takes at the top of a figure of that width, in inches."""
    return _title_block(title, subtitle, figure_width)[3]


def equal_panels(
    title: str,
    subtitle: str,
    count: int,
    columns: int,
    *,
    panel: tuple[float, float],
    margins: tuple[float, float, float, float],
    legend_room: float = 0.0,
    width: float | None = None,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of equal panels, placed in inches so that nothing moves from model to model.

    Lengths are those of a paper. Where the style's font is larger, margins and heights grow with it; where the panels then do not fit side
    by side, a row has fewer of them, and they share its width.

    Args:
        title: of the whole figure.
        subtitle: of the whole figure.
        count: number of panels, at least 1.
        columns: panels side by side.
        panel: width and height of one panel's axes, in inches.
        margins: room left, right, above and below each panel for its labels, in inches.
        legend_room: height left free between the subtitle and the panels, in inches.
        width: of the figure, in inches; two columns if not given.
    """
    width = active_style().two if width is None else width
    zoom = active_style().zoom
    left, right, top, bottom = (room * zoom for room in margins)
    across, down = panel[0], panel[1] * zoom
    fitting = max(1, int(width / (left + across + right) + 1e-9))
    if fitting < columns:
        columns = fitting
        across = width / columns - left - right
    rows = -(-count // columns)
    pitch_x, pitch_y = left + across + right, top + down + bottom
    header = titles_inches(width, title, subtitle) + legend_room * zoom
    height = header + rows * pitch_y
    figure = new_figure(width, height, constrained=False)
    set_titles(figure, title, subtitle)
    every = []
    for index in range(count):
        row, column = divmod(index, columns)
        x = column * pitch_x + left
        y = height - header - row * pitch_y - top - down
        every.append(figure.add_axes((x / width, y / height, across / width, down / height)))
    return figure, every


def map_height(width: float, shape: tuple[int, ...], room: float) -> float:
    """Return the height of a map [layer, head] whose cells are about square, in inches.

    Args:
        width: of the figure, in inches.
        shape: number of layers, along x, and of heads, along y.
        room: height that the rest of the figure takes, in inches.
    """
    style = active_style()
    return style.height(float(np.clip((width - 0.75 * style.zoom) * shape[1] / shape[0], 1.15, 2.4)), room)


def few_ticks(axes: Axes, along: str, most: int = 4) -> None:
    """Use at most `most` short, round numbers along "x" or "y"."""
    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(lambda value, _: tick_text(value))


def open_axes(axes: Axes) -> None:
    """Hide the upper and the right edge."""
    axes.spines[["top", "right"]].set_visible(False)


def axes_inches(axes: Axes) -> tuple[float, float]:
    """Return the width and the height of axes as placed so far, in inches."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    box = axes.get_position()
    return figure.get_figwidth() * box.width, figure.get_figheight() * box.height


def count_ticks(axis_length: float, count: int, inches_per_label: float = 0.22) -> list[int]:
    """Return the whole numbers among 0 … count-1 that fit as labels along an axis of that many inches."""
    most = max(2, int(axis_length / (inches_per_label * active_style().zoom)))
    locator = MaxNLocator(nbins=most, integer=True, steps=[1, 2, 4, 5, 8, 10])
    return [int(tick) for tick in locator.tick_values(0, max(count - 1, 1)) if 0 <= tick < count]
