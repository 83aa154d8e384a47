"""The tables of a study: accuracies of conditions and students, and their held-out scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from distill.evaluation.answers import evaluation_settings, read_answers
from distill.evaluation.statistics import accuracy_by_condition, accuracy_by_student, table_text
from distill.settings import changed_settings
from distill.study.conditions import condition_of
from distill.study.folder import StudyFolder, student_name
from distill.study.heldout import read_heldout
from interp.tables.errors import StudyError
from interp.tables.files import write_text

_CONDITIONS_TITLE = (
    "Conditions, pooled over seeds (difference from the baseline, paired by problem; with two or more seeds, interval and p refer to new "
    "seeds and new problems, with one seed to these students only; Holm-corrected)"
)
_STUDENTS_TITLE = "Students (McNemar's exact test against the baseline of the same seed, Holm-corrected within the seed)"
_LENGTHS_TITLE = "Students: lengths, calibration, and nats per token and KL(teacher || student) on held-out answers (baseline's and own)"


def measurement_text(study: StudyFolder) -> str:
    """Return how the numbers of a study were measured, in one line: grader, length limit, decoding, prompt, objective."""
    own, context, objective = study.config.evaluation, study.context, study.config.objective
    decoding = "greedy" if own.temperature == 0 else f"{own.samples} samples at temperature {own.temperature:g}"
    prompt = f"{context.text!r}, {context.place} the question" if context.text else "the question alone"
    return (
        f"{len(study.test)} test problems; grader {own.grader}; at most {own.max_new_tokens} tokens for every condition; {decoding}; "
        f"prompt: {prompt}; objective {objective.name}: {objective.formula}; {own.level:.0%} intervals; baseline {study.config.baseline}"
    )


def write_study_tables(study: StudyFolder, about: Callable[[str, int | None], dict[str, Any]]) -> None:
    """Write and print the tables of the evaluations that exist.

    Args:
        study: the study.
        about: returns what identifies the student of a condition and a seed now; an evaluation of another student is refused.

    Raises:
        StudyError: the baseline is not evaluated, or an evaluation is damaged, has other settings, or is of another student.
    """
    own = study.config.evaluation
    evaluated = [(c, s) for c, s in study.students if (study.evaluation_folder(c, s) / "evaluation.json").is_file()]
    missing = [student_name(*student) for student in study.students if student not in evaluated]
    if study.config.baseline not in [c for c, _ in evaluated]:
        raise StudyError(
            f"the baseline {study.config.baseline} is not evaluated yet, so nothing can be compared with it; missing: {', '.join(missing)}"
        )
    _check_settings(study, evaluated, about)
    answers = pd.concat([read_answers(study.evaluation_folder(c, s), own.grader) for c, s in evaluated], ignore_index=True)
    heldout = pd.DataFrame([_heldout_row(study.evaluation_folder(c, s)) for c, s in evaluated])
    students = pd.concat([accuracy_by_student(answers, study.config.baseline, level=own.level), heldout], axis=1)
    conditions = accuracy_by_condition(answers, study.config.baseline, level=own.level, resamples=own.resamples, seed=own.seed)
    for name, table in (("students.csv", students), ("conditions.csv", conditions)):
        write_text(study.folder / name, pd.concat([table, _measured(study, table["condition"])], axis=1).to_csv(index=False))
    scores = [column for column in heldout.columns if not column.startswith("perplexity")]
    tables = {
        _CONDITIONS_TITLE: conditions,
        _STUDENTS_TITLE: students[
            ["condition", "seed", "right", "accuracy", "low", "high", "only_this", "only_baseline", "p_mcnemar", "p_holm"]
        ],
        _LENGTHS_TITLE: students[["condition", "seed", "tokens_mean", "truncated", "ece", "brier", "auroc", *scores]],
    }
    lines = [measurement_text(study) + "."]
    lines += [f"Not evaluated yet: {', '.join(missing)}."] if missing else []
    for title, table in tables.items():
        lines += ["", f"{title}:", "", table_text(table)]
    text = "\n".join(lines)
    print(text)
    write_text(study.folder / "results.md", f"# {study.config.name}\n\n```text\n{text}\n```\n")


def _check_settings(
    study: StudyFolder, students: Sequence[tuple[str, int | None]], about: Callable[[str, int | None], dict[str, Any]]
) -> None:
    """Raise unless all evaluations have this study's problems, prompt and decoding, and are of its current students."""
    common = evaluation_settings(study.test, study.config.evaluation, study.context, study.chat_of_student)
    for student in students:
        folder = study.evaluation_folder(*student)
        wanted = json.loads(json.dumps({**common, "about": about(*student)}))
        try:
            before = json.loads((folder / "evaluation.json").read_text("utf-8"))["settings"]
        except (OSError, ValueError, KeyError) as error:
            raise StudyError(f"{folder / 'evaluation.json'} is damaged ({error}); `python -m distill evaluate` makes it again") from error
        changed = changed_settings({key: before.get(key) for key in wanted}, wanted)
        if changed:
            raise StudyError(
                f"{folder} was evaluated with other settings, so it cannot be in one table with the others:\n  "
                + "\n  ".join(changed)
                + "\nRestore them, or delete the folder and evaluate again"
            )


def _measured(study: StudyFolder, conditions: pd.Series) -> pd.DataFrame:
    """Return the columns that state how each row of a table was measured."""
    own = study.config
    trained = [condition_of(str(name)).trained for name in conditions]
    return pd.DataFrame(
        {
            "objective": [own.objective.name if yes else None for yes in trained],
            "formula": [study.objective(str(name)).formula if yes else None for name, yes in zip(conditions, trained, strict=True)],
            "grader": own.evaluation.grader,
            "max_new_tokens": own.evaluation.max_new_tokens,
        }
    )


def _heldout_row(folder: Path) -> dict[str, float]:
    """Return the held-out scores of one student as columns of the table of students; NaN for what is missing."""
    row: dict[str, float] = {}
    table = read_heldout(folder)
    for name in ("reference", "baseline", "own"):
        row[f"nll_{name}"] = float(table["nll"][name]) if name in table.index else math.nan
        row[f"perplexity_{name}"] = math.exp(row[f"nll_{name}"])
    for name in ("baseline", "own"):
        row[f"kl_{name}"] = float(table["kl"][name]) if name in table.index else math.nan
    return row


def print_model_accuracy(study: StudyFolder, folder: Path) -> None:
    """Print the accuracy of one evaluated model, and how it was measured."""
    own = study.config.evaluation
    answers = read_answers(folder, own.grader)
    table = accuracy_by_student(answers, answers["condition"][0], level=own.level)
    table = table.drop(columns=["only_this", "only_baseline", "p_mcnemar", "p_holm", "seed"])
    print(f"{measurement_text(study)}\n{table_text(table)}")
