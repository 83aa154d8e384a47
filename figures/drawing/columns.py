"""Tables that come from files: which columns a figure cannot do without."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from interp.tables.errors import InputError


def require(frame: pd.DataFrame, columns: Sequence[str], table: str) -> None:
    """Check that a table has these columns.

    Raises:
        InputError: it lacks some; the message names them, and those that it has.
    """
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        found = ", ".join(map(str, frame.columns)) or "none"
        raise InputError(f"the table {table} lacks the column {', '.join(missing)}; it has {found}. Write the comparison again")


def optional(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of numbers, all NaN where the table does not have it."""
    if column not in frame.columns:
        return pd.Series(float("nan"), index=frame.index, name=column)
    return frame[column].astype("float64")


def counts(values: pd.Series) -> str:
    """A count as a text, "40", or "38 to 40" where rows differ; "?" where there is none."""
    known = values.dropna()
    if known.empty:
        return "?"
    low, high = int(known.min()), int(known.max())
    return str(low) if low == high else f"{low} to {high}"
