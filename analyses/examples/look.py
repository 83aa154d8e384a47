"""One problem under the lens: every model reads it, the heads that stand out are traced, and a folder holds all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.command import say
from analyses.examples.folder import write_example
from analyses.examples.heads import choose_heads, named_heads, standing_out
from analyses.examples.reading import Opens, Reading, read_problem
from analyses.examples.request import Request
from analyses.models.named import NamedModel
from distill.problems.sets import Problem
from interp.tables.errors import InputError
from interp.tables.example import STRONG

if TYPE_CHECKING:
    from interp.checkpoints.loading import Checkpoint
    from interp.measures.measure import Measure
    from interp.recording.trace import Trace


FOREMOST = 12
"""Heads that stand out most, as listed."""


def look(
    models: Sequence[NamedModel], opened: Opens, problem: Problem, request: Request, out: Path, about: dict[str, Any], pool: Sequence[Problem]
) -> Path:
    """Look at one problem with every model, and write the folder that figures and page are drawn from.

    Args:
        models: one or more, of names of their own.
        opened: opens them.
        problem: its answer may be "", where it is not known.
        request: what to look at.
        out: the folder; of an earlier look, its tables are replaced.
        about: for run.json: command, versions, and `problem` (source, index, n).
        pool: problems from which those that a model is compared on are taken, where it has no run.

    Raises:
        InputError: see its messages; InputError and others as analyses.heads raises them.
    """
    from interp.measures.catalog import load_measures

    measures = load_measures()
    if request.by not in measures:
        raise InputError(f"{request.spelt('by', request.by)} is no measure; known: {', '.join(measures)}")
    layers, n_heads = _form(models, opened)  # from configs, before a model is loaded and answers
    named_heads(request, layers, n_heads)
    readings = [read_problem(model, opened, problem, request, measures, out, pool) for model in models]
    order = standing_out([r.standing for r in readings], request.by, request.region)
    watched, chosen = choose_heads(request, layers, n_heads, order)
    traces: dict[str, Trace] = {}
    for reading in reversed(readings):  # the last is open still
        say(f"looking at the heads of {reading.model.name}")
        traces[reading.model.name] = _trace(opened.open(reading.model), reading, measures, watched, bool(request.watch), request.seed)
    write_example(readings, traces, measures, (watched, chosen, order[:FOREMOST]), problem, request, out, about)
    return out


def _form(models: Sequence[NamedModel], opened: Opens) -> tuple[tuple[int, ...], int]:
    """Layers and number of heads, the same for all models."""
    from interp.attention.seam import attention_layers

    forms = []
    for model in models:
        config = opened.config(model)
        forms.append((attention_layers(config), int(config.get_text_config(decoder=True).num_attention_heads)))
        if forms[-1] != forms[0]:
            (layers, n_heads), (others, n_others) = forms[0], forms[-1]
            raise InputError(
                f"{models[0].name} has {len(layers)} layers of {n_heads} heads, {model.name} {len(others)} of {n_others}: side by side are "
                "models of one form; look at them one by one"
            )
    return forms[0]


def _trace(
    checkpoint: Checkpoint, reading: Reading, measures: dict[str, Measure], watched: Sequence[tuple[int, int]], only: bool, seed: int
) -> Trace:
    from interp.recording.trace import trace

    return trace(
        checkpoint.model, reading.tokens, measures, step_of=reading.step_of, watched=watched, strong=None if only else STRONG, seed=seed
    )
