"""Students' heads during training, for `analyses.shifts --trajectory`: as they were recorded, or measured from checkpoints on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analyses.command import say
from analyses.models.studies import ACCURACY_COLUMNS, study_accuracies
from interp.tables.errors import InputError, OptionError

if TYPE_CHECKING:
    from analyses.shifts.options import ShiftsConfig
    from distill.problems.sets import Problem


_DEFAULT_MEASURES = ("entropy_nats", "bos_mass", "mean_distance", "numeric_mass", "operator_mass")
"""Measures that are taken at checkpoints unless others are named: those that a study records."""

_DEFAULT_PROBLEMS = 8
"""Number of problems that checkpoints read unless `--limit` is given."""


@dataclass(frozen=True)
class StudentTrajectory:
    """One student during training.

    Attributes:
        name: name in tables and figures.
        place: the student's folder.
        heads: rows of `interp.tables.shifts.TRAJECTORY`.
        losses: columns model, condition, seed, step, loss.
        about: row of the `models` table.
    """

    name: str
    place: Path
    heads: pd.DataFrame
    losses: pd.DataFrame
    about: dict[str, Any]


def follow_student(place: Path, options: ShiftsConfig) -> StudentTrajectory:
    """Return a student's recorded heads, or measure those of the checkpoints in a folder.

    Args:
        place: a student of a study, or a folder of checkpoints.
        options: how checkpoints are measured.

    Raises:
        InputError: the folder has neither.
        StudyError: the recording is damaged.
    """
    from distill.students.card import CARD_FILE, read_card
    from distill.training.trajectory import TRAJECTORY_FILE, checkpoint_folders, read_trajectory, record_checkpoints

    if not place.is_dir():
        raise InputError(f"--trajectory {place} is not a folder; name students of a study, or folders with checkpoint-N in them")
    card = read_card(place) if (place / CARD_FILE).is_file() else {}
    name = place.resolve().name.removesuffix(".partial")
    if (place / TRAJECTORY_FILE).is_file():
        heads = read_trajectory(place)
    elif any(place.glob("checkpoint-*")):
        say(f"measuring the checkpoints of {name}")
        heads = record_checkpoints(
            checkpoint_folders(place),
            _problems(options),
            options.measures or _DEFAULT_MEASURES,
            base=options.base,
            device=options.device,
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
        )
    else:
        raise InputError(f"{place} has neither a {TRAJECTORY_FILE} nor checkpoint-N folders: its heads were not recorded during training")
    who = {"model": name, "condition": card.get("condition", name), "seed": card.get("seed")}
    losses = pd.DataFrame(_losses(place), columns=["step", "loss"]).assign(**who)
    known = study_accuracies(place.resolve().parent.parent).get((str(who["condition"]), who["seed"]), {})
    return StudentTrajectory(name, place, heads.assign(model=name), losses, {**who, **dict.fromkeys(ACCURACY_COLUMNS, np.nan), **known})


def _problems(options: ShiftsConfig) -> list[Problem]:
    """Return the problems that checkpoints read."""
    from distill.problems.sets import load_problems

    return load_problems(options.problems or "shipped", options.split, options.limit or _DEFAULT_PROBLEMS)


def _losses(place: Path) -> list[dict[str, float]]:
    """Return steps and losses from a student's log, or from the last checkpoint."""
    log = place / "training.jsonl"
    if log.is_file():
        lines = [json.loads(line) for line in log.read_text("utf-8").splitlines() if line.strip()]
    else:
        states = sorted(place.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name.rsplit("-", 1)[1]))
        lines = json.loads(states[-1].read_text("utf-8"))["log_history"] if states else []
    return [{"step": line["step"], "loss": line["loss"]} for line in lines if "loss" in line]


def moved_table(trajectory: pd.DataFrame, region: str) -> pd.DataFrame:
    """Return how far each student's heads moved from the first recorded step to the last, a row per student and measure.

    Columns: model, measure, steps, moved (mean over heads of |last - first| / s, where s is the standard deviation over heads at the first
    step), head (the one that moved most, layer.head) and its difference.

    Args:
        trajectory: rows of `interp.tables.shifts.TRAJECTORY`.
        region: region of the queries.
    """
    rows = []
    for (model, measure), part in trajectory[trajectory["region"] == region].groupby(["model", "measure"], observed=True, sort=False):
        wide = part.pivot(index=["layer", "head"], columns="step", values="mean")
        first, last = wide[wide.columns.min()], wide[wide.columns.max()]
        difference = (last - first).dropna()
        if difference.empty:
            continue
        at = int(difference.abs().to_numpy().argmax())
        spread = float(first.std(ddof=0))
        rows.append(
            {
                "model": model,
                "measure": measure,
                "steps": f"{wide.columns.min()} to {wide.columns.max()}",
                "moved": float(difference.abs().mean()) / spread if spread > 0 else np.nan,
                "head": "{}.{}".format(*difference.index[at]),
                "difference": float(difference.iloc[at]),
            }
        )
    return pd.DataFrame(rows, columns=["model", "measure", "steps", "moved", "head", "difference"])


def compare_trajectories(options: ShiftsConfig) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Return the tables of students' heads during training, and the content of run.json.

    Args:
        options: which students.

    Raises:
        OptionError: two students have the same name.
        InputError: a folder has no recorded heads.
    """
    from interp.measures.catalog import load_measures

    followed = [follow_student(place, options) for place in options.trajectory]
    names = [student.name for student in followed]
    if len(set(names)) < len(names):
        raise OptionError(f"two of the students have the same name ({', '.join(names)}); name each one once")
    tables = {
        "trajectory": pd.concat([student.heads for student in followed], ignore_index=True),
        "training": pd.concat([student.losses for student in followed], ignore_index=True),
        "models": pd.DataFrame([student.about for student in followed]).astype({"seed": "Int64"}),
    }
    measured = list(dict.fromkeys(tables["trajectory"]["measure"].astype(str)))
    known = load_measures()
    about = {
        "kind": "trajectory",
        "region": options.region,
        "text": "reference",
        "n_examples": int(tables["trajectory"]["n_examples"].max()),
        "measures": [asdict(known[name].info) for name in measured if name in known],
        "models": [{"name": student.name, "source": str(student.place)} for student in followed],
        "warnings": [],
    }
    return tables, about
