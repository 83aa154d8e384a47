"""How a measure is distributed over the heads of each layer."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.drawing import style
from figures.drawing.grid import grid, is_measured
from interp.tables.schema import MeasureInfo

KEY = "dots: heads; box and line: quartiles and median of the layer's heads"


def draw_distribution(axes: Axes, values: np.ndarray) -> None:
    """Draw a dot a head, and each layer's quartiles and median, for values [layer, head], on axes."""
    layers, heads = values.shape
    every_layer = np.repeat(np.arange(layers), heads)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)  # the result is NaN: no box
        low, median, high = np.nanpercentile(values, (25, 50, 75), axis=1)
    positions = np.arange(layers)
    axes.bar(positions, high - low, bottom=low, width=0.8, color=style.look().blue, alpha=0.28, linewidth=0, zorder=1)
    size = 2.5 if layers * heads <= 1000 else 1.0
    axes.scatter(every_layer, values.ravel(), s=size, color=style.look().ink, alpha=0.55, linewidths=0, zorder=2)
    axes.hlines(median, positions - 0.4, positions + 0.4, color=style.look().vermillion, linewidth=1.2, zorder=3)
    axes.set_xlim(-0.7, layers - 0.3)
    axes.set_xticks(style.count_ticks(style.axes_inches(axes)[0], layers))
    style.open_axes(axes)


@style.paper_style()
def distribution(heads: pd.DataFrame, info: MeasureInfo, subtitle: str = "", region: str = "response") -> Figure | None:
    """One measure's distribution over heads by layer, one column wide.

    Args:
        heads: a table of one model, columns as in `interp.tables.heads.HEADS`.
        info: the measure.
        subtitle: what was run; the region is added.
        region: where the queries stand.

    Returns:
        The figure, or None where the table has no row of the measure. Undefined heads have no dot; how many they are
        stands in the subtitle.
    """
    if not is_measured(heads, info.name):
        return None
    values = grid(heads, info.name, region)
    undefined = int(np.isnan(values).sum())
    note = f"{undefined} undefined heads left out" if undefined else ""
    at = style.look()
    width = at.column("one")
    title = style.heading(info, width - 0.1, 2, size=at.title)
    subtitle = style.joined(subtitle, f"{region} queries", note, KEY)
    room = style.titles_inches(width, title, subtitle)
    figure = style.new_figure(width, at.height(2.0, room) + room)
    axes = figure.add_subplot()
    style.set_titles(figure, title, subtitle)
    draw_distribution(axes, values)
    axes.set_xlabel("layer")
    axes.set_ylabel(style.unit_label(info))
    return figure


@style.paper_style()
def distributions(heads: pd.DataFrame, measures: dict[str, MeasureInfo], subtitle: str = "", region: str = "response") -> Figure | None:
    """Every measure's distribution over heads by layer, two columns wide.

    Args:
        heads: a table of one model, columns as in `interp.tables.heads.HEADS`.
        measures: name to description, in the order of drawing.
        subtitle: what was run; the region is added.
        region: where the queries stand.

    Returns:
        The figure, or None where the table has no row of any of these measures.
    """
    infos = [info for info in measures.values() if is_measured(heads, info.name)]
    if not infos:
        return None
    figure, every = style.panels(
        "Every measure's distribution over heads (x: layer)",
        style.joined(subtitle, f"{region} queries", KEY),
        len(infos),
        3,
        panel=(1.82, 0.68),
        margins=(0.4, 0.06, 0.3, 0.2),
    )
    for axes, info in zip(every, infos, strict=True):
        axes.set_title(style.heading(info, 2.05, 2), loc="left", x=-0.12, pad=5)
        style.few_y_ticks(axes)
        draw_distribution(axes, grid(heads, info.name, region))
    return figure
