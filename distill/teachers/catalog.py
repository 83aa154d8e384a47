"""The kinds of teachers. Reading them loads neither torch nor a teacher.

A teacher's identity holds everything that decides its answers, and is known before its weights are loaded: a study whose records are
complete never loads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SignalKind = Literal["text", "topk", "hidden", "dense"]
"""What is kept of the teacher's distribution: nothing, the top k, the last hidden state, or all log-probabilities."""


@dataclass(frozen=True)
class TeacherKind:
    """One kind of teacher.

    Attributes:
        path: the class as "module:Class"; `distill.teachers.teacher.open_teacher` imports it.
        signals: the signals that it can give.
        description: one line for people.
        in_process: its model can be called in this process, so that it can score prompts and teach live.
    """

    path: str
    signals: tuple[SignalKind, ...]
    description: str
    in_process: bool = False


TEACHERS: dict[str, TeacherKind] = {
    "transformers": TeacherKind(
        "distill.teachers.local:TransformersTeacher",
        ("text", "topk", "hidden", "dense"),
        "a checkpoint in this process",
        in_process=True,
    ),
    "vllm": TeacherKind("distill.teachers.vllm:VllmTeacher", ("text", "topk"), "a checkpoint in this process, run by vLLM"),
    "openai": TeacherKind("distill.teachers.server:OpenAITeacher", ("text", "topk"), "a server with an OpenAI-compatible API"),
    "replay": TeacherKind("distill.teachers.written:ReplayTeacher", ("text",), "responses from a JSONL file"),
    "reference": TeacherKind("distill.teachers.written:ReferenceTeacher", ("text",), "the reference solutions"),
}
"""The kinds of teachers by name."""


def in_process_kinds() -> str:
    """Return the kinds whose model can be called in this process, for messages."""
    return " or ".join(f'"{name}"' for name, kind in TEACHERS.items() if kind.in_process)
