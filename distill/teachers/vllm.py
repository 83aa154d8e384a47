"""A teacher that vLLM runs in this process."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from distill.problems.sets import Problem
from distill.records.record import Record
from distill.strategies import Strategy
from distill.teachers.options import TeacherConfig
from distill.teachers.teacher import TextTeacher, row_seed, stack_topk, tokenizer_digest, uses_chat
from interp.tables.errors import StudyError


class VllmTeacher(TextTeacher):
    """vLLM in this process, with its own tensor parallelism; it gives text and topk."""

    def __init__(self, config: TeacherConfig) -> None:
        from interp.checkpoints.opening import identify, open_tokenizer

        self.config = config
        self.tokenizer = open_tokenizer(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
        self.chat = uses_chat(config, self.tokenizer)
        self.identity = {
            "kind": "vllm",
            **identify(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code),
            "dtype": config.dtype,
            "tokenizer": tokenizer_digest(self.tokenizer),
            "chat": self.chat,
        }
        self._engine: Any = None

    @property
    def engine(self) -> Any:
        """The engine; it starts at the first use."""
        if self._engine is None:
            config = self.config
            self._engine = _library().LLM(
                model=config.model,
                revision=config.revision,
                dtype=config.dtype,
                tensor_parallel_size=config.tensor_parallel,
                seed=config.seed,
                max_logprobs=max(config.top_k, 20),
                logprobs_mode="raw_logprobs",
                trust_remote_code=config.trust_remote_code,
            )
        return self._engine

    def answer(self, problems: Sequence[Problem], strategy: Strategy) -> list[Record]:
        """Generate all answers. With topk, score prompt and answer again, because prompt log-probabilities ignore the temperature."""
        config, engine, parameters = self.config, self.engine, _library().SamplingParams
        prompts = [strategy.encode(self.tokenizer, p.question, self.chat) for p in problems]
        length, heat, top_p = config.max_new_tokens, config.temperature, config.top_p
        chosen = [parameters(max_tokens=length, temperature=heat, top_p=top_p, seed=row_seed(config, p)) for p in problems]
        answers = [out.outputs[0] for out in engine.generate([{"prompt_token_ids": ids} for ids in prompts], chosen)]
        signals: list[dict[str, Tensor]] = [{} for _ in problems]
        if config.signal == "topk":
            texts = [{"prompt_token_ids": [*ids, *answer.token_ids]} for ids, answer in zip(prompts, answers, strict=True)]
            scored = engine.generate(texts, parameters(max_tokens=1, temperature=0.0, prompt_logprobs=config.top_k))
            signals = [
                prompt_topk(out.prompt_logprobs, len(ids), config.top_k, f"problem {p.index}")
                for p, ids, out in zip(problems, prompts, scored, strict=True)
            ]
        return [
            Record(
                p.index,
                p.question,
                p.answer,
                tuple(ids),
                tuple(answer.token_ids),
                answer.text,
                "eos" if answer.finish_reason == "stop" else "length",
                rows,
            )
            for p, ids, answer, rows in zip(problems, prompts, answers, signals, strict=True)
        ]

    def close(self) -> None:
        """Free the engine."""
        self._engine = None


def _library() -> Any:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise StudyError("teacher.kind = \"vllm\" needs vLLM and a GPU: pip install 'primed-heads[vllm]'") from error


def prompt_topk(prompt_logprobs: Sequence[Mapping[int, Any] | None], first: int, k: int, place: str) -> dict[str, Tensor]:
    """Return the top k at each response token from vLLM's `prompt_logprobs`, whose entry i is the distribution of token i.

    An entry holds the k most likely tokens, and the token itself if it is not one of them; that one is left out.

    Args:
        prompt_logprobs: one mapping for each token of prompt and response; the first is None.
        first: position of the first response token.
        k: number of tokens to keep.
        place: start of error messages.
    """
    entries = prompt_logprobs[first:]
    if any(entry is None for entry in entries):
        raise StudyError(f"{place}: vLLM returned no log-probabilities for a response token")
    return stack_topk([{token: float(about.logprob) for token, about in (entry or {}).items()} for entry in entries], k, place)
