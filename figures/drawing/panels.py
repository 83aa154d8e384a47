"""Several maps of one quantity on one color scale, with one color bar above them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from figures.drawing.colors import Scale, color_scale, draw_color_bar, draw_map
from figures.drawing.layout import equal_panels, titles_inches
from figures.drawing.style import active_style, paper_style
from figures.drawing.text import heading, joined, text_inches, wrapped
from interp.tables.schema import MeasureInfo

BAR_ROOM = 0.4
"""Height of a color bar above panels, in inches of a paper."""

_MOST_IN_TWO_COLUMNS = 6
"""Up to this many maps are drawn two in a row, more of them four in a row."""


def bar_above(figure: Figure, image: AxesImage, scale: Scale, label: str, top: float) -> None:
    """Draw a horizontal color bar with its label on the left, `top` inches below the figure's upper edge."""
    width, height = figure.get_size_inches()
    style = active_style()
    left = 0.05 + text_inches(label, style.small) + 0.3 * style.zoom
    middle = top + 0.11 * style.zoom
    figure.text(0.05 / width, 1 - middle / height, label, va="center_baseline")
    across = min(2.4 * style.zoom, width - left - 0.3 * style.zoom)
    axes = figure.add_axes((left / width, 1 - (middle + 0.04) / height, across / width, 0.08 / height))
    draw_color_bar(figure.colorbar(image, cax=axes, orientation="horizontal", extend=scale.extend), scale)


@paper_style()
def map_panels(maps: Mapping[str, np.ndarray], info: MeasureInfo, title: str, subtitle: str = "") -> Figure:
    """Draw one map per panel on one color scale, two columns wide.

    Args:
        maps: panel title to values [layer, head]; at least one, all of one shape.
        info: the measure; the scale is that of `figures.drawing.colors.color_scale` over all maps together.
        title: of the whole figure, with the unit.
        subtitle: what was run; the scale's limits are added where they follow the data.
    """
    scale = color_scale(info, np.stack(list(maps.values())))
    columns = 2 if len(maps) <= _MOST_IN_TWO_COLUMNS else 4
    margins = (0.3, 0.12, 0.3, 0.32)
    style = active_style()
    across = style.two / columns - (margins[0] + margins[1]) * style.zoom
    layers, heads = next(iter(maps.values())).shape
    down = float(np.clip(across * heads / layers, 0.7, 1.7 if columns == 2 else 1.1))
    undefined = any(bool(np.isnan(values).any()) for values in maps.values())
    subtitle = joined(subtitle, "x: layer, y: head", scale.note(), "hatched: undefined" if undefined else "")
    figure, every = equal_panels(title, subtitle, len(maps), columns, panel=(across, down), margins=margins, legend_room=BAR_ROOM)
    image = None
    for axes, (name, values) in zip(every, maps.items(), strict=True):
        image = draw_map(axes, values, scale)
        axes.set_title(wrapped(name, across, 2), loc="left")
    assert image is not None
    bar_above(figure, image, scale, heading(info, style.two / 2, 1), titles_inches(style.two, title, subtitle))
    return figure
