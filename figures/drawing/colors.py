"""TODO_DOC figures/drawing/colors.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from figures.drawing import style
from interp.tables.schema import MeasureInfo


def round_ticks(scale: Scale) -> Scale:
    """The scale with round numbers on its bar, within its limits."""
    low, high = float(scale.norm.vmin or 0.0), float(scale.norm.vmax or 0.0)
    ticks = tuple(float(tick) for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high)
    return replace(scale, ticks=ticks, tick_labels=tuple(map(style.tick_text, ticks)))


CENTRES = {"numeric_z": 0.0, "numeric_enrichment": 1.0}
"""Measures that are read from a neutral value: a difference from 0, a ratio from 1."""


ROOT_UNITS = ("probability", "share")
"""Units whose colours follow the square root: most heads give a token set a few percent, which linear colours hide."""


@dataclass(frozen=True)
class Scale:
    """How values become colours.

    Attributes:
        norm: limits and curve of the colours.
        colours: name of the colour map.
        ticks: values marked on the colour bar, the first and the last at its limits.
        tick_labels: their texts.
        extend: "neither", "min", "max" or "both": where values lie beyond the limits and take the end's colour.
        curve: "linear", "square-root" or "log".
        from_data: whether a limit follows this table's values, so that another model's map differs.
    """

    norm: Normalize
    colours: str
    ticks: tuple[float, ...]
    tick_labels: tuple[str, ...]
    extend: str
    curve: str
    from_data: bool

    def note(self) -> str:
        """What a reader must know of the colours; empty for a linear scale with fixed limits."""
        curve = "" if self.curve == "linear" else f"{self.curve} colours"
        limits = f"limits from the data: {self.tick_labels[0]} to {self.tick_labels[-1]}"
        return style.joined(curve, limits if self.from_data else "")


def colour_scale(info: MeasureInfo, values: np.ndarray) -> Scale:
    """The colour scale of a measure: fixed by its `low` and `high`, so that maps of two models compare.

    Where `low` or `high` is None that end follows the data, and the figure says so with both limits.

    - A measure around 0 (`numeric_z`, or one whose values can be negative) has diverging colours, symmetric about 0.
    - `numeric_enrichment` has diverging colours on a log scale from 1/b to b with 1 in the middle; b is `high`, or the
      power of two at or above the largest value (at least 2).
    - Probabilities and shares have a square-root scale. All else is linear.

    Args:
        info: the measure.
        values: its values in the measure's unit, any shape; NaN is ignored.
    """
    finite = values[np.isfinite(values)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    signed = (info.low if info.low is not None else least) < 0
    centre = CENTRES.get(info.name, 0.0 if signed else None)
    from_data = info.low is None or info.high is None
    curve, colours = "linear", style.look().diverging_colours
    if centre == 1.0:
        exponent = max(1, int(np.ceil(np.log2(info.high or max(most, 2.0)) - 1e-9)))
        low, high = 2.0**-exponent, 2.0**exponent
        from_data, curve = info.high is None, "log"
        powers = sorted({-exponent, -(exponent // 2), 0, exponent // 2, exponent})
        ticks = tuple(2.0**power for power in powers)
    elif centre == 0.0:
        ends = [abs(end) for end in (info.low, info.high) if end]
        high = max(ends) if ends else max(abs(least), abs(most), 1e-12)
        low, from_data = -high, not ends
        ticks = (low, low / 2, 0.0, high / 2, high)
    else:
        colours = style.look().map_colours
        low = info.low if info.low is not None else least
        high = info.high if info.high is not None else most
        if high <= low:  # every value is the same
            high = low + 1.0
        if info.unit in ROOT_UNITS and low == 0:
            curve = "square-root"
            ticks = tuple(high * share for share in (0.0, 0.04, 0.25, 1.0))
        else:
            ticks = tuple(np.linspace(low, high, 5).tolist())
    if curve == "log":
        norm: Normalize = LogNorm(low, high)
    elif curve == "square-root":
        norm = PowerNorm(0.5, low, high)
    else:
        norm = Normalize(low, high)
    texts = tuple(str(Fraction(tick)) if curve == "log" else style.tick_text(tick) for tick in ticks)
    slack = 1e-9 * max(1.0, abs(high))
    below, above = least < low - slack, most > high + slack
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]
    return Scale(norm, colours, ticks, texts, extend, curve, from_data)


def draw_map(axes: Axes, values: np.ndarray, scale: Scale) -> AxesImage:
    """Draw values [layer, head] on axes with layers along x; a hatched cell is undefined (NaN)."""
    low, high = scale.norm.vmin, scale.norm.vmax
    axes.set_facecolor(style.look().undefined_face)
    axes.patch.set_hatch("//////")
    axes.patch.set_edgecolor(style.look().undefined_hatch)
    axes.patch.set_linewidth(0)
    layers, heads = values.shape
    image = axes.imshow(
        np.ma.masked_invalid(np.clip(values.T, low, high)),  # a log scale would drop the zeros below its lower limit
        norm=scale.norm,
        cmap=scale.colours,
        aspect="auto",
        interpolation="nearest",  # cells keep sharp edges in every viewer
    )
    width, height = style.axes_inches(axes)
    axes.set_xticks(style.count_ticks(width, layers))
    axes.set_yticks(style.count_ticks(height, heads, 0.14))
    return image


def draw_colour_bar(bar: Colorbar, scale: Scale) -> None:
    """Ticks and outline of a colour bar."""
    bar.set_ticks(list(scale.ticks), labels=list(scale.tick_labels))
    bar.minorticks_off()
    bar.outline.set_linewidth(0.5)
