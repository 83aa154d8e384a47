"""The tables of one problem agree with each other, and run.json has the checked steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from interp.tables.example import FAINT, STRONG
from tests.analyses.examples.conftest import SHORT, Ran, run_json, table


def test_maps_sum_to_one_and_steps_are_sums_of_maps(inspect: Callable[..., Ran]) -> None:
    assert inspect("--text", "reference", "--heads", "0.1", "1").code == 0
    edges, tokens, steps, run = table("edges"), table("tokens"), table("steps"), run_json()
    assert run["watched"] == [[0, 1], [1, 0], [1, 1], [1, 2], [1, 3]]
    assert run["chosen"][0] == [0, 1]
    watched = edges[(edges["layer"] == 0) & (edges["head"] == 1)]
    sums = watched.groupby("query")["probability"].sum()
    assert sums.index.tolist() == tokens["position"].tolist()
    assert ((sums > 1 - FAINT * len(tokens)) & (sums < 1 + 1e-5)).all()
    others = edges[(edges["layer"] == 0) & (edges["head"] == 2)]
    assert others["probability"].min() >= STRONG
    numbers = set(tokens.loc[tokens["role"] == "question_number", "position"])
    for number in range(tokens["step"].max() + 1):
        queries = tokens.loc[tokens["step"] == number, "position"]
        mine = watched[watched["query"].isin(queries) & watched["key"].isin(numbers)]
        row = steps[(steps["step"] == number) & (steps["layer"] == 0) & (steps["head"] == 1) & (steps["quantity"] == "question_numbers")]
        assert row["value"].item() == pytest.approx(mine["probability"].sum() / len(queries), abs=FAINT * len(numbers))
        assert row["n_queries"].item() == len(queries)


def test_wrong_calculations_are_reported_with_their_correct_result(inspect: Callable[..., Ran], tmp_path: Path) -> None:
    lines = ["3*4 = <<3*4=13>>13 pens.", "Then 13+2 = 15.", "#### 15"]
    others = [{"question": f"What is {n} + 1?", "answer": f"{n}+1={n + 1}\n#### {n + 1}"} for n in range(5)]
    rows = [{"question": "Packs of 4, 3 of them, and 2 more?", "answer": "\n".join(lines)}, *others]
    (tmp_path / "wrong.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = inspect("--problems", tmp_path / "wrong.jsonl", "--text", "reference")
    assert ran.code == 0, ran.err
    assert "3*4 is 12, not 13" in ran.words
    assert "1 of 2 calculations in it are right" in ran.words
    steps = run_json()["models"][0]["steps"]
    assert [step["text"] for step in steps] == lines
    assert steps[0]["sums"] == [{"written": "3*4", "result": "13", "value": "12", "right": False}]


def test_truncated_answers_are_reported(inspect: Callable[..., Ran]) -> None:
    inspect(*SHORT, "--others", 0)
    model = run_json()["models"][0]
    tokens = table("tokens")
    truncated = (tokens["region"] == "response").sum() == 12 and tokens["role"].iloc[-1] != "special"
    assert model["finish"] == ("length" if truncated else "stop")
    assert any("was truncated at" in warning for warning in run_json()["warnings"]) == truncated
