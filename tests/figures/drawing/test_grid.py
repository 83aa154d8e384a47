"""figures.drawing.grid: rows of the table at their layer and head."""

from __future__ import annotations

import numpy as np
import pandas as pd

from figures.drawing.grid import grid, grid_shape, is_measured


def _table() -> pd.DataFrame:
    rows = [(0, 0, "a", "all", 1.0), (1, 1, "a", "all", 4.0), (1, 0, "a", "all", 3.0), (2, 0, "b", "question", 9.0)]
    return pd.DataFrame(rows, columns=["layer", "head", "measure", "region", "value"])


def test_values_are_at_their_layer_and_head_and_missing_rows_are_nan():
    values = grid(_table(), "a", "all")
    np.testing.assert_array_equal(values, [[1.0, np.nan], [3.0, 4.0], [np.nan, np.nan]])


def test_the_shape_covers_the_entire_table():
    assert grid_shape(_table()) == (3, 2)
    assert np.isnan(grid(_table(), "b", "all")).all()


def test_is_measured_reports_whether_a_measure_has_rows():
    assert is_measured(_table(), "b")
    assert not is_measured(_table(), "c")
