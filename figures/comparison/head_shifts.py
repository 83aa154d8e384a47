"""One model's heads less its baseline's: a map of the differences, and their effect against their p (volcano)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures.drawing import style
from figures.drawing.colors import Scale, draw_colour_bar, draw_map
from figures.drawing.grid import grid, grid_shape, is_measured
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo

RATE = 0.05
"""False-discovery rate: a head with q at most this is called significant."""


LABELLED = 5


def significant(shifts: pd.DataFrame, measure: str, region: str) -> np.ndarray:
    """Which heads have q at most `RATE`, [layer, head]; a head without a test is not."""
    return grid(shifts, measure, region, "q") <= RATE


def about_test(shifts: pd.DataFrame, info: MeasureInfo, region: str, crossed: bool = False) -> str:
    """Models, number of examples, queries, test and correction, as a figure's subtitle names them.

    Args:
        shifts: rows of `interp.tables.shifts.SHIFTS` of one model.
        info: the measure.
        region: where the queries stand.
        crossed: the rows are a condition's, whose test takes seeds and examples both as drawn; they have `n_seeds`.

    Raises:
        InputError: the table holds several models or baselines.
    """
    for column in ("model", "baseline"):
        names = sorted(shifts[column].astype(str).unique())
        if len(names) != 1:
            raise InputError(f"the table of shifts has {len(names)} names in {column} ({', '.join(names)}); choose the rows of one")
    rows = shifts[(shifts["measure"] == info.name) & (shifts["region"] == region)]
    counts = rows["n_examples"].to_numpy(int)
    counts = counts[counts > 0]
    least, most = (counts.min(), counts.max()) if counts.size else (0, 0)
    n = f"n = {most} examples" if least == most else f"n = {least} to {most} examples"
    layers, heads = grid_shape(shifts)
    seeds = int(rows["n_seeds"].to_numpy().max()) if crossed and len(rows) else 1
    n += f", {seeds} seeds" if seeds > 1 else ""
    test = "t test with seeds and examples crossed" if seeds > 1 else "paired t test"
    test = f"{test}, Benjamini-Hochberg over {layers} × {heads} heads" if most > 1 else "no test: fewer than two examples"
    return style.joined(f"{shifts['model'].iloc[0]} less {shifts['baseline'].iloc[0]}", n, f"{region} queries", test)


def difference_scale(values: np.ndarray, limit: float | None = None) -> Scale:
    """Diverging colours, symmetric about 0, for differences of any shape; NaN is ignored.

    Args:
        values: differences in the measure's unit.
        limit: the scale's end, so that maps of several models compare; None: the largest size among `values`.
    """
    finite = np.abs(values[np.isfinite(values)])
    most = float(finite.max()) if finite.size else 0.0
    high = most if limit is None else limit
    high = high if high > 0 else 1.0  # nothing differs: any scale shows it
    ticks = (-high, -high / 2, 0.0, high / 2, high)
    extend = "both" if most > high * (1 + 1e-9) else "neither"
    texts = tuple(style.tick_text(tick) for tick in ticks)
    return Scale(Normalize(-high, high), style.look().diverging_colours, ticks, texts, extend, "linear", limit is None)


@style.paper_style()
def difference_map(
    shifts: pd.DataFrame,
    info: MeasureInfo,
    subtitle: str = "",
    region: str = "response",
    *,
    crossed: bool = False,
    limit: float | None = None,
) -> Figure | None:
    """The mean paired difference of every head, layers along x; heads that are not significant in grey, undefined ones hatched.

    The grey still tells the size of the difference, not its sign.

    Args:
        shifts: rows of `interp.tables.shifts.SHIFTS` of one model; or of `CONDITIONS` of one condition, called `model` here.
        info: the measure.
        subtitle: what was run; models, n, region, test and correction are added.
        region: where the queries stand.
        crossed: the rows are a condition's, whose test takes seeds and examples both as drawn; they have `n_seeds`.
        limit: the end of the colours, so that maps of several models compare; None: the largest difference here.

    Returns:
        The figure, one column wide, or None where the table has no row of the measure.

    Raises:
        InputError: the table holds several models or baselines.
    """
    if not is_measured(shifts, info.name):
        return None
    values = grid(shifts, info.name, region, "difference")
    clear = significant(shifts, info.name, region)
    about = about_test(shifts, info, region, crossed)
    return clear_map(values, clear, replace(info, title=f"Difference: {info.title}"), (about, subtitle), limit)


def clear_map(values: np.ndarray, clear: np.ndarray, info: MeasureInfo, about: tuple[str, str], limit: float | None = None) -> Figure:
    """Differences of every head, layers along x; those that are not clear in grey, undefined ones hatched; one column wide.

    Args:
        values: differences, [layer, head], NaN where undefined.
        clear: whether q is at most `RATE`, [layer, head].
        info: gives title and unit.
        about: what is compared and tested, and what was run; between them stands how many heads are clear.
        limit: the end of the colours; None: the largest difference here.
    """
    at = style.look()
    width = at.column("one")
    quiet = np.isfinite(values) & ~clear
    undefined = bool(np.isnan(values).any())
    scale = difference_scale(values, limit)
    title = style.heading(info, width - 0.1, 2, size=at.title)
    counted = f"{int(clear.sum())} of {int(np.isfinite(values).sum())} heads have q ≤ {RATE:g}"
    subtitle = style.joined(about[0], f"grey: q > {RATE:g}", counted, about[1])
    room = style.titles_inches(width, title, subtitle) + (0.35 + 0.15 * (bool(quiet.any()) + undefined)) * at.zoom
    height = at.height(float(np.clip((width - 0.75 * at.zoom) * values.shape[1] / values.shape[0], 1.15, 2.4)), room)
    figure = style.new_figure(width, height + room)
    axes = figure.add_subplot()
    style.set_titles(figure, title, subtitle)
    image = draw_map(axes, np.where(clear, values, np.nan), scale)
    greys = LinearSegmentedColormap.from_list("quiet", at.quiet)
    axes.imshow(
        np.ma.masked_where(~quiet.T, np.abs(values.T)),
        norm=Normalize(0, scale.norm.vmax),
        cmap=greys,
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_xlabel("layer")
    axes.set_ylabel("head")
    bar = figure.colorbar(image, ax=axes, extend=scale.extend, aspect=28, pad=0.02)
    draw_colour_bar(bar, scale)
    bar.set_label(style.unit_label(info))
    marks: list[Artist] = []
    texts: list[str] = []
    if quiet.any():
        marks.append(Patch(facecolor=greys(0.5), linewidth=0))
        further = "lighter" if at.name == "dark" else "darker"
        texts.append(f"q > {RATE:g}, {further} the larger")
    if undefined:
        marks.append(Patch(facecolor=at.undefined_face, edgecolor=at.undefined_hatch, hatch="//////", linewidth=0))
        texts.append("undefined: nothing to measure")
    if marks:
        figure.legend(marks, texts, loc="outside lower left", labelspacing=0.2)
    return figure


@dataclass(frozen=True)
class VolcanoPoints:
    """The tested heads of a volcano plot, in the order of layers and heads.

    Attributes:
        layer: of each head.
        head: its number in the layer.
        x: effect d_z; an infinite one lies at `edge_x`.
        y: −log10 p; a p of 0 lies at `edge_y`.
        clear: whether q is at most `RATE`.
        capped: whether x or y stands for infinity.
        edge_x: beyond every finite effect's size.
        edge_y: beyond every finite −log10 p.
        line: −log10 of the largest p with q at most `RATE`; None where there is none above 0.
    """

    layer: np.ndarray
    head: np.ndarray
    x: np.ndarray
    y: np.ndarray
    clear: np.ndarray
    capped: np.ndarray
    edge_x: float
    edge_y: float
    line: float | None


def volcano_points(shifts: pd.DataFrame, measure: str, region: str) -> VolcanoPoints:
    """Effects and −log10 p of the heads that have a test; infinite ones are put at an edge beyond all others."""
    effect, p = grid(shifts, measure, region, "effect"), grid(shifts, measure, region, "p")
    layer, head = np.nonzero(np.isfinite(p) & ~np.isnan(effect))
    effect, p = effect[layer, head], p[layer, head]
    clear = significant(shifts, measure, region)[layer, head]
    with np.errstate(divide="ignore"):
        height = -np.log10(p) + 0.0  # no −0
    sizes, heights = np.abs(effect[np.isfinite(effect)]), height[np.isfinite(height)]
    edge_x = 1.15 * max(float(sizes.max()) if sizes.size else 0.0, 0.1)
    edge_y = 1.12 * max(float(heights.max()) if heights.size else 0.0, 2.0)
    capped = ~np.isfinite(effect) | ~np.isfinite(height)
    passed = p[clear]
    largest = float(passed.max()) if passed.size else 0.0
    return VolcanoPoints(
        layer=layer,
        head=head,
        x=np.clip(effect, -edge_x, edge_x),
        y=np.minimum(height, edge_y),
        clear=clear,
        capped=capped,
        edge_x=edge_x,
        edge_y=edge_y,
        line=float(-np.log10(largest)) if largest > 0 else None,
    )


def place_labels(points: np.ndarray, chosen: list[int], sizes: np.ndarray, room: tuple[float, float]) -> np.ndarray:
    """Centres of labels near their points, apart from each other, inside the axes, and off other points where that can be.

    Args:
        points: all points, inches from the axes' lower left, [point, 2].
        chosen: the points with a label, most important first.
        sizes: width and height of each label, inches, [label, 2].
        room: width and height of the axes, inches.

    Returns:
        [label, 2], inches. A label that finds no free place lies above its point.
    """
    centres: list[np.ndarray] = []
    angles = np.deg2rad([30, 150, -30, 210, 90, -90, 0, 180, 60, 120, -60, 240])
    for index, size in zip(chosen, sizes, strict=True):
        best, fewest = points[index] + (0.0, size[1]), len(points) + 1
        for reach in np.arange(0.05, 1.2, 0.07):
            for angle in angles:
                centre = points[index] + (reach + size / 2) * (np.cos(angle), np.sin(angle))
                if (centre - size / 2 < 0).any() or (centre + size / 2 > room).any():
                    continue
                taken = zip(centres, sizes, strict=False)
                if any((np.abs(centre - other) < (size + other_size) / 2 + 0.01).all() for other, other_size in taken):
                    continue
                covered = int((np.abs(points - centre) < size / 2 + 0.025).all(1).sum())
                if covered < fewest:
                    best, fewest = centre, covered
            if fewest == 0:
                break
        centres.append(best)
    return np.array(centres).reshape(-1, 2)


@style.paper_style()
def volcano(
    shifts: pd.DataFrame, info: MeasureInfo, subtitle: str = "", region: str = "response", *, crossed: bool = False
) -> Figure | None:
    """Effect size d_z (x) against −log10 p (y), a point a head; the five significant heads with the largest effect have their name.

    A condition's rows need the column `effect` too: the mean of its seeds' effect sizes.

    Args:
        shifts: rows of `interp.tables.shifts.SHIFTS` of one model; or of `CONDITIONS` of one condition, called `model` here.
        info: the measure.
        subtitle: what was run; models, n, region, test and correction are added.
        region: where the queries stand.
        crossed: the rows are a condition's, whose test takes seeds and examples both as drawn; they have `n_seeds`.

    Returns:
        The figure, one column wide, or None where no head has a test. A head whose p is 0 or whose effect is infinite is a triangle
        at the edge.

    Raises:
        InputError: the table holds several models or baselines.
    """
    if not is_measured(shifts, info.name):
        return None
    at, heads = style.look(), volcano_points(shifts, info.name, region)
    about = about_test(shifts, info, region, crossed)
    if not len(heads.x):
        return None
    width = at.column("one")
    title = style.heading(replace(info, title=f"Effect of the difference: {info.title}"), width - 0.1, 2, size=at.title)
    named = "named: the largest effects" if heads.clear.any() else f"no head has q ≤ {RATE:g}"
    subtitle = style.joined(about, named, subtitle)
    marks, texts = _volcano_key(heads)
    columns = 1 if width < 5 else 2
    rows = -(-len(marks) // columns)
    left, right, bottom = 0.42 * at.zoom, 0.16 * at.zoom, 0.36 * at.zoom
    header = style.titles_inches(width, title, subtitle) + (0.06 + 0.125 * rows) * at.zoom
    across = width - left - right
    down = at.height(2.3, header + bottom, least=1.3)
    height = header + down + bottom
    figure = style.new_figure(width, height, constrained=False)
    style.set_titles(figure, title, subtitle)
    top = 1 - style.titles_inches(width, title, subtitle) / height
    figure.legend(
        marks, texts, loc="upper left", bbox_to_anchor=(0, top), ncols=columns, labelspacing=0.15, borderpad=0, handlelength=1.5
    )  # fmt: skip
    axes = figure.add_axes((left / width, bottom / height, across / width, down / height))
    reach, ceiling = 1.08 * heads.edge_x, 1.06 * heads.edge_y
    axes.set_xlim(-reach, reach)
    axes.set_ylim(0, ceiling)
    axes.axvline(0.0, color=at.grey, linewidth=0.5 * at.zoom, zorder=1)
    if heads.line is not None:
        axes.axhline(heads.line, color=at.grey, linewidth=0.8 * at.zoom, linestyle="--", zorder=1)
    size = (9 if len(heads.x) <= 1200 else 4) * at.zoom**2
    for colour, chosen in _volcano_groups(heads).values():
        for marker, of_kind in (("o", chosen & ~heads.capped), ("^", chosen & heads.capped)):
            if of_kind.any():
                scale = 2.2 if marker == "^" else 1.0
                axes.scatter(
                    heads.x[of_kind], heads.y[of_kind], s=size * scale, color=colour, marker=marker, linewidths=0.2,
                    edgecolors=at.background, zorder=2, clip_on=False,
                )  # fmt: skip
    _name_heads(axes, heads, (across, down))
    short = "mean of the seeds' effect sizes d_z" if crossed else "effect size d_z"
    long = short if crossed else f"{short} (mean difference / standard deviation)"
    axes.set_xlabel(long if across > 2.6 * at.zoom else short)
    axes.set_ylabel("−log10 p")
    style.few_y_ticks(axes)
    axes.xaxis.set_major_formatter(lambda value, _: style.tick_text(value))
    axes.locator_params(axis="x", nbins=6)
    style.open_axes(axes)
    return figure


def _volcano_groups(heads: VolcanoPoints) -> dict[str, tuple[str, np.ndarray]]:
    """Name in the key to colour and members; those behind others first."""
    at = style.look()
    return {
        f"q > {RATE:g}": (at.quiet[1], ~heads.clear),
        f"higher than the baseline, q ≤ {RATE:g}": (at.vermillion, heads.clear & (heads.x > 0)),
        f"lower than the baseline, q ≤ {RATE:g}": (at.blue, heads.clear & (heads.x <= 0)),
    }


def _volcano_key(heads: VolcanoPoints) -> tuple[list[Artist], list[str]]:
    at = style.look()
    marks: list[Artist] = []
    texts: list[str] = []
    for name, (colour, chosen) in reversed(_volcano_groups(heads).items()):
        marks.append(Line2D([], [], color=colour, marker="o", markersize=3 * at.zoom, linestyle="none"))
        texts.append(f"{name}: {int(chosen.sum())} head{'' if chosen.sum() == 1 else 's'}")
    if heads.line is not None:
        marks.append(Line2D([], [], color=at.grey, linestyle="--", linewidth=0.8 * at.zoom))
        texts.append(f"largest p with q ≤ {RATE:g}")
    if heads.capped.any():
        marks.append(Line2D([], [], color=at.ink, marker="^", markersize=4 * at.zoom, linestyle="none"))
        texts.append("p of 0 or infinite effect, put at the edge")
    return marks, texts


def _name_heads(axes: Axes, heads: VolcanoPoints, room: tuple[float, float]) -> None:
    at = style.look()
    order = np.lexsort((heads.head, heads.layer, -heads.y, -np.abs(heads.x)))
    chosen = [int(index) for index in order if heads.clear[index]][:LABELLED]
    names = [f"{heads.layer[index]}.{heads.head[index]}" for index in chosen]
    sizes = np.array([(style.text_inches(name, at.small), at.small / 72) for name in names]).reshape(-1, 2)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    to_inches = np.array([room[0] / (right - left), room[1] / (high - low)])
    points = (np.stack([heads.x, heads.y], 1) - (left, low)) * to_inches
    for name, index, centre in zip(names, chosen, place_labels(points, chosen, sizes, room), strict=True):
        x, y = centre / to_inches + (left, low)
        line = [heads.x[index], x], [heads.y[index], y]
        axes.plot(*line, color=at.grey, linewidth=0.4 * at.zoom, zorder=1.5)
        ground = {"facecolor": at.background, "edgecolor": "none", "pad": 0.3, "alpha": 0.8}
        axes.text(x, y, name, ha="center", va="center", bbox=ground, zorder=3)
