"""Divergence of a model's attention maps from the baseline's on the same texts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.drawing.columns import condition_names, count_text, require_columns
from figures.drawing.grid import grid, grid_shape
from figures.drawing.layout import axes_inches, count_ticks, few_ticks, open_axes
from figures.drawing.lines import draw_seeds, line_panels, line_styles, name_line_ends
from figures.drawing.panels import map_panels
from figures.drawing.style import active_style, paper_style
from figures.drawing.text import heading, joined, unit_label
from figures.run.head_maps import head_map
from figures.run.layer_curves import layer_summary
from interp.tables.schema import MeasureInfo

JENSEN_SHANNON = MeasureInfo(
    "js", "Jensen-Shannon divergence of attention maps", "nats", 0.0, None, "H((p + q) / 2) − (H(p) + H(q)) / 2"
)  # fmt: skip
"""At most ln 2. The color scale follows the data, because maps of students are much closer than that."""

_MOST_BANDS = 6
"""With more models than this no intervals are drawn, because they would hide each other."""

_COLUMNS = ("model", "baseline", "layer", "head", "measure", "region", "mean", "ci_low", "ci_high", "n_examples")


def _chosen(divergences: pd.DataFrame, info: MeasureInfo, region: str) -> pd.DataFrame:
    require_columns(divergences, _COLUMNS, "divergences")
    rows = divergences[(divergences["measure"] == info.name) & (divergences["region"] == region)]
    names = {"model": rows["model"].astype(str), "baseline": rows["baseline"].astype(str), "condition": condition_names(rows)}
    return rows.assign(**names).rename(columns={"mean": "value"})


def _about(rows: pd.DataFrame, info: MeasureInfo) -> str:
    limit = "at most ln 2 = 0.693" if info.name == JENSEN_SHANNON.name else ""
    baselines = list(dict.fromkeys(rows["baseline"]))
    against = f"compared with {baselines[0]}" if len(baselines) == 1 else f"compared with {len(baselines)} baselines by seed"
    return joined(against, f"mean over n = {count_text(rows['n_examples'])} examples", limit)


def divergence_map(
    divergences: pd.DataFrame, subtitle: str = "", region: str = "response", info: MeasureInfo = JENSEN_SHANNON
) -> Figure | None:
    """Draw the divergence of every head's map from the baseline's; one column wide for one model, else one panel per model on one scale.

    Args:
        divergences: rows of `interp.tables.shifts.MAP_DIVERGENCES`.
        subtitle: what was run; baseline, n and the limits of the color scale are added.
        region: where the queries are.
        info: the divergence; its name is looked up in the column `measure`.

    Returns:
        The figure, or None where the table has no row of the measure and region.

    Raises:
        InputError: the table lacks a column.
    """
    rows = _chosen(divergences, info, region)
    if rows.empty:
        return None
    names = list(dict.fromkeys(rows["model"]))
    note = joined(subtitle, _about(rows, info), "no test")
    if len(names) == 1:
        return head_map(rows, info, joined(names[0], note), region)
    shape = grid_shape(rows)
    maps = {}
    for name in names:
        values = grid(rows[rows["model"] == name], info.name, region)
        maps[name] = np.pad(values, [(0, full - part) for full, part in zip(shape, values.shape, strict=True)], constant_values=np.nan)
    title = heading(info, active_style().two - 0.1, 1, size=active_style().title)
    return map_panels(maps, info, title, joined(note, f"{region} queries"))


@paper_style()
def divergence_curves(
    divergences: pd.DataFrame, subtitle: str = "", region: str = "response", info: MeasureInfo = JENSEN_SHANNON
) -> Figure | None:
    """Draw the mean divergence of a layer's heads from the baseline's maps, one line per model; two columns wide.

    Where the table also has a column `condition` with several models of one condition, these are thin lines of one color, and their mean
    is thick. Otherwise, for up to six models, the band is the mean of the heads' 95 % intervals over examples, an upper bound of the mean's
    own interval (see `figures.run.layer_curves.layer_summary`).

    Args:
        divergences: rows of `interp.tables.shifts.MAP_DIVERGENCES`.
        subtitle: what was run; baseline and n are added.
        region: where the queries are.
        info: the divergence.

    Returns:
        The figure, or None where the table has no row of the measure and region.

    Raises:
        InputError: the table lacks a column.
    """
    rows = _chosen(divergences, info, region)
    if rows.empty:
        return None
    styles = line_styles(list(rows["condition"]))
    students = rows["model"].nunique()
    several = students > len(styles)
    banded = students <= _MOST_BANDS and not several
    layers, heads = grid_shape(rows)
    title = heading(info, active_style().two - 0.1, 1, size=active_style().title)
    subtitle = joined(
        subtitle,
        _about(rows, info),
        f"{region} queries",
        f"line: mean of a layer's {heads} heads",
        "thin: a model, thick: mean of a condition's models" if several else "",
        "band: its 95 % bootstrap interval over examples, at most this wide" if banded else "no intervals drawn",
        "no test",
    )
    figure, (axes,), beside = line_panels(title, subtitle, styles, 1, 1, down=2.0, margins=(0.5, 0.08, 0.1, 0.36))
    lines = {}
    for name, line in styles.items():
        of_condition = rows[rows["condition"] == name]
        summaries = {model: layer_summary(of_model, info.name, region) for model, of_model in of_condition.groupby("model", sort=False)}
        means = pd.concat([summary["mean"] for summary in summaries.values()], axis=1)
        if banded:
            for summary in summaries.values():
                axes.fill_between(summary.index, summary["mean_low"], summary["mean_high"], color=line.color, alpha=0.2, linewidth=0)
        lines[name] = line, draw_seeds(axes, means, line)
    axes.set_xlim(-0.5, layers - 0.5)
    axes.set_ylim(0, max(axes.get_ylim()[1], 1e-12))
    axes.set_xticks(count_ticks(axes_inches(axes)[0], layers))
    few_ticks(axes, "y")
    axes.set_xlabel("layer")
    axes.set_ylabel(unit_label(info))
    open_axes(axes)
    if beside:
        name_line_ends(axes, lines)
    return figure
