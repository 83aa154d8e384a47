"""The published study's figures from stored maps: four curves over layers, and heads by variance across models."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.drawing import lines as named_lines
from figures.drawing import style
from figures.drawing.colors import colour_scale, draw_colour_bar, draw_map
from figures.drawing.columns import counts, optional, require
from interp.tables.published import CURVES
from interp.tables.schema import MeasureInfo

BANDS = 4
"""With more models than this no bands are drawn: they would hide each other."""


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


VARIANCE = MeasureInfo(
    "variance", "Variance of attention maps across models", "probability²", 0.0, None, "mean over entries of the variance"
)


@style.paper_style()
def published_curves(curves: pd.DataFrame, heads: pd.DataFrame, subtitle: str = "") -> Figure | None:
    """Entropy, self-attention focus, sparsity and cosine to the layer before, by layer; two columns wide, a line a model.

    Args:
        curves: rows of `analyses.shifts.stored_maps.published_curves` of all models: model, layer, curve, value, n_heads.
        heads: rows of `analyses.shifts.stored_maps.published_heads` of all models: model, layer, head, curve, value. Of up to four models the band
            from the 5th to the 95th percentile over a layer's heads is drawn; it is a spread and no interval.
        subtitle: what was run.

    Returns:
        The figure, or None where there is no row of any of the four.

    Raises:
        InputError: a table lacks one of these columns (n_heads may be missing).
    """
    require(curves, ("model", "layer", "curve", "value"), "curves")
    infos = [info for info in CURVES.values() if (curves["curve"] == info.name).any()]
    if not infos:
        return None
    look = named_lines.looks([str(name) for name in curves["model"]])
    banded = len(look) <= BANDS and len(heads) > 0
    if banded:
        require(heads, ("model", "layer", "head", "curve", "value"), "heads")
    title = "Attention by layer, as published"
    note = style.joined(
        f"line: mean of a layer's heads, n = {counts(optional(curves, 'n_heads'))}",
        "band: 5th to 95th percentile of its heads, a spread and no interval" if banded else "no intervals",
        "no test",
    )
    subtitle = style.joined(subtitle, note)
    figure, every, beside = named_lines.line_panels(title, subtitle, look, len(infos), 2, down=1.35, margins=(0.42, 0.08, 0.24, 0.36))
    for axes, info in zip(every, infos, strict=True):
        of_curve = curves[curves["curve"] == info.name]
        lines = {}
        for name, one in look.items():
            if banded:
                of_heads = heads[(heads["curve"] == info.name) & (heads["model"].astype(str) == name)]
                low, high = (of_heads.groupby("layer")["value"].quantile(share) for share in (0.05, 0.95))
                axes.fill_between(low.index, low, high, color=one.colour, alpha=0.1, linewidth=0)
                for edge in (low, high):  # bands of like models lie on each other; their edges still tell them apart
                    axes.plot(edge.index, edge, color=one.colour, alpha=0.6, linewidth=0.4)
            line = of_curve[of_curve["model"].astype(str) == name].set_index("layer")["value"].sort_index()
            axes.plot(line.index, line, color=one.colour, linestyle=one.dash, marker="o" if len(line) == 1 else "", markersize=3)
            lines[name] = one, line
        layers = int(curves["layer"].max()) + 1
        axes.set_xlim(-0.5, layers - 0.5)
        axes.set_xticks(style.count_ticks(style.axes_inches(axes)[0], layers))
        axes.set_xlabel("layer")
        axes.set_title(style.heading(info, style.look().two / 2 - 0.5, 1), loc="left")
        style.few_y_ticks(axes)
        style.open_axes(axes)
        if beside:
            named_lines.name_ends(axes, lines)
    return figure


def _ranked(variance: pd.DataFrame) -> pd.DataFrame:
    require(variance, ("layer", "head", "variance"), "variance")
    return variance[variance["variance"].notna()].sort_values("variance", ascending=False, kind="stable")


def _unit(largest: float) -> tuple[float, str]:
    """A power of a thousand that makes the largest variance a number from 1 to 1000, and the unit that then holds."""
    power = 3 * math.floor(math.log10(largest) / 3) if largest > 0 else 0
    if power == 0:
        return 1.0, VARIANCE.unit
    return 10.0**-power, f"10{str(power).translate(SUPERSCRIPTS)} {VARIANCE.unit}"


def _models(variance: pd.DataFrame) -> str:
    return f"n = {counts(optional(variance, 'n_models'))} models, no test"


@style.paper_style()
def variance_heads(variance: pd.DataFrame, subtitle: str = "", count: int = 20) -> Figure | None:
    """The heads whose maps differ most across models, a bar each, one column wide.

    Args:
        variance: rows of `analyses.shifts.stored_maps.variance_ranking`: layer, head, variance (probability squared), n_models (may be missing).
        subtitle: what was run.
        count: heads to draw, at most.

    Returns:
        The figure, or None where no head has a variance.

    Raises:
        InputError: the table lacks one of these columns.
    """
    ranked = _ranked(variance)
    if ranked.empty:
        return None
    at = style.look()
    width, row = at.column("one"), 0.13 * at.zoom
    factor, unit = _unit(float(ranked["variance"].iloc[0]))
    title = f"{VARIANCE.title} ({unit})"

    def told(shown: int) -> str:
        return style.joined(subtitle, f"the largest {shown} of {len(ranked)} heads", _models(variance))

    bottom = 0.34 * at.zoom
    room = style.titles_inches(width, title, told(len(ranked))) + 0.05 + bottom
    fitting = count if at.tallest is None else max(5, int((at.tallest - room) / row))
    shown = ranked.head(min(count, fitting))
    values = shown["variance"].to_numpy(float) * factor
    down = max(0.55 * at.zoom, row * len(shown) + 0.06)  # room for the label along y
    figure = style.new_figure(width, room + down, constrained=False)
    style.set_titles(figure, title, told(len(shown)))
    height = figure.get_figheight()
    across = width - 1.0 * at.zoom
    axes = figure.add_axes((0.5 * at.zoom / width, bottom / height, across / width, down / height))
    rows = np.arange(len(shown))
    axes.barh(rows, values, height=0.7, color=at.blue, linewidth=0)
    for row, value in zip(rows, values, strict=True):
        axes.annotate(style.tick_text(float(value)), (float(value), float(row)), (2, 0), textcoords="offset points", va="center_baseline")
    axes.set_yticks(rows, [f"{layer}.{head}" for layer, head in zip(shown["layer"], shown["head"], strict=True)])
    axes.set_ylim(len(shown) - 0.45, -0.55)
    axes.set_xlim(0, float(values.max()) or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: style.tick_text(value))
    axes.set_ylabel("layer.head")
    axes.set_xlabel(unit)
    style.open_axes(axes)
    return figure


@style.paper_style()
def variance_map(variance: pd.DataFrame, subtitle: str = "") -> Figure | None:
    """Variance across models of every head's map, layers along x and heads along y, one column wide.

    Args:
        variance: as for `variance_heads`.
        subtitle: what was run; the scale's limits, which follow the data, are added.

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
    factor, unit = _unit(float(ranked["variance"].max()))
    values = values * factor
    scale = colour_scale(replace(VARIANCE, unit="share"), values)  # of a share: square-root colours, as few heads have most of it
    title = f"{VARIANCE.title} ({unit})"
    hatched = "hatched: undefined" if np.isnan(values).any() else ""
    subtitle = style.joined(subtitle, f"{len(ranked)} heads", _models(variance), scale.note(), hatched)
    at = style.look()
    width = at.column("one")
    room = style.titles_inches(width, title, subtitle) + 0.35 * at.zoom
    figure = style.new_figure(
        width, room + at.height(float(np.clip((width - 0.75 * at.zoom) * np.divide(*values.shape[::-1]), 1.15, 2.4)), room)
    )
    axes = figure.add_subplot()
    style.set_titles(figure, title, subtitle)
    image = draw_map(axes, values, scale)
    axes.set_xlabel("layer")
    axes.set_ylabel("head")
    bar = figure.colorbar(image, ax=axes, extend=scale.extend, aspect=28, pad=0.02)
    draw_colour_bar(bar, scale)
    bar.set_label(unit)
    return figure
