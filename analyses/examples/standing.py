"""How a model's heads on one problem compare with those on others: of a run that fits, or of a small one that is made for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analyses.command import say
from analyses.examples.request import FEWEST, Request
from analyses.models.measuring import same_weights
from analyses.models.named import NamedModel
from distill.problems.sets import Problem
from interp.inference import benjamini_hochberg, new_observation
from interp.tables.errors import InputError
from interp.tables.heads import INPUTS, read_values
from interp.tables.results import read_run_json
from interp.tables.schema import REGIONS, read

if TYPE_CHECKING:
    from interp.checkpoints.loading import Checkpoint
    from interp.tokens import Tokens


def compared_values(
    model: NamedModel,
    checkpoint: Checkpoint,
    tokens: Tokens,
    request: Request,
    measures: list[str],
    out: Path,
    pool: Sequence[Problem],
    problem: Problem,
) -> tuple[np.ndarray | None, dict[str, Any] | None, list[str]]:
    """Every head's measures on other problems, [example, layer, head, measure, region], where they are from, and why not from elsewhere.

    They are of the run that was named, of the model's usual run folder, or of a small run that is made here; always of the same kind of
    text, since a head looks otherwise at a reference solution than at an answer.
    """
    usual = Path("runs") / (model.name if request.text == "reference" else f"{model.name}-generated")
    known = checkpoint.identity.get("weights_sha256") or checkpoint.identity.get("revision")
    tried = dict.fromkeys(folder for folder in (model.folder, usual if known else None) if folder is not None)
    notes: list[str] = []
    for folder in [f for f in tried if (f / "run.json").is_file()]:
        try:
            reason = _unlike(folder, checkpoint, request, measures)
            found = None if reason else _others(folder, tokens, measures)
        except InputError as error:
            if folder == model.folder:
                raise
            reason, found = str(error), None
        if found is not None and len(found) >= FEWEST:
            return found, {"source": str(folder), "text": request.text, "n_examples": len(found)}, notes
        reason = reason or f"it has {0 if found is None else len(found)} other problems, {FEWEST} are needed"
        notes.append(f"{model.name} is not compared with {folder}: {reason}")
    others = [p for p in pool if p.question != problem.question][: request.others]
    if len(others) < FEWEST:
        return None, None, notes
    found = _others(_small_run(model, checkpoint, request, others, out), tokens, measures)
    return found, {"source": "measured for it", "text": request.text, "n_examples": len(found)}, notes


def _unlike(folder: Path, checkpoint: Checkpoint, request: Request, measures: list[str]) -> str | None:
    """Why a run does not fit; None where it does."""
    run = read_run_json(folder)
    chat = request.chat and getattr(checkpoint.tokenizer, "chat_template", None) is not None
    if not same_weights(run["model"], checkpoint.identity):
        return "it is of other weights"
    if run["text"] != request.text or run["chat"] != chat:
        template = "" if run["chat"] == chat else " through another template"
        return f"it read {run['text']} text{template} ({request.spelt('text', run['text'])} fits it)"
    cut = (run.get("generated") or {}).get("max_new_tokens")
    if request.text == "generated" and cut != request.max_new_tokens:
        return f"its answers were cut at {cut} tokens, this one at {request.max_new_tokens} ({request.spelt('max_new_tokens')})"
    here = {"dtype": _dtype(checkpoint), "seed": request.seed}
    differ = [f"{key} {run.get(key)}, here {value}" for key, value in here.items() if run.get(key) != value]
    if differ:
        return f"it has {' and '.join(differ)}"
    missing = sorted(set(measures) - {info["name"] for info in run["measures"]})
    return f"it lacks {', '.join(missing)}" if missing else None


def _dtype(checkpoint: Checkpoint) -> Any:
    """As options name it."""
    return str(checkpoint.model.dtype).removeprefix("torch.")


def _others(folder: Path, tokens: Tokens, measures: list[str]) -> np.ndarray:
    """A run's values on all problems but this one."""
    values = read_values(folder / "examples.parquet")
    inputs = read(folder / "inputs.parquet", INPUTS)
    text = tokens.texts[0]
    question = text.ids[text.in_region("question")]
    asked = inputs[inputs["region"] == "question"].groupby("example")["token_id"].agg(list)
    kept = [at for at, example in enumerate(values.examples) if not np.array_equal(asked.get(example, []), question)]
    columns = [values.measures.index(name) for name in measures]
    return values.values[kept][:, :, :, columns]


def _small_run(model: NamedModel, checkpoint: Checkpoint, request: Request, others: Sequence[Problem], out: Path) -> Path:
    """A head run of a few problems, kept in the folder for the next look."""
    from analyses.models.measuring import head_run, write_problems
    from analyses.options import ReadingOptions

    file = write_problems(others, out / "problems.jsonl")
    options = ReadingOptions(problems=str(file), dtype=_dtype(checkpoint), chat=request.chat, seed=request.seed)
    say(f"{model.name} on {len(others)} other problems, to compare with")
    known = {"dtype": _dtype(checkpoint), "device": str(checkpoint.model.device), "unused_weights": [], **checkpoint.identity}
    return head_run(
        model,
        options,
        out / "heads" / model.name,
        lambda: dataclasses.replace(checkpoint, identity=known),
        resume=False,
        text=request.text,
        max_new_tokens=request.max_new_tokens,
    )


def standing_table(
    values: np.ndarray, counts: np.ndarray, others: np.ndarray | None, layers: Sequence[int], measures: Sequence[str]
) -> pd.DataFrame:
    """The rows of `interp.tables.example.STANDING`, without the model.

    Args:
        values: [layer, head, measure, region], NaN where undefined.
        counts: queries likewise.
        others: [example, layer, head, measure, region] of a run; None: nothing to compare with.
        layers: numbers of the layers.
        measures: names.
    """
    axes = [layers, range(values.shape[1]), measures, REGIONS]
    frame = pd.MultiIndex.from_product(axes, names=["layer", "head", "measure", "region"]).to_frame(index=False)
    frame["value"], frame["n_queries"] = values.ravel().astype(float), counts.ravel()
    if others is None:
        return frame.assign(mean=np.nan, sd=np.nan, n_examples=0, t=np.nan, p=np.nan, q=np.nan)
    found = new_observation(values.ravel().astype(float), others.reshape(len(others), -1).astype(float))
    p = found["p"].reshape(values.shape)
    q = np.stack(
        [[benjamini_hochberg(p[:, :, m, r]) for r in range(p.shape[3])] for m in range(p.shape[2])]
    )  # [measure, region, layer, head]
    return frame.assign(**found, q=q.transpose(2, 3, 0, 1).ravel())
