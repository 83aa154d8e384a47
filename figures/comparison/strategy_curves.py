"""A measure by layer for every condition, and the difference from the baseline."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures.drawing import style
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo

MOST = 8
"""Conditions drawn at most, besides the baseline: no more colours and lines can be told apart."""


COLUMNS = ("mean", "mean_low", "mean_high", "difference", "ci_low", "ci_high")


LAYER_ENDS = 0.5


def by_layer(layers: pd.DataFrame, measure: str, region: str, conditions: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """Means over the seeds of each condition.

    The ends of an interval are means of the seeds' ends. The seeds read the same examples, so this says how sure one seed's curve is
    over examples; how far seeds lie apart is not in it.

    Args:
        layers: as in `interp.tables.shifts.LAYERS`.
        measure: as in the `measure` column.
        region: as in the `region` column.
        conditions: model to condition.

    Returns:
        For each condition, in the order of `conditions`, the columns `COLUMNS` by layer; a condition without rows is left out.

    Raises:
        InputError: a model of the table has no condition.
    """
    rows = layers[(layers["measure"] == measure) & (layers["region"] == region)]
    of_row = rows["model"].astype(str)
    strange = sorted(set(of_row) - set(conditions))
    if strange:
        raise InputError(f"no condition is known for {', '.join(strange)}; conditions are given for {', '.join(conditions)}")
    groups = rows.assign(condition=of_row.map(dict(conditions))).groupby(["condition", "layer"], observed=True)[list(COLUMNS)]
    means = groups.mean()
    present = set(means.index.get_level_values(0))
    return {name: pd.DataFrame(means.loc[name]) for name in dict.fromkeys(conditions.values()) if name in present}


@style.paper_style()
def strategy_curves(
    layers: pd.DataFrame, info: MeasureInfo, conditions: Mapping[str, str], subtitle: str = "", region: str = "response"
) -> Figure | None:
    """The mean over a layer's heads, a line a condition, and its difference from the baseline, each with its interval.

    Args:
        layers: as in `interp.tables.shifts.LAYERS`: every model against its baseline, the baseline against itself.
        info: the measure.
        conditions: model to condition, in the order of drawing; a condition's line is the mean over its seeds.
        subtitle: what was run; n, region and intervals are added.
        region: where the queries stand.

    Returns:
        The figure, two columns wide (in one column the panels stand below each other), or None where the table has no row of the
        measure. Of more than eight conditions the first eight are drawn, and the figure says so.

    Raises:
        InputError: a model of the table has no condition.
    """
    curves = by_layer(layers, info.name, region, conditions)
    if not curves:
        return None
    at = style.look()
    width = at.column("two")
    rows = layers[(layers["measure"] == info.name) & (layers["region"] == region)]
    bases = {conditions[model] for model in rows["baseline"].astype(str) if model in conditions}
    base = next((name for name in curves if name in bases), None)
    others = [name for name in curves if name != base]
    drawn = others[:MOST]
    seeds = {name: int(rows["model"].astype(str).map(dict(conditions)).eq(name).sum()) // len(curves[name]) for name in curves}
    looks = {name: (at.series[index], style.SERIES_LINES[index]) for index, name in enumerate(drawn)}
    if base is not None:
        looks = {base: (at.ink, "-"), **looks}
    narrow = width < 5
    columns = 1 if narrow else 2
    left, right, top, bottom = 0.46, 0.08, 0.2, 0.32
    across = width / columns - (left + right) * at.zoom
    marks, texts = _key(looks, base, seeds, width - 0.6 * at.zoom)
    title = style.heading(info, width - 0.1, 2, size=at.title)
    least, most = int(rows["n_examples"].min()), int(rows["n_examples"].max())
    subtitle = style.joined(
        "mean over heads, by layer",
        f"n = {most} examples" if least == most else f"n = {least} to {most} examples",
        f"{rows['n_heads'].to_numpy(int).max()} heads a layer",
        f"{region} queries",
        "bands: 95 % bootstrap interval over examples" + (", mean of the seeds' intervals" if max(seeds.values()) > 1 else ""),
        "no test",
        f"{len(drawn)} of {len(others)} conditions are drawn" if len(drawn) < len(others) else "",
        subtitle,
    )
    fitting = _key_columns(texts, width)
    line = at.small * 1.35 / 72
    key_room = -(-len(marks) // fitting) * line + 0.06
    header = style.titles_inches(width, title, subtitle) + key_room
    pitch = (top + bottom) * at.zoom
    down = at.height(1.75, header + pitch, least=1.2)
    figure, every = style.panels(
        title,
        subtitle,
        2,
        columns,
        panel=(across, down / at.zoom),
        margins=(left, right, top, bottom),
        legend_room=key_room / at.zoom,
        width=width,
    )
    below_titles = 1 - style.titles_inches(width, title, subtitle) / figure.get_figheight()
    figure.legend(
        marks, texts, loc="upper left", bbox_to_anchor=(0, below_titles), ncols=fitting, labelspacing=0.2, borderpad=0, handlelength=2.4
    )  # fmt: skip
    _draw(every[0], {name: curves[name] for name in looks}, looks, ("mean", "mean_low", "mean_high"))
    _draw(every[1], {name: curves[name] for name in drawn}, looks, ("difference", "ci_low", "ci_high"))
    named = [f"{start} ({style.unit_label(info)})" for start in ("difference from the baseline", "difference")]
    fits = style.text_inches(named[0], at.small) <= across
    shown = curves[next(iter(curves))].index.to_numpy(int)
    titles = (f"value ({style.unit_label(info)})", named[0 if fits else 1])
    for axes, text, column, names in zip(every, titles, ("mean", "difference"), (looks, drawn), strict=True):
        axes.set_title(style.wrapped(text, across, 1), loc="left")
        axes.set_xlabel("layer")
        axes.set_xlim(shown.min() - LAYER_ENDS, shown.max() + LAYER_ENDS)
        axes.set_xticks(style.count_ticks(across, int(shown.max()) + 1))
        style.open_axes(axes)
        if any(np.isfinite(curves[name][column]).any() for name in names):
            style.few_y_ticks(axes)
            if column == "difference":
                axes.axhline(0.0, color=at.ink, linewidth=0.7 * at.zoom, zorder=1.5)
        else:
            axes.set_yticks([])
            axes.text(0.5, 0.5, "undefined" if names else "no other condition", ha="center", va="center", transform=axes.transAxes)
    return figure


def _draw(axes: Axes, curves: Mapping[str, pd.DataFrame], looks: Mapping[str, tuple[str, object]], columns: tuple[str, str, str]) -> None:
    """A line and a band for each condition; where a line is one layer long, a dot too."""
    zoom = style.look().zoom
    for order, (name, curve) in enumerate(curves.items()):
        colour, line = looks[name]
        x = curve.index.to_numpy(int)
        value, low, high = (curve[column].to_numpy(float) for column in columns)
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
        marker = "o" if len(x) == 1 else ""
        axes.plot(x, value, color=colour, linestyle=line, linewidth=1.1 * zoom, marker=marker, markersize=3 * zoom, zorder=3 + order / 100)
        if len(x) == 1:
            axes.vlines(x, low, high, color=colour, linewidth=0.8 * zoom, zorder=2)


def _key(
    looks: Mapping[str, tuple[str, object]], base: str | None, seeds: Mapping[str, int], inches: float
) -> tuple[list[Artist], list[str]]:
    marks: list[Artist] = []
    texts: list[str] = []
    for name, (colour, line) in looks.items():
        about = style.joined("baseline" if name == base else "", f"{seeds[name]} seeds" if seeds[name] > 1 else "")
        tail = f" ({about})" if about else ""
        room = inches - style.text_inches(tail, style.look().small) if tail else inches
        marks.append(Line2D([], [], color=colour, linestyle=line, linewidth=1.1 * style.look().zoom))  # pyright: ignore[reportArgumentType]
        texts.append(style.wrapped(name, room, 1) + tail)
    marks.append(Patch(color=style.look().grey, alpha=0.35, linewidth=0))
    texts.append("95 % interval")
    return marks, texts


def _key_columns(texts: list[str], width: float) -> int:
    at = style.look()
    each = max(style.text_inches(text, at.small) for text in texts) + 5.5 * at.small / 72  # line, gap to the text, gap to the next
    return max(1, min(len(texts), int(width / each)))
