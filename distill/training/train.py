"""Training one student: a `transformers.Trainer` whose loss never makes the logits of a whole batch.

So accelerate gives several processes, FSDP, DeepSpeed, mixed precision, checkpoints and resuming. What is ours: the loss, counted over
the scored tokens of all ranks and accumulated batches; an order of texts that depends on the seed and the problem alone, so that
conditions share it; and checkpoints that count only once they are whole.
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
from distill.training.arguments import quiet, training_arguments
from distill.training.batches import collate
from distill.training.options import TrainConfig
from distill.training.trainer import WHOLE, Bar, DistillTrainer, TextStream, WholeCheckpoints
from distill.training.trajectory import HeadTrajectory
from interp.checkpoints.unembedding import OutputHead, output_head
from interp.tables.errors import NonFiniteError, StudyError
from interp.tables.files import write_text

SETTINGS = "settings.json"


LOG = "training.jsonl"
"""The Trainer's log: a JSON object a line."""


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
    """Trains a student and writes its folder; goes on where a killed run was.

    Args:
        folder: of the finished student; while it trains, `folder.partial` holds checkpoints.
        model: from `distill.students.lora.new_student`.
        tokenizer: of the student.
        texts: from `distill.sources.texts`.
        objective: what is minimised.
        config: how.
        seed: of order and dropout.
        card: what the card says beside what training adds. A resumed run must have the same "settings" and "parents".
        teacher_head: of stored hidden states, or of a live teacher.
        teacher: a live teacher's model.
        callbacks: of transformers' Trainer.
        trajectory: records the heads while they learn; the adapter is the same without it.
        show_progress: a bar, and lines of the log.

    Returns:
        The folder.

    Raises:
        StudyError: an unfinished student of other settings, or settings that the Trainer refuses.
        OSError: no room; whole checkpoints are kept, and the same call goes on.
    """
    partial = folder.with_name(folder.name + ".partial")
    ranks = PartialState(cpu=next(model.parameters()).device.type == "cpu").num_processes
    resume = _prepare(partial, card)
    step = config.batch_size * config.gradient_accumulation * ranks
    stream = TextStream(texts, config.epochs, seed, step, shuffled=config.order == "shuffled")
    stored = () if teacher is not None or objective.alpha == 1 else _stored(texts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    student_head = output_head(model)
    if teacher_head is not None:
        teacher_head = _moved(teacher_head, next(model.parameters()).device)
    arguments = training_arguments(partial, config, seed, cpu=next(model.parameters()).device.type == "cpu", show_progress=show_progress)
    with quiet(show_progress):
        trainer = DistillTrainer(
            objective=objective,
            student_head=student_head,
            teacher_head=teacher_head,
            teacher=teacher,
            model=model,
            args=arguments,
            train_dataset=stream,
            data_collator=lambda rows: collate(rows, pad or 0, signals=stored, live=teacher is not None),
            processing_class=None,
            callbacks=[WholeCheckpoints(), *callbacks],
        )
        # their lines of the log would stand among the results on stdout; training.jsonl has them
        trainer.remove_callback(PrinterCallback)
        if show_progress:
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(Bar())
        if trajectory is not None:
            trajectory.log = trainer.log
            trainer.add_callback(trajectory)
        try:
            done = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except NonFiniteError as error:
            raise NonFiniteError(f"after step {trainer.state.global_step}: {error}; lower train.learning_rate") from error
        except (RuntimeError, SafetensorError) as error:
            if isinstance(error, SafetensorError) or "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
                raise StudyError(
                    f"a checkpoint cannot be written to {partial} ({str(error).splitlines()[0]:.160}); is the disk full? Make room: the "
                    "same command goes on from the last whole checkpoint"
                ) from error
            raise
        losses = [line for line in trainer.state.log_history if "loss" in line]
        if not all(math.isfinite(line["loss"]) for line in losses):
            bad = next(line for line in losses if not math.isfinite(line["loss"]))
            raise NonFiniteError(
                f"the loss is {bad['loss']} at step {bad['step']}; lower train.learning_rate, or use a dtype of a wider range"
            )
        if not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):  # the last step's loss does not show it
            raise NonFiniteError(f"the adapter holds numbers that are not finite after step {done.global_step}; lower train.learning_rate")
        training = {"steps": done.global_step, "last_loss": losses[-1]["loss"], "ranks": ranks, "texts": len(texts.texts)}
        # gathers a sharded adapter: every rank takes part
        state = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled else None
    if trainer.is_world_process_zero():
        lines = [{**line, "epoch": line["epoch"] * config.epochs} for line in trainer.state.log_history]
        log = "".join(json.dumps(line) + "\n" for line in lines)
        files = {LOG: log, **(trajectory.files(partial) if trajectory is not None else {})}
        save_student(trainer.accelerator.unwrap_model(trainer.model), folder, {**card, "training": training}, state, files)
        shutil.rmtree(partial)
    trainer.accelerator.wait_for_everyone()
    return folder


def _prepare(partial: Path, card: Mapping[str, Any]) -> Path | None:
    """The checkpoint to go on from, if any; other settings than those it was begun with are refused."""
    now = json.loads(json.dumps({key: card[key] for key in ("settings", "parents", "seed")}))
    file = partial / SETTINGS
    processes = PartialState()
    if processes.is_main_process:
        partial.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            try:
                before = json.loads(file.read_text("utf-8"))
            except ValueError as error:
                raise StudyError(f"{file} is damaged ({error}); delete {partial} to begin anew") from error
            changed = changed_settings(before, now)
            if changed:
                raise StudyError(
                    f"{partial} was begun with other settings:\n  " + "\n  ".join(changed) + "\nSet them back, or delete it to begin anew"
                )
        else:
            write_text(file, json.dumps(now, indent=1) + "\n")
        for torn in partial.glob("checkpoint-*"):
            if not (torn / WHOLE).exists():
                shutil.rmtree(torn)
    processes.wait_for_everyone()
    found = [path for path in partial.glob("checkpoint-*") if (path / WHOLE).exists()]
    return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _stored(texts: Texts) -> tuple[str, ...]:
    """Names of the signals that the records hold."""
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
