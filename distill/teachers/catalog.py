"""Who answers: teachers of several kinds, each saying which signals it can give.

`TEACHERS` names them. A teacher's identity says what shapes its answers, and is known before its weights are loaded: a study whose
records are complete never loads them.
"""

from __future__ import annotations

from collections.abc import Callable

from distill.teachers.local import TransformersTeacher
from distill.teachers.options import TeacherConfig
from distill.teachers.server import OpenAITeacher
from distill.teachers.teacher import Teacher
from distill.teachers.vllm import VllmTeacher
from distill.teachers.written import ReferenceTeacher, ReplayTeacher
from interp.tables.errors import StudyError

# --- choosing -------------------------------------------------------------------------------------------------------

TIERS: dict[str, tuple[str, ...]] = {
    "transformers": ("text", "topk", "hidden", "dense"),
    "vllm": ("text", "topk"),
    "openai": ("text", "topk"),
    "replay": ("text",),
    "reference": ("text",),
}
"""Which signals each kind of teacher can give."""


TEACHERS: dict[str, Callable[[TeacherConfig], Teacher]] = {
    "transformers": TransformersTeacher,
    "vllm": VllmTeacher,
    "openai": OpenAITeacher,
    "replay": ReplayTeacher,
    "reference": ReferenceTeacher,
}
"""The kinds of teachers."""


def check_kind(kind: str) -> None:
    """Refuses a kind of teacher that is not known."""
    if kind not in TEACHERS:
        raise StudyError(f"unknown teacher.kind {kind!r}; known: {', '.join(TEACHERS)}")


def open_teacher(config: TeacherConfig) -> Teacher:
    """A teacher, its weights not loaded yet.

    Raises:
        StudyError: an unknown kind, or a signal that it cannot give.
        CheckpointError: a model that cannot be found.
    """
    check_kind(config.kind)
    if config.signal not in TIERS[config.kind]:
        raise StudyError(
            f"a teacher of kind {config.kind} cannot give teacher.signal = {config.signal!r}; it can give {', '.join(TIERS[config.kind])}"
        )
    return TEACHERS[config.kind](config)
