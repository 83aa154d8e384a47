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
import pyarrow.parquet as pq

from interp.tables.errors import InputError

REGIONS = ("question", "response", "all")
"""Where the query token stands. `all` also has the tokens of the chat template and special tokens."""


TOKEN_REGIONS = ("template", "question", "response")


ROLES = ("none", "special", "operator", "question_number", "operand", "intermediate_result", "final_answer")
"""In rising precedence: a token that covers characters of two roles has the later one."""


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


def text_type() -> pa.DataType:
    return pa.dictionary(pa.int32(), pa.string())


def validate(frame: pd.DataFrame, schema: TableSchema) -> pa.Table:
    """Check a frame against a schema and return it as an Arrow table with exactly the schema's types.

    Args:
        frame: columns as in `schema.arrow`, in any order.
        schema: one of `HEADS`, `EXAMPLES`, `INPUTS`, or of `analyses.shifts.differences`'s.

    Raises:
        InputError: a column is missing, unknown, of another type, null (numbers may be NaN), or holds a value outside its choices; the
            key is repeated; a value is not finite where it was measured (`n_queries` > 0), or the interval does not hold the value.
    """
    missing = [name for name in schema.arrow.names if name not in frame.columns]
    unknown = [name for name in frame.columns if name not in schema.arrow.names]
    if missing or unknown:
        raise InputError(f"table {schema.name}: missing columns {missing}, unknown columns {unknown}; expected {schema.arrow.names}")
    for field in schema.arrow:
        if not pa.types.is_floating(field.type) and frame[field.name].isna().any():  # an undefined number is NaN
            raise InputError(f"table {schema.name}: column {field.name} holds nulls")
    for name, allowed in schema.choices.items():
        seen = set(pd.unique(frame[name].astype(str))) - set(allowed)
        if seen:
            raise InputError(f"table {schema.name}: column {name} holds {sorted(seen)}; allowed: {', '.join(allowed)}")
    repeated = frame.duplicated(list(schema.key))
    if repeated.any():
        first = frame.loc[repeated, list(schema.key)].iloc[0].to_dict()
        raise InputError(f"table {schema.name}: {int(repeated.sum())} rows repeat a key, the first is {first}")
    if "value" in frame.columns:
        _validate_values(frame, schema)
    try:
        return pa.Table.from_pandas(frame[schema.arrow.names], schema=schema.arrow, preserve_index=False)
    except pa.ArrowException as error:
        raise InputError(f"table {schema.name}: {error}") from error


def _validate_values(frame: pd.DataFrame, schema: TableSchema) -> None:
    value = frame["value"].to_numpy(float)
    measured = frame["n_queries"].to_numpy() > 0
    wrong = measured != np.isfinite(value)
    if wrong.any():
        row = frame.loc[wrong].iloc[0].to_dict()
        raise InputError(f"table {schema.name}: {int(wrong.sum())} rows are measured but not finite, or finite but not measured: {row}")
    if "ci_low" in frame.columns:
        low, high = frame["ci_low"].to_numpy(float), frame["ci_high"].to_numpy(float)
        slack = 1e-9 * np.maximum(1.0, np.abs(value))
        several = frame["n_examples"].to_numpy() > 1
        wrong = several & ~((low <= high + slack) & np.isfinite(low) & np.isfinite(high))
        if wrong.any():
            row = frame.loc[wrong].iloc[0].to_dict()
            raise InputError(f"table {schema.name}: {int(wrong.sum())} rows with a broken interval, the first is {row}")


def write(frame: pd.DataFrame, schema: TableSchema, path: Path) -> None:
    """Validate and write one table as Parquet.

    Raises:
        InputError: as `validate`.
    """
    pq.write_table(validate(frame, schema), path, compression="zstd")


def read(path: Path, schema: TableSchema) -> pd.DataFrame:
    """Read and validate one table.

    Raises:
        InputError: the file is not Parquet, is torn, or breaks the schema; the message names the file.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error})") from error
    names = set(table.schema.names)
    for field in schema.arrow:
        if field.name in names and table.schema.field(field.name).type != field.type:
            seen = table.schema.field(field.name).type
            raise InputError(f"{path}: column {field.name} is {seen}, expected {field.type}")
    frame = table.to_pandas()
    try:
        validate(frame, schema)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return frame


def plain(column: Any) -> Any:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
