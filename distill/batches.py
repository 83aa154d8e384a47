"""A teacher's records as texts for the student: which hidden states are scored, against which tokens and which of the teacher's rows.

Two alignments, one form. Row j of a text scores hidden state `first + j` of what the student reads, against `targets[j]` and against
row j of the teacher's signals:

- aligned: the student reads its own context and the response; both sides score the response's tokens, each after its own prompt.
- published: as arXiv 2412.17846's code has it. The student reads the question; hidden state j is scored against the j-th token of the
  reference solution, unshifted, and against the teacher's distribution after the j-th token of prompt and question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distill.records import Record
from distill.strategies import Strategy


class BatchError(ValueError):
    """Records that cannot be made into texts for the student."""


@dataclass(frozen=True)
class Text:
    """One text of the student.

    Attributes:
        ids: what the student reads.
        first: position of the first scored hidden state.
        targets: the token that each scored hidden state should give, [row].
        record: where the teacher's signals come from, row by row; None for a blank.
        index: number of the problem that is asked; the order of training hangs on it.
        teacher_ids: what a live teacher reads.
        teacher_first: position of its first scored hidden state.
    """

    ids: tuple[int, ...]
    first: int
    targets: tuple[int, ...]
    record: Record | None
    index: int
    teacher_ids: tuple[int, ...] = ()
    teacher_first: int = 0


@dataclass(frozen=True)
class Texts:
    """The texts of one student, in the problems' order, and what happened to the records.

    Attributes:
        texts: at most one for each record.
        counts: records, kept, and how many were empty, wrong, cut by the teacher's limit, dropped for it, or shortened to max_tokens.
    """

    texts: tuple[Text, ...]
    counts: dict[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 over all tokens that the student reads and is asked for."""
        lines = (f"{t.ids}|{t.first}|{t.targets}\n" for t in self.texts)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def aligned_texts(
    records: Sequence[Record],
    tokenizer: Any,
    context: Strategy,
    chat: bool,
    *,
    max_tokens: int,
    same_tokenizer: bool,
    keep: Callable[[Record], bool] | None = None,
    drop_cut: bool = False,
) -> Texts:
    """The student's own context, then the teacher's response.

    Responses keep the teacher's token ids where the tokenizers are the same; elsewhere, and where the teacher gave text only, the text
    is tokenised, and the end-of-text token put after it where the teacher ended its answer.

    Args:
        records: one a problem.
        tokenizer: the student's.
        context: what stands beside the question, the same for all conditions.
        chat: through the chat template.
        max_tokens: longest text; responses are cut to fit.
        same_tokenizer: the teacher's ids are the student's.
        keep: False drops the record, such as a wrong answer.
        drop_cut: drop answers that the teacher's limit cut.

    Raises:
        BatchError: nothing is left, the tokenizer has no end-of-text token, or a context of max_tokens already.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise BatchError("the student's tokenizer has no end-of-text token, so it could not learn to end its answers")
    counts: dict[str, int] = dict.fromkeys(["records", "kept", "empty", "wrong", "cut", "dropped_cut", "shortened"], 0)
    texts = []
    for record in records:
        counts["records"] += 1
        counts["cut"] += record.finish == "length"
        if not record.text.strip():
            counts["empty"] += 1
            continue
        if record.finish == "length" and drop_cut:
            counts["dropped_cut"] += 1
            continue
        if keep is not None and not keep(record):
            counts["wrong"] += 1
            continue
        given = context.encode(tokenizer, record.question, chat)
        if same_tokenizer and record.response_ids:
            response = list(record.response_ids)
        else:
            said = record.text if chat or record.text[0].isspace() else f" {record.text}"
            response = tokenizer(said, add_special_tokens=False)["input_ids"] + [end] * (record.finish == "eos")
        room = max_tokens - len(given)
        if room < 1:
            raise BatchError(
                f"problem {record.index}: the question alone takes {len(given)} tokens, but objective.max_tokens is {max_tokens}; raise it"
            )
        counts["shortened"] += len(response) > room
        response = response[:room]
        asked = record.prompt_ids + record.response_ids[: len(response) - 1] if record.response_ids else ()
        texts.append(
            Text((*given, *response[:-1]), len(given) - 1, tuple(response), record, record.index, asked, len(record.prompt_ids) - 1)
        )
    counts["kept"] = len(texts)
    _some(texts, counts)
    return Texts(tuple(texts), counts)


def published_texts(records: Sequence[Record], tokenizer: Any, *, max_tokens: int, signals: bool, lexicographic: bool = False) -> Texts:
    """The question alone, index by index against the reference solution and the teacher's prompt (see the module).

    Args:
        records: with signals of the teacher's prompt where `signals` is set.
        tokenizer: the student's; its special tokens are added to question and solution, as the published code does.
        max_tokens: longest question and longest solution.
        signals: the texts are as long as the teacher's too.
        lexicographic: question i gets the signals of the i-th key in the order of "Question 1", "Question 10", "Question 100", ... as
            the published code reads them.

    Raises:
        BatchError: nothing is left.
    """
    order = sorted(range(len(records)), key=lambda i: f"Question {i + 1}") if lexicographic else range(len(records))
    texts, shortened = [], 0
    for record, other in zip(records, (records[i] for i in order), strict=True):
        asked, answer = tokenizer(record.question)["input_ids"], tokenizer(record.reference)["input_ids"]
        shortened += max(len(asked), len(answer)) > max_tokens
        rows = min(len(asked), len(answer), max_tokens, *([len(other.prompt_ids)] if signals else []))
        texts.append(Text(tuple(asked[:rows]), 0, tuple(answer[:rows]), other, record.index, other.prompt_ids[:rows]))
    counts = {"records": len(records), "kept": len(texts), "shortened": shortened}
    _some(texts, counts)
    return Texts(tuple(texts), counts)


def _some(texts: Sequence[Text], counts: dict[str, int]) -> None:
    if not texts:
        seen = ", ".join(f"{name} {number}" for name, number in counts.items() if number)
        raise BatchError(f"no text is left to train on ({seen or 'no records'}); objective.keep and objective.cut say what is dropped")


BLANK = Text((0,), 0, (), None, -1)
"""A text without scored rows: it fills the last batch, so that every rank has one, and changes no gradient."""


def collate(
    texts: Sequence[Text], pad_id: int, *, signals: Sequence[str] = (), live: bool = False, padding_side: str = "right"
) -> dict[str, Any]:
    """One batch.

    Args:
        texts: at least one.
        pad_id: fills up; never scored, never attended to.
        signals: names of the teacher's stored signals to take along.
        live: take along what a live teacher reads.
        padding_side: right or left.

    Returns:
        input_ids and attention_mask [batch, token]; scored [row], positions in the flattened batch; targets [row]; the signals
        [row, ...]; for a live teacher teacher_ids, teacher_mask [batch, token] and teacher_scored [row].
    """
    ids, mask, starts = _pad([t.ids for t in texts], pad_id, padding_side)
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    batch["scored"] = _rows(texts, ids.shape[1], [start + t.first for start, t in zip(starts, texts, strict=True)])
    batch["targets"] = torch.tensor([target for t in texts for target in t.targets], dtype=torch.long)
    for name in signals:
        rows = [t.record.signals[name][: len(t.targets)] for t in texts if t.record is not None and t.targets]
        batch[name] = torch.cat(rows) if rows else None
    if live:
        asked, seen, begins = _pad([t.teacher_ids or (pad_id,) for t in texts], pad_id, padding_side)
        batch["teacher_ids"], batch["teacher_mask"] = asked, seen
        batch["teacher_scored"] = _rows(texts, asked.shape[1], [begin + t.teacher_first for begin, t in zip(begins, texts, strict=True)])
    return batch


def _pad(rows: Sequence[Sequence[int]], pad_id: int, side: str) -> tuple[Tensor, Tensor, list[int]]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    starts = [width - len(row) if side == "left" else 0 for row in rows]
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[number, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
        mask[number, start : start + len(row)] = 1
    return ids, mask, starts


def _rows(texts: Sequence[Text], width: int, firsts: Sequence[int]) -> Tensor:
    """Positions in the flattened batch of every scored hidden state."""
    flat = [number * width + first + j for number, (t, first) in enumerate(zip(texts, firsts, strict=True)) for j in range(len(t.targets))]
    return torch.tensor(flat, dtype=torch.long)
