"""Several maps of one quantity on one scale, with one colour bar above them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from figures.drawing import style
from figures.drawing.colors import Scale, colour_scale, draw_colour_bar, draw_map
from interp.tables.schema import MeasureInfo

BAR_ROOM = 0.4
"""Room of the colour bar, inches of a paper."""


FEW = 6
"""Up to this many maps are drawn two abreast, more four."""


HATCHED = "hatched: undefined"


def bar_above(figure: Figure, image: AxesImage, scale: Scale, label: str, top: float) -> None:
    """A flat colour bar with its label on the left, its room's upper edge `top` inches below the figure's."""
    width, height = figure.get_size_inches()
    at = style.look()
    left = 0.05 + style.text_inches(label, at.small) + 0.3 * at.zoom
    middle = top + 0.11 * at.zoom
    figure.text(0.05 / width, 1 - middle / height, label, va="center_baseline")
    across = min(2.4 * at.zoom, width - left - 0.3 * at.zoom)
    axes = figure.add_axes((left / width, 1 - (middle + 0.04) / height, across / width, 0.08 / height))
    draw_colour_bar(figure.colorbar(image, cax=axes, orientation="horizontal", extend=scale.extend), scale)


@style.paper_style()
def map_panels(maps: Mapping[str, np.ndarray], info: MeasureInfo, title: str, subtitle: str = "") -> Figure:
    """One map a panel, two columns wide; scales are those of `figures.drawing.colors.colour_scale` over all maps together.

    Args:
        maps: panel title to values [layer, head], at least one, all of one shape.
        info: what is drawn.
        title: of the whole figure, with the unit.
        subtitle: what was run; the scale's limits are added where they follow the data.
    """
    scale = colour_scale(info, np.stack(list(maps.values())))
    columns = 2 if len(maps) <= FEW else 4
    margins = (0.3, 0.12, 0.3, 0.32)
    at = style.look()
    across = at.two / columns - (margins[0] + margins[1]) * at.zoom
    layers, heads = next(iter(maps.values())).shape
    down = float(np.clip(across * heads / layers, 0.7, 1.7 if columns == 2 else 1.1))
    undefined = any(bool(np.isnan(values).any()) for values in maps.values())
    subtitle = style.joined(subtitle, "x: layer, y: head", scale.note(), HATCHED if undefined else "")
    figure, every = style.panels(title, subtitle, len(maps), columns, panel=(across, down), margins=margins, legend_room=BAR_ROOM)
    image = None
    for axes, (name, values) in zip(every, maps.items(), strict=True):
        image = draw_map(axes, values, scale)
        axes.set_title(style.wrapped(name, across, 2), loc="left")
    assert image is not None
    bar_above(figure, image, scale, style.heading(info, at.two / 2, 1), style.titles_inches(at.two, title, subtitle))
    return figure
