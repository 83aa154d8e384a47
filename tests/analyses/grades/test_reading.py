"""Files of every kind are read as they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analyses.grades.reading import read_sources
from tests.analyses.grades.conftest import DATA, Ran, needs_data, read_tables, row, write_csv, write_jsonl


@pytest.mark.parametrize(
    ("tokens", "limit", "truncated"),
    [("350", "True", True), ("12", "False", False), ("350", "350", True), ("12.0", "350", False), ("", "350", None), ("12", "", None)],
)
def test_truncated_responses_in_csv(tmp_path: Path, tokens: str, limit: str, truncated: bool | None) -> None:
    path = write_csv(tmp_path / "x.csv", [("q", "7", "", tokens, limit, "True")])
    assert read_sources([path])[0].responses[0].truncated is truncated


def test_truncated_responses_in_jsonl_reach_the_graders(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """The 7 at the end of a truncated response may be the beginning of 75. Version 0.1 called the field "cut"."""
    more: list[dict[str, Any]] = [
        {},
        {"cut": True},
        {"truncated": False},
        {"finish": "length"},
        {"finish": "eos"},
        {"cut": None, "finish": None},
        {"truncated": True},
    ]
    rows = [{**row(j, 0), "response": "the answer is 7", **extra} for j, extra in enumerate(more)]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    assert [r.truncated for r in read_sources([path])[0].responses] == [None, True, False, True, False, None, True]
    done = run(path, "--graders", "stated")
    graded, accuracy, _, _ = read_tables(tmp_path / "out")
    assert graded["correct"].tolist() == [True, False, True, False, True, True, False]
    assert accuracy["truncated"].isna().all()
    assert "x: it is not known whether 2 of 7 responses were truncated" in done.out
    assert run(write_jsonl(tmp_path / "y.jsonl", rows[1:5]), "--graders", "stated").code == 0
    assert read_tables(tmp_path / "out")[1]["truncated"].tolist() == [0.5]


def test_csv_is_read_as_pandas_reads_it(tmp_path: Path) -> None:
    """Commas, quotes, line breaks, words that mean missing values elsewhere, an empty response, and one of 200,000 characters."""
    texts = ['a,b "c"\n\n#### 7', "NA", "", "nan", "line\r\nbreak", "x" * 200_000, "\u2028½"]
    path = write_csv(tmp_path / "x.csv", [(f"q{i}", "7", text, 1, 2, "") for i, text in enumerate(texts)])
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    found = read_sources([path])[0].responses
    assert [r.text for r in found] == frame["model_answer"].tolist() == texts
    assert [r.question for r in found] == frame["question"].tolist()
    assert [r.place.rpartition(" ")[2] for r in found] == ["2", "5", "6", "7", "8", "10", "11"]


def test_several_samples_per_problem_are_refused(tmp_path: Path, run: Callable[..., Ran]) -> None:
    rows = [
        {"problem": 0, "sample": s, "question": "q", "reference": "#### 7", "response": "7", "tokens": 1, "finish": "eos"} for s in (0, 1)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "responses.parquet")
    (tmp_path / "evaluation.json").write_text('{"settings": {"about": {"name": "x"}}}')
    done = run(tmp_path)
    assert done.code == 2
    assert "has several samples per problem" in done.err
    (tmp_path / "evaluation.json").write_text("{")
    assert "holds no complete evaluation" in run(tmp_path).err


def test_a_folder_with_only_tables_without_responses_names_them(tmp_path: Path, run: Callable[..., Ran]) -> None:
    write_csv(tmp_path / "in" / "true.csv", [("q", "7")], ("question", "answer"))
    done = run(tmp_path / "in")
    assert done.code == 2
    assert "in holds no responses; true.csv have no column model_answer; it must have CSV files" in done.err


@needs_data
def test_published_files_are_read_as_pandas_reads_them() -> None:
    folder = Path(DATA or "") / "published" / "responses"
    for source in read_sources([folder]):
        frame = pd.read_csv(source.path, dtype=str, keep_default_na=False)
        assert [r.text for r in source.responses] == frame["model_answer"].tolist()
        assert [r.question for r in source.responses] == frame["question"].tolist()
        assert [r.truncated for r in source.responses] == (frame["model_max_tokens"] == "True").tolist()
