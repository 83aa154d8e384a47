"""Training one student: a `transformers.Trainer` whose loss never makes the logits of a whole batch.

So accelerate gives several processes, FSDP, DeepSpeed, mixed precision, checkpoints and resuming. What is ours: the loss, counted over
the scored tokens of all ranks and accumulated batches; an order of texts that depends on the seed and the problem alone, so that
conditions share it; and checkpoints that count only once they are whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from distill.atomic import write_whole
from distill.batches import BLANK, Text, Texts, collate
from distill.config import ObjectiveConfig, TrainConfig, differences
from distill.losses import Dense, Head, Hidden, NonFiniteError, Signal, TopK, distillation_loss
from distill.output_head import hidden_states, instead_of_head, output_head
from distill.student import save_student
from distill.trajectory import HeadTrajectory

WHOLE = "whole"
"""Name of the empty file that is written last into a checkpoint."""
SETTINGS = "settings.json"
LOG = "training.jsonl"
"""The Trainer's log: a JSON object a line."""


class TrainError(ValueError):
    """A student that cannot be trained as asked; the message says what was seen, what is allowed and what to do."""


class DivergedError(TrainError):
    """The loss, or a hidden state, is no longer finite."""


class TextStream(Dataset[Text]):
    """All texts of all epochs, in the order in which they are read, filled up with blanks to whole steps.

    The shuffled order within an epoch sorts the problems by a hash of seed, epoch and problem: it is the same for every condition, also
    where one of them has dropped a record. The given order is that of the problems.

    Args:
        texts: of one student.
        epochs: passes; a broken number ends in the midst of the last.
        seed: of the order.
        step: texts of one step over all ranks and accumulated batches.
        shuffled: or as given.
    """

    def __init__(self, texts: Texts, epochs: float, seed: int, step: int, *, shuffled: bool = True) -> None:
        def ordered(epoch: int) -> Sequence[Text]:
            if not shuffled:
                return texts.texts
            return sorted(texts.texts, key=lambda t: hashlib.sha256(f"{seed}:{epoch}:{t.index}".encode()).digest())

        stream = [text for epoch in range(math.ceil(epochs)) for text in ordered(epoch)]
        stream = stream[: max(1, round(epochs * len(texts.texts)))]
        self.stream = stream + [BLANK] * (-len(stream) % step)

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, at: int) -> Text:
        return self.stream[at]


class DistillTrainer(Trainer):
    """Minimises `alpha * CE + (1 - alpha) * T^2 * divergence`, the mean over all scored tokens of a step, on however many ranks.

    Args:
        objective: what is minimised.
        teacher_head: turns stored or live hidden states of the teacher into logits.
        teacher: a live teacher's model.
        student_head: of the unwrapped student, as `distill.output_head.output_head` gives it.
    """

    def __init__(
        self, *, objective: ObjectiveConfig, student_head: Head, teacher_head: Head | None, teacher: Any | None, **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        self.objective, self.student_head, self.teacher_head, self.teacher = objective, student_head, teacher_head, teacher
        self.loss_is_scaled_for_ga = True
        self._parts = {"cross_entropy": 0.0, "divergence": 0.0, "tokens": 0.0}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Scored tokens of a whole step, over all ranks."""
        own = torch.tensor(sum(len(batch["targets"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(own.reshape(1)).sum().clamp(min=1)  # pyright: ignore[reportAttributeAccessIssue]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """The loss of one batch: a sum over its tokens, divided by the tokens of the whole step."""
        assert not return_outputs, "evaluation is done on finished students, by distill.evaluate"
        assert num_items_in_batch is not None
        signal = self._signal(inputs)
        taken: list[Tensor] = []

        def score(hidden: Tensor) -> Tensor:
            own = self.accelerator.unwrap_model(model).get_output_embeddings()
            rows = hidden.reshape(-1, hidden.shape[-1])[inputs["scored"]]
            if len(rows) == 0:  # a batch of blanks: every rank still has a graph to go back through
                taken.append(hidden.sum() * 0.0)
                return hidden[..., :0]
            sums = distillation_loss(
                rows,
                replace(self.student_head, weight=own.weight, bias=getattr(own, "bias", None)),
                inputs["targets"],
                signal,
                divergence=self.objective.divergence,
                alpha=self.objective.alpha,
                temperature=self.objective.temperature,
                beta=self.objective.beta,
                vocabulary=self._vocabulary(signal, own.weight),
                topk_at_temperature=self.objective.topk_at_temperature,
            )
            taken.append(sums.total)
            self._parts["cross_entropy"] += float(sums.cross_entropy)
            self._parts["divergence"] += float(sums.divergence)
            self._parts["tokens"] += len(rows)
            return hidden[..., :0]

        with instead_of_head(self.accelerator.unwrap_model(model), score):
            positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], position_ids=positions, use_cache=False)
        # every rank's gradient is averaged by the engine, so each gives its share of the whole sum times the number of ranks
        return taken[0] / num_items_in_batch * self.accelerator.num_processes

    def _signal(self, inputs: Mapping[str, Any]) -> Signal | None:
        if self.objective.alpha == 1 or len(inputs["targets"]) == 0:
            return None
        if self.teacher is not None:
            assert self.teacher_head is not None
            with torch.no_grad():
                states = hidden_states(self.teacher, inputs["teacher_ids"], inputs["teacher_mask"])
            return Hidden(states.reshape(-1, states.shape[-1])[inputs["teacher_scored"]], self.teacher_head)
        if "topk_ids" in inputs:
            return TopK(inputs["topk_ids"].long(), inputs["topk_log_probs"])
        if "hidden" in inputs:
            assert self.teacher_head is not None
            return Hidden(inputs["hidden"], self.teacher_head)
        return Dense(inputs["dense_log_probs"])

    @staticmethod
    def _vocabulary(signal: Signal | None, weight: Tensor) -> int | None:
        """Ids that both matrices have: families pad them differently."""
        sizes = {Hidden: lambda s: s.head.weight.shape[0], Dense: lambda s: s.log_probs.shape[1]}
        theirs = sizes[type(signal)](signal) if type(signal) in sizes else weight.shape[0]
        return None if theirs == weight.shape[0] else min(theirs, weight.shape[0])

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The adapter alone: PEFT would look up the base's vocabulary on the hub at every checkpoint."""
        model = self.accelerator.unwrap_model(self.model)
        model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict, save_embedding_layers=False)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of the loss since the last line, over all ranks, in nats a token."""
        if "loss" in logs:
            mine = torch.tensor([list(self._parts.values())], dtype=torch.float64 if self.args.device.type != "mps" else torch.float32)
            entropy, divergence, tokens = self.accelerator.gather(mine.to(self.args.device)).sum(0).tolist()  # pyright: ignore[reportAttributeAccessIssue]
            if tokens:
                logs = {**logs, "cross_entropy": entropy / tokens, "divergence": divergence / tokens, "tokens": tokens}
            self._parts = dict.fromkeys(self._parts, 0.0)
        super().log(logs, start_time)


class Bar(ProgressCallback):
    """A bar with the loss, and no lines."""

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        """Called by the Trainer with a line of its log."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4g}")


class WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint once all of it is written: a killed run goes on from a whole one, never from a torn one."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer after a checkpoint."""
        if args.process_index == 0:
            (Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / WHOLE).touch()


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
    teacher_head: Head | None = None,
    teacher: Any | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    trajectory: HeadTrajectory | None = None,
    show_progress: bool = False,
) -> Path:
    """Trains a student and writes its folder; goes on where a killed run was.

    Args:
        folder: of the finished student; while it trains, `folder.partial` holds checkpoints.
        model: from `distill.student.new_student`.
        tokenizer: of the student.
        texts: from `distill.batches`.
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
        TrainError: an unfinished student of other settings, or settings that the Trainer refuses.
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
    arguments = _arguments(partial, config, seed, cpu=next(model.parameters()).device.type == "cpu", show_progress=show_progress)
    with _quiet(show_progress):
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
            raise DivergedError(f"after step {trainer.state.global_step}: {error}; lower train.learning_rate") from error
        except (RuntimeError, SafetensorError) as error:
            if isinstance(error, SafetensorError) or "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
                raise TrainError(
                    f"a checkpoint cannot be written to {partial} ({str(error).splitlines()[0]:.160}); is the disk full? Make room: the "
                    "same command goes on from the last whole checkpoint"
                ) from error
            raise
        losses = [line for line in trainer.state.log_history if "loss" in line]
        if not all(math.isfinite(line["loss"]) for line in losses):
            bad = next(line for line in losses if not math.isfinite(line["loss"]))
            raise DivergedError(
                f"the loss is {bad['loss']} at step {bad['step']}; lower train.learning_rate, or use a dtype of a wider range"
            )
        if not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):  # the last step's loss does not show it
            raise DivergedError(f"the adapter holds numbers that are not finite after step {done.global_step}; lower train.learning_rate")
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
                raise TrainError(f"{file} is damaged ({error}); delete {partial} to begin anew") from error
            changed = differences(before, now)
            if changed:
                raise TrainError(
                    f"{partial} was begun with other settings:\n  " + "\n  ".join(changed) + "\nSet them back, or delete it to begin anew"
                )
        else:
            write_whole(file, json.dumps(now, indent=1) + "\n")
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
        raise TrainError(
            "objective.alpha is below 1, but the teacher's records hold text only; collect with another teacher.signal, or set alpha = 1"
        )
    return names


def _moved(head: Head, device: torch.device) -> Head:
    return replace(head, weight=head.weight.to(device), bias=None if head.bias is None else head.bias.to(device))


def _arguments(partial: Path, config: TrainConfig, seed: int, *, cpu: bool, show_progress: bool) -> TrainingArguments:
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
            tracker()  # raises where its package is missing
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        raise TrainError(f"[train]: {str(error).splitlines()[0]}") from error
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs by accelerate or torchrun; never DataParallel
    return arguments


def check_settings(config: TrainConfig) -> None:
    """Says before any work what transformers and its trackers refuse.

    Raises:
        TrainError: an optimizer, schedule or tracker that is not known or not installed, or that takes other arguments.
    """
    with tempfile.TemporaryDirectory() as folder:
        _arguments(Path(folder), config, 0, cpu=True, show_progress=False)


def _check_optimizer(arguments: TrainingArguments, config: TrainConfig) -> None:
    """Makes optimizer and schedule of one number, so that what they refuse is known before any work; some drop what they do not know."""
    for part in filter(None, config.optimizer_arguments.split(",")):
        if not re.fullmatch(r"\s*\w+\s*=\s*\S+\s*", part):
            raise ValueError(f'optimizer_arguments {config.optimizer_arguments!r} must be as "momentum=0.9,nesterov=True"')
    one = torch.nn.Parameter(torch.zeros(1))
    cls, keywords = Trainer.get_optimizer_cls_and_kwargs(arguments)
    unused = [
        name for part in filter(None, config.optimizer_arguments.split(",")) if (name := part.partition("=")[0].strip()) not in keywords
    ]
    if unused:
        raise ValueError(f"optimizer {config.optimizer} takes no argument {unused[0]!r} here; leave it out of optimizer_arguments")
    get_scheduler(
        arguments.lr_scheduler_type,
        cls([one], **keywords),
        num_warmup_steps=0,
        num_training_steps=1,
        scheduler_specific_kwargs=dict(config.schedule_arguments) or None,
    )


@contextmanager
def _quiet(show: bool) -> Iterator[None]:
    """The Trainer's notes only where progress is shown."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    if not show:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
