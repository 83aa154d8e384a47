"""The printed text fits the terminal, cannot control it, and lists what the model did not expect."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.analyses.examples.conftest import SHORT, Ran


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("others", [0, 4])
def test_no_line_is_wider_than_the_terminal(inspect: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, width: int, others: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    question = f"{'How many are 3 times 4? ' * 9}\x1b\x1b\x1b{'9' * 200}?"
    ran = inspect(
        "--question", question, "--answer", "3 x 4 = 12 and 12 + 1 = 14\n#### 14", "--text", "reference", "--others", others, "--heads", "1"
    )
    assert ran.code == 0, ran.err
    lines = ran.out[: ran.out.index("tables:")].splitlines()
    assert [line for line in lines if len(line) > width or line != line.rstrip()] == []
    assert "12 + 1 is 13, not 14" in ran.words
    at = next(number for number, line in enumerate(lines) if "  attends to" in line)
    rows = lines[at : lines.index("", at)]
    start = rows[0].index("attends to")
    assert len(rows) > 5  # the header and four heads, some of them wrapped
    assert all(row[:start].endswith("  ") and row[start] != " " for row in rows)
    firsts = [row[:start].split() for row in rows if row[:start].strip()]
    assert firsts[0] == ["head", "here", *(["average", "t", "q"] if others else [])]
    assert sorted(first[0] for first in firsts[1:]) == ["1.0", "1.1", "1.2", "1.3"]
    assert {len(first) for first in firsts} == {len(firsts[0])}


def test_control_characters_do_not_reach_the_terminal(inspect: Callable[..., Ran]) -> None:
    ran = inspect("--question", "Is \x1b[31m3\u202e red?", *SHORT, "--others", 0)
    assert ran.code == 0, ran.err
    assert "\x1b" not in ran.out
    assert "\\u001b[31m3\\u202e red?" in ran.words


def test_unexpected_tokens_are_listed_with_a_more_likely_one(inspect: Callable[..., Ran]) -> None:
    from analyses.examples.text import describe_example
    from figures.example.read import read_example

    assert inspect("--text", "reference", "--others", 0).code == 0
    example = read_example(Path("out"))
    response = example.tokens.loc[example.tokens["region"] == "response", "position"]
    positions = [at for at in example.next["position"].unique() if at in set(response)]
    half, first, backslash = positions[:3]

    def row(position: int, rank: int, token: str, probability: float, is_read: bool) -> dict[str, Any]:
        common = {"model": example.models[0], "position": position, "rank": rank, "token_id": rank}
        return {**common, "token": token, "probability": probability, "is_read": is_read}

    rows = [row(half, 1, "\\xe0", 0.25, False), row(half, 7, " \n", 0.0125, True)]
    rows += [row(first, 1, "41", 0.0625, True), row(first, 2, "43", 0.03125, False)]
    rows += [row(backslash, 1, "\\frac", 0.5, False), row(backslash, 3, "42", 0.0625, True)]
    printed = " ".join(describe_example(dataclasses.replace(example, next=pd.DataFrame(rows))).split())
    assert "' \\n' had 1.2% (rank 7); most likely: '\\xe0' 25%" in printed
    assert "'42' had 6.2% (rank 3); most likely: '\\frac' 50%" in printed
    assert "'41'" not in printed
    assert printed.count("most likely") == 2
