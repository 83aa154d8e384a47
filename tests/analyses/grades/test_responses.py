"""Responses are paired by question, and repeated questions by occurrence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.analyses.grades.conftest import Ran, read_tables, row, write_jsonl


def test_responses_are_paired_by_question_and_not_by_order(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """One model's file is in reverse order with blanks around its questions, and each model has a question that the other lacks."""
    one = [row(j, 7 if j < 4 else 8) for j in range(6)]
    other = [{**row(j, 7 if j in (0, 5) else 8), "question": f"  What is problem {j}?\n"} for j in (9, 5, 4, 3, 2, 1, 0)]
    write_jsonl(tmp_path / "in" / "one.jsonl", one)
    write_jsonl(tmp_path / "in" / "two.jsonl", other)
    done = run(tmp_path / "in", "--graders", "stated", "--baseline", "one")
    assert done.code == 0
    graded, _, pairs, _ = read_tables(tmp_path / "out")
    line = pairs.iloc[0]
    assert (line["problems"], line["unpaired"], line["only_this"], line["only_baseline"]) == (6, 1, 1, 3)
    assert line["difference"] == pytest.approx(-2 / 6)
    assert graded["problem"].tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1, 0]
    assert "1 of 7 questions were answered by only one model and are not paired" in done.out


def test_repeated_questions_are_paired_by_occurrence(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """a: right, wrong; b: wrong, right, right. The third response of b is not paired."""
    rows = [row(0, number, model=model) for model, number in (("a", 7), ("b", 8), ("a", 8), ("b", 7), ("b", 7))]
    done = run(write_jsonl(tmp_path / "x.jsonl", rows), "--graders", "stated")
    assert done.code == 0
    graded, _, pairs, _ = read_tables(tmp_path / "out")
    assert graded[["model", "problem", "correct"]].to_numpy().tolist() == [
        ["a", 0, True],
        ["a", 1, False],
        ["b", 0, False],
        ["b", 1, True],
        ["b", 2, True],
    ]
    assert pairs[["problems", "unpaired", "only_this", "only_baseline"]].to_numpy().tolist() == [[2, 1, 1, 1]]
    assert "b: 2 responses are to repeated questions" in done.out
