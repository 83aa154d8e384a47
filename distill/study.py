"""A study, step by step: collect a teacher's records, train students, evaluate them, and put the results in tables."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from distill.atomic import write_whole
from distill.config import HeadsConfig, ObjectiveConfig, ProblemSet, Study, StudyError, TeacherConfig, as_tables, differences
from distill.grading import DEFAULT_GRADER, grade
from distill.problems import Problem, load_problems, problems_digest
from distill.strategies import Strategy, choose_strategies, load_strategies
from distill.student import WEIGHTS, StudentError, file_sha256, read_student

if TYPE_CHECKING:
    from distill.batches import Texts
    from distill.records import Record, RecordGroup, RecordStore
    from distill.teachers import Teacher
    from distill.trajectory import HeadTrajectory
    from interp.checkpoints import Checkpoint

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

FIRST_RANK = int(os.environ.get("RANK", "0")) == 0
"""Under a launcher, one process says and writes what all share."""


class StudyRun:
    """One study on disk.

    The folder holds `records/` (the teachers' answers), `students/` (adapter folders), `evaluations/`, `study.json` and the tables
    `students.csv`, `conditions.csv` and `results.md`.

    Args:
        study: what to run.
        show_progress: bars and lines on stderr.

    Raises:
        StudyError: a question that is both trained on and tested on.
        distill.problems.ProblemError: problems that cannot be loaded.
        distill.strategies.StrategyError: an unknown condition.
    """

    def __init__(self, study: Study, *, show_progress: bool = True) -> None:
        self.study, self.show_progress = study, show_progress
        self.folder = study.folder
        known = load_strategies(study.strategies)
        self.strategies = choose_strategies([*study.conditions, study.baseline], known)
        self.train, self.heldout, self.test = (load_set(s, name) for name, s in vars(study.data).items())
        _check_disjoint({"train": self.train, "heldout": self.heldout, "test": self.test})
        if study.objective.name == "published":
            for name, strategy in self.strategies.items():
                if strategy.text and strategy.place != "before":
                    raise StudyError(
                        f'strategy {name} stands {strategy.place} the question, but objective published knows "before" only: '
                        "strategy and question are one plain text"
                    )
        grade("", "#### 1", [study.evaluation.grader])  # raises where it is not known
        if study.baseline not in study.conditions:
            raise StudyError(
                f"baseline is {study.baseline!r}, which is no condition of the study; conditions: {', '.join(study.conditions)}"
            )
        self._teacher: Teacher | None = None

    # --- who and where ----------------------------------------------------------------------------------------------

    @property
    def students(self) -> list[tuple[str, int | None]]:
        """Condition and seed of every student; the untouched one has no seed."""
        seeds: dict[str, Sequence[int | None]] = dict.fromkeys(self.study.conditions, self.study.seeds)
        if "untouched" in seeds:
            seeds["untouched"] = (None,)
        return [(name, seed) for name in self.study.conditions for seed in seeds[name]]

    def student_folder(self, condition: str, seed: int | None) -> Path:
        """Where a student's adapter goes."""
        return self.folder / "students" / student_name(condition, seed)

    def evaluation_folder(self, condition: str, seed: int | None) -> Path:
        """Where a student's answers go."""
        return self.folder / "evaluations" / student_name(condition, seed)

    @property
    def context(self) -> Strategy:
        """What stands beside every question that a student reads: the same for all conditions."""
        return Strategy("student", self.study.student.instruction, self.study.student.place)

    @cached_property
    def store(self) -> RecordStore:
        """The teachers' records."""
        from distill.records import RecordStore

        return RecordStore(self.folder / "records")

    @property
    def teacher(self) -> Teacher:
        """The study's teacher; its weights are loaded at its first answer."""
        from distill.teachers import open_teacher

        if self._teacher is None:
            self._teacher = open_teacher(self.study.teacher)
        return self._teacher

    def begin(self) -> None:
        """Checks names that only the libraries know, and makes the folder, before any work is done.

        Raises:
            StudyError: an unknown measure of heads.
            distill.teachers.TeacherError: an unknown kind of teacher.
            distill.train.TrainError: an optimizer, schedule or tracker that is not known, or takes other arguments.
            OSError: the folder cannot be written.
        """
        from distill.teachers import check_kind
        from distill.train import check_settings

        check_kind(self.study.teacher.kind)
        check_settings(self.study.train)
        if self.study.heads.records:
            from interp.measures import MeasureError, load_measures

            try:
                load_measures(self.study.heads.measures)
            except MeasureError as error:
                raise StudyError(f"heads.measures: {error}") from error
        if FIRST_RANK:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "study.json").exists():
                self.write_down()

    def write_down(self) -> None:
        """Writes the study with all defaults filled in; after a change, once what it changes has been accepted."""
        if FIRST_RANK:
            write_whole(self.folder / "study.json", json.dumps(as_tables(self.study), indent=1) + "\n")

    def close_teacher(self) -> None:
        """Frees the teacher's memory."""
        if self._teacher is not None:
            self._teacher.close()
            self._teacher = None
            gc.collect()

    def say(self, text: str) -> None:
        """A line of progress."""
        if self.show_progress:
            print(text, file=sys.stderr, flush=True)

    # --- collect ----------------------------------------------------------------------------------------------------

    def group(self, condition: str, teacher: Teacher) -> RecordGroup:
        """The records of a condition's teacher and strategy."""
        config = self.teacher_config(condition)
        strategy = self.strategies.get(condition, Strategy(condition))
        published = self.study.objective.name == "published" and condition != "finetune"
        return self.store.group(
            {
                "strategy": strategy.content,
                "teacher": teacher.identity,
                "sampling": {key: getattr(config, key) for key in ("temperature", "top_p", "max_new_tokens", "seed")},
                "signal": {"tier": config.signal, "top_k": config.top_k if config.signal == "topk" else None},
                "scored": "prompt" if published else "response",
                "max_tokens": self.study.objective.max_tokens if published else None,
            }
        )

    def teacher_config(self, condition: str) -> TeacherConfig:
        """Who answers for a condition: the reference solutions for `finetune`, the study's teacher for all others."""
        return TeacherConfig(kind="reference", signal="text") if condition == "finetune" else self.study.teacher

    def teacher_of(self, condition: str) -> Teacher:
        """The open teacher of a condition."""
        from distill.teachers import open_teacher

        return open_teacher(self.teacher_config(condition)) if condition == "finetune" else self.teacher

    def collect(self, condition: str) -> None:
        """The teacher's answers to the training and held-out problems under a condition's strategy; what is there is kept."""
        if condition == "untouched":
            return
        teacher, strategy = self.teacher_of(condition), self.strategies.get(condition, Strategy(condition))
        group = self.group(condition, teacher)
        published = self.study.objective.name == "published" and condition != "finetune"

        def answer(problems: Sequence[Problem]) -> list[Record]:
            if published:
                return teacher.score_prompts(problems, strategy, self.study.objective.max_tokens)
            return teacher.answer(problems, strategy)

        wanted = self.train if published else [*self.train, *self.heldout]
        group.collect(wanted, answer, self.study.teacher.shard_rows, label=f"collect {condition}" if self.show_progress else None)
        head = teacher.head() if self.study.teacher.signal == "hidden" and condition != "finetune" else None
        if head is not None:
            self.store.write_head(head, teacher.identity)

    # --- train ------------------------------------------------------------------------------------------------------

    def train_one(self, condition: str, seed: int) -> Path:
        """Trains one student, or goes on with it; a finished one of the same settings and parents is kept.

        Raises:
            StudyError: a finished student of other settings or parents; the message says which key.
        """
        if condition == "untouched":
            raise StudyError("untouched is the student without training; there is nothing to train")
        folder = self.student_folder(condition, seed)
        with self._alone(folder):
            if not self._is_trained(condition, seed):
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

    def _is_trained(self, condition: str, seed: int | None) -> bool:
        """A whole student of this study's settings and parents is there; a damaged one is moved aside.

        Raises:
            StudyError: it is of other settings, or of another base or teacher.
        """
        folder = self.student_folder(condition, seed)
        if not folder.exists():
            return False
        try:
            card = read_student(folder)
        except StudentError as error:
            self._set_aside(folder, str(error))
            return False
        now = {**self.settings(condition), "parents": self.parents(condition)}
        before = {**card["settings"], "parents": {key: card["parents"].get(key) for key in now["parents"]}}
        changed = differences(before, now)
        if changed:
            raise StudyError(
                f"{folder} was trained with other settings:\n  " + "\n  ".join(changed) + "\nSet them back, delete it, or set another `out`"
            )
        return True

    def _set_aside(self, folder: Path, why: str) -> None:
        """Nothing damaged is trusted, and nothing is deleted."""
        if not FIRST_RANK:
            return
        number = next(n for n in count(1) if not folder.with_name(f"{folder.name}.damaged-{n}").exists())
        place = folder.rename(folder.with_name(f"{folder.name}.damaged-{number}"))
        print(f"note: {why.splitlines()[0].partition(';')[0]}; moved to {place}, and done again", file=sys.stderr)

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
        from distill.teachers import tokenizer_digest
        from interp.checkpoints import identify

        own = self.study.student
        about = identify(own.model, revision=own.revision, trust_remote_code=own.trust_remote_code)
        return {**about, "tokenizer": tokenizer_digest(self.tokenizer)}

    @cached_property
    def tokenizer(self) -> Any:
        """The students', without the weights."""
        from interp.checkpoints import open_tokenizer

        own = self.study.student
        return open_tokenizer(own.model, revision=own.revision, trust_remote_code=own.trust_remote_code)

    def _train(self, condition: str, seed: int) -> None:
        from accelerate import PartialState

        from distill.student import new_student
        from distill.train import train_student
        from interp.checkpoints import choose_device
        from interp.versions import versions

        teacher = self.teacher_of(condition)
        objective = self.objective(condition)
        live = self.study.teacher if condition != "finetune" and objective.teacher == "live" and objective.alpha < 1 else None
        PartialState(cpu=choose_device(self.study.student.device) == "cpu")  # under a launcher, each process takes its own device
        model, checkpoint = new_student(self.study.student, seed)
        texts = self.texts(condition, teacher, checkpoint.tokenizer)
        missing = missing_share(texts, objective, model.get_output_embeddings().weight.shape[0])
        self._tell(condition, texts, missing)
        head, live_model = None, None
        if live is not None:
            live_model, head = teacher.model_and_head()
        elif objective.alpha < 1 and self.study.teacher.signal == "hidden":
            head = self.store.read_head(teacher.identity)
        strategy = self.strategies.get(condition, Strategy(condition))
        card = {
            "condition": condition,
            "seed": seed,
            "strategy": {"name": strategy.name, **strategy.content},
            "formula": objective.formula,
            "settings": self.settings(condition),
            "parents": {**self.parents(condition), "texts_sha256": texts.digest()},
            "counts": texts.counts,
            "missing_mass": missing,
            "versions": versions(),
        }
        train_student(
            self.student_folder(condition, seed),
            model,
            checkpoint.tokenizer,
            texts,
            objective=objective,
            config=self.study.train,
            seed=seed,
            card=card,
            teacher_head=head,
            teacher=live_model,
            trajectory=self._trajectory(student_name(condition, seed), checkpoint),
            show_progress=self.show_progress,
        )

    def _trajectory(self, name: str, checkpoint: Checkpoint) -> HeadTrajectory | None:
        """Records a student's heads while it learns; texts that cannot be annotated are no reason not to train."""
        from distill.trajectory import HeadTrajectory, TrajectoryError, fixed_texts, note
        from interp.tokens import TokenError

        own = self.study.heads
        if own.records == 0:
            return None
        try:
            tokens = fixed_texts(checkpoint, self.heldout[: own.texts], self.chat(checkpoint.tokenizer))
        except (TokenError, TrajectoryError) as error:
            if FIRST_RANK:
                note(str(error))
            return None
        return HeadTrajectory(tokens, own.measures, name, own.records)

    def objective(self, condition: str) -> ObjectiveConfig:
        """What a condition's student minimises: reference solutions have no distribution, so `finetune` is cross-entropy alone."""
        own = self.study.objective
        return replace(own, alpha=1.0, teacher="records", keep="all") if condition == "finetune" else own

    def texts(self, condition: str, teacher: Teacher, tokenizer: Any) -> Texts:
        """What a condition's student learns from.

        Raises:
            StudyError: a logits objective between two tokenizers.
        """
        from distill.batches import aligned_texts, published_texts
        from distill.teachers import same_tokenizer

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
        grader = self.study.evaluation.grader

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

    def chat(self, tokenizer: Any) -> bool:
        """Whether the student reads through its chat template."""
        has = getattr(tokenizer, "chat_template", None) is not None
        if self.study.student.chat and not has:
            raise StudyError("student.chat is true, but the student's tokenizer has no chat template; leave it out")
        return has if self.study.student.chat is None else self.study.student.chat

    def settings(self, condition: str) -> dict[str, Any]:
        """All that shapes a condition's student, without names, paths of results and how fast the work is done."""
        strategy = self.strategies.get(condition, Strategy(condition))
        teacher = None if condition == "finetune" else _without(as_tables(self.study.teacher), RUNTIME["teacher"])
        return {
            "strategy": strategy.content,
            "teacher": teacher,
            "student": _without(as_tables(self.study.student), RUNTIME["student"]),
            "objective": as_tables(self.objective(condition)),
            "train": _without(as_tables(self.study.train), RUNTIME["train"]),
            "problems_sha256": problems_digest(self.train),
            "grader": self.study.evaluation.grader if self.study.objective.keep == "correct" else None,
        }

    def _tell(self, condition: str, texts: Texts, missing: tuple[float, float] | None) -> None:
        """What happened to the records, and what a top k leaves out at the temperature."""
        told = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in texts.counts.items() if number and name != "records")
        self.say(f"{condition}: {texts.counts['records']} records, {told}")
        if missing is not None and FIRST_RANK:
            print(
                f"{condition}: at temperature {self.study.objective.temperature:g}, {missing[0]:.1%} to {missing[1]:.1%} of the teacher's "
                f"mass lies outside the stored top {self.study.teacher.top_k}, and is left out",
                file=sys.stderr,
            )

    # --- evaluate ---------------------------------------------------------------------------------------------------

    def evaluate_one(self, condition: str, seed: int | None) -> Path:
        """A student's answers to the test problems, and its likelihoods on the held-out ones; what is there is kept.

        Raises:
            StudyError: the student is not trained yet.
        """
        folder = self.evaluation_folder(condition, seed)
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
            "base": self.base,
            "dtype": self.study.student.dtype,
        }
        if condition == "untouched":
            return who
        student = self.student_folder(condition, seed)
        if not self._is_trained(condition, seed):
            raise StudyError(f"{student} is not there: the student is not trained yet; run train")
        return {**who, "adapter_sha256": file_sha256(student / WEIGHTS)}

    def _evaluate(self, condition: str, seed: int | None, folder: Path) -> None:
        from distill.evaluate import answer_problems, began_with
        from distill.heldout import score_heldout

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
                checkpoint.append(self.open_student(condition, seed))
            return checkpoint[0]

        if not (folder / "evaluation.json").is_file():
            opened()
        answer_problems(
            checkpoint[0].model if checkpoint else None,
            checkpoint[0].tokenizer if checkpoint else None,
            self.test,
            self.study.evaluation,
            self.context,
            self.chat_of_student,
            folder=folder,
            about=about,
            label=f"evaluate {student_name(condition, seed)}" if self.show_progress else None,
        )
        score_heldout(self, condition, folder, about, opened)

    def _check_whole(self, folder: Path) -> None:
        """A damaged evaluation is moved aside, so that it is made again."""
        from distill.evaluate import EvaluationError, read_answers

        if folder.exists():
            try:
                read_answers(folder, DEFAULT_GRADER)
            except EvaluationError as error:
                self._set_aside(folder, str(error))

    @cached_property
    def chat_of_student(self) -> bool:
        """Whether the students read through their base's chat template."""
        return self.chat(self.tokenizer)

    def open_student(self, condition: str, seed: int | None) -> Checkpoint:
        """A student's model, as `analyses.heads` would open it."""
        from interp.checkpoints import open_checkpoint

        own = self.study.student
        source = own.model if condition == "untouched" else self.student_folder(condition, seed)
        base = own.model if condition != "untouched" else None
        revision = own.revision if condition == "untouched" else None
        return open_checkpoint(
            source, base=base, device=own.device, dtype=own.dtype, revision=revision, trust_remote_code=own.trust_remote_code
        )

    def evaluate_model(self, model: str) -> Path:
        """Any checkpoint's answers to the test problems, measured as the students are."""
        from distill.evaluate import answer_problems
        from interp.checkpoints import open_checkpoint

        own = self.study.student
        checkpoint = open_checkpoint(model, device=own.device, dtype=own.dtype, trust_remote_code=own.trust_remote_code)
        identity = {key: checkpoint.identity[key] for key in ("name", "revision", "weights_sha256", "adapter")}
        content = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:8]
        folder = self.folder / "evaluations" / f"model-{checkpoint.name}-{content}"  # folders of one name hold many models
        about = {"condition": checkpoint.name, "seed": None, "name": checkpoint.name, "model": identity}
        chat = self.chat(checkpoint.tokenizer)
        label = f"evaluate {checkpoint.name}" if self.show_progress else None
        with self._alone(folder):
            self._check_whole(folder)
            answer_problems(
                checkpoint.model,
                checkpoint.tokenizer,
                self.test,
                self.study.evaluation,
                self.context,
                chat,
                folder=folder,
                about=about,
                label=label,
            )
        from distill.results import report_model

        report_model(self, folder)
        return folder

    # --- all ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Every step of every condition and seed, then the tables."""
        for condition, seed in self.students:  # what cannot be gone on with is said before any work
            if seed is not None:
                self._is_trained(condition, seed)
        for condition in self.study.conditions:
            self.collect(condition)
        if self.study.objective.teacher == "records":
            self.close_teacher()
        for condition, seed in self.students:
            if seed is not None:
                self.say(f"train {student_name(condition, seed)}")
                self.train_one(condition, seed)
        self.close_teacher()
        for condition, seed in self.students:
            self.evaluate_one(condition, seed)
        from distill.results import report

        report(self)

    def _check_search(self) -> None:
        """Every trial can be trained with the teacher's signals."""
        own, signal = self.study.search, self.study.teacher.signal
        if self.study.objective.teacher == "live" or own.alpha[0] == 1:
            return
        if signal == "text":
            raise StudyError(
                f'search.alpha is {list(own.alpha)}, but teacher.signal is "text": set search.alpha = [1.0], or another signal'
            )
        truncated = self.study.objective.topk_at_temperature == "truncate"
        if signal == "topk" and set(own.temperature) != {1.0} and not truncated:
            raise StudyError(
                f"search.temperature is {list(own.temperature)}, but stored top-k signals are sound at temperature 1 only: set "
                'search.temperature = [1.0], teacher.signal = "hidden", or objective.topk_at_temperature = "truncate"'
            )

    # --- search -----------------------------------------------------------------------------------------------------

    def search(self) -> None:
        """Trains students of many settings, and measures them on the held-out problems."""
        from distill.evaluate import read_answers
        from distill.heldout import heldout_scores
        from distill.search import search
        from distill.statistics import shown
        from distill.train import DivergedError

        own = self.study.search
        if own.condition in ("untouched", *(() if own.condition in self.study.conditions else (own.condition,))):
            raise StudyError(f"search.condition is {own.condition!r}; it must be a condition of the study that is trained")
        self._check_search()
        self.collect(own.condition)
        self.collect(self.study.baseline)

        def measure(settings: dict[str, Any]) -> float:
            changed = replace(
                self.study,
                out=str(self.folder / "search" / f"trial-{settings['trial']:04d}"),
                objective=replace(self.study.objective, temperature=settings["temperature"], alpha=settings["alpha"]),
                train=replace(self.study.train, learning_rate=settings["learning_rate"]),
                student=replace(self.study.student, rank=int(settings["rank"])),
                heads=HeadsConfig(records=0),
            )
            trial = StudyRun(changed, show_progress=False)
            trial.store = self.store
            self.say(f"trial {settings['trial']}: " + ", ".join(f"{k} {v:.4g}" for k, v in settings.items() if k != "trial"))
            try:
                trial.train_one(own.condition, own.seed)
            except DivergedError as error:
                self.say(f"trial {settings['trial']}: {error}")
                return math.nan
            if own.metric == "heldout_nll":
                scores = heldout_scores(trial, trial.open_student(own.condition, own.seed), own.condition).set_index("answers")
                value = float(scores["nll"]["own" if "own" in scores.index else "reference"])
            else:
                trial.test = self.heldout
                value = float(read_answers(trial.evaluate_one(own.condition, own.seed), self.study.evaluation.grader)["correct"].mean())
            self.say(f"trial {settings['trial']}: {own.metric} {value:.5g}")
            return value

        fixed = {
            **self.settings(own.condition),
            "parents": self.parents(own.condition),
            "heldout_sha256": problems_digest(self.heldout),
            "evaluation": _without(as_tables(self.study.evaluation), ("batch_size", "level", "resamples")),
        }
        for section, key in (("objective", "temperature"), ("objective", "alpha"), ("train", "learning_rate"), ("student", "rank")):
            del fixed[section][key]
        table = search(own, self.folder / "search", measure, fixed)
        print(shown(table.rename(columns={"value": own.metric})))
        print(f"\n{self.folder / 'search' / 'best.toml'} has the best of {len(table)}, to be put into a study")


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


def missing_share(texts: Texts, objective: ObjectiveConfig, vocabulary: int) -> tuple[float, float] | None:
    """Bounds of the mass that stored top-k signals leave out at the objective's temperature, a mean over tokens (at most 200 texts).

    None where nothing is left out for that reason: temperature 1, no divergence, or other signals.
    """
    import torch

    from distill.losses import missing_mass

    if objective.alpha == 1 or objective.temperature == 1 or objective.teacher == "live":
        return None
    rows = [t.record.signals["topk_log_probs"] for t in texts.texts[:200] if t.record is not None and "topk_log_probs" in t.record.signals]
    if not rows:
        return None
    lower, upper = missing_mass(torch.cat(rows), vocabulary, objective.temperature)
    return float(lower.mean()), float(upper.mean())


def student_name(condition: str, seed: int | None) -> str:
    """Name of a student's folder, for people; the card says the same."""
    return condition if seed is None else f"{condition}-seed{seed}"


def _without(table: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in keys}
