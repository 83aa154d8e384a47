"""The results of a comparison: its tables, and the folder that it is written to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from interp.tables.files import write_file, write_text
from interp.tables.results import Kind, ResultsFolder
from interp.tables.shifts import SHIFT_TABLES

_FURTHER_TABLES = ("lora", "lora_spectrum", "models", "training", "matches", "layer_matches", "words", "curves", "heads", "variance")
"""Tables in addition to `interp.tables.shifts.SHIFT_TABLES`."""

_CSV_ROWS = 1000
"""Further tables of up to this number of rows are written as CSV."""

COMPARISON = Kind(
    noun="comparison",
    kinds=("shifts", "match", "published", "trajectory"),
    names=rf"heads|problems\.jsonl|({'|'.join((*SHIFT_TABLES, *_FURTHER_TABLES))})\.(parquet|csv)",
    carried=("heads", "problems.jsonl"),
)
"""The results of `analyses.shifts`."""


@dataclass(frozen=True)
class ComparisonResult:
    """A finished comparison.

    Attributes:
        folder: the results folder.
        tables: every table by name; `interp.tables.shifts.SHIFT_TABLES` describes most of them.
        run: the content of run.json.
    """

    folder: Path
    tables: dict[str, pd.DataFrame]
    run: dict[str, Any]


def publish_comparison(results: ResultsFolder, tables: dict[str, pd.DataFrame], run: dict[str, Any]) -> ComparisonResult:
    """Write the tables and run.json, move the results to their place, and return them.

    Args:
        results: the folder, whose draft has no tables yet.
        tables: by name.
        run: the content of run.json.
    """
    for name, table in tables.items():
        assert name in (*SHIFT_TABLES, *_FURTHER_TABLES)
        if name in SHIFT_TABLES:
            results.write_table(table, SHIFT_TABLES[name])
        elif len(table) > _CSV_ROWS:
            write_file(results.draft / f"{name}.parquet", lambda path, table=table: table.to_parquet(path, index=False))
        else:
            write_text(results.draft / f"{name}.csv", table.to_csv(index=False))
    results.publish(run)
    return ComparisonResult(results.out, tables, run)
