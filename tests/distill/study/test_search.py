from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from distill.study.config import SearchConfig, study_from
from distill.study.search import search
from interp.tables.errors import StudyError

TRIALS = 13
"""More than ten, after which TPE stops drawing at random and uses earlier trials."""


def bowl(settings: dict[str, Any]) -> float:
    """Return a value that is lowest at alpha 0.3 and learning rate 1e-4."""
    return (settings["alpha"] - 0.3) ** 2 + np.log10(settings["learning_rate"] / 1e-4) ** 2 + 0.001 * settings["rank"]


def logged(into: list[dict[str, Any]], value: Callable[[dict[str, Any]], float] = bowl) -> Callable[[dict[str, Any]], float]:
    """Return an objective that stores the settings it is called with."""

    def objective(settings: dict[str, Any]) -> float:
        into.append(settings)
        return value(settings)

    return objective


def states(folder: Path) -> list[TrialState]:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "trials.log")))
    return [trial.state for trial in optuna.load_study(study_name="search", storage=storage).trials]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], pd.DataFrame]:
    """An uninterrupted search: its folder, the settings of its trials, and its table."""
    asked: list[dict[str, Any]] = []
    folder = tmp_path_factory.mktemp("search") / "whole"
    return folder, asked, search(SearchConfig(trials=TRIALS), folder, logged(asked))


def test_table_has_the_trials_with_the_best_first(whole: tuple[Path, list[dict[str, Any]], pd.DataFrame]) -> None:
    folder, asked, table = whole
    assert [settings["trial"] for settings in asked] == list(range(TRIALS))
    expected = sorted(({"value": bowl(s), **s} for s in asked), key=lambda row: row["value"])
    names = ["value", "temperature", "alpha", "learning_rate", "rank"]
    pd.testing.assert_frame_equal(table[names], pd.DataFrame(expected)[names])
    written = pd.read_csv(folder / "trials.csv")
    pd.testing.assert_frame_equal(written.rename(columns={"heldout_nll": "value"}), table)


def test_trials_cover_the_ranges(whole: tuple[Path, list[dict[str, Any]], pd.DataFrame]) -> None:
    config, table = SearchConfig(), whole[2]
    for name in ("temperature", "alpha", "learning_rate"):
        low, high = getattr(config, name)
        assert table[name].between(low, high).all()
        assert table[name].nunique() == TRIALS
    assert set(table["rank"]) <= set(config.rank)
    assert table["rank"].nunique() > 1
    assert (table["learning_rate"] < 1e-4).sum() >= 3  # half of a log scale, but a tenth of a linear one


def test_best_settings_can_be_copied_into_a_study(whole: tuple[Path, list[dict[str, Any]], pd.DataFrame]) -> None:
    folder, asked, _ = whole
    best = min(asked, key=bowl)
    study = study_from({"name": "s", **tomllib.loads((folder / "best.toml").read_text())})
    found = (study.objective.temperature, study.objective.alpha, study.train.learning_rate, study.student.rank)
    assert found == (best["temperature"], best["alpha"], best["learning_rate"], best["rank"])


def test_accuracy_is_maximized(tmp_path: Path) -> None:
    table = search(SearchConfig(trials=4, metric="heldout_accuracy"), tmp_path, lambda settings: settings["alpha"])
    assert table["value"].tolist() == sorted(table["alpha"], reverse=True)
    assert "heldout_accuracy = " in (tmp_path / "best.toml").read_text()
    assert tomllib.loads((tmp_path / "best.toml").read_text())["objective"]["alpha"] == table["alpha"].max()


def test_one_value_fixes_a_setting(tmp_path: Path) -> None:
    fixed = SearchConfig(trials=3, temperature=(2.0,), alpha=(0.5,), learning_rate=(1e-4,), rank=(8,))
    table = search(fixed, tmp_path, bowl)
    assert table[["temperature", "alpha", "learning_rate", "rank"]].drop_duplicates().to_numpy().tolist() == [[2.0, 0.5, 1e-4, 8.0]]


def test_more_trials_extend_a_search(tmp_path: Path, whole: tuple[Path, list[dict[str, Any]], pd.DataFrame]) -> None:
    asked: list[dict[str, Any]] = []
    search(SearchConfig(trials=5), tmp_path, logged(asked))
    search(SearchConfig(trials=5), tmp_path, logged(asked))
    assert len(asked) == 5
    search(SearchConfig(trials=TRIALS), tmp_path, logged(asked))
    assert asked == whole[1]
    assert (tmp_path / "trials.csv").read_bytes() == (whole[0] / "trials.csv").read_bytes()


def test_seed_changes_the_trials(tmp_path: Path, whole: tuple[Path, list[dict[str, Any]], pd.DataFrame]) -> None:
    asked: list[dict[str, Any]] = []
    search(SearchConfig(trials=1, seed=100), tmp_path, logged(asked))
    assert asked[0] != whole[1][0]


# --- killed, damaged, in use -------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from distill.study.config import SearchConfig
from distill.study.search import search
import math

def objective(settings):
    if settings["trial"] == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return (settings["alpha"] - 0.3) ** 2 + math.log10(settings["learning_rate"] / 1e-4) ** 2 + 0.001 * settings["rank"]

search(SearchConfig(trials={trials}), Path(sys.argv[1]), objective)
"""


def test_killed_search_resumes_with_the_same_trials(tmp_path: Path, whole: tuple[Path, list[dict[str, Any]], pd.DataFrame]) -> None:
    """Killed during a trial, before and after TPE starts to use earlier trials."""
    script, folder = tmp_path / "search.py", tmp_path / "s"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[3]), trials=TRIALS))
    for trial in (2, 11):
        killed = subprocess.run([sys.executable, str(script), str(folder), str(trial)], env={**os.environ, "PYTHONWARNINGS": "ignore"})
        assert killed.returncode == -signal.SIGKILL
        assert len(pd.read_csv(folder / "trials.csv")) == trial
    assert states(folder)[-1] == TrialState.RUNNING
    asked: list[dict[str, Any]] = []
    table = search(SearchConfig(trials=TRIALS), folder, logged(asked))
    assert asked == whole[1][11:]
    assert states(folder).count(TrialState.FAIL) == 2
    assert TrialState.RUNNING not in states(folder)
    names = ["temperature", "alpha", "learning_rate", "rank"]
    pd.testing.assert_frame_equal(table[names], whole[2][names])
    assert (folder / "best.toml").read_bytes() == (whole[0] / "best.toml").read_bytes()


def test_error_of_a_trial_is_raised_and_the_trial_repeated(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def broken(settings: dict[str, Any]) -> float:
        if settings["trial"] == 1:
            raise OSError("no space")
        return bowl(settings)

    with pytest.raises(OSError, match="no space"):
        search(SearchConfig(trials=3), tmp_path, logged(asked, broken))
    search(SearchConfig(trials=3), tmp_path, logged(asked))
    assert [settings["trial"] for settings in asked] == [0, 1, 1, 2]
    assert asked[1] == asked[2]


def test_incomplete_journal_line_and_stale_lock_are_removed(tmp_path: Path) -> None:
    """A full disk and a killed process leave them; a line appended to an incomplete one could never be read."""
    search(SearchConfig(trials=2), tmp_path, bowl)
    with (tmp_path / "trials.log").open("ab") as journal:
        journal.write(b'{"op_code":4,"worker')
    (tmp_path / "trials.log.lock").symlink_to(tmp_path / "trials.log")
    for trials in (3, 4):
        assert len(search(SearchConfig(trials=trials), tmp_path, bowl)) == trials


def test_second_process_is_refused(tmp_path: Path) -> None:
    def again(settings: dict[str, Any]) -> float:
        with pytest.raises(StudyError, match="another process"):
            search(SearchConfig(trials=1), tmp_path, bowl)
        return bowl(settings)

    assert len(search(SearchConfig(trials=1), tmp_path, again)) == 1
    assert states(tmp_path) == [TrialState.COMPLETE]


@pytest.mark.parametrize(("metric", "worst"), [("heldout_nll", math.inf), ("heldout_accuracy", -math.inf)])
def test_diverged_student_counts_as_the_worst(tmp_path: Path, metric: Any, worst: float) -> None:
    """If it did not count, the same settings would be tried forever."""
    config = SearchConfig(trials=TRIALS, metric=metric)
    table = search(config, tmp_path, lambda settings: math.nan if settings["trial"] in (0, 11) else settings["alpha"])
    assert len(table) == TRIALS
    assert table["value"].tolist()[-2:] == [worst, worst]
    assert math.isfinite(tomllib.loads((tmp_path / "best.toml").read_text())["objective"]["alpha"])


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"alpha": (0.0, 0.5)}, "alpha: was"),
        ({"condition": "teacher"}, "condition: was 'none', is 'teacher'"),
        ({"metric": "heldout_accuracy"}, "metric: was"),
        ({"seed": 1}, "seed: was 0, is 1"),
        ({"rank": (4,)}, "rank: was"),
    ],
)
def test_changed_settings_are_refused_by_name(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    search(SearchConfig(trials=1), tmp_path, bowl)
    before = (tmp_path / "trials.log").read_bytes()
    with pytest.raises(StudyError, match=words):
        search(SearchConfig(**{"trials": 2, **change}), tmp_path, bowl)
    assert (tmp_path / "trials.log").read_bytes() == before


@pytest.mark.parametrize("split", ["test", "train"])
def test_search_on_another_split_is_refused(split: str) -> None:
    with pytest.raises(StudyError, match="bias the results"):
        SearchConfig(split=split)


def test_search_of_version_01_is_resumed(tmp_path: Path) -> None:
    """Its settings hold objective.cut, which is objective.truncated now."""
    search(SearchConfig(trials=1), tmp_path, bowl, {"objective": {"truncated": "keep"}})
    file = tmp_path / "search.json"
    file.write_text(file.read_text().replace("truncated", "cut"))
    assert len(search(SearchConfig(trials=2), tmp_path, bowl, {"objective": {"truncated": "keep"}})) == 2
