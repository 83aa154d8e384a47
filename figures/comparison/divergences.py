"""How far the attention maps of a model are from the baseline's on the same texts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.drawing import lines as named_lines
from figures.drawing import style
from figures.drawing.columns import counts, require
from figures.drawing.grid import grid, grid_shape
from figures.drawing.panels import map_panels
from figures.run.head_maps import head_map
from figures.run.layer_curves import layer_summary
from interp.tables.schema import MeasureInfo

JS = MeasureInfo("js", "Jensen-Shannon divergence of attention maps", "nats", 0.0, None, "H((p + q) / 2) − (H(p) + H(q)) / 2")
"""At most ln 2; the colours' upper limit follows the data, since maps of students are far closer than that."""


BANDS = 6
"""With more models than this no intervals are drawn: they would hide each other."""


COLUMNS = ("model", "baseline", "layer", "head", "measure", "region", "mean", "ci_low", "ci_high", "n_examples")


def _chosen(divergences: pd.DataFrame, info: MeasureInfo, region: str) -> pd.DataFrame:
    require(divergences, COLUMNS, "divergences")
    rows = divergences[(divergences["measure"] == info.name) & (divergences["region"] == region)]
    condition = rows["condition"] if "condition" in rows else rows["model"]
    names = {"model": rows["model"].astype(str), "baseline": rows["baseline"].astype(str), "condition": condition.astype(str)}
    return rows.assign(**names).rename(columns={"mean": "value"})


def _told(rows: pd.DataFrame, info: MeasureInfo) -> str:
    limit = "at most ln 2 = 0.693" if info.name == JS.name else ""
    baselines = list(dict.fromkeys(rows["baseline"]))
    against = f"against {baselines[0]}" if len(baselines) == 1 else f"against {len(baselines)} baselines by seed"
    return style.joined(against, f"mean over n = {counts(rows['n_examples'])} examples", limit)


def divergence_map(divergences: pd.DataFrame, subtitle: str = "", region: str = "response", info: MeasureInfo = JS) -> Figure | None:
    """How far every head's map is from the baseline's; one column wide for one model, else a panel a model on one scale.

    Args:
        divergences: rows of `interp.tables.shifts.MAP_DIVERGENCES`.
        subtitle: what was run; baseline, n and the colours' limits are added.
        region: where the queries stand.
        info: which divergence; its name is looked for in the column measure.

    Returns:
        The figure, or None where the table has no row of the measure and region.

    Raises:
        InputError: the table lacks a column.
    """
    rows = _chosen(divergences, info, region)
    if rows.empty:
        return None
    names = list(dict.fromkeys(rows["model"]))
    told = style.joined(subtitle, _told(rows, info), "no test")
    if len(names) == 1:
        return head_map(rows, info, style.joined(names[0], told), region)
    shape = grid_shape(rows)
    maps = {}
    for name in names:
        values = grid(rows[rows["model"] == name], info.name, region)
        maps[name] = np.pad(values, [(0, whole - part) for whole, part in zip(shape, values.shape, strict=True)], constant_values=np.nan)
    title = style.heading(info, style.look().two - 0.1, 1, size=style.look().title)
    return map_panels(maps, info, title, style.joined(told, f"{region} queries"))


@style.paper_style()
def divergence_curves(divergences: pd.DataFrame, subtitle: str = "", region: str = "response", info: MeasureInfo = JS) -> Figure | None:
    """Mean divergence of a layer's heads from the baseline's maps, a line a model; two columns wide.

    Where the table also has a column condition with several models of one condition, these are thin lines of one colour, and their mean
    is thick. Else, of up to six models, the band is the mean of the heads' 95 % intervals over examples, the mean's interval at its widest
    (see `figures.run.layer_curves.layer_summary`).

    Args:
        divergences: rows of `interp.tables.shifts.MAP_DIVERGENCES`.
        subtitle: what was run; baseline and n are added.
        region: where the queries stand.
        info: which divergence.

    Returns:
        The figure, or None where the table has no row of the measure and region.

    Raises:
        InputError: the table lacks a column.
    """
    rows = _chosen(divergences, info, region)
    if rows.empty:
        return None
    look = named_lines.looks(list(rows["condition"]))
    students = rows["model"].nunique()
    several = students > len(look)
    banded = students <= BANDS and not several
    band = "band: its 95 % bootstrap interval over examples, at most this wide" if banded else "no intervals drawn"
    thin = "thin: a model, thick: mean of a condition's models" if several else ""
    layers, heads = grid_shape(rows)
    title = style.heading(info, style.look().two - 0.1, 1, size=style.look().title)
    line = f"line: mean of a layer's {heads} heads"
    subtitle = style.joined(subtitle, _told(rows, info), f"{region} queries", line, thin, band, "no test")
    figure, (axes,), beside = named_lines.line_panels(title, subtitle, look, 1, 1, down=2.0, margins=(0.5, 0.08, 0.1, 0.36))
    lines = {}
    for name, one in look.items():
        of_condition = rows[rows["condition"] == name]
        summaries = {model: layer_summary(of_model, info.name, region) for model, of_model in of_condition.groupby("model", sort=False)}
        means = pd.concat([summary["mean"] for summary in summaries.values()], axis=1)
        if banded:
            for summary in summaries.values():
                axes.fill_between(summary.index, summary["mean_low"], summary["mean_high"], color=one.colour, alpha=0.2, linewidth=0)
        if means.shape[1] > 1:
            axes.plot(means.index, means, color=one.colour, linestyle=one.dash, linewidth=0.5, alpha=0.6)
        thick = means.mean(axis=1)
        mark = "o" if thick.notna().sum() == 1 else ""
        axes.plot(thick.index, thick, color=one.colour, linestyle=one.dash, marker=mark, markersize=3)
        lines[name] = one, thick
    axes.set_xlim(-0.5, layers - 0.5)
    axes.set_ylim(0, max(axes.get_ylim()[1], 1e-12))
    axes.set_xticks(style.count_ticks(style.axes_inches(axes)[0], layers))
    style.few_y_ticks(axes)
    axes.set_xlabel("layer")
    axes.set_ylabel(style.unit_label(info))
    style.open_axes(axes)
    if beside:
        named_lines.name_ends(axes, lines)
    return figure
