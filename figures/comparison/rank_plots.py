"""Do the heads that stand out keep their place? Ranks of the baseline's first heads in every model, and agreement of all ranks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure

from figures.drawing import style
from figures.drawing.colors import Scale, draw_colour_bar, draw_map
from figures.drawing.grid import grid, grid_shape
from figures.drawing.lines import spread
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo

TOP = 12


LINEAR_UP_TO = 40
"""Where no drawn rank is beyond this, ranks are spaced evenly; else by their logarithm, so that the first places stay readable."""


def top_of(ranks: pd.DataFrame, measure: str, region: str, baseline: str, top: int) -> list[tuple[int, int]]:
    """Layer and head of the baseline's first heads, the first rank first; a head without a rank is left out."""
    rows = ranks[(ranks["model"].astype(str) == baseline) & (ranks["measure"] == measure) & (ranks["region"] == region)]
    rows = rows[rows["rank"].notna()].sort_values(["rank", "layer", "head"], kind="stable").head(top)
    return [(int(layer), int(head)) for layer, head in zip(rows["layer"], rows["head"], strict=True)]


def model_names(names: list[str], pitch: float, longest: float) -> tuple[list[str], bool, float, str]:
    """Names under columns: level on up to three lines where every word fits its column, else upright; where they are too many, every k-th.

    Args:
        names: of the columns.
        pitch: inches from column to column.
        longest: inches after which an upright name is cut.

    Returns:
        The texts, whether they stand upright, the inches that they need, and what the reader must know ("" where all are named).
    """
    small = style.look().small
    line = small * 1.25 / 72
    level = all(style.text_inches(style.printable(word), small) <= pitch - 0.08 for name in names for word in name.split())
    if level and all("…" not in style.wrapped(name, pitch - 0.08, 3) for name in names):
        shown = [style.wrapped(name, pitch - 0.08, 3) for name in names]
        return shown, False, max(name.count("\n") + 1 for name in shown) * line, ""
    step = int(np.ceil(line / pitch))
    shown = [style.wrapped(name, longest, 1) if index % step == 0 else "" for index, name in enumerate(names)]
    return shown, True, max(style.text_inches(name, small) for name in shown), f"one model in {step} is named" if step > 1 else ""


@style.paper_style()
def rank_plot(
    ranks: pd.DataFrame,
    info: MeasureInfo,
    subtitle: str = "",
    region: str = "response",
    *,
    baseline: str | None = None,
    top: int = TOP,
) -> Figure | None:
    """The ranks of the baseline's first heads in every model, with whiskers; a line a head.

    Args:
        ranks: as in `interp.tables.shifts.RANKS`; the models stand in its order.
        info: the measure that ranks.
        subtitle: what was run, with the number of examples, which this table lacks; region and intervals are added.
        region: where the queries stand.
        baseline: the model whose first heads are drawn; it stands first. None: the table's first.
        top: how many heads.

    Returns:
        The figure, two columns wide, or None where the baseline has no rank for the measure.

    Raises:
        InputError: the table has no model called `baseline`.
    """
    names = list(dict.fromkeys(ranks["model"].astype(str)))
    baseline = names[0] if baseline is None and names else baseline
    if baseline not in names:
        raise InputError(f"the table of ranks has no model {baseline!r}; it has {', '.join(names) or 'none'}")
    chosen = top_of(ranks, info.name, region, baseline, top)
    if not chosen:
        return None
    at = style.look()
    width = at.column("two")
    names = [baseline, *(name for name in names if name != baseline)]
    of_model = {name: ranks[ranks["model"].astype(str) == name] for name in names}
    cells = tuple(np.array(chosen).T)
    columns = ("rank", "rank_low", "rank_high")
    rank, low, high = (np.stack([grid(of_model[name], info.name, region, column)[cells] for name in names], 1) for column in columns)
    layers, heads = grid_shape(ranks)
    most = float(np.nanmax(np.stack([rank, high])))
    even = most <= LINEAR_UP_TO
    title = style.wrapped(f"The baseline's first {len(chosen)} heads in every model: {info.title}", width - 0.1, 2, at.title)
    note = style.joined(
        f"rank 1: the largest of {layers} × {heads} heads",
        f"{region} queries",
        "whiskers: 95 % bootstrap interval over examples",
        "" if even else "logarithmic ranks",
    )
    side = max(style.text_inches(f"{layer}.{head}", at.small) for layer, head in chosen) + 0.2
    left, right = 0.42 * at.zoom + side, side + 0.04
    across = width - left - right
    shown, upright, room_names, skipped = model_names(names, across / len(names), 1.2 * at.zoom)
    subtitle = style.joined(f"baseline: {baseline}", note, skipped, subtitle)
    bottom = 0.08 + room_names
    header = style.titles_inches(width, title, subtitle) + 0.1
    down = at.height(max(1.4, 0.19 * len(chosen) * at.zoom), header + bottom, least=1.25)
    height = header + down + bottom
    figure = style.new_figure(width, height, constrained=False)
    style.set_titles(figure, title, subtitle)
    axes = figure.add_axes((left / width, bottom / height, across / width, down / height))
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(most + 0.5 if even else most * 1.15, 0.4 if even else 0.85)
    if not even:
        axes.set_yscale("log")
    _rank_ticks(axes, most, even)
    dodge = 0.5 * (np.arange(len(chosen)) - (len(chosen) - 1) / 2) / len(chosen)
    for index in range(len(chosen)):
        colour = at.series[index % len(at.series)]
        x = np.arange(len(names)) + dodge[index]
        line = "-" if index < len(at.series) else "--"
        axes.plot(x, rank[index], color=colour, linestyle=line, marker="o", markersize=2.6 * at.zoom, linewidth=0.9 * at.zoom, zorder=3)
        axes.vlines(x, low[index], high[index], color=colour, linewidth=0.7 * at.zoom, alpha=0.75, zorder=2)
    for column, edge, outward in ((0, -0.5, -1), (len(names) - 1, len(names) - 0.5, 1)):
        _name_ends(axes, chosen, rank[:, column], column + dodge, edge, outward, (across, down))
    axes.set_xticks(range(len(names)), shown, rotation=90 if upright else 0, linespacing=1.1)
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", pad=1.5 + (side + 0.08) * 72)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.text(0.05 / width, (bottom + down / 2) / height, "rank", rotation=90, va="center")
    axes.grid(axis="y", color=at.faint, linewidth=0.4)
    axes.set_axisbelow(True)
    style.open_axes(axes)
    return figure


def _rank_ticks(axes: Axes, most: float, even: bool) -> None:
    step = max(1, int(np.ceil(most / 8)))
    rounds = [1, 2, 5, 10, 20, 50, *(first * 10**power for power in range(2, 6) for first in (1, 2, 5))]
    ticks = [1, *range(max(step, 2), int(most) + 1, step)] if even else [tick for tick in rounds if tick <= most]
    axes.set_yticks(ticks, [style.tick_text(float(tick)) for tick in ticks])
    axes.yaxis.minorticks_off()


def _name_ends(
    axes: Axes, heads: list[tuple[int, int]], rank: np.ndarray, x: np.ndarray, edge: float, outward: int, room: tuple[float, float]
) -> None:
    """Write "layer.head" beside the axes, apart from each other, with a thin line to the head's point."""
    at = style.look()
    inches = axes.transData.transform(np.stack([x, rank], 1)) - axes.transAxes.transform((0, 0))
    inches = inches[:, 1] / axes.figure.dpi
    known = np.flatnonzero(np.isfinite(inches))
    gap = min(at.small * 1.15 / 72, room[1] / max(len(known) - 1, 1))
    places = spread(list(inches[known]), gap, 0.0, room[1]) if len(known) else []
    align = "left" if outward > 0 else "right"
    left, right = axes.get_xlim()
    line_x, text_x = (edge + outward * inch * (right - left) / room[0] for inch in (0.14, 0.16))
    for index, place in zip(known, places, strict=True):
        colour = at.series[index % len(at.series)]
        y = axes.transData.inverted().transform(axes.transAxes.transform((0, place / room[1])))[1]
        axes.plot(
            [x[index], edge, line_x], [rank[index], rank[index], y], color=colour, linewidth=0.4 * at.zoom, clip_on=False, zorder=1.5
        )  # fmt: skip
        axes.text(text_x, y, "{}.{}".format(*heads[index]), ha=align, va="center_baseline")


@style.paper_style()
def agreement_map(agreement: pd.DataFrame, info: MeasureInfo, subtitle: str = "", region: str = "response") -> Figure | None:
    """Spearman's correlation over heads of every two models, as colours and numbers, with its interval where a cell has room.

    Args:
        agreement: as in `interp.tables.shifts.AGREEMENT`, a row a pair.
        info: the measure.
        subtitle: what was run; n, region and interval are added.
        region: where the queries stand.

    Returns:
        The figure, one column wide for up to five models and else two, or None where the table has no row of the measure.
    """
    rows = agreement[(agreement["measure"] == info.name) & (agreement["region"] == region)]
    if rows.empty:
        return None
    at = style.look()
    names = list(dict.fromkeys([*rows["model"].astype(str), *rows["other"].astype(str)]))
    values, low, high = (_square(rows, names, column) for column in ("spearman", "ci_low", "ci_high"))
    np.fill_diagonal(values, 1.0)
    width = at.column("one" if len(names) <= 5 else "two")
    column = min(1.3 * at.zoom, 0.3 * width)
    across = width - column - 0.52 * at.zoom
    cell = min(across / len(names), 0.8 * at.zoom)
    across = cell * len(names)
    inked = max(style.text_inches(f"{value:.2f}", at.small) for value in (0.99, -0.99))
    line = at.small * 1.25 / 72
    texts = [[_interval(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(low, high, strict=True)]
    fits = inked + 0.03 <= cell
    with_interval = fits and max(style.text_inches(text, at.small) for row in texts for text in row) + 0.04 <= cell
    title = style.wrapped(f"Do heads keep their order? {info.title}", width - 0.1, 2, at.title)
    shown = [style.wrapped(name, column - 0.1, 1) for name in names]
    below, upright, room_names, skipped = model_names(names, cell, column - 0.1)
    drawn = "below: 95 % bootstrap interval over examples" if np.isfinite(low).any() else ""
    note = style.joined(
        "Spearman's correlation over heads",
        f"{rows['n_heads'].to_numpy(int).max()} heads",
        f"n = {rows['n_examples'].to_numpy(int).max()} examples",
        f"{region} queries",
        drawn if with_interval else "intervals: in the table" if fits else "numbers and intervals: in the table",
        skipped,
    )
    subtitle = style.joined(note, subtitle)
    bottom = 0.08 + room_names
    header = style.titles_inches(width, title, subtitle) + 0.06
    least = 2.5 * line if with_interval else 1.2 * line
    down = at.height(max(least, 0.62 * cell) * len(names), header + bottom, least=least * len(names))
    height = header + down + bottom
    figure = style.new_figure(width, height, constrained=False)
    style.set_titles(figure, title, subtitle)
    axes = figure.add_axes((column / width, bottom / height, across / width, down / height))
    scale = _agreement_scale(values)
    image = draw_map(axes, values, scale)
    axes.set_xticks(range(len(names)), below, rotation=90 if upright else 0, linespacing=1.1)
    axes.set_yticks(range(len(names)), shown)
    axes.tick_params(length=0, pad=2.5)
    if fits:
        for i in range(len(names)):
            for j in range(len(names)):
                _write_cell(axes, scale, values[i, j], texts[i][j] if with_interval and i != j else "", (i, j))
    bar_axes = figure.add_axes(((column + across + 0.06) / width, bottom / height, 0.07 / width, down / height))
    draw_colour_bar(figure.colorbar(image, cax=bar_axes, extend=scale.extend), scale)
    return figure


def _square(rows: pd.DataFrame, names: list[str], column: str) -> np.ndarray:
    """Values of pairs as a symmetric array; NaN on the diagonal and where a pair has no row."""
    square = np.full((len(names), len(names)), np.nan)
    for one, other, value in zip(rows["model"].astype(str), rows["other"].astype(str), rows[column], strict=True):
        i, j = names.index(one), names.index(other)
        square[i, j] = square[j, i] = value
    return square


def _interval(low: float, high: float) -> str:
    return f"{low:.2f} to {high:.2f}".replace("-", "−") if np.isfinite(low) else ""


def _agreement_scale(values: np.ndarray) -> Scale:
    """From the tenth below the least correlation to 1: those of students of one teacher lie close together."""
    finite = values[np.isfinite(values)]
    low = float(np.clip(np.floor(finite.min() * 10 + 1e-9) / 10, -1.0, 0.9))
    ticks = tuple(np.linspace(low, 1.0, 3).tolist())
    texts = tuple(style.tick_text(tick) for tick in ticks)
    return Scale(Normalize(low, 1.0), style.look().map_colours, ticks, texts, "neither", "linear", True)


def _write_cell(axes: Axes, scale: Scale, value: float, interval: str, at: tuple[int, int]) -> None:
    if not np.isfinite(value):
        return
    red, green, blue = to_rgb(colormaps[scale.colours](scale.norm(value)))
    ink = "#000000" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "#ffffff"
    number = f"{value:.2f}".replace("-", "−") if at[0] != at[1] else "1"
    text = f"{number}\n{interval}" if interval else number
    axes.text(*at, text, color=ink, ha="center", va="center", linespacing=1.1)
