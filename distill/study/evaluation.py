"""Evaluate one student of a study: answers to the test problems, and scores on the held-out ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.evaluation.answers import answer_problems
from distill.study.folder import StudyFolder
from distill.study.heldout import score_heldout

if TYPE_CHECKING:
    from interp.checkpoints.loading import Checkpoint


def evaluate_student(
    study: StudyFolder, condition: str, seed: int | None, *, folder: Path, about: Mapping[str, Any], label: str | None = None
) -> None:
    """Evaluate a student; what is finished is kept, and the model is opened only if something is missing.

    Args:
        study: the study.
        condition: the student's condition.
        seed: the student's seed; None for a student that is not trained.
        folder: folder of the evaluation.
        about: what identifies the student.
        label: label of the progress bar; None shows none.
    """

    @cache
    def opened() -> Checkpoint:
        return study.open_student(condition, seed)

    is_answered = (folder / "evaluation.json").is_file()
    answer_problems(
        None if is_answered else opened().model,
        None if is_answered else opened().tokenizer,
        study.test,
        study.config.evaluation,
        study.context,
        study.chat_of_student,
        folder=folder,
        about=about,
        label=label,
    )
    score_heldout(study, condition, folder, about, opened)
