"""A study in one TOML file: who teaches whom, on which problems, under which strategies, and how it is measured.

Every section is a frozen dataclass; a wrong key is refused with the nearest right one. `docs/study.md` shows a whole file.
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
from distill.settings import nearest_hint, require, require_seed
from distill.strategies import NAME, RESERVED
from distill.students.options import StudentConfig
from distill.teachers.options import TeacherConfig
from distill.training.options import PRESETS, TrainConfig, TrajectoryConfig
from interp.tables.errors import StudyError


@dataclass(frozen=True)
class SearchConfig:
    """What `search` varies, and what it asks for.

    Attributes:
        condition: whose student is searched for.
        trials: students to train, in all.
        metric: heldout_nll (mean negative log-likelihood of the teacher's held-out answers, nats a token) or heldout_accuracy.
        split: where the metric is taken; only "heldout", from the training split.
        temperature: lowest and highest; one value fixes it.
        alpha: lowest and highest.
        learning_rate: lowest and highest, on a log scale.
        rank: values to choose from.
        seed: of the sampler and of every trial's student.
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
        """Checks the ranges."""
        require(
            self.split == "heldout",
            f'search.split is {self.split!r}: a search on it would leak into the results; only "heldout" is allowed',
        )
        require(self.trials >= 1, f"search.trials is {self.trials}; at least 1 is needed")
        for name in ("temperature", "alpha", "learning_rate"):
            values = getattr(self, name)
            require(
                len(values) in (1, 2) and list(values) == sorted(values),
                f"search.{name} is {list(values)}; give [lowest, highest] or [value]",
            )
        require(self.temperature[0] > 0 and self.learning_rate[0] > 0, "search.temperature and search.learning_rate must be above 0")
        require(self.alpha[0] >= 0 and self.alpha[-1] <= 1, "search.alpha must lie in [0, 1]")
        require_seed(self.seed, "search.seed")
        require(bool(self.rank) and min(self.rank) >= 1, "search.rank needs values of at least 1")


@dataclass(frozen=True)
class Study:
    """A whole study.

    Attributes:
        name: short, for the folder of results.
        conditions: untouched, finetune, and names of strategies.
        seeds: one student of each condition and seed.
        strategies: TOML files with strategies of one's own.
        out: folder of the results; left out: runs/NAME.
        baseline: the condition with which the others are compared.
        data: problems.
        teacher: who answers.
        student: who learns.
        objective: what is minimised.
        train: how.
        evaluation: how it is measured.
        heads: what is recorded of its heads while it learns.
        search: what `search` varies.
    """

    name: str
    conditions: tuple[str, ...] = ("untouched", "finetune", "none", "teacher", "ground_truth", "confidence")
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
        """Checks what concerns several sections."""
        require(bool(NAME.fullmatch(self.name)), f"name is {self.name!r}; letters, digits, '_', '-' and '.' are allowed")
        for key in ("conditions", "seeds"):
            values = getattr(self, key)
            require(bool(values) and len(set(values)) == len(values), f"{key} is {list(values)}; name at least one, each once")
        for seed in self.seeds:
            require_seed(seed, "seeds")
        own = self.objective
        require(
            own.teacher == "records" or self.teacher.kind == "transformers",
            'objective.teacher = "live" needs teacher.kind = "transformers"',
        )
        distilled = any(name not in RESERVED for name in self.conditions) and own.alpha < 1
        if distilled and own.teacher == "records":
            require(
                self.teacher.signal != "text",
                f'objective.alpha is {own.alpha}, so the teacher\'s distribution is needed, but teacher.signal is "text"; '
                "set alpha = 1, or signal to topk, hidden or dense",
            )
            require(
                not (self.teacher.signal == "topk" and own.temperature != 1 and own.topk_at_temperature == "refuse"),
                f"objective.temperature is {own.temperature}, but stored top-k signals are sound at temperature 1 only: the mass outside "
                'of them is not known elsewhere; set teacher.signal = "hidden", temperature = 1, or allow it by '
                'objective.topk_at_temperature = "truncate"',
            )

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return Path(self.out) if self.out else Path("runs") / self.name


def read_study(file: str | Path, settings: Sequence[str] = ()) -> Study:
    """Reads and checks a study.

    Args:
        file: TOML.
        settings: changes on top of it, such as "train.epochs=1" or "seeds=[0, 1]", the value in TOML's form; a value that is no TOML
            is taken as text.

    Raises:
        StudyError: a file that cannot be read, a wrong key (the nearest is named), a value out of range.
    """
    try:
        content = tomllib.loads(Path(file).read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{file}: no valid TOML ({error})") from error
    except OSError as error:
        raise StudyError(f"{file}: cannot be read ({error.strerror or error})") from error
    content.setdefault("name", Path(file).stem)
    for setting in settings:
        _set(content, setting)
    return study_from(content, str(file))


def study_from(content: Mapping[str, Any], place: str = "study") -> Study:
    """A study from the tables of a TOML file, as `read_study`."""
    content = dict(content)
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
    """The values that a key takes, where it takes a few names."""
    found = re.fullmatch(r"Invalid enum value '?(?P<seen>.*?)'? - at `\$\.(?P<path>[\w.]+)`", message)
    if not found:
        return ""
    kind: Any = Study
    for key in found["path"].split("."):
        kind = get_type_hints(kind).get(key)
    known = [str(value) for value in get_args(kind)]
    return f"{nearest_hint(found['seen'], known)}; known: {', '.join(known)}" if known else ""


def _check_keys(content: Mapping[str, Any], cls: type, prefix: str, place: str) -> None:
    hints = get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key, value in content.items():
        if key not in known:
            extra = ["preset"] if cls is TrainConfig else []
            near = nearest_hint(key, [*known, *extra]) or _near_elsewhere(key)
            section = f" of [{prefix.rstrip('.')}]" if prefix else ""
            raise StudyError(f"{place}: unknown key {prefix}{key}{near}; known keys{section}: {', '.join([*known, *extra])}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            _check_keys(value, hints[key], f"{prefix}{key}.", place)  # pyright: ignore[reportArgumentType]


def _near_elsewhere(word: str) -> str:
    """A key that stands in another section."""
    hints = get_type_hints(Study)
    for section, cls in hints.items():
        if dataclasses.is_dataclass(cls) and word in [f.name for f in dataclasses.fields(cls)]:
            return f" (did you mean {section}.{word}?)"
    return ""


def _set(content: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise StudyError(f"--set {setting!r}: it must be KEY=VALUE, such as train.epochs=1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, last = key.strip().split(".")
    table = content
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise StudyError(f"--set {setting!r}: {section} is no section")
    table[last] = value
