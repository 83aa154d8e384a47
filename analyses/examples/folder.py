"""The folder of one problem, which figures and page are drawn from: tables as Parquet, and `run.json`; written whole."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analyses.examples.request import Request
from distill.problems.sets import Problem
from interp.tables.errors import InputError
from interp.tables.example import EXAMPLE_TABLES
from interp.tables.files import write_text
from interp.tables.schema import write

if TYPE_CHECKING:
    from analyses.examples.reading import Reading
    from interp.measures.measure import Measure
    from interp.recording.trace import Trace


def check_folder(out: Path) -> None:
    """Refuse a place that holds other things, or that cannot be written to; nothing is left there.

    Raises:
        InputError: a file, or a folder that no look at a problem has written.
        OSError: the folder cannot be made.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    ours = {*(f"{name}.parquet" for name in EXAMPLE_TABLES), "run.json", "example.html", "figures", "heads", "problems.jsonl"}
    strange = sorted(p.name for p in out.iterdir() if p.name not in ours and ".draft" not in p.name) if out.is_dir() else []
    kind = "example"
    if (out / "run.json").is_file():
        try:
            kind = json.loads((out / "run.json").read_text(encoding="utf-8")).get("kind", "head run")
        except (ValueError, AttributeError):
            kind = "damaged run"
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)  # tried now: only the attempt tells whether it can be made, after long work
        writable = os.access(out, os.W_OK)
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # it could not be made, or another command has put something there since
                folder.rmdir()
    if not writable:
        raise InputError(f"--out {out} cannot be written to; name another folder")
    if strange or kind != "example":
        raise InputError(
            f"--out {out} holds {strange[0] if strange else f'a {kind}'}, which no look at a problem wrote; name another folder"
        )


def write_example(
    readings: Sequence[Reading],
    traces: dict[str, Trace],
    measures: dict[str, Measure],
    heads: tuple[Sequence[tuple[int, int]], ...],
    problem: Problem,
    request: Request,
    out: Path,
    about: dict[str, Any],
) -> None:
    """Write every table, and last `run.json`: its being there says that the tables are whole.

    Args:
        readings: of all models.
        traces: by model.
        measures: that the heads were measured by.
        heads: (layer, head) of those watched, chosen and foremost.
        problem: that was read.
        request: what was to be looked at.
        out: the folder; tables and figures of an earlier look are replaced.
        about: for run.json: command and `problem` (source, index, n).
    """
    from interp.recording.trace import token_rows
    from interp.tables.versions import versions

    out.mkdir(parents=True, exist_ok=True)
    for name in ("run.json", "example.html"):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "figures", ignore_errors=True)  # of another problem, perhaps
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in EXAMPLE_TABLES}
    for reading in readings:
        name, of = reading.model.name, traces[reading.model.name]
        frames = {
            "tokens": token_rows(reading.tokens.texts[0]).assign(step=reading.step_of),
            "edges": of.edges,
            "standing": reading.standing,
            "steps": of.steps,
            "next": of.next,
        }
        for key, frame in frames.items():
            found[key].append(frame.assign(model=name))
    for key, frames in found.items():
        draft = out / f".{key}.draft"
        write(pd.concat(frames, ignore_index=True), EXAMPLE_TABLES[key], draft)
        draft.replace(out / f"{key}.parquet")
    run = {
        **about,
        "kind": "example",
        "versions": versions(),
        "seed": request.seed,
        "text": request.text,
        "chat": request.chat,
        "max_new_tokens": request.max_new_tokens if request.text == "generated" else None,
        "problem": {**about["problem"], "question": problem.question, "answer": problem.answer or None},
        "models": [_about(reading) for reading in readings],
        "measures": [dataclasses.asdict(m.info) for m in measures.values()],
        "layers": list(readings[0].layers),
        "n_heads": readings[0].n_heads,
        **{key: [list(head) for head in of] for key, of in zip(("watched", "chosen", "foremost"), heads, strict=True)},
        "by": request.by,
        "region": request.region,
        "shared_tokens": shared_tokens(readings),
        "warnings": [warning for reading in readings for warning in _warnings(reading, request, measures)],
    }
    write_text(out / "run.json", json.dumps(run, indent=1, ensure_ascii=False, default=str) + "\n")


def _about(reading: Reading) -> dict[str, Any]:
    """One model's part of run.json."""
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
                "sums": [
                    {
                        "written": s.written,
                        "result": s.result,
                        "value": s.exact,
                        "right": s.right,
                    }
                    for s in step.calculations
                ],
            }
            for step in reading.steps
        ],
        "compared_with": reading.compared_with,
        "identity": reading.identity,
    }


def _warnings(reading: Reading, request: Request, measures: dict[str, Measure]) -> list[str]:
    """What a reader must know of one model."""
    name = reading.model.name
    warnings = [*reading.notes]
    if reading.finish == "length":
        warnings.append(f"{name}: the answer ran into the cut of {request.max_new_tokens} tokens ({request.spelt('max_new_tokens')})")
    if reading.compared_with is None:
        wanted = "" if request.text == "reference" else " --text generated"
        warnings.append(
            f"{name}: nothing to compare with, so heads are chosen by their value alone; a run of "
            f"python -m analyses.heads{wanted} says what is usual, and so does {request.spelt('others', 12)}"
        )
    else:
        n = reading.compared_with["n_examples"]
        if n < 20:
            warnings.append(f"{name}: compared with {n} other problems only; a run of more says more (python -m analyses.heads)")
    if reading.identity.get("unused_weights"):
        warnings.append(f"{name}: {len(reading.identity['unused_weights'])} weights of the checkpoint were not used")
    rows = reading.standing[(reading.standing["measure"] == request.by) & (reading.standing["region"] == request.region)]
    if not (rows["value"].abs() > 0).any():
        title = measures[request.by].info.title.lower()
        warnings.append(
            f"{name}: no head has any {title} in this text, so the heads shown are arbitrary; choose by another measure "
            f"({request.spelt('by')})"
        )
    return warnings


def shared_tokens(readings: Sequence[Reading]) -> int:
    """Tokens from the beginning that are the same in all readings."""
    ids = [reading.tokens.texts[0].ids for reading in readings]
    count = min(map(len, ids))
    differ = [np.flatnonzero(ids[0][:count] != other[:count]) for other in ids[1:]]
    return min([count, *(int(at[0]) for at in differ if len(at))])
