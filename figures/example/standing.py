"""Every head on one problem compared with the other problems of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.drawing.colors import Scale, color_scale, draw_map, round_ticks
from figures.drawing.layout import axes_inches, equal_panels, titles_inches
from figures.drawing.panels import bar_above
from figures.drawing.significance import FALSE_DISCOVERY_RATE
from figures.drawing.style import active_style, paper_style
from figures.drawing.text import joined, line_inches, unit_label, wrapped
from figures.example.read import Example
from figures.example.tokens import boxed, problem_text
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo

WITHIN_LIMITS = 0.99
"""Share of heads within the limits of t's color scale."""

_SCALE_ROOM = 0.33
"""Height of the color bar above the maps, in inches of a paper: `bar_above` with its ticks."""


@paper_style()
def standing_map(example: Example, measure: str | None = None, region: str | None = None) -> Figure:
    """Draw every head's t on this problem compared with the run, one map per model; or its value where there is no run.

    t = (value - mean) / (sd sqrt(1 + 1 / n)) over the run's other n problems: red is above the run's mean, blue below, and a dot marks
    q <= 0.05 (Benjamini-Hochberg over all heads of a model); the subtitle states where no head has one. The scale is symmetric about 0 and
    the same for all models; it ends where 99 % of the heads' |t| do, and the others have the color of the end. A model without a
    comparison, next to others that have one, is hatched.

    Args:
        example: as `figures.example.read.read_example` returns it.
        measure: name; None: the measure by which heads were chosen.
        region: where the queries are; None: the region by which heads were chosen.

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
    maps = {model: _by_head(example, rows, model, layers, "t" if compared else "value") for model in example.models}
    q = {model: _by_head(example, rows, model, layers, "q") for model in example.models}
    values = np.stack(list(maps.values()))
    if compared:
        scale, label, title = _t_scale(values), "t", f"{info.title}: this problem compared with the run (t)"
    else:
        scale, label = color_scale(info, values), unit_label(info)
        title = f"{info.title} on this problem ({label})"
    problems = sorted({int(n) for n in rows["n_examples"] if n > 0})
    subtitle = joined(
        problem_text(example),
        f"compared with {' or '.join(map(str, problems))} other problems" if compared else "no run to compare with",
        f"{region} queries",
        _about_dots(q) if compared else "",
        f"colors end at {WITHIN_LIMITS:.0%} of the heads' |t|" if compared and scale.extend != "neither" else "",
        "" if compared else scale.note(),
        "hatched: undefined" if np.isnan(values).any() else "",
    )
    figure, every = _panels(example, maps, compared, title, subtitle)
    image = None
    for axes, model in zip(every, maps, strict=True):
        image = draw_map(axes, maps[model], scale)
        ticks = [int(tick) for tick in axes.get_xticks()]
        axes.set_xticks(ticks, [str(layers[tick]) for tick in ticks])
        _draw_dots(axes, q[model])
    assert image is not None
    bar_above(figure, image, scale, label, titles_inches(figure.get_figwidth(), title, subtitle))
    return figure


def _t_scale(t: np.ndarray) -> Scale:
    """Return a symmetric scale that leaves out the largest 1 % of |t|: one extreme head must not make all others pale."""
    most = float(np.nanquantile(np.abs(t), WITHIN_LIMITS, method="higher")) or 1.0
    return round_ticks(color_scale(MeasureInfo("t", "t", "t", -most, most, ""), t))


def _panels(example: Example, maps: dict[str, np.ndarray], compared: bool, title: str, subtitle: str) -> tuple[Figure, list[Axes]]:
    """Return the figure and its panels with their titles."""
    style = active_style()
    width = style.column("one" if len(maps) == 1 else "two")
    columns = 1 if width < style.two else min(len(maps), 3)
    across = width / columns - (0.32 + 0.14) * style.zoom - 1e-6
    missing = {model: compared and not np.isfinite(values).any() for model, values in maps.items()}
    names = {model: wrapped(boxed(model) + " · not compared" * missing[model], across, 2) for model in maps}
    lines = max(name.count("\n") + 1 for name in names.values())
    margins = (0.32, 0.14, lines * line_inches() / style.zoom + 0.06, 0.34)
    down = float(np.clip(across * int(example.run["n_heads"]) / len(example.run["layers"]), 0.8 * style.zoom, 2.2 * style.zoom))
    if columns >= len(maps):
        down = style.height(down, titles_inches(width, title, subtitle) + (margins[2] + margins[3] + _SCALE_ROOM) * style.zoom, 0.8)
    figure, every = equal_panels(
        title,
        subtitle,
        len(maps),
        columns,
        panel=(across, down / style.zoom),
        margins=margins,
        legend_room=_SCALE_ROOM,
        width=width,
    )
    for axes, name in zip(every, names.values(), strict=True):
        axes.set_xlabel("layer")
        axes.set_ylabel("head")
        axes.set_title(name, loc="left")
    return figure, every


def _draw_dots(axes: Axes, q: np.ndarray) -> None:
    """Mark significant heads, [layer, head], with dots that fit their cells."""
    layer, head = np.nonzero(q <= FALSE_DISCOVERY_RATE)
    cell = 72 * min(inches / count for inches, count in zip(axes_inches(axes), q.shape, strict=True))
    dot = float(np.clip(0.3 * cell, 0.6, 3.0))
    axes.plot(layer, head, "o", color="black", markersize=dot, markeredgewidth=dot / 4, markeredgecolor="white", gid="significant")


def _about_dots(q: dict[str, np.ndarray]) -> str:
    """Return what a dot is, or that there is none."""
    if any((values <= FALSE_DISCOVERY_RATE).any() for values in q.values()):
        return f"dot: q ≤ {FALSE_DISCOVERY_RATE:g} over all heads"
    return f"no head has q ≤ {FALSE_DISCOVERY_RATE:g}"


def _by_head(example: Example, rows: pd.DataFrame, model: str, layers: Sequence[int], column: str) -> np.ndarray:
    """Return a column of the standing table, [layer, head]; layers are those that were measured, in their order."""
    of_model = rows[rows["model"].astype(str) == model]
    values = np.full((len(layers), int(example.run["n_heads"])), np.nan)
    row = np.array([layers.index(int(layer)) for layer in of_model["layer"]], int)
    values[row, of_model["head"].to_numpy(int)] = of_model[column].to_numpy(float)
    return values
