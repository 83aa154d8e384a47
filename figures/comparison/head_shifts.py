"""Maps of the difference between a model's heads and its baseline's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.drawing.grid import grid, grid_shape, is_measured
from figures.drawing.significance import FALSE_DISCOVERY_RATE, significance_map
from figures.drawing.style import paper_style
from figures.drawing.text import joined
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo


def significant_heads(shifts: pd.DataFrame, measure: str, region: str) -> np.ndarray:
    """Return which heads have q of at most `FALSE_DISCOVERY_RATE`, [layer, head]; a head without a test is not significant."""
    return grid(shifts, measure, region, "q") <= FALSE_DISCOVERY_RATE


def about_shifts(shifts: pd.DataFrame, info: MeasureInfo, region: str, crossed: bool = False) -> str:
    """Return what a subtitle reports: models, number of examples, queries, test and correction.

    Args:
        shifts: rows of `interp.tables.shifts.SHIFTS` of one model.
        info: the measure.
        region: where the queries are.
        crossed: the rows are those of a condition, whose test treats both seeds and examples as random; they have `n_seeds`.

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
    return joined(f"{shifts['model'].iloc[0]} minus {shifts['baseline'].iloc[0]}", n, f"{region} queries", test)


@paper_style()
def difference_map(
    shifts: pd.DataFrame,
    info: MeasureInfo,
    subtitle: str = "",
    region: str = "response",
    *,
    crossed: bool = False,
    limit: float | None = None,
) -> Figure | None:
    """Draw the mean paired difference of every head; heads that are not significant are gray, undefined ones hatched.

    The gray still shows the size of the difference, not its sign.

    Args:
        shifts: rows of `interp.tables.shifts.SHIFTS` of one model; or of `CONDITIONS` of one condition, in a column named `model`.
        info: the measure.
        subtitle: what was run; models, n, region, test and correction are added.
        region: where the queries are.
        crossed: the rows are those of a condition, whose test treats both seeds and examples as random; they have `n_seeds`.
        limit: end of the color scale, so that maps of several models can be compared; None: the largest difference here.

    Returns:
        The figure, one column wide, or None where the table has no row of the measure.

    Raises:
        InputError: the table holds several models or baselines.
    """
    if not is_measured(shifts, info.name):
        return None
    values = grid(shifts, info.name, region, "difference")
    about = about_shifts(shifts, info, region, crossed)
    significant = significant_heads(shifts, info.name, region)
    return significance_map(values, significant, replace(info, title=f"Difference: {info.title}"), (about, subtitle), limit)
