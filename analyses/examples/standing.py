"""How a model's heads on one problem compare with its heads on other problems: a fitting head run, or a small one made for the purpose."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analyses.command import say
from analyses.examples.request import FEWEST_OTHERS, Request
from analyses.models.measuring import head_run, same_weights, write_problems
from analyses.models.named import NamedModel
from analyses.options import ReadingOptions
from distill.problems.sets import Problem
from interp.inference import benjamini_hochberg, new_observation
from interp.tables.errors import InputError
from interp.tables.heads import INPUTS, read_values
from interp.tables.results import ResultsFolder, read_run_json
from interp.tables.schema import REGIONS, read

if TYPE_CHECKING:
    from interp.checkpoints.loading import Checkpoint
    from interp.tokens import Tokens


@dataclass(frozen=True)
class OtherProblems:
    """A model's measures on other problems than the inspected one.

    Attributes:
        values: [example, layer, head, measure, region]; None if there is nothing to compare with.
        about: where they come from (source, text, n_examples); None likewise.
        notes: why head runs that were found do not fit.
    """

    values: np.ndarray | None
    about: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)


def find_other_problems(
    model: NamedModel,
    checkpoint: Checkpoint,
    tokens: Tokens,
    request: Request,
    measures: list[str],
    results: ResultsFolder,
    others: Sequence[Problem],
) -> OtherProblems:
    """Return a model's measures on other problems: from its named run, from its usual run folder, or from a small run that is made here.

    Only a run on the same kind of text fits, since heads behave differently on reference solutions and on generated answers.

    Args:
        model: the model.
        checkpoint: the open model.
        tokens: the inspected problem, or its prompt.
        request: what to inspect.
        measures: names of the measures.
        results: the results folder; a small run is in its draft.
        others: problems that a small run may read; it reads the first `request.others`.

    Raises:
        InputError: the named run cannot be read.
    """
    usual = Path("runs") / (model.name if request.text == "reference" else f"{model.name}-generated")
    known = checkpoint.identity.get("weights_sha256") or checkpoint.identity.get("revision")
    folders = dict.fromkeys(folder for folder in (model.folder, usual if known else None) if folder is not None)
    notes: list[str] = []
    for folder in [f for f in folders if (f / "run.json").is_file()]:
        try:
            reason = _mismatch(folder, checkpoint, request, measures)
            found = None if reason else _values_on_others(folder, tokens, measures)
        except InputError as error:
            if folder == model.folder:
                raise
            reason, found = str(error), None
        if found is not None and len(found) >= FEWEST_OTHERS:
            return OtherProblems(found, {"source": str(folder), "text": request.text, "n_examples": len(found)}, notes)
        reason = reason or f"it has {0 if found is None else len(found)} other problems, but {FEWEST_OTHERS} are needed"
        notes.append(f"{model.name} is not compared with {folder}: {reason}")
    chosen = others[: request.others]
    if len(chosen) < FEWEST_OTHERS:
        return OtherProblems(None, None, notes)
    found = _values_on_others(_small_run(model, checkpoint, request, chosen, results), tokens, measures)
    return OtherProblems(found, {"source": "measured for it", "text": request.text, "n_examples": len(found)}, notes)


def _mismatch(folder: Path, checkpoint: Checkpoint, request: Request, measures: list[str]) -> str | None:
    """Return why a run does not fit, or None if it does."""
    run = read_run_json(folder)
    chat = request.chat and getattr(checkpoint.tokenizer, "chat_template", None) is not None
    if not same_weights(run["model"], checkpoint.identity):
        return "it is of other weights"
    if run["text"] != request.text or run["chat"] != chat:
        template = "" if run["chat"] == chat else f" {'with' if run['chat'] else 'without'} the chat template"
        return f"it read {run['text']} text{template} ({request.spelled('text', run['text'])} reads the same)"
    limit = (run.get("generated") or {}).get("max_new_tokens")
    if request.text == "generated" and limit != request.max_new_tokens:
        option = request.spelled("max_new_tokens")
        return f"its answers were truncated at {limit} tokens, this one at {request.max_new_tokens} ({option})"
    here = {"dtype": _dtype(checkpoint), "seed": request.seed}
    differ = [f"{key} {run.get(key)}, here {value}" for key, value in here.items() if run.get(key) != value]
    if differ:
        return f"it has {' and '.join(differ)}"
    missing = sorted(set(measures) - {info["name"] for info in run["measures"]})
    return f"it lacks {', '.join(missing)}" if missing else None


def _dtype(checkpoint: Checkpoint) -> Any:
    """Return the dtype as options name it."""
    return str(checkpoint.model.dtype).removeprefix("torch.")


def _values_on_others(folder: Path, tokens: Tokens, measures: list[str]) -> np.ndarray:
    """Return a run's values on all problems except the inspected one."""
    values = read_values(folder / "examples.parquet")
    inputs = read(folder / "inputs.parquet", INPUTS)
    text = tokens.texts[0]
    question = text.ids[text.in_region("question")]
    questions = inputs[inputs["region"] == "question"].groupby("example")["token_id"].agg(list)
    kept = [at for at, example in enumerate(values.examples) if not np.array_equal(questions.get(example, []), question)]
    columns = [values.measures.index(name) for name in measures]
    return values.values[kept][:, :, :, columns]


def _small_run(model: NamedModel, checkpoint: Checkpoint, request: Request, others: Sequence[Problem], results: ResultsFolder) -> Path:
    """Return the folder of a head run on a few problems; it is kept with the results for the next call."""
    file = write_problems(others, results.draft / "problems.jsonl")
    options = ReadingOptions(problems=str(file), dtype=_dtype(checkpoint), chat=request.chat, seed=request.seed)
    say(f"{model.name} reads {len(others)} other problems for comparison")
    known = {"dtype": _dtype(checkpoint), "device": str(checkpoint.model.device), "unused_weights": [], **checkpoint.identity}
    return head_run(
        model,
        options,
        results.draft / "heads" / model.name,
        lambda: dataclasses.replace(checkpoint, identity=known),
        final=results.final,
        resume=False,
        text=request.text,
        max_new_tokens=request.max_new_tokens,
    )


def standing_table(
    values: np.ndarray, counts: np.ndarray, others: np.ndarray | None, layers: Sequence[int], measures: Sequence[str]
) -> pd.DataFrame:
    """Return the rows of `interp.tables.example.STANDING`, without the model.

    Args:
        values: measures on the inspected problem, [layer, head, measure, region]; NaN if undefined.
        counts: number of queries behind each value, same shape.
        others: measures on other problems, [example, layer, head, measure, region]; None if there is nothing to compare with.
        layers: numbers of the layers.
        measures: names of the measures.
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
