"""`python -m analyses.examples`: one problem; what a model wrote, where it went wrong, and which heads looked at which numbers."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.command import say
from analyses.examples.options import ExamplesConfig
from interp.tables.errors import InputError

if TYPE_CHECKING:
    from analyses.examples.request import Request
    from analyses.models.named import NamedModel
    from distill.problems.sets import Problem


def look_at(config: ExamplesConfig, command: str) -> int:
    """One problem: tables, text, figures, page."""
    from analyses.examples.folder import check_folder
    from analyses.examples.request import Request
    from analyses.models.named import find_models

    models = find_models(config.model, config.base)
    config = settled(config, models)
    problem, pool, about = the_problem(config)
    unlike = [m.name for m in models if m.source is None]
    if unlike:
        raise InputError(f"the run of {unlike[0]} does not say where its model is; name the model itself")
    repeated = next((m.name for at, m in enumerate(models) if m.name in [o.name for o in models[:at]]), None)
    if repeated is not None:
        raise InputError(f"two models are called {repeated!r}; measure one by python -m analyses.heads --name OTHER, and name its run")
    out = config.folder()
    check_folder(out)
    request = Request(
        text=config.text or "generated",
        heads=config.heads,
        watch=config.watch,
        by=config.by,
        region=config.region,
        grader=config.grader,
        chat=config.chat,
        max_new_tokens=config.max_new_tokens or 256,
        others=config.others if config.others is not None else 12 if config.text == "reference" else 0,
        seed=config.seed,
    )
    _look(config, request, models, problem, pool, {"command": command, "problem": about}, out)
    from analyses.examples.heads import parse_heads
    from analyses.examples.text import describe
    from figures.example.draw import draw_example, write_page
    from figures.example.read import read_example

    example = read_example(out)
    print(describe(example))
    named_first = parse_heads(config.heads, example.run["layers"], example.run["n_heads"], "--heads")
    files = draw_example(out, heads=named_first or example.chosen[:1]) if config.figures else [write_page(example, out)]
    print(f"tables:  {out}")
    if config.figures:
        print(f"figures: {len(files) - 1} files in {out / 'figures'}")
    print(f"page:    {files[-1]}")
    if config.open:
        webbrowser.open(files[-1].resolve().as_uri())
    return 0


def _look(
    config: ExamplesConfig,
    request: Request,
    models: Sequence[NamedModel],
    problem: Problem,
    pool: Sequence[Problem],
    about: dict[str, Any],
    out: Path,
) -> None:
    from analyses.examples.look import look
    from analyses.models.opening import OpenModels
    from analyses.options import ModelOptions

    opening = ModelOptions(device=config.device, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
    say(f"opening {', '.join(str(m.source) for m in models)}")
    look(models, OpenModels(models, opening), problem, request, out, about, pool)


def settled(config: ExamplesConfig, models: Sequence[NamedModel]) -> ExamplesConfig:
    """What was not asked for, taken from the first head run named."""
    from dataclasses import replace

    from interp.tables.results import read_run_json

    folder = next((m.folder for m in models if m.folder is not None), None)
    run = read_run_json(folder) if folder is not None else {}
    config = replace(
        config,
        text=config.text or ("generated" if config.question is not None else run.get("text", "generated")),
        max_new_tokens=config.max_new_tokens or (run.get("generated") or {}).get("max_new_tokens") or 256,
        chat=config.chat and bool(run.get("config", {}).get("chat", True)),
    )
    if run and config.problems is None and config.question is None:
        config = replace(config, problems=run["problems"]["source"], split=run["problems"]["split"])
    return config


def the_problem(config: ExamplesConfig) -> tuple[Problem, list[Problem], dict[str, Any]]:
    """The problem, all of its set (or the shipped ones, for one typed by hand), and where it is from.

    Raises:
        InputError: a number out of the set's range, or an answer without a number.
    """
    from distill.problems.grading import is_correct
    from distill.problems.sets import Problem, load_problems
    from interp.tables.errors import InputError

    if config.question is not None:
        answer = (config.answer or "").strip()
        if answer and "####" not in answer and config.text == "generated":
            answer = f"#### {answer}"
        if answer:
            try:
                is_correct(None, answer)
            except InputError as error:
                raise InputError(f"--answer: {error}") from error
        return Problem(0, config.question, answer), load_problems(), {"source": "--question", "index": None, "n": None}
    source = config.problems or "shipped"
    pool = load_problems(source, config.split)
    index = config.problem or 0
    if index >= len(pool):
        raise InputError(f"--problem is {index}; {source} has {len(pool)} problems: 0 to {len(pool) - 1} are allowed")
    return pool[index], pool, {"source": source, "index": index, "n": len(pool)}


def contrast(config: ExamplesConfig, command: str) -> int:
    """Many problems: heads of right and of wrong answers."""
    from dataclasses import asdict, fields

    from analyses.contrast.options import ContrastConfig
    from analyses.contrast.run import contrast as over_problems

    known = {name: value for name, value in asdict(config).items() if name in {f.name for f in fields(ContrastConfig)}}
    return over_problems(ContrastConfig(**{**known, "models": config.model, "out": config.folder()}), command)
