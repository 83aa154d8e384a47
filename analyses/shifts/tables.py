"""The tables of a comparison head by head: head runs, adapters and attention maps of models that read the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analyses.command import say
from analyses.heads.batches import plan_batches
from analyses.models.named import NamedModel, folder_of
from interp.tables.errors import CheckpointError, InputError
from interp.tables.results import ResultsFolder, read_run_json

if TYPE_CHECKING:
    import pandas as pd

    from analyses.models.opening import OpenModels
    from analyses.shifts.options import ShiftsConfig
    from distill.problems.sets import Problem
    from interp.tables.heads import ModelRun
    from interp.tokens import Tokens


def _base_of(run: ModelRun, bases: Sequence[ModelRun]) -> ModelRun:
    """Return the baseline's student with the same seed, or its first one."""
    return next((base for base in bases if base.seed == run.seed), bases[0])


def head_tables(runs: Sequence[ModelRun], bases: Sequence[ModelRun], models: Sequence[NamedModel], seed: int) -> dict[str, pd.DataFrame]:
    """Return the tables that are made from head runs alone.

    Args:
        runs: all models, aligned.
        bases: those of the baseline.
        models: all models, in any order.
        seed: seed of the bootstrap and of the permutations.
    """
    import pandas as pd

    from analyses.shifts.differences import (
        accuracy_slopes_table,
        agreement_table,
        by_condition,
        condition_shifts_table,
        layers_table,
        ranks_table,
        shifts_table,
    )

    def base_of(run: ModelRun) -> ModelRun:
        return _base_of(run, bases)

    others = [r for r in runs if r.name not in {base.name for base in bases}]
    tables = {
        "shifts": pd.concat([shifts_table(base_of(r), r, seed=seed) for r in others], ignore_index=True),
        "conditions": pd.concat(
            [condition_shifts_table(bases, group, seed=seed) for group in by_condition(others).values()], ignore_index=True
        ),
        "layers": pd.concat([layers_table(base_of(r), r, seed=seed) for r in runs], ignore_index=True),
        "ranks": pd.concat([ranks_table(r, seed=seed) for r in runs], ignore_index=True),
        "agreement": agreement_table(runs, seed=seed),
    }
    known = {m.name: m for m in models}
    graded = [r for r in others if known[r.name].accuracy]
    if len(graded) > 1 and len(bases) == 1:
        scores = [known[r.name].accuracy["accuracy"] for r in graded]
        tables["accuracy"] = accuracy_slopes_table(bases[0].values, [r.values for r in graded], scores, seed=seed)
    moved = tables["shifts"].groupby("model", observed=True)["effect"].apply(lambda e: e[e.abs() < float("inf")].abs().mean())
    rows = [
        {"model": r.name, "condition": r.condition, "seed": r.seed, "shift": moved.get(r.name, 0.0), **known[r.name].accuracy} for r in runs
    ]
    table = pd.DataFrame(rows, columns=["model", "condition", "seed", "accuracy", "accuracy_low", "accuracy_high", "n_problems", "shift"])
    tables["models"] = table.assign(seed=table["seed"].astype("Int64"))
    return tables


def adapter_tables(models: Sequence[NamedModel], opened: OpenModels) -> dict[str, pd.DataFrame]:
    """Return size, ranks and singular values of each LoRA student's update of every head's QK and OV circuits.

    Args:
        models: all models; those that are not LoRA adapters are skipped.
        opened: opens them.
    """
    import pandas as pd

    from interp.circuits import lora_geometry, lora_spectrum

    frames: dict[str, list[pd.DataFrame]] = {"lora": [], "lora_spectrum": []}
    for model in models:
        if model.source is None or not (Path(model.source).expanduser() / "adapter_config.json").is_file():
            continue
        try:
            made = {"lora": lora_geometry(opened.open(model).model), "lora_spectrum": lora_spectrum(opened.open(model).model)}
        except CheckpointError as error:
            say(f"note: no circuit geometry of {model.name}: {error}")
            continue
        for name, table in made.items():
            table.insert(0, "condition", model.condition)
            table.insert(0, "model", model.name)
            frames[name].append(table)
    return {name: pd.concat(tables, ignore_index=True) for name, tables in frames.items() if tables}


def map_tables(
    options: ShiftsConfig,
    models: Sequence[NamedModel],
    runs: Sequence[ModelRun],
    bases: Sequence[ModelRun],
    opened: OpenModels,
    results: ResultsFolder,
) -> dict[str, pd.DataFrame]:
    """Return the divergence of the attention maps themselves, or nothing, with a note, if they cannot be computed.

    Students that share a base run together. Other models run in pairs with their baseline, so that two are loaded at a time. The variance
    is over all models, and left out if they do not all run together.

    Args:
        options: of the comparison.
        models: all models.
        runs: their head runs, aligned.
        bases: those of the baseline.
        opened: opens the models.
        results: the folder of the comparison, which may hold the problems.

    Raises:
        InputError: `--maps yes`, but a model or the texts are not available.
    """
    import pandas as pd

    from analyses.shifts.differences import divergences_table

    if options.maps == "no":
        return {}
    of_base: dict[str, list[NamedModel]] = {base.name: [] for base in bases}
    known = {m.name: m for m in models}
    for run in runs:
        if run.name not in of_base:
            of_base[_base_of(run, bases).name].append(known[run.name])
    try:
        missing = [m.name for m in models if m.source is None]
        if missing:
            raise InputError(f"it is not known where the model of {missing[0]} is")
        frames = []
        for name, others in of_base.items():
            together = opened.shares([known[name], *others])
            for group in [others] if together else [[other] for other in others]:
                frame = _divergences(options, known[name], group, runs, opened, results) if group else pd.DataFrame()
                all_models = len(group) == len(runs) - 1
                frames.append(frame if all_models or frame.empty else frame[frame["measure"] != "variance"])
        frames = [frame for frame in frames if not frame.empty]
        table = divergences_table(pd.concat(frames, ignore_index=True), seed=options.seed)
    except ValueError as error:
        if options.maps == "yes":
            raise
        say(f"note: the maps themselves are not compared: {str(error).splitlines()[0]}")
        return {}
    return {"divergences": table}


def _divergences(
    options: ShiftsConfig,
    base: NamedModel,
    others: Sequence[NamedModel],
    runs: Sequence[ModelRun],
    opened: OpenModels,
    results: ResultsFolder,
) -> pd.DataFrame:
    """Return the divergences of models from their baseline over the texts that the head runs read, a row per example and head."""
    import pandas as pd
    from tqdm import tqdm

    from interp.recording.divergence import map_divergence

    problems, chat = _problems_of(base, results)
    wanted = set(runs[0].values.examples)
    students = opened.students([base, *others])
    checkpoint = opened.any_of([base, *others])
    texts, batches = plan_batches(checkpoint, [p for p in problems if p.index in wanted], chat=chat, batch_tokens=options.batch_tokens)
    _check_texts(texts, runs[0], checkpoint.name)
    frames = []
    label = f"maps of {base.name} and {others[0].name if len(others) == 1 else f'{len(others)} others'}"
    with tqdm(total=sum(len(t) for t in texts.texts), unit="tok", unit_scale=True, desc=label, dynamic_ncols=True) as bar:
        for batch in batches:
            tokens = texts.select(batch)
            frames.append(map_divergence(students, tokens, baseline=base.name))
            bar.update(sum(len(t) for t in tokens.texts))
    return pd.concat(frames, ignore_index=True)


def _problems_of(model: NamedModel, results: ResultsFolder) -> tuple[list[Problem], bool]:
    """Return the problems that a model's head run read, and whether it used the chat template."""
    from distill.problems.sets import load_problems, problems_digest

    run = read_run_json(folder_of(model))
    source, split, limit = (run["config"][key] for key in ("problems", "split", "limit"))
    draft = results.draft / "problems.jsonl"  # a study's problems, before the comparison is published
    place = str(draft) if Path(source) == results.final(draft) and draft.is_file() else str(source)
    problems = load_problems(place, str(split), limit)
    if problems_digest(problems) != run["problems"]["sha256"]:
        raise InputError(f"{source} no longer has the problems that {model.name} read")
    return problems, run["chat"]


def _check_texts(texts: Tokens, run: ModelRun, name: str) -> None:
    """Raise if a model's tokenizer gives other tokens than a head run read."""
    import numpy as np

    for text in texts.texts:
        if not np.array_equal(text.ids, run.inputs.loc[run.inputs["example"] == text.example, "token_id"].to_numpy()):
            raise InputError(f"the tokenizer of {name} no longer gives the tokens that {run.name} read (example {text.example})")
