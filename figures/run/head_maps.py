"""Maps of one value per head, layers along x and heads along y; and the overview of all measures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.drawing.colors import color_scale, draw_color_bar, draw_map, map_bar, undefined_patch
from figures.drawing.grid import grid, is_measured
from figures.drawing.layout import equal_panels, map_height, set_titles, titles_inches
from figures.drawing.style import active_style, new_figure, paper_style
from figures.drawing.text import heading, joined, unit_label
from interp.tables.schema import MeasureInfo


@paper_style()
def head_map(heads: pd.DataFrame, info: MeasureInfo, subtitle: str = "", region: str = "response") -> Figure | None:
    """Draw one measure over all heads, one column wide.

    Args:
        heads: a table of one model with columns as in `interp.tables.heads.HEADS`.
        info: the measure.
        subtitle: what was run; the region is added.
        region: where the queries are.

    Returns:
        The figure, or None where the table has no row of the measure.
    """
    if not is_measured(heads, info.name):
        return None
    values = grid(heads, info.name, region)
    scale = color_scale(info, values)
    style = active_style()
    width = style.column("one")
    title = heading(info, width - 0.1, 2, size=style.title)
    subtitle = joined(subtitle, f"{region} queries", scale.note())
    undefined = bool(np.isnan(values).any())
    room = titles_inches(width, title, subtitle) + (0.35 + 0.2 * undefined) * style.zoom
    figure = new_figure(width, map_height(width, values.shape, room) + room)
    axes = figure.add_subplot()
    set_titles(figure, title, subtitle)
    image = draw_map(axes, values, scale)
    map_bar(figure, axes, image, scale, unit_label(info))
    if undefined:
        figure.legend([undefined_patch()], ["undefined: nothing to measure"], loc="outside lower left")
    return figure


@paper_style()
def overview(heads: pd.DataFrame, measures: dict[str, MeasureInfo], subtitle: str = "", region: str = "response") -> Figure | None:
    """Draw every measure over all heads, two columns wide, with the color scales of `head_map`.

    Args:
        heads: a table of one model with columns as in `interp.tables.heads.HEADS`.
        measures: name to description, in the order of drawing.
        subtitle: what was run; the region is added.
        region: where the queries are.

    Returns:
        The figure, or None where the table has no row of any of these measures.
    """
    infos = [info for info in measures.values() if is_measured(heads, info.name)]
    if not infos:
        return None
    note = f"{region} queries · x: layer, y: head · √: square-root color scale · *: limits from the data · hatched: undefined"
    figure, every = equal_panels(
        "All measures for all heads (unit in each title)",
        joined(subtitle, note),
        len(infos),
        4,
        panel=(1.04, 0.66),
        margins=(0.27, 0.4, 0.32, 0.2),
    )
    width = figure.get_figwidth()
    for axes, info in zip(every, infos, strict=True):
        values = grid(heads, info.name, region)
        scale = color_scale(info, values)
        mark = (" √" if scale.curve == "square-root" else "") + ("*" if scale.from_data else "")
        axes.set_title(heading(info, 1.5, 2, mark), loc="left", x=-0.2, pad=5)
        image = draw_map(axes, values, scale)
        box = axes.get_position()
        bar_axes = figure.add_axes((box.x1 + 0.05 / width, box.y0, 0.055 / width, box.height))
        draw_color_bar(figure.colorbar(image, cax=bar_axes, extend=scale.extend, extendfrac=0.08), scale)
    return figure
