"""One problem under the lens: every model reads it, the heads that stand out are traced, and a folder holds all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.command import say
from analyses.example_folder import write_example
from analyses.example_heads import choose_heads, named_heads, standing_out
from analyses.example_reading import Opens, Reading, read_problem
from analyses.example_wish import ExampleError, Wish
from analyses.head_runs import Named
from distill.problems import Problem
from interp.example import STRONG

if TYPE_CHECKING:
    from interp.checkpoints import Checkpoint
    from interp.measures import Measure
    from interp.trace import Trace

FOREMOST = 12
"""Heads that stand out most, as listed."""


def look(
    models: Sequence[Named], opened: Opens, problem: Problem, wish: Wish, out: Path, about: dict[str, Any], pool: Sequence[Problem]
) -> Path:
    """Look at one problem with every model, and write the folder that figures and page are drawn from.

    Args:
        models: one or more, of names of their own.
        opened: opens them.
        problem: its answer may be "", where it is not known.
        wish: what to look at.
        out: the folder; of an earlier look, its tables are replaced.
        about: for run.json: command, versions, and `problem` (source, index, n).
        pool: problems from which those that a model is compared on are taken, where it has no run.

    Raises:
        ExampleError: see its messages; InputError and others as analyses.heads raises them.
    """
    from interp.measures import load_measures

    measures = load_measures()
    if wish.by not in measures:
        raise ExampleError(f"--by {wish.by} is no measure; known: {', '.join(measures)}")
    named_heads(wish, *_shape(opened.open(models[0])))  # before the model answers
    readings = [read_problem(model, opened, problem, wish, measures, out, pool) for model in models]
    form = (readings[0].layers, readings[0].n_heads)
    for other in readings[1:]:
        if (other.layers, other.n_heads) != form:
            raise ExampleError(
                f"{readings[0].model.name} has {len(form[0])} layers of {form[1]} heads, {other.model.name} {len(other.layers)} of "
                f"{other.n_heads}: side by side are models of one form; look at them one by one"
            )
    order = standing_out([r.standing for r in readings], wish.by, wish.region)
    watched, chosen = choose_heads(wish, *form, order)
    traces: dict[str, Trace] = {}
    for reading in reversed(readings):  # the last is open still
        say(f"looking at the heads of {reading.model.name}")
        traces[reading.model.name] = _trace(opened.open(reading.model), reading, measures, watched, bool(wish.watch), wish.seed)
    write_example(readings, traces, measures, (watched, chosen, order[:FOREMOST]), problem, wish, out, about)
    return out


def _shape(checkpoint: Checkpoint) -> tuple[tuple[int, ...], int]:
    from interp.seam import attention_layers

    config = checkpoint.model.config
    return attention_layers(config), int(config.get_text_config(decoder=True).num_attention_heads)


def _trace(
    checkpoint: Checkpoint, reading: Reading, measures: dict[str, Measure], watched: Sequence[tuple[int, int]], only: bool, seed: int
) -> Trace:
    from interp.trace import trace

    return trace(
        checkpoint.model, reading.tokens, measures, step_of=reading.step_of, watched=watched, strong=None if only else STRONG, seed=seed
    )
