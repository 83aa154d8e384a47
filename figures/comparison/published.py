"""The published study's figures from stored maps: four curves over layers, and heads by variance across models."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.drawing.colors import color_scale, draw_map, map_bar
from figures.drawing.columns import count_text, optional_column, require_columns
from figures.drawing.layout import axes_inches, count_ticks, few_ticks, map_height, open_axes, set_titles, titles_inches
from figures.drawing.lines import line_panels, line_styles, name_line_ends
from figures.drawing.style import active_style, new_figure, paper_style
from figures.drawing.text import heading, joined, tick_text
from interp.tables.published import CURVES
from interp.tables.schema import MeasureInfo

_MOST_BANDS = 4
"""With more models than this no bands are drawn, because they would hide each other."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

_VARIANCE = MeasureInfo(
    "variance", "Variance of attention maps across models", "probability²", 0.0, None, "mean over entries of the variance"
)


@paper_style()
def curves_by_layer(curves: pd.DataFrame, heads: pd.DataFrame, subtitle: str = "") -> Figure | None:
    """Draw entropy, self-attention focus, sparsity and cosine to the previous layer by layer; two columns wide, one line per model.

    Args:
        curves: the curves of all models: model, layer, curve, value, n_heads (optional).
        heads: the values of all heads: model, layer, head, curve, value. For up to four models the band from the 5th to the 95th
            percentile over a layer's heads is drawn; it is a spread, not an interval.
        subtitle: what was run.

    Returns:
        The figure, or None where there is no row of any of the four curves.

    Raises:
        InputError: a table lacks one of these columns.
    """
    require_columns(curves, ("model", "layer", "curve", "value"), "curves")
    infos = [info for info in CURVES.values() if (curves["curve"] == info.name).any()]
    if not infos:
        return None
    styles = line_styles([str(name) for name in curves["model"]])
    banded = len(styles) <= _MOST_BANDS and len(heads) > 0
    if banded:
        require_columns(heads, ("model", "layer", "head", "curve", "value"), "heads")
    title = "Attention by layer, as published (unit in each title)"
    subtitle = joined(
        subtitle,
        f"line: mean of a layer's heads, n = {count_text(optional_column(curves, 'n_heads'))}",
        "band: 5th to 95th percentile of its heads, a spread, not an interval" if banded else "no intervals",
        "no test",
    )
    figure, every, beside = line_panels(title, subtitle, styles, len(infos), 2, down=1.35, margins=(0.42, 0.08, 0.24, 0.36))
    for axes, info in zip(every, infos, strict=True):
        of_curve = curves[curves["curve"] == info.name]
        lines = {}
        for name, line in styles.items():
            if banded:
                of_heads = heads[(heads["curve"] == info.name) & (heads["model"].astype(str) == name)]
                low, high = (of_heads.groupby("layer")["value"].quantile(share) for share in (0.05, 0.95))
                axes.fill_between(low.index, low, high, color=line.color, alpha=0.1, linewidth=0)
                for edge in (low, high):  # bands of similar models overlap; their edges can still be told apart
                    axes.plot(edge.index, edge, color=line.color, alpha=0.6, linewidth=0.4)
            values = of_curve[of_curve["model"].astype(str) == name].set_index("layer")["value"].sort_index()
            marker = "o" if len(values) == 1 else ""
            axes.plot(values.index, values, color=line.color, linestyle=line.dash, marker=marker, markersize=3)
            lines[name] = line, values
        layers = int(curves["layer"].max()) + 1
        axes.set_xlim(-0.5, layers - 0.5)
        axes.set_xticks(count_ticks(axes_inches(axes)[0], layers))
        axes.set_xlabel("layer")
        axes.set_title(heading(info, active_style().two / 2 - 0.5, 1), loc="left")
        few_ticks(axes, "y")
        open_axes(axes)
        if beside:
            name_line_ends(axes, lines)
    return figure


def _ranked(variance: pd.DataFrame) -> pd.DataFrame:
    require_columns(variance, ("layer", "head", "variance"), "variance")
    return variance[variance["variance"].notna()].sort_values("variance", ascending=False, kind="stable")


def _scaled_unit(largest: float) -> tuple[float, str]:
    """Return a power of a thousand that scales the largest variance to a number from 1 to 1000, and the resulting unit."""
    power = 3 * math.floor(math.log10(largest) / 3) if largest > 0 else 0
    if power == 0:
        return 1.0, _VARIANCE.unit
    return 10.0**-power, f"10{str(power).translate(_SUPERSCRIPTS)} {_VARIANCE.unit}"


def _about_models(variance: pd.DataFrame) -> str:
    return f"n = {count_text(optional_column(variance, 'n_models'))} models, no test"


@paper_style()
def variance_heads(variance: pd.DataFrame, subtitle: str = "", count: int = 20) -> Figure | None:
    """Draw the heads whose maps differ most across models, one bar each, one column wide.

    Args:
        variance: one row per head: layer, head, variance (probability squared), n_models (optional).
        subtitle: what was run.
        count: largest number of heads to draw.

    Returns:
        The figure, or None where no head has a variance.

    Raises:
        InputError: the table lacks one of these columns.
    """
    ranked = _ranked(variance)
    if ranked.empty:
        return None
    style = active_style()
    width, pitch = style.column("one"), 0.13 * style.zoom
    factor, unit = _scaled_unit(float(ranked["variance"].iloc[0]))
    title = f"{_VARIANCE.title} ({unit})"

    def subtitle_for(shown: int) -> str:
        return joined(subtitle, f"the largest {shown} of {len(ranked)} heads", _about_models(variance))

    bottom = 0.34 * style.zoom
    room = titles_inches(width, title, subtitle_for(len(ranked))) + 0.05 + bottom
    fitting = count if style.tallest is None else max(5, int((style.tallest - room) / pitch))
    shown = ranked.head(min(count, fitting))
    values = shown["variance"].to_numpy(float) * factor
    down = max(0.55 * style.zoom, pitch * len(shown) + 0.06)  # room for the label along y
    figure = new_figure(width, room + down, constrained=False)
    set_titles(figure, title, subtitle_for(len(shown)))
    height = figure.get_figheight()
    across = width - 1.0 * style.zoom
    axes = figure.add_axes((0.5 * style.zoom / width, bottom / height, across / width, down / height))
    rows = np.arange(len(shown))
    axes.barh(rows, values, height=0.7, color=style.blue, linewidth=0)
    for row, value in zip(rows, values, strict=True):
        axes.annotate(tick_text(float(value)), (float(value), float(row)), (2, 0), textcoords="offset points", va="center_baseline")
    axes.set_yticks(rows, [f"{layer}.{head}" for layer, head in zip(shown["layer"], shown["head"], strict=True)])
    axes.set_ylim(len(shown) - 0.45, -0.55)
    axes.set_xlim(0, float(values.max()) or 1.0)
    few_ticks(axes, "x")
    axes.set_ylabel("layer.head")
    axes.set_xlabel(unit)
    open_axes(axes)
    return figure


@paper_style()
def variance_map(variance: pd.DataFrame, subtitle: str = "") -> Figure | None:
    """Draw the variance across models of every head's map, layers along x and heads along y, one column wide.

    Args:
        variance: as for `variance_heads`.
        subtitle: what was run; the limits of the color scale, which follow the data, are added.

    Returns:
        The figure, or None where no head has a variance.

    Raises:
        InputError: the table lacks a column.
    """
    ranked = _ranked(variance)
    if ranked.empty:
        return None
    values = np.full((int(variance["layer"].max()) + 1, int(variance["head"].max()) + 1), np.nan)
    values[ranked["layer"].to_numpy(int), ranked["head"].to_numpy(int)] = ranked["variance"].to_numpy(float)
    factor, unit = _scaled_unit(float(ranked["variance"].max()))
    values = values * factor
    scale = color_scale(replace(_VARIANCE, unit="share"), values)  # a share has square-root colors: a few heads have most of the variance
    title = f"{_VARIANCE.title} ({unit})"
    hatched = "hatched: undefined" if np.isnan(values).any() else ""
    subtitle = joined(subtitle, f"{len(ranked)} heads", _about_models(variance), scale.note(), hatched)
    style = active_style()
    width = style.column("one")
    room = titles_inches(width, title, subtitle) + 0.35 * style.zoom
    figure = new_figure(width, room + map_height(width, values.shape, room))
    axes = figure.add_subplot()
    set_titles(figure, title, subtitle)
    map_bar(figure, axes, draw_map(axes, values, scale), scale, unit)
    return figure
