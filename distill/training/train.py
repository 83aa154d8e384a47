"""Train one student with a `transformers.Trainer` whose loss never computes the logits of a complete batch.

Through accelerate, the Trainer provides several processes, FSDP, DeepSpeed, mixed precision, checkpoints and resuming. This project adds
the loss, averaged over the scored tokens of all ranks and accumulated batches; an order of texts that depends only on the seed and the
problem, so that conditions share it; and checkpoints that are used only if they are complete.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from distill.objectives.options import ObjectiveConfig
from distill.settings import changed_settings
from distill.sources.texts import Texts
from distill.students.lora import save_student
from distill.training.arguments import quiet_trainer, training_arguments
from distill.training.batches import TextStream, collate
from distill.training.options import TrainConfig
from distill.training.recording import HeadTrajectory
from distill.training.trainer import COMPLETE_MARK, CheckpointMarker, DistillTrainer, LossBar
from interp.checkpoints.unembedding import OutputHead, output_head
from interp.tables.errors import NonFiniteError, StudyError
from interp.tables.files import write_json
from interp.tables.versions import current

_SETTINGS_FILE = "settings.json"
"""In the folder of an unfinished student: what a resumed run must share."""

_LOG_FILE = "training.jsonl"
"""In a student's folder: the Trainer's log, one JSON object per line."""


def train_student(
    folder: Path,
    model: Any,
    tokenizer: Any,
    texts: Texts,
    *,
    objective: ObjectiveConfig,
    config: TrainConfig,
    seed: int,
    card: Mapping[str, Any],
    teacher_head: OutputHead | None = None,
    teacher: Any | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    trajectory: HeadTrajectory | None = None,
    show_progress: bool = False,
) -> Path:
    """Train a student and write its folder, resuming a run that was killed.

    Args:
        folder: folder of the finished student; during training, `folder.partial` holds checkpoints.
        model: from `distill.students.lora.new_student`.
        tokenizer: the student's tokenizer.
        texts: from `distill.objectives.aligned` or `distill.objectives.published`.
        objective: what is minimized.
        config: options of the training.
        seed: seed of order and dropout.
        card: content of the card, to which training adds. A resumed run must have the same "settings", "parents" and "seed".
        teacher_head: output head for the hidden states of stored records, or of a live teacher.
        teacher: model of a live teacher.
        callbacks: more callbacks of transformers' Trainer.
        trajectory: records the heads during training; the adapter is the same without it.
        show_progress: show a progress bar and the Trainer's messages.

    Returns:
        The folder.

    Raises:
        StudyError: an unfinished student has other settings, or the Trainer refuses the settings.
        NonFiniteError: the loss or the adapter is not finite.
        OSError: no space; complete checkpoints are kept, and the same call resumes.
    """
    partial = folder.with_name(folder.name + ".partial")
    device = next(model.parameters()).device
    cpu = device.type == "cpu"
    ranks = PartialState(cpu=cpu).num_processes
    resume = _prepare(partial, card)
    step = config.batch_size * config.gradient_accumulation * ranks
    stored = () if teacher is not None or objective.alpha == 1 else _stored_signals(texts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with quiet_trainer(show_progress):
        trainer = DistillTrainer(
            objective=objective,
            student_head=output_head(model),
            teacher_head=None if teacher_head is None else _moved(teacher_head, device),
            teacher=teacher,
            model=model,
            args=training_arguments(partial, config, seed, cpu=cpu, show_progress=show_progress),
            train_dataset=TextStream(texts, config.epochs, seed, step, shuffled=config.order == "shuffled"),
            data_collator=lambda rows: collate(rows, pad or 0, signals=stored, live=teacher is not None),
            processing_class=None,
            callbacks=[CheckpointMarker(), *callbacks],
        )
        _show_only_a_bar(trainer, show_progress=show_progress)
        if trajectory is not None:
            trajectory.log = trainer.log
            trainer.add_callback(trajectory)
        steps = _train(trainer, resume)
        last_loss = _check_finite(trainer, model, steps)
        # Every rank takes part in gathering a sharded adapter.
        state = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled else None
    if trainer.is_world_process_zero():
        training = {"steps": steps, "last_loss": last_loss, "ranks": ranks, "texts": len(texts.texts)}
        lines = [{**line, "epoch": line["epoch"] * config.epochs} for line in trainer.state.log_history]
        log = "".join(json.dumps(line) + "\n" for line in lines)
        files = {_LOG_FILE: log, **(trajectory.files(partial) if trajectory is not None else {})}
        save_student(trainer.accelerator.unwrap_model(trainer.model), folder, {**card, "training": training}, state, files)
        shutil.rmtree(partial)
    trainer.accelerator.wait_for_everyone()
    return folder


def _prepare(partial: Path, card: Mapping[str, Any]) -> Path | None:
    """Return the checkpoint to resume from, if any, after removing incomplete ones.

    Raises:
        StudyError: the unfinished student has other settings.
    """
    processes = PartialState()
    if processes.is_main_process:
        partial.mkdir(parents=True, exist_ok=True)
        _check_same_settings(partial, json.loads(json.dumps({key: card[key] for key in ("settings", "parents", "seed")})))
        for checkpoint in partial.glob("checkpoint-*"):
            if not (checkpoint / COMPLETE_MARK).exists():
                shutil.rmtree(checkpoint)
    processes.wait_for_everyone()
    found = [path for path in partial.glob("checkpoint-*") if (path / COMPLETE_MARK).exists()]
    return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _check_same_settings(partial: Path, now: dict[str, Any]) -> None:
    """Raise if an unfinished student has other settings; write them for a new one."""
    file = partial / _SETTINGS_FILE
    if not file.is_file():
        write_json(file, now)
        return
    try:
        before = json.loads(file.read_text("utf-8"))
        before = {**before, "settings": current(before["settings"])}
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{file} is damaged ({error}); delete {partial} to start again") from error
    changed = changed_settings(before, now)
    if changed:
        raise StudyError(
            f"{partial} was started with other settings:\n  " + "\n  ".join(changed) + "\nRestore them, or delete it to start again"
        )


def _show_only_a_bar(trainer: DistillTrainer, *, show_progress: bool) -> None:
    """Remove the callbacks that print lines to stdout, where results go; training.jsonl has the lines."""
    trainer.remove_callback(PrinterCallback)
    if show_progress:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(LossBar())


def _train(trainer: DistillTrainer, resume: Path | None) -> int:
    """Train from a checkpoint or from the start; return the number of the last step.

    Raises:
        NonFiniteError: the student's states are not finite.
        StudyError: a checkpoint cannot be written.
    """
    try:
        return trainer.train(resume_from_checkpoint=str(resume) if resume else None).global_step
    except NonFiniteError as error:
        raise NonFiniteError(f"after step {trainer.state.global_step}: {error}; lower train.learning_rate") from error
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error, SafetensorError) or "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
            raise StudyError(
                f"a checkpoint cannot be written to {trainer.args.output_dir} ({str(error).splitlines()[0]:.160}). If the disk is full, "
                "free some space: the same command resumes from the last complete checkpoint"
            ) from error
        raise


def _check_finite(trainer: DistillTrainer, model: Any, steps: int) -> float:
    """Return the last loss.

    Raises:
        NonFiniteError: a loss or the adapter is not finite.
    """
    losses = [line for line in trainer.state.log_history if "loss" in line]
    bad = next((line for line in losses if not math.isfinite(line["loss"])), None)
    if bad is not None:
        raise NonFiniteError(
            f"the loss is {bad['loss']} at step {bad['step']}; lower train.learning_rate, or use a dtype with a wider range"
        )
    if not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):  # the last update is seen by no loss
        raise NonFiniteError(f"the adapter has values that are not finite after step {steps}; lower train.learning_rate")
    return losses[-1]["loss"]


def _stored_signals(texts: Texts) -> tuple[str, ...]:
    """Return the names of the signals that the records hold.

    Raises:
        StudyError: the records hold only text.
    """
    record = texts.texts[0].record
    assert record is not None
    names = tuple(record.signals)
    if not names:
        raise StudyError(
            "objective.alpha is below 1, but the teacher's records hold text only; collect with another teacher.signal, or set alpha = 1"
        )
    return names


def _moved(head: OutputHead, device: torch.device) -> OutputHead:
    return replace(head, weight=head.weight.to(device), bias=None if head.bias is None else head.bias.to(device))
