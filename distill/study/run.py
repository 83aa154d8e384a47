"""The running of a study, step by step: collect a teacher's records, train students, evaluate them, and put the results in tables."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from distill.objectives.options import ObjectiveConfig
from distill.problems.grading import DEFAULT_GRADER
from distill.problems.sets import Problem
from distill.settings import as_tables
from distill.strategies import Strategy
from distill.students.lora import WEIGHTS, file_sha256
from distill.study.folder import StudyFolder, student_name
from interp.tables.errors import DamagedError, InputError, StudyError
from interp.tables.files import write_text

if TYPE_CHECKING:
    from distill.records.record import Record
    from distill.sources.texts import Texts
    from distill.training.trajectory import HeadTrajectory
    from interp.checkpoints.loading import Checkpoint


FIRST_RANK = int(os.environ.get("RANK", "0")) == 0
"""Under a launcher, one process says and writes what all share."""


class StudyRun:
    """Does the work of one study; what is finished is kept, so that every step goes on where it was.

    Args:
        study: what to run.
        show_progress: bars and lines on stderr.
    """

    def __init__(self, study: StudyFolder, *, show_progress: bool = True) -> None:
        self.study, self.config, self.show_progress = study, study.config, show_progress

    def begin(self) -> None:
        """Checks names that only the libraries know, and makes the folder, before any work is done.

        Raises:
            StudyError: an unknown measure of heads.
            StudyError: an unknown kind of teacher.
            StudyError: an optimizer, schedule or tracker that is not known, or takes other arguments.
            OSError: the folder cannot be written.
        """
        from distill.teachers.catalog import check_kind
        from distill.training.arguments import check_settings

        check_kind(self.config.teacher.kind)
        check_settings(self.config.train)
        if self.config.heads.records:
            from interp.measures.catalog import load_measures
            from interp.tables.errors import InputError

            try:
                load_measures(self.config.heads.measures)
            except InputError as error:
                raise StudyError(f"heads.measures: {error}") from error
        if FIRST_RANK:
            self.study.folder.mkdir(parents=True, exist_ok=True)
            if not (self.study.folder / "study.json").exists():
                self.write_down()

    def write_down(self) -> None:
        """Writes the study with all defaults filled in; after a change, once what it changes has been accepted."""
        if FIRST_RANK:
            write_text(self.study.folder / "study.json", json.dumps(as_tables(self.config), indent=1) + "\n")

    def say(self, text: str) -> None:
        """A line of progress."""
        if self.show_progress:
            print(text, file=sys.stderr, flush=True)

    # --- collect ----------------------------------------------------------------------------------------------------

    def collect(self, condition: str) -> None:
        """The teacher's answers to the training and held-out problems under a condition's strategy; what is there is kept."""
        if condition == "untouched":
            return
        teacher, strategy = self.study.teacher_of(condition), self.study.strategies.get(condition, Strategy(condition))
        group = self.study.group(condition, teacher)
        published = self.config.objective.name == "published" and condition != "finetune"

        def answer(problems: Sequence[Problem]) -> list[Record]:
            if published:
                return teacher.score_prompts(problems, strategy, self.config.objective.max_tokens)
            return teacher.answer(problems, strategy)

        wanted = self.study.train if published else [*self.study.train, *self.study.heldout]
        group.collect(wanted, answer, self.config.teacher.shard_rows, label=f"collect {condition}" if self.show_progress else None)
        head = teacher.head() if self.config.teacher.signal == "hidden" and condition != "finetune" else None
        if head is not None:
            self.study.store.write_head(head, teacher.identity)

    # --- train ------------------------------------------------------------------------------------------------------

    def train_one(self, condition: str, seed: int) -> Path:
        """Trains one student, or goes on with it; a finished one of the same settings and parents is kept.

        Raises:
            StudyError: a finished student of other settings or parents; the message says which key.
        """
        if condition == "untouched":
            raise StudyError("untouched is the student without training; there is nothing to train")
        folder = self.study.student_folder(condition, seed)
        with self._alone(folder):
            if not self._has_student(condition, seed):
                self._train(condition, seed)
            elif FIRST_RANK:  # what a process left that was killed after its student was whole
                shutil.rmtree(folder.with_name(folder.name + ".partial"), ignore_errors=True)
        return folder

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """One process, or one group of ranks, at a time works on a student or an evaluation; others wait until it is done or dead."""
        if not FIRST_RANK:
            yield
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise StudyError(f"another process is at work on {folder}; wait for it, or set another `out`") from None
            self.say(f"another process is at work on {folder}: waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _has_student(self, condition: str, seed: int | None) -> bool:
        """A whole student of this study's settings and parents is there; a damaged one is moved aside.

        Raises:
            StudyError: it is of other settings, or of another base or teacher.
        """
        try:
            return self.study.is_trained(condition, seed)
        except DamagedError as error:
            self._set_aside(self.study.student_folder(condition, seed), str(error))
            return False

    def _set_aside(self, folder: Path, why: str) -> None:
        """Nothing damaged is trusted, and nothing is deleted."""
        if not FIRST_RANK:
            return
        number = next(n for n in count(1) if not folder.with_name(f"{folder.name}.damaged-{n}").exists())
        place = folder.rename(folder.with_name(f"{folder.name}.damaged-{number}"))
        print(f"note: {why.splitlines()[0].partition(';')[0]}; moved to {place}, and done again", file=sys.stderr)

    def _train(self, condition: str, seed: int) -> None:
        from accelerate import PartialState

        from distill.students.lora import new_student
        from distill.training.train import train_student
        from interp.checkpoints.loading import choose_device
        from interp.tables.versions import versions

        teacher = self.study.teacher_of(condition)
        objective = self.study.objective(condition)
        live = self.config.teacher if condition != "finetune" and objective.teacher == "live" and objective.alpha < 1 else None
        PartialState(cpu=choose_device(self.config.student.device) == "cpu")  # under a launcher, each process takes its own device
        model, checkpoint = new_student(self.config.student, seed)
        texts = self.study.texts(condition, teacher, checkpoint.tokenizer)
        missing = missing_share(texts, objective, model.get_output_embeddings().weight.shape[0])
        self._tell(condition, texts, missing)
        head, live_model = None, None
        if live is not None:
            live_model, head = teacher.model_and_head()
        elif objective.alpha < 1 and self.config.teacher.signal == "hidden":
            head = self.study.store.read_head(teacher.identity)
        strategy = self.study.strategies.get(condition, Strategy(condition))
        card = {
            "condition": condition,
            "seed": seed,
            "strategy": {"name": strategy.name, **strategy.content},
            "formula": objective.formula,
            "settings": self.study.settings(condition),
            "parents": {**self.study.parents(condition), "texts_sha256": texts.digest()},
            "counts": texts.counts,
            "missing_mass": missing,
            "versions": versions(),
        }
        train_student(
            self.study.student_folder(condition, seed),
            model,
            checkpoint.tokenizer,
            texts,
            objective=objective,
            config=self.config.train,
            seed=seed,
            card=card,
            teacher_head=head,
            teacher=live_model,
            trajectory=self._trajectory(student_name(condition, seed), checkpoint),
            show_progress=self.show_progress,
        )

    def _trajectory(self, name: str, checkpoint: Checkpoint) -> HeadTrajectory | None:
        """Records a student's heads while it learns; texts that cannot be annotated are no reason not to train."""
        from distill.training.trajectory import HeadTrajectory, fixed_texts, note
        from interp.tables.errors import StudyError

        own = self.config.heads
        if own.records == 0:
            return None
        try:
            tokens = fixed_texts(checkpoint, self.study.heldout[: own.texts], self.study.chat(checkpoint.tokenizer))
        except (InputError, StudyError) as error:
            if FIRST_RANK:
                note(str(error))
            return None
        return HeadTrajectory(tokens, own.measures, name, own.records)

    def _tell(self, condition: str, texts: Texts, missing: tuple[float, float] | None) -> None:
        """What happened to the records, and what a top k leaves out at the temperature."""
        told = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in texts.counts.items() if number and name != "records")
        self.say(f"{condition}: {texts.counts['records']} records, {told}")
        if missing is not None and FIRST_RANK:
            print(
                f"{condition}: at temperature {self.config.objective.temperature:g}, {missing[0]:.1%} to {missing[1]:.1%} of the teacher's "
                f"mass lies outside the stored top {self.config.teacher.top_k}, and is left out",
                file=sys.stderr,
            )

    # --- evaluate ---------------------------------------------------------------------------------------------------

    def evaluate_one(self, condition: str, seed: int | None) -> Path:
        """A student's answers to the test problems, and its likelihoods on the held-out ones; what is there is kept.

        Raises:
            StudyError: the student is not trained yet.
        """
        folder = self.study.evaluation_folder(condition, seed)
        with self._alone(folder):
            self._evaluate(condition, seed, folder)
        return folder

    def about(self, condition: str, seed: int | None) -> dict[str, Any]:
        """Who a student is: what its evaluation is of.

        Raises:
            StudyError: it is not trained, or of other settings or parents.
        """
        who = {
            "condition": condition,
            "seed": seed,
            "name": student_name(condition, seed),
            "base": self.study.base,
            "dtype": self.config.student.dtype,
        }
        if condition == "untouched":
            return who
        student = self.study.student_folder(condition, seed)
        if not self._has_student(condition, seed):
            raise StudyError(f"{student} is not there: the student is not trained yet; run train")
        return {**who, "adapter_sha256": file_sha256(student / WEIGHTS)}

    def _evaluate(self, condition: str, seed: int | None, folder: Path) -> None:
        from distill.evaluation.answers import answer_problems, began_with
        from distill.study.heldout import score_heldout

        about = self.about(condition, seed)
        self._check_whole(folder)
        partial = folder.with_name(folder.name + ".partial")
        for place in (folder, partial):  # a student that was trained anew is another
            before = began_with(place)
            if before is not None and before.get("adapter_sha256") != about.get("adapter_sha256"):
                self._set_aside(place, f"{place} is of an earlier adapter")
        checkpoint: list[Checkpoint] = []

        def opened() -> Checkpoint:
            if not checkpoint:
                checkpoint.append(self.study.open_student(condition, seed))
            return checkpoint[0]

        if not (folder / "evaluation.json").is_file():
            opened()
        answer_problems(
            checkpoint[0].model if checkpoint else None,
            checkpoint[0].tokenizer if checkpoint else None,
            self.study.test,
            self.config.evaluation,
            self.study.context,
            self.study.chat_of_student,
            folder=folder,
            about=about,
            label=f"evaluate {student_name(condition, seed)}" if self.show_progress else None,
        )
        score_heldout(self.study, condition, folder, about, opened)

    def _check_whole(self, folder: Path) -> None:
        """A damaged evaluation is moved aside, so that it is made again."""
        from distill.evaluation.answers import read_answers

        if folder.exists():
            try:
                read_answers(folder, DEFAULT_GRADER)
            except DamagedError as error:
                self._set_aside(folder, str(error))

    def evaluate_model(self, model: str) -> Path:
        """Any checkpoint's answers to the test problems, measured as the students are."""
        from distill.evaluation.answers import answer_problems
        from interp.checkpoints.opening import open_checkpoint

        own = self.config.student
        checkpoint = open_checkpoint(model, device=own.device, dtype=own.dtype, trust_remote_code=own.trust_remote_code)
        identity = {key: checkpoint.identity[key] for key in ("name", "revision", "weights_sha256", "adapter")}
        content = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:8]
        folder = self.study.folder / "evaluations" / f"model-{checkpoint.name}-{content}"  # folders of one name hold many models
        about = {"condition": checkpoint.name, "seed": None, "name": checkpoint.name, "model": identity}
        chat = self.study.chat(checkpoint.tokenizer)
        label = f"evaluate {checkpoint.name}" if self.show_progress else None
        with self._alone(folder):
            self._check_whole(folder)
            answer_problems(
                checkpoint.model,
                checkpoint.tokenizer,
                self.study.test,
                self.config.evaluation,
                self.study.context,
                chat,
                folder=folder,
                about=about,
                label=label,
            )
        from distill.study.results import report_model

        report_model(self.study, folder)
        return folder

    # --- all ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Every step of every condition and seed, then the tables."""
        for condition, seed in self.study.students:  # what cannot be gone on with is said before any work
            if seed is not None:
                self._has_student(condition, seed)
        for condition in self.config.conditions:
            self.collect(condition)
        if self.config.objective.teacher == "records":
            self.study.close_teacher()
        for condition, seed in self.study.students:
            if seed is not None:
                self.say(f"train {student_name(condition, seed)}")
                self.train_one(condition, seed)
        self.study.close_teacher()
        for condition, seed in self.study.students:
            self.evaluate_one(condition, seed)
        self.report()

    def report(self) -> None:
        """The tables over the evaluations that are there.

        Raises:
            StudyError: as `distill.study.results.report`.
        """
        from distill.study.results import report

        report(self.study, self.about)


def missing_share(texts: Texts, objective: ObjectiveConfig, vocabulary: int) -> tuple[float, float] | None:
    """Bounds of the mass that stored top-k signals leave out at the objective's temperature, a mean over tokens (at most 200 texts).

    None where nothing is left out for that reason: temperature 1, no divergence, or other signals.
    """
    import torch

    from distill.records.signals import missing_mass

    if objective.alpha == 1 or objective.temperature == 1 or objective.teacher == "live":
        return None
    rows = [t.record.signals["topk_log_probs"] for t in texts.texts[:200] if t.record is not None and "topk_log_probs" in t.record.signals]
    if not rows:
        return None
    lower, upper = missing_mass(torch.cat(rows), vocabulary, objective.temperature)
    return float(lower.mean()), float(upper.mean())
