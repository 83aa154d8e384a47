"""A measure by layer for every condition, and its difference from the baseline."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures.drawing.layout import axes_inches, count_ticks, equal_panels, few_ticks, open_axes, titles_inches
from figures.drawing.lines import LineStyle
from figures.drawing.style import SERIES_LINES, active_style, paper_style
from figures.drawing.text import heading, joined, text_inches, unit_label, wrapped
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo

_MOST_CONDITIONS = 8
"""Largest number of conditions in addition to the baseline; more colors and line styles cannot be told apart."""

CURVE_COLUMNS = ("mean", "mean_low", "mean_high", "difference", "ci_low", "ci_high")

_MARGINS = (0.46, 0.08, 0.2, 0.32)
"""Room left, right, above and below a panel, in inches of a paper."""


def by_layer(layers: pd.DataFrame, measure: str, region: str, conditions: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """Return means over the seeds of each condition.

    The ends of an interval are means of the ends of the seeds' intervals. The seeds read the same examples, so this is the uncertainty of
    one seed's curve over examples; it does not include the spread between seeds.

    Args:
        layers: as in `interp.tables.shifts.LAYERS`.
        measure: as in the `measure` column.
        region: as in the `region` column.
        conditions: model to condition.

    Returns:
        For each condition, in the order of `conditions`, the columns `CURVE_COLUMNS` by layer; a condition without rows is left out.

    Raises:
        InputError: a model of the table has no condition.
    """
    rows = layers[(layers["measure"] == measure) & (layers["region"] == region)]
    of_row = rows["model"].astype(str)
    unknown = sorted(set(of_row) - set(conditions))
    if unknown:
        raise InputError(f"no condition is known for {', '.join(unknown)}; conditions are given for {', '.join(conditions)}")
    groups = rows.assign(condition=of_row.map(dict(conditions))).groupby(["condition", "layer"], observed=True)[list(CURVE_COLUMNS)]
    means = groups.mean()
    present = set(means.index.get_level_values(0))
    return {name: pd.DataFrame(means.loc[name]) for name in dict.fromkeys(conditions.values()) if name in present}


@paper_style()
def strategy_curves(
    layers: pd.DataFrame, info: MeasureInfo, conditions: Mapping[str, str], subtitle: str = "", region: str = "response"
) -> Figure | None:
    """Draw the mean over a layer's heads, one line per condition, and its difference from the baseline, each with its interval.

    Args:
        layers: as in `interp.tables.shifts.LAYERS`: every model compared with its baseline, the baseline with itself.
        info: the measure.
        conditions: model to condition, in the order of drawing; a condition's line is the mean over its seeds.
        subtitle: what was run; n, region and intervals are added.
        region: where the queries are.

    Returns:
        The figure, two columns wide (in one column the panels are below each other), or None where the table has no row of the
        measure. Of more than eight conditions the first eight are drawn, and the figure states this.

    Raises:
        InputError: a model of the table has no condition.
    """
    curves = by_layer(layers, info.name, region, conditions)
    if not curves:
        return None
    style = active_style()
    width = style.column("two")
    rows = layers[(layers["measure"] == info.name) & (layers["region"] == region)]
    of_row = rows["model"].astype(str).map(dict(conditions))
    baselines = {conditions[model] for model in rows["baseline"].astype(str) if model in conditions}
    baseline = next((name for name in curves if name in baselines), None)
    others = [name for name in curves if name != baseline]
    drawn = others[:_MOST_CONDITIONS]
    seeds = {name: int(of_row.eq(name).sum()) // len(curves[name]) for name in curves}
    styles = {name: LineStyle(style.series[index], SERIES_LINES[index]) for index, name in enumerate(drawn)}
    if baseline is not None:
        styles = {baseline: LineStyle(style.ink, "-"), **styles}
    columns = 1 if width < 5 else 2
    across = width / columns - (_MARGINS[0] + _MARGINS[1]) * style.zoom
    title = heading(info, width - 0.1, 2, size=style.title)
    subtitle = joined(
        _about(rows, region, max(seeds.values()) > 1),
        f"{len(drawn)} of {len(others)} conditions are drawn" if len(drawn) < len(others) else "",
        subtitle,
    )
    marks, texts = _legend(styles, baseline, seeds, width - 0.6 * style.zoom)
    fitting = _legend_columns(texts, width)
    legend_room = -(-len(marks) // fitting) * style.small * 1.35 / 72 + 0.06
    titles = titles_inches(width, title, subtitle)
    down = style.height(1.75, titles + legend_room + (_MARGINS[2] + _MARGINS[3]) * style.zoom, least=1.2)
    panel = (across, down / style.zoom)
    figure, every = equal_panels(
        title, subtitle, 2, columns, panel=panel, margins=_MARGINS, legend_room=legend_room / style.zoom, width=width
    )
    place = {"loc": "upper left", "bbox_to_anchor": (0, 1 - titles / figure.get_figheight())}
    figure.legend(marks, texts, ncols=fitting, labelspacing=0.2, borderpad=0, handlelength=2.4, **place)
    _draw_curves(every[0], {name: curves[name] for name in styles}, styles, ("mean", "mean_low", "mean_high"))
    _draw_curves(every[1], {name: curves[name] for name in drawn}, styles, ("difference", "ci_low", "ci_high"))
    _finish_panels(every, curves, info, bool(drawn))
    return figure


def _about(rows: pd.DataFrame, region: str, several_seeds: bool) -> str:
    least, most = int(rows["n_examples"].min()), int(rows["n_examples"].max())
    return joined(
        "mean over heads, by layer",
        f"n = {most} examples" if least == most else f"n = {least} to {most} examples",
        f"{rows['n_heads'].to_numpy(int).max()} heads per layer",
        f"{region} queries",
        "bands: 95 % bootstrap interval over examples" + (", mean of the seeds' intervals" if several_seeds else ""),
        "no test",
    )


def _finish_panels(every: list[Axes], curves: Mapping[str, pd.DataFrame], info: MeasureInfo, others: bool) -> None:
    """Set titles, limits and ticks of the panels of values and of differences.

    Args:
        every: the two panels.
        curves: of each condition.
        info: the measure.
        others: whether there is a condition other than the baseline.
    """
    style = active_style()
    across = axes_inches(every[0])[0]
    layers = curves[next(iter(curves))].index.to_numpy(int)
    full, short = (f"{words} ({unit_label(info)})" for words in ("difference from the baseline", "difference"))
    difference = full if text_inches(full, style.small) <= across else short
    for axes, title, column in zip(every, (f"value ({unit_label(info)})", difference), ("mean", "difference"), strict=True):
        axes.set_title(wrapped(title, across, 1), loc="left")
        axes.set_xlabel("layer")
        axes.set_xlim(layers.min() - 0.5, layers.max() + 0.5)
        axes.set_xticks(count_ticks(across, int(layers.max()) + 1))
        open_axes(axes)
        drawn = column == "mean" or others
        if drawn and axes.lines and any(np.isfinite(np.asarray(line.get_ydata(), float)).any() for line in axes.lines):
            few_ticks(axes, "y")
            if column == "difference":
                axes.axhline(0.0, color=style.ink, linewidth=0.7 * style.zoom, zorder=1.5)
        else:
            axes.set_yticks([])
            axes.text(0.5, 0.5, "undefined" if drawn else "no other condition", ha="center", va="center", transform=axes.transAxes)


def _draw_curves(axes: Axes, curves: Mapping[str, pd.DataFrame], styles: Mapping[str, LineStyle], columns: tuple[str, str, str]) -> None:
    """Draw a line and a band for each condition; a line of a single layer also has a dot."""
    zoom = active_style().zoom
    for order, (name, curve) in enumerate(curves.items()):
        line = styles[name]
        x = curve.index.to_numpy(int)
        value, low, high = (curve[column].to_numpy(float) for column in columns)
        axes.fill_between(x, low, high, color=line.color, alpha=0.18, linewidth=0, zorder=2)
        single = len(x) == 1
        axes.plot(
            x, value, color=line.color, linestyle=line.dash, linewidth=1.1 * zoom, marker="o" if single else "", markersize=3 * zoom,
            zorder=3 + order / 100,
        )  # fmt: skip
        if single:
            axes.vlines(x, low, high, color=line.color, linewidth=0.8 * zoom, zorder=2)


def _legend(
    styles: Mapping[str, LineStyle], baseline: str | None, seeds: Mapping[str, int], inches: float
) -> tuple[list[Artist], list[str]]:
    style = active_style()
    marks: list[Artist] = []
    texts: list[str] = []
    for name, line in styles.items():
        about = joined("baseline" if name == baseline else "", f"{seeds[name]} seeds" if seeds[name] > 1 else "")
        tail = f" ({about})" if about else ""
        room = inches - text_inches(tail, style.small) if tail else inches
        marks.append(Line2D([], [], color=line.color, linestyle=line.dash, linewidth=1.1 * style.zoom))
        texts.append(wrapped(name, room, 1) + tail)
    marks.append(Patch(color=style.gray, alpha=0.35, linewidth=0))
    texts.append("95 % interval")
    return marks, texts


def _legend_columns(texts: list[str], width: float) -> int:
    small = active_style().small
    each = max(text_inches(text, small) for text in texts) + 5.5 * small / 72  # line, gap to the text, gap to the next
    return max(1, min(len(texts), int(width / each)))
