"""Accuracy, pairs and corrections by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scipy import stats

from analyses.grades.reading import read_sources
from analyses.grades.responses import by_model, facts_table, number_problems
from analyses.grades.tables import accuracy_table, grade_all, pairs_table
from distill.problems.grading import GRADERS
from tests.analyses.grades.conftest import Ran, read_tables, row, write_jsonl, write_verdicts


def test_accuracy_and_pairs_by_hand(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """m0 solves 8 of 10, m1 1 of 10, and both solve that one: 7 and 0 discordant problems, p = 2 / 2^7."""
    path = write_verdicts(tmp_path / "both.jsonl", "1111111100", "1000000000")
    done = run(path, "--graders", "stated", "flexible")
    assert done.code == 0
    graded, accuracy, pairs, _ = read_tables(tmp_path / "out")
    assert accuracy[["model", "grader", "n", "right", "accuracy", "found"]].to_numpy().tolist() == [
        ["m0", "stated", 10, 8, 0.8, 1.0],
        ["m0", "flexible", 10, 8, 0.8, 1.0],
        ["m1", "stated", 10, 1, 0.1, 1.0],
        ["m1", "flexible", 10, 1, 0.1, 1.0],
    ]
    for right, low, high in accuracy[["right", "low", "high"]].to_numpy():
        theirs = stats.binomtest(int(right), 10).proportion_ci(0.95, method="wilson")
        assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert pairs[["grader", "model", "baseline", "problems", "unpaired", "only_this", "only_baseline"]].to_numpy().tolist() == [
        ["stated", "m1", "m0", 10, 0, 0, 7],
        ["flexible", "m1", "m0", 10, 0, 0, 7],
    ]
    assert pairs["difference"].tolist() == pytest.approx([-0.7, -0.7])
    assert pairs["p_mcnemar"].tolist() == pytest.approx([2 / 2**7] * 2)
    assert pairs["p_holm"].tolist() == pairs["p_mcnemar"].tolist()
    assert len(graded) == 40


def test_holms_correction_is_within_a_grader(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """By definition: the smallest of three p values times three, the next times two, never decreasing; other graders do not count."""
    words = ("0" * 12, "1" * 12, "1" * 6 + "0" * 6, "1" * 2 + "0" * 10)
    assert run(write_verdicts(tmp_path / "four.jsonl", *words), "--graders", "stated", "flexible", "--baseline", "m0").code == 0
    _, _, pairs, _ = read_tables(tmp_path / "out")
    for _, given in pairs.groupby("grader"):
        p = [stats.binomtest(n, n).pvalue for n in (12, 6, 2)]
        assert given["p_mcnemar"].tolist() == pytest.approx(p)
        assert given["p_holm"].tolist() == pytest.approx([3 * p[0], max(3 * p[0], 2 * p[1]), max(2 * p[1], p[2])])


def test_no_question_in_common_gives_no_test(tmp_path: Path, run: Callable[..., Ran]) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [row(0, 7, model="a"), row(1, 7, model="b")])
    assert run(path, "--graders", "stated").code == 0
    _, _, pairs, _ = read_tables(tmp_path / "out")
    assert pairs[["problems", "unpaired"]].to_numpy().tolist() == [[0, 2]]
    assert pairs[["difference", "difference_low", "p_mcnemar", "p_holm"]].isna().all(axis=None)


def test_one_model_is_graded_and_not_paired(tmp_path: Path, run: Callable[..., Ran]) -> None:
    done = run(write_verdicts(tmp_path / "x.jsonl", "110"))
    assert done.code == 0
    assert "m0 is the only model, so there are no pairs" in done.out
    assert "Paired with" not in done.out
    _, accuracy, pairs, record = read_tables(tmp_path / "out")
    assert accuracy["grader"].tolist() == list(GRADERS)
    assert not len(pairs)
    assert record["settings"]["baseline"] == "m0"


def test_tables_can_be_made_without_the_command(tmp_path: Path) -> None:
    """The functions alone, as in a notebook."""
    models = by_model(read_sources([write_verdicts(tmp_path / "x.jsonl", "110", "011")]))
    numbers = number_problems(models)
    graded = grade_all(models, numbers, ["strict"], set())
    accuracy = accuracy_table(graded, facts_table(models, numbers))
    assert accuracy[["model", "right"]].to_numpy().tolist() == [["m0", 2], ["m1", 2]]
    assert pairs_table(graded, "m1")["model"].tolist() == ["m0"]
    assert not len(pairs_table(graded, "nobody"))
