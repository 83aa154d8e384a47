"""The options of `[train]` as arguments of transformers' Trainer."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from distill.training.options import TrainConfig
from interp.tables.errors import StudyError


def training_arguments(partial: Path, config: TrainConfig, seed: int, *, cpu: bool, show_progress: bool) -> TrainingArguments:
    """Return the Trainer's arguments.

    Args:
        partial: folder of the checkpoints.
        config: options of the training.
        seed: seed of dropout and data.
        cpu: train on the CPU.
        show_progress: show a progress bar.

    Raises:
        StudyError: an optimizer, schedule or tracker is unknown, is not installed, or does not take the given arguments.
    """
    try:
        arguments = TrainingArguments(
            output_dir=str(partial),
            num_train_epochs=1,  # the stream holds all epochs
            train_sampling_strategy="sequential",
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            learning_rate=config.learning_rate,
            optim=config.optimizer,
            optim_args=config.optimizer_arguments or None,
            lr_scheduler_type=config.schedule,
            lr_scheduler_kwargs=config.schedule_arguments or None,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            bf16=config.bf16,
            activation_checkpointing=config.gradient_checkpointing,
            activation_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
            save_strategy="steps",
            save_steps=config.save_steps,
            save_total_limit=2,
            logging_steps=config.logging_steps,
            logging_first_step=True,
            report_to=list(config.report_to) or "none",
            seed=seed,
            data_seed=seed,
            remove_unused_columns=False,
            label_names=["targets"],
            ddp_find_unused_parameters=False,
            disable_tqdm=not show_progress,
            use_cpu=cpu,
        )
        _check_optimizer(arguments, config)
        for tracker in get_reporting_integration_callbacks(list(config.report_to)):
            tracker()  # raises if its package is missing
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        raise StudyError(f"[train]: {str(error).splitlines()[0]}") from error
    arguments._n_gpu = min(1, arguments.n_gpu)  # accelerate or torchrun run several GPUs; DataParallel is never used
    return arguments


def check_settings(config: TrainConfig) -> None:
    """Raise, before any work is done, if transformers or its trackers refuse the settings.

    Raises:
        StudyError: an optimizer, schedule or tracker is unknown, is not installed, or does not take the given arguments.
    """
    with tempfile.TemporaryDirectory() as folder:
        training_arguments(Path(folder), config, 0, cpu=True, show_progress=False)


def _check_optimizer(arguments: TrainingArguments, config: TrainConfig) -> None:
    """Raise if optimizer or schedule refuse their arguments, by making both for one number; some of them ignore unknown arguments."""
    for part in filter(None, config.optimizer_arguments.split(",")):
        if not re.fullmatch(r"\s*\w+\s*=\s*\S+\s*", part):
            raise ValueError(f'optimizer_arguments {config.optimizer_arguments!r} must have the form "momentum=0.9,nesterov=True"')
    one = torch.nn.Parameter(torch.zeros(1))
    cls, keywords = Trainer.get_optimizer_cls_and_kwargs(arguments)
    unused = [
        name for part in filter(None, config.optimizer_arguments.split(",")) if (name := part.partition("=")[0].strip()) not in keywords
    ]
    if unused:
        raise ValueError(f"optimizer {config.optimizer} does not take the argument {unused[0]!r}; remove it from optimizer_arguments")
    get_scheduler(
        arguments.lr_scheduler_type,
        cls([one], **keywords),
        num_warmup_steps=0,
        num_training_steps=1,
        scheduler_specific_kwargs=dict(config.schedule_arguments) or None,
    )


@contextmanager
def quiet_trainer(show: bool) -> Iterator[None]:
    """Hide the Trainer's messages unless progress is shown."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    if not show:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
