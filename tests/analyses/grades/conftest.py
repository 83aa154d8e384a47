"""Shared by the tests of graded responses: files of responses, and the command run in this process."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow.parquet as pq
import pytest

from analyses.grades.__main__ import main

DATA = os.environ.get("PRIMED_HEADS_DATA")
HEADER = ("question", "answer", "model_answer", "model_output_tokens", "model_max_tokens", "correct")
needs_data = pytest.mark.skipif(DATA is None, reason="PRIMED_HEADS_DATA does not name the folder of the published responses")


class Ran(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`(*arguments)` runs the command in this process; results go to `tmp_path / "out"` unless given otherwise."""

    def call(*arguments: Any) -> Ran:
        given = [str(argument) for argument in arguments]
        if "--out" not in given:
            given += ["--out", str(tmp_path / "out")]
        capsys.readouterr()
        code = main(given)
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return call


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_csv(path: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = HEADER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def row(problem: int, number: Any, **more: Any) -> dict[str, Any]:
    """Return a response with a number, to a problem whose answer is 7."""
    return {"question": f"What is problem {problem}?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7", "response": f"So #### {number}\n", **more}


def write_verdicts(path: Path, *models: str) -> Path:
    """Write a file in which the answer of model m<i> to problem j is right if `models[i][j]` is 1."""
    rows = [row(j, 7 if right == "1" else 8, model=f"m{i}") for i, word in enumerate(models) for j, right in enumerate(word)]
    return write_jsonl(path, rows)


def read_tables(out: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    read = [pd.read_csv(out / f"{name}.csv") for name in ("accuracy", "pairs")]
    return pq.read_table(out / "grades.parquet").to_pandas(), read[0], read[1], json.loads((out / "run.json").read_text("utf-8"))
