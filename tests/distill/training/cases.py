"""What the tests of training share: a card, a quick training whose heads are recorded, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import TrainerCallback

from distill.objectives.aligned import aligned_texts
from distill.objectives.options import ObjectiveConfig
from distill.problems.sets import Problem
from distill.records.record import Record
from distill.strategies import Strategy
from distill.students.lora import new_student
from distill.students.options import StudentConfig
from distill.training.options import TrainConfig
from distill.training.recording import HeadTrajectory
from distill.training.train import train_student
from distill.training.trajectory import (
    fixed_texts,
)
from interp.recording.recorder import record

CARD: dict[str, Any] = {
    "condition": "none",
    "seed": 0,
    "strategy": {"text": ""},
    "settings": {"student": {"model": "tiny"}, "objective": {"name": "aligned"}},
    "parents": {"teacher": {"name": "tiny"}},
    "formula": "CE",
    "counts": {"records": 1, "kept": 1},
    "versions": {"primed-heads": "0"},
}


MEASURES = ("entropy_nats", "numeric_mass", "sparsity_010")


PROBLEMS = tuple(
    Problem(40 + n, f"Ann has {n} cats and {2 * n} dogs. How many?", f"{n}+{2 * n} = {3 * n}\n#### {3 * n}") for n in (3, 11, 250)
)


QUICK = TrainConfig(
    epochs=2,
    batch_size=2,
    gradient_accumulation=2,
    learning_rate=1e-2,
    logging_steps=1,
    save_steps=2,
    warmup_steps=0,
    optimizer="adamw_torch",
)
"""With thirteen texts: seven steps, the last with blank texts."""


STEPS = 7


class Stop(RuntimeError):
    """Take the place of a kill."""


class StopAt(TrainerCallback):
    """Raise after a step, before a checkpoint of it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Stop


def learner(checkpoint: Path) -> Callable[..., HeadTrajectory | None]:
    """Return `(folder, records, ...)`, which trains a student with dropout; it records nothing if `records` is None."""

    def run(
        folder: Path,
        records: int | Sequence[int] | None = (0, 3, 4, STEPS),
        *,
        train: TrainConfig = QUICK,
        measures: Sequence[str] = MEASURES,
        callbacks: Sequence[TrainerCallback] = (),
        **student: Any,
    ) -> HeadTrajectory | None:
        config = StudentConfig(model=str(checkpoint), device="cpu", rank=2, dropout=0.3, **student)
        model, base = new_student(config, 0)
        answers = [Record(i, f"How many are {i} and 3?", "#### 1", (), (), "5" * (i + 1) + " so 7", "eos") for i in range(13)]
        texts = aligned_texts(answers, base.tokenizer, Strategy("s"), True, max_tokens=300, same_tokenizer=False)
        follow = None if records is None else HeadTrajectory(fixed_texts(base, PROBLEMS), measures, "pupil", records)
        train_student(
            folder,
            model,
            base.tokenizer,
            texts,
            objective=ObjectiveConfig(alpha=1.0),
            config=train,
            seed=0,
            card=CARD,
            callbacks=callbacks,
            trajectory=follow,
        )
        return follow

    return run


def oracle(model: Any, tokenizer: Any, measures: Sequence[str] = MEASURES) -> pd.Series:
    """Return the mean over texts of every value, with each text read separately by the complete model."""
    from interp.tokens import annotate

    values = []
    for p in PROBLEMS:
        tokens = annotate(tokenizer, p.question, p.answer, examples=[p.index])
        with torch.no_grad(), record(model, tokens, list(measures)) as heads:
            model(**tokens.inputs)
        values.append(heads.examples("x").set_index(["layer", "head", "measure", "region"])["value"])
    return pd.concat(values, axis=1).mean(axis=1)


def at_step(table: pd.DataFrame, step: int) -> pd.Series:
    return table[table["step"] == step].astype({"measure": str, "region": str}).set_index(["layer", "head", "measure", "region"])["mean"]


def losses(folder: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (folder / "training.jsonl").read_text().splitlines()) if "loss" in line]


def head_lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (folder / "training.jsonl").read_text().splitlines()) if "heads/moved" in line]
