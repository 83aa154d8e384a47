"""The steps of a study: collect the teacher's records, train students, evaluate them, and write the tables."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from distill.problems.grading import DEFAULT_GRADER
from distill.problems.sets import Problem
from distill.settings import as_tables
from distill.students.card import ADAPTER_FILE
from distill.study.conditions import condition_of
from distill.study.folder import StudyFolder, student_name
from distill.study.launcher import has_other_processes, is_first_process
from interp.tables.errors import DamagedError, InputError, StudyError
from interp.tables.files import file_sha256, write_json

if TYPE_CHECKING:
    from distill.records.record import Record


class StudyRun:
    """Runs the steps of one study. What is finished is kept, so every step resumes where it stopped.

    Args:
        study: the study.
        show_progress: show bars and lines on stderr.
    """

    def __init__(self, study: StudyFolder, *, show_progress: bool = True) -> None:
        self.study, self.config, self.show_progress = study, study.config, show_progress

    def begin(self) -> None:
        """Check the names that only libraries know, and make the folder, before any work.

        Raises:
            StudyError: a measure of heads, an optimizer, a schedule or a tracker is unknown, or the optimizer refuses its arguments.
            OSError: the folder cannot be written.
        """
        from distill.training.arguments import check_settings

        check_settings(self.config.train)
        if self.config.heads.records:
            from interp.measures.catalog import load_measures

            try:
                load_measures(self.config.heads.measures)
            except InputError as error:
                raise StudyError(f"heads.measures: {error}") from error
        if is_first_process():
            self.study.folder.mkdir(parents=True, exist_ok=True)
            if not (self.study.folder / "study.json").exists():
                self.write_settings()

    def write_settings(self) -> None:
        """Write study.json: the settings with all defaults. After a change of settings, call this once the change has been accepted."""
        if is_first_process():
            write_json(self.study.folder / "study.json", as_tables(self.config))

    def say(self, text: str) -> None:
        """Print a line of progress."""
        if self.show_progress:
            print(text, file=sys.stderr, flush=True)

    def _label(self, text: str) -> str | None:
        return text if self.show_progress else None

    # --- collect ----------------------------------------------------------------------------------------------------

    def collect(self, condition: str) -> None:
        """Collect the teacher's answers to the training and held-out problems; existing answers are kept."""
        if not condition_of(condition).trained:
            return
        teacher, strategy = self.study.teacher_of(condition), self.study.strategy(condition)
        group = self.study.group(condition, teacher)
        scores_prompt = self.study.scores_prompt(condition)

        def answer(problems: Sequence[Problem]) -> list[Record]:
            if scores_prompt:
                return teacher.score_prompts(problems, strategy, self.config.objective.max_tokens)
            return teacher.answer(problems, strategy)

        wanted = self.study.train if scores_prompt else [*self.study.train, *self.study.heldout]
        group.collect(wanted, answer, self.config.teacher.shard_rows, label=self._label(f"collect {condition}"))
        head = teacher.head()
        if head is not None:
            self.study.store.write_head(head, teacher.identity)

    # --- train ------------------------------------------------------------------------------------------------------

    def train_one(self, condition: str, seed: int) -> Path:
        """Train one student, or resume it, and return its folder; a finished one with the same settings and parents is kept.

        Raises:
            StudyError: the condition is not trained, or a finished student has other settings or parents; the message names them.
        """
        from distill.study.student import train_one_student

        if not condition_of(condition).trained:
            raise StudyError(f"{condition} is the student without training; there is nothing to train")
        folder = self.study.student_folder(condition, seed)
        with self._locked(folder):
            if not self._has_student(condition, seed):
                train_one_student(self.study, condition, seed, show_progress=self.show_progress)
            elif is_first_process():  # left over if a process was killed right after its student was complete
                shutil.rmtree(folder.with_name(folder.name + ".partial"), ignore_errors=True)
        return folder

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Hold the lock of a student or an evaluation; a second process waits, a second group of ranks fails.

        The lock file is next to the folder, because the folder itself is created only when it is complete.
        """
        if not is_first_process():
            yield
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if has_other_processes():
                raise StudyError(f"another process works on {folder}; wait for it, or set another `out`") from None
            self.say(f"another process works on {folder}: waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _has_student(self, condition: str, seed: int | None) -> bool:
        """Return whether a complete student with this study's settings and parents exists; a damaged one is moved aside.

        Raises:
            StudyError: the student has other settings, or another base or teacher.
        """
        try:
            return self.study.is_trained(condition, seed)
        except DamagedError as error:
            self._set_aside(self.study.student_folder(condition, seed), str(error))
            return False

    def _set_aside(self, folder: Path, why: str) -> None:
        """Rename a damaged or outdated folder, so that it is made again and nothing is deleted."""
        if not is_first_process():
            return
        number = next(n for n in count(1) if not folder.with_name(f"{folder.name}.damaged-{n}").exists())
        place = folder.rename(folder.with_name(f"{folder.name}.damaged-{number}"))
        print(f"note: {why.splitlines()[0].partition(';')[0]}; moved to {place} and made again", file=sys.stderr)

    # --- evaluate ---------------------------------------------------------------------------------------------------

    def evaluate_one(self, condition: str, seed: int | None) -> Path:
        """Evaluate a student on the test and held-out problems, and return the folder; what is finished is kept.

        Raises:
            StudyError: the student is not trained.
        """
        from distill.study.evaluation import evaluate_student

        folder = self.study.evaluation_folder(condition, seed)
        with self._locked(folder):
            about = self.about(condition, seed)
            self._check_complete(folder)
            self._check_adapter(folder, about)
            label = self._label(f"evaluate {student_name(condition, seed)}")
            evaluate_student(self.study, condition, seed, folder=folder, about=about, label=label)
        return folder

    def about(self, condition: str, seed: int | None) -> dict[str, Any]:
        """Return what identifies a student; its evaluation stores it.

        Raises:
            StudyError: the student is not trained, or has other settings or parents.
        """
        who = {
            "condition": condition,
            "seed": seed,
            "name": student_name(condition, seed),
            "base": self.study.base,
            "dtype": self.config.student.dtype,
        }
        if not condition_of(condition).trained:
            return who
        student = self.study.student_folder(condition, seed)
        if not self._has_student(condition, seed):
            raise StudyError(f"{student} does not exist: the student is not trained yet; run `python -m distill train`")
        return {**who, "adapter_sha256": file_sha256(student / ADAPTER_FILE)}

    def _check_complete(self, folder: Path) -> None:
        """Move a damaged evaluation aside, so that it is made again."""
        from distill.evaluation.answers import read_answers

        if folder.exists():
            try:
                read_answers(folder, DEFAULT_GRADER)
            except DamagedError as error:
                self._set_aside(folder, str(error))

    def _check_adapter(self, folder: Path, about: dict[str, Any]) -> None:
        """Move an evaluation aside, finished or not, if the student has been trained again since."""
        from distill.evaluation.answers import answers_of

        for place in (folder, folder.with_name(folder.name + ".partial")):
            before = answers_of(place)
            if before is not None and before.get("adapter_sha256") != about.get("adapter_sha256"):
                self._set_aside(place, f"{place} is of an earlier adapter")

    def evaluate_model(self, model: str) -> Path:
        """Evaluate any checkpoint on the test problems as the students are evaluated, print its accuracy, and return the folder."""
        from distill.evaluation.answers import answer_problems
        from distill.study.results import print_model_accuracy
        from interp.checkpoints.opening import open_checkpoint

        own = self.config.student
        checkpoint = open_checkpoint(model, device=own.device, dtype=own.dtype, trust_remote_code=own.trust_remote_code)
        identity = {key: checkpoint.identity[key] for key in ("name", "revision", "weights_sha256", "adapter")}
        # models in folders of the same name are told apart by their content
        content = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:8]
        folder = self.study.folder / "evaluations" / f"model-{checkpoint.name}-{content}"
        about = {"condition": checkpoint.name, "seed": None, "name": checkpoint.name, "model": identity}
        chat = self.study.chat(checkpoint.tokenizer)
        with self._locked(folder):
            self._check_complete(folder)
            answer_problems(
                checkpoint.model,
                checkpoint.tokenizer,
                self.study.test,
                self.config.evaluation,
                self.study.context,
                chat,
                folder=folder,
                about=about,
                label=self._label(f"evaluate {checkpoint.name}"),
            )
        print_model_accuracy(self.study, folder)
        return folder

    # --- all steps --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run every step for every condition and seed, then write the tables."""
        trained = [(condition, seed) for condition, seed in self.study.students if seed is not None]
        for condition, seed in trained:  # a student that cannot be kept is refused before any work
            self._has_student(condition, seed)
        for condition in self.config.conditions:
            self.collect(condition)
        if self.config.objective.teacher == "records":
            self.study.close_teacher()
        for condition, seed in trained:
            self.say(f"train {student_name(condition, seed)}")
            self.train_one(condition, seed)
        self.study.close_teacher()
        for condition, seed in self.study.students:
            self.evaluate_one(condition, seed)
        self.write_tables()

    def write_tables(self) -> None:
        """Write and print the tables of the evaluations that exist.

        Raises:
            StudyError: as `distill.study.results.write_study_tables`.
        """
        from distill.study.results import write_study_tables

        write_study_tables(self.study, self.about)
