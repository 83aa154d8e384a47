"""TODO_DOC distill/teachers/local.py."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distill.problems.sets import Problem
from distill.records.record import Record, record_key
from distill.strategies import Strategy
from distill.teachers.options import TeacherConfig
from distill.teachers.teacher import tokenizer_digest, uses_chat
from interp.checkpoints.unembedding import OutputHead
from interp.tables.errors import StudyError


class TransformersTeacher:
    """Any checkpoint, in this process: text, topk, hidden, dense."""

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
        """Loaded without the weights."""
        from interp.checkpoints.opening import open_tokenizer

        return open_tokenizer(self.config.model, revision=self.config.revision, trust_remote_code=self.config.trust_remote_code)

    @property
    def model(self) -> Any:
        """The weights, loaded when they are first needed."""
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
        """Generated in batches; the signals are those of the steps themselves."""
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
            Record(
                p.index, p.question, p.answer, tuple(asked), said.ids, said.text, "eos" if said.finish == "eos" else "length", said.signals
            )
            for p, asked, said in zip(problems, prompts, answers, strict=True)
        ]

    def score_prompts(self, problems: Sequence[Problem], strategy: Strategy, max_tokens: int) -> list[Record]:
        """Plain text, strategy before question, no special tokens, cut at `max_tokens`: as the published code feeds its teacher."""
        from interp.checkpoints.unembedding import hidden_states

        if strategy.text and strategy.place != "before":
            raise StudyError(
                f'strategy {strategy.name} stands {strategy.place} the question, but objective published knows "before" only: the strategy '
                "and the question are one plain text"
            )
        if self.config.chat:
            raise StudyError("teacher.chat is true, but objective published feeds plain text; leave it out")
        head, records = self._head, []
        limit = self._open.position_limit
        for p in problems:
            text = f"{strategy.text} {p.question}" if strategy.text else p.question
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"][:max_tokens]
            if limit is not None and len(ids) > limit:
                raise StudyError(
                    f"problem {p.index}: prompt and question take {len(ids)} tokens, {self.config.model} has {limit} positions; lower "
                    f"objective.max_tokens to {limit}"
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
        """The output head, where hidden states are stored."""
        return self._head if self.config.signal == "hidden" else None

    def model_and_head(self) -> tuple[Any, OutputHead]:
        """The model, and its output head."""
        return self.model, self._head

    def close(self) -> None:
        """Frees the weights; they are loaded again if they are needed."""
        self._open = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
