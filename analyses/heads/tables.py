"""TODO_DOC analyses/heads/tables.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.heads.options import HeadsConfig

if TYPE_CHECKING:
    from analyses.heads.folder import RunFolder
    from distill.problems.sets import Problem
    from interp.checkpoints.loading import Checkpoint
    from interp.measures.measure import Measure


def assemble(
    config: HeadsConfig,
    checkpoint: Checkpoint,
    problems: list[Problem],
    measures: dict[str, Measure],
    folder: RunFolder,
    n_batches: int,
    settings: dict[str, Any],
    command: str,
) -> dict[str, Any]:
    """Make the tables from the parts, in the problems' order whatever the batches were; return the contents of run.json."""
    import dataclasses

    import numpy as np
    import pandas as pd
    import pyarrow.parquet as pq

    from interp.attention.seam import attention_layers
    from interp.recording.totals import heads_table
    from interp.tables.heads import EXAMPLE_VALUES, HEADS, INPUTS
    from interp.tables.schema import REGIONS, validate, write
    from interp.tables.versions import versions

    parts = [folder.read_part(number) for number in range(n_batches)]
    order = np.argsort([example for part in parts for example in part.examples])
    values = np.concatenate([part.values for part in parts])[order]
    counts = np.concatenate([part.counts for part in parts])[order]
    inputs = pd.concat([part.inputs for part in parts], ignore_index=True).sort_values(["example", "position"], kind="stable")
    n_truncated = sum(part.n_truncated for part in parts)
    blocked = [part.blocked for part in parts if part.blocked]
    del parts
    model = config.name or checkpoint.name
    layers, names = attention_layers(checkpoint.model.config), list(measures)
    n_heads = values.shape[2]
    heads = heads_table(model, values, counts, layers, names, config.seed)
    write(heads, HEADS, folder.partial / "heads.parquet")
    write(inputs.reset_index(drop=True), INPUTS, folder.partial / "inputs.parquet")
    numbers = sorted(p.index for p in problems)
    with pq.ParquetWriter(folder.partial / "examples.parquet", EXAMPLE_VALUES.arrow, compression="zstd") as writer:
        step = max(1, 2_000_000 // values[0].size)
        for at in range(0, len(numbers), step):
            axes = [numbers[at : at + step], layers, range(n_heads), names, REGIONS]
            index = pd.MultiIndex.from_product(axes, names=["example", "layer", "head", "measure", "region"])
            frame = index.to_frame(index=False).assign(model=model)
            frame["value"], frame["n_queries"] = values[at : at + step].ravel(), counts[at : at + step].ravel()
            writer.write_table(validate(frame, EXAMPLE_VALUES))
    warnings = []
    unused = checkpoint.identity["unused_weights"]
    if unused:
        warnings.append(f"{len(unused)} weights of the checkpoint were not used, the first is {unused[0]}: does its config belong to it?")
    if n_truncated:
        warnings.append(f"{n_truncated} of {len(problems)} generated answers ran into the cut of {config.max_new_tokens} tokens")
    if blocked:
        which = ", ".join(map(str, sorted(set().union(*blocked))))
        warnings.append(
            f"the {settings['backend']} backend cannot express layers {which} (in {len(blocked)} of {n_batches} batches): "
            "the blocked backend recorded them"
        )
    if len(problems) < 20:
        warnings.append(f"only {len(problems)} examples: the bootstrap intervals are rough")
    undefined = heads.loc[heads["n_examples"] == 0, ["measure", "region"]].drop_duplicates()
    for region, rows in undefined.groupby("region", sort=False):
        warnings.append(f"undefined in region {region} for some heads: {', '.join(rows['measure'])}")
    return {
        "command": command,
        "config": {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(config).items()},
        "versions": versions(),
        "model": {**checkpoint.identity, "name": model},
        "dtype": checkpoint.identity["dtype"],
        "device": checkpoint.identity["device"],
        "seed": config.seed,
        "text": config.text,
        "chat": settings["chat"],
        "problems": {"source": config.problems, "split": config.split, "n": len(problems), "sha256": settings["problems"]},
        "generated": {"max_new_tokens": config.max_new_tokens, "n_truncated": n_truncated, "decoding": "greedy"}
        if config.text == "generated"
        else None,
        "batch_tokens": config.batch_tokens,
        "n_tokens": len(inputs),
        "n_layers": len(layers),
        "n_heads": n_heads,
        "measures": [{**dataclasses.asdict(m.info), "backend": settings["backend"]} for m in measures.values()],
        "warnings": warnings,
    }
