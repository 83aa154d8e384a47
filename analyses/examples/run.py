"""Inspect one problem of a set, or one that was typed: tables, figures and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.command import say
from analyses.examples.options import ExamplesConfig
from interp.tables.errors import InputError

if TYPE_CHECKING:
    from analyses.examples.request import Request
    from analyses.models.named import NamedModel
    from distill.problems.sets import Problem
    from figures.example.read import Example

_MAX_NEW_TOKENS = 256

_OTHERS_OF_REFERENCE_TEXT = 12
"""Number of other problems that a model without a run reads for comparison; reading is fast, answering is not."""


@dataclass(frozen=True)
class InspectedProblem:
    """The results of inspecting one problem.

    Attributes:
        folder: the results folder.
        example: its tables and run.json.
        figures: the figures that were drawn; empty if none was asked for.
        page: the page.
    """

    folder: Path
    example: Example
    figures: list[Path]
    page: Path


def inspect_problem(options: ExamplesConfig, *, command: str = "analyses.examples.run.inspect_problem") -> InspectedProblem:
    """Return what models answered to one problem and how unusual their heads are on it, after writing it to `options.folder()`.

        from analyses.examples.options import ExamplesConfig
        from analyses.examples.run import inspect_problem

        inspected = inspect_problem(ExamplesConfig(model=("smollm2",), problem=7))
        inspected.example.standing.query("measure == 'numeric_mass' and region == 'response'")

    Results of an earlier inspection in the same folder are replaced.

    Args:
        options: what to inspect, and where the results go.
        command: recorded in run.json.

    Raises:
        PrimedHeadsError: options, models, problem or results folder cannot be used as they are.
    """
    from analyses.examples.inspection import write_inspection
    from analyses.models.named import find_models
    from analyses.models.opening import OpenModels

    models = find_models(options.model, options.base)
    options = _complete_options(options, models)
    problem, pool, origin = _load_problem(options)
    _check_models(models)
    request = _request_of(options)
    say(f"opening {', '.join(str(m.source) for m in models)}")
    about = {"command": command, "problem": origin}
    folder = write_inspection(models, OpenModels(models, options), problem, request, options.folder(), about, pool)
    return _draw(folder, options)


def _check_models(models: Sequence[NamedModel]) -> None:
    """Raise if a model cannot be opened, or two have the same name."""
    missing = next((m.name for m in models if m.source is None), None)
    if missing is not None:
        raise InputError(f"the run of {missing} does not record where its model is; name the model itself")
    names = [m.name for m in models]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(
            f"two models are called {repeated!r}; measure one of them with python -m analyses.heads --name OTHER, and name its run"
        )


def _complete_options(options: ExamplesConfig, models: Sequence[NamedModel]) -> ExamplesConfig:
    """Return the options with what was not given taken from the first head run that is named."""
    from interp.tables.results import read_run_json

    folder = next((m.folder for m in models if m.folder is not None), None)
    run = read_run_json(folder) if folder is not None else {}
    options = replace(
        options,
        text=options.text or ("generated" if options.question is not None else run.get("text", "generated")),
        max_new_tokens=options.max_new_tokens or (run.get("generated") or {}).get("max_new_tokens") or _MAX_NEW_TOKENS,
        chat=options.chat and bool(run.get("config", {}).get("chat", True)),
    )
    if run and options.problems is None and options.question is None:
        options = replace(options, problems=run["problems"]["source"], split=run["problems"]["split"])
    return options


def _load_problem(options: ExamplesConfig) -> tuple[Problem, list[Problem], dict[str, Any]]:
    """Return the problem, all problems of its set (the shipped ones for a typed problem), and where it comes from.

    Raises:
        InputError: the number is not in the set, or the answer holds no number.
    """
    from distill.problems.grading import is_correct
    from distill.problems.sets import Problem, load_problems

    if options.question is not None:
        answer = (options.answer or "").strip()
        if answer and "####" not in answer and options.text == "generated":
            answer = f"#### {answer}"
        if answer:
            try:
                is_correct(None, answer)  # raises if the answer holds no number
            except InputError as error:
                raise InputError(f"--answer: {error}") from error
        return Problem(0, options.question, answer), load_problems(), {"source": "--question", "index": None, "n": None}
    source = options.problems or "shipped"
    pool = load_problems(source, options.split)
    index = options.problem or 0
    if index >= len(pool):
        raise InputError(f"--problem is {index}, but {source} has {len(pool)} problems; allowed: 0 to {len(pool) - 1}")
    return pool[index], pool, {"source": source, "index": index, "n": len(pool)}


def _request_of(options: ExamplesConfig) -> Request:
    from analyses.examples.request import Request

    others = options.others
    if others is None:
        others = _OTHERS_OF_REFERENCE_TEXT if options.text == "reference" else 0
    return Request(
        text=options.text or "generated",
        heads=options.heads,
        watch=options.watch,
        by=options.by,
        region=options.region,
        grader=options.grader,
        chat=options.chat,
        max_new_tokens=options.max_new_tokens or _MAX_NEW_TOKENS,
        others=others,
        seed=options.seed,
    )


def _draw(folder: Path, options: ExamplesConfig) -> InspectedProblem:
    """Draw the figures (if asked for) and the page of a published inspection."""
    from analyses.examples.heads import parse_heads
    from figures.example.draw import draw_example, write_page
    from figures.example.read import read_example

    example = read_example(folder)
    if not options.figures:
        return InspectedProblem(folder, example, [], write_page(example, folder))
    say("drawing figures")
    named = parse_heads(options.heads, example.run["layers"], example.run["n_heads"], "--heads")
    *drawn, page = draw_example(folder, heads=named or example.chosen[:1])
    return InspectedProblem(folder, example, drawn, page)
