"""The texts that a student learns from.

Row j of a text scores the hidden state at position `first + j` of what the student reads, against `targets[j]` and against row j of the
teacher's signals. `distill.objectives.aligned` and `distill.objectives.published` make texts from a teacher's records.
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
        targets: the token that each scored hidden state should predict, [row].
        record: source of the teacher's signals, row by row; None for a blank text.
        index: number of the problem; the training order depends on it.
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
    """The texts of one student, in the order of the problems, and what happened to the records.

    Attributes:
        texts: at most one for each record.
        counts: number of records, kept, empty, wrong, truncated by the teacher's limit, dropped for that, or shortened to max_tokens.
    """

    texts: tuple[Text, ...]
    counts: dict[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """Return the SHA-256 of all tokens that the student reads and should predict."""
        lines = (f"{t.ids}|{t.first}|{t.targets}\n" for t in self.texts)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def require_texts(texts: Sequence[Text], counts: dict[str, int]) -> None:
    """Raise if no text is left to train on.

    Raises:
        StudyError: the message counts what was dropped, and why.
    """
    if not texts:
        found = ", ".join(f"{name} {number}" for name, number in counts.items() if number)
        raise StudyError(
            f"no text is left to train on ({found or 'no records'}); see objective.keep and objective.truncated for what is dropped"
        )
