from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.problems.sets import Problem
from distill.strategies import Strategy
from distill.teachers.options import TeacherConfig
from distill.teachers.teacher import open_teacher
from interp.tables.errors import StudyError

PROBLEMS = [Problem(i, f"How many are {i} and 3?", f"{i}+3 = {i + 3}\n#### {i + 3}") for i in range(4)]
TOLD = Strategy("told", "Be clear.")


def test_reference_solutions_are_unchanged() -> None:
    records = open_teacher(TeacherConfig(kind="reference", signal="text")).answer(PROBLEMS, TOLD)
    assert [(r.text, r.finish, r.response_ids) for r in records] == [(p.answer, "eos", ()) for p in PROBLEMS]


def replay(file: Path) -> Any:
    return open_teacher(TeacherConfig(kind="replay", signal="text", responses=str(file)))


def test_replay_matches_questions(tmp_path: Path) -> None:
    lines = [{"question": f" {p.question}\n", "response": f"response {p.index}", "more": 1} for p in PROBLEMS[::-1]]
    lines[0]["finish"] = "length"
    file = tmp_path / "responses.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert [(r.text, r.finish) for r in replay(file).answer(PROBLEMS, TOLD)] == [
        *((f"response {i}", "eos") for i in range(3)),
        ("response 3", "length"),
    ]
    with pytest.raises(StudyError, match="no response to 1 of 5 questions, the first to problem 9"):
        replay(file).answer([*PROBLEMS, Problem(9, "Why?", "#### 1")], TOLD)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "line 1"),
        ('{"question": "a"}', "KeyError 'response'"),
        ('{"question": "a", "response": 3}', "must be strings"),
        ('{"question": "a", "response": "b", "finish": "x"}', "finish"),
        ("[]", "line 1"),
        ('{"question": "a", "response": "b"}\n{"question": "a", "response": "c"}', "second response"),
        (None, "cannot be read"),
    ],
)
def test_bad_replay_files_are_refused(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "responses.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StudyError, match=words):
        replay(file)
