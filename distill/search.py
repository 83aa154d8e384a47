"""Search over temperature, mixing, learning rate and rank: Optuna's TPE, kept on disk, on held-out problems of the training split.

The training loss cannot be what is minimised: temperature and alpha change its scale, not only its value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import optuna
import pandas as pd
from filelock import FileLock, Timeout
from optuna.storages.journal import JournalFileBackend

from distill.atomic import write_whole
from distill.config import SearchConfig, as_tables, differences

MAXIMISED = ("heldout_accuracy",)


class SearchError(ValueError):
    """A search that cannot be gone on with."""


def search(
    config: SearchConfig, folder: Path, objective: Callable[[dict[str, Any]], float], fixed: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Tries settings until `config.trials` have finished, those of earlier calls included.

    A trial that a killed process left behind is marked as failed, does not count, and is tried again with the same settings. A value that
    is no number, as of a student that diverged, counts as the worst there is. `trials.csv` and `best.toml` are written after every trial.

    Args:
        config: ranges, number of trials, metric.
        folder: `trials.log` in it holds all trials (Optuna's journal).
        objective: trains and measures one student of temperature, alpha, learning_rate and rank.
        fixed: all else that decides its value; trials of other settings are never put beside one another.

    Returns:
        A row a finished trial, the best first.

    Raises:
        SearchError: the folder was begun with other settings, the message says which key; or another process searches in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):  # the system frees it when its process dies
            return _search(config, folder, objective, fixed or {})
    except Timeout:
        raise SearchError(f"another process searches in {folder}; wait for it, or set another `out`") from None


def _search(config: SearchConfig, folder: Path, objective: Callable[[dict[str, Any]], float], fixed: Mapping[str, Any]) -> pd.DataFrame:
    settings = json.loads(json.dumps({**{k: v for k, v in as_tables(config).items() if k != "trials"}, "study": fixed}))
    file = folder / "search.json"
    if file.is_file():
        try:
            before = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise SearchError(f"{file} is damaged ({error}), so it is not known what its trials are of; delete {folder}") from error
        changed = differences(before, settings)
        if changed:
            raise SearchError(f"{folder} was begun with other settings:\n  " + "\n  ".join(changed) + "\nSet them back, or delete it")
    else:
        write_whole(file, json.dumps(settings, indent=1) + "\n")
    study = _open(folder, "maximize" if config.metric in MAXIMISED else "minimize")
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    worst = -math.inf if config.metric in MAXIMISED else math.inf
    while (done := len(_finished(study))) < config.trials:
        # the sampler's own random state is not kept: a new one for each trial makes a resumed search go as an undisturbed one
        study.sampler = optuna.samplers.TPESampler(seed=config.seed + done)
        trial = study.ask()
        value = objective({**_ranges(config, trial), "trial": done})
        study.tell(trial, worst if math.isnan(value) else value)
        _write(study, config, folder)
    _write(study, config, folder)
    return _table(study)


def _open(folder: Path, direction: Literal["maximize", "minimize"]) -> optuna.Study:
    """The journal of earlier calls, without what a killed one left: Optuna's own lock, and a last line that was not written whole."""
    journal = folder / "trials.log"
    journal.with_name("trials.log.lock").unlink(missing_ok=True)
    if journal.is_file():
        lines = journal.read_bytes()
        whole = lines.rpartition(b"\n")[0] + b"\n" if b"\n" in lines else b""
        if whole != lines:
            with journal.open("r+b") as opened:
                opened.truncate(len(whole))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    return optuna.create_study(storage=storage, study_name="search", direction=direction, load_if_exists=True)


def _ranges(config: SearchConfig, trial: optuna.Trial) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name in ("temperature", "alpha", "learning_rate"):
        values = getattr(config, name)
        chosen[name] = trial.suggest_float(name, values[0], values[-1], log=name == "learning_rate")
    chosen["rank"] = trial.suggest_categorical("rank", list(config.rank))
    return chosen


def _finished(study: optuna.Study) -> list[Any]:
    return study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])


def _table(study: optuna.Study) -> pd.DataFrame:
    rows = [{"trial": t.number, "value": t.value, **t.params} for t in _finished(study)]
    best_first = study.direction == optuna.study.StudyDirection.MINIMIZE
    return pd.DataFrame(rows).sort_values("value", ascending=best_first, kind="stable").reset_index(drop=True)


def _write(study: optuna.Study, config: SearchConfig, folder: Path) -> None:
    table = _table(study)
    write_whole(folder / "trials.csv", table.rename(columns={"value": config.metric}).to_csv(index=False))
    best = table.iloc[0]
    lines = [
        f"# best of {len(table)} trials: {config.metric} = {best['value']:.6g}, condition {config.condition}, seed {config.seed}",
        f"[objective]\ntemperature = {best['temperature']}\nalpha = {best['alpha']}",
        f"[train]\nlearning_rate = {best['learning_rate']}",
        f"[student]\nrank = {int(best['rank'])}",
    ]
    write_whole(folder / "best.toml", "\n\n".join(lines) + "\n")
