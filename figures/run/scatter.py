"""How focused a head is against how much it looks at numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.drawing import style
from figures.drawing.grid import grid, is_measured
from interp.tables.schema import MeasureInfo

ACROSS, UP = "entropy_nats", "numeric_mass"


@style.paper_style()
def entropy_against_numeric_mass(
    heads: pd.DataFrame, measures: dict[str, MeasureInfo], subtitle: str = "", region: str = "response"
) -> Figure | None:
    """Entropy (x) against attention on numbers (y), a point a head, coloured by layer; one column wide.

    Args:
        heads: a table of one model, columns as in `interp.tables.heads.HEADS`.
        measures: name to description.
        subtitle: what was run; the region is added.
        region: where the queries stand.

    Returns:
        The figure, or None where one of the two measures was not run or no head has both.
    """
    if not all(name in measures and is_measured(heads, name) for name in (ACROSS, UP)):
        return None
    x, y = grid(heads, ACROSS, region), grid(heads, UP, region)
    both = np.isfinite(x) & np.isfinite(y)
    if not both.any():
        return None
    layer = np.broadcast_to(np.arange(x.shape[0])[:, None], x.shape)
    at = style.look()
    figure = style.new_figure(at.column("one"), at.height(2.9, 0.0))
    axes = figure.add_subplot()
    subtitle = style.joined(subtitle, f"{region} queries")
    style.set_titles(figure, "Entropy against attention on numbers, by head", subtitle)
    size = 9 if both.sum() <= 1200 else 4
    points = axes.scatter(
        x[both], y[both], c=layer[both], cmap=at.map_colours, vmin=0, vmax=max(x.shape[0] - 1, 1),
        s=size, linewidths=0.2, edgecolors=at.background,
    )  # fmt: skip
    axes.set_xlabel(style.heading(measures[ACROSS], 2.6, 2))
    axes.set_ylabel(style.heading(measures[UP], at.height(2.1, 1.6), 2))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    style.open_axes(axes)
    bar = figure.colorbar(points, ax=axes, aspect=28, pad=0.02, label="layer")
    bar.set_ticks(style.count_ticks(1.8, x.shape[0]))
    bar.outline.set_linewidth(0.5)
    return figure
