"""Means over the heads of each layer, one line per region of queries."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures.drawing.grid import grid, grid_shape, is_measured
from figures.drawing.layout import axes_inches, count_ticks, equal_panels, few_ticks, open_axes, titles_inches
from figures.drawing.style import REGION_LINES, active_style, paper_style
from figures.drawing.text import heading
from interp.tables.schema import REGIONS, MeasureInfo

_BANDS = ("95 % interval of the mean, at most this wide", "5th to 95th percentile of heads")


def layer_summary(heads: pd.DataFrame, measure: str, region: str) -> pd.DataFrame:
    """Return the mean over each layer's heads, with a bound on its interval and the spread of the heads.

    The head table has an interval over examples for each head, but not how heads vary together over examples. The mean's own interval
    cannot be computed from it; the mean of the ends of the heads' intervals can, and it is an upper bound: the standard error of a mean is
    at most the mean of the standard errors, and equal to it where all heads vary together.

    Args:
        heads: a table of one model with columns as in `interp.tables.heads.HEADS`.
        measure: as in the `measure` column.
        region: one of `interp.tables.schema.REGIONS`.

    Returns:
        One row per layer, in the measure's unit: `mean` over the heads that are defined; `mean_low` and `mean_high`, the mean of `ci_low`
        and of `ci_high` (95 % interval of the mean, upper bound of its width); `p05` and `p95`, percentiles over heads, which are a spread
        and not an interval. NaN where no head of the layer is defined.
    """
    value = grid(heads, measure, region)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice|All-NaN slice", RuntimeWarning)  # the result is NaN
        return pd.DataFrame(
            {
                "mean": np.nanmean(value, axis=1),
                "mean_low": np.nanmean(grid(heads, measure, region, "ci_low"), axis=1),
                "mean_high": np.nanmean(grid(heads, measure, region, "ci_high"), axis=1),
                "p05": np.nanpercentile(value, 5, axis=1),
                "p95": np.nanpercentile(value, 95, axis=1),
            }
        )


def draw_curves(axes: Axes, heads: pd.DataFrame, measure: str, spread_of: str) -> None:
    """Draw the mean and its interval for every region, and the spread over heads for one region."""
    for region in REGIONS:
        summary = layer_summary(heads, measure, region)
        color = active_style().region_colors[region]
        layers = summary.index.to_numpy()
        if region == spread_of:
            axes.fill_between(layers, summary["p05"], summary["p95"], color=color, alpha=0.13, linewidth=0, zorder=1)
        axes.fill_between(layers, summary["mean_low"], summary["mean_high"], color=color, alpha=0.35, linewidth=0, zorder=2)
        axes.plot(layers, summary["mean"], color=color, linestyle=REGION_LINES[region], zorder=3)
    layers = grid_shape(heads)[0]
    axes.set_xlim(-0.5, layers - 0.5)
    axes.set_xticks(count_ticks(axes_inches(axes)[0], layers))
    open_axes(axes)


def _legend(spread_of: str) -> tuple[list[Artist], list[str]]:
    colors = active_style().region_colors
    lines: list[Artist] = [Line2D([], [], color=colors[region], linestyle=REGION_LINES[region]) for region in REGIONS]
    bands: list[Artist] = [Patch(color=colors[spread_of], alpha=alpha, linewidth=0) for alpha in (0.45, 0.13)]
    texts = [f"mean over heads, {region} queries" for region in REGIONS]
    return lines + bands, [*texts, _BANDS[0], f"{_BANDS[1]}, {spread_of}"]


@paper_style()
def layer_curves(heads: pd.DataFrame, measures: dict[str, MeasureInfo], subtitle: str = "", region: str = "response") -> Figure | None:
    """Draw every measure by layer, two columns wide: a line and an interval per region (`layer_summary` defines them).

    Args:
        heads: a table of one model with columns as in `interp.tables.heads.HEADS`.
        measures: name to description, in the order of drawing.
        subtitle: what was run.
        region: the region whose spread over heads is drawn.

    Returns:
        The figure, or None where the table has no row of any of these measures.
    """
    infos = [info for info in measures.values() if is_measured(heads, info.name)]
    if not infos:
        return None
    title = "All measures by layer (x: layer; y: unit in each title)"
    figure, every = equal_panels(
        title,
        subtitle,
        len(infos),
        3,
        panel=(1.82, 0.68),
        margins=(0.4, 0.06, 0.3, 0.2),
        legend_room=0.38,
    )
    top = 1 - titles_inches(active_style().two, title, subtitle) / figure.get_figheight()
    figure.legend(*_legend(region), loc="upper left", bbox_to_anchor=(0, top), ncols=2, labelspacing=0.2, borderpad=0)
    for axes, info in zip(every, infos, strict=True):
        axes.set_title(heading(info, 2.05, 2), loc="left", x=-0.12, pad=5)
        few_ticks(axes, "y")
        draw_curves(axes, heads, info.name, region)
    return figure
