"""TODO_DOC distill/teachers/teacher.py."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from distill.problems.sets import Problem
from distill.records.record import Record, record_key
from distill.strategies import Strategy
from distill.teachers.options import TeacherConfig
from interp.checkpoints.unembedding import OutputHead
from interp.tables.errors import StudyError


class Teacher(Protocol):
    """Who answers.

    Attributes:
        identity: JSON of all that shapes the answers beside strategy and sampling; its `name` is for people.
        tokenizer: None where only text can be had.
    """

    identity: dict[str, Any]

    @property
    def tokenizer(self) -> Any | None:
        """The teacher's tokenizer; None where its answers are text only."""
        ...

    def answer(self, problems: Sequence[Problem], strategy: Strategy) -> list[Record]:
        """One record a problem, in order, with the signals asked for."""
        ...

    def score_prompts(self, problems: Sequence[Problem], strategy: Strategy, max_tokens: int) -> list[Record]:
        """For the published objective: signals at every token of prompt and question, and no answer."""
        ...

    def head(self) -> OutputHead | None:
        """What turns stored hidden states into logits; None where none are given."""
        ...

    def model_and_head(self) -> tuple[Any, OutputHead]:
        """For a live teacher: the model itself."""
        ...

    def close(self) -> None:
        """Frees memory."""
        ...


class TextTeacher:
    """What teachers have in common that give text and nothing else."""

    identity: dict[str, Any]
    tokenizer: Any | None = None

    def score_prompts(self, problems: Sequence[Problem], strategy: Strategy, max_tokens: int) -> list[Record]:
        raise StudyError(
            f'a teacher of kind {self.identity["kind"]} cannot score prompts; objective published needs teacher.kind = "transformers"'
        )

    def head(self) -> OutputHead | None:
        return None

    def model_and_head(self) -> tuple[Any, OutputHead]:
        raise StudyError(
            f'a teacher of kind {self.identity["kind"]} cannot be live; objective.teacher = "live" needs teacher.kind = "transformers"'
        )

    def close(self) -> None:
        pass


# --- in process -----------------------------------------------------------------------------------------------------


def uses_chat(config: TeacherConfig, tokenizer: Any) -> bool:
    """Whether prompts go through the chat template."""
    has = getattr(tokenizer, "chat_template", None) is not None
    if config.chat and not has:
        raise StudyError(f"teacher.chat is true, but the tokenizer of {config.model} has no chat template; leave it out")
    return has if config.chat is None else config.chat


def row_seed(config: TeacherConfig, problem: Problem) -> int:
    """A seed for each problem: with one for all, servers would draw every answer from the same random numbers."""
    digest = hashlib.sha256(f"{config.seed}:{record_key(problem.question, problem.answer)}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1  # 31 bits: some servers take no more


def stack_topk(tops: Sequence[Mapping[int, float]], k: int, place: str) -> dict[str, Tensor]:
    """The k likeliest of each step, [token, k], likeliest first."""
    ranked = [sorted(top.items(), key=lambda item: -item[1])[:k] for top in tops]
    if any(len(top) < k for top in ranked):
        raise StudyError(f"{place}: {min(map(len, ranked))} log-probabilities at a token, {k} were asked for; lower teacher.top_k")
    return {
        "topk_ids": torch.from_numpy(np.asarray([[i for i, _ in top] for top in ranked], np.int32).reshape(-1, k)),
        "topk_log_probs": torch.from_numpy(np.asarray([[p for _, p in top] for top in ranked], np.float32).reshape(-1, k)),
    }


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of all that shapes tokens (vocabulary, merges, how text is cut, added tokens) and of the chat template."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # of the last call
        whole.pop(state, None)
    return hashlib.sha256(json.dumps([whole, getattr(tokenizer, "chat_template", None)], sort_keys=True).encode()).hexdigest()


def same_tokenizer(teacher: Any, student: Any) -> str | None:
    """None where both give every id the same token and cut text alike; else what differs first, in words.

    Sizes of matrices play no part: families pad them differently.
    """
    theirs, ours = ({number: token for token, number in tokenizer.get_vocab().items()} for tokenizer in (teacher, student))
    for number in sorted({*theirs, *ours}):
        if theirs.get(number) != ours.get(number):
            return f"id {number} is {theirs.get(number)!r} to the teacher and {ours.get(number)!r} to the student"
    text = "\n".join(teacher.batch_decode([[number] for number in sorted(theirs)]))  # each token's own text tries how it is put together
    one, two = (tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for tokenizer in (teacher, student))
    if one == two:
        return None
    at = next(i for i, (a, b) in enumerate(zip_longest(one, two)) if a != b)
    cuts = [[theirs[number] for number in ids[at : at + 4]] for ids in (one, two)]
    return f"they cut the same text differently ({cuts[0]} and {cuts[1]} ...)"
