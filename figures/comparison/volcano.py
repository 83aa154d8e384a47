"""Volcano plots: effect size of each head's difference against its p value."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.comparison.head_shifts import about_shifts, significant_heads
from figures.drawing.grid import grid, is_measured
from figures.drawing.layout import few_ticks, open_axes, set_titles, titles_inches
from figures.drawing.significance import FALSE_DISCOVERY_RATE
from figures.drawing.style import active_style, new_figure, paper_style
from figures.drawing.text import heading, joined, plural, text_inches, tick_text
from interp.tables.schema import MeasureInfo

_NAMED_HEADS = 5


@dataclass(frozen=True)
class VolcanoPoints:
    """The tested heads of a volcano plot, in the order of layers and heads.

    Attributes:
        layer: of each head.
        head: its number in the layer.
        x: effect size d_z; an infinite one is at `edge_x`.
        y: −log10 p; a p of 0 is at `edge_y`.
        significant: whether q is at most the false discovery rate.
        capped: whether x or y represents infinity.
        edge_x: beyond every finite effect size.
        edge_y: beyond every finite −log10 p.
        line: −log10 of the largest p of a significant head; None where there is none above 0.
    """

    layer: np.ndarray
    head: np.ndarray
    x: np.ndarray
    y: np.ndarray
    significant: np.ndarray
    capped: np.ndarray
    edge_x: float
    edge_y: float
    line: float | None


def volcano_points(shifts: pd.DataFrame, measure: str, region: str) -> VolcanoPoints:
    """Return effect sizes and −log10 p of the heads that have a test; infinite ones are placed beyond all others."""
    effect, p = grid(shifts, measure, region, "effect"), grid(shifts, measure, region, "p")
    layer, head = np.nonzero(np.isfinite(p) & ~np.isnan(effect))
    effect, p = effect[layer, head], p[layer, head]
    significant = significant_heads(shifts, measure, region)[layer, head]
    with np.errstate(divide="ignore"):
        height = -np.log10(p) + 0.0  # avoids −0
    sizes, heights = np.abs(effect[np.isfinite(effect)]), height[np.isfinite(height)]
    edge_x = 1.15 * max(float(sizes.max()) if sizes.size else 0.0, 0.1)
    edge_y = 1.12 * max(float(heights.max()) if heights.size else 0.0, 2.0)
    capped = ~np.isfinite(effect) | ~np.isfinite(height)
    passed = p[significant]
    largest = float(passed.max()) if passed.size else 0.0
    return VolcanoPoints(
        layer=layer,
        head=head,
        x=np.clip(effect, -edge_x, edge_x),
        y=np.minimum(height, edge_y),
        significant=significant,
        capped=capped,
        edge_x=edge_x,
        edge_y=edge_y,
        line=float(-np.log10(largest)) if largest > 0 else None,
    )


def place_labels(points: np.ndarray, chosen: list[int], sizes: np.ndarray, room: tuple[float, float]) -> np.ndarray:
    """Return centers of labels near their points that do not overlap, lie inside the axes, and cover as few other points as possible.

    Args:
        points: all points, in inches from the axes' lower left corner, [point, 2].
        chosen: the points with a label, the most important first.
        sizes: width and height of each label, in inches, [label, 2].
        room: width and height of the axes, in inches.

    Returns:
        [label, 2], in inches. A label without a free place is above its point.
    """
    centers: list[np.ndarray] = []
    angles = np.deg2rad([30, 150, -30, 210, 90, -90, 0, 180, 60, 120, -60, 240])
    for index, size in zip(chosen, sizes, strict=True):
        best, fewest = points[index] + (0.0, size[1]), len(points) + 1
        for reach in np.arange(0.05, 1.2, 0.07):
            for angle in angles:
                center = points[index] + (reach + size / 2) * (np.cos(angle), np.sin(angle))
                if (center - size / 2 < 0).any() or (center + size / 2 > room).any():
                    continue
                taken = zip(centers, sizes, strict=False)
                if any((np.abs(center - other) < (size + other_size) / 2 + 0.01).all() for other, other_size in taken):
                    continue
                covered = int((np.abs(points - center) < size / 2 + 0.025).all(1).sum())
                if covered < fewest:
                    best, fewest = center, covered
            if fewest == 0:
                break
        centers.append(best)
    return np.array(centers).reshape(-1, 2)


@paper_style()
def volcano(
    shifts: pd.DataFrame, info: MeasureInfo, subtitle: str = "", region: str = "response", *, crossed: bool = False
) -> Figure | None:
    """Draw effect size d_z (x) against −log10 p (y), one point per head; the five significant heads with the largest effects are named.

    Rows of a condition also need the column `effect`: the mean of its seeds' effect sizes.

    Args:
        shifts: rows of `interp.tables.shifts.SHIFTS` of one model; or of `CONDITIONS` of one condition, in a column named `model`.
        info: the measure.
        subtitle: what was run; models, n, region, test and correction are added.
        region: where the queries are.
        crossed: the rows are those of a condition, whose test treats both seeds and examples as random; they have `n_seeds`.

    Returns:
        The figure, one column wide, or None where no head has a test. A head whose p is 0 or whose effect is infinite is a triangle
        at the edge.

    Raises:
        InputError: the table holds several models or baselines.
    """
    if not is_measured(shifts, info.name):
        return None
    style, heads = active_style(), volcano_points(shifts, info.name, region)
    about = about_shifts(shifts, info, region, crossed)
    if not len(heads.x):
        return None
    width = style.column("one")
    title = heading(replace(info, title=f"Effect size of the difference: {info.title}", unit="d_z"), width - 0.1, 2, size=style.title)
    named = "named: the largest effects" if heads.significant.any() else f"no head has q ≤ {FALSE_DISCOVERY_RATE:g}"
    subtitle = joined(about, named, subtitle)
    marks, texts = _legend(heads)
    columns = 1 if width < 5 else 2
    rows = -(-len(marks) // columns)
    left, right, bottom = 0.42 * style.zoom, 0.16 * style.zoom, 0.36 * style.zoom
    titles = titles_inches(width, title, subtitle)
    header = titles + (0.06 + 0.125 * rows) * style.zoom
    across = width - left - right
    down = style.height(2.3, header + bottom, least=1.3)
    height = header + down + bottom
    figure = new_figure(width, height, constrained=False)
    set_titles(figure, title, subtitle)
    place = {"loc": "upper left", "bbox_to_anchor": (0, 1 - titles / height)}
    figure.legend(marks, texts, ncols=columns, labelspacing=0.15, borderpad=0, handlelength=1.5, **place)
    axes = figure.add_axes((left / width, bottom / height, across / width, down / height))
    _draw_points(axes, heads)
    _name_heads(axes, heads, (across, down))
    short = "mean of the seeds' effect sizes d_z" if crossed else "effect size d_z"
    long = short if crossed else f"{short} (mean difference / standard deviation)"
    axes.set_xlabel(long if across > 2.6 * style.zoom else short)
    axes.set_ylabel("−log10 p")
    few_ticks(axes, "y")
    axes.xaxis.set_major_formatter(lambda value, _: tick_text(value))
    axes.locator_params(axis="x", nbins=6)
    open_axes(axes)
    return figure


def _draw_points(axes: Axes, heads: VolcanoPoints) -> None:
    style = active_style()
    axes.set_xlim(-1.08 * heads.edge_x, 1.08 * heads.edge_x)
    axes.set_ylim(0, 1.06 * heads.edge_y)
    axes.axvline(0.0, color=style.gray, linewidth=0.5 * style.zoom, zorder=1)
    if heads.line is not None:
        axes.axhline(heads.line, color=style.gray, linewidth=0.8 * style.zoom, linestyle="--", zorder=1)
    size = (9 if len(heads.x) <= 1200 else 4) * style.zoom**2
    for color, chosen in _groups(heads).values():
        for marker, of_kind in (("o", chosen & ~heads.capped), ("^", chosen & heads.capped)):
            if of_kind.any():
                scale = 2.2 if marker == "^" else 1.0
                axes.scatter(
                    heads.x[of_kind], heads.y[of_kind], s=size * scale, color=color, marker=marker, linewidths=0.2,
                    edgecolors=style.background, zorder=2, clip_on=False,
                )  # fmt: skip


def _groups(heads: VolcanoPoints) -> dict[str, tuple[str, np.ndarray]]:
    """Return color and members of each group by its name in the legend, in the order of drawing."""
    style, rate = active_style(), f"{FALSE_DISCOVERY_RATE:g}"
    return {
        f"q > {rate}": (style.quiet[1], ~heads.significant),
        f"higher than the baseline, q ≤ {rate}": (style.vermillion, heads.significant & (heads.x > 0)),
        f"lower than the baseline, q ≤ {rate}": (style.blue, heads.significant & (heads.x <= 0)),
    }


def _legend(heads: VolcanoPoints) -> tuple[list[Artist], list[str]]:
    style = active_style()
    marks: list[Artist] = []
    texts: list[str] = []
    for name, (color, chosen) in reversed(_groups(heads).items()):
        marks.append(Line2D([], [], color=color, marker="o", markersize=3 * style.zoom, linestyle="none"))
        texts.append(f"{name}: {plural(int(chosen.sum()), 'head')}")
    if heads.line is not None:
        marks.append(Line2D([], [], color=style.gray, linestyle="--", linewidth=0.8 * style.zoom))
        texts.append(f"largest p with q ≤ {FALSE_DISCOVERY_RATE:g}")
    if heads.capped.any():
        marks.append(Line2D([], [], color=style.ink, marker="^", markersize=4 * style.zoom, linestyle="none"))
        texts.append("p of 0 or infinite effect, drawn at the edge")
    return marks, texts


def _name_heads(axes: Axes, heads: VolcanoPoints, room: tuple[float, float]) -> None:
    style = active_style()
    order = np.lexsort((heads.head, heads.layer, -heads.y, -np.abs(heads.x)))
    chosen = [int(index) for index in order if heads.significant[index]][:_NAMED_HEADS]
    names = [f"{heads.layer[index]}.{heads.head[index]}" for index in chosen]
    sizes = np.array([(text_inches(name, style.small), style.small / 72) for name in names]).reshape(-1, 2)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    to_inches = np.array([room[0] / (right - left), room[1] / (high - low)])
    points = (np.stack([heads.x, heads.y], 1) - (left, low)) * to_inches
    for name, index, center in zip(names, chosen, place_labels(points, chosen, sizes, room), strict=True):
        x, y = center / to_inches + (left, low)
        axes.plot([heads.x[index], x], [heads.y[index], y], color=style.gray, linewidth=0.4 * style.zoom, zorder=1.5)
        box = {"facecolor": style.background, "edgecolor": "none", "pad": 0.3, "alpha": 0.8}
        axes.text(x, y, name, ha="center", va="center", bbox=box, zorder=3)
