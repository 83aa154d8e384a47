"""Means over a layer's heads, layer by layer, one line a region."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures.drawing import style
from figures.drawing.grid import grid, grid_shape, is_measured
from interp.tables.schema import REGIONS, MeasureInfo

LEGEND = ("95 % interval of the mean, at most this wide", "5th to 95th percentile of heads")


def layer_summary(heads: pd.DataFrame, measure: str, region: str) -> pd.DataFrame:
    """What a layer's heads do together.

    The head table has an interval for each head, over examples, but not how heads vary together over examples. So the
    mean's own interval cannot be had from it; the mean of the heads' interval ends can, and it is an upper bound: a
    mean's standard error is at most the mean of the standard errors, and equals it where all heads vary as one.

    Args:
        heads: a table of one model, columns as in `interp.tables.heads.HEADS`.
        measure: as in the `measure` column.
        region: one of `interp.tables.schema.REGIONS`.

    Returns:
        One row a layer, all in the measure's unit: `mean` over the heads that are defined; `mean_low` and `mean_high`,
        the mean of `ci_low` and of `ci_high` (95 % interval of the mean, upper bound of its width); `p05` and `p95`,
        percentiles over heads, which are a spread and no interval. NaN where no head of the layer is defined.
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
    """Draw the mean and its interval of every region, and the spread over heads of one region, on axes."""
    for region in REGIONS:
        summary = layer_summary(heads, measure, region)
        colour = style.look().region_colours[region]
        layers = summary.index.to_numpy()
        if region == spread_of:
            axes.fill_between(layers, summary["p05"], summary["p95"], color=colour, alpha=0.13, linewidth=0, zorder=1)
        axes.fill_between(layers, summary["mean_low"], summary["mean_high"], color=colour, alpha=0.35, linewidth=0, zorder=2)
        axes.plot(layers, summary["mean"], color=colour, linestyle=style.REGION_LINES[region], zorder=3)
    layers = grid_shape(heads)[0]
    axes.set_xlim(-0.5, layers - 0.5)
    axes.set_xticks(style.count_ticks(style.axes_inches(axes)[0], layers))
    style.open_axes(axes)


def _legend(spread_of: str) -> tuple[list[Artist], list[str]]:
    colours = style.look().region_colours
    lines: list[Artist] = [Line2D([], [], color=colours[region], linestyle=style.REGION_LINES[region]) for region in REGIONS]
    bands: list[Artist] = [Patch(color=colours[spread_of], alpha=alpha, linewidth=0) for alpha in (0.45, 0.13)]
    texts = [f"mean of heads, {region} queries" for region in REGIONS]
    return lines + bands, [*texts, LEGEND[0], f"{LEGEND[1]}, {spread_of}"]


@style.paper_style()
def layer_curve(heads: pd.DataFrame, info: MeasureInfo, subtitle: str = "", region: str = "response") -> Figure | None:
    """One measure by layer, one column wide: a line and interval a region (see `layer_summary` for what they are).

    Args:
        heads: a table of one model, columns as in `interp.tables.heads.HEADS`.
        info: the measure.
        subtitle: what was run.
        region: the region whose spread over heads is drawn.

    Returns:
        The figure, or None where the table has no row of the measure.
    """
    if not is_measured(heads, info.name):
        return None
    at = style.look()
    width = at.column("one")
    title = style.heading(info, width - 0.1, 2, size=at.title)
    room = style.titles_inches(width, title, subtitle)
    figure = style.new_figure(width, at.height(2.5, room, least=2.0) + room)
    axes = figure.add_subplot()
    style.set_titles(figure, title, subtitle)
    draw_curves(axes, heads, info.name, region)
    axes.set_xlabel("layer")
    axes.set_ylabel(style.unit_label(info))
    figure.legend(*_legend(region), loc="outside lower left", labelspacing=0.2)
    return figure


@style.paper_style()
def layer_curves(heads: pd.DataFrame, measures: dict[str, MeasureInfo], subtitle: str = "", region: str = "response") -> Figure | None:
    """Every measure by layer, two columns wide: a line and interval a region (see `layer_summary` for what they are).

    Args:
        heads: a table of one model, columns as in `interp.tables.heads.HEADS`.
        measures: name to description, in the order of drawing.
        subtitle: what was run.
        region: the region whose spread over heads is drawn.

    Returns:
        The figure, or None where the table has no row of any of these measures.
    """
    infos = [info for info in measures.values() if is_measured(heads, info.name)]
    if not infos:
        return None
    title = "Every measure by layer (x: layer)"
    figure, every = style.panels(
        title,
        subtitle,
        len(infos),
        3,
        panel=(1.82, 0.68),
        margins=(0.4, 0.06, 0.3, 0.2),
        legend_room=0.38,
    )
    top = 1 - style.titles_inches(style.look().two, title, subtitle) / figure.get_figheight()
    figure.legend(*_legend(region), loc="upper left", bbox_to_anchor=(0, top), ncols=2, labelspacing=0.2, borderpad=0)
    for axes, info in zip(every, infos, strict=True):
        axes.set_title(style.heading(info, 2.05, 2), loc="left", x=-0.12, pad=5)
        style.few_y_ticks(axes)
        draw_curves(axes, heads, info.name, region)
    return figure
