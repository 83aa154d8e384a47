"""The distribution of each measure over the heads of each layer."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.drawing.grid import grid, is_measured
from figures.drawing.layout import axes_inches, count_ticks, equal_panels, few_ticks, open_axes
from figures.drawing.style import active_style, paper_style
from figures.drawing.text import heading, joined
from interp.tables.schema import MeasureInfo

_LEGEND = "dots: heads; box and line: quartiles and median of the layer's heads"


def draw_distribution(axes: Axes, values: np.ndarray) -> None:
    """Draw values [layer, head]: a dot per head, and each layer's quartiles and median."""
    style = active_style()
    layers, heads = values.shape
    every_layer = np.repeat(np.arange(layers), heads)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)  # the result is NaN: no box
        low, median, high = np.nanpercentile(values, (25, 50, 75), axis=1)
    positions = np.arange(layers)
    axes.bar(positions, high - low, bottom=low, width=0.8, color=style.blue, alpha=0.28, linewidth=0, zorder=1)
    size = 2.5 if layers * heads <= 1000 else 1.0
    axes.scatter(every_layer, values.ravel(), s=size, color=style.ink, alpha=0.55, linewidths=0, zorder=2)
    axes.hlines(median, positions - 0.4, positions + 0.4, color=style.vermillion, linewidth=1.2, zorder=3)
    axes.set_xlim(-0.7, layers - 0.3)
    axes.set_xticks(count_ticks(axes_inches(axes)[0], layers))
    open_axes(axes)


@paper_style()
def distributions(heads: pd.DataFrame, measures: dict[str, MeasureInfo], subtitle: str = "", region: str = "response") -> Figure | None:
    """Draw every measure's distribution over heads by layer, two columns wide.

    Args:
        heads: a table of one model with columns as in `interp.tables.heads.HEADS`.
        measures: name to description, in the order of drawing.
        subtitle: what was run; the region is added.
        region: where the queries are.

    Returns:
        The figure, or None where the table has no row of any of these measures. Undefined heads have no dot.
    """
    infos = [info for info in measures.values() if is_measured(heads, info.name)]
    if not infos:
        return None
    figure, every = equal_panels(
        "Distribution of all measures over heads (x: layer; y: unit in each title)",
        joined(subtitle, f"{region} queries", _LEGEND),
        len(infos),
        3,
        panel=(1.82, 0.68),
        margins=(0.4, 0.06, 0.3, 0.2),
    )
    for axes, info in zip(every, infos, strict=True):
        axes.set_title(heading(info, 2.05, 2), loc="left", x=-0.12, pad=5)
        few_ticks(axes, "y")
        draw_distribution(axes, grid(heads, info.name, region))
    return figure
