"""Search over temperature, alpha, learning rate and rank with Optuna's TPE sampler, on held-out problems of the training split.

The metric is not the training loss, whose scale depends on temperature and alpha. All trials are kept on disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import optuna
import pandas as pd
from optuna.storages.journal import JournalFileBackend

from distill.problems.sets import problems_digest
from distill.settings import as_tables, changed_settings
from distill.study.conditions import condition_of
from distill.study.config import SearchConfig, Study
from distill.study.folder import StudyFolder
from distill.study.run import StudyRun
from distill.training.options import TrajectoryConfig
from interp.tables.errors import NonFiniteError, StudyError
from interp.tables.files import locked, write_json, write_text
from interp.tables.versions import current

_MAXIMIZED = ("heldout_accuracy",)
"""Metrics of which the largest value is the best."""


def search(
    config: SearchConfig, folder: Path, objective: Callable[[dict[str, Any]], float], fixed: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Try settings until `config.trials` trials have finished, including those of earlier calls.

    A trial that a killed process left unfinished is marked as failed, is not counted, and is repeated with the same settings. NaN, as from
    a student that diverged, counts as the worst value. `trials.csv` and `best.toml` are written after every trial.

    Args:
        config: ranges, number of trials, metric.
        folder: folder of the search; its `trials.log` holds all trials (Optuna's journal).
        objective: trains a student with a temperature, alpha, learning_rate and rank, and returns its metric.
        fixed: everything else that decides the metric; trials with different settings are never compared.

    Returns:
        One row per finished trial, the best first.

    Raises:
        StudyError: the folder holds a search with other settings (the message names them), or another process works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, lambda: StudyError(f"another process searches in {folder}; wait for it, or set another `out`")):
        return _search(config, folder, objective, fixed or {})


def _search(config: SearchConfig, folder: Path, objective: Callable[[dict[str, Any]], float], fixed: Mapping[str, Any]) -> pd.DataFrame:
    _check_settings(folder, {**{k: v for k, v in as_tables(config).items() if k != "trials"}, "study": fixed})
    study = _open(folder, "maximize" if config.metric in _MAXIMIZED else "minimize")
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    worst = -math.inf if config.metric in _MAXIMIZED else math.inf
    while (done := len(_finished(study))) < config.trials:
        # the random state of a sampler is not stored; with a new sampler per trial, a resumed search draws what an uninterrupted one does
        study.sampler = optuna.samplers.TPESampler(seed=config.seed + done)
        trial = study.ask()
        value = objective({**_ranges(config, trial), "trial": done})
        study.tell(trial, worst if math.isnan(value) else value)
        _write(study, config, folder)
    _write(study, config, folder)
    return _table(study)


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Store the settings of a search, or compare them with those of the search that is resumed."""
    settings = json.loads(json.dumps(settings))
    file = folder / "search.json"
    if not file.is_file():
        write_json(file, settings)
        return
    try:
        before = json.loads(file.read_text("utf-8"))
        before = {**before, "study": current(before.get("study"))}
    except (ValueError, AttributeError, TypeError) as error:
        raise StudyError(f"{file} is damaged ({error}), so the settings of its trials are unknown; delete {folder}") from error
    changed = changed_settings(before, settings)
    if changed:
        raise StudyError(f"{folder} was begun with other settings:\n  " + "\n  ".join(changed) + "\nRestore them, or delete the folder")


def _open(folder: Path, direction: Literal["maximize", "minimize"]) -> optuna.Study:
    """Open the journal, and remove what a killed call left: Optuna's lock, and an incomplete last line."""
    journal = folder / "trials.log"
    journal.with_name("trials.log.lock").unlink(missing_ok=True)
    if journal.is_file():
        lines = journal.read_bytes()
        complete = lines.rpartition(b"\n")[0] + b"\n" if b"\n" in lines else b""
        if complete != lines:
            with journal.open("r+b") as opened:
                opened.truncate(len(complete))
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
    write_text(folder / "trials.csv", table.rename(columns={"value": config.metric}).to_csv(index=False))
    best = table.iloc[0]
    lines = [
        f"# best of {len(table)} trials: {config.metric} = {best['value']:.6g}, condition {config.condition}, seed {config.seed}",
        f"[objective]\ntemperature = {best['temperature']}\nalpha = {best['alpha']}",
        f"[train]\nlearning_rate = {best['learning_rate']}",
        f"[student]\nrank = {int(best['rank'])}",
    ]
    write_text(folder / "best.toml", "\n\n".join(lines) + "\n")


def search_study(run: StudyRun) -> None:
    """Train students with many settings, and measure them on the held-out problems.

    Raises:
        StudyError: search.condition is not trained, the teacher's signals do not suit the ranges, or as `search`.
    """
    from distill.evaluation.statistics import table_text

    study, config, own = run.study, run.config, run.config.search
    if own.condition not in config.conditions or not condition_of(own.condition).trained:
        raise StudyError(f"search.condition is {own.condition!r}; it must be a trained condition of the study")
    _check_signals(config)
    run.collect(own.condition)
    run.collect(config.baseline)

    fixed = {
        **study.settings(own.condition),
        "parents": study.parents(own.condition),
        "heldout_sha256": problems_digest(study.heldout),
        "evaluation": {k: v for k, v in as_tables(config.evaluation).items() if k not in ("batch_size", "level", "resamples")},
    }
    for section, key in (("objective", "temperature"), ("objective", "alpha"), ("train", "learning_rate"), ("student", "rank")):
        del fixed[section][key]
    table = search(own, study.folder / "search", lambda settings: _measure(run, settings), fixed)
    print(table_text(table.rename(columns={"value": own.metric})))
    print(f"\nThe best settings of {len(table)} trials are in {study.folder / 'search' / 'best.toml'}; copy them into a study")


def _measure(run: StudyRun, settings: dict[str, Any]) -> float:
    """Train and measure the student of one trial; NaN if it diverged."""
    from distill.evaluation.answers import read_answers
    from distill.study.heldout import heldout_scores

    study, config, own = run.study, run.config, run.config.search
    changed = replace(
        config,
        out=str(study.folder / "search" / f"trial-{settings['trial']:04d}"),
        objective=replace(config.objective, temperature=settings["temperature"], alpha=settings["alpha"]),
        train=replace(config.train, learning_rate=settings["learning_rate"]),
        student=replace(config.student, rank=int(settings["rank"])),
        heads=TrajectoryConfig(records=0),
    )
    trial = StudyRun(StudyFolder(changed), show_progress=False)
    trial.study.store = study.store
    run.say(f"trial {settings['trial']}: " + ", ".join(f"{k} {v:.4g}" for k, v in settings.items() if k != "trial"))
    try:
        trial.train_one(own.condition, own.seed)
    except NonFiniteError as error:
        run.say(f"trial {settings['trial']}: {error}")
        return math.nan
    if own.metric == "heldout_nll":
        scores = heldout_scores(trial.study, trial.study.open_student(own.condition, own.seed), own.condition).set_index("answers")
        value = float(scores["nll"]["own" if "own" in scores.index else "reference"])
    else:
        trial.study.test = study.heldout
        value = float(read_answers(trial.evaluate_one(own.condition, own.seed), config.evaluation.grader)["correct"].mean())
    run.say(f"trial {settings['trial']}: {own.metric} {value:.5g}")
    return value


def _check_signals(config: Study) -> None:
    """Raise unless every trial can be trained with the teacher's signals."""
    own, signal = config.search, config.teacher.signal
    if config.objective.teacher == "live" or own.alpha[0] == 1:
        return
    if signal == "text":
        raise StudyError(f'search.alpha is {list(own.alpha)}, but teacher.signal is "text"; set search.alpha = [1.0], or another signal')
    if signal == "topk" and set(own.temperature) != {1.0} and config.objective.topk_at_temperature != "truncate":
        raise StudyError(
            f'search.temperature is {list(own.temperature)}, but teacher.signal is "topk"; a stored top-k is exact only at temperature 1. '
            'Set search.temperature = [1.0], teacher.signal = "hidden", or objective.topk_at_temperature = "truncate"'
        )
