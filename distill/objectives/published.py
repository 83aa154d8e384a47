"""The published objective, as the code of arXiv 2412.17846 computes it: positions are matched by index, and nothing is shifted.

The student reads the question. Its hidden state j is scored against the j-th token of the reference solution, and against the teacher's
distribution after the j-th token of prompt and question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill.records.record import Record
from distill.sources.texts import Text, Texts, require_texts


def published_texts(records: Sequence[Record], tokenizer: Any, *, max_tokens: int, signals: bool, lexicographic: bool = False) -> Texts:
    """Return texts of the question alone, with the tokens of the reference solution as targets.

    Args:
        records: one for each problem; with signals of the teacher's prompt if `signals` is set.
        tokenizer: the student's; its special tokens are added to question and solution, as in the published code.
        max_tokens: longest question and longest solution.
        signals: texts are at most as long as the teacher's prompt.
        lexicographic: question i gets the signals of the i-th key in the order "Question 1", "Question 10", "Question 100", ..., as the
            published code reads them.

    Raises:
        StudyError: no text is left.
    """
    order = sorted(range(len(records)), key=lambda i: f"Question {i + 1}") if lexicographic else range(len(records))
    texts, shortened = [], 0
    for record, scored in zip(records, (records[i] for i in order), strict=True):
        question, answer = tokenizer(record.question)["input_ids"], tokenizer(record.reference)["input_ids"]
        shortened += max(len(question), len(answer)) > max_tokens
        rows = min(len(question), len(answer), max_tokens, *([len(scored.prompt_ids)] if signals else []))
        texts.append(
            Text(
                ids=tuple(question[:rows]),
                first=0,
                targets=tuple(answer[:rows]),
                record=scored,
                index=record.index,
                teacher_ids=scored.prompt_ids[:rows],
            )
        )
    counts = {"records": len(records), "kept": len(texts), "shortened": shortened}
    require_texts(texts, counts)
    return Texts(tuple(texts), counts)
