"""The head runs that a contrast is made from: each model's heads, measured on the model's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from analyses.contrast.options import ContrastConfig
from analyses.models.measuring import head_run
from analyses.models.named import NamedModel, folder_of
from interp.tables.errors import InputError
from interp.tables.results import ResultsFolder, read_run_json

if TYPE_CHECKING:
    from analyses.models.opening import OpenModels
    from distill.problems.sets import Problem
    from interp.tables.heads import ModelRun

_MAX_NEW_TOKENS = 256


def complete_options(options: ContrastConfig, models: Sequence[NamedModel]) -> tuple[ContrastConfig, list[Problem]]:
    """Return the options with what was not given taken from the first finished head run, and the problems.

    Raises:
        InputError: the problems cannot be read.
    """
    from distill.problems.sets import load_problems

    finished = next((m for m in models if m.folder), None)
    run = read_run_json(folder_of(finished)) if finished else {}
    generated = run.get("generated") or {}
    options = replace(
        options,
        max_new_tokens=options.max_new_tokens or generated.get("max_new_tokens", _MAX_NEW_TOKENS),
        measures=options.measures or (tuple(info["name"] for info in run["measures"]) if run.get("config", {}).get("measures") else ()),
        chat=options.chat if not run else bool(run["config"].get("chat", True)),
    )
    if options.problems is None and run:
        known = run["problems"]
        options = replace(options, problems=known["source"], split=known["split"], limit=options.limit or known["n"])
        try:
            return options, load_problems(known["source"], known["split"], options.limit)
        except InputError as error:
            raise InputError(f"{error}. These are the problems of {finished and finished.folder}; name them with --problems") from error
    source = options.problems or "shipped"
    return replace(options, problems=source), load_problems(source, options.split, options.limit)


def check_head_runs(options: ContrastConfig, models: Sequence[NamedModel], problems: Sequence[Problem]) -> None:
    """Raise unless the finished head runs read the models' own answers to these problems under the same settings.

    Raises:
        InputError: a run differs; the message says in what.
    """
    from distill.problems.sets import problems_digest

    finished = [(m, read_run_json(m.folder)) for m in models if m.folder]
    digest = problems_digest(problems)
    for model, run in finished:
        place = f"{model.name} ({model.folder})"
        if run["text"] != "generated" or not run.get("generated"):
            raise InputError(
                f"{place} was measured with --text {run['text']}, but a contrast needs the model's own answers; measure it with "
                "python -m analyses.heads --text generated, or name the model itself"
            )
        known = run["problems"]
        if known["sha256"] != digest:
            raise InputError(
                f"{place} read {known['n']} problems of {known['source']} ({known['sha256'][:12]}…), but these are {len(problems)} of "
                f"{options.problems} ({digest[:12]}…); name the run's problems with --problems, --split and --limit, or measure it again"
            )
        if run["generated"]["max_new_tokens"] != options.max_new_tokens:
            raise InputError(
                f"{place} was measured with --max-new-tokens {run['generated']['max_new_tokens']}, the others with "
                f"{options.max_new_tokens}; measure all of them with the same --max-new-tokens"
            )
        first, first_run = finished[0]
        if run["chat"] != first_run["chat"]:
            raise InputError(
                f"{first.name} was measured {_template(first_run['chat'])}, but {place} {_template(run['chat'])}; measure one of them again"
            )


def _template(chat: bool) -> str:
    return "with the chat template" if chat else "without the chat template"


def measure_answers(options: ContrastConfig, model: NamedModel, opened: OpenModels, results: ResultsFolder) -> Path:
    """Return the folder of a model's head run on its own answers: a finished one, the continued unfinished one, or a new one.

    Args:
        options: complete options of the contrast.
        model: the model.
        opened: opens the model if it has to be measured.
        results: the results folder of the contrast; the head run is in its draft.
    """
    return head_run(
        model,
        options,
        results.draft / "heads" / model.name,
        lambda: opened.open(model),
        final=results.final,
        resume=not options.force,
        text="generated",
        max_new_tokens=options.max_new_tokens,
    )


def with_common_measures(runs: Sequence[ModelRun]) -> list[ModelRun]:
    """Return the runs restricted to the measures that all of them have.

    Raises:
        InputError: they have no measure in common.
    """
    common = [m for m in runs[0].values.measures if all(m in run.values.measures for run in runs)]
    if not common:
        names = ", ".join(run.name for run in runs)
        raise InputError(f"{names} have no measure in common; measure them again with the same --measures")
    restricted = []
    for run in runs:
        columns = [run.values.measures.index(m) for m in common]
        complete = columns == list(range(len(run.values.measures)))
        values = run.values if complete else replace(run.values, measures=tuple(common), values=run.values.values[:, :, :, columns])
        restricted.append(replace(run, values=values))
    return restricted
