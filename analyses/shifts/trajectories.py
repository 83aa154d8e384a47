"""Students' heads while they learnt, for `analyses.shifts --trajectory`: as they were recorded, or from checkpoints that lie on disk."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analyses.models.named import ACCURACY, study_accuracies
from interp.tables.errors import InputError, OptionError

if TYPE_CHECKING:
    from analyses.shifts.options import ShiftsConfig


FOLLOWED_MEASURES = ("entropy_nats", "bos_mass", "mean_distance", "numeric_mass", "operator_mass")
"""Measured at checkpoints where none are named: those that a study records."""


@dataclass(frozen=True)
class Followed:
    """One student while it learnt.

    Attributes:
        name: in tables and figures.
        place: its folder.
        heads: rows of `interp.tables.shifts.TRAJECTORY`.
        losses: model, condition, seed, step, loss.
        about: a row of the models' table.
    """

    name: str
    place: Path
    heads: pd.DataFrame
    losses: pd.DataFrame
    about: dict[str, Any]


def of_student(place: Path, config: ShiftsConfig) -> Followed:
    """A student's recorded heads, or those of the checkpoints in a folder, measured now.

    Raises:
        InputError: a folder with neither.
        StudyError: a damaged recording.
    """
    from distill.students.lora import CARD, read_card
    from distill.training.trajectory import FILE, checkpoint_folders, read_trajectory, record_checkpoints

    if not place.is_dir():
        raise InputError(f"--trajectory {place} is no folder; name students of a study, or folders with checkpoint-N in them")
    card = read_card(place) if (place / CARD).is_file() else {}
    name = place.resolve().name.removesuffix(".partial")
    if (place / FILE).is_file():
        heads = read_trajectory(place)
    elif any(place.glob("checkpoint-*")):
        print(f"measuring the checkpoints of {name}", file=sys.stderr, flush=True)
        heads = record_checkpoints(
            checkpoint_folders(place),
            _problems(config),
            config.measures or FOLLOWED_MEASURES,
            base=config.base,
            device=config.device,
            dtype=config.dtype,
            trust_remote_code=config.trust_remote_code,
        )
    else:
        raise InputError(f"{place} has neither a {FILE} nor checkpoint-N folders: its heads were not recorded, and cannot be any more")
    who = {"model": name, "condition": card.get("condition", name), "seed": card.get("seed")}
    losses = pd.DataFrame(_losses(place), columns=["step", "loss"]).assign(**who)
    known = study_accuracies(place.resolve().parent.parent).get((str(who["condition"]), who["seed"]), {})
    return Followed(name, place, heads.assign(model=name), losses, {**who, **dict.fromkeys(ACCURACY, np.nan), **known})


def _problems(config: ShiftsConfig) -> list[Any]:
    """The texts for checkpoints: the first eight, or `--limit`, of `--problems`."""
    from distill.problems.sets import load_problems

    return load_problems(config.problems or "shipped", config.split, config.limit or 8)


def _losses(place: Path) -> list[dict[str, float]]:
    """Steps and losses of a student's log, or of the last checkpoint's."""
    log = place / "training.jsonl"
    if log.is_file():
        lines = [json.loads(line) for line in log.read_text("utf-8").splitlines() if line.strip()]
    else:
        states = sorted(place.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name.rsplit("-", 1)[1]))
        lines = json.loads(states[-1].read_text("utf-8"))["log_history"] if states else []
    return [{"step": line["step"], "loss": line["loss"]} for line in lines if "loss" in line]


def moved_table(trajectory: pd.DataFrame, region: str) -> pd.DataFrame:
    """How far each student's heads are at the last step from the first, a row a student and measure.

    Columns: model, measure, steps, moved (mean over heads of |last - first| / s, s the standard deviation between heads at the first step),
    head (the one that moved most, layer.head) and its difference.
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


def compare_trajectories(config: ShiftsConfig, command: str) -> int:
    """When each head moved while its student learnt: from recorded trajectories, or from checkpoints on disk."""
    from analyses.shifts.folder import ComparisonFolder
    from interp.measures.catalog import load_measures

    folder = ComparisonFolder(config.folder(), force=config.force)
    followed = [of_student(place, config) for place in config.trajectory]
    names = [student.name for student in followed]
    if len(set(names)) < len(names):
        raise OptionError(f"two of the students have one name ({', '.join(names)}); name each once")
    tables = {
        "trajectory": pd.concat([student.heads for student in followed], ignore_index=True),
        "training": pd.concat([student.losses for student in followed], ignore_index=True),
        "models": pd.DataFrame([student.about for student in followed]).astype({"seed": "Int64"}),
    }
    measured = list(dict.fromkeys(tables["trajectory"]["measure"].astype(str)))
    known = load_measures()
    about = {
        "kind": "trajectory",
        "command": command,
        "region": config.region,
        "text": "reference",
        "n_examples": int(tables["trajectory"]["n_examples"].max()),
        "measures": [asdict(known[name].info) for name in measured if name in known],
        "models": [{"name": student.name, "source": str(student.place)} for student in followed],
        "warnings": [],
    }
    folder.write(tables, about)
    if config.figures:
        print("drawing figures", file=sys.stderr, flush=True)
        folder.draw(config.region)
    moved = moved_table(tables["trajectory"], config.region)
    print(
        f"\nHow far heads moved from the first recorded step to the last: mean over heads of |difference| in units of the standard "
        f"deviation between heads at the first; {about['n_examples']} texts, queries in {config.region}. No test: a trajectory is of one "
        "student.\n"
    )
    print(moved.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    print(f"\ntables:  {', '.join(tables)} in {folder.out}")
    if config.figures:
        print(f"report:  {folder.out / 'report.html'}")
    return 0
