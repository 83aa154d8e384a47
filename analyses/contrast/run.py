"""Many problems: which heads differ between a model's right and its wrong answers, and between students that do and do not solve one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.command import say
from analyses.contrast.options import ContrastConfig
from interp.tables.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from analyses.models.named import NamedModel
    from analyses.models.opening import OpenModels
    from distill.problems.sets import Problem
    from interp.tables.heads import ModelRun


FEW = 10
"""With fewer right or wrong answers than this the tests are rough."""


def contrast(config: ContrastConfig, command: str) -> int:
    """Measures what is not measured, grades every answer, tests every head; tables, figures, and a summary.

    Args:
        config: what to do.
        command: for the record of the run.

    Returns:
        0.

    Raises:
        InputError: models of one name, an unknown grader, head runs of other problems or settings, or a folder of other things.
        InputError: too few right or wrong answers; answers.parquet is there all the same.
        ValueError: as `analyses.models.named.find_model`, `analyses.heads.run.measure_heads` and `distill.problems.sets.load_problems` raise.
    """
    import numpy as np

    from analyses.contrast.answers import graded
    from analyses.contrast.folder import KIND, ContrastFolder
    from analyses.contrast.statistics import contrast_table, lengths_table, same_heads
    from analyses.contrast.text import summarise
    from analyses.models.head_runs import read_head_run
    from analyses.models.named import find_models
    from analyses.models.opening import OpenModels
    from interp.tables.contrast import ANSWERS, CONTRAST
    from interp.tables.errors import InputError

    models = find_models(config.models, config.base)
    _check(config, models)
    folder = ContrastFolder(config.out, force=config.force)
    config, problems = _settled(config, models)
    _check_runs(config, models, problems)
    opened = OpenModels(models, config)
    models = [m if m.folder else replace(m, folder=_measured(config, m, opened)) for m in models]
    _check_runs(config, models, problems)
    say("grading answers")
    runs = _on_common_measures([read_head_run(m) for m in models])
    answers = [graded(run, _about(m), problems, config.grader) for run, m in zip(runs, models, strict=True)]
    right = np.stack([table["correct"].to_numpy(bool) for table in answers])
    accuracies = [_accuracy(m, table) for m, table in zip(models, answers, strict=True)]
    folder.begin()
    import pandas as pd

    folder.write(pd.concat(answers, ignore_index=True), ANSWERS)
    values = [run.values for run in runs]
    say("contrasting heads")
    try:
        table = contrast_table(values, right, seed=config.seed)
    except InputError as error:
        cut = sum(int(each["truncated"].sum()) for each in answers)
        hint = f"{cut} of {right.size} answers were cut at {config.max_new_tokens} tokens (--max-new-tokens); " if cut else ""
        weak = "; the embedded model of 135M parameters solves hardly any problem" if _embedded(models) else ""
        raise InputError(
            f"{error}. {hint}take more problems (--limit, --problems) or other models{weak}. "
            f"The verdicts are in {folder.out / 'answers.parquet'}"
        ) from error
    lengths = np.stack([each["n_tokens"].to_numpy(float) for each in answers])
    about = {
        "kind": KIND,
        "command": command,
        "seed": config.seed,
        "text": "generated",
        "chat": _about(models[0])["chat"],
        "max_new_tokens": config.max_new_tokens,
        "grader": config.grader,
        "region": config.region,
        "problems": _about(models[0])["problems"],
        "n_examples": len(problems),
        "n_problems_both": int((right.any(0) & ~right.all(0)).sum()) if len(models) > 1 else None,
        "n_layers": len(values[0].layers),
        "n_heads": values[0].n_heads,
        "models": accuracies,
        "lengths": lengths_table([m.name for m in models], lengths, right, seed=config.seed).to_dict("records"),
        "measures": _infos(models[0], values[0].measures),
        "warnings": warnings(models, answers, right, same=same_heads(values)),
    }
    folder.write(table, CONTRAST)
    folder.finish(about)
    if config.figures:
        from figures.comparison.contrast import draw_contrast

        say("drawing figures")
        draw_contrast(folder.out)
    summarise(table, about, folder.out)
    return 0


# --- head runs ------------------------------------------------------------------------------------------------------


def _check(config: ContrastConfig, models: Sequence[NamedModel]) -> None:
    """What is wrong is said before anything is measured."""
    from distill.problems.grading import GRADERS
    from interp.checkpoints.opening import identify
    from interp.tables.contrast import PAIRED

    if config.grader not in GRADERS:
        raise InputError(f"--grader {config.grader!r} is not known; known: {', '.join(GRADERS)}")
    if not models:
        raise InputError("no model to look at; name at least one")
    names = [m.name for m in models]
    repeated = next((name for name in names if names.count(name) > 1 or name == PAIRED), None)
    if repeated is not None:
        raise InputError(
            f"two models are called {repeated!r}; measure one by python -m analyses.heads --text generated --name OTHER, and name its run"
        )
    for model in models:
        if model.folder is None and model.source is not None:
            identify(model.source, trust_remote_code=config.trust_remote_code)


def _about(model: NamedModel) -> dict[str, Any]:
    from analyses.models.named import folder_of
    from interp.tables.results import read_run_json

    return read_run_json(folder_of(model))


def _settled(config: ContrastConfig, models: Sequence[NamedModel]) -> tuple[ContrastConfig, list[Problem]]:
    """What was not asked for, taken from the first finished run; and the problems."""
    from distill.problems.sets import load_problems
    from interp.tables.errors import InputError

    finished = next((m for m in models if m.folder), None)
    run = _about(finished) if finished else {}
    of_run = run.get("generated") or {}
    config = replace(
        config,
        max_new_tokens=config.max_new_tokens or of_run.get("max_new_tokens", 256),
        measures=config.measures or (tuple(info["name"] for info in run["measures"]) if run.get("config", {}).get("measures") else ()),
        chat=config.chat if not run else bool(run["config"].get("chat", True)),
    )
    if config.problems is None and run:
        known = run["problems"]
        config = replace(config, problems=known["source"], split=known["split"], limit=config.limit or known["n"])
        try:
            return config, load_problems(known["source"], known["split"], config.limit)
        except InputError as error:
            raise InputError(f"{error}. They are those of {finished and finished.folder}: name them with --problems") from error
    source = config.problems or "shipped"
    return replace(config, problems=source), load_problems(source, config.split, config.limit)


def _check_runs(config: ContrastConfig, models: Sequence[NamedModel], problems: Sequence[Problem]) -> None:
    """Finished head runs read their own answers to these problems, all under one setting.

    Raises:
        InputError: one did not; the message says what differs.
    """
    from distill.problems.sets import problems_digest

    finished = [(m, _about(m)) for m in models if m.folder]
    digest = problems_digest(problems)
    for model, run in finished:
        where = f"{model.name} ({model.folder})"
        if run["text"] != "generated" or not run.get("generated"):
            raise InputError(
                f"{where} was measured with --text {run['text']}: right and wrong need the model's own answers; measure it with "
                "python -m analyses.heads --text generated, or name the model itself"
            )
        known = run["problems"]
        if known["sha256"] != digest:
            raise InputError(
                f"{where} read {known['n']} problems of {known['source']} ({known['sha256'][:12]}…), and these are {len(problems)} of "
                f"{config.problems} ({digest[:12]}…): name the run's problems with --problems, --split and --limit, or measure it again"
            )
        if run["generated"]["max_new_tokens"] != config.max_new_tokens:
            raise InputError(
                f"{where} wrote up to {run['generated']['max_new_tokens']} tokens, the others up to {config.max_new_tokens}: measure all "
                "with one --max-new-tokens"
            )
        if run["chat"] != finished[0][1]["chat"]:
            raise InputError(
                f"{finished[0][0].name} was measured with the chat template {finished[0][1]['chat']}, {where} with {run['chat']}: measure "
                "one again"
            )


def _measured(config: ContrastConfig, model: NamedModel, opened: OpenModels) -> Path:
    """A model's head run on its own answers: the finished one that is there, the rest of an unfinished one, or a new one."""
    from analyses.models.measuring import head_run

    return head_run(
        model,
        config,
        config.out / "heads" / model.name,
        lambda: opened.open(model),
        resume=not config.force,
        text="generated",
        max_new_tokens=config.max_new_tokens,
    )


def _on_common_measures(runs: list[ModelRun]) -> list[ModelRun]:
    common = [m for m in runs[0].values.measures if all(m in run.values.measures for run in runs)]
    if not common:
        names = ", ".join(run.name for run in runs)
        raise InputError(f"no measure is common to {names}; measure them again with the same --measures")
    restricted = []
    for run in runs:
        columns = [run.values.measures.index(m) for m in common]
        whole = columns == list(range(len(run.values.measures)))
        values = run.values if whole else replace(run.values, measures=tuple(common), values=run.values.values[:, :, :, columns])
        restricted.append(replace(run, values=values))
    return restricted


def _infos(model: NamedModel, measures: Sequence[str]) -> list[dict[str, Any]]:
    known = {info["name"]: {key: value for key, value in info.items() if key != "backend"} for info in _about(model)["measures"]}
    return [known[name] for name in measures]


# --- what the answers allow to say ----------------------------------------------------------------------------------


def _accuracy(model: NamedModel, answers: pd.DataFrame) -> dict[str, Any]:
    from distill.evaluation.statistics import wilson_interval

    n, n_right = len(answers), int(answers["correct"].sum())
    low, high = wilson_interval(n_right, n)
    return {
        "name": model.name,
        "condition": model.condition,
        "seed": model.seed,
        "folder": str(model.folder),
        "identity": _about(model)["model"],
        "accuracy": n_right / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "n_right": n_right,
        "n_problems": n,
        "n_truncated": int(answers["truncated"].sum()),
    }


def _embedded(models: Sequence[NamedModel]) -> bool:
    return any(_about(m)["model"].get("kind") == "embedded" for m in models)


def warnings(models: Sequence[NamedModel], answers: Sequence[pd.DataFrame], right: np.ndarray, *, same: bool) -> list[str]:
    """What a reader must know of these answers."""
    from analyses.contrast.statistics import FEWEST

    told = []
    for model, table, one in zip(models, answers, right, strict=True):
        n_right, n_wrong = int(one.sum()), int((~one).sum())
        fewer = min((n_right, "right"), (n_wrong, "wrong"))
        if fewer[0] < FEWEST:
            told.append(f"{model.name} has {fewer[0]} {fewer[1]} of {len(one)} answers: no test of its own (from {FEWEST} on)")
        elif fewer[0] < FEW:
            told.append(f"{model.name} has only {fewer[0]} {fewer[1]} of {len(one)} answers: its tests are rough, take p for a hint")
        if table["truncated"].any():
            told.append(
                f"{int(table['truncated'].sum())} of {len(one)} answers of {model.name} were cut, which mostly makes them wrong, and long"
            )
    if _embedded(models):
        told.append("the embedded model of 135M parameters solves hardly any problem: its right answers are few, and may be luck")
    if len(models) > 1:
        both = int((right.any(0) & ~right.all(0)).sum())
        if not same:
            told.append("the models have other numbers of layers or heads, so nothing is paired by problem")
        elif both < FEW:
            told.append(f"only {both} problems are solved by some models and not by others: the paired test is rough, or not there")
    return told
