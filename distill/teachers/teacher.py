"""What every teacher can do, how one is opened, and what several kinds of teachers share."""

from __future__ import annotations

import hashlib
import json
import pkgutil
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from distill.problems.sets import Problem
from distill.records.record import Record, record_key
from distill.strategies import Strategy
from distill.teachers.catalog import TEACHERS, in_process_kinds
from distill.teachers.options import TeacherConfig
from interp.checkpoints.unembedding import OutputHead
from interp.tables.errors import StudyError


class Teacher(Protocol):
    """A source of answers.

    Attributes:
        identity: everything that decides the answers, apart from strategy and sampling, as JSON; its `name` is for people.
    """

    identity: dict[str, Any]

    @property
    def tokenizer(self) -> Any | None:
        """The teacher's tokenizer; None if its answers are text without token ids."""
        ...

    def answer(self, problems: Sequence[Problem], strategy: Strategy) -> list[Record]:
        """Return one record for each problem, in order, with the signals of the settings."""
        ...

    def score_prompts(self, problems: Sequence[Problem], strategy: Strategy, max_tokens: int) -> list[Record]:
        """Return records without answers, with the signals at every token of instruction and question (the published objective)."""
        ...

    def head(self) -> OutputHead | None:
        """Return the output head that turns stored hidden states into logits; None if no hidden states are stored."""
        ...

    def model_and_head(self) -> tuple[Any, OutputHead]:
        """Return the model and its output head, for a live teacher."""
        ...

    def close(self) -> None:
        """Free the memory of the model."""
        ...


def open_teacher(config: TeacherConfig) -> Teacher:
    """Return a teacher; its weights are loaded when it first answers.

    Raises:
        StudyError: the kind of teacher cannot give the signal, or a setting that it needs is missing.
        CheckpointError: the model cannot be found.
    """
    kind = TEACHERS[config.kind]
    if config.signal not in kind.signals:
        raise StudyError(
            f"teacher.signal is {config.signal!r}, which a teacher of kind {config.kind} cannot give; allowed: {', '.join(kind.signals)}"
        )
    return pkgutil.resolve_name(kind.path)(config)


class TextTeacher:
    """Base of the teachers whose model cannot be called in this process."""

    identity: dict[str, Any]
    tokenizer: Any | None = None

    def score_prompts(self, problems: Sequence[Problem], strategy: Strategy, max_tokens: int) -> list[Record]:
        """Raise, because this kind of teacher cannot score prompts."""
        raise StudyError(
            f"a teacher of kind {self.identity['kind']} cannot score prompts; objective published needs teacher.kind = {in_process_kinds()}"
        )

    def head(self) -> OutputHead | None:
        """Return None: no hidden states are stored."""
        return None

    def model_and_head(self) -> tuple[Any, OutputHead]:
        """Raise, because this kind of teacher cannot be live."""
        raise StudyError(
            f"a teacher of kind {self.identity['kind']} cannot be live; "
            f'objective.teacher = "live" needs teacher.kind = {in_process_kinds()}'
        )

    def close(self) -> None:
        """Do nothing: no memory is held."""


def uses_chat(config: TeacherConfig, tokenizer: Any) -> bool:
    """Return whether prompts use the chat template."""
    has = getattr(tokenizer, "chat_template", None) is not None
    if config.chat and not has:
        raise StudyError(f"teacher.chat is true, but the tokenizer of {config.model} has no chat template; leave it out")
    return has if config.chat is None else config.chat


def row_seed(config: TeacherConfig, problem: Problem) -> int:
    """Return a seed for a problem; with one seed for all, a server draws every answer from the same random numbers."""
    digest = hashlib.sha256(f"{config.seed}:{record_key(problem.question, problem.answer)}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1  # 31 bits: some servers refuse more


def stack_topk(tops: Sequence[Mapping[int, float]], k: int, place: str) -> dict[str, Tensor]:
    """Return the k most likely tokens at each position, [token, k], the most likely first.

    Args:
        tops: log-probability by token id, for each position.
        k: number of tokens to keep.
        place: start of the error message.

    Raises:
        StudyError: a position has fewer than k log-probabilities.
    """
    ranked = [sorted(top.items(), key=lambda item: -item[1])[:k] for top in tops]
    if any(len(top) < k for top in ranked):
        raise StudyError(f"{place}: {min(map(len, ranked))} log-probabilities at a token instead of {k}; lower teacher.top_k")
    return {
        "topk_ids": torch.from_numpy(np.asarray([[i for i, _ in top] for top in ranked], np.int32).reshape(-1, k)),
        "topk_log_probs": torch.from_numpy(np.asarray([[p for _, p in top] for top in ranked], np.float32).reshape(-1, k)),
    }


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the SHA-256 of everything that decides tokens (vocabulary, merges, splitting, added tokens) and of the chat template."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # left over from the last call
        content.pop(state, None)
    return hashlib.sha256(json.dumps([content, getattr(tokenizer, "chat_template", None)], sort_keys=True).encode()).hexdigest()


def same_tokenizer(teacher: Any, student: Any) -> str | None:
    """Return None if two tokenizers give each id the same token and split text in the same way; else the first difference in words.

    Sizes of embedding matrices are ignored, because models of one family pad them differently.
    """
    theirs, ours = ({number: token for token, number in tokenizer.get_vocab().items()} for tokenizer in (teacher, student))
    for number in sorted({*theirs, *ours}):
        if theirs.get(number) != ours.get(number):
            return f"id {number} is {theirs.get(number)!r} to the teacher and {ours.get(number)!r} to the student"
    text = "\n".join(
        teacher.batch_decode([[number] for number in sorted(theirs)])
    )  # the text of every token, to compare how the tokenizers split it
    one, two = (tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for tokenizer in (teacher, student))
    if one == two:
        return None
    at = next(i for i, (a, b) in enumerate(zip_longest(one, two)) if a != b)
    cuts = [[theirs[number] for number in ids[at : at + 4]] for ids in (one, two)]
    return f"they split the same text differently ({cuts[0]} and {cuts[1]} ...)"
