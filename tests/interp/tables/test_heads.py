"""A head run's values as an array: complete grids, and tables that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interp.tables.errors import InputError
from interp.tables.heads import EXAMPLE_VALUES, read_values
from interp.tables.schema import REGIONS, validate


def grid_of_examples() -> pd.DataFrame:
    axes = [[3, 7], [0, 2], range(3), ["a", "b"], REGIONS]
    index = pd.MultiIndex.from_product(axes, names=["example", "layer", "head", "measure", "region"])
    frame = index.to_frame(index=False).assign(model="m", n_queries=1)
    frame["value"] = np.arange(len(frame), dtype=float)
    frame.loc[5, ["value", "n_queries"]] = [np.nan, 0]
    return frame


def test_a_table_is_read_as_an_array(tmp_path: Path) -> None:
    frame = grid_of_examples()
    pq.write_table(validate(frame, EXAMPLE_VALUES), tmp_path / "e.parquet", row_group_size=7)
    found = read_values(tmp_path / "e.parquet")
    assert (found.model, found.examples, found.layers, found.n_heads, found.measures) == ("m", (3, 7), (0, 2), 3, ("a", "b"))
    np.testing.assert_array_equal(found.values.ravel(), frame["value"])
    assert found.values.shape == (2, 2, 3, 2, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.iloc[::-1], "regions all, response, question"),
        (lambda f: f.sort_values("layer", kind="stable"), "out of order by example"),
        (lambda f: f.iloc[:-1], "71 rows, 2 x 2 x 3 x 2 x 3 were expected"),
        (lambda f: f.assign(model=["m", "n"] * 36), "expected one model, found 2: m, n"),
        (lambda f: f.assign(example=8 - f["example"]), "not in ascending order"),
        (lambda f: f.assign(value=np.inf), "measured but not finite"),
        (
            lambda f: f.assign(value=f["value"].where(f.index != 9)),
            "1 rows are measured but not finite.*'example': 3, 'layer': 0, 'head': 1",
        ),
        (lambda f: f.assign(n_queries=0), "finite but not measured"),
        (lambda f: f.iloc[:0], "expected one model, found 0"),
    ],
)
def test_a_table_that_is_not_a_complete_grid_is_refused(change: Any, words: str, tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_pandas(change(grid_of_examples())[EXAMPLE_VALUES.arrow.names], EXAMPLE_VALUES.arrow, preserve_index=False),
        tmp_path / "e",
    )
    with pytest.raises(InputError, match=words):
        read_values(tmp_path / "e")


def test_a_table_with_other_columns_or_an_incomplete_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"model": ["m"], "mean": [1.0]}), tmp_path / "old")
    with pytest.raises(InputError, match="missing columns"):
        read_values(tmp_path / "old")
    pq.write_table(validate(grid_of_examples(), EXAMPLE_VALUES), tmp_path / "e")
    (tmp_path / "incomplete").write_bytes((tmp_path / "e").read_bytes()[:100])
    for name in ("incomplete", "none"):
        with pytest.raises(InputError, match="not a readable Parquet file"):
            read_values(tmp_path / name)
