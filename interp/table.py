# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The tables that a head run consists of: columns, meaning, validation. Knows no torch and does no IO beyond Parquet.

Three tables, each described by one `TableSchema`:

- `HEADS`: one row per layer, head, measure and region, with a 95 % bootstrap interval over examples;
- `EXAMPLES`: the same quantities per example, without interval;
- `INPUTS`: every token that the model read, so that anyone can recompute the numbers from the model alone.

A value that is undefined (for instance the enrichment of numbers in a region whose queries see no number) is NaN with `n_queries` 0.
An interval over a single example is NaN.
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

REGIONS = ("question", "response", "all")
"""Where the query token stands. `all` also has the tokens of the chat template and special tokens."""

TOKEN_REGIONS = ("template", "question", "response")
ROLES = ("none", "special", "operator", "question_number", "operand", "intermediate_result", "final_answer")
"""In rising precedence: a token that covers characters of two roles has the later one."""


class TableError(ValueError):
    """A table breaks its schema; the message names the table, the column and the first offending value."""


@dataclass(frozen=True)
class MeasureInfo:
    """What a reader must know of a measure to read its numbers.

    Attributes:
        name: as in the `measure` column.
        title: for people, as on a figure's title.
        unit: such as "nats", "tokens", "probability"; "1" for a pure ratio.
        low: smallest possible or sensible value, the figures' fixed scale; None where the scale must follow the data.
        high: largest, likewise.
        formula: in words or symbols, one line.
    """

    name: str
    title: str
    unit: str
    low: float | None
    high: float | None
    formula: str


@dataclass(frozen=True)
class TableSchema:
    """Columns, types and the key of one table."""

    name: str
    arrow: pa.Schema
    key: tuple[str, ...]
    choices: dict[str, tuple[str, ...]]


def _text() -> pa.DataType:
    return pa.dictionary(pa.int32(), pa.string())


HEADS = TableSchema(
    name="heads",
    arrow=pa.schema(
        [
            ("model", _text()),
            ("layer", pa.int16()),
            ("head", pa.int16()),
            ("measure", _text()),
            ("region", _text()),
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

EXAMPLES = TableSchema(
    name="examples",
    arrow=pa.schema(
        [
            ("model", _text()),
            ("example", pa.int32()),
            ("layer", pa.int16()),
            ("head", pa.int16()),
            ("measure", _text()),
            ("region", _text()),
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
            ("region", _text()),
            ("role", _text()),
            ("is_query", pa.bool_()),
        ]
    ),
    key=("example", "position"),
    choices={"region": TOKEN_REGIONS, "role": ROLES},
)

TABLES = {schema.name: schema for schema in (HEADS, EXAMPLES, INPUTS)}


def validate(frame: pd.DataFrame, schema: TableSchema) -> pa.Table:
    """Check a frame against a schema and return it as an Arrow table with exactly the schema's types.

    Args:
        frame: columns as in `schema.arrow`, in any order.
        schema: one of `HEADS`, `EXAMPLES`, `INPUTS`, or of `interp.compare`'s.

    Raises:
        TableError: a column is missing, unknown, of another type, null (numbers may be NaN), or holds a value outside its choices; the
            key is repeated; a value is not finite where it was measured (`n_queries` > 0), or the interval does not hold the value.
    """
    missing = [name for name in schema.arrow.names if name not in frame.columns]
    unknown = [name for name in frame.columns if name not in schema.arrow.names]
    if missing or unknown:
        raise TableError(f"table {schema.name}: missing columns {missing}, unknown columns {unknown}; expected {schema.arrow.names}")
    for field in schema.arrow:
        if not pa.types.is_floating(field.type) and frame[field.name].isna().any():  # an undefined number is NaN
            raise TableError(f"table {schema.name}: column {field.name} holds nulls")
    for name, allowed in schema.choices.items():
        seen = set(pd.unique(frame[name].astype(str))) - set(allowed)
        if seen:
            raise TableError(f"table {schema.name}: column {name} holds {sorted(seen)}; allowed: {', '.join(allowed)}")
    repeated = frame.duplicated(list(schema.key))
    if repeated.any():
        first = frame.loc[repeated, list(schema.key)].iloc[0].to_dict()
        raise TableError(f"table {schema.name}: {int(repeated.sum())} rows repeat a key, the first is {first}")
    if "value" in frame.columns:
        _validate_values(frame, schema)
    try:
        return pa.Table.from_pandas(frame[schema.arrow.names], schema=schema.arrow, preserve_index=False)
    except pa.ArrowException as error:
        raise TableError(f"table {schema.name}: {error}") from error


def _validate_values(frame: pd.DataFrame, schema: TableSchema) -> None:
    value = frame["value"].to_numpy(float)
    measured = frame["n_queries"].to_numpy() > 0
    wrong = measured != np.isfinite(value)
    if wrong.any():
        row = frame.loc[wrong].iloc[0].to_dict()
        raise TableError(f"table {schema.name}: {int(wrong.sum())} rows are measured but not finite, or finite but not measured: {row}")
    if "ci_low" in frame.columns:
        low, high = frame["ci_low"].to_numpy(float), frame["ci_high"].to_numpy(float)
        slack = 1e-9 * np.maximum(1.0, np.abs(value))
        several = frame["n_examples"].to_numpy() > 1
        wrong = several & ~((low <= high + slack) & np.isfinite(low) & np.isfinite(high))
        if wrong.any():
            row = frame.loc[wrong].iloc[0].to_dict()
            raise TableError(f"table {schema.name}: {int(wrong.sum())} rows with a broken interval, the first is {row}")


def write(frame: pd.DataFrame, schema: TableSchema, path: Path) -> None:
    """Validate and write one table as Parquet.

    Raises:
        TableError: as `validate`.
    """
    pq.write_table(validate(frame, schema), path, compression="zstd")


def read(path: Path, schema: TableSchema) -> pd.DataFrame:
    """Read and validate one table.

    Raises:
        TableError: the file is not Parquet, is torn, or breaks the schema; the message names the file.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{path}: not a readable Parquet file ({error})") from error
    names = set(table.schema.names)
    for field in schema.arrow:
        if field.name in names and table.schema.field(field.name).type != field.type:
            seen = table.schema.field(field.name).type
            raise TableError(f"{path}: column {field.name} is {seen}, expected {field.type}")
    frame = table.to_pandas()
    try:
        validate(frame, schema)
    except TableError as error:
        raise TableError(f"{path}: {error}") from error
    return frame


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
        TableError: not a readable table of this schema, several models, or rows that are missing, repeated or out of order.
    """
    try:
        file = pq.ParquetFile(path)
        missing = [name for name in EXAMPLES.arrow.names if name not in file.schema_arrow.names]
        if missing:
            raise TableError(f"{path}: missing columns {missing}; an examples table of this version has {EXAMPLES.arrow.names}")
        axes: dict[str, dict[Any, int]] = {name: {} for name in EXAMPLES.key}
        for batch in file.iter_batches(columns=list(EXAMPLES.key)):
            for name, known in axes.items():
                for value in pc.unique(_plain(batch.column(name))).to_pylist():
                    known.setdefault(value, len(known))
        if len(axes["model"]) != 1:
            raise TableError(f"{path}: expected one model, found {len(axes['model'])}: {', '.join(map(str, axes['model']))}")
        if tuple(axes["region"]) != REGIONS:
            raise TableError(f"{path}: regions {', '.join(map(str, axes['region']))}; expected {', '.join(REGIONS)}")
        shape = tuple(len(axes[name]) for name in EXAMPLES.key[1:])
        if int(np.prod(shape)) != file.metadata.num_rows:
            raise TableError(
                f"{path}: {file.metadata.num_rows} rows, {' x '.join(map(str, shape))} were expected: rows are missing or repeated"
            )
        values, at = np.empty(file.metadata.num_rows), 0
        for batch in file.iter_batches():
            place = np.unravel_index(np.arange(at, at + batch.num_rows), shape)
            for name, expected in zip(EXAMPLES.key[1:], place, strict=True):
                known = pa.array(list(axes[name]))
                if not np.array_equal(
                    pc.index_in(_plain(batch.column(name)), known.cast(_plain(batch.column(name)).type)).to_numpy(), expected
                ):
                    raise TableError(f"{path}: rows are out of order by {name}, near row {at}; write it by `interp.table.write`")
            values[at : at + batch.num_rows] = batch.column("value").to_numpy(zero_copy_only=False)
            measured = batch.column("n_queries").to_numpy(zero_copy_only=False) > 0
            wrong = measured != np.isfinite(values[at : at + batch.num_rows])
            if wrong.any():
                row = {name: batch.column(name)[int(wrong.argmax())].as_py() for name in (*EXAMPLES.key, "value", "n_queries")}
                raise TableError(f"{path}: {int(wrong.sum())} rows are measured but not finite, or finite but not measured: {row}")
            at += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{path}: not a readable Parquet file ({error})") from error
    examples, layers, heads, measures = (tuple(axes[name]) for name in ("example", "layer", "head", "measure"))
    if list(examples) != sorted(examples) or list(layers) != sorted(layers) or heads != tuple(range(len(heads))):
        raise TableError(f"{path}: examples, layers or heads are not in ascending order")
    return HeadValues(str(next(iter(axes["model"]))), examples, layers, len(heads), measures, values.reshape(shape))


def _plain(column: Any) -> Any:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
