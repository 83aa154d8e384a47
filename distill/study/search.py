"""Search over temperature, mixing, learning rate and rank: Optuna's TPE, kept on disk, on held-out problems of the training split.

The training loss cannot be what is minimised: temperature and alpha change its scale, not only its value.
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
from filelock import FileLock, Timeout
from optuna.storages.journal import JournalFileBackend

from distill.problems.sets import problems_digest
from distill.settings import as_tables, differences
from distill.study.config import SearchConfig
from distill.study.folder import StudyFolder
from distill.study.run import StudyRun
from distill.training.options import TrajectoryConfig
from interp.tables.errors import StudyError
from interp.tables.files import write_text

MAXIMISED = ("heldout_accuracy",)


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
        StudyError: the folder was begun with other settings, the message says which key; or another process searches in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):  # the system frees it when its process dies
            return _search(config, folder, objective, fixed or {})
    except Timeout:
        raise StudyError(f"another process searches in {folder}; wait for it, or set another `out`") from None


def _search(config: SearchConfig, folder: Path, objective: Callable[[dict[str, Any]], float], fixed: Mapping[str, Any]) -> pd.DataFrame:
    settings = json.loads(json.dumps({**{k: v for k, v in as_tables(config).items() if k != "trials"}, "study": fixed}))
    file = folder / "search.json"
    if file.is_file():
        try:
            before = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise StudyError(f"{file} is damaged ({error}), so it is not known what its trials are of; delete {folder}") from error
        changed = differences(before, settings)
        if changed:
            raise StudyError(f"{folder} was begun with other settings:\n  " + "\n  ".join(changed) + "\nSet them back, or delete it")
    else:
        write_text(file, json.dumps(settings, indent=1) + "\n")
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
    """Trains students of many settings, and measures them on the held-out problems.

    Raises:
        StudyError: a condition that is not trained, or settings that the teacher's signals cannot train.
        StudyError: as `search`.
    """
    from distill.evaluation.answers import read_answers
    from distill.evaluation.statistics import shown
    from distill.study.heldout import heldout_scores
    from interp.tables.errors import NonFiniteError

    study, config, own = run.study, run.config, run.config.search
    if own.condition in ("untouched", *(() if own.condition in config.conditions else (own.condition,))):
        raise StudyError(f"search.condition is {own.condition!r}; it must be a condition of the study that is trained")
    _check_signals(run)
    run.collect(own.condition)
    run.collect(config.baseline)

    def measure(settings: dict[str, Any]) -> float:
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

    fixed = {
        **study.settings(own.condition),
        "parents": study.parents(own.condition),
        "heldout_sha256": problems_digest(study.heldout),
        "evaluation": {k: v for k, v in as_tables(config.evaluation).items() if k not in ("batch_size", "level", "resamples")},
    }
    for section, key in (("objective", "temperature"), ("objective", "alpha"), ("train", "learning_rate"), ("student", "rank")):
        del fixed[section][key]
    table = search(own, study.folder / "search", measure, fixed)
    print(shown(table.rename(columns={"value": own.metric})))
    print(f"\n{study.folder / 'search' / 'best.toml'} has the best of {len(table)}, to be put into a study")


def _check_signals(run: StudyRun) -> None:
    """Every trial can be trained with the teacher's signals."""
    own, signal = run.config.search, run.config.teacher.signal
    if run.config.objective.teacher == "live" or own.alpha[0] == 1:
        return
    if signal == "text":
        raise StudyError(f'search.alpha is {list(own.alpha)}, but teacher.signal is "text": set search.alpha = [1.0], or another signal')
    truncated = run.config.objective.topk_at_temperature == "truncate"
    if signal == "topk" and set(own.temperature) != {1.0} and not truncated:
        raise StudyError(
            f"search.temperature is {list(own.temperature)}, but stored top-k signals are sound at temperature 1 only: set "
            'search.temperature = [1.0], teacher.signal = "hidden", or objective.topk_at_temperature = "truncate"'
        )
