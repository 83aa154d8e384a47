"""Check and read columns of tables that come from files."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from interp.tables.errors import InputError


def require_columns(frame: pd.DataFrame, columns: Sequence[str], table: str) -> None:
    """Check that a table has these columns.

    Raises:
        InputError: some are missing; the message names them and those that the table has.
    """
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        found = ", ".join(map(str, frame.columns)) or "none"
        raise InputError(f"the table {table} lacks the column {', '.join(missing)}; it has {found}. Write the comparison again")


def optional_column(frame: pd.DataFrame, column: str) -> pd.Series:
    """Return a column of numbers; all NaN where the table does not have it."""
    if column not in frame.columns:
        return pd.Series(float("nan"), index=frame.index, name=column)
    return frame[column].astype("float64")


def count_text(values: pd.Series) -> str:
    """Return counts as text: "40", or "38 to 40" where rows differ, or "?" where there are none."""
    known = values.dropna()
    if known.empty:
        return "?"
    low, high = int(known.min()), int(known.max())
    return str(low) if low == high else f"{low} to {high}"


def condition_names(frame: pd.DataFrame) -> pd.Series:
    """Return each row's condition as text; the model's name where the table has no column `condition`."""
    return (frame["condition"] if "condition" in frame else frame["model"]).astype(str)
