"""The content of a contrast's run.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analyses.contrast.options import ContrastConfig
from analyses.contrast.statistics import FEWEST_ANSWERS, lengths_table, same_heads
from analyses.models.named import NamedModel, folder_of
from distill.evaluation.statistics import wilson_interval
from interp.tables.results import read_run_json

if TYPE_CHECKING:
    from interp.tables.heads import HeadValues

_FEW_ANSWERS = 10
"""With fewer right or wrong answers than this, the tests are rough."""


def describe_contrast_run(
    options: ContrastConfig,
    models: Sequence[NamedModel],
    values: Sequence[HeadValues],
    answers: Sequence[pd.DataFrame],
    right: np.ndarray,
    final: Callable[[Path], Path],
) -> dict[str, Any]:
    """Return the content of run.json without the command.

    Args:
        options: complete options of the contrast.
        models: the models, with the folders of their head runs.
        values: each model's measures.
        answers: each model's rows of `interp.tables.contrast.ANSWERS`.
        right: whether an answer is right, [model, example].
        final: maps a folder of the draft to its place in the finished results.
    """
    first = read_run_json(folder_of(models[0]))
    lengths = np.stack([each["n_tokens"].to_numpy(float) for each in answers])
    infos = {info["name"]: {key: value for key, value in info.items() if key != "backend"} for info in first["measures"]}
    return {
        "seed": options.seed,
        "text": "generated",
        "chat": first["chat"],
        "max_new_tokens": options.max_new_tokens,
        "grader": options.grader,
        "region": options.region,
        "problems": first["problems"],
        "n_examples": right.shape[1],
        "n_problems_both": _n_both(right) if len(models) > 1 else None,
        "n_layers": len(values[0].layers),
        "n_heads": values[0].n_heads,
        "models": [_describe_model(m, final(folder_of(m)), table) for m, table in zip(models, answers, strict=True)],
        "lengths": lengths_table([m.name for m in models], lengths, right, seed=options.seed).to_dict("records"),
        "measures": [infos[name] for name in values[0].measures],
        "warnings": _warnings(models, answers, right, paired=same_heads(values)),
    }


def is_embedded(model: NamedModel) -> bool:
    """Return whether a head run is of the embedded model, which solves hardly any problem."""
    return read_run_json(folder_of(model))["model"].get("kind") == "embedded"


def _n_both(right: np.ndarray) -> int:
    """Return the number of problems that some models solve and others do not."""
    return int((right.any(0) & ~right.all(0)).sum())


def _describe_model(model: NamedModel, folder: Path, answers: pd.DataFrame) -> dict[str, Any]:
    n, n_right = len(answers), int(answers["correct"].sum())
    low, high = wilson_interval(n_right, n)
    return {
        "name": model.name,
        "condition": model.condition,
        "seed": model.seed,
        "folder": str(folder),
        "identity": read_run_json(folder_of(model))["model"],
        "accuracy": n_right / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "n_right": n_right,
        "n_problems": n,
        "n_truncated": int(answers["truncated"].sum()),
    }


def _warnings(models: Sequence[NamedModel], answers: Sequence[pd.DataFrame], right: np.ndarray, *, paired: bool) -> list[str]:
    """Return what a reader of the tables must know."""
    found = []
    for model, table, own in zip(models, answers, right, strict=True):
        fewer, kind = min((int(own.sum()), "right"), (int((~own).sum()), "wrong"))
        if fewer < FEWEST_ANSWERS:
            found.append(
                f"{model.name} has {fewer} {kind} of {len(own)} answers: it has no test of its own, at least {FEWEST_ANSWERS} are needed"
            )
        elif fewer < _FEW_ANSWERS:
            found.append(f"{model.name} has only {fewer} {kind} of {len(own)} answers: its tests are rough, treat p as exploratory")
        if table["truncated"].any():
            found.append(
                f"{int(table['truncated'].sum())} of {len(own)} answers of {model.name} were truncated, so most of them are wrong and long"
            )
    if any(map(is_embedded, models)):
        found.append("the embedded model has 135M parameters and solves hardly any problem: its few right answers may be luck")
    if len(models) > 1:
        if not paired:
            found.append("the models have different numbers of layers or heads, so they are not paired by problem")
        elif _n_both(right) < _FEW_ANSWERS:
            found.append(f"only {_n_both(right)} problems are solved by some models and not by others: the paired test is rough or missing")
    return found
