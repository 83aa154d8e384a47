"""Maps of differences in which only significant heads have a color."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.artist import Artist
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from figures.drawing.colors import Scale, draw_map, map_bar, symmetric_scale, undefined_patch
from figures.drawing.layout import map_height, set_titles, titles_inches
from figures.drawing.style import active_style, new_figure
from figures.drawing.text import heading, joined, unit_label
from interp.tables.schema import MeasureInfo

FALSE_DISCOVERY_RATE = 0.05
"""A head whose q is at most this is called significant."""


def difference_scale(values: np.ndarray, limit: float | None = None) -> Scale:
    """Return diverging colors, symmetric about 0, for differences of any shape; NaN is ignored.

    Args:
        values: differences in the measure's unit.
        limit: end of the scale, so that maps of several models can be compared; None: the largest size among `values`.
    """
    finite = np.abs(values[np.isfinite(values)])
    most = float(finite.max()) if finite.size else 0.0
    high = most if limit is None else limit
    high = high if high > 0 else 1.0  # nothing differs: any scale shows it
    scale = symmetric_scale(high, from_data=limit is None)
    return replace(scale, extend="both" if most > high * (1 + 1e-9) else "neither")


def significance_map(
    values: np.ndarray, significant: np.ndarray, info: MeasureInfo, about: tuple[str, str], limit: float | None = None
) -> Figure:
    """Draw the difference of every head, one column wide: significant heads in color, the others in gray, undefined ones hatched.

    Args:
        values: differences [layer, head], NaN where undefined.
        significant: whether q is at most `FALSE_DISCOVERY_RATE`, [layer, head].
        info: gives title and unit.
        about: what is compared and tested, and what was run; the number of significant heads is written between them.
        limit: end of the color scale; None: the largest difference here.
    """
    style = active_style()
    width = style.column("one")
    quiet = np.isfinite(values) & ~significant
    undefined = bool(np.isnan(values).any())
    scale = difference_scale(values, limit)
    title = heading(info, width - 0.1, 2, size=style.title)
    rate = f"{FALSE_DISCOVERY_RATE:g}"
    counted = f"{int(significant.sum())} of {int(np.isfinite(values).sum())} heads have q ≤ {rate}"
    subtitle = joined(about[0], f"gray: q > {rate}", counted, about[1])
    room = titles_inches(width, title, subtitle) + (0.35 + 0.15 * (bool(quiet.any()) + undefined)) * style.zoom
    figure = new_figure(width, map_height(width, values.shape, room) + room)
    axes = figure.add_subplot()
    set_titles(figure, title, subtitle)
    image = draw_map(axes, np.where(significant, values, np.nan), scale)
    grays = LinearSegmentedColormap.from_list("quiet", style.quiet)
    axes.imshow(
        np.ma.masked_where(~quiet.T, np.abs(values.T)),
        norm=Normalize(0, scale.norm.vmax),
        cmap=grays,
        aspect="auto",
        interpolation="nearest",
    )
    map_bar(figure, axes, image, scale, unit_label(info))
    marks: list[Artist] = []
    texts: list[str] = []
    if quiet.any():
        marks.append(Patch(facecolor=grays(0.5), linewidth=0))
        texts.append(f"q > {rate}; {'lighter' if style.name == 'dark' else 'darker'}: larger difference")
    if undefined:
        marks.append(undefined_patch())
        texts.append("undefined: nothing to measure")
    if marks:
        figure.legend(marks, texts, loc="outside lower left", labelspacing=0.2)
    return figure
