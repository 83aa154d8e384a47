"""Read columns of the head table as arrays [layer, head]."""

from __future__ import annotations

import numpy as np
import pandas as pd


def grid(heads: pd.DataFrame, measure: str, region: str, column: str = "value") -> np.ndarray:
    """Return one column of the head table for one measure and region.

    Args:
        heads: a table of one model with columns as in `interp.tables.heads.HEADS`.
        measure: as in the `measure` column.
        region: one of `interp.tables.schema.REGIONS`.
        column: "value", "ci_low", "ci_high", "n_examples" or "n_queries".

    Returns:
        A float array [layer, head] in the measure's unit, NaN where the value is undefined or has no row. Its shape is that of the whole
        table, so that all measures of a run line up.
    """
    values = np.full(grid_shape(heads), np.nan)
    chosen = ((heads["measure"] == measure) & (heads["region"] == region)).to_numpy(bool)
    layer, head = heads["layer"].to_numpy()[chosen], heads["head"].to_numpy()[chosen]
    values[layer, head] = heads[column].to_numpy(float)[chosen]
    return values


def grid_shape(heads: pd.DataFrame) -> tuple[int, int]:
    """Return the number of layers, and of heads in the widest layer."""
    return int(heads["layer"].to_numpy().max()) + 1, int(heads["head"].to_numpy().max()) + 1


def is_measured(heads: pd.DataFrame, measure: str) -> bool:
    """Return whether the table has a row of the measure."""
    return bool((heads["measure"] == measure).any())
