"""Color scales: how values become colors, and maps and color bars that use them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from figures.drawing.layout import axes_inches, count_ticks
from figures.drawing.style import active_style
from figures.drawing.text import joined, tick_text
from interp.tables.schema import MeasureInfo

_CENTERS = {"numeric_z": 0.0, "numeric_enrichment": 1.0}
"""Measures with a neutral value: a difference from 0, a ratio to 1."""

_ROOT_UNITS = ("probability", "share")
"""Units with a square-root color scale: most heads give a token set a few percent, which linear colors hide."""


@dataclass(frozen=True)
class Scale:
    """How values become colors.

    Attributes:
        norm: limits and curve of the colors.
        colors: name of the color map.
        ticks: values marked on the color bar, the first and the last at its limits.
        tick_labels: their texts.
        extend: "neither", "min", "max" or "both": on which side values beyond the limits get the color of the end.
        curve: "linear", "square-root" or "log".
        from_data: whether a limit follows this table's values, so that another model's map has another scale.
    """

    norm: Normalize
    colors: str
    ticks: tuple[float, ...]
    tick_labels: tuple[str, ...]
    extend: str
    curve: str
    from_data: bool

    def note(self) -> str:
        """Return what a reader must know about the colors; empty for a linear scale with fixed limits."""
        curve = "" if self.curve == "linear" else f"{self.curve} color scale"
        limits = f"limits from the data: {self.tick_labels[0]} to {self.tick_labels[-1]}"
        return joined(curve, limits if self.from_data else "")


def color_scale(info: MeasureInfo, values: np.ndarray) -> Scale:
    """Return the color scale of a measure: fixed by its `low` and `high`, so that maps of two models can be compared.

    Where `low` or `high` is None that end follows the data, and the figure reports both limits.

    - A measure around 0 (`numeric_z`, or one whose values can be negative) has diverging colors, symmetric about 0.
    - `numeric_enrichment` has diverging colors on a log scale from 1/b to b with 1 in the middle; b is `high`, or the
      smallest power of two that is not below the largest value (at least 2).
    - Probabilities and shares have a square-root scale. All other measures have a linear scale.

    Args:
        info: the measure.
        values: its values in the measure's unit, any shape; NaN is ignored.
    """
    finite = values[np.isfinite(values)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    signed = (info.low if info.low is not None else least) < 0
    center = _CENTERS.get(info.name, 0.0 if signed else None)
    if center == 1.0:
        scale = _ratio_scale(info, most)
    elif center == 0.0:
        ends = [abs(end) for end in (info.low, info.high) if end]
        scale = symmetric_scale(max(ends) if ends else max(abs(least), abs(most), 1e-12), from_data=not ends)
    else:
        scale = _rising_scale(info, least, most)
    low, high = float(scale.norm.vmin or 0.0), float(scale.norm.vmax or 0.0)
    slack = 1e-9 * max(1.0, abs(high))
    below, above = least < low - slack, most > high + slack
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]
    return replace(scale, extend=extend)


def symmetric_scale(high: float, *, from_data: bool) -> Scale:
    """Return linear diverging colors from -high to high."""
    ticks = (-high, -high / 2, 0.0, high / 2, high)
    return _scale(Normalize(-high, high), active_style().diverging_colors, ticks, "linear", from_data)


def _ratio_scale(info: MeasureInfo, most: float) -> Scale:
    """Return logarithmic diverging colors around 1."""
    exponent = max(1, int(np.ceil(np.log2(info.high or max(most, 2.0)) - 1e-9)))
    powers = sorted({-exponent, -(exponent // 2), 0, exponent // 2, exponent})
    ticks = tuple(2.0**power for power in powers)
    return _scale(LogNorm(2.0**-exponent, 2.0**exponent), active_style().diverging_colors, ticks, "log", info.high is None)


def _rising_scale(info: MeasureInfo, least: float, most: float) -> Scale:
    """Return colors that rise from the smallest to the largest value."""
    low = info.low if info.low is not None else least
    high = info.high if info.high is not None else most
    if high <= low:  # every value is the same
        high = low + 1.0
    colors, from_data = active_style().map_colors, info.low is None or info.high is None
    if info.unit in _ROOT_UNITS and low == 0:
        ticks = tuple(high * share for share in (0.0, 0.04, 0.25, 1.0))
        return _scale(PowerNorm(0.5, low, high), colors, ticks, "square-root", from_data)
    return _scale(Normalize(low, high), colors, tuple(np.linspace(low, high, 5).tolist()), "linear", from_data)


def _scale(norm: Normalize, colors: str, ticks: tuple[float, ...], curve: str, from_data: bool) -> Scale:
    labels = tuple(str(Fraction(tick)) if curve == "log" else tick_text(tick) for tick in ticks)
    return Scale(norm, colors, ticks, labels, "neither", curve, from_data)


def round_ticks(scale: Scale) -> Scale:
    """Return the scale with round numbers on its bar, within its limits."""
    low, high = float(scale.norm.vmin or 0.0), float(scale.norm.vmax or 0.0)
    ticks = tuple(float(tick) for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high)
    return replace(scale, ticks=ticks, tick_labels=tuple(map(tick_text, ticks)))


def draw_map(axes: Axes, values: np.ndarray, scale: Scale) -> AxesImage:
    """Draw values [layer, head] with layers along x; a cell that is undefined (NaN) is hatched."""
    style = active_style()
    low, high = scale.norm.vmin, scale.norm.vmax
    axes.set_facecolor(style.undefined_face)
    axes.patch.set_hatch("//////")
    axes.patch.set_edgecolor(style.undefined_hatch)
    axes.patch.set_linewidth(0)
    layers, heads = values.shape
    image = axes.imshow(
        np.ma.masked_invalid(np.clip(values.T, low, high)),  # a log scale would drop the zeros below its lower limit
        norm=scale.norm,
        cmap=scale.colors,
        aspect="auto",
        interpolation="nearest",  # cells keep sharp edges in every viewer
    )
    width, height = axes_inches(axes)
    axes.set_xticks(count_ticks(width, layers))
    axes.set_yticks(count_ticks(height, heads, 0.14))
    return image


def undefined_patch() -> Patch:
    """Return the hatched patch that a legend shows for undefined cells."""
    style = active_style()
    return Patch(facecolor=style.undefined_face, edgecolor=style.undefined_hatch, hatch="//////", linewidth=0)


def draw_color_bar(bar: Colorbar, scale: Scale) -> None:
    """Set ticks and outline of a color bar."""
    bar.set_ticks(list(scale.ticks), labels=list(scale.tick_labels))
    bar.minorticks_off()
    bar.outline.set_linewidth(0.5)


def map_bar(figure: Figure, axes: Axes, image: AxesImage, scale: Scale, unit: str) -> None:
    """Label the axes of a map of all heads, and draw its color bar on the right."""
    axes.set_xlabel("layer")
    axes.set_ylabel("head")
    bar = figure.colorbar(image, ax=axes, extend=scale.extend, aspect=28, pad=0.02)
    draw_color_bar(bar, scale)
    bar.set_label(unit)
