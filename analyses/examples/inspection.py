"""Inspect one problem: every model reads it, its most unusual heads are traced, and a results folder holds the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.command import say
from analyses.examples.heads import choose_heads, named_heads, rank_heads
from analyses.examples.reading import ModelOpener, Reading, read_problem
from analyses.examples.request import Request
from analyses.examples.tables import EXAMPLE_FOLDER, describe_example_run, write_example_tables
from analyses.models.measuring import has_new_head_runs
from analyses.models.named import NamedModel
from distill.problems.sets import Problem
from interp.tables.errors import InputError
from interp.tables.example import STRONG
from interp.tables.results import ResultsFolder

if TYPE_CHECKING:
    from interp.checkpoints.loading import Checkpoint
    from interp.measures.measure import Measure
    from interp.recording.trace import Trace

_FOREMOST_HEADS = 12
"""Number of heads listed as the most unusual ones."""


def write_inspection(
    models: Sequence[NamedModel],
    opener: ModelOpener,
    problem: Problem,
    request: Request,
    out: Path,
    about: dict[str, Any],
    pool: Sequence[Problem],
) -> Path:
    """Inspect one problem with every model, write the folder that figures and page are drawn from, and return it.

    Args:
        models: one or more models with different names.
        opener: opens them.
        problem: the problem; its answer is "" if it is not known.
        request: what to inspect.
        out: the results folder; those of an earlier inspection are replaced.
        about: for run.json: `command`, and `problem` (source, index, n).
        pool: problems to compare with, for a model that has no head run.

    Raises:
        PrimedHeadsError: the request, a model or the results folder cannot be used as they are.
    """
    from interp.measures.catalog import load_measures

    measures = load_measures()
    if request.by not in measures:
        raise InputError(f"{request.spelled('by', request.by)} is not a measure; known: {', '.join(measures)}")
    layers, n_heads = _shape(models, opener)  # from configs: errors appear before a model is loaded
    named_heads(request, layers, n_heads)
    results = ResultsFolder(out, EXAMPLE_FOLDER, force=True, resume=True)
    try:
        results.clear(keep=EXAMPLE_FOLDER.carried)  # tables of an interrupted call
        readings = [read_problem(model, opener, problem, request, measures, results, pool) for model in models]
        order = rank_heads([r.standing for r in readings], request.by, request.region)
        watched, chosen = choose_heads(request, layers, n_heads, order)
        traces: dict[str, Trace] = {}
        for reading in reversed(readings):  # the last model is still open
            say(f"tracing the heads of {reading.model.name}")
            checkpoint = opener.open(reading.model)
            traces[reading.model.name] = _trace(checkpoint, reading, measures, watched, request)
        write_example_tables(readings, traces, results)
        heads = {"watched": watched, "chosen": chosen, "foremost": order[:_FOREMOST_HEADS]}
        run = describe_example_run(readings, measures, heads, problem, request)
        run["problem"] = {**about["problem"], **run["problem"]}
        results.publish({"command": about["command"], **run})
    except BaseException:
        results.abandon(keep=has_new_head_runs(results))
        raise
    return results.out


def _shape(models: Sequence[NamedModel], opener: ModelOpener) -> tuple[tuple[int, ...], int]:
    """Return the layers and the number of heads, which are the same for all models."""
    from interp.attention.seam import attention_layers

    shapes = []
    for model in models:
        config = opener.config(model)
        shapes.append((attention_layers(config), int(config.get_text_config(decoder=True).num_attention_heads)))
        if shapes[-1] != shapes[0]:
            (layers, n_heads), (others, n_others) = shapes[0], shapes[-1]
            raise InputError(
                f"{models[0].name} has {len(layers)} layers of {n_heads} heads, but {model.name} has {len(others)} of {n_others}; models "
                "are compared only if they have the same layers and heads: inspect them one by one"
            )
    return shapes[0]


def _trace(
    checkpoint: Checkpoint, reading: Reading, measures: dict[str, Measure], watched: Sequence[tuple[int, int]], request: Request
) -> Trace:
    from interp.recording.trace import trace

    return trace(
        checkpoint.model,
        reading.tokens,
        measures,
        step_of=reading.step_of,
        watched=watched,
        strong=None if request.watch else STRONG,  # --watch keeps nothing of other heads
        seed=request.seed,
    )
