"""The printed text names its statistics, and what a difference does not show."""

from __future__ import annotations

from pathlib import Path

from analyses.contrast.run import contrast_answers
from analyses.contrast.text import describe_contrast
from tests.analyses.contrast.conftest import COMMAND, options


def test_the_text_reports_tests_intervals_and_cautions(done: Path, tmp_path: Path) -> None:
    config = options(tmp_path, None, done / "heads" / "one", done / "heads" / "two", region="question")
    printed = describe_contrast(contrast_answers(config, command=COMMAND))
    for text in (
        "Wilson 95 % intervals",
        "Length of the answers in tokens",
        "Benjamini-Hochberg over the 8 heads of a measure",
        "paired by problem",
        "Welch's t test",
        "right answers come from easier, shorter problems",
        "queries in the question precede the answer",
        "rough, treat p as exploratory",
        "were truncated",
    ):
        assert text in printed, text
