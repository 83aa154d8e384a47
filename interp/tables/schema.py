# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What a table is: columns, types and key (`TableSchema`), and how it is checked, written and read.

A value that is undefined (such as the enrichment of numbers in a region whose queries see no number) is NaN, with `n_queries` 0.
An interval over a single example is NaN.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from interp.tables.errors import InputError
from interp.tables.files import write_file
from interp.tables.versions import current_names

REGIONS = ("question", "response", "all")
"""Where a query token is. `all` includes the tokens of the chat template and special tokens."""

TOKEN_REGIONS = ("template", "question", "response")
"""Where a token is."""

ROLES = ("none", "special", "operator", "question_number", "operand", "intermediate_result", "final_answer")
"""What a token is, in rising precedence: a token that covers characters of two roles has the later one."""

TEXT_TYPE: pa.DataType = pa.dictionary(pa.int32(), pa.string())
"""Type of a text column with few different values."""


@dataclass(frozen=True)
class MeasureInfo:
    """What a reader must know about a measure to understand its values.

    Attributes:
        name: as in the `measure` column.
        title: for people, as in a figure's title.
        unit: such as "nats", "tokens" or "probability"; "1" for a pure ratio.
        low: lower end of the figures' fixed scale: the smallest possible or sensible value; None lets the scale follow the data.
        high: upper end, likewise.
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
    """One table.

    Attributes:
        name: in messages, and the stem of the file.
        arrow: columns and types.
        key: columns whose values together occur once.
        choices: allowed values by column.
    """

    name: str
    arrow: pa.Schema
    key: tuple[str, ...]
    choices: dict[str, tuple[str, ...]]


def validate(frame: pd.DataFrame, schema: TableSchema) -> pa.Table:
    """Return a frame as an Arrow table with exactly the schema's columns and types.

    Args:
        frame: columns as in `schema.arrow`, in any order.
        schema: of the table.

    Raises:
        InputError: a column is missing, unknown, of another type, null (numbers may be NaN), or holds a value outside its choices; a key
            is repeated; a value is not finite although it was measured (`n_queries` > 0); or an interval is not finite and ordered.
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
        _check_values(frame, schema)
    try:
        return pa.Table.from_pandas(frame[schema.arrow.names], schema=schema.arrow, preserve_index=False)
    except pa.ArrowException as error:
        raise InputError(f"table {schema.name}: {error}") from error


def _check_values(frame: pd.DataFrame, schema: TableSchema) -> None:
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
            raise InputError(f"table {schema.name}: {int(wrong.sum())} rows with an interval that is not finite and ordered: {row}")


def write(frame: pd.DataFrame, schema: TableSchema, path: Path) -> None:
    """Check a table against its schema and write it as Parquet, atomically (see `interp.tables.files.write_file`).

    Raises:
        InputError: as `validate`; nothing is written.
        OSError: no space or no permission; the old file is left as it was.
    """
    table = validate(frame, schema)
    write_file(path, lambda draft: pq.write_table(table, draft, compression="zstd"))


def read(path: Path, schema: TableSchema) -> pd.DataFrame:
    """Read one table and check it against its schema. Columns that an earlier version named differently get today's names, with a note.

    Raises:
        InputError: the file is not Parquet, is incomplete, or does not fit the schema; the message names the file.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error})") from error
    table = _renamed(table, schema, path)
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


def _renamed(table: pa.Table, schema: TableSchema, path: Path) -> pa.Table:
    """Return a table under the schema's column names where an earlier version used others."""
    names = [new if new in schema.arrow.names else old for old, new in current_names(table.column_names).items()]
    renamed = {old: new for old, new in zip(table.column_names, names, strict=True) if old != new}
    if not renamed:
        return table
    described = ", ".join(f"{old} is read as {new}" for old, new in renamed.items())
    print(f"note: {path} was written by an earlier version; {described}", file=sys.stderr)
    return table.rename_columns(names)
