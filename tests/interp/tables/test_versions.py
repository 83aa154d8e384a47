"""Names of version 0.1 become today's names where the project wrote them, and nowhere else."""

from __future__ import annotations

import copy
from typing import Any

import pandas as pd
import pytest

from interp.tables.versions import MOVED, OLD_COLUMNS, OLD_KEYS, current, current_columns, current_options, moved_message, versions

RUN: dict[str, Any] = {
    "command": "python -m analyses.heads --way flash --text gold",
    "config": {"model": "gold", "text": "gold", "way": "flash", "problems": "way", "measures": ["entropy_nats"]},
    "model": {"name": "gold", "way": "own", "cut": 1, "text": "gold", "adapter": {"way": 1}},
    "text": "gold",
    "problems": {"source": "gold", "n_cut": 4},
    "generated": {"max_new_tokens": 64, "n_cut": 3, "text": "gold"},
    "measures": [{"name": "cut", "title": "gold", "way": "flash"}, {"name": "way"}],
    "warnings": ["gold", "way"],
}
"""run.json of a head run by version 0.1, with content that merely looks like an old name."""


def test_versions_name_what_decides_the_numbers() -> None:
    import torch

    found = versions()
    assert found["torch"] == torch.__version__
    assert {"python", "primed-heads", "transformers", "peft", "numpy"} <= set(found)


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_a_run_is_read_under_todays_names() -> None:
    before = copy.deepcopy(RUN)
    found = current(RUN)
    assert before == RUN
    assert found["text"] == "reference"
    assert found["config"] == {"model": "gold", "text": "reference", "backend": "flash", "problems": "way", "measures": ["entropy_nats"]}
    assert found["generated"] == {"max_new_tokens": 64, "n_truncated": 3, "text": "gold"}
    assert found["measures"] == [{"name": "cut", "title": "gold", "backend": "flash"}, {"name": "way"}]


@pytest.mark.parametrize("key", ["command", "model", "problems", "warnings"])
def test_other_content_keeps_its_names(key: str) -> None:
    assert current(RUN)[key] == RUN[key]


def test_settings_are_read_under_todays_names() -> None:
    settings = {"way": "blocked", "text": "gold", "model": {"way": 1, "text": "gold"}, "measures": ["cut", "way", "gold"], "cut": 1}
    assert current(settings) == {**{k: settings[k] for k in ("model", "measures", "cut")}, "backend": "blocked", "text": "reference"}


def test_the_models_of_a_contrast_are_read_under_todays_names() -> None:
    run = {"kind": "contrast", "models": [{"name": "n_cut", "n_cut": 2, "identity": {"n_cut": 5}}]}
    assert current(run)["models"] == [{"name": "n_cut", "n_truncated": 2, "identity": {"n_cut": 5}}]


def test_a_study_is_read_under_todays_names() -> None:
    study = {"objective": {"cut": "drop", "name": "aligned"}, "teacher": {"cut": 1}, "strategies": {"gold": {"text": "gold"}}}
    found = current(study)
    assert found == {**study, "objective": {"truncated": "drop", "name": "aligned"}}
    assert current({"cut": "drop"}, under="objective") == {"truncated": "drop"}
    assert current("gold", under="text") == "reference"
    assert current({"cut": "drop"}) == {"cut": "drop"}


def test_tensors_of_a_part_are_read_under_todays_names() -> None:
    values = object()
    assert current({"values": values, "n_cut": 1}) == {"values": values, "n_truncated": 1}


def test_todays_names_stay() -> None:
    found = current(RUN)
    assert current(found) == found
    assert current({"way": "old", "backend": "new"}) == {"way": "old", "backend": "new"}


@pytest.mark.parametrize("content", [None, 1, 1.5, True, "gold", [], ["gold", {"a": "gold"}], {}, {"text": None}, {"text": ["gold"]}])
def test_content_of_another_form_is_returned(content: Any) -> None:
    expected = {"text": ["reference"]} if content == {"text": ["gold"]} else content
    assert current(content) == expected


# --- tables -----------------------------------------------------------------------------------------------------------


def test_columns_are_read_under_todays_names() -> None:
    frame = pd.DataFrame({"model": ["cut"], "cut": [True], "n_cut": [2]})
    found = current_columns(frame)
    assert list(found.columns) == ["model", "truncated", "n_truncated"]
    assert found["model"].tolist() == ["cut"]
    assert list(frame.columns) == ["model", "cut", "n_cut"]


def test_a_column_is_not_renamed_onto_another() -> None:
    assert list(current_columns(pd.DataFrame({"cut": [1], "truncated": [2]})).columns) == ["cut", "truncated"]


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--text", "gold"], ["--text", "reference"]),
        (["--text=gold"], ["--text=reference"]),
        (["--way", "flash"], ["--backend", "flash"]),
        (["--way=flash"], ["--backend=flash"]),
        (["--out", "a", "--way", "flash", "--text", "gold"], ["--out", "a", "--backend", "flash", "--text", "reference"]),
    ],
)
def test_old_options_are_replaced(given: list[str], expected: list[str]) -> None:
    before = list(given)
    assert current_options(given) == expected
    assert given == before


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--model", "gold"],
        ["gold"],
        ["--text", "generated"],
        ["--text", "golden"],
        ["--text=golden"],
        ["--models", "a", "gold", "--text", "reference"],
        ["--out", "way"],
        ["--way-out", "gold"],
        ["--out=--way"],
        ["--question", "--text gold"],
        ["-way", "flash"],
        ["\u2013\u2013way", "flash"],  # typographic dashes, as some editors make them, are no option
        ["--text", "--model", "gold"],
        ["--context", "gold"],
    ],
)
def test_what_merely_looks_like_an_old_option_stays(given: list[str]) -> None:
    assert current_options(given) == given


# --- the maps themselves ----------------------------------------------------------------------------------------------


def test_no_new_name_is_an_old_name() -> None:
    assert not set(OLD_COLUMNS) & set(OLD_COLUMNS.values())
    assert not {key.rpartition(".")[2] for key in OLD_KEYS} & set(OLD_KEYS.values())


@pytest.mark.parametrize("path", MOVED)
def test_the_message_of_a_moved_path_names_both(path: str) -> None:
    assert moved_message(path) == f"{path} has moved; import from {MOVED[path]}"
