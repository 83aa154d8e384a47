"""A teacher in this process: any checkpoint that transformers can load."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distill.problems.sets import Problem
from distill.records.record import Record, record_key
from distill.strategies import Strategy, require_plain
from distill.teachers.options import TeacherConfig
from distill.teachers.teacher import tokenizer_digest, uses_chat
from interp.checkpoints.unembedding import OutputHead
from interp.tables.errors import StudyError


class TransformersTeacher:
    """A checkpoint in this process; it gives all signals."""

    def __init__(self, config: TeacherConfig) -> None:
        from interp.checkpoints.opening import identify

        self.config = config
        self.chat = uses_chat(config, self.tokenizer)
        self.identity = {
            "kind": "transformers",
            **identify(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code),
            "dtype": config.dtype,
            "tokenizer": tokenizer_digest(self.tokenizer),
            "chat": self.chat,
        }
        self._open: Any = None

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded without the weights."""
        from interp.checkpoints.opening import open_tokenizer

        return open_tokenizer(self.config.model, revision=self.config.revision, trust_remote_code=self.config.trust_remote_code)

    @property
    def model(self) -> Any:
        """The model; its weights are loaded at the first use."""
        from interp.checkpoints.opening import open_checkpoint

        if self._open is None:
            self._open = open_checkpoint(
                self.config.model,
                device=self.config.device,
                dtype=self.config.dtype,
                revision=self.config.revision,
                trust_remote_code=self.config.trust_remote_code,
            )
        return self._open.model

    def answer(self, problems: Sequence[Problem], strategy: Strategy) -> list[Record]:
        """Generate answers in batches; the signals are from the generation steps."""
        from distill.teachers.generate import Sampling, generate

        config = self.config
        prompts = [strategy.encode(self.tokenizer, p.question, self.chat) for p in problems]
        answers = generate(
            self.model,
            self.tokenizer,
            prompts,
            Sampling(config.max_new_tokens, config.temperature, config.top_p, config.seed),
            batch_size=config.batch_size,
            signal=config.signal,
            top_k=config.top_k,
            keys=[record_key(p.question, p.answer) for p in problems],
        )
        return [
            Record(p.index, p.question, p.answer, tuple(prompt), found.ids, found.text, "eos" if found.ended else "length", found.signals)
            for p, prompt, found in zip(problems, prompts, answers, strict=True)
        ]

    def score_prompts(self, problems: Sequence[Problem], strategy: Strategy, max_tokens: int) -> list[Record]:
        """Score instruction and question as plain text without special tokens, shortened to `max_tokens`, as the published code does.

        Raises:
            StudyError: the instruction is not before the question, a chat template is set, or a text has too many tokens.
        """
        from interp.checkpoints.unembedding import hidden_states

        require_plain(strategy)
        if self.config.chat:
            raise StudyError("teacher.chat is true, but objective published uses plain text; leave it out")
        head, records = self._head, []
        limit = self._open.position_limit
        for p in problems:
            text = f"{strategy.text} {p.question}" if strategy.text else p.question
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"][:max_tokens]
            if limit is not None and len(ids) > limit:
                raise StudyError(
                    f"problem {p.index}: instruction and question have {len(ids)} tokens, but {self.config.model} has {limit} positions; "
                    f"lower objective.max_tokens to {limit}"
                )
            given = torch.tensor([ids], device=self.model.get_input_embeddings().weight.device)
            with torch.no_grad():
                states = hidden_states(self.model, given, torch.ones_like(given))[0]
                signals = self._signals(states, head)
            records.append(Record(p.index, p.question, p.answer, tuple(ids), (), "", "eos", signals))
        return records

    def _signals(self, states: Tensor, head: OutputHead) -> dict[str, Tensor]:
        if self.config.signal == "text":
            return {}
        if self.config.signal == "hidden":
            return {"hidden": states.cpu()}
        log_probs = torch.log_softmax(head.logits(states), -1)
        if self.config.signal == "dense":
            return {"dense_log_probs": log_probs.cpu()}
        top = log_probs.topk(min(self.config.top_k, log_probs.shape[-1]), -1)
        return {"topk_ids": top.indices.int().cpu(), "topk_log_probs": top.values.cpu()}

    @property
    def _head(self) -> OutputHead:
        from interp.checkpoints.unembedding import output_head

        return output_head(self.model)

    def head(self) -> OutputHead | None:
        """Return the output head if hidden states are stored, else None."""
        return self._head if self.config.signal == "hidden" else None

    def model_and_head(self) -> tuple[Any, OutputHead]:
        """Return the model and its output head."""
        return self.model, self._head

    def close(self) -> None:
        """Free the weights; they are loaded again at the next use."""
        self._open = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
