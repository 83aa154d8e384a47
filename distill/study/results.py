"""A study's results: tables over the students that are evaluated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from distill.evaluation.answers import evaluation_settings, read_answers
from distill.evaluation.statistics import conditions_table, shown, students_table
from distill.settings import differences
from distill.study.folder import StudyFolder, student_name
from distill.study.heldout import read_heldout
from interp.tables.errors import StudyError
from interp.tables.files import write_text


def conditions_of_measurement(study: StudyFolder) -> str:
    """What stands beside every number: grader, cut, prompt, objective."""
    own, context = study.config.evaluation, study.context
    chosen = "greedy" if own.temperature == 0 else f"{own.samples} samples at temperature {own.temperature:g}"
    told = f"question {context.place} {context.text!r}" if context.text else "the question alone"
    objective = study.config.objective
    return (
        f"{len(study.test)} test problems; grader {own.grader}; cut at {own.max_new_tokens} tokens for every condition; {chosen}; "
        f"prompt: {told}; objective {objective.name}: {objective.formula}; {own.level:.0%} intervals; baseline {study.config.baseline}"
    )


def report(study: StudyFolder, about: Callable[[str, int | None], dict[str, Any]]) -> None:
    """Writes and prints the tables over the evaluations that are there.

    Args:
        study: whose evaluations.
        about: who a student of a condition and a seed is now; an evaluation of another one stands in no table.

    Raises:
        StudyError: the baseline is not evaluated, or an evaluation is damaged, or of other settings or of another student.
    """
    own = study.config.evaluation
    there = [(c, s) for c, s in study.students if (study.evaluation_folder(c, s) / "evaluation.json").is_file()]
    missing = [student_name(*student) for student in study.students if student not in there]
    if study.config.baseline not in [c for c, _ in there]:
        raise StudyError(
            f"the baseline {study.config.baseline} is not evaluated yet, so nothing can be compared with it; missing: {', '.join(missing)}"
        )
    _check_settings(study, there, about)
    answers = pd.concat([read_answers(study.evaluation_folder(c, s), own.grader) for c, s in there], ignore_index=True)
    students = students_table(answers, study.config.baseline, level=own.level)
    heldout = pd.DataFrame([_heldout_row(study.evaluation_folder(c, s)) for c, s in there])
    students = pd.concat([students, heldout], axis=1)
    conditions = conditions_table(answers, study.config.baseline, level=own.level, resamples=own.resamples, seed=own.seed)
    for name, table in (("students.csv", students), ("conditions.csv", conditions)):
        write_text(study.folder / name, pd.concat([table, _measured(study, table["condition"])], axis=1).to_csv(index=False))
    tables = {
        "Conditions, pooled over seeds (difference from the baseline, paired by problem; from two seeds on, interval and p hold for new "
        "seeds and new problems, with one seed for these students alone; Holm-corrected)": conditions,
        "Students (McNemar's exact test against the baseline of the same seed, Holm-corrected within the seed)": students[
            ["condition", "seed", "right", "accuracy", "low", "high", "only_this", "only_baseline", "p_mcnemar", "p_holm"]
        ],
        "Students: lengths, calibration; of held-out answers nats a token and KL(teacher || student), baseline's and own": students[
            ["condition", "seed", "tokens_mean", "cut", "ece", "brier", "auroc", *[c for c in heldout.columns if c[:3] != "per"]]
        ],
    }
    lines = [conditions_of_measurement(study) + "."]
    lines += [f"Not evaluated yet: {', '.join(missing)}."] if missing else []
    for title, table in tables.items():
        lines += ["", f"{title}:", "", shown(table)]
    text = "\n".join(lines)
    print(text)
    write_text(study.folder / "results.md", f"# {study.config.name}\n\n```text\n{text}\n```\n")


def _check_settings(
    study: StudyFolder, students: Sequence[tuple[str, int | None]], about: Callable[[str, int | None], dict[str, Any]]
) -> None:
    """Answers to other problems, under another prompt or cut, never stand in one table."""
    common = evaluation_settings(study.test, study.config.evaluation, study.context, study.chat_of_student)
    for student in students:
        folder = study.evaluation_folder(*student)
        wanted = json.loads(json.dumps({**common, "about": about(*student)}))  # raises where the student is of another training
        try:
            before = json.loads((folder / "evaluation.json").read_text("utf-8"))["settings"]
        except (OSError, ValueError, KeyError) as error:
            raise StudyError(f"{folder / 'evaluation.json'} is damaged ({error}); `python -m distill evaluate` makes it again") from error
        changed = differences({key: before.get(key) for key in wanted}, wanted)
        if changed:
            raise StudyError(
                f"{folder} was evaluated with other settings, so it cannot stand in one table with the others:\n  "
                + "\n  ".join(changed)
                + "\nSet them back, or delete it and evaluate again"
            )


def _measured(study: StudyFolder, conditions: pd.Series) -> pd.DataFrame:
    """How each row of a table came about."""
    own = study.config
    trained = [c != "untouched" for c in conditions]
    return pd.DataFrame(
        {
            "objective": [own.objective.name if yes else None for yes in trained],
            "formula": [study.objective(str(c)).formula if yes else None for c, yes in zip(conditions, trained, strict=True)],
            "grader": own.evaluation.grader,
            "max_new_tokens": own.evaluation.max_new_tokens,
        }
    )


def _heldout_row(folder: Path) -> dict[str, float]:
    row: dict[str, float] = {}
    table = read_heldout(folder)
    for name in ("reference", "baseline", "own"):
        row[f"nll_{name}"] = float(table["nll"][name]) if name in table.index else math.nan
        row[f"perplexity_{name}"] = math.exp(row[f"nll_{name}"])
    for name in ("baseline", "own"):
        row[f"kl_{name}"] = float(table["kl"][name]) if name in table.index else math.nan
    return row


def report_model(study: StudyFolder, folder: Path) -> None:
    """Prints one model's accuracy."""
    own = study.config.evaluation
    answers = read_answers(folder, own.grader)
    table = students_table(answers, answers["condition"][0], level=own.level)
    table = table.drop(columns=["only_this", "only_baseline", "p_mcnemar", "p_holm", "seed"])
    print(f"{conditions_of_measurement(study)}\n{shown(table)}")
