"""Order of heads across models: ranks of the baseline's top heads in every model, and rank correlation of all heads."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure

from figures.drawing.colors import Scale, draw_color_bar, draw_map
from figures.drawing.grid import grid, grid_shape
from figures.drawing.layout import open_axes, set_titles, titles_inches
from figures.drawing.lines import spread
from figures.drawing.style import Style, active_style, new_figure, paper_style
from figures.drawing.text import joined, line_inches, printable, text_inches, tick_text, wrapped
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo

_TOP_HEADS = 12

_LINEAR_UP_TO = 40
"""Up to this rank the axis is linear; beyond, it is logarithmic so that the first ranks stay readable."""


def top_heads(ranks: pd.DataFrame, measure: str, region: str, baseline: str, top: int) -> list[tuple[int, int]]:
    """Return (layer, head) of the baseline's top heads, the first rank first; a head without a rank is left out."""
    rows = ranks[(ranks["model"].astype(str) == baseline) & (ranks["measure"] == measure) & (ranks["region"] == region)]
    rows = rows[rows["rank"].notna()].sort_values(["rank", "layer", "head"], kind="stable").head(top)
    return [(int(layer), int(head)) for layer, head in zip(rows["layer"], rows["head"], strict=True)]


def column_names(names: list[str], pitch: float, longest: float) -> tuple[list[str], bool, float, str]:
    """Return names that fit under columns.

    Names are horizontal on up to three lines where every word fits its column, else vertical; where they are too many, only every k-th is
    written.

    Args:
        names: of the columns.
        pitch: inches from column to column.
        longest: inches after which a vertical name is truncated.

    Returns:
        The texts, whether they are vertical, their height in inches, and what the reader must know ("" where all are named).
    """
    small, line = active_style().small, line_inches()
    level = all(text_inches(printable(word), small) <= pitch - 0.08 for name in names for word in name.split())
    if level and all("…" not in wrapped(name, pitch - 0.08, 3) for name in names):
        shown = [wrapped(name, pitch - 0.08, 3) for name in names]
        return shown, False, max(name.count("\n") + 1 for name in shown) * line, ""
    step = int(np.ceil(line / pitch))
    shown = [wrapped(name, longest, 1) if index % step == 0 else "" for index, name in enumerate(names)]
    return shown, True, max(text_inches(name, small) for name in shown), f"one model in {step} is named" if step > 1 else ""


@paper_style()
def rank_plot(
    ranks: pd.DataFrame,
    info: MeasureInfo,
    subtitle: str = "",
    region: str = "response",
    *,
    baseline: str | None = None,
    top: int = _TOP_HEADS,
) -> Figure | None:
    """Draw the ranks of the baseline's top heads in every model with whiskers, one line per head.

    Args:
        ranks: as in `interp.tables.shifts.RANKS`; models are drawn in its order.
        info: the measure that ranks.
        subtitle: what was run, with the number of examples, which this table lacks; region and intervals are added.
        region: where the queries are.
        baseline: the model whose top heads are drawn, in the first column; None: the table's first model.
        top: number of heads.

    Returns:
        The figure, two columns wide, or None where the baseline has no rank for the measure.

    Raises:
        InputError: the table has no model with the name `baseline`.
    """
    names = list(dict.fromkeys(ranks["model"].astype(str)))
    baseline = names[0] if baseline is None and names else baseline
    if baseline not in names:
        raise InputError(f"the table of ranks has no model {baseline!r}; it has {', '.join(names) or 'none'}")
    chosen = top_heads(ranks, info.name, region, baseline, top)
    if not chosen:
        return None
    style = active_style()
    width = style.column("two")
    names = [baseline, *(name for name in names if name != baseline)]
    of_model = {name: ranks[ranks["model"].astype(str) == name] for name in names}
    cells = tuple(np.array(chosen).T)
    columns = ("rank", "rank_low", "rank_high")
    rank, low, high = (np.stack([grid(of_model[name], info.name, region, column)[cells] for name in names], 1) for column in columns)
    layers, heads = grid_shape(ranks)
    most = float(np.nanmax(np.stack([rank, high])))
    linear = most <= _LINEAR_UP_TO
    title = wrapped(f"Rank of the baseline's top {len(chosen)} heads in every model: {info.title}", width - 0.1, 2, style.title)
    side = max(text_inches(f"{layer}.{head}", style.small) for layer, head in chosen) + 0.2
    left, right = 0.42 * style.zoom + side, side + 0.04
    across = width - left - right
    shown, vertical, names_room, skipped = column_names(names, across / len(names), 1.2 * style.zoom)
    subtitle = joined(
        f"baseline: {baseline}",
        f"rank 1: the largest of {layers} × {heads} heads",
        f"{region} queries",
        "whiskers: 95 % bootstrap interval over examples",
        "" if linear else "logarithmic ranks",
        skipped,
        subtitle,
    )
    bottom = 0.08 + names_room
    header = titles_inches(width, title, subtitle) + 0.1
    down = style.height(max(1.4, 0.19 * len(chosen) * style.zoom), header + bottom, least=1.25)
    height = header + down + bottom
    figure = new_figure(width, height, constrained=False)
    set_titles(figure, title, subtitle)
    axes = figure.add_axes((left / width, bottom / height, across / width, down / height))
    axes.set_xlim(-0.5, len(names) - 0.5)
    _set_rank_axis(axes, most, linear)
    _draw_ranks(axes, chosen, (rank, low, high), (across, down))
    axes.set_xticks(range(len(names)), shown, rotation=90 if vertical else 0, linespacing=1.1)
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", pad=1.5 + (side + 0.08) * 72)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.text(0.05 / width, (bottom + down / 2) / height, "rank", rotation=90, va="center")
    axes.grid(axis="y", color=style.faint, linewidth=0.4)
    axes.set_axisbelow(True)
    open_axes(axes)
    return figure


def _draw_ranks(
    axes: Axes, heads: list[tuple[int, int]], ranks: tuple[np.ndarray, np.ndarray, np.ndarray], room: tuple[float, float]
) -> None:
    """Draw ranks with their intervals, [head, model], and name the heads on both sides."""
    style = active_style()
    rank, low, high = ranks
    models = rank.shape[1]
    dodge = 0.5 * (np.arange(len(heads)) - (len(heads) - 1) / 2) / len(heads)
    for index in range(len(heads)):
        color = style.series[index % len(style.series)]
        x = np.arange(models) + dodge[index]
        dash = "-" if index < len(style.series) else "--"
        size, thick = 2.6 * style.zoom, 0.9 * style.zoom
        axes.plot(x, rank[index], color=color, linestyle=dash, marker="o", markersize=size, linewidth=thick, zorder=3)
        axes.vlines(x, low[index], high[index], color=color, linewidth=0.7 * style.zoom, alpha=0.75, zorder=2)
    for column, edge, outward in ((0, -0.5, -1), (models - 1, models - 0.5, 1)):
        _name_heads(axes, heads, rank[:, column], column + dodge, edge, outward, room)


def _set_rank_axis(axes: Axes, most: float, linear: bool) -> None:
    axes.set_ylim(most + 0.5 if linear else most * 1.15, 0.4 if linear else 0.85)
    if not linear:
        axes.set_yscale("log")
    step = max(1, int(np.ceil(most / 8)))
    rounds = [1, 2, 5, 10, 20, 50, *(first * 10**power for power in range(2, 6) for first in (1, 2, 5))]
    ticks = [1, *range(max(step, 2), int(most) + 1, step)] if linear else [tick for tick in rounds if tick <= most]
    axes.set_yticks(ticks, [tick_text(float(tick)) for tick in ticks])
    axes.yaxis.minorticks_off()


def _name_heads(
    axes: Axes, heads: list[tuple[int, int]], rank: np.ndarray, x: np.ndarray, edge: float, outward: int, room: tuple[float, float]
) -> None:
    """Write "layer.head" outside the axes without overlap, with a thin line to the head's point."""
    style = active_style()
    inches = axes.transData.transform(np.stack([x, rank], 1)) - axes.transAxes.transform((0, 0))
    inches = inches[:, 1] / axes.figure.dpi
    known = np.flatnonzero(np.isfinite(inches))
    gap = min(style.small * 1.15 / 72, room[1] / max(len(known) - 1, 1))
    places = spread(list(inches[known]), gap, 0.0, room[1]) if len(known) else []
    align = "left" if outward > 0 else "right"
    left, right = axes.get_xlim()
    line_x, text_x = (edge + outward * inch * (right - left) / room[0] for inch in (0.14, 0.16))
    for index, place in zip(known, places, strict=True):
        color = style.series[index % len(style.series)]
        y = axes.transData.inverted().transform(axes.transAxes.transform((0, place / room[1])))[1]
        axes.plot(
            [x[index], edge, line_x], [rank[index], rank[index], y], color=color, linewidth=0.4 * style.zoom, clip_on=False, zorder=1.5
        )  # fmt: skip
        axes.text(text_x, y, "{}.{}".format(*heads[index]), ha=align, va="center_baseline")


@paper_style()
def agreement_map(agreement: pd.DataFrame, info: MeasureInfo, subtitle: str = "", region: str = "response") -> Figure | None:
    """Draw Spearman's correlation over heads of every two models as colors and numbers, with its interval where a cell has room.

    Args:
        agreement: as in `interp.tables.shifts.AGREEMENT`, one row per pair.
        info: the measure.
        subtitle: what was run; n, region and interval are added.
        region: where the queries are.

    Returns:
        The figure, one column wide for up to five models and two for more, or None where the table has no row of the measure.
    """
    rows = agreement[(agreement["measure"] == info.name) & (agreement["region"] == region)]
    if rows.empty:
        return None
    style = active_style()
    names = list(dict.fromkeys([*rows["model"].astype(str), *rows["other"].astype(str)]))
    values, low, high = (_square(rows, names, column) for column in ("spearman", "ci_low", "ci_high"))
    np.fill_diagonal(values, 1.0)
    width = style.column("one" if len(names) <= 5 else "two")
    column = min(1.3 * style.zoom, 0.3 * width)
    across = width - column - 0.52 * style.zoom
    cell = min(across / len(names), 0.8 * style.zoom)
    across = cell * len(names)
    texts = [[_interval(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(low, high, strict=True)]
    with_number, with_interval = _what_fits(texts, cell, style)
    title = wrapped(f"Rank correlation of heads between models (Spearman's ρ): {info.title}", width - 0.1, 2, style.title)
    shown = [wrapped(name, column - 0.1, 1) for name in names]
    below, vertical, names_room, skipped = column_names(names, cell, column - 0.1)
    intervals = "below: 95 % bootstrap interval over examples" if np.isfinite(low).any() else ""
    subtitle = joined(
        f"over {rows['n_heads'].to_numpy(int).max()} heads",
        f"n = {rows['n_examples'].to_numpy(int).max()} examples",
        f"{region} queries",
        intervals if with_interval else "intervals: in the table" if with_number else "numbers and intervals: in the table",
        skipped,
        subtitle,
    )
    bottom = 0.08 + names_room
    header = titles_inches(width, title, subtitle) + 0.06
    least = 2.5 * line_inches() if with_interval else 1.2 * line_inches()
    down = style.height(max(least, 0.62 * cell) * len(names), header + bottom, least=least * len(names))
    height = header + down + bottom
    figure = new_figure(width, height, constrained=False)
    set_titles(figure, title, subtitle)
    axes = figure.add_axes((column / width, bottom / height, across / width, down / height))
    scale = _agreement_scale(values)
    image = draw_map(axes, values, scale)
    axes.set_xticks(range(len(names)), below, rotation=90 if vertical else 0, linespacing=1.1)
    axes.set_yticks(range(len(names)), shown)
    axes.tick_params(length=0, pad=2.5)
    if with_number:
        for i in range(len(names)):
            for j in range(len(names)):
                _write_cell(axes, scale, values[i, j], texts[i][j] if with_interval and i != j else "", (i, j))
    bar_axes = figure.add_axes(((column + across + 0.06) / width, bottom / height, 0.07 / width, down / height))
    draw_color_bar(figure.colorbar(image, cax=bar_axes, extend=scale.extend), scale)
    return figure


def _what_fits(intervals: list[list[str]], cell: float, style: Style) -> tuple[bool, bool]:
    """Return whether a cell of that width in inches has room for a correlation, and also for its interval."""
    number = max(text_inches(f"{value:.2f}", style.small) for value in (0.99, -0.99)) + 0.03 <= cell
    return number, number and max(text_inches(text, style.small) for row in intervals for text in row) + 0.04 <= cell


def _square(rows: pd.DataFrame, names: list[str], column: str) -> np.ndarray:
    """Return values of pairs as a symmetric array; NaN on the diagonal and where a pair has no row."""
    square = np.full((len(names), len(names)), np.nan)
    for one, other, value in zip(rows["model"].astype(str), rows["other"].astype(str), rows[column], strict=True):
        i, j = names.index(one), names.index(other)
        square[i, j] = square[j, i] = value
    return square


def _interval(low: float, high: float) -> str:
    return f"{low:.2f} to {high:.2f}".replace("-", "−") if np.isfinite(low) else ""


def _agreement_scale(values: np.ndarray) -> Scale:
    """Return a scale from the smallest correlation, rounded down to a tenth, to 1: students of one teacher have similar correlations."""
    finite = values[np.isfinite(values)]
    low = float(np.clip(np.floor(finite.min() * 10 + 1e-9) / 10, -1.0, 0.9))
    ticks = tuple(np.linspace(low, 1.0, 3).tolist())
    labels = tuple(tick_text(tick) for tick in ticks)
    return Scale(Normalize(low, 1.0), active_style().map_colors, ticks, labels, "neither", "linear", True)


def _write_cell(axes: Axes, scale: Scale, value: float, interval: str, cell: tuple[int, int]) -> None:
    if not np.isfinite(value):
        return
    red, green, blue = to_rgb(colormaps[scale.colors](scale.norm(value)))
    ink = "#000000" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "#ffffff"
    number = f"{value:.2f}".replace("-", "−") if cell[0] != cell[1] else "1"
    text = f"{number}\n{interval}" if interval else number
    axes.text(*cell, text, color=ink, ha="center", va="center", linespacing=1.1)
