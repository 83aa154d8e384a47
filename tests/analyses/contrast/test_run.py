"""A contrast from end to end: real generated runs of tiny models, planted right answers, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from analyses.command import guarded
from analyses.contrast.run import contrast_answers
from interp.tables.contrast import ANSWERS, CONTRAST, PAIRED
from interp.tables.errors import InputError, OptionError
from interp.tables.heads import EXAMPLE_VALUES
from interp.tables.schema import REGIONS, read, write
from tests.analyses.contrast.conftest import COMMAND, MEASURES, NEW, NO_NUMBER, N, options, run_json


def test_the_tables_have_the_planted_verdicts(place: Path, done: Path) -> None:
    answers, table, run = read(done / "answers.parquet", ANSWERS), read(done / "contrast.parquet", CONTRAST), run_json(done)
    references = [json.loads(line)["answer"] for line in (place / "planted.jsonl").read_text().splitlines()]
    for name, turn in (("one", 0), ("two", 1)):
        own = answers[answers["model"] == name]
        planted = [n % 3 == turn and references[n] != NO_NUMBER for n in range(N)]
        assert own["correct"].tolist() == planted
        about = next(m for m in run["models"] if m["name"] == name)
        assert (about["n_right"], about["n_problems"], about["accuracy"]) == (sum(planted), N, sum(planted) / N)
        assert about["accuracy_low"] < about["accuracy"] < about["accuracy_high"]
        assert about["n_truncated"] == own["truncated"].sum()
    assert list(dict.fromkeys(table["model"])) == ["one", "two", PAIRED]
    assert len(table) == 3 * 2 * 4 * len(MEASURES) * len(REGIONS)
    keys = ("kind", "command", "grader", "seed", "region", "n_layers", "n_heads", "n_examples", "max_new_tokens", "text")
    assert [run[key] for key in keys] == ["contrast", COMMAND, "first_final", 0, "response", 2, 4, N, NEW, "generated"]
    assert [info["name"] for info in run["measures"]] == list(MEASURES)
    assert {"name", "title", "unit", "low", "high", "formula"} == set(run["measures"][0])
    assert run["n_problems_both"] == answers["correct"].sum()
    assert [row["model"] for row in run["lengths"]] == ["one", "two", PAIRED]
    assert run["versions"]["torch"]
    assert run["problems"]["source"].endswith("planted.jsonl")


def test_a_difference_is_that_of_the_values_in_the_head_run(done: Path) -> None:
    """One head by hand: its mean over right answers minus that over wrong ones, from the table of the head run."""
    answers = read(done / "answers.parquet", ANSWERS)
    right = answers[answers["model"] == "two"].set_index("problem")["correct"]
    values = read(done / "heads" / "two" / "examples.parquet", EXAMPLE_VALUES)
    own = values[(values["layer"] == 1) & (values["head"] == 2) & (values["measure"] == "previous_mass") & (values["region"] == "response")]
    by_problem = own.set_index("example")["value"]
    table: Any = read(done / "contrast.parquet", CONTRAST).set_index(["model", "layer", "head", "measure", "region"])
    row = table.loc[("two", 1, 2, "previous_mass", "response")]
    assert row["difference"] == pytest.approx(by_problem[right.to_numpy()].mean() - by_problem[~right.to_numpy()].mean())
    assert row["n_right"] == right.sum()


def test_figures_are_drawn(done: Path) -> None:
    names = {path.name for path in (done / "figures").iterdir()}
    assert {"forest_one.png", "forest_paired.pdf", "contrast_map_paired_entropy_nats.png"} <= names


def test_a_planted_head_is_found_and_pairing_removes_the_effect_of_hard_problems(
    runs: tuple[Path, Path], done: Path, tmp_path: Path
) -> None:
    """One head's values are raised for right answers, another's on the problems that only `two` solves (for both models)."""
    answers = read(done / "answers.parquet", ANSWERS)
    hard = answers.loc[(answers["model"] == "two") & answers["correct"], "problem"]
    for folder in runs:
        name = folder.name
        right = answers.loc[(answers["model"] == name) & answers["correct"], "problem"]
        values = read(folder / "examples.parquet", EXAMPLE_VALUES)
        place = (values["measure"] == "previous_mass") & (values["region"] == "response") & (values["layer"] == 1)
        values.loc[place & (values["head"] == 2) & values["example"].isin(right), "value"] += 1.0
        values.loc[place & (values["head"] == 0) & values["example"].isin(hard), "value"] += 1.0
        write(values, EXAMPLE_VALUES, folder / "examples.parquet")
    contrast_answers(options(tmp_path / "out", None, *runs), command=COMMAND)
    table = read(tmp_path / "out" / "contrast.parquet", CONTRAST)
    rows = table[(table["measure"] == "previous_mass") & (table["region"] == "response") & (table["layer"] == 1)]
    found: Any = rows.set_index(["model", "head"])
    assert (found.loc[[("one", 2), ("two", 2), (PAIRED, 2)], "q"] < 0.01).all()
    assert found.loc[(PAIRED, 2), "ci_low"] < 1 < found.loc[(PAIRED, 2), "ci_high"]
    assert found.loc[("two", 0), "q"] < 0.01
    assert found.loc[("two", 0), "difference"] == pytest.approx(1, abs=0.3)
    assert found.loc[(PAIRED, 0), "q"] > 0.05


def test_too_few_right_answers_are_one_line_that_says_where_the_graded_answers_are(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, draft = options(tmp_path, place / "blank.jsonl", place / "one", limit=5), tmp_path.with_name(tmp_path.name + ".partial")
    code = guarded(lambda: contrast_answers(config, command=COMMAND) and 0, debug=False, interrupted=lambda: "", out=tmp_path, kept="")
    printed = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert printed.startswith("error: too few answers of one kind (one: 0 right, 5 wrong)")
    assert f"were truncated at {NEW} tokens" in printed
    assert f"The graded answers are in {draft / 'answers.parquet'}" in printed
    assert len(read(draft / "answers.parquet", ANSWERS)) == 5
    assert not (draft / "run.json").exists()
    assert list(tmp_path.iterdir()) == []


def test_names_graders_and_folders_are_checked_before_anything_is_measured(place: Path, done: Path, tmp_path: Path) -> None:
    problems = place / "planted.jsonl"
    with pytest.raises(InputError, match="two models are called 'one'"):
        contrast_answers(options(tmp_path, problems, place / "one", place / "one"), command=COMMAND)
    with pytest.raises(InputError, match=r"unknown grader 'mine'.*; known: first_final"):
        contrast_answers(options(tmp_path, problems, place / "one", grader="mine"), command=COMMAND)
    with pytest.raises(InputError, match="no model"):
        contrast_answers(options(tmp_path, problems), command=COMMAND)
    with pytest.raises(OptionError, match="another kind"):
        contrast_answers(options(done / "heads" / "one", problems, place / "one"), command=COMMAND)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"holds 'mine\.txt', and is not a finished contrast"):
        contrast_answers(options(tmp_path, problems, place / "one"), command=COMMAND)
    with pytest.raises(OptionError, match="is a file"):
        contrast_answers(options(tmp_path / "mine.txt", problems, place / "one"), command=COMMAND)
    with pytest.raises(InputError, match=r"absent\.jsonl"):
        contrast_answers(options(tmp_path / "out", tmp_path / "absent.jsonl", place / "one"), command=COMMAND)


def test_a_finished_contrast_has_complete_tables_and_no_drafts(done: Path) -> None:
    assert not [path for path in done.iterdir() if "draft" in path.name]
    assert pq.read_schema(done / "contrast.parquet").names == CONTRAST.arrow.names
    with pytest.raises(InputError):
        read(done / "answers.parquet", CONTRAST)
    text = (done / "run.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    assert np.isfinite(json.loads(text)["lengths"][0]["difference"])
