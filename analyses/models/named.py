"""TODO_DOC analyses/models/named.py."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from interp.tables.errors import DamagedError, InputError
from interp.tables.results import read_run_json

if TYPE_CHECKING:
    from distill.problems.sets import Problem


ACCURACY = ("accuracy", "accuracy_low", "accuracy_high", "n_problems")


@dataclass(frozen=True)
class Named:
    """One model of a comparison, before its heads are read.

    Attributes:
        name: in tables and figures.
        condition: what its seeds have in common; the name where there is no card.
        seed: of a student.
        folder: its head run; None where it is still to be measured.
        source: what `--model` of `analyses.heads` names; None where only the run's tables are at hand.
        base: base model of an adapter, where its config does not say.
        accuracy: accuracy, its interval and the number of problems, where known.
    """

    name: str
    condition: str
    seed: int | None = None
    folder: Path | None = None
    source: str | None = None
    base: str | None = None
    accuracy: dict[str, float] = field(default_factory=dict)


def folder_of(model: Named) -> Path:
    """Of a model whose heads are measured."""
    assert model.folder is not None
    return model.folder


def named(argument: str, base: str | None = None) -> Named:
    """What an argument of the command names: a head run, or a model.

    Raises:
        InputError: an empty name, an empty folder, or one of other things.
    """
    if not argument.strip():  # Path("") would be the folder that one is in
        raise InputError("the name of a model is empty; give a hub id, a folder, an adapter, a .gguf file, smollm2, or a head run")
    path = Path(argument).expanduser()
    if path.is_dir():
        if (path / "run.json").is_file():
            return _of_run(path)
        if (path / "study.json").is_file():
            raise InputError(f"{path} is a study; name it with --study {path}")
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            seen = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
            raise InputError(
                f"{path} holds {seen}: neither a head run (run.json) nor a model (config.json) nor an adapter; name another folder"
            )
        condition, seed = _card(path)
        return Named(path.resolve().name, condition or path.resolve().name, seed, source=argument, base=base)
    name = re.sub(r"[^\w.\-]+", "-", path.name.removesuffix(".gguf")) or "model"
    return Named(name, name, source=argument, base=base)


def all_named(arguments: Sequence[str], base: str | None = None) -> list[Named]:
    """What several arguments name; `base` goes to the adapters among them.

    Raises:
        InputError: as `named`, or a base where no adapter is named.
    """
    adapters = [(Path(argument).expanduser() / "adapter_config.json").is_file() for argument in arguments]
    if base is not None and not any(adapters):
        raise InputError(f"--base {base} was given, but {', '.join(arguments)} is no adapter (no adapter_config.json)")
    return [named(argument, base if adapter else None) for argument, adapter in zip(arguments, adapters, strict=True)]


def _of_run(folder: Path) -> Named:
    run = read_run_json(folder)
    source = str(run["config"].get("model", ""))
    adapter = Path(source).expanduser()
    condition, seed = _card(adapter) if adapter.is_dir() else (None, None)
    name = str(run["model"]["name"])
    return Named(name, condition or name, seed, folder=folder, source=source or None, base=run["config"].get("base"))


def _card(folder: Path) -> tuple[str | None, int | None]:
    """Condition and seed of a student of `distill`; nothing where there is no card."""
    from distill.students.lora import read_card

    if not (folder / "card.json").is_file():
        return None, None
    try:
        card = read_card(folder)
        return str(card["condition"]), card["seed"]
    except (DamagedError, KeyError) as error:
        raise InputError(f"{folder / 'card.json'}: {error}") from error


# --- a study --------------------------------------------------------------------------------------------------------


def of_study(folder: Path) -> tuple[list[Named], list[Problem], str]:
    """Every student of a study that is trained, the untouched one among them; its test problems; and the default baseline.

    Raises:
        InputError: no study there, or no student in it.
    """
    from distill.study.config import study_from
    from distill.study.folder import load_set, student_name

    path = folder / "study.json"
    try:
        study = study_from(json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        raise InputError(f"{folder} is no study of distill (no study.json); run one with python -m distill run STUDY.toml") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    base = study.student.model
    accuracy = study_accuracies(folder)
    models = []
    for condition in study.conditions:
        for seed in (None,) if condition == "untouched" else study.seeds:
            name = student_name(condition, seed)
            place = folder / "students" / name
            source = base if condition == "untouched" else str(place)
            if condition == "untouched" or (place / "adapter_config.json").is_file():
                known = accuracy.get((condition, seed), {})
                models.append(Named(name, condition, seed, source=source, base=None if condition == "untouched" else base, accuracy=known))
            else:
                print(f"note: {name} is not trained yet, and left out", file=sys.stderr)
    if len(models) < 2:
        raise InputError(f"{folder} has {len(models)} student to compare; train some with python -m distill run")
    names = [m.condition for m in models]
    return models, load_set(study.data.test, "test"), "untouched" if "untouched" in names else study.baseline


def study_accuracies(folder: Path) -> dict[tuple[str, int | None], dict[str, float]]:
    """Accuracy with its interval and number of problems of every evaluated student of a study, by condition and seed."""
    file = folder / "students.csv"
    if not file.is_file():
        return {}
    table = pd.read_csv(file)
    return {
        (str(row["condition"]), None if pd.isna(row["seed"]) else int(row["seed"])): dict(
            zip(ACCURACY, (row["accuracy"], row["low"], row["high"], row["problems"]), strict=True)
        )
        for row in table.to_dict("records")
    }


def with_accuracy(models: Iterable[Named], file: Path) -> list[Named]:
    """The models with accuracies of a CSV file: model, accuracy, and where there are those columns accuracy_low, accuracy_high, n_problems.

    Raises:
        InputError: a file that cannot be read, columns that are missing, or no model of the comparison in it.
    """
    from dataclasses import replace

    try:
        table = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise InputError(f"--accuracy {file} cannot be read ({error})") from error
    if not {"model", "accuracy"} <= set(table.columns):
        raise InputError(f"--accuracy {file} has the columns {', '.join(table.columns)}; model and accuracy are needed")
    repeated = table["model"][table["model"].duplicated()]
    if len(repeated):
        raise InputError(f"--accuracy {file} has the model {repeated.iloc[0]!r} twice")
    for column in [name for name in ACCURACY[:3] if name in table.columns]:
        numbers = pd.to_numeric(table[column], errors="coerce")
        wrong = table[~numbers.between(0, 1)]
        if len(wrong):
            row = wrong.iloc[0]
            raise InputError(f"--accuracy {file}: {column} of {row['model']} is {row[column]!r}; a share from 0 to 1 is needed")
    rows = table.set_index("model").to_dict("index")
    models = list(models)
    if not any(m.name in rows for m in models):
        raise InputError(f"--accuracy {file} has the models {', '.join(map(str, rows))}; none of {', '.join(m.name for m in models)}")
    return [replace(m, accuracy={k: float(v) for k, v in rows[m.name].items() if k in ACCURACY}) if m.name in rows else m for m in models]
