"""TODO_DOC distill/objectives/aligned.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from distill.records.record import Record
from distill.sources.texts import Text, Texts, some_texts
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
        StudyError: nothing is left, the tokenizer has no end-of-text token, or a context of max_tokens already.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise StudyError("the student's tokenizer has no end-of-text token, so it could not learn to end its answers")
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
            raise StudyError(
                f"problem {record.index}: the question alone takes {len(given)} tokens, but objective.max_tokens is {max_tokens}; raise it"
            )
        counts["shortened"] += len(response) > room
        response = response[:room]
        asked = record.prompt_ids + record.response_ids[: len(response) - 1] if record.response_ids else ()
        texts.append(
            Text((*given, *response[:-1]), len(given) - 1, tuple(response), record, record.index, asked, len(record.prompt_ids) - 1)
        )
    counts["kept"] = len(texts)
    some_texts(texts, counts)
    return Texts(tuple(texts), counts)
