"""The settings of a study, read from one TOML file: models, problems, strategies, training and evaluation.

Each section is a frozen dataclass. An unknown key is refused with the nearest known one. `docs/study.md` shows a complete file.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import msgspec

from distill.evaluation.options import EvaluationConfig
from distill.objectives.options import ObjectiveConfig
from distill.problems.options import DataConfig
from distill.settings import FOLDER_NAME, require_seed, require_setting
from distill.students.options import StudentConfig
from distill.study.conditions import CONTROLS, condition_of
from distill.teachers.catalog import TEACHERS, in_process_kinds
from distill.teachers.options import TeacherConfig
from distill.training.options import PRESETS, TrainConfig, TrajectoryConfig
from interp.tables.errors import StudyError
from interp.tables.plugins import nearest
from interp.tables.versions import current


@dataclass(frozen=True)
class SearchConfig:
    """Options of `search`: what it varies, and which metric it optimizes.

    Attributes:
        condition: the condition whose student is optimized.
        trials: total number of students to train.
        metric: heldout_nll (mean negative log-likelihood of the teacher's held-out answers, nats per token) or heldout_accuracy.
        split: problems for the metric; only "heldout", from the training split, is allowed.
        temperature: lowest and highest value; a single value fixes it.
        alpha: lowest and highest value; a single value fixes it.
        learning_rate: lowest and highest value on a log scale; a single value fixes it.
        rank: values to choose from.
        seed: seed of the sampler and of each trial's student.
    """

    condition: str = "none"
    trials: int = 20
    metric: Literal["heldout_nll", "heldout_accuracy"] = "heldout_nll"
    split: str = "heldout"
    temperature: tuple[float, ...] = (1.0, 8.0)
    alpha: tuple[float, ...] = (0.0, 1.0)
    learning_rate: tuple[float, ...] = (1e-5, 1e-3)
    rank: tuple[int, ...] = (4, 8, 16, 32)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_setting(
            self.split == "heldout",
            f'search.split is {self.split!r}; only "heldout" is allowed, because settings chosen on test problems bias the results',
        )
        require_setting(self.trials >= 1, f"search.trials is {self.trials}; at least 1 is needed")
        for name in ("temperature", "alpha", "learning_rate"):
            values = getattr(self, name)
            require_setting(
                len(values) in (1, 2) and list(values) == sorted(values),
                f"search.{name} is {list(values)}; give [lowest, highest] or [value]",
            )
        require_setting(
            self.temperature[0] > 0 and self.learning_rate[0] > 0, "search.temperature and search.learning_rate must be above 0"
        )
        require_setting(self.alpha[0] >= 0 and self.alpha[-1] <= 1, "search.alpha must lie in [0, 1]")
        require_seed(self.seed, "search.seed")
        require_setting(bool(self.rank) and min(self.rank) >= 1, "search.rank needs values of at least 1")


@dataclass(frozen=True)
class Study:
    """The settings of a study.

    Attributes:
        name: name of the results folder.
        conditions: controls (untouched, finetune) and names of strategies.
        seeds: one student is trained for each condition and seed.
        strategies: TOML files with your own strategies.
        out: results folder; left out, runs/NAME.
        baseline: the condition with which the others are compared.
        data: the problems.
        teacher: the model that answers.
        student: the model that learns.
        objective: the loss.
        train: the training.
        evaluation: how students are evaluated.
        heads: what is recorded of the student's heads during training.
        search: what `search` varies.
    """

    name: str
    conditions: tuple[str, ...] = (*CONTROLS, "none", "teacher", "ground_truth", "confidence")
    seeds: tuple[int, ...] = (0,)
    strategies: tuple[str, ...] = ()
    out: str | None = None
    baseline: str = "none"
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    heads: TrajectoryConfig = field(default_factory=TrajectoryConfig)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        """Check what concerns several sections.

        Raises:
            StudyError: sections exclude each other, or a value is out of range.
        """
        require_setting(bool(FOLDER_NAME.fullmatch(self.name)), f"name is {self.name!r}; letters, digits, '_', '-' and '.' are allowed")
        for key in ("conditions", "seeds"):
            values = getattr(self, key)
            require_setting(bool(values) and len(set(values)) == len(values), f"{key} is {list(values)}; give at least one, each only once")
        for seed in self.seeds:
            require_seed(seed, "seeds")
        own = self.objective
        require_setting(
            own.teacher == "records" or TEACHERS[self.teacher.kind].in_process,
            f'objective.teacher = "live" needs teacher.kind = {in_process_kinds()}, but it is "{self.teacher.kind}"',
        )
        distilled = any(condition_of(name).has_teacher for name in self.conditions) and own.alpha < 1
        if distilled and own.teacher == "records":
            require_setting(
                self.teacher.signal != "text",
                f'objective.alpha is {own.alpha}, which needs the teacher\'s distribution, but teacher.signal is "text"; '
                "set alpha = 1, or signal to topk, hidden or dense",
            )
            require_setting(
                not (self.teacher.signal == "topk" and own.temperature != 1 and own.topk_at_temperature == "refuse"),
                f'teacher.signal is "topk", but objective.temperature is {own.temperature}; a stored top-k is exact only at temperature 1, '
                'because the mass of the other tokens is unknown at others. Set signal = "hidden" or temperature = 1, or allow it with '
                'objective.topk_at_temperature = "truncate"',
            )

    @property
    def folder(self) -> Path:
        """The results folder."""
        return Path(self.out) if self.out else Path("runs") / self.name


def read_study(file: str | Path, settings: Sequence[str] = ()) -> Study:
    """Read and check a study.

    Args:
        file: TOML file.
        settings: changes to it, such as "train.epochs=1" or "seeds=[0, 1]", with values in TOML; other values are taken as text.

    Raises:
        StudyError: the file cannot be read, a key is unknown (the message has the nearest known one), or a value is out of range.
    """
    try:
        content = tomllib.loads(Path(file).read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{file} is not valid TOML ({error})") from error
    except OSError as error:
        raise StudyError(f"{file} cannot be read ({error.strerror or error})") from error
    content.setdefault("name", Path(file).stem)
    for setting in settings:
        _set(content, setting)
    return study_from(content, str(file))


def study_from(content: Mapping[str, Any], place: str = "study") -> Study:
    """Return the study that the tables of a TOML file, or of study.json, describe; those of earlier versions are accepted.

    Args:
        content: the tables.
        place: start of error messages.

    Raises:
        StudyError: as `read_study`.
    """
    content = dict(current(content))
    train = content.get("train")
    if isinstance(train, dict) and "preset" in train:
        preset = train["preset"]
        if not isinstance(preset, str) or preset not in PRESETS:
            raise StudyError(f"{place}: train.preset is {preset!r}; known: {', '.join(PRESETS)}")
        content["train"] = {**PRESETS[preset], **{key: value for key, value in train.items() if key != "preset"}}
    _check_keys(content, Study, "", place)
    try:
        return msgspec.convert(content, Study)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, StudyError):
            raise StudyError(f"{place}: {error.__cause__}") from None
        raise StudyError(f"{place}: {str(error).replace('`$.', '`')}{_allowed(str(error))}") from None


def _allowed(message: str) -> str:
    """Return a hint at the values that a key accepts, if it accepts only certain names."""
    found = re.fullmatch(r"Invalid enum value '?(?P<seen>.*?)'? - at `\$\.(?P<path>[\w.]+)`", message)
    if not found:
        return ""
    kind: Any = Study
    for key in found["path"].split("."):
        kind = get_type_hints(kind).get(key)
    known = [str(value) for value in get_args(kind)]
    return f"{nearest(found['seen'], known)}; known: {', '.join(known)}" if known else ""


def _check_keys(content: Mapping[str, Any], cls: type, prefix: str, place: str) -> None:
    hints = get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key, value in content.items():
        if key not in known:
            extra = ["preset"] if cls is TrainConfig else []
            near = nearest(key, [*known, *extra]) or _nearest_elsewhere(key)
            section = f" of [{prefix.rstrip('.')}]" if prefix else ""
            raise StudyError(f"{place}: unknown key {prefix}{key}{near}; known keys{section}: {', '.join([*known, *extra])}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            _check_keys(value, hints[key], f"{prefix}{key}.", place)  # pyright: ignore[reportArgumentType]


def _nearest_elsewhere(word: str) -> str:
    """Return a hint at a key of the same name in another section."""
    hints = get_type_hints(Study)
    for section, cls in hints.items():
        if dataclasses.is_dataclass(cls) and word in [f.name for f in dataclasses.fields(cls)]:
            return f" (did you mean {section}.{word}?)"
    return ""


def _set(content: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise StudyError(f"--set {setting!r} is not KEY=VALUE, such as train.epochs=1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, last = key.strip().split(".")
    table = content
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise StudyError(f"--set {setting!r}: {section} is not a section")
    table[last] = value
