"""What each token of a text is: its region (template, question, response) and its role (numbers by kind, operators, special).

Roles are found in the text, by character, and carried to tokens by the tokenizer's offsets: a tokenizer may split digits singly or in
threes, or glue a space or "$" to them, and a token has a number's role when it covers at least one of the number's characters.
Number words ("two", "half") have no role.
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
OPERATOR = re.compile(r"[+\-*/=×÷−–·]|\\(?:times|cdot|div)(?![a-zA-Z])|(?<=\s)x(?=\s)|(?<=\d)x(?=\d)")
FINAL_MARK = re.compile(r"####|\\boxed\{|answer\s*(?:is\b(?!\s+not)|:|=)", re.IGNORECASE)
BESIDE_OPERATOR = " \t\n$€£%()[]{}\\<>"
BEFORE_RESULT = " \t$€£-−*({\\"
_SENTINEL = "<<the question stands here>>"
PLAIN_PROMPT = ("Question: ", "\nAnswer:")
"""What stands before and after the question where no chat template is used."""


@dataclass(frozen=True)
class AnnotatedText:
    """One text as a model reads it.

    Attributes:
        example: number of the example, the key of every table.
        text: all characters, template included.
        ids: token ids, [token].
        offsets: first and one past the last character that each token covers, [token, 2].
        regions: index into `TOKEN_REGIONS`, [token].
        roles: index into `ROLES`, [token].
        is_query: the model read the token and attended from it, [token].
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
        """The characters that each token covers, [token]."""
        return [self.text[a:b] for a, b in self.offsets]

    def in_role(self, *names: str) -> np.ndarray:
        """True where a token has one of the roles, [token]."""
        return np.isin(self.roles, [ROLES.index(name) for name in names])

    def in_region(self, name: str) -> np.ndarray:
        """True where a token stands in a region of `interp.tables.schema.REGIONS`, [token]."""
        return np.ones(len(self), bool) if name == "all" else self.regions == TOKEN_REGIONS.index(name)


def number_roles(text: str, region: str) -> np.ndarray:
    r"""Role of every character of a question or a response, as index into `ROLES`.

    - In the question, every number is a `question_number`.
    - In the response, the first number after a final mark ("####", "the answer is", "\boxed{") is the `final_answer`; a number
      right after "=" or after a calculator mark's ">>" is an `intermediate_result`; every other number is an `operand`.
    - `+ - * / x =` between two numbers is an `operator`, across spaces, brackets, "$" and "%".

    Args:
        text: the question or the response alone.
        region: "question" or "response".
    """
    roles = np.zeros(len(text), np.uint8)
    numbers = list(NUMBER.finditer(text))
    digits = {at for found in numbers for at in (found.start(), found.end() - 1)}
    for found in OPERATOR.finditer(text):
        left, right = found.start() - 1, found.end()
        beside = BESIDE_OPERATOR + "*" * (found[0] == "=")  # a result may stand in bold
        while left >= 0 and text[left] in beside:
            left -= 1
        while right < len(text) and text[right] in beside:
            right += 1
        if left in digits and right in digits:
            roles[found.start() : found.end()] = ROLES.index("operator")
    marks = [mark.end() for mark in FINAL_MARK.finditer(text)] if region == "response" else []
    finals = {min((n.start() for n in numbers if n.start() >= mark), default=-1) for mark in marks}
    for found in numbers:
        role = "question_number" if region == "question" else "operand"
        if found.start() in finals:
            role = "final_answer"
        elif region == "response":
            before = text[: found.start()].rstrip(BEFORE_RESULT)
            if before.endswith(("=", ">>")):
                role = "intermediate_result"
        roles[found.start() : found.end()] = ROLES.index(role)
    return roles


def _over_tokens(by_character: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The largest code among each token's characters; 0 where it covers none."""
    return np.asarray([by_character[a:b].max(initial=0) for a, b in offsets], np.uint8)


@dataclass(frozen=True)
class _Source:
    """Where things stand in a text, so that it can be annotated again when a model has written on."""

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
    # a token that holds a part of a character, and so covers none, stands where the character does
    token_regions = _over_tokens(regions, np.maximum(offsets, offsets[:, :1] + [0, 1]))
    token_roles = _over_tokens(roles, offsets)
    special = np.isin(np.asarray(ids), list(special_ids))
    token_roles[special] = ROLES.index("special")
    token_regions[special] = TOKEN_REGIONS.index("template")
    is_query = np.ones(len(ids), bool)
    return AnnotatedText(example, text, np.asarray(ids, np.int64), offsets, token_regions, token_roles, is_query)


@dataclass(frozen=True)
class Tokens:
    """A batch of annotated texts, ready for a model's forward and for `record`.

    Attributes:
        texts: the texts, in batch order.
        padding_side: "right" or "left".
        pad_id: token id that fills the batch.
        tokenizer: what made the ids; needed only when a model writes on.
        sources: where questions stand, likewise.
        layout: first token of each text and width of the batch, where a model wrote on and padding may be on both sides.
    """

    texts: tuple[AnnotatedText, ...]
    padding_side: str = "right"
    pad_id: int = 0
    tokenizer: Any = field(default=None, repr=False, compare=False)
    sources: tuple[_Source, ...] = field(default=(), repr=False, compare=False)
    layout: tuple[tuple[int, ...], int] | None = None

    def __post_init__(self) -> None:
        if not self.texts:
            raise InputError("no texts: at least one is needed")
        if self.padding_side not in ("right", "left"):
            raise InputError(f"padding_side is {self.padding_side!r}; allowed: right, left")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def width(self) -> int:
        """Tokens of the padded batch."""
        return max(len(text) for text in self.texts) if self.layout is None else self.layout[1]

    @property
    def starts(self) -> tuple[int, ...]:
        """First real token of each text in the padded batch."""
        if self.layout is not None:
            return self.layout[0]
        return tuple(self.width - len(t) if self.padding_side == "left" else 0 for t in self.texts)

    def pad(self, rows: Sequence[np.ndarray], fill: int | float) -> np.ndarray:
        """Per-text arrays [..., token] as one padded array [batch, ..., width]."""
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
        """Some of the texts as a batch of their own."""
        return Tokens(
            tuple(self.texts[i] for i in indices),
            padding_side or self.padding_side,
            self.pad_id,
            self.tokenizer,
            tuple(self.sources[i] for i in indices) if self.sources else (),
        )

    def extend(self, new_ids: np.ndarray, stop_ids: Sequence[int]) -> Tokens:
        """The texts with what a model wrote after them, annotated anew.

        Args:
            new_ids: [batch, new]; what follows the first stop id is dropped.
            stop_ids: ids that end a text; the stop itself is kept.
        """
        if any(text.in_region("response").any() for text in self.texts):
            raise InputError("these texts hold a response already: a model writes on from prompts, annotate(tokenizer, question)")
        if any(start + len(text) != self.width for start, text in zip(self.starts, self.texts, strict=True)):
            raise InputError("prompts of different length must be padded on the left before a model writes on")
        if self.tokenizer is None or not self.sources:
            raise InputError("these tokens were made without a tokenizer, so what a model writes on cannot be annotated")
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
        """The texts as rows of the `inputs` table."""
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
    """Text of generated ids and the characters that each token adds to it, [token, 2].

    The ids are the model's own and are never tokenised again; a token that holds a part of a character only gets the whole character,
    or nothing where a later token completes it.
    """
    ends = [len(tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False)) for n in range(len(ids) + 1)]
    ends = np.minimum.accumulate(np.asarray(ends, np.int64)[::-1])[::-1]
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False), np.stack([ends[:-1], ends[1:]], 1)


def render_prompt(tokenizer: Any, question: str, chat: bool) -> tuple[str, tuple[int, int]]:
    """The text before a response, and where the question stands in it.

    Args:
        tokenizer: with a chat template where `chat` is set.
        question: the problem.
        chat: through the chat template as a user's turn, or plainly as "Question: ... Answer:".

    Raises:
        InputError: the chat template fails, or changes the question's text.
    """
    if not chat:
        before, after = PLAIN_PROMPT
        return before + question + after, (len(before), len(before) + len(question))
    try:
        prompt, frame = (
            tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
            for content in (question, _SENTINEL)
        )
    except Exception as error:  # a template is a program of the checkpoint's: it may raise anything
        raise InputError(f"the chat template failed ({error}); --no-chat reads the problems without it") from error
    before, found, after = frame.rpartition(_SENTINEL)
    inside = prompt[len(before) : len(prompt) - len(after)]
    kept = prompt.startswith(before) and prompt.endswith(after) and inside.strip() == question.strip()
    if not found or not kept:  # many templates trim what they are given; other changes would put the roles in wrong places
        raise InputError("the chat template changes the question's text; --no-chat reads the problems without it")
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
    """Tokenise problems, and say of every token where it stands and which kind of number it belongs to.

    Args:
        tokenizer: a fast tokenizer of transformers (it must give offsets).
        question: one text or several.
        response: what the model is to read after each question; None for the prompt alone, as before `generate`.
        chat: use the chat template; None: where the tokenizer has one.
        examples: numbers of the examples; None counts from 0.
        padding_side: of the batch.

    Raises:
        InputError: no offsets, offsets that do not fit the tokens, no chat template, an empty question, lengths that differ.
    """
    questions = [question] if isinstance(question, str) else list(question)
    responses = [response] if isinstance(response, str) else ([None] * len(questions) if response is None else [*response])
    if len(questions) != len(responses):
        raise InputError(f"{len(questions)} questions but {len(responses)} responses")
    if examples is not None and len(examples) != len(questions):
        raise InputError(f"{len(questions)} questions but {len(examples)} numbers of examples")
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{type(tokenizer).__name__} gives no offsets; a fast tokenizer (tokenizer.json) is needed")
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if chat and not has_template:
        raise InputError("the tokenizer has no chat template; --no-chat reads the problems without it")
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
    """Some converted tokenizers give offsets that are off by a space or empty: a token that shows a digit must cover one."""
    pieces = text.pieces
    firsts = {token_id: at for at, token_id in reversed(list(enumerate(text.ids.tolist())))}
    for token_id, at in firsts.items():
        shown = tokenizer.decode([token_id])
        if any(c.isnumeric() for c in shown) and not any(c.isnumeric() for c in pieces[at]):
            raise InputError(f"the tokenizer's offsets do not fit its tokens: token {at} decodes to {shown!r} but covers {pieces[at]!r}")
