"""TODO_DOC distill/objectives/published.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill.records.record import Record
from distill.sources.texts import Text, Texts, some_texts


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
        StudyError: nothing is left.
    """
    order = sorted(range(len(records)), key=lambda i: f"Question {i + 1}") if lexicographic else range(len(records))
    texts, shortened = [], 0
    for record, other in zip(records, (records[i] for i in order), strict=True):
        asked, answer = tokenizer(record.question)["input_ids"], tokenizer(record.reference)["input_ids"]
        shortened += max(len(asked), len(answer)) > max_tokens
        rows = min(len(asked), len(answer), max_tokens, *([len(other.prompt_ids)] if signals else []))
        texts.append(Text(tuple(asked[:rows]), 0, tuple(answer[:rows]), other, record.index, other.prompt_ids[:rows]))
    counts = {"records": len(records), "kept": len(texts), "shortened": shortened}
    some_texts(texts, counts)
    return Texts(tuple(texts), counts)
