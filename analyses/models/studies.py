"""The students of a study as models of a comparison, and accuracies of models."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analyses.command import say
from analyses.models.named import NamedModel
from interp.tables.errors import InputError

if TYPE_CHECKING:
    from distill.problems.sets import Problem

ACCURACY_COLUMNS = ("accuracy", "accuracy_low", "accuracy_high", "n_problems")
"""What is known of a model's answers: accuracy, its interval and the number of problems."""


def study_models(folder: Path) -> tuple[list[NamedModel], list[Problem], str]:
    """Return every trained student of a study with the untouched one, its test problems, and the default baseline.

    Args:
        folder: results folder of the study.

    Raises:
        InputError: there is no study, or it has fewer than two students.
    """
    from distill.study.conditions import UNTOUCHED, condition_of
    from distill.study.config import study_from
    from distill.study.folder import load_set, student_name

    path = folder / "study.json"
    try:
        study = study_from(json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        raise InputError(f"{folder} is not a study of distill (no study.json); run one with python -m distill run STUDY.toml") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    base = study.student.model
    accuracy = study_accuracies(folder)
    models = []
    for condition in study.conditions:
        for seed in study.seeds if condition_of(condition).trained else (None,):
            name = student_name(condition, seed)
            place = folder / "students" / name
            known = accuracy.get((condition, seed), {})
            if not condition_of(condition).trained:
                models.append(NamedModel(name, condition, seed, source=base, accuracy=known))
            elif (place / "adapter_config.json").is_file():
                models.append(NamedModel(name, condition, seed, source=str(place), base=base, accuracy=known))
            else:
                say(f"note: {name} is not trained yet and is left out")
    if len(models) < 2:
        raise InputError(f"{folder} has {len(models)} student to compare; train more with python -m distill run")
    conditions = [m.condition for m in models]
    return models, load_set(study.data.test, "test"), UNTOUCHED.name if UNTOUCHED.name in conditions else study.baseline


def study_accuracies(folder: Path) -> dict[tuple[str, int | None], dict[str, float]]:
    """Return accuracy, its interval and the number of problems of every evaluated student of a study, by condition and seed."""
    file = folder / "students.csv"
    if not file.is_file():
        return {}
    table = pd.read_csv(file)
    return {
        (str(row["condition"]), None if pd.isna(row["seed"]) else int(row["seed"])): dict(
            zip(ACCURACY_COLUMNS, (row["accuracy"], row["low"], row["high"], row["problems"]), strict=True)
        )
        for row in table.to_dict("records")
    }


def add_accuracies(models: Iterable[NamedModel], file: Path) -> list[NamedModel]:
    """Return the models with accuracies from a CSV file.

    Args:
        models: of the comparison.
        file: has the columns model and accuracy, and optionally accuracy_low, accuracy_high and n_problems.

    Raises:
        InputError: the file cannot be read, columns are missing, or it has no model of the comparison.
    """
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise InputError(f"--accuracy {file} cannot be read ({error})") from error
    if not {"model", "accuracy"} <= set(table.columns):
        raise InputError(f"--accuracy {file} has the columns {', '.join(table.columns)}; model and accuracy are needed")
    repeated = table["model"][table["model"].duplicated()]
    if len(repeated):
        raise InputError(f"--accuracy {file} has the model {repeated.iloc[0]!r} twice")
    for column in [name for name in ACCURACY_COLUMNS[:3] if name in table.columns]:
        numbers = pd.to_numeric(table[column], errors="coerce")
        wrong = table[~numbers.between(0, 1)]
        if len(wrong):
            row = wrong.iloc[0]
            raise InputError(f"--accuracy {file}: {column} of {row['model']} is {row[column]!r}; a fraction from 0 to 1 is needed")
    rows = table.set_index("model").to_dict("index")
    models = list(models)
    if not any(m.name in rows for m in models):
        raise InputError(f"--accuracy {file} has the models {', '.join(map(str, rows))}; none of {', '.join(m.name for m in models)}")
    return [
        replace(m, accuracy={key: float(value) for key, value in rows[m.name].items() if key in ACCURACY_COLUMNS}) if m.name in rows else m
        for m in models
    ]
