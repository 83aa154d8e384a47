"""Options of the training: the sections `[train]` and `[heads]` of a study."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from distill.settings import require_setting


@dataclass(frozen=True)
class TrainConfig:
    """How a student is trained, under the names of transformers' `TrainingArguments`.

    Attributes:
        epochs: passes over the texts; may be a fraction.
        batch_size: texts of one forward pass on one device.
        gradient_accumulation: forward passes of one step.
        order: shuffled (by seed and epoch, the same for all conditions), or given (the order of the problems in every epoch).
        learning_rate: the highest learning rate of the schedule.
        optimizer: a name of transformers' `OptimizerNames`, such as adamw_torch or sgd.
        optimizer_arguments: arguments of the optimizer as text, such as "momentum=0.9".
        schedule: a name of transformers' `SchedulerType`, such as cosine, linear or constant.
        schedule_arguments: arguments of the schedule, such as {num_cycles = 1.0}.
        warmup_steps: number of steps, or, below 1, a share of all steps.
        weight_decay: weight decay of the adapter's matrices.
        max_grad_norm: gradients are clipped to this norm; 0 does not clip.
        bf16: autocast to bfloat16.
        gradient_checkpointing: recompute activations in the backward pass.
        save_steps: steps between checkpoints, from which a killed run resumes.
        logging_steps: steps between lines of the log.
        report_to: trackers, such as tensorboard or wandb.
    """

    epochs: float = 2.0
    batch_size: int = 8
    gradient_accumulation: int = 1
    order: Literal["shuffled", "given"] = "shuffled"
    learning_rate: float = 2e-4
    optimizer: str = "adamw_torch"
    optimizer_arguments: str = ""
    schedule: str = "cosine"
    schedule_arguments: dict[str, Any] = field(default_factory=dict)
    warmup_steps: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    bf16: bool = False
    gradient_checkpointing: bool = False
    save_steps: int = 50
    logging_steps: int = 5
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            StudyError: a value is out of range.
        """
        for name in ("batch_size", "gradient_accumulation", "save_steps", "logging_steps"):
            require_setting(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}; at least 1 is needed")
        for name in ("epochs", "learning_rate"):
            require_setting(0 < getattr(self, name) < math.inf, f"train.{name} is {getattr(self, name)}; it must be above 0 and finite")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            require_setting(0 <= getattr(self, name) < math.inf, f"train.{name} is {getattr(self, name)}; it must be at least 0 and finite")


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "epochs": 2.0,
        "batch_size": 1,
        "order": "given",
        "learning_rate": 5e-6,
        "optimizer": "sgd",
        "optimizer_arguments": "momentum=0.9",
        "schedule": "cosine",
        # The published code anneals over one epoch and trains for two: the rate falls to 0, and rises again in the second epoch.
        "schedule_arguments": {"num_cycles": 1.0},
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "max_grad_norm": 0.0,
    },
}
"""Named sets of values for `[train]`: `preset = "paper"` selects one, and other keys override its values."""


@dataclass(frozen=True)
class TrajectoryConfig:
    """What is recorded of a student's attention heads during training. It does not influence the student, which is kept if it changes.

    Attributes:
        records: number of recordings, evenly spaced from before the first step to after the last, at least 10 steps apart; 0 records
            nothing.
        texts: number of held-out problems that are read, from the first, each with its reference solution.
        measures: names of `interp.measures.catalog.MEASURES`.
    """

    records: int = 6
    texts: int = 8
    measures: tuple[str, ...] = ("entropy_nats", "bos_mass", "mean_distance", "numeric_mass", "operator_mass")

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            StudyError: a value is out of range.
        """
        require_setting(
            self.records == 0 or self.records >= 2,
            f"heads.records is {self.records}; set 0 to record nothing, or at least 2: the first step, the last, and others between",
        )
        require_setting(self.texts >= 1, f"heads.texts is {self.texts}; at least 1 is needed, or set heads.records = 0 to record nothing")
        require_setting(
            bool(self.measures) and len(set(self.measures)) == len(self.measures),
            f"heads.measures is {list(self.measures)}; name at least one, each once, or set heads.records = 0 to record nothing",
        )
