"""The results folder of one inspected problem: its tables, and the content of run.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analyses.examples.request import Request
from distill.problems.sets import Problem
from interp.tables.example import EXAMPLE_TABLES
from interp.tables.results import Kind, ResultsFolder

if TYPE_CHECKING:
    from analyses.examples.reading import Reading
    from interp.measures.measure import Measure
    from interp.recording.trace import Trace

EXAMPLE_FOLDER = Kind(
    noun="inspection of a problem",
    kinds=("example",),
    names=rf"heads|problems\.jsonl|example\.html|({'|'.join(EXAMPLE_TABLES)})\.parquet",
    carried=("heads", "problems.jsonl"),
)
"""The results folder of an inspected problem; head runs that were made for comparison are carried over to the next inspection."""

_FEW_OTHERS = 20
"""With fewer other problems than this, a comparison with them is rough."""


def write_example_tables(readings: Sequence[Reading], traces: dict[str, Trace], results: ResultsFolder) -> None:
    """Write the tables of `interp.tables.example` into the draft of the results.

    Args:
        readings: what each model read.
        traces: where its heads attend, by model.
        results: the results folder.
    """
    from interp.recording.trace import token_rows

    found: dict[str, list[pd.DataFrame]] = {name: [] for name in EXAMPLE_TABLES}
    for reading in readings:
        name, trace = reading.model.name, traces[reading.model.name]
        frames = {
            "tokens": token_rows(reading.tokens.texts[0]).assign(step=reading.step_of),
            "edges": trace.edges,
            "standing": reading.standing,
            "steps": trace.steps,
            "next": trace.next,
        }
        for key, frame in frames.items():
            found[key].append(frame.assign(model=name))
    for key, frames in found.items():
        results.write_table(pd.concat(frames, ignore_index=True), EXAMPLE_TABLES[key])


def describe_example_run(
    readings: Sequence[Reading],
    measures: dict[str, Measure],
    heads: Mapping[str, Sequence[tuple[int, int]]],
    problem: Problem,
    request: Request,
) -> dict[str, Any]:
    """Return the content of run.json without what only the caller knows: the command, and where the problem comes from.

    Args:
        readings: what each model read.
        measures: the measures that were taken.
        heads: (layer, head) of the heads that are watched, chosen and foremost.
        problem: the problem.
        request: what was to be inspected.
    """
    return {
        "kind": "example",
        "seed": request.seed,
        "text": request.text,
        "chat": request.chat,
        "max_new_tokens": request.max_new_tokens if request.text == "generated" else None,
        "problem": {"question": problem.question, "answer": problem.answer or None},
        "models": [_describe_model(reading) for reading in readings],
        "measures": [dataclasses.asdict(m.info) for m in measures.values()],
        "layers": list(readings[0].layers),
        "n_heads": readings[0].n_heads,
        **{key: [list(head) for head in own] for key, own in heads.items()},
        "by": request.by,
        "region": request.region,
        "shared_tokens": _n_shared_tokens(readings),
        "warnings": [warning for reading in readings for warning in _warnings(reading, request, measures)],
    }


def _describe_model(reading: Reading) -> dict[str, Any]:
    """Return one model's part of run.json."""
    return {
        "name": reading.model.name,
        "condition": reading.model.condition,
        "seed": reading.model.seed,
        "response": reading.response,
        "finish": reading.finish,
        "n_tokens": len(reading.tokens.texts[0]),
        "grade": None if reading.grade is None else dataclasses.asdict(reading.grade),
        "steps": [
            {
                "text": step.text,
                "sums": [{"written": s.written, "result": s.result, "value": s.exact, "right": s.right} for s in step.calculations],
            }
            for step in reading.steps
        ],
        "compared_with": reading.compared_with,
        "identity": reading.identity,
    }


def _warnings(reading: Reading, request: Request, measures: dict[str, Measure]) -> list[str]:
    """Return what a reader must know about one model."""
    name = reading.model.name
    warnings = [*reading.notes]
    if reading.finish == "length":
        limit = request.spelled("max_new_tokens")
        warnings.append(f"{name}: the answer was truncated at {request.max_new_tokens} tokens ({limit})")
    if reading.compared_with is None:
        text = "" if request.text == "reference" else " --text generated"
        warnings.append(
            f"{name}: there is nothing to compare with, so heads are chosen by their value alone; a run of "
            f"python -m analyses.heads{text} shows what is usual, and so does {request.spelled('others', 12)}"
        )
    else:
        n = reading.compared_with["n_examples"]
        if n < _FEW_OTHERS:
            warnings.append(f"{name}: compared with only {n} other problems; a run of python -m analyses.heads on more is more precise")
    if reading.identity.get("unused_weights"):
        warnings.append(f"{name}: {len(reading.identity['unused_weights'])} weights of the checkpoint were not used")
    rows = reading.standing[(reading.standing["measure"] == request.by) & (reading.standing["region"] == request.region)]
    if not (rows["value"].abs() > 0).any():
        title = measures[request.by].info.title.lower()
        warnings.append(
            f"{name}: {title} is zero for every head in this text, so the heads shown are arbitrary; choose by another measure "
            f"({request.spelled('by')})"
        )
    return warnings


def _n_shared_tokens(readings: Sequence[Reading]) -> int:
    """Return the number of tokens at the beginning that are the same in all readings."""
    ids = [reading.tokens.texts[0].ids for reading in readings]
    count = min(map(len, ids))
    differ = [np.flatnonzero(ids[0][:count] != other[:count]) for other in ids[1:]]
    return min([count, *(int(at[0]) for at in differ if len(at))])
