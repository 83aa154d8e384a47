"""Annotated texts: the region of each token (template, question, response) and its role (kinds of numbers, operators, special).

Roles are found in the text by character, and mapped to tokens by the tokenizer's offsets. A tokenizer may split numbers into single digits
or groups of three, or join a space or "$" to them. A token has a number's role if it covers at least one of the number's characters. Number
words ("two", "half") have no role.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.tables.errors import InputError
from interp.tables.schema import ROLES, TOKEN_REGIONS

if TYPE_CHECKING:
    from torch import Tensor

NUMBER_ROLES = ("question_number", "operand", "intermediate_result", "final_answer")
NUMBER = re.compile(r"\d+(?:,\d{3}(?!\d))*(?:\.\d+)?|\.\d+")
_OPERATOR = re.compile(r"[+\-*/=×÷−–·]|\\(?:times|cdot|div)(?![a-zA-Z])|(?<=\s)x(?=\s)|(?<=\d)x(?=\d)")
_FINAL_MARK = re.compile(r"####|\\boxed\{|answer\s*(?:is\b(?!\s+not)|:|=)", re.IGNORECASE)
_NEXT_TO_OPERATOR = " \t\n$€£%()[]{}\\<>"
_BEFORE_RESULT = " \t$€£-−*({\\"
_SENTINEL = "<<question goes here>>"
_PLAIN_PROMPT = ("Question: ", "\nAnswer:")
"""Text before and after the question if no chat template is used."""


@dataclass(frozen=True)
class AnnotatedText:
    """One text, as tokens that a model reads.

    Attributes:
        example: number of the example, a key of every table.
        text: all characters, including the template.
        ids: token ids, [token].
        offsets: first and one-past-last character that each token covers, [token, 2].
        regions: index into `TOKEN_REGIONS`, [token].
        roles: index into `ROLES`, [token].
        is_query: whether the model read the token and attended from it, [token].
    """

    example: int
    text: str
    ids: np.ndarray
    offsets: np.ndarray
    regions: np.ndarray
    roles: np.ndarray
    is_query: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def pieces(self) -> list[str]:
        """Characters that each token covers, [token]."""
        return [self.text[a:b] for a, b in self.offsets]

    def in_role(self, *names: str) -> np.ndarray:
        """Return whether each token has one of the roles, [token]."""
        return np.isin(self.roles, [ROLES.index(name) for name in names])

    def in_region(self, name: str) -> np.ndarray:
        """Return whether each token is in a region of `interp.tables.schema.REGIONS`, [token]."""
        return np.ones(len(self), bool) if name == "all" else self.regions == TOKEN_REGIONS.index(name)


def number_roles(text: str, region: str) -> np.ndarray:
    r"""Return the role of every character of a question or a response, as index into `ROLES`.

    - In the question, every number is a `question_number`.
    - In the response, the first number after "####", "the answer is" or "\boxed{" is the `final_answer`; a number right after "=" or
      after the ">>" of a calculator annotation is an `intermediate_result`; every other number is an `operand`.
    - `+ - * / x =` between two numbers is an `operator`, also with spaces, brackets, "$" or "%" in between.

    Args:
        text: the question or the response alone.
        region: "question" or "response".
    """
    roles = np.zeros(len(text), np.uint8)
    numbers = list(NUMBER.finditer(text))
    digits = {at for found in numbers for at in (found.start(), found.end() - 1)}
    for found in _OPERATOR.finditer(text):
        left, right = found.start() - 1, found.end()
        skipped = _NEXT_TO_OPERATOR + "*" * (found[0] == "=")  # a result may be in bold
        while left >= 0 and text[left] in skipped:
            left -= 1
        while right < len(text) and text[right] in skipped:
            right += 1
        if left in digits and right in digits:
            roles[found.start() : found.end()] = ROLES.index("operator")
    marks = [mark.end() for mark in _FINAL_MARK.finditer(text)] if region == "response" else []
    finals = {min((n.start() for n in numbers if n.start() >= mark), default=-1) for mark in marks}
    for found in numbers:
        role = "question_number" if region == "question" else "operand"
        if found.start() in finals:
            role = "final_answer"
        elif region == "response":
            before = text[: found.start()].rstrip(_BEFORE_RESULT)
            if before.endswith(("=", ">>")):
                role = "intermediate_result"
        roles[found.start() : found.end()] = ROLES.index(role)
    return roles


def _over_tokens(by_character: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the largest code among each token's characters; 0 if it covers none."""
    return np.asarray([by_character[a:b].max(initial=0) for a, b in offsets], np.uint8)


@dataclass(frozen=True)
class _Source:
    """Character spans of the regions of a text, with which the text can be annotated again after generation."""

    spans: dict[str, tuple[int, int]]


def _annotated(
    example: int,
    text: str,
    ids: Sequence[int],
    offsets: np.ndarray,
    spans: dict[str, tuple[int, int]],
    special_ids: frozenset[int],
) -> AnnotatedText:
    regions, roles = np.zeros(len(text), np.uint8), np.zeros(len(text), np.uint8)
    for region, (a, b) in spans.items():
        regions[a:b] = TOKEN_REGIONS.index(region)
        roles[a:b] = number_roles(text[a:b], region)
    # a token with only a part of a character covers none, but is in the region of that character
    token_regions = _over_tokens(regions, np.maximum(offsets, offsets[:, :1] + [0, 1]))
    token_roles = _over_tokens(roles, offsets)
    special = np.isin(np.asarray(ids), list(special_ids))
    token_roles[special] = ROLES.index("special")
    token_regions[special] = TOKEN_REGIONS.index("template")
    is_query = np.ones(len(ids), bool)
    return AnnotatedText(example, text, np.asarray(ids, np.int64), offsets, token_regions, token_roles, is_query)


@dataclass(frozen=True)
class Tokens:
    """A batch of annotated texts, for a model's forward and for `record`.

    Attributes:
        texts: the texts, in batch order.
        padding_side: "right" or "left".
        pad_id: token id of padding.
        tokenizer: the tokenizer that made the ids; needed only for generation.
        sources: spans of the questions; needed only for generation.
        layout: first token of each text, and width of the batch; set after generation, when padding may be on both sides.
    """

    texts: tuple[AnnotatedText, ...]
    padding_side: str = "right"
    pad_id: int = 0
    tokenizer: Any = field(default=None, repr=False, compare=False)
    sources: tuple[_Source, ...] = field(default=(), repr=False, compare=False)
    layout: tuple[tuple[int, ...], int] | None = None

    def __post_init__(self) -> None:
        if not self.texts:
            raise InputError("texts are empty; at least one text is needed")
        if self.padding_side not in ("right", "left"):
            raise InputError(f"padding_side is {self.padding_side!r}; allowed: right, left")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def width(self) -> int:
        """Number of tokens of the padded batch."""
        return max(len(text) for text in self.texts) if self.layout is None else self.layout[1]

    @property
    def starts(self) -> tuple[int, ...]:
        """First real token of each text in the padded batch."""
        if self.layout is not None:
            return self.layout[0]
        return tuple(self.width - len(t) if self.padding_side == "left" else 0 for t in self.texts)

    def pad(self, rows: Sequence[np.ndarray], fill: int | float) -> np.ndarray:
        """Return arrays of each text, [..., token], as one padded array, [batch, ..., width]."""
        shape = (len(self), *rows[0].shape[:-1], self.width)
        padded = np.full(shape, fill, rows[0].dtype)
        for target, start, row in zip(padded, self.starts, rows, strict=True):
            target[..., start : start + row.shape[-1]] = row
        return padded

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` of the padded batch, [batch, width], on the CPU: `model(**tokens.inputs)`."""
        import torch

        ids = self.pad([t.ids for t in self.texts], self.pad_id)
        real = self.pad([np.ones(len(t), np.int64) for t in self.texts], 0)
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(real)}
        if self.padding_side == "left":
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_(min=0)
        return inputs

    def select(self, indices: Sequence[int], padding_side: str | None = None) -> Tokens:
        """Return some of the texts as a new batch."""
        return Tokens(
            tuple(self.texts[i] for i in indices),
            padding_side or self.padding_side,
            self.pad_id,
            self.tokenizer,
            tuple(self.sources[i] for i in indices) if self.sources else (),
        )

    def extend(self, new_ids: np.ndarray, stop_ids: Sequence[int]) -> Tokens:
        """Return the texts with generated tokens appended and annotated.

        Args:
            new_ids: generated ids, [batch, new]; those after the first stop id are dropped.
            stop_ids: ids that end a text; the stop id itself is kept.

        Raises:
            InputError: a text has a response already, prompts are not padded on the left, or the batch has no tokenizer.
        """
        if any(text.in_region("response").any() for text in self.texts):
            raise InputError("a text has a response already; generate from prompts, made with annotate(tokenizer, question)")
        if any(start + len(text) != self.width for start, text in zip(self.starts, self.texts, strict=True)):
            raise InputError('prompts of different length are padded on the right; generation needs padding_side="left"')
        if self.tokenizer is None or not self.sources:
            raise InputError(
                "the tokens have no tokenizer, so generated text cannot be annotated; make them with annotate(tokenizer, question)"
            )
        special = frozenset(self.tokenizer.all_special_ids)
        texts = []
        for text, source, row in zip(self.texts, self.sources, np.asarray(new_ids), strict=True):
            ends = np.flatnonzero(np.isin(row, list(stop_ids)))
            kept = row[: ends[0] + 1] if len(ends) else row
            response, offsets = decoded_offsets(self.tokenizer, kept.tolist())
            start = len(text.text)
            texts.append(
                _annotated(
                    text.example,
                    text.text + response,
                    [*text.ids.tolist(), *kept.tolist()],
                    np.concatenate([text.offsets, offsets + start]),
                    {**source.spans, "response": (start, start + len(response))},
                    special,
                )
            )
        layout = (self.starts, self.width + np.asarray(new_ids).shape[1])
        return Tokens(tuple(texts), self.padding_side, self.pad_id, self.tokenizer, self.sources, layout)

    def to_frame(self) -> pd.DataFrame:
        """Return the texts as rows of the `inputs` table."""
        frames = [
            pd.DataFrame(
                {
                    "example": t.example,
                    "position": np.arange(len(t)),
                    "token_id": t.ids,
                    "token": t.pieces,
                    "region": np.asarray(TOKEN_REGIONS)[t.regions],
                    "role": np.asarray(ROLES)[t.roles],
                    "is_query": t.is_query,
                }
            )
            for t in self.texts
        ]
        return pd.concat(frames, ignore_index=True)


def decoded_offsets(tokenizer: Any, ids: Sequence[int]) -> tuple[str, np.ndarray]:
    """Return the text of generated ids, and the characters that each token adds to it, [token, 2].

    The ids are kept as the model generated them. A token that completes a character gets that character, and a token with an earlier part
    of it gets nothing.
    """
    ends = [len(tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False)) for n in range(len(ids) + 1)]
    ends = np.minimum.accumulate(np.asarray(ends, np.int64)[::-1])[::-1]
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False), np.stack([ends[:-1], ends[1:]], 1)


def render_prompt(tokenizer: Any, question: str, chat: bool) -> tuple[str, tuple[int, int]]:
    """Return the text before a response, and the span of the question in it.

    Args:
        tokenizer: must have a chat template if `chat` is set.
        question: the problem.
        chat: whether to use the chat template, with the question as the user's turn, or plain "Question: ... Answer:".

    Raises:
        InputError: the chat template fails, or changes the text of the question.
    """
    if not chat:
        before, after = _PLAIN_PROMPT
        return before + question + after, (len(before), len(before) + len(question))
    try:
        prompt, frame = (
            tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
            for content in (question, _SENTINEL)
        )
    except Exception as error:  # a template is a program from the checkpoint and may raise anything
        raise InputError(f"the chat template failed ({error}); use --no-chat to read problems without it") from error
    before, found, after = frame.rpartition(_SENTINEL)
    inside = prompt[len(before) : len(prompt) - len(after)]
    kept = prompt.startswith(before) and prompt.endswith(after) and inside.strip() == question.strip()
    if not found or not kept:  # many templates strip the question; other changes would shift the roles
        raise InputError("the chat template changes the text of the question; use --no-chat to read problems without it")
    return prompt, (len(before), len(before) + len(inside))


def annotate(
    tokenizer: Any,
    question: str | Sequence[str],
    response: str | Sequence[str] | None = None,
    *,
    chat: bool | None = None,
    examples: Sequence[int] | None = None,
    padding_side: str = "right",
) -> Tokens:
    """Return tokenized problems, annotated with the region and the role of every token.

    Args:
        tokenizer: a fast tokenizer of transformers, which gives offsets.
        question: one question or several.
        response: the text that the model reads after each question; None for the prompt alone, as before `generate`.
        chat: whether to use the chat template; None uses it if the tokenizer has one.
        examples: numbers of the examples; None counts from 0.
        padding_side: padding side of the batch.

    Raises:
        InputError: the tokenizer gives no offsets, wrong offsets, or has no chat template; a question is empty; or lengths differ.
    """
    questions = [question] if isinstance(question, str) else list(question)
    responses = [response] if isinstance(response, str) else ([None] * len(questions) if response is None else [*response])
    if len(questions) != len(responses):
        raise InputError(f"{len(questions)} questions but {len(responses)} responses; one response per question is needed")
    if examples is not None and len(examples) != len(questions):
        raise InputError(f"{len(questions)} questions but {len(examples)} example numbers; one number per question is needed")
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{type(tokenizer).__name__} gives no offsets; use a fast tokenizer (tokenizer.json)")
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if chat and not has_template:
        raise InputError("the tokenizer has no chat template; use --no-chat to read problems without it")
    chat = has_template if chat is None else chat
    special = frozenset(tokenizer.all_special_ids)
    texts, sources = [], []
    for number, asked, answered in zip(examples or range(len(questions)), questions, responses, strict=True):
        if not asked.strip():
            raise InputError(f"example {number}: the question is empty")
        prompt, span = render_prompt(tokenizer, asked, chat)
        spans, text = {"question": span}, prompt
        if answered is not None:
            text = prompt + ("" if chat else " ") + answered
            spans["response"] = (len(text) - len(answered), len(text))
        coded = tokenizer(text, add_special_tokens=not chat, return_offsets_mapping=True)
        offsets = np.asarray(coded["offset_mapping"], np.int64).reshape(-1, 2)
        annotated = _annotated(number, text, coded["input_ids"], offsets, spans, special)
        _check_offsets(tokenizer, annotated)
        texts.append(annotated)
        sources.append(_Source({"question": span}))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Tokens(tuple(texts), padding_side, 0 if pad is None else pad, tokenizer, tuple(sources))


def _check_offsets(tokenizer: Any, text: AnnotatedText) -> None:
    """Raise if a token that decodes to a digit covers none: offsets of some converted tokenizers are empty or off by a space."""
    pieces = text.pieces
    firsts = {token_id: at for at, token_id in reversed(list(enumerate(text.ids.tolist())))}
    for token_id, at in firsts.items():
        shown = tokenizer.decode([token_id])
        if any(c.isnumeric() for c in shown) and not any(c.isnumeric() for c in pieces[at]):
            raise InputError(
                f"the tokenizer's offsets are wrong: token {at} decodes to {shown!r} but covers {pieces[at]!r}; use another tokenizer.json"
            )
