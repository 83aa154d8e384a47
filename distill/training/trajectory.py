# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""A student's heads at several steps of its training: one table, from the student's folder or from checkpoints on disk."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from distill.problems.sets import Problem
from interp.attention.seam import attention_layers
from interp.checkpoints.loading import Checkpoint
from interp.checkpoints.opening import open_checkpoint
from interp.measures.catalog import load_measures
from interp.recording.recorder import record
from interp.tables.errors import StudyError
from interp.tables.schema import REGIONS, read
from interp.tables.shifts import TRAJECTORY
from interp.tokens import Tokens, annotate

TRAJECTORY_FILE = "trajectory.parquet"
"""Name of the table in a student's folder; its schema is `interp.tables.shifts.TRAJECTORY`."""

_BATCH_TOKENS = 2048
"""Largest number of padded tokens of one recorded forward pass; a single text may be longer."""


def fixed_texts(checkpoint: Checkpoint, problems: Sequence[Problem], chat: bool | None = None) -> Tokens:
    """Return questions with their reference solutions as annotated texts, the same for every student and every step.

    Args:
        checkpoint: model whose tokenizer is used and whose positions the texts must fit.
        problems: problems to read.
        chat: use the chat template; None uses it if the tokenizer has one.

    Raises:
        StudyError: a text is longer than the model's positions.
        InputError: the tokenizer or its template cannot be annotated.
    """
    tokens = annotate(
        checkpoint.tokenizer, [p.question for p in problems], [p.answer for p in problems], chat=chat, examples=[p.index for p in problems]
    )
    limit = checkpoint.position_limit
    longest = max(tokens.texts, key=len)
    if limit is not None and len(longest) > limit:
        raise StudyError(f"problem {longest.example} has {len(longest)} tokens, but the model has {limit} positions; use shorter texts")
    return tokens


def record_heads(model: Any, tokens: Tokens, measures: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over texts for every head; each text has the same weight. The model is left unchanged.

    Args:
        model: a model in training, on one device or split over several, but not sharded.
        tokens: from `fixed_texts`.
        measures: names of the measures.

    Returns:
        Means, and the number of texts that each is taken over, both [layer, head, measure, region]; NaN and 0 if undefined for every
        text.

    Raises:
        RecordingError: the architecture cannot be recorded.
        NonFiniteError: attention holds NaN.
    """
    chosen = load_measures(measures)
    root = next(m for m in model.modules() if isinstance(m, PreTrainedModel))
    values = []
    with _evaluating(model, root.device):
        for batch in _batches([len(text) for text in tokens.texts]):
            part = tokens.select(batch)
            inputs = {name: tensor.to(root.device) for name, tensor in part.inputs.items()}
            with record(model, part, chosen) as heads:
                root.base_model(**inputs, use_cache=False)  # only the decoder: logits are not needed
            values.append(heads.totals.values()[0])
    of_texts = np.concatenate(values)
    defined = np.isfinite(of_texts)
    with np.errstate(invalid="ignore"):
        return np.where(defined, of_texts, 0.0).sum(0) / defined.sum(0), defined.sum(0)


@contextmanager
def _evaluating(model: Any, device: torch.device) -> Iterator[None]:
    """Evaluate without gradients; restore the mode of each module and the state of the random numbers."""
    modes = [(module, module.training) for module in model.modules()]
    # Not inference_mode: a buffer that is created inside could not be used in training.
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Return the texts of each batch by position: longest first, as many as the budget of padded tokens allows."""
    batches: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= _BATCH_TOKENS:
            batches[-1].append(at)
        else:
            batches.append([at])
    return batches


def trajectory_rows(
    name: str, step: int, layers: Sequence[int], measures: Sequence[str], means: np.ndarray, counts: np.ndarray
) -> pd.DataFrame:
    """Return the rows of `interp.tables.shifts.TRAJECTORY` for one step, from the result of `record_heads`."""
    axes = [[name], [step], layers, range(means.shape[1]), measures, REGIONS]
    frame = pd.MultiIndex.from_product(axes, names=list(TRAJECTORY.key)).to_frame(index=False)
    return frame.assign(mean=means.ravel(), n_examples=counts.ravel())


def read_trajectory(folder: Path) -> pd.DataFrame:
    """Return a finished student's table: rows of `interp.tables.shifts.TRAJECTORY` with ascending steps.

    Raises:
        StudyError: there is no table, or its steps have different heads, measures or regions.
        InputError: the file is not a readable table of this schema.
    """
    file = folder / TRAJECTORY_FILE
    if not file.is_file():
        raise StudyError(
            f"{folder} has no {TRAJECTORY_FILE}: it was trained with heads.records = 0, with sharded weights, or by an old version; "
            "its checkpoint-N folders, if it has any, can be measured instead"
        )
    frame = read(file, TRAJECTORY)
    check_trajectory(frame, str(file))
    return frame.sort_values("step", kind="stable", ignore_index=True)


def check_trajectory(frame: pd.DataFrame, place: str) -> None:
    """Raise if a table has several students, a negative step, steps with different heads, or means that do not fit their counts.

    Args:
        frame: rows of `interp.tables.shifts.TRAJECTORY`.
        place: where the table is from, for messages.

    Raises:
        StudyError: the message names the place.
    """
    if frame["model"].nunique() != 1:
        raise StudyError(f"{place}: {frame['model'].nunique()} students; a trajectory has one")
    if (frame["step"] < 0).any():
        raise StudyError(f"{place}: step {frame['step'].min()}; steps are counted from 0")
    cells = ["layer", "head", "measure", "region"]
    grids = {step: frozenset(rows[cells].astype(str).itertuples(index=False, name=None)) for step, rows in frame.groupby("step")}
    odd = [step for step, grid in grids.items() if grid != next(iter(grids.values()))]
    if odd:
        raise StudyError(f"{place}: step {odd[0]} has other heads, measures or regions than step {next(iter(grids))}")
    wrong = (frame["n_examples"] > 0) != np.isfinite(frame["mean"])
    if wrong.any():
        raise StudyError(
            f"{place}: {int(wrong.sum())} rows have texts but a mean that is not finite, or a mean without texts, "
            f"such as {frame[wrong].iloc[0].to_dict()}"
        )


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the PEFT checkpoints that a Trainer left in a folder, `checkpoint-N/` with an adapter_config.json, by ascending N.

    Raises:
        StudyError: there are none.
    """
    found = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))}
    adapters = [found[step] for step in sorted(found) if (found[step] / "adapter_config.json").is_file()]
    if not adapters:
        raise StudyError(
            f"{folder} has no checkpoint-N with an adapter_config.json ({len(found)} without); name the folder that the Trainer wrote to"
        )
    return adapters


def record_checkpoints(
    folders: Sequence[Path],
    problems: Sequence[Problem],
    measures: Sequence[str],
    *,
    name: str | None = None,
    base: str | None = None,
    chat: bool | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> pd.DataFrame:
    """Return the table of a trajectory from checkpoints on disk; step 0 is their base. Each checkpoint is opened separately.

    Args:
        folders: from `checkpoint_folders`; their numbers are the steps.
        problems: problems whose questions and reference solutions are read.
        measures: names of the measures.
        name: name of the student; None uses the name of the folder that holds the checkpoints.
        base: base model of the adapters; None uses the one that each adapter names.
        chat: use the chat template; None uses it if the tokenizer has one.
        device: see `interp.checkpoints.opening.open_checkpoint`.
        dtype: see `interp.checkpoints.opening.open_checkpoint`.
        trust_remote_code: see `interp.checkpoints.opening.open_checkpoint`.

    Raises:
        StudyError: no folder is given, or a text is too long.
        CheckpointError: a checkpoint cannot be opened, or changes nothing.
        RecordingError: the architecture cannot be recorded.
    """
    if not folders:
        raise StudyError("no checkpoint is given; name at least one checkpoint-N folder")
    names = list(load_measures(measures))
    student = name or folders[0].resolve().parent.name.removesuffix(".partial")
    frames: list[pd.DataFrame] = []
    for folder in folders:
        opened = open_checkpoint(folder, base=base, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        tokens, layers = fixed_texts(opened, problems, chat), attention_layers(opened.model.config)
        if not frames:
            with opened.model.disable_adapter():
                frames.append(trajectory_rows(student, 0, layers, names, *record_heads(opened.model, tokens, names)))
        step = int(folder.name.rsplit("-", 1)[1])
        frames.append(trajectory_rows(student, step, layers, names, *record_heads(opened.model, tokens, names)))
        del opened
        gc.collect()  # one model at a time
    joined = pd.concat(frames, ignore_index=True)
    check_trajectory(joined, student)
    return joined
