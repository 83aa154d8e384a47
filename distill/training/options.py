"""TODO_DOC distill/training/options.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from distill.settings import require_setting


@dataclass(frozen=True)
class TrainConfig:
    """The optimiser's side of training, as transformers' `TrainingArguments` name it.

    Attributes:
        epochs: passes over the records.
        batch_size: texts of one forward pass on one device.
        gradient_accumulation: forward passes of one step.
        order: shuffled (by seed and epoch, the same for all conditions), or given (the problems' own order in every epoch).
        learning_rate: at its highest.
        optimizer: a name of transformers' `OptimizerNames`, such as adamw_torch or sgd.
        optimizer_arguments: as text, such as "momentum=0.9".
        schedule: a name of transformers' `SchedulerType`, such as cosine, linear or constant.
        schedule_arguments: such as {num_cycles = 1.0}.
        warmup_steps: steps, or a share of all steps where below 1.
        weight_decay: of the adapter's matrices.
        max_grad_norm: gradients are scaled down to it; 0 leaves them as they are.
        bf16: autocast to bfloat16.
        gradient_checkpointing: compute activations again in the backward pass.
        save_steps: a checkpoint every so many steps, from which a killed run goes on.
        logging_steps: a line of the log every so many steps.
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
        """Checks the ranges."""
        for name in ("batch_size", "gradient_accumulation", "save_steps", "logging_steps"):
            require_setting(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}; at least 1 is needed")
        for name in ("epochs", "learning_rate"):
            require_setting(0 < getattr(self, name) < math.inf, f"train.{name} is {getattr(self, name)}; it must be above 0, and finite")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            require_setting(0 <= getattr(self, name) < math.inf, f"train.{name} is {getattr(self, name)}; 0 or more is needed, and finite")


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "epochs": 2.0,
        "batch_size": 1,
        "order": "given",
        "learning_rate": 5e-6,
        "optimizer": "sgd",
        "optimizer_arguments": "momentum=0.9",
        "schedule": "cosine",
        # the published code anneals over one epoch and runs for two: the rate falls to 0, and rises again in the second
        "schedule_arguments": {"num_cycles": 1.0},
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "max_grad_norm": 0.0,
    },
}
"""Named values of `[train]`; `preset = "paper"` takes them, and keys beside it change them."""


@dataclass(frozen=True)
class TrajectoryConfig:
    """What is recorded of a student's attention heads while it learns. It shapes no student: a finished one is kept when it changes.

    Attributes:
        records: recordings, evenly from before the first step to after the last and at least 10 steps apart; 0 records nothing.
        texts: how many of the held-out problems are read, from the first, each with its reference solution.
        measures: of `interp.measures.catalog.MEASURES`.
    """

    records: int = 6
    texts: int = 8
    measures: tuple[str, ...] = ("entropy_nats", "bos_mass", "mean_distance", "numeric_mass", "operator_mass")

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require_setting(
            self.records == 0 or self.records >= 2,
            f"heads.records is {self.records}; 0 records nothing, 2 or more the first step, the last, and others between",
        )
        require_setting(self.texts >= 1, f"heads.texts is {self.texts}; at least 1 is needed; heads.records = 0 records nothing")
        require_setting(
            bool(self.measures) and len(set(self.measures)) == len(self.measures),
            f"heads.measures is {list(self.measures)}; name at least one, each once; heads.records = 0 records nothing",
        )
