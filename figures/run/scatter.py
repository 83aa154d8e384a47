"""Entropy of heads against their attention on numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.drawing.grid import grid, is_measured
from figures.drawing.layout import count_ticks, open_axes, set_titles
from figures.drawing.style import active_style, new_figure, paper_style
from figures.drawing.text import heading, joined, unit_label
from interp.tables.schema import MeasureInfo

_X, _Y = "entropy_nats", "numeric_mass"


@paper_style()
def entropy_against_numeric_mass(
    heads: pd.DataFrame, measures: dict[str, MeasureInfo], subtitle: str = "", region: str = "response"
) -> Figure | None:
    """Draw entropy (x) against attention on numbers (y), one point per head, colored by layer; one column wide.

    Args:
        heads: a table of one model with columns as in `interp.tables.heads.HEADS`.
        measures: name to description.
        subtitle: what was run; the region is added.
        region: where the queries are.

    Returns:
        The figure, or None where one of the two measures was not taken or no head has both.
    """
    if not all(name in measures and is_measured(heads, name) for name in (_X, _Y)):
        return None
    x, y = grid(heads, _X, region), grid(heads, _Y, region)
    both = np.isfinite(x) & np.isfinite(y)
    if not both.any():
        return None
    layer = np.broadcast_to(np.arange(x.shape[0])[:, None], x.shape)
    style = active_style()
    figure = new_figure(style.column("one"), style.height(2.9, 0.0))
    axes = figure.add_subplot()
    units = [unit_label(measures[name]) for name in (_X, _Y)]
    set_titles(figure, f"Entropy ({units[0]}) against attention on numbers ({units[1]})", joined(subtitle, f"{region} queries"))
    size = 9 if both.sum() <= 1200 else 4
    points = axes.scatter(
        x[both], y[both], c=layer[both], cmap=style.map_colors, vmin=0, vmax=max(x.shape[0] - 1, 1),
        s=size, linewidths=0.2, edgecolors=style.background,
    )  # fmt: skip
    axes.set_xlabel(heading(measures[_X], 2.6, 2))
    axes.set_ylabel(heading(measures[_Y], style.height(2.1, 1.6), 2))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    open_axes(axes)
    bar = figure.colorbar(points, ax=axes, aspect=28, pad=0.02, label="layer")
    bar.set_ticks(count_ticks(1.8, x.shape[0]))
    bar.outline.set_linewidth(0.5)
    return figure
