"""TODO_DOC interp/tables/heads.py."""

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
from interp.tables.schema import REGIONS, ROLES, TOKEN_REGIONS, TableSchema, plain, text_type


@dataclass(frozen=True)
class Run:
    """One model's values and the tokens that it read.

    Attributes:
        values: of every example.
        inputs: the `inputs` table.
        condition: what its seeds have in common; the model's name where there are no seeds.
        seed: None where there is only one student.
    """

    values: HeadValues
    inputs: pd.DataFrame
    condition: str
    seed: int | None = None

    @property
    def name(self) -> str:
        """Of the model."""
        return self.values.model


HEADS = TableSchema(
    name="heads",
    arrow=pa.schema(
        [
            ("model", text_type()),
            ("layer", pa.int16()),
            ("head", pa.int16()),
            ("measure", text_type()),
            ("region", text_type()),
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


EXAMPLE_VALUES = TableSchema(
    name="examples",
    arrow=pa.schema(
        [
            ("model", text_type()),
            ("example", pa.int32()),
            ("layer", pa.int16()),
            ("head", pa.int16()),
            ("measure", text_type()),
            ("region", text_type()),
            ("value", pa.float64()),
            ("n_queries", pa.int32()),
        ]
    ),
    key=("model", "example", "layer", "head", "measure", "region"),
    choices={"region": REGIONS},
)


INPUTS = TableSchema(
    name="inputs",
    arrow=pa.schema(
        [
            ("example", pa.int32()),
            ("position", pa.int32()),
            ("token_id", pa.int32()),
            ("token", pa.string()),
            ("region", text_type()),
            ("role", text_type()),
            ("is_query", pa.bool_()),
        ]
    ),
    key=("example", "position"),
    choices={"region": TOKEN_REGIONS, "role": ROLES},
)


HEAD_TABLES = {schema.name: schema for schema in (HEADS, EXAMPLE_VALUES, INPUTS)}


@dataclass(frozen=True)
class HeadValues:
    """The `examples` table of one model as an array.

    Attributes:
        model: its name.
        examples: numbers of the examples, ascending.
        layers: numbers of the layers, ascending.
        n_heads: heads of a layer.
        measures: names.
        values: [example, layer, head, measure, region] in the order of `REGIONS`, float64, NaN where undefined.
    """

    model: str
    examples: tuple[int, ...]
    layers: tuple[int, ...]
    n_heads: int
    measures: tuple[str, ...]
    values: np.ndarray


def read_values(path: Path) -> HeadValues:
    """Read an `examples` table of one model, without ever holding more of it than the values.

    Raises:
        InputError: not a readable table of this schema, several models, or rows that are missing, repeated or out of order.
    """
    try:
        file = pq.ParquetFile(path)
        missing = [name for name in EXAMPLE_VALUES.arrow.names if name not in file.schema_arrow.names]
        if missing:
            raise InputError(f"{path}: missing columns {missing}; an examples table of this version has {EXAMPLE_VALUES.arrow.names}")
        axes: dict[str, dict[Any, int]] = {name: {} for name in EXAMPLE_VALUES.key}
        for batch in file.iter_batches(columns=list(EXAMPLE_VALUES.key)):
            for name, known in axes.items():
                for value in pc.unique(plain(batch.column(name))).to_pylist():
                    known.setdefault(value, len(known))
        if len(axes["model"]) != 1:
            raise InputError(f"{path}: expected one model, found {len(axes['model'])}: {', '.join(map(str, axes['model']))}")
        if tuple(axes["region"]) != REGIONS:
            raise InputError(f"{path}: regions {', '.join(map(str, axes['region']))}; expected {', '.join(REGIONS)}")
        shape = tuple(len(axes[name]) for name in EXAMPLE_VALUES.key[1:])
        if int(np.prod(shape)) != file.metadata.num_rows:
            raise InputError(
                f"{path}: {file.metadata.num_rows} rows, {' x '.join(map(str, shape))} were expected: rows are missing or repeated"
            )
        values, at = np.empty(file.metadata.num_rows), 0
        for batch in file.iter_batches():
            place = np.unravel_index(np.arange(at, at + batch.num_rows), shape)
            for name, expected in zip(EXAMPLE_VALUES.key[1:], place, strict=True):
                known = pa.array(list(axes[name]))
                if not np.array_equal(
                    pc.index_in(plain(batch.column(name)), known.cast(plain(batch.column(name)).type)).to_numpy(), expected
                ):
                    raise InputError(f"{path}: rows are out of order by {name}, near row {at}; write it by `interp.tables.schema.write`")
            values[at : at + batch.num_rows] = batch.column("value").to_numpy(zero_copy_only=False)
            measured = batch.column("n_queries").to_numpy(zero_copy_only=False) > 0
            wrong = measured != np.isfinite(values[at : at + batch.num_rows])
            if wrong.any():
                row = {name: batch.column(name)[int(wrong.argmax())].as_py() for name in (*EXAMPLE_VALUES.key, "value", "n_queries")}
                raise InputError(f"{path}: {int(wrong.sum())} rows are measured but not finite, or finite but not measured: {row}")
            at += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error})") from error
    examples, layers, heads, measures = (tuple(axes[name]) for name in ("example", "layer", "head", "measure"))
    if list(examples) != sorted(examples) or list(layers) != sorted(layers) or heads != tuple(range(len(heads))):
        raise InputError(f"{path}: examples, layers or heads are not in ascending order")
    return HeadValues(str(next(iter(axes["model"]))), examples, layers, len(heads), measures, values.reshape(shape))
