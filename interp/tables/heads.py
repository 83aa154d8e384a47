# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The tables of a head run, and a head run's values as an array.

- `HEADS`: one row per layer, head, measure and region, with a 95 % bootstrap interval over examples;
- `EXAMPLE_VALUES` (`examples.parquet`): the same quantities per example, without an interval;
- `INPUTS`: every token that the model read, so that anyone can recompute the values from the model alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from interp.tables.errors import InputError
from interp.tables.schema import REGIONS, ROLES, TEXT_TYPE, TOKEN_REGIONS, TableSchema

HEADS = TableSchema(
    name="heads",
    arrow=pa.schema(
        [
            ("model", TEXT_TYPE),
            ("layer", pa.int16()),
            ("head", pa.int16()),
            ("measure", TEXT_TYPE),
            ("region", TEXT_TYPE),
            ("value", pa.float64()),
            ("ci_low", pa.float64()),
            ("ci_high", pa.float64()),
            ("n_examples", pa.int32()),
            ("n_queries", pa.int64()),
        ]
    ),
    key=("model", "layer", "head", "measure", "region"),
    choices={"region": REGIONS},
)
"""A row per head, measure and region, with a 95 % bootstrap interval over examples."""

EXAMPLE_VALUES = TableSchema(
    name="examples",
    arrow=pa.schema(
        [
            ("model", TEXT_TYPE),
            ("example", pa.int32()),
            ("layer", pa.int16()),
            ("head", pa.int16()),
            ("measure", TEXT_TYPE),
            ("region", TEXT_TYPE),
            ("value", pa.float64()),
            ("n_queries", pa.int32()),
        ]
    ),
    key=("model", "example", "layer", "head", "measure", "region"),
    choices={"region": REGIONS},
)
"""A row per example, head, measure and region."""

INPUTS = TableSchema(
    name="inputs",
    arrow=pa.schema(
        [
            ("example", pa.int32()),
            ("position", pa.int32()),
            ("token_id", pa.int32()),
            ("token", pa.string()),
            ("region", TEXT_TYPE),
            ("role", TEXT_TYPE),
            ("is_query", pa.bool_()),
        ]
    ),
    key=("example", "position"),
    choices={"region": TOKEN_REGIONS, "role": ROLES},
)
"""A row per token. `token` is the part of the text that it covers."""

HEAD_TABLES = {schema.name: schema for schema in (HEADS, EXAMPLE_VALUES, INPUTS)}
"""Tables of a head run's folder, in files `NAME.parquet`."""


@dataclass(frozen=True)
class HeadValues:
    """The `examples` table of one model as an array.

    Attributes:
        model: name of the model.
        examples: numbers of the examples, ascending.
        layers: numbers of the layers, ascending.
        n_heads: number of heads in a layer.
        measures: names of the measures.
        values: [example, layer, head, measure, region] in the order of `REGIONS`, float64, NaN where undefined.
    """

    model: str
    examples: tuple[int, ...]
    layers: tuple[int, ...]
    n_heads: int
    measures: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True)
class ModelRun:
    """One model's values and the tokens that it read.

    Attributes:
        values: of every example.
        inputs: the `inputs` table.
        condition: name that its students of other seeds share; the model's name where there are no seeds.
        seed: None where there is only one student.
    """

    values: HeadValues
    inputs: pd.DataFrame
    condition: str
    seed: int | None = None

    @property
    def name(self) -> str:
        """Return the model's name."""
        return self.values.model


def read_values(path: Path) -> HeadValues:
    """Read an `examples` table of one model, batch by batch: only the values are held in memory.

    Raises:
        InputError: not a readable table of this schema, several models, or rows that are missing, repeated or out of order.
    """
    try:
        file = pq.ParquetFile(path)
        axes = _axes(path, file)
        shape = tuple(len(axes[name]) for name in EXAMPLE_VALUES.key[1:])
        if int(np.prod(shape)) != file.metadata.num_rows:
            expected = " x ".join(map(str, shape))
            raise InputError(f"{path}: {file.metadata.num_rows} rows, {expected} were expected: rows are missing or repeated")
        values, start = np.empty(file.metadata.num_rows), 0
        for batch in file.iter_batches():
            values[start : start + batch.num_rows] = _batch_values(path, batch, axes, shape, start)
            start += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error})") from error
    examples, layers, heads, measures = (tuple(axes[name]) for name in ("example", "layer", "head", "measure"))
    if list(examples) != sorted(examples) or list(layers) != sorted(layers) or heads != tuple(range(len(heads))):
        raise InputError(f"{path}: examples, layers or heads are not in ascending order")
    return HeadValues(str(next(iter(axes["model"]))), examples, layers, len(heads), measures, values.reshape(shape))


def _axes(path: Path, file: pq.ParquetFile) -> dict[str, dict[Any, int]]:
    """Return the values of each key column in order of appearance, with their positions."""
    missing = [name for name in EXAMPLE_VALUES.arrow.names if name not in file.schema_arrow.names]
    if missing:
        raise InputError(f"{path}: missing columns {missing}; an examples table of this version has {EXAMPLE_VALUES.arrow.names}")
    axes: dict[str, dict[Any, int]] = {name: {} for name in EXAMPLE_VALUES.key}
    for batch in file.iter_batches(columns=list(EXAMPLE_VALUES.key)):
        for name, known in axes.items():
            for value in pc.unique(_decoded(batch.column(name))).to_pylist():
                known.setdefault(value, len(known))
    if len(axes["model"]) != 1:
        raise InputError(f"{path}: expected one model, found {len(axes['model'])}: {', '.join(map(str, axes['model']))}")
    if tuple(axes["region"]) != REGIONS:
        raise InputError(f"{path}: regions {', '.join(map(str, axes['region']))}; expected {', '.join(REGIONS)}")
    return axes


def _batch_values(path: Path, batch: pa.RecordBatch, axes: dict[str, dict[Any, int]], shape: tuple[int, ...], start: int) -> np.ndarray:
    """Return the values of one batch of rows, of which the first is row `start`; every row has to be the one that belongs there."""
    places = np.unravel_index(np.arange(start, start + batch.num_rows), shape)
    for name, expected in zip(EXAMPLE_VALUES.key[1:], places, strict=True):
        column = _decoded(batch.column(name))
        if not np.array_equal(pc.index_in(column, pa.array(list(axes[name])).cast(column.type)).to_numpy(), expected):
            raise InputError(f"{path}: rows are out of order by {name}, near row {start}; write it by `interp.tables.schema.write`")
    values = batch.column("value").to_numpy(zero_copy_only=False)
    measured = batch.column("n_queries").to_numpy(zero_copy_only=False) > 0
    wrong = measured != np.isfinite(values)
    if wrong.any():
        row = {name: batch.column(name)[int(wrong.argmax())].as_py() for name in (*EXAMPLE_VALUES.key, "value", "n_queries")}
        raise InputError(f"{path}: {int(wrong.sum())} rows are measured but not finite, or finite but not measured: {row}")
    return values


def _decoded(column: Any) -> Any:
    """Return a dictionary-encoded text column as text; other columns as they are."""
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
