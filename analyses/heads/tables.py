"""The tables of a head run, made from its parts, and the content of its run.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analyses.heads.options import HeadsConfig
from analyses.heads.parts import Parts

if TYPE_CHECKING:
    from distill.problems.sets import Problem
    from interp.checkpoints.loading import Checkpoint
    from interp.measures.measure import Measure
    from interp.tables.results import ResultsFolder

_FEW_EXAMPLES = 20
"""With fewer examples than this, bootstrap intervals are rough."""

_VALUES_AT_ONCE = 2_000_000
"""Rows of the `examples` table that are in memory at a time."""


@dataclass(frozen=True)
class RunTables:
    """The tables of a head run, as far as run.json describes them.

    Attributes:
        heads: the `heads` table.
        n_tokens: rows of the `inputs` table.
        n_layers: layers with attention.
        n_heads: heads of a layer.
        n_truncated: number of generated answers that were truncated.
        n_batches: number of parts.
        blocked: for each batch in which there were any, the layers that the blocked backend recorded for another backend.
    """

    heads: pd.DataFrame
    n_tokens: int
    n_layers: int
    n_heads: int
    n_truncated: int
    n_batches: int
    blocked: list[tuple[int, ...]]


def write_tables(
    options: HeadsConfig, checkpoint: Checkpoint, measures: Sequence[str], results: ResultsFolder, n_batches: int
) -> RunTables:
    """Return what the parts hold, after writing the three tables; examples are in ascending order, however they were batched.

    Args:
        options: of the run.
        checkpoint: the model.
        measures: names of the measures, in the order of the parts.
        results: where the parts are and the tables go.
        n_batches: number of parts.
    """
    from interp.attention.seam import attention_layers
    from interp.recording.totals import heads_table
    from interp.tables.files import write_file
    from interp.tables.heads import EXAMPLE_VALUES, HEADS, INPUTS

    stored = Parts(results)
    parts = [stored.read(number) for number in range(n_batches)]
    examples = np.array([example for part in parts for example in part.examples])
    order = np.argsort(examples)
    values = np.concatenate([part.values for part in parts])[order]
    counts = np.concatenate([part.counts for part in parts])[order]
    inputs = pd.concat([part.inputs for part in parts], ignore_index=True).sort_values(["example", "position"], kind="stable")
    n_truncated = sum(part.n_truncated for part in parts)
    blocked = [part.blocked for part in parts if part.blocked]
    del parts  # their values are in memory twice by now
    model, layers = options.name or checkpoint.name, attention_layers(checkpoint.model.config)
    heads = heads_table(model, values, counts, layers, list(measures), options.seed)
    results.write_table(heads, HEADS)
    results.write_table(inputs.reset_index(drop=True), INPUTS)
    axes = [examples[order], layers, range(values.shape[2]), measures]
    write_file(results.draft / f"{EXAMPLE_VALUES.name}.parquet", lambda path: _write_example_values(path, model, axes, values, counts))
    return RunTables(
        heads=heads,
        n_tokens=len(inputs),
        n_layers=len(layers),
        n_heads=values.shape[2],
        n_truncated=n_truncated,
        n_batches=n_batches,
        blocked=blocked,
    )


def _write_example_values(path: Path, model: str, axes: list[Any], values: np.ndarray, counts: np.ndarray) -> None:
    """Write the `examples` table, some examples at a time."""
    import pyarrow.parquet as pq

    from interp.tables.heads import EXAMPLE_VALUES
    from interp.tables.schema import REGIONS, validate

    examples, *others = axes
    step = max(1, _VALUES_AT_ONCE // values[0].size)
    with pq.ParquetWriter(path, EXAMPLE_VALUES.arrow, compression="zstd") as writer:
        for at in range(0, len(examples), step):
            index = pd.MultiIndex.from_product(
                [examples[at : at + step], *others, REGIONS], names=["example", "layer", "head", "measure", "region"]
            )
            frame = index.to_frame(index=False).assign(model=model)
            frame["value"], frame["n_queries"] = values[at : at + step].ravel(), counts[at : at + step].ravel()
            writer.write_table(validate(frame, EXAMPLE_VALUES))


def describe_run(
    options: HeadsConfig,
    checkpoint: Checkpoint,
    problems: Sequence[Problem],
    measures: dict[str, Measure],
    tables: RunTables,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of run.json without what only the caller knows: command, timings, memory.

    Args:
        options: to be recorded.
        checkpoint: the model.
        problems: that were read.
        measures: that were taken.
        tables: of the run.
        settings: what decided the numbers.
    """
    from interp.tables.versions import versions

    generated = {"max_new_tokens": options.max_new_tokens, "n_truncated": tables.n_truncated, "decoding": "greedy"}
    return {
        "command": "",
        "config": {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(options).items()},
        "versions": versions(),
        "model": {**checkpoint.identity, "name": options.name or checkpoint.name},
        "dtype": checkpoint.identity["dtype"],
        "device": checkpoint.identity["device"],
        "seed": options.seed,
        "text": options.text,
        "chat": settings["chat"],
        "problems": {"source": options.problems, "split": options.split, "n": len(problems), "sha256": settings["problems"]},
        "generated": generated if options.text == "generated" else None,
        "batch_tokens": options.batch_tokens,
        "n_tokens": tables.n_tokens,
        "n_layers": tables.n_layers,
        "n_heads": tables.n_heads,
        "measures": [{**dataclasses.asdict(measure.info), "backend": settings["backend"]} for measure in measures.values()],
        "warnings": _warnings(options, checkpoint, len(problems), tables, settings["backend"]),
    }


def _warnings(options: HeadsConfig, checkpoint: Checkpoint, n_problems: int, tables: RunTables, backend: str) -> list[str]:
    """Return what a reader of the tables must know."""
    found: list[str] = []
    unused = checkpoint.identity["unused_weights"]
    if unused:
        found.append(
            f"{len(unused)} weights of the checkpoint were not used, the first is {unused[0]}; check that its config belongs to it"
        )
    if tables.n_truncated:
        found.append(f"{tables.n_truncated} of {n_problems} generated answers were truncated at {options.max_new_tokens} tokens")
    if tables.blocked:
        layers = ", ".join(map(str, sorted(set().union(*tables.blocked))))
        found.append(
            f"the {backend} backend cannot express layers {layers} (in {len(tables.blocked)} of {tables.n_batches} batches); "
            "the blocked backend recorded them"
        )
    if n_problems < _FEW_EXAMPLES:
        found.append(f"only {n_problems} examples: the bootstrap intervals are rough")
    undefined = tables.heads.loc[tables.heads["n_examples"] == 0, ["measure", "region"]].drop_duplicates()
    for region, rows in undefined.groupby("region", sort=False):
        found.append(f"undefined in region {region} for some heads: {', '.join(rows['measure'])}")
    return found
