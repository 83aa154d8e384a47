"""Compare the heads of several models: which changed, how much, how certain that is, and whether it goes with accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.command import say
from analyses.models.head_runs import check_same_texts, read_model_run
from analyses.models.measuring import has_new_head_runs
from analyses.models.named import NamedModel, find_models, folder_of
from analyses.models.studies import add_accuracies, study_models
from analyses.shifts.alignment import align
from analyses.shifts.comparison import COMPARISON, ComparisonResult, publish_comparison
from analyses.shifts.differences import by_condition
from analyses.shifts.options import ShiftsConfig
from interp.tables.errors import InputError
from interp.tables.results import ResultsFolder, read_run_json
from interp.tables.shifts import FEWEST_STUDENTS

if TYPE_CHECKING:
    import pandas as pd

    from analyses.models.opening import OpenModels
    from distill.problems.sets import Problem
    from interp.tables.heads import ModelRun

_FEW_EXAMPLES = 20
"""With fewer examples than this, intervals and tests over examples are rough."""

_STUDY_PROBLEMS = 100
"""Number of a study's test problems that models read unless `--limit` is given."""

_Made = tuple[dict[str, "pd.DataFrame"], dict[str, Any]]
"""Tables by name, and the content of run.json."""


def compare_models(options: ShiftsConfig, *, command: str = "analyses.shifts.compare.compare_models") -> ComparisonResult:
    """Return the comparison that the options describe, after writing it to `options.folder()`.

        from analyses.shifts.compare import compare_models
        from analyses.shifts.options import ShiftsConfig

        comparison = compare_models(ShiftsConfig(runs=("runs/base", "runs/student"), figures=False))
        comparison.tables["shifts"].query("q < 0.05")

    Models that have no head run yet are measured first. Their runs are kept in the results folder, also if the comparison is interrupted.

    Args:
        options: what to compare, and where the results go.
        command: recorded in run.json.

    Raises:
        PrimedHeadsError: options, runs, models or results folder cannot be used as they are.
    """
    results = ResultsFolder(options.folder(), COMPARISON, force=options.force, resume=True)
    try:
        results.clear(keep=COMPARISON.carried)  # tables of an interrupted call
        tables, run = _make(options, results)
        run = {"kind": run["kind"], "command": command, **run}
        comparison = publish_comparison(results, tables, run)
    except BaseException:
        results.abandon(keep=has_new_head_runs(results))
        raise
    if options.figures:
        from figures.comparison.draw import draw_comparison

        say("drawing figures")
        draw_comparison(comparison.folder, region=options.region)
    return comparison


def _make(options: ShiftsConfig, results: ResultsFolder) -> _Made:
    """Make the tables of whichever kind of comparison was asked for."""
    if options.published is not None:
        from analyses.shifts.published.run import compare_published

        return compare_published(options.published)
    if options.trajectory:
        from analyses.shifts.trajectories import compare_trajectories

        return compare_trajectories(options)
    return _compare_heads(options, results)


def _compare_heads(options: ShiftsConfig, results: ResultsFolder) -> _Made:
    """Make the tables of a comparison of models head by head, or by profile if they have different architectures."""
    from analyses.models.opening import OpenModels
    from analyses.shifts.tables import adapter_tables, head_tables, map_tables

    models, problems, baseline = _models(options)
    _check(options, models, baseline)
    opened = OpenModels(models, options)
    models = [m if m.folder else replace(m, folder=_measured(options, m, problems, results, opened)) for m in models]
    check_same_texts(models)
    recorded = [{**asdict(m), "folder": str(results.final(folder_of(m)))} for m in models]
    if options.match:
        from analyses.shifts.matching.run import compare_by_profile

        say(f"matching the heads of {models[0].name} and {models[1].name}")
        tables, run = compare_by_profile(models, options.seed)
        return tables, {**run, "models": recorded}
    say("comparing heads")
    runs = align([read_model_run(m) for m in models])
    bases = [r for r in runs if (baseline or runs[0].condition) in (r.condition, r.name)]
    bases = bases if len(bases) < len(runs) else runs[:1]  # all are seeds of one condition: the first is the baseline
    tables = head_tables(runs, bases, models, options.seed)
    tables |= adapter_tables(models, opened)
    tables |= map_tables(options, models, runs, bases, opened, results)
    return tables, _describe(options, models, runs, bases) | {"models": recorded}


def _models(options: ShiftsConfig) -> tuple[list[NamedModel], list[Problem] | None, str | None]:
    """Return the models, a study's test problems if there is one, and the name of the baseline if it is known."""
    models = find_models(options.runs, options.base) if options.runs else []
    problems, baseline = None, options.baseline
    if options.study is not None:
        students, problems, usual = study_models(options.study)
        models, baseline = [*students, *models], baseline or usual
    if options.accuracy is not None:
        models = add_accuracies(models, options.accuracy)
    return models, problems, baseline


def _check(options: ShiftsConfig, models: Sequence[NamedModel], baseline: str | None) -> None:
    """Raise for what can be known to be wrong before anything is measured."""
    from interp.checkpoints.opening import identify

    if len(models) < 2:
        raise InputError(f"{len(models)} model to compare ({', '.join(m.name for m in models)}); name at least two")
    names = [m.name for m in models]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(
            f"two models are called {repeated!r}; measure one of them with python -m analyses.heads --name OTHER, and name its run"
        )
    known = list(dict.fromkeys([*(m.condition for m in models), *(m.name for m in models)]))
    if baseline is not None and baseline not in known:
        raise InputError(f"--baseline {baseline!r} is not one of the models; known: {', '.join(known)}")
    for model in models:
        if model.folder is None and model.source is not None:
            identify(model.source, trust_remote_code=options.trust_remote_code)


def _measured(
    options: ShiftsConfig, model: NamedModel, problems: Sequence[Problem] | None, results: ResultsFolder, opened: OpenModels
) -> Path:
    """Return a model's head run, measured if it is not there yet."""
    from analyses.models.measuring import head_run, write_problems

    chosen = {}
    if problems is not None and options.problems is None:
        file = write_problems(problems[: options.limit or _STUDY_PROBLEMS], results.draft / "problems.jsonl")
        chosen = {"problems": str(file), "limit": None}
    return head_run(
        model, options, results.draft / "heads" / model.name, lambda: opened.open(model), final=results.final, text="reference", **chosen
    )


def _describe(options: ShiftsConfig, models: Sequence[NamedModel], runs: Sequence[ModelRun], bases: Sequence[ModelRun]) -> dict[str, Any]:
    """Return the content of run.json, without the models."""
    first, values = read_run_json(folder_of(models[0])), runs[0].values
    infos = [{key: value for key, value in info.items() if key != "backend"} for info in first["measures"]]
    return {
        "kind": "shifts",
        "baseline": bases[0].condition,
        "baseline_models": [base.name for base in bases],
        "region": options.region,
        "seed": options.seed,
        "text": first["text"],
        "n_examples": len(values.examples),
        "n_layers": len(values.layers),
        "n_heads": values.n_heads,
        "measures": [info for info in infos if info["name"] in values.measures],
        "warnings": _warnings(runs, bases, models),
    }


def _warnings(runs: Sequence[ModelRun], bases: Sequence[ModelRun], models: Sequence[NamedModel]) -> list[str]:
    """Return what a reader of the tables must know."""
    found = []
    n = len(runs[0].values.examples)
    if n < _FEW_EXAMPLES:
        found.append(f"only {n} examples: intervals and tests over examples are rough")
    of_baseline = {base.name for base in bases}
    others = [r for r in runs if r.name not in of_baseline]
    single = [name for name, group in by_condition(others).items() if len(group) == 1]
    if single:
        found.append(f"one seed of {', '.join(single)}: tests over examples describe that student only; another seed may differ")
    seeds = {base.seed for base in bases}
    unpaired = [r.name for r in others if r.seed not in seeds] if len(bases) > 1 else []
    if unpaired:
        found.append(
            f"{', '.join(unpaired)}: {bases[0].condition} has no student with that seed, so shifts and layers are relative to "
            f"{bases[0].name}"
        )
    graded = sum(bool(m.accuracy) for m in models if m.name not in of_baseline)
    if 0 < graded < FEWEST_STUDENTS:
        found.append(f"{graded} students with a known accuracy: their correlation has no p value (at least {FEWEST_STUDENTS} are needed)")
    return found
