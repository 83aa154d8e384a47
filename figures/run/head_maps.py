"""Maps of one value per head: layers along x, heads along y; and the overview of all measures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from figures.drawing import style
from figures.drawing.colors import colour_scale, draw_colour_bar, draw_map
from figures.drawing.grid import grid, is_measured
from interp.tables.schema import MeasureInfo


@style.paper_style()
def head_map(heads: pd.DataFrame, info: MeasureInfo, subtitle: str = "", region: str = "response") -> Figure | None:
    """One measure over all heads, one column wide.

    Args:
        heads: a table of one model, columns as in `interp.tables.heads.HEADS`.
        info: the measure.
        subtitle: what was run; the region is added.
        region: where the queries stand.

    Returns:
        The figure, or None where the table has no row of the measure.
    """
    if not is_measured(heads, info.name):
        return None
    values = grid(heads, info.name, region)
    scale = colour_scale(info, values)
    at = style.look()
    width = at.column("one")
    title = style.heading(info, width - 0.1, 2, size=at.title)
    subtitle = style.joined(subtitle, f"{region} queries", scale.note())
    undefined = bool(np.isnan(values).any())
    room = style.titles_inches(width, title, subtitle) + (0.35 + 0.2 * undefined) * at.zoom
    height = at.height(float(np.clip((width - 0.75 * at.zoom) * values.shape[1] / values.shape[0], 1.15, 2.4)), room)
    figure = style.new_figure(width, height + room)
    axes = figure.add_subplot()
    style.set_titles(figure, title, subtitle)
    image = draw_map(axes, values, scale)
    axes.set_xlabel("layer")
    axes.set_ylabel("head")
    bar = figure.colorbar(image, ax=axes, extend=scale.extend, aspect=28, pad=0.02)
    draw_colour_bar(bar, scale)
    bar.set_label(style.unit_label(info))
    if undefined:
        mark = Patch(facecolor=at.undefined_face, edgecolor=at.undefined_hatch, hatch="//////", linewidth=0)
        figure.legend([mark], ["undefined: nothing to measure"], loc="outside lower left")
    return figure


@style.paper_style()
def overview(heads: pd.DataFrame, measures: dict[str, MeasureInfo], subtitle: str = "", region: str = "response") -> Figure | None:
    """Every measure over all heads, two columns wide; the scales are those of `head_map`.

    Args:
        heads: a table of one model, columns as in `interp.tables.heads.HEADS`.
        measures: name to description, in the order of drawing.
        subtitle: what was run; the region is added.
        region: where the queries stand.

    Returns:
        The figure, or None where the table has no row of any of these measures.
    """
    infos = [info for info in measures.values() if is_measured(heads, info.name)]
    if not infos:
        return None
    note = f"{region} queries · x: layer, y: head · √: square-root colours · *: limits from the data · hatched: undefined"
    figure, every = style.panels(
        "Every measure over all heads",
        style.joined(subtitle, note),
        len(infos),
        4,
        panel=(1.04, 0.66),
        margins=(0.27, 0.4, 0.32, 0.2),
    )
    width = figure.get_figwidth()
    for axes, info in zip(every, infos, strict=True):
        values = grid(heads, info.name, region)
        scale = colour_scale(info, values)
        mark = (" √" if scale.curve == "square-root" else "") + ("*" if scale.from_data else "")
        axes.set_title(style.heading(info, 1.5, 2, mark), loc="left", x=-0.2, pad=5)
        image = draw_map(axes, values, scale)
        box = axes.get_position()
        bar_axes = figure.add_axes((box.x1 + 0.05 / width, box.y0, 0.055 / width, box.height))
        draw_colour_bar(figure.colorbar(image, cax=bar_axes, extend=scale.extend, extendfrac=0.08), scale)
    return figure
