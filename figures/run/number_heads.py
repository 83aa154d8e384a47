"""The heads with the most attention on numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.drawing.grid import grid, is_measured
from figures.drawing.layout import open_axes, set_titles
from figures.drawing.style import active_style, new_figure, paper_style
from figures.drawing.text import heading, joined, unit_label
from interp.tables.schema import MeasureInfo

_RANKED_BY = ("numeric_mass_without_bos", "numeric_mass")
"""The first of these that was measured ranks the heads: without BOS first, because attention on BOS hides the rest."""

_SHOWN_HEADS = 15


@paper_style()
def number_heads(heads: pd.DataFrame, measures: dict[str, MeasureInfo], subtitle: str = "", region: str = "response") -> Figure | None:
    """Draw the 15 heads with the most attention on numbers, and their enrichment next to it, two columns wide.

    Whiskers are each head's own 95 % bootstrap interval over examples. They are not adjusted for the selection of the top heads: the true
    values of selected heads are on average a little lower.

    Args:
        heads: a table of one model with columns as in `interp.tables.heads.HEADS`.
        measures: name to description; heads are ranked by "numeric_mass_without_bos", or else by "numeric_mass".
        subtitle: what was run; the region is added.
        region: where the queries are.

    Returns:
        The figure, or None where neither measure was taken or no head is defined in the region.
    """
    ranking = next((name for name in _RANKED_BY if name in measures and is_measured(heads, name)), None)
    if ranking is None:
        return None
    values = grid(heads, ranking, region)
    order = np.argsort(-values.ravel(), kind="stable")  # NaN sorts last
    chosen = [int(index) for index in order[:_SHOWN_HEADS] if np.isfinite(values.ravel()[index])]
    if not chosen:
        return None
    shown = [ranking]
    if "numeric_enrichment" in measures and is_measured(heads, "numeric_enrichment"):
        shown.append("numeric_enrichment")
    style = active_style()
    figure = new_figure(style.two, max(1.6, 0.85 + 0.15 * len(chosen)) * style.zoom)
    every = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    labels = [f"{index // values.shape[1]}.{index % values.shape[1]}" for index in chosen]
    rows = np.arange(len(chosen))
    for axes, name, color in zip(every, shown, (style.blue, style.vermillion), strict=False):
        value, low, high = (grid(heads, name, region, column).ravel()[chosen] for column in ("value", "ci_low", "ci_high"))
        axes.hlines(rows, low, high, color=color, linewidth=1.0)
        axes.plot(value, rows, "o", color=color, markersize=3, clip_on=False)
        axes.set_title(heading(measures[name], 3.0, 2), loc="left")
        axes.set_xlabel(unit_label(measures[name]))
        axes.grid(axis="x", color=style.faint, linewidth=0.4)
        axes.set_axisbelow(True)
        axes.set_xlim(left=0)
        open_axes(axes)
    note = f"{region} queries · whiskers: 95 % interval of each head alone"
    if len(shown) > 1:
        every[1].axvline(1.0, color=style.gray, linewidth=0.8, linestyle="--")
        note += " · dashed: as much as uniform attention"
    every[0].set_yticks(rows, labels)
    every[0].set_ylim(len(chosen) - 0.4, -0.6)
    every[0].set_ylabel("layer.head")
    set_titles(figure, "Heads with the most attention on numbers (unit in each title)", joined(subtitle, note))
    return figure
