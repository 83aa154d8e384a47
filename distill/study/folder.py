"""A study's problems, strategies, teachers and records, and the places of its results."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.objectives.options import ObjectiveConfig
from distill.problems.grading import grade
from distill.problems.options import ProblemSet
from distill.problems.sets import Problem, load_problems, problems_digest
from distill.settings import as_tables, changed_settings
from distill.strategies import Strategy, load_strategies, require_plain
from distill.students.card import read_student
from distill.study.conditions import CONTROLS, choose_strategies, condition_of
from distill.study.config import Study
from distill.teachers.options import TeacherConfig
from interp.tables.errors import StudyError

if TYPE_CHECKING:
    from distill.records.record import Record
    from distill.records.store import RecordGroup, RecordStore
    from distill.sources.texts import Texts
    from distill.teachers.teacher import Teacher
    from interp.checkpoints.loading import Checkpoint


_RUNTIME = {
    "teacher": (
        "device",
        "batch_size",
        "shard_rows",
        "api_key_env",
        "concurrency",
        "requests_per_minute",
        "timeout_s",
        "retries",
        "tensor_parallel",
        "url",
    ),
    "student": ("device",),
    "train": ("save_steps", "logging_steps", "report_to"),
}
"""Keys that decide how the work is done, not its result: a finished result is kept when they change, or when [heads] changes."""


class StudyFolder:
    """What a study consists of, and its folder on disk. This class writes nothing.

    The folder holds `records/` (the teachers' answers), `students/` (adapter folders), `evaluations/`, `study.json` and the tables
    `students.csv`, `conditions.csv` and `results.md`.

    Args:
        config: the settings.

    Raises:
        StudyError: a condition is unknown, a strategy does not fit the objective, or two sets share a question.
        InputError: problems cannot be loaded.
    """

    def __init__(self, config: Study) -> None:
        self.config = config
        self.folder = config.folder
        known = load_strategies(config.strategies, reserved=CONTROLS)
        self.strategies = choose_strategies([*config.conditions, config.baseline], known)
        self.train, self.heldout, self.test = (load_set(s, name) for name, s in vars(config.data).items())
        _check_disjoint({"train": self.train, "heldout": self.heldout, "test": self.test})
        if config.objective.alignment.scores_prompt:
            for strategy in self.strategies.values():
                require_plain(strategy)
        if config.baseline not in config.conditions:
            raise StudyError(
                f"baseline is {config.baseline!r}, which is not a condition of the study; conditions: {', '.join(config.conditions)}"
            )
        self._teacher: Teacher | None = None

    # --- students and their places ----------------------------------------------------------------------------------

    @property
    def students(self) -> list[tuple[str, int | None]]:
        """Condition and seed of every student; a student that is not trained has no seed."""
        untrained: tuple[int | None, ...] = (None,)
        return [
            (name, seed) for name in self.config.conditions for seed in (self.config.seeds if condition_of(name).trained else untrained)
        ]

    def student_folder(self, condition: str, seed: int | None) -> Path:
        """Return the folder of a student's adapter."""
        return self.folder / "students" / student_name(condition, seed)

    def evaluation_folder(self, condition: str, seed: int | None) -> Path:
        """Return the folder of a student's answers."""
        return self.folder / "evaluations" / student_name(condition, seed)

    def strategy(self, condition: str) -> Strategy:
        """Return the strategy that prompts a condition's teacher; that of a control has no text."""
        return self.strategies.get(condition, Strategy(condition))

    def is_trained(self, condition: str, seed: int | None) -> bool:
        """Return whether a complete student with this study's settings and parents exists.

        Raises:
            StudyError: the student has other settings, or another base or teacher.
            DamagedError: the student is damaged.
        """
        folder = self.student_folder(condition, seed)
        if not folder.exists():
            return False
        card = read_student(folder)
        now = {**self.settings(condition), "parents": self.parents(condition)}
        before = {**card["settings"], "parents": {key: card["parents"].get(key) for key in now["parents"]}}
        changed = changed_settings(before, now)
        if changed:
            raise StudyError(
                f"{folder} was trained with other settings:\n  "
                + "\n  ".join(changed)
                + "\nRestore them, delete the folder, or set another `out`"
            )
        return True

    def open_student(self, condition: str, seed: int | None) -> Checkpoint:
        """Return the model of a student."""
        from interp.checkpoints.opening import open_checkpoint

        own = self.config.student
        trained = condition_of(condition).trained
        return open_checkpoint(
            self.student_folder(condition, seed) if trained else own.model,
            base=own.model if trained else None,
            device=own.device,
            dtype=own.dtype,
            revision=None if trained else own.revision,
            trust_remote_code=own.trust_remote_code,
        )

    # --- teachers and their records -----------------------------------------------------------------------------------

    @property
    def teacher(self) -> Teacher:
        """The study's teacher; its weights are loaded when it first answers."""
        from distill.teachers.teacher import open_teacher

        if self._teacher is None:
            self._teacher = open_teacher(self.config.teacher)
        return self._teacher

    def close_teacher(self) -> None:
        """Free the memory of the teacher's model."""
        if self._teacher is not None:
            self._teacher.close()
            self._teacher = None
            gc.collect()

    def teacher_config(self, condition: str) -> TeacherConfig:
        """Return the settings of a condition's teacher: the reference solutions, or the study's teacher."""
        return TeacherConfig(kind="reference", signal="text") if condition_of(condition).from_references else self.config.teacher

    def teacher_of(self, condition: str) -> Teacher:
        """Return the teacher of a condition."""
        from distill.teachers.teacher import open_teacher

        return open_teacher(self.teacher_config(condition)) if condition_of(condition).from_references else self.teacher

    def scores_prompt(self, condition: str) -> bool:
        """Return whether the condition's teacher scores its prompt instead of answering."""
        return self.config.objective.alignment.scores_prompt and condition_of(condition).has_teacher

    @cached_property
    def store(self) -> RecordStore:
        """The records of all teachers."""
        from distill.records.store import RecordStore

        return RecordStore(self.folder / "records")

    def group(self, condition: str, teacher: Teacher) -> RecordGroup:
        """Return the records of a condition's teacher and strategy."""
        config = self.teacher_config(condition)
        scores_prompt = self.scores_prompt(condition)
        return self.store.group(
            {
                "strategy": self.strategy(condition).content,
                "teacher": teacher.identity,
                "sampling": {key: getattr(config, key) for key in ("temperature", "top_p", "max_new_tokens", "seed")},
                "signal": {"tier": config.signal, "top_k": config.top_k if config.signal == "topk" else None},
                "scored": "prompt" if scores_prompt else "response",
                "max_tokens": self.config.objective.max_tokens if scores_prompt else None,
            }
        )

    # --- what decides a student ---------------------------------------------------------------------------------------

    def settings(self, condition: str) -> dict[str, Any]:
        """Return everything that decides a condition's student, without names, paths of results and `_RUNTIME` keys."""
        from_references = condition_of(condition).from_references
        return {
            "strategy": self.strategy(condition).content,
            "teacher": None if from_references else _without(as_tables(self.config.teacher), _RUNTIME["teacher"]),
            "student": _without(as_tables(self.config.student), _RUNTIME["student"]),
            "objective": as_tables(self.objective(condition)),
            "train": _without(as_tables(self.config.train), _RUNTIME["train"]),
            "problems_sha256": problems_digest(self.train),
            "grader": self.config.evaluation.grader if self.config.objective.keep == "correct" else None,
        }

    def parents(self, condition: str) -> dict[str, Any]:
        """Return what a condition's student is made from: base and teacher by their content, and the key of the records."""
        teacher = self.teacher_of(condition)
        return {
            "base": self.base,
            "teacher": None if condition_of(condition).from_references else teacher.identity,
            "records": self.group(condition, teacher).key,
        }

    @cached_property
    def base(self) -> dict[str, Any]:
        """The identity of the students' base model, by its content."""
        from distill.teachers.teacher import tokenizer_digest
        from interp.checkpoints.opening import identify

        own = self.config.student
        about = identify(own.model, revision=own.revision, trust_remote_code=own.trust_remote_code)
        return {**about, "tokenizer": tokenizer_digest(self.tokenizer)}

    def objective(self, condition: str) -> ObjectiveConfig:
        """Return the loss of a condition's student: reference solutions have no distribution, so only the cross-entropy is left."""
        own = self.config.objective
        return replace(own, alpha=1.0, teacher="records", keep="all") if condition_of(condition).from_references else own

    def texts(self, condition: str, teacher: Teacher, tokenizer: Any) -> Texts:
        """Return the texts that a condition's student learns from.

        Raises:
            StudyError: the objective needs the teacher's distribution, but the tokenizers differ.
        """
        from distill.objectives.aligned import aligned_texts
        from distill.objectives.published import published_texts
        from distill.teachers.teacher import same_tokenizer

        objective, records = self.objective(condition), self.group(condition, teacher).read(self.train)
        needs_signals = objective.alpha < 1
        differ = "the teacher gives only text" if teacher.tokenizer is None else same_tokenizer(teacher.tokenizer, tokenizer)
        if differ and needs_signals:
            raise StudyError(
                f"objective.alpha is {objective.alpha}, so teacher and student must share a tokenizer, but {differ}; "
                "set alpha = 1 to train on the teacher's text alone"
            )
        if objective.alignment.scores_prompt:
            return published_texts(
                records, tokenizer, max_tokens=objective.max_tokens, signals=needs_signals, lexicographic=objective.order == "lexicographic"
            )
        grader = self.config.evaluation.grader

        def right(record: Record) -> bool:
            return grade(record.text, record.reference, [grader])[0].correct

        return aligned_texts(
            records,
            tokenizer,
            self.context,
            self.chat(tokenizer),
            max_tokens=objective.max_tokens,
            same_tokenizer=differ is None,
            keep=right if objective.keep == "correct" else None,
            drop_truncated=objective.truncated == "drop",
        )

    # --- how students read --------------------------------------------------------------------------------------------

    @property
    def context(self) -> Strategy:
        """The instruction that students read with every question, the same for all conditions."""
        return Strategy("student", self.config.student.instruction, self.config.student.place)

    @cached_property
    def tokenizer(self) -> Any:
        """The students' tokenizer, loaded without the weights."""
        from interp.checkpoints.opening import open_tokenizer

        own = self.config.student
        return open_tokenizer(own.model, revision=own.revision, trust_remote_code=own.trust_remote_code)

    def chat(self, tokenizer: Any) -> bool:
        """Return whether a student with this tokenizer uses its chat template."""
        has = getattr(tokenizer, "chat_template", None) is not None
        if self.config.student.chat and not has:
            raise StudyError("student.chat is true, but the student's tokenizer has no chat template; leave it out")
        return has if self.config.student.chat is None else self.config.student.chat

    @cached_property
    def chat_of_student(self) -> bool:
        """Whether the students use the chat template of their base."""
        return self.chat(self.tokenizer)


def load_set(wanted: ProblemSet, name: str) -> list[Problem]:
    """Return the problems of one of the three sets.

    Args:
        wanted: source and range.
        name: train, heldout or test, for error messages.

    Raises:
        StudyError: the source has fewer problems.
    """
    problems = load_problems(wanted.problems, wanted.split)
    stop = len(problems) if wanted.limit is None else wanted.first + wanted.limit
    if wanted.first >= len(problems) or stop > len(problems):
        raise StudyError(
            f"data.{name} needs problems {wanted.first} to {stop - 1}, but {wanted.problems} has only 0 to {len(problems) - 1}"
        )
    return problems[wanted.first : stop]


def _check_disjoint(sets: dict[str, list[Problem]]) -> None:
    seen: dict[str, str] = {}
    for name, problems in sets.items():
        for problem in problems:
            before = seen.setdefault(" ".join(problem.question.split()), name)
            if before != name:
                raise StudyError(
                    f"data.{before} and data.{name} share the question {problem.question[:60]!r}, but the sets must be disjoint; "
                    "change first and limit"
                )


def student_name(condition: str, seed: int | None) -> str:
    """Return the name of a student's folder."""
    return condition if seed is None else f"{condition}-seed{seed}"


def _without(table: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in keys}
