"""A study: its problems, strategies and teachers, the settings of every condition, and where its results are."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.objectives.options import ObjectiveConfig
from distill.problems.grading import grade
from distill.problems.options import ProblemSet
from distill.problems.sets import Problem, load_problems, problems_digest
from distill.settings import as_tables, differences
from distill.strategies import Strategy, choose_strategies, load_strategies
from distill.students.lora import read_student
from distill.study.config import Study
from distill.teachers.options import TeacherConfig
from interp.tables.errors import StudyError

if TYPE_CHECKING:
    from distill.records.record import Record
    from distill.records.store import RecordGroup, RecordStore
    from distill.sources.texts import Texts
    from distill.teachers.teacher import Teacher
    from interp.checkpoints.loading import Checkpoint


RUNTIME = {
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
"""Keys that say how the work is done, not what comes out; a finished result is kept when they change. So is all of [heads]."""


class StudyFolder:
    """One study: what it is made of, and its folder on disk; nothing is written here.

    The folder holds `records/` (the teachers' answers), `students/` (adapter folders), `evaluations/`, `study.json` and the tables
    `students.csv`, `conditions.csv` and `results.md`.

    Args:
        config: all that is asked for.

    Raises:
        StudyError: a question that is both trained on and tested on.
        InputError: problems that cannot be loaded.
        StudyError: an unknown condition.
    """

    def __init__(self, config: Study) -> None:
        self.config = config
        self.folder = config.folder
        known = load_strategies(config.strategies)
        self.strategies = choose_strategies([*config.conditions, config.baseline], known)
        self.train, self.heldout, self.test = (load_set(s, name) for name, s in vars(config.data).items())
        _check_disjoint({"train": self.train, "heldout": self.heldout, "test": self.test})
        if config.objective.name == "published":
            for name, strategy in self.strategies.items():
                if strategy.text and strategy.place != "before":
                    raise StudyError(
                        f'strategy {name} stands {strategy.place} the question, but objective published knows "before" only: '
                        "strategy and question are one plain text"
                    )
        grade("", "#### 1", [config.evaluation.grader])  # raises where it is not known
        if config.baseline not in config.conditions:
            raise StudyError(
                f"baseline is {config.baseline!r}, which is no condition of the study; conditions: {', '.join(config.conditions)}"
            )
        self._teacher: Teacher | None = None

    # --- who and where ----------------------------------------------------------------------------------------------

    @property
    def students(self) -> list[tuple[str, int | None]]:
        """Condition and seed of every student; the untouched one has no seed."""
        seeds: dict[str, Sequence[int | None]] = dict.fromkeys(self.config.conditions, self.config.seeds)
        if "untouched" in seeds:
            seeds["untouched"] = (None,)
        return [(name, seed) for name in self.config.conditions for seed in seeds[name]]

    def student_folder(self, condition: str, seed: int | None) -> Path:
        """Where a student's adapter goes."""
        return self.folder / "students" / student_name(condition, seed)

    def evaluation_folder(self, condition: str, seed: int | None) -> Path:
        """Where a student's answers go."""
        return self.folder / "evaluations" / student_name(condition, seed)

    def is_trained(self, condition: str, seed: int | None) -> bool:
        """A whole student of this study's settings and parents is there.

        Raises:
            StudyError: it is of other settings, or of another base or teacher.
            StudyError: it is damaged.
        """
        folder = self.student_folder(condition, seed)
        if not folder.exists():
            return False
        card = read_student(folder)
        now = {**self.settings(condition), "parents": self.parents(condition)}
        before = {**card["settings"], "parents": {key: card["parents"].get(key) for key in now["parents"]}}
        changed = differences(before, now)
        if changed:
            raise StudyError(
                f"{folder} was trained with other settings:\n  " + "\n  ".join(changed) + "\nSet them back, delete it, or set another `out`"
            )
        return True

    def open_student(self, condition: str, seed: int | None) -> Checkpoint:
        """A student's model, as `analyses.heads` would open it."""
        from interp.checkpoints.opening import open_checkpoint

        own = self.config.student
        source = own.model if condition == "untouched" else self.student_folder(condition, seed)
        base = own.model if condition != "untouched" else None
        revision = own.revision if condition == "untouched" else None
        return open_checkpoint(
            source, base=base, device=own.device, dtype=own.dtype, revision=revision, trust_remote_code=own.trust_remote_code
        )

    # --- the teachers and their records -------------------------------------------------------------------------------

    @property
    def teacher(self) -> Teacher:
        """The study's teacher; its weights are loaded at its first answer."""
        from distill.teachers.catalog import open_teacher

        if self._teacher is None:
            self._teacher = open_teacher(self.config.teacher)
        return self._teacher

    def close_teacher(self) -> None:
        """Frees the teacher's memory."""
        if self._teacher is not None:
            self._teacher.close()
            self._teacher = None
            gc.collect()

    def teacher_config(self, condition: str) -> TeacherConfig:
        """Who answers for a condition: the reference solutions for `finetune`, the study's teacher for all others."""
        return TeacherConfig(kind="reference", signal="text") if condition == "finetune" else self.config.teacher

    def teacher_of(self, condition: str) -> Teacher:
        """The open teacher of a condition."""
        from distill.teachers.catalog import open_teacher

        return open_teacher(self.teacher_config(condition)) if condition == "finetune" else self.teacher

    @cached_property
    def store(self) -> RecordStore:
        """The teachers' records."""
        from distill.records.store import RecordStore

        return RecordStore(self.folder / "records")

    def group(self, condition: str, teacher: Teacher) -> RecordGroup:
        """The records of a condition's teacher and strategy."""
        config = self.teacher_config(condition)
        strategy = self.strategies.get(condition, Strategy(condition))
        published = self.config.objective.name == "published" and condition != "finetune"
        return self.store.group(
            {
                "strategy": strategy.content,
                "teacher": teacher.identity,
                "sampling": {key: getattr(config, key) for key in ("temperature", "top_p", "max_new_tokens", "seed")},
                "signal": {"tier": config.signal, "top_k": config.top_k if config.signal == "topk" else None},
                "scored": "prompt" if published else "response",
                "max_tokens": self.config.objective.max_tokens if published else None,
            }
        )

    # --- what a student comes from ------------------------------------------------------------------------------------

    def settings(self, condition: str) -> dict[str, Any]:
        """All that shapes a condition's student, without names, paths of results and how fast the work is done."""
        strategy = self.strategies.get(condition, Strategy(condition))
        teacher = None if condition == "finetune" else _without(as_tables(self.config.teacher), RUNTIME["teacher"])
        return {
            "strategy": strategy.content,
            "teacher": teacher,
            "student": _without(as_tables(self.config.student), RUNTIME["student"]),
            "objective": as_tables(self.objective(condition)),
            "train": _without(as_tables(self.config.train), RUNTIME["train"]),
            "problems_sha256": problems_digest(self.train),
            "grader": self.config.evaluation.grader if self.config.objective.keep == "correct" else None,
        }

    def parents(self, condition: str) -> dict[str, Any]:
        """What a condition's student comes from: content hashes of base and teacher, and the key of the records."""
        teacher = self.teacher_of(condition)
        return {
            "base": self.base,
            "teacher": teacher.identity if condition != "finetune" else None,
            "records": self.group(condition, teacher).key,
        }

    @cached_property
    def base(self) -> dict[str, Any]:
        """What the students' base is, by its content."""
        from distill.teachers.teacher import tokenizer_digest
        from interp.checkpoints.opening import identify

        own = self.config.student
        about = identify(own.model, revision=own.revision, trust_remote_code=own.trust_remote_code)
        return {**about, "tokenizer": tokenizer_digest(self.tokenizer)}

    def objective(self, condition: str) -> ObjectiveConfig:
        """What a condition's student minimises: reference solutions have no distribution, so `finetune` is cross-entropy alone."""
        own = self.config.objective
        return replace(own, alpha=1.0, teacher="records", keep="all") if condition == "finetune" else own

    def texts(self, condition: str, teacher: Teacher, tokenizer: Any) -> Texts:
        """What a condition's student learns from.

        Raises:
            StudyError: a logits objective between two tokenizers.
        """
        from distill.objectives.aligned import aligned_texts
        from distill.objectives.published import published_texts
        from distill.teachers.teacher import same_tokenizer

        objective, records = self.objective(condition), self.group(condition, teacher).read(self.train)
        needs_signals = objective.alpha < 1
        differ = "the teacher gives text only" if teacher.tokenizer is None else same_tokenizer(teacher.tokenizer, tokenizer)
        if differ and needs_signals:
            raise StudyError(
                f"objective.alpha is {objective.alpha}, so teacher and student must share a tokenizer, but {differ}; "
                "set alpha = 1 (the teacher then teaches by its text alone)"
            )
        if objective.name == "published":
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
            drop_cut=objective.cut == "drop",
        )

    # --- how a student reads ------------------------------------------------------------------------------------------

    @property
    def context(self) -> Strategy:
        """What stands beside every question that a student reads: the same for all conditions."""
        return Strategy("student", self.config.student.instruction, self.config.student.place)

    @cached_property
    def tokenizer(self) -> Any:
        """The students', without the weights."""
        from interp.checkpoints.opening import open_tokenizer

        own = self.config.student
        return open_tokenizer(own.model, revision=own.revision, trust_remote_code=own.trust_remote_code)

    def chat(self, tokenizer: Any) -> bool:
        """Whether the student reads through its chat template."""
        has = getattr(tokenizer, "chat_template", None) is not None
        if self.config.student.chat and not has:
            raise StudyError("student.chat is true, but the student's tokenizer has no chat template; leave it out")
        return has if self.config.student.chat is None else self.config.student.chat

    @cached_property
    def chat_of_student(self) -> bool:
        """Whether the students read through their base's chat template."""
        return self.chat(self.tokenizer)


def load_set(wanted: ProblemSet, name: str) -> list[Problem]:
    """The problems of one of the three sets.

    Raises:
        StudyError: the source ends before `first`, or before `first + limit`.
    """
    problems = load_problems(wanted.problems, wanted.split)
    stop = len(problems) if wanted.limit is None else wanted.first + wanted.limit
    if wanted.first >= len(problems) or stop > len(problems):
        raise StudyError(f"data.{name} asks for problems {wanted.first} to {stop - 1}, but {wanted.problems} has 0 to {len(problems) - 1}")
    return problems[wanted.first : stop]


def _check_disjoint(sets: dict[str, list[Problem]]) -> None:
    seen: dict[str, str] = {}
    for name, problems in sets.items():
        for problem in problems:
            before = seen.setdefault(" ".join(problem.question.split()), name)
            if before != name:
                raise StudyError(
                    f"data.{before} and data.{name} share a question ({problem.question[:60]!r}): what is trained on cannot be tested on; "
                    "set first and limit apart"
                )


def student_name(condition: str, seed: int | None) -> str:
    """Name of a student's folder, for people; the card says the same."""
    return condition if seed is None else f"{condition}-seed{seed}"


def _without(table: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in keys}
