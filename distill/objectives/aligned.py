"""The aligned objective: the student reads its own context and the teacher's response; both models score the response's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from distill.records.record import Record
from distill.sources.texts import Text, Texts, require_texts
from distill.strategies import Strategy
from interp.tables.errors import StudyError


def aligned_texts(
    records: Sequence[Record],
    tokenizer: Any,
    context: Strategy,
    chat: bool,
    *,
    max_tokens: int,
    same_tokenizer: bool,
    keep: Callable[[Record], bool] | None = None,
    drop_truncated: bool = False,
) -> Texts:
    """Return texts of the student's own context followed by the teacher's response.

    If the tokenizers are the same, responses keep the teacher's token ids. Otherwise, and if the teacher gave only text, the text is
    tokenized, and the end-of-text token is appended if the teacher ended its answer.

    Args:
        records: one for each problem.
        tokenizer: the student's.
        context: what the student reads in addition to the question, the same for all conditions.
        chat: use the chat template.
        max_tokens: longest text; longer responses are shortened.
        same_tokenizer: the teacher's ids are the student's.
        keep: returns False for a record to drop, such as a wrong answer.
        drop_truncated: drop answers that reached the teacher's limit.

    Raises:
        StudyError: no text is left, the tokenizer has no end-of-text token, or a context alone has max_tokens.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise StudyError("the student's tokenizer has no end-of-text token, so the student could not learn to end its answers")
    counts: dict[str, int] = dict.fromkeys(["records", "kept", "empty", "wrong", "truncated", "dropped_truncated", "shortened"], 0)
    texts = []
    for record in records:
        counts["records"] += 1
        counts["truncated"] += record.finish == "length"
        dropped = _reason_to_drop(record, keep, drop_truncated)
        if dropped is not None:
            counts[dropped] += 1
            continue
        prompt = context.encode(tokenizer, record.question, chat)
        response = _response_ids(record, tokenizer, chat, same_tokenizer)
        room = max_tokens - len(prompt)
        if room < 1:
            raise StudyError(
                f"problem {record.index}: the question alone has {len(prompt)} tokens, but objective.max_tokens is {max_tokens}; "
                "increase it"
            )
        counts["shortened"] += len(response) > room
        texts.append(_text(record, prompt, response[:room]))
    counts["kept"] = len(texts)
    require_texts(texts, counts)
    return Texts(tuple(texts), counts)


def _reason_to_drop(record: Record, keep: Callable[[Record], bool] | None, drop_truncated: bool) -> str | None:
    """Return the count that a dropped record adds to; None for a record to train on."""
    if not record.text.strip():
        return "empty"
    if record.finish == "length" and drop_truncated:
        return "dropped_truncated"
    return "wrong" if keep is not None and not keep(record) else None


def _response_ids(record: Record, tokenizer: Any, chat: bool, same_tokenizer: bool) -> list[int]:
    if same_tokenizer and record.response_ids:
        return list(record.response_ids)
    text = record.text if chat or record.text[0].isspace() else f" {record.text}"
    return tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * (record.finish == "eos")


def _text(record: Record, prompt: Sequence[int], response: Sequence[int]) -> Text:
    teacher_ids = record.prompt_ids + record.response_ids[: len(response) - 1] if record.response_ids else ()
    return Text(
        ids=(*prompt, *response[:-1]),
        first=len(prompt) - 1,
        targets=tuple(response),
        record=record,
        index=record.index,
        teacher_ids=teacher_ids,
        teacher_first=len(record.prompt_ids) - 1,
    )
