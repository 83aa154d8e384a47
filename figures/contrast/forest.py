"""Forest plots: the heads that differ most between right and wrong answers, with their intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.contrast.maps import about_contrast
from figures.drawing.layout import axes_inches, equal_panels, open_axes, titles_inches
from figures.drawing.significance import FALSE_DISCOVERY_RATE
from figures.drawing.style import active_style, paper_style
from figures.drawing.text import heading, joined, tick_text
from interp.tables.schema import MeasureInfo

_MOST_MEASURES = 6
"""Measures in a forest plot, those with the smallest q."""

HEADS_PER_MEASURE = 8
"""Heads of each measure in a forest plot."""

_MARGINS = (0.42, 0.54, 0.26, 0.22)
"""Room left, right, above and below a panel, in inches of a paper."""


def forest_rows(contrast: pd.DataFrame, region: str) -> dict[str, pd.DataFrame]:
    """Return the heads of a forest plot by measure: for the measures with the smallest q, the heads with the smallest q (then p)."""
    rows = contrast[(contrast["region"] == region) & contrast["q"].notna() & contrast["ci_low"].notna()]
    rows = rows.sort_values(["q", "p", "layer", "head"], kind="stable")
    first = list(dict.fromkeys(rows["measure"].astype(str)))[:_MOST_MEASURES]
    return {name: rows[rows["measure"] == name].head(HEADS_PER_MEASURE) for name in first}


@paper_style()
def forest(contrast: pd.DataFrame, measures: dict[str, MeasureInfo], subtitle: str = "", region: str = "response") -> Figure | None:
    """Draw differences with 95 % intervals and q, one panel per measure; two columns wide, or one column for one measure.

    Args:
        contrast: rows of `interp.tables.contrast.CONTRAST` of one model.
        measures: those to draw, by name.
        subtitle: what was run; model, counts, region, test and correction are added.
        region: where the queries are.

    Returns:
        The figure, or None where no head has a test.

    Raises:
        InputError: the table holds several models.
    """
    chosen = forest_rows(contrast[contrast["measure"].isin(list(measures))], region)
    if not chosen:
        return None
    style = active_style()
    title = "Heads that differ most between right and wrong answers (right minus wrong; unit in each title)"
    scope = f"{len(chosen)} measures" if len(chosen) > 1 else "measure"
    note = (
        f"the {scope} with the smallest q, up to {HEADS_PER_MEASURE} heads each · line: 95 % interval of each head alone · head: layer.head"
    )
    subtitle = joined(about_contrast(contrast, None, region), note, subtitle)
    most = max(map(len, chosen.values()))
    columns = min(2, len(chosen))
    width = style.two if columns == 2 else style.one
    across = width / columns - (_MARGINS[0] + _MARGINS[1]) * style.zoom
    figure, every = equal_panels(
        title, subtitle, len(chosen), columns, panel=(across, 0.16 * most + 0.1), margins=_MARGINS, legend_room=0.2, width=width
    )
    top = 1 - titles_inches(width, title, subtitle) / figure.get_figheight()
    texts = [f"q ≤ {FALSE_DISCOVERY_RATE:g}", f"q > {FALSE_DISCOVERY_RATE:g}"]
    figure.legend(_legend_marks(), texts, loc="upper left", bbox_to_anchor=(0, top), ncols=2, borderpad=0, handlelength=1.5)
    for axes, (name, rows) in zip(every, chosen.items(), strict=True):
        _draw_panel(axes, rows, most)
        inside = axes_inches(axes)[0]
        room = inside + (_MARGINS[0] + _MARGINS[1]) * style.zoom - 0.1
        axes.set_title(heading(measures[name], room, 1), loc="left", x=-_MARGINS[0] * style.zoom / inside + 0.03)
    return figure


def _legend_marks() -> list[Line2D]:
    style = active_style()
    return [
        Line2D([], [], color=line, marker="o", markersize=3.5 * style.zoom, markerfacecolor=face, linewidth=style.zoom)
        for line, face in ((style.blue, style.blue), (style.gray, style.background))
    ]


def _draw_panel(axes: Axes, rows: pd.DataFrame, most: int) -> None:
    style = active_style()
    axes.axvline(0.0, color=style.gray, linewidth=0.5 * style.zoom, zorder=1)
    heights = np.arange(len(rows))
    for significant, color, face in ((True, style.blue, style.blue), (False, style.gray, style.background)):
        kind = (rows["q"] <= FALSE_DISCOVERY_RATE).to_numpy() == significant
        part, y = rows[kind], heights[kind]
        axes.hlines(y, part["ci_low"], part["ci_high"], color=color, linewidth=style.zoom, zorder=2)
        size = 12 * style.zoom**2
        axes.scatter(part["difference"], y, s=size, facecolors=face, edgecolors=color, linewidths=0.8 * style.zoom, zorder=3)
    axes.set_ylim(most - 0.4, -0.6)
    axes.set_yticks(heights, [f"{layer}.{head}" for layer, head in zip(rows["layer"], rows["head"], strict=True)])
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: tick_text(value))
    for y, q in zip(heights, rows["q"], strict=True):
        text = "q < 0.001" if q < 0.001 else f"q = {q:.3f}" if q < 0.1 else f"q = {q:.2f}"
        axes.annotate(text, (1, y), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center_baseline")
    open_axes(axes)
