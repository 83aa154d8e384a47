"""Maps of the difference between right and wrong answers, and the subtitle that all figures of a contrast share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.drawing.columns import count_text
from figures.drawing.grid import grid, grid_shape, is_measured
from figures.drawing.significance import FALSE_DISCOVERY_RATE, significance_map
from figures.drawing.style import paper_style
from figures.drawing.text import joined
from interp.tables.contrast import PAIRED
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo


def about_contrast(contrast: pd.DataFrame, measure: str | None, region: str) -> str:
    """Return what a subtitle reports: model, numbers of answers, queries, test and correction.

    Args:
        contrast: rows of `interp.tables.contrast.CONTRAST` of one model.
        measure: the measure whose counts are reported; None for all.
        region: where the queries are.

    Raises:
        InputError: the table holds several models.
    """
    names = sorted(contrast["model"].astype(str).unique())
    if len(names) != 1:
        raise InputError(f"the table of the contrast has {len(names)} models ({', '.join(names)}); choose the rows of one")
    rows = contrast[(contrast["region"] == region) & (contrast["measure"] == measure if measure else True) & contrast["p"].notna()]
    paired = names[0] == PAIRED
    answers = f"{count_text(rows['n_right'])} right, {count_text(rows['n_wrong'])} wrong answers"
    answers += f" on {count_text(rows['n_problems'])} problems that have both" if paired else ""
    layers, heads = grid_shape(contrast)
    test = "models paired by problem, t test clustered by problem" if paired else "Welch's t test"
    return joined(
        "" if paired else names[0], answers, f"{region} queries", f"{test}, Benjamini-Hochberg over {layers} × {heads} heads"
    )  # fmt: skip


@paper_style()
def contrast_map(contrast: pd.DataFrame, info: MeasureInfo, subtitle: str = "", region: str = "response") -> Figure | None:
    """Draw right minus wrong answers for every head: significant heads in color, the others in gray, undefined ones hatched.

    Args:
        contrast: rows of `interp.tables.contrast.CONTRAST` of one model.
        info: the measure.
        subtitle: what was run; model, counts, region, test and correction are added.
        region: where the queries are.

    Returns:
        The figure, one column wide, or None where no head has a test.

    Raises:
        InputError: the table holds several models.
    """
    if not is_measured(contrast, info.name):
        return None
    values = grid(contrast, info.name, region, "difference")
    significant = grid(contrast, info.name, region, "q") <= FALSE_DISCOVERY_RATE
    about = about_contrast(contrast, info.name, region)
    if not np.isfinite(values).any():
        return None
    return significance_map(values, significant, replace(info, title=f"Right minus wrong: {info.title}"), (about, subtitle))
