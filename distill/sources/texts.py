"""A teacher's records as texts for the student: which hidden states are scored, against which tokens and which of the teacher's rows.

Two alignments, one form. Row j of a text scores hidden state `first + j` of what the student reads, against `targets[j]` and against
row j of the teacher's signals:

- aligned: the student reads its own context and the response; both sides score the response's tokens, each after its own prompt.
- published: as arXiv 2412.17846's code has it. The student reads the question; hidden state j is scored against the j-th token of the
  reference solution, unshifted, and against the teacher's distribution after the j-th token of prompt and question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from distill.records.record import Record
from interp.tables.errors import StudyError


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


def some_texts(texts: Sequence[Text], counts: dict[str, int]) -> None:
    if not texts:
        seen = ", ".join(f"{name} {number}" for name, number in counts.items() if number)
        raise StudyError(f"no text is left to train on ({seen or 'no records'}); objective.keep and objective.cut say what is dropped")
