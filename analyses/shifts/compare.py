"""`python -m analyses.shifts`: several checkpoints in; which heads changed, how, how sure are we, and does it go with accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from analyses.command import say
from analyses.shifts.options import ShiftsConfig
from analyses.shifts.text import summarise, warnings

if TYPE_CHECKING:
    from analyses.models.named import Named


def compare(config: ShiftsConfig, command: str) -> int:
    """Heads of models on the same texts: tables, figures, and a summary."""
    from analyses.models.head_runs import read_head_run, same_texts
    from analyses.models.measuring import measure
    from analyses.models.named import all_named, folder_of, of_study, with_accuracy
    from analyses.models.opening import Opening, OpenModels
    from analyses.shifts.differences import align
    from analyses.shifts.folder import ComparisonFolder
    from analyses.shifts.matched import match
    from analyses.shifts.tables import adapter_tables, head_tables, map_tables
    from interp.tables.results import read_run_json

    models = all_named(config.runs, config.base) if config.runs else []
    problems, baseline = None, config.baseline
    if config.study is not None:
        students, problems, usual = of_study(config.study)
        models, baseline = [*students, *models], baseline or usual
    if config.accuracy is not None:
        models = with_accuracy(models, config.accuracy)
    _check(config, models, baseline)
    folder = ComparisonFolder(config.folder(), force=config.force)
    opened = OpenModels(models, Opening(config.device, config.dtype, config.trust_remote_code))
    models = [m if m.folder else replace(m, folder=measure(config, m, problems, folder.out, opened)) for m in models]
    same_texts(models)
    if config.match:
        return match(config, command, models, folder)
    say("comparing heads")
    runs = align([read_head_run(m) for m in models])
    bases = [r for r in runs if (baseline or runs[0].condition) in (r.condition, r.name)]
    bases = bases if len(bases) < len(runs) else runs[:1]  # seeds of one condition: the first is the baseline
    tables = head_tables(runs, bases, models, config.seed)
    tables |= adapter_tables(models, opened)
    tables |= map_tables(config, models, runs, bases, opened)
    infos = [{k: v for k, v in info.items() if k != "backend"} for info in read_run_json(folder_of(models[0]))["measures"]]
    about = {
        "kind": "shifts",
        "command": command,
        "baseline": bases[0].condition,
        "baseline_models": [base.name for base in bases],
        "region": config.region,
        "seed": config.seed,
        "text": read_run_json(folder_of(models[0]))["text"],
        "n_examples": len(runs[0].values.examples),
        "n_layers": len(runs[0].values.layers),
        "n_heads": runs[0].values.n_heads,
        "measures": [info for info in infos if info["name"] in runs[0].values.measures],
        "models": [{**asdict(m), "folder": str(m.folder)} for m in models],
        "warnings": warnings(runs, bases, models),
    }
    folder.write(tables, about)
    if config.figures:
        say("drawing figures")
        folder.draw(config.region)
    summarise(tables, about, folder.out)
    return 0


def _check(config: ShiftsConfig, models: Sequence[Named], baseline: str | None) -> None:
    """What is wrong is said before anything is measured."""
    from interp.checkpoints.opening import identify
    from interp.tables.errors import InputError

    if len(models) < 2:
        raise InputError(f"{len(models)} model to compare ({', '.join(m.name for m in models)}); name at least two")
    names = [m.name for m in models]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(
            f"two models are called {repeated!r}; measure one of them by python -m analyses.heads --name OTHER, and name its run"
        )
    known = list(dict.fromkeys([*(m.condition for m in models), *(m.name for m in models)]))
    if baseline is not None and baseline not in known:
        raise InputError(f"--baseline {baseline!r} is none of the models; known: {', '.join(known)}")
    for model in models:
        if model.folder is None and model.source is not None:
            identify(model.source, trust_remote_code=config.trust_remote_code)
