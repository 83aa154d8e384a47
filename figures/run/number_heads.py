"""The heads that look at numbers most."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.drawing import style
from figures.drawing.grid import grid, is_measured
from interp.tables.schema import MeasureInfo

RANKED_BY = ("numeric_mass_without_bos", "numeric_mass")
"""The first of these that was run ranks the heads: without BOS first, since mass parked on BOS hides the rest."""


TOP = 15


@style.paper_style()
def number_heads(heads: pd.DataFrame, measures: dict[str, MeasureInfo], subtitle: str = "", region: str = "response") -> Figure | None:
    """The 15 heads with the most attention on numbers, and their enrichment beside it, two columns wide.

    Whiskers are each head's own 95 % bootstrap interval over examples. They do not allow for having picked the top
    heads out of all: the true values of picked heads are on average a little lower.

    Args:
        heads: a table of one model, columns as in `interp.tables.heads.HEADS`.
        measures: name to description; ranks by the first of `RANKED_BY` that it has.
        subtitle: what was run; the region is added.
        region: where the queries stand.

    Returns:
        The figure, or None where neither measure was run or no head is defined in the region.
    """
    ranking = next((name for name in RANKED_BY if name in measures and is_measured(heads, name)), None)
    if ranking is None:
        return None
    values = grid(heads, ranking, region)
    order = np.argsort(-values.ravel(), kind="stable")  # NaN sorts last
    chosen = [int(index) for index in order[:TOP] if np.isfinite(values.ravel()[index])]
    if not chosen:
        return None
    shown = [ranking]
    if "numeric_enrichment" in measures and is_measured(heads, "numeric_enrichment"):
        shown.append("numeric_enrichment")
    at = style.look()
    figure = style.new_figure(at.two, max(1.6, 0.85 + 0.15 * len(chosen)) * at.zoom)
    every = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    labels = [f"{index // values.shape[1]}.{index % values.shape[1]}" for index in chosen]
    rows = np.arange(len(chosen))
    for axes, name, colour in zip(every, shown, (at.blue, at.vermillion), strict=False):
        value, low, high = (grid(heads, name, region, column).ravel()[chosen] for column in ("value", "ci_low", "ci_high"))
        axes.hlines(rows, low, high, color=colour, linewidth=1.0)
        axes.plot(value, rows, "o", color=colour, markersize=3, clip_on=False)
        axes.set_title(style.heading(measures[name], 3.0, 2), loc="left")
        axes.set_xlabel(style.unit_label(measures[name]))
        axes.grid(axis="x", color=at.faint, linewidth=0.4)
        axes.set_axisbelow(True)
        axes.set_xlim(left=0)
        style.open_axes(axes)
    note = f"{region} queries · whiskers: 95 % interval of each head alone"
    if len(shown) > 1:
        every[1].axvline(1.0, color=at.grey, linewidth=0.8, linestyle="--")
        note += " · dashed: as much as uniform attention"
    every[0].set_yticks(rows, labels)
    every[0].set_ylim(len(chosen) - 0.4, -0.6)
    every[0].set_ylabel("layer.head")
    style.set_titles(figure, "The heads that look at numbers most", style.joined(subtitle, note))
    return figure
