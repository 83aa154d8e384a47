"""The printed text says how each number was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.analyses.grades.conftest import Ran, write_verdicts


def test_the_text_reports_intervals_tests_and_corrections(tmp_path: Path, run: Callable[..., Ran]) -> None:
    done = run(write_verdicts(tmp_path / "x.jsonl", "1100", "0111"), "--graders", "stated", "--level", "0.9")
    for part in (
        "n: number of responses",
        "Wilson 90 % score interval",
        "90 % percentile bootstrap interval over problems (10000 resamples, seed 0)",
        "McNemar's exact test, two-sided",
        "Holm's correction over the models within a grader",
        "characters: mean length",
        "truncated: fraction that reached the length limit",
    ):
        assert part in done.out
    assert [line.split()[:4] for line in done.out.splitlines() if line.strip().startswith(("m0", "m1"))] == [
        ["m0", "stated", "4", "2"],
        ["m1", "stated", "4", "3"],
        ["m0", "4", "10.0000"],
        ["m1", "4", "10.0000"],
    ]
