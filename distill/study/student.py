"""Train one student of a study, from the teacher's records to its adapter folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.objectives.options import ObjectiveConfig
from distill.records.signals import missing_mass
from distill.sources.texts import Texts
from distill.students.lora import new_student
from distill.study.conditions import condition_of
from distill.study.folder import StudyFolder, student_name
from distill.study.launcher import is_first_process
from interp.tables.errors import InputError, StudyError
from interp.tables.versions import versions

if TYPE_CHECKING:
    from distill.training.recording import HeadTrajectory
    from interp.checkpoints.loading import Checkpoint
    from interp.checkpoints.unembedding import OutputHead


_SAMPLED_TEXTS = 200
"""Number of texts from which the missing mass is estimated."""


def train_one_student(study: StudyFolder, condition: str, seed: int, *, show_progress: bool) -> Path:
    """Train a student, resuming an unfinished one, and return its folder.

    Args:
        study: the study; the teacher's records must be complete.
        condition: the student's condition.
        seed: the student's seed.
        show_progress: show bars and lines on stderr.

    Raises:
        StudyError: the objective needs signals that the teacher does not give, or no text is left to train on.
        NonFiniteError: the loss diverged.
    """
    from accelerate import PartialState

    from distill.training.train import train_student
    from interp.checkpoints.loading import choose_device

    teacher, objective = study.teacher_of(condition), study.objective(condition)
    PartialState(cpu=choose_device(study.config.student.device) == "cpu")  # under a launcher, each process takes its own device
    model, checkpoint = new_student(study.config.student, seed)
    texts = study.texts(condition, teacher, checkpoint.tokenizer)
    missing = missing_share(texts, objective, model.get_output_embeddings().weight.shape[0])
    _print_counts(study, condition, texts, missing, show_progress=show_progress)
    live_model, head = _signal_source(study, condition)
    strategy = study.strategy(condition)
    card = {
        "condition": condition,
        "seed": seed,
        "strategy": {"name": strategy.name, **strategy.content},
        "formula": objective.formula,
        "settings": study.settings(condition),
        "parents": {**study.parents(condition), "texts_sha256": texts.digest()},
        "counts": texts.counts,
        "missing_mass": missing,
        "versions": versions(),
    }
    folder = study.student_folder(condition, seed)
    train_student(
        folder,
        model,
        checkpoint.tokenizer,
        texts,
        objective=objective,
        config=study.config.train,
        seed=seed,
        card=card,
        teacher_head=head,
        teacher=live_model,
        trajectory=_trajectory(study, student_name(condition, seed), checkpoint),
        show_progress=show_progress,
    )
    return folder


def _signal_source(study: StudyFolder, condition: str) -> tuple[Any, OutputHead | None]:
    """Return a live teacher's model (None if records are used), and the output head for the teacher's hidden states."""
    objective, teacher = study.objective(condition), study.teacher_of(condition)
    if objective.alpha == 1:
        return None, None
    if objective.teacher == "live" and condition_of(condition).has_teacher:
        return teacher.model_and_head()
    return None, study.store.read_head(teacher.identity) if study.config.teacher.signal == "hidden" else None


def _trajectory(study: StudyFolder, name: str, checkpoint: Checkpoint) -> HeadTrajectory | None:
    """Return the recorder of a student's heads during training; None if it is off, or if the texts cannot be annotated."""
    from distill.training.recording import HeadTrajectory, report_unrecorded
    from distill.training.trajectory import fixed_texts

    own = study.config.heads
    if own.records == 0:
        return None
    try:
        tokens = fixed_texts(checkpoint, study.heldout[: own.texts], study.chat(checkpoint.tokenizer))
    except (InputError, StudyError) as error:
        if is_first_process():
            report_unrecorded(str(error))
        return None
    return HeadTrajectory(tokens, own.measures, name, own.records)


def _print_counts(study: StudyFolder, condition: str, texts: Texts, missing: tuple[float, float] | None, *, show_progress: bool) -> None:
    """Print what happened to the records, and the mass that a top k leaves out at the temperature."""
    if show_progress:
        counts = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in texts.counts.items() if number and name != "records")
        print(f"{condition}: {texts.counts['records']} records, {counts}", file=sys.stderr, flush=True)
    if missing is not None and is_first_process():
        print(
            f"{condition}: at temperature {study.config.objective.temperature:g}, {missing[0]:.1%} to {missing[1]:.1%} of the teacher's "
            f"mass is outside the stored top {study.config.teacher.top_k} and is left out",
            file=sys.stderr,
        )


def missing_share(texts: Texts, objective: ObjectiveConfig, vocabulary: int) -> tuple[float, float] | None:
    """Return bounds of the mass that stored top-k signals leave out at the objective's temperature, averaged over tokens.

    None if the temperature is 1, no divergence is used, or the signals are of another kind.
    """
    if objective.alpha == 1 or objective.temperature == 1 or objective.teacher == "live":
        return None
    sampled = [text.record.signals for text in texts.texts[:_SAMPLED_TEXTS] if text.record is not None]
    rows = [signals["topk_log_probs"] for signals in sampled if "topk_log_probs" in signals]
    if not rows:
        return None
    lower, upper = missing_mass(torch.cat(rows), vocabulary, objective.temperature)
    return float(lower.mean()), float(upper.mean())
