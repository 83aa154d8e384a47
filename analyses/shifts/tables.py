"""The tables of `analyses.shifts`: heads, maps, circuits and accuracy of models that read the same texts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analyses.models.named import Named, folder_of
from interp.tables.errors import CheckpointError, InputError
from interp.tables.results import read_run_json

if TYPE_CHECKING:
    import pandas as pd

    from analyses.models.opening import OpenModels
    from analyses.shifts.options import ShiftsConfig
    from interp.tables.heads import Run


def _base_of(run: Run, bases: Sequence[Run]) -> Run:
    """The baseline's student of the same seed, or its first."""
    return next((base for base in bases if base.seed == run.seed), bases[0])


def head_tables(runs: Sequence[Run], bases: Sequence[Run], models: Sequence[Named], seed: int) -> dict[str, pd.DataFrame]:
    """Every table that the head runs give."""
    import pandas as pd

    from analyses.shifts.differences import (
        accuracy_table,
        agreement_table,
        by_condition,
        conditions_table,
        layers_table,
        ranks_table,
        shifts_table,
    )

    def base_of(run: Run) -> Run:
        return _base_of(run, bases)

    others = [r for r in runs if r.name not in {base.name for base in bases}]
    tables = {
        "shifts": pd.concat([shifts_table(base_of(r), r, seed=seed) for r in others], ignore_index=True),
        "conditions": pd.concat([conditions_table(bases, group, seed=seed) for group in by_condition(others).values()], ignore_index=True),
        "layers": pd.concat([layers_table(base_of(r), r, seed=seed) for r in runs], ignore_index=True),
        "ranks": pd.concat([ranks_table(r, seed=seed) for r in runs], ignore_index=True),
        "agreement": agreement_table(runs, seed=seed),
    }
    known = {m.name: m for m in models}
    graded = [r for r in others if known[r.name].accuracy]
    if len(graded) > 1 and len(bases) == 1:
        scores = [known[r.name].accuracy["accuracy"] for r in graded]
        tables["accuracy"] = accuracy_table(bases[0].values, [r.values for r in graded], scores, seed=seed)
    moved = tables["shifts"].groupby("model", observed=True)["effect"].apply(lambda e: e[e.abs() < float("inf")].abs().mean())
    rows = [
        {"model": r.name, "condition": r.condition, "seed": r.seed, "shift": moved.get(r.name, 0.0), **known[r.name].accuracy} for r in runs
    ]
    table = pd.DataFrame(rows, columns=["model", "condition", "seed", "accuracy", "accuracy_low", "accuracy_high", "n_problems", "shift"])
    tables["models"] = table.assign(seed=table["seed"].astype("Int64"))
    return tables


def adapter_tables(models: Sequence[Named], opened: OpenModels) -> dict[str, pd.DataFrame]:
    """Size, ranks and singular values of what each LoRA student changes in every head's QK and OV circuits."""
    import pandas as pd

    from interp.circuits import lora_geometry, lora_spectrum

    frames: dict[str, list[pd.DataFrame]] = {"lora": [], "lora_spectrum": []}
    for model in models:
        if model.source is None or not (Path(model.source).expanduser() / "adapter_config.json").is_file():
            continue
        try:
            made = {"lora": lora_geometry(opened.open(model).model), "lora_spectrum": lora_spectrum(opened.open(model).model)}
        except CheckpointError as error:
            print(f"note: no circuit geometry of {model.name}: {error}", file=sys.stderr)
            continue
        for name, table in made.items():
            table.insert(0, "condition", model.condition)
            table.insert(0, "model", model.name)
            frames[name].append(table)
    return {name: pd.concat(tables, ignore_index=True) for name, tables in frames.items() if tables}


def map_tables(
    config: ShiftsConfig, models: Sequence[Named], runs: Sequence[Run], bases: Sequence[Run], opened: OpenModels
) -> dict[str, pd.DataFrame]:
    """Divergence of the maps themselves, where the models are at hand; why not is said.

    Students on one shared base run together. Other models run in pairs with their baseline, so that two are loaded at a time. The variance
    is over all models, and left out where they do not all run together.

    Raises:
        InputError: --maps yes, and a model or the texts are not at hand.
    """
    import pandas as pd

    from analyses.shifts.differences import divergences_table

    if config.maps == "no":
        return {}
    of_base: dict[str, list[Named]] = {base.name: [] for base in bases}
    known = {m.name: m for m in models}
    for run in runs:
        if run.name not in of_base:
            of_base[_base_of(run, bases).name].append(known[run.name])
    try:
        missing = [m.name for m in models if m.source is None]
        if missing:
            raise InputError(f"it is not known where the model of {missing[0]} lies")
        frames = []
        for name, others in of_base.items():
            together = opened.shares([known[name], *others])
            for group in [others] if together else [[other] for other in others]:
                frame = _divergences(config, known[name], group, runs, opened) if group else pd.DataFrame()
                every = len(group) == len(runs) - 1  # the variance is over all models, or it is left out
                frames.append(frame if every or frame.empty else frame[frame["measure"] != "variance"])
        frames = [frame for frame in frames if not frame.empty]
        table = divergences_table(pd.concat(frames, ignore_index=True), seed=config.seed)
    except ValueError as error:
        if config.maps == "yes":
            raise
        print(f"note: the maps themselves are not compared: {str(error).splitlines()[0]}", file=sys.stderr)
        return {}
    return {"divergences": table}


def _divergences(config: ShiftsConfig, base: Named, others: Sequence[Named], runs: Sequence[Run], opened: OpenModels) -> pd.DataFrame:
    """`interp.recording.divergence` over the texts that the head runs read, batch by batch."""
    import numpy as np
    import pandas as pd
    from tqdm import tqdm

    from analyses.heads.batches import plan
    from analyses.heads.options import HeadsConfig
    from distill.problems.sets import load_problems, problems_digest
    from interp.recording.divergence import map_divergence

    run = read_run_json(folder_of(base))
    source = run["config"]
    problems = load_problems(str(source["problems"]), str(source["split"]), source["limit"])
    if problems_digest(problems) != run["problems"]["sha256"]:
        raise InputError(f"{source['problems']} no longer holds the problems that {base.name} read")
    wanted = set(runs[0].values.examples)
    students = opened.students([base, *others])
    checkpoint = opened.any_of([base, *others])
    texts, batches = plan(
        HeadsConfig(batch_tokens=config.batch_tokens), checkpoint, [p for p in problems if p.index in wanted], run["chat"]
    )
    inputs = runs[0].inputs
    for text in texts.texts:
        if not np.array_equal(text.ids, inputs.loc[inputs["example"] == text.example, "token_id"].to_numpy()):
            raise InputError(
                f"the tokenizer of {checkpoint.name} no longer gives the tokens that {base.name} read (example {text.example})"
            )
    frames = []
    label = f"maps of {base.name} and {others[0].name if len(others) == 1 else f'{len(others)} others'}"
    with tqdm(total=sum(len(t) for t in texts.texts), unit="tok", unit_scale=True, desc=label, dynamic_ncols=True) as bar:
        for batch in batches:
            tokens = texts.select(batch)
            frames.append(map_divergence(students, tokens, baseline=base.name))
            bar.update(sum(len(t) for t in tokens.texts))
    return pd.concat(frames, ignore_index=True)
