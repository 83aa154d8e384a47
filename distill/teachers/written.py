"""Teachers whose answers are already written: reference solutions, and responses from a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from distill.problems.sets import Problem
from distill.records.record import Record
from distill.strategies import Strategy
from distill.teachers.options import TeacherConfig
from distill.teachers.teacher import TextTeacher
from interp.tables.errors import StudyError


class ReferenceTeacher(TextTeacher):
    """A teacher that answers with the reference solutions."""

    def __init__(self, config: TeacherConfig) -> None:
        self.identity = {"kind": "reference", "name": "reference solutions"}

    def answer(self, problems: Sequence[Problem], strategy: Strategy) -> list[Record]:
        """Return the reference solutions unchanged, including their calculator marks."""
        return [Record(p.index, p.question, p.answer, (), (), p.answer, "eos") for p in problems]


class ReplayTeacher(TextTeacher):
    """A teacher that answers from a JSONL file of `question`, `response` and, for a truncated response, `"finish": "length"`."""

    def __init__(self, config: TeacherConfig) -> None:
        if config.responses is None:
            raise StudyError('teacher.kind = "replay" needs teacher.responses, a JSONL file of {"question": "...", "response": "..."}')
        self.file = Path(config.responses)
        try:
            content = self.file.read_bytes()
        except OSError as error:
            raise StudyError(f"teacher.responses: {self.file} cannot be read ({error.strerror})") from error
        self.identity = {"kind": "replay", "name": self.file.stem, "sha256": hashlib.sha256(content).hexdigest()}
        self.responses: dict[str, tuple[str, str]] = {}
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if line.strip():
                question, response, finish = self._line(line, number)
                if self.responses.setdefault(question, (response, finish)) != (response, finish):
                    raise StudyError(f"{self.file}, line {number}: a second response to {question[:60]!r}; keep one")

    def _line(self, line: str, number: int) -> tuple[str, str, str]:
        place = f"{self.file}, line {number}"
        try:
            fields = json.loads(line)
            question, response, finish = fields["question"], fields["response"], fields.get("finish", "eos")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StudyError(
                f'{place}: {type(error).__name__} {error}; each line must be {{"question": "...", "response": "..."}}'
            ) from None
        if not isinstance(question, str) or not isinstance(response, str) or finish not in ("eos", "length"):
            raise StudyError(f'{place}: question and response must be strings, and finish "eos" or "length"')
        return question.strip(), response, finish

    def answer(self, problems: Sequence[Problem], strategy: Strategy) -> list[Record]:
        """Return the response to each question.

        Raises:
            StudyError: the file lacks a response.
        """
        missing = [p for p in problems if p.question.strip() not in self.responses]
        if missing:
            raise StudyError(
                f"{self.file} has no response to {len(missing)} of {len(problems)} questions, the first to problem {missing[0].index} "
                f"({missing[0].question[:60]!r})"
            )
        found = [self.responses[p.question.strip()] for p in problems]
        return [
            Record(p.index, p.question, p.answer, (), (), text, "eos" if finish == "eos" else "length")
            for p, (text, finish) in zip(problems, found, strict=True)
        ]
