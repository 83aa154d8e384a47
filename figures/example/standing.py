"""One problem under the lens: how its heads stand against the run, where they look step by step, what the model expected of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.drawing import style
from figures.drawing.colors import colour_scale, draw_map, round_ticks
from figures.drawing.lines import line_inches
from figures.drawing.panels import bar_above
from figures.example import token_labels
from figures.example.read import Example
from figures.example.token_labels import boxed
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo

LEVEL = 0.05
"""Heads whose q is at most this are marked."""


SHOWN = 0.99
"""Share of heads within the limits of t's colours."""


BAR_ROOM = 0.33
"""Room of the colour bar over the maps, inches of a paper: `bar_above` with its ticks, and no more."""


@style.paper_style()
def standing_map(example: Example, measure: str | None = None, region: str | None = None) -> Figure:
    """Every head's t on this problem against the run, a map a model; or its value where nothing was compared.

    t = (value - mean) / (sd sqrt(1 + 1 / n)) over the run's other n problems: red is more than usual, blue less, and a dot marks q <= 0.05
    (Benjamini-Hochberg over all heads of a model); the subtitle says where no head has one. The scale is symmetric about 0 and the same for
    all models; it ends where 99 % of the heads' |t| do, and the others have the end's colour. A model that was not compared, beside others
    that were, is hatched.

    Args:
        example: as `figures.example.read.read_example` gives it.
        measure: name; None: that by which heads were chosen.
        region: where the queries stand; None: likewise.

    Raises:
        InputError: the measure or region has no row.
    """
    measure, region = measure or str(example.run["by"]), region or str(example.run["region"])
    standing = example.standing
    rows = standing[(standing["measure"] == measure) & (standing["region"] == region)]
    if rows.empty or measure not in example.measures:
        raise InputError(f"no row of {measure!r} at {region!r} queries; measures: {', '.join(example.measures)}")
    layers = [int(layer) for layer in example.run["layers"]]
    info = example.measures[measure]
    compared = bool(np.isfinite(rows["t"].to_numpy(float)).any())
    column = "t" if compared else "value"
    maps = {model: _heads(example, rows, model, layers, column) for model in example.models}
    marks = {model: _heads(example, rows, model, layers, "q") for model in example.models}
    values = np.stack(list(maps.values()))
    if compared:
        # One head in a hundred may be far out; it must not pale all others.
        most = float(np.nanquantile(np.abs(values), SHOWN, method="higher")) or 1.0
        scale = round_ticks(colour_scale(MeasureInfo("t", "t", "t", -most, most, ""), values))
        label, title = "t", f"{info.title}: this problem against the run (t)"
    else:
        scale = colour_scale(info, values)
        label, title = style.unit_label(info), f"{info.title} on this problem ({style.unit_label(info)})"
    problems = sorted({int(n) for n in rows["n_examples"] if n > 0})
    against = f"against {' or '.join(map(str, problems))} other problems" if compared else "compared with no run"
    subtitle = style.joined(
        token_labels.problem_text(example),
        against,
        f"{region} queries",
        _told_dots(marks) if compared else "",
        f"colours end at {SHOWN:.0%} of the heads' |t|" if compared and scale.extend != "neither" else "",
        "" if compared else scale.note(),
        "hatched: undefined" if np.isnan(values).any() else "",
    )
    at = style.look()
    one = len(maps) == 1
    width = at.column("one" if one else "two")
    columns = 1 if width < at.two else min(len(maps), 3)
    across = width / columns - (0.32 + 0.14) * at.zoom - 1e-6
    unlike = {model: compared and not np.isfinite(maps[model]).any() for model in maps}
    names = {model: style.wrapped(boxed(model) + " · not compared" * unlike[model], across, 2) for model in maps}
    lines = max(name.count("\n") + 1 for name in names.values())
    margins = (0.32, 0.14, lines * line_inches() / at.zoom + 0.06, 0.34)
    down = float(np.clip(across * int(example.run["n_heads"]) / len(layers), 0.8 * at.zoom, 2.2 * at.zoom))
    titles = style.titles_inches(width, title, subtitle)
    if columns >= len(maps):
        down = at.height(down, titles + (margins[2] + margins[3] + BAR_ROOM) * at.zoom, 0.8)
    figure, every = style.panels(
        title,
        subtitle,
        len(maps),
        columns,
        panel=(across, down / at.zoom),
        margins=margins,
        legend_room=BAR_ROOM,
        width=width,
    )
    image = None
    for axes, model in zip(every, maps, strict=True):
        image = draw_map(axes, maps[model], scale)
        axes.set_xticks(ticks := [int(tick) for tick in axes.get_xticks()], [str(layers[tick]) for tick in ticks])
        axes.set_xlabel("layer")
        axes.set_ylabel("head")
        axes.set_title(names[model], loc="left")
        layer, head = np.nonzero(marks[model] <= LEVEL)
        size = 72 * min(style.axes_inches(axes)[0] / len(layers), style.axes_inches(axes)[1] / int(example.run["n_heads"]))
        dot = float(np.clip(0.3 * size, 0.6, 3.0))
        axes.plot(layer, head, "o", color="black", markersize=dot, markeredgewidth=dot / 4, markeredgecolor="white", gid="significant")
    assert image is not None
    bar_above(figure, image, scale, label, titles)
    return figure


def _told_dots(q: dict[str, np.ndarray]) -> str:
    """What a dot is, or that there is none."""
    if any((values <= LEVEL).any() for values in q.values()):
        return f"dot: q ≤ {LEVEL:g} over all heads"
    return f"no head has q ≤ {LEVEL:g}"


def _heads(example: Example, rows: pd.DataFrame, model: str, layers: Sequence[int], column: str) -> np.ndarray:
    """A column of the standing table, [layer, head]: layers are those that were measured, in their order."""
    of_model = rows[rows["model"].astype(str) == model]
    values = np.full((len(layers), int(example.run["n_heads"])), np.nan)
    row = np.array([layers.index(int(layer)) for layer in of_model["layer"]], int)
    values[row, of_model["head"].to_numpy(int)] = of_model[column].to_numpy(float)
    return values
