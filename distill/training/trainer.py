"""The Trainer of a student, and the callbacks that come with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from distill.objectives.chunked import distillation_loss
from distill.objectives.options import ObjectiveConfig
from distill.records.signals import Dense, Hidden, Signal, TopK
from interp.checkpoints.unembedding import OutputHead, hidden_states, instead_of_head

COMPLETE_MARK = "whole"
"""Name of the empty file that is written into a checkpoint last."""


class DistillTrainer(Trainer):
    """Minimize `alpha * CE + (1 - alpha) * T^2 * divergence`, averaged over all scored tokens of a step on all ranks.

    Args:
        objective: the objective.
        student_head: output head of the unwrapped student, from `interp.checkpoints.unembedding.output_head`.
        teacher_head: output head for stored or live hidden states of the teacher.
        teacher: model of a live teacher.
    """

    def __init__(
        self, *, objective: ObjectiveConfig, student_head: OutputHead, teacher_head: OutputHead | None, teacher: Any | None, **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        self.objective, self.student_head, self.teacher_head, self.teacher = objective, student_head, teacher_head, teacher
        self.loss_is_scaled_for_ga = True
        self._parts = {"cross_entropy": 0.0, "divergence": 0.0, "tokens": 0.0}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Return the number of scored tokens of a step, over all ranks."""
        own = torch.tensor(sum(len(batch["targets"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(own.reshape(1)).sum().clamp(min=1)  # pyright: ignore[reportAttributeAccessIssue]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """Return the loss of one batch: the sum over its tokens, divided by the number of tokens of the step."""
        assert not return_outputs, "finished students are evaluated by distill.evaluation.answers"
        assert num_items_in_batch is not None
        signal = self._signal(inputs)
        taken: list[Tensor] = []

        def score(hidden: Tensor) -> Tensor:
            own = self.accelerator.unwrap_model(model).get_output_embeddings()
            rows = hidden.reshape(-1, hidden.shape[-1])[inputs["scored"]]
            if len(rows) == 0:  # a batch of blank texts: the backward pass still needs a graph on every rank
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
        # The engine averages gradients over ranks, so each rank returns its part of the sum times the number of ranks.
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
        """Return the number of ids that both output matrices have, since families pad them differently; None if they are equal."""
        sizes = {Hidden: lambda s: s.head.weight.shape[0], Dense: lambda s: s.log_probs.shape[1]}
        theirs = sizes[type(signal)](signal) if type(signal) in sizes else weight.shape[0]
        return None if theirs == weight.shape[0] else min(theirs, weight.shape[0])

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save only the adapter: PEFT would look up the base's vocabulary on the hub at every checkpoint."""
        model = self.accelerator.unwrap_model(self.model)
        model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict, save_embedding_layers=False)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss since the last line, over all ranks, in nats per token."""
        if "loss" in logs:
            mine = torch.tensor([list(self._parts.values())], dtype=torch.float64 if self.args.device.type != "mps" else torch.float32)
            entropy, divergence, tokens = self.accelerator.gather(mine.to(self.args.device)).sum(0).tolist()  # pyright: ignore[reportAttributeAccessIssue]
            if tokens:
                logs = {**logs, "cross_entropy": entropy / tokens, "divergence": divergence / tokens, "tokens": tokens}
            self._parts = dict.fromkeys(self._parts, 0.0)
        super().log(logs, start_time)


class LossBar(ProgressCallback):
    """Show a progress bar with the loss instead of lines."""

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        """Show the loss of a line of the log."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4g}")


class CheckpointMarker(TrainerCallback):
    """Mark a checkpoint once it is complete, so that a killed run never resumes from an incomplete one."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint that was just saved."""
        if args.process_index == 0:
            (Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / COMPLETE_MARK).touch()
