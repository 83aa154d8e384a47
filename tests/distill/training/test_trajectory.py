"""A trajectory: recorded in one pass, read from a student, and made from checkpoints on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import distill.training.recording
import distill.training.trajectory
from distill.problems.sets import Problem
from distill.students.lora import new_student
from distill.students.options import StudentConfig
from distill.training.recording import HeadTrajectory
from distill.training.trajectory import (
    TRAJECTORY_FILE,
    checkpoint_folders,
    fixed_texts,
    read_trajectory,
    record_checkpoints,
    record_heads,
)
from interp.checkpoints.opening import open_checkpoint
from interp.tables.errors import InputError, StudyError
from interp.tables.schema import REGIONS, validate
from interp.tables.shifts import TRAJECTORY
from tests.distill.training.cases import MEASURES, PROBLEMS, STEPS, Stop, StopAt, at_step, learner


@pytest.fixture
def learn(checkpoint: Path) -> Callable[..., HeadTrajectory | None]:
    return learner(checkpoint)


def test_recording_draws_no_random_number_and_restores_the_modes(checkpoint: Path) -> None:
    model, base = new_student(StudentConfig(model=str(checkpoint), device="cpu", rank=2, dropout=0.3), 0)
    model.train()
    model.base_model.model.model.layers[1].eval()
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    record_heads(model, fixed_texts(base, PROBLEMS), MEASURES)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert any(p.requires_grad for p in model.parameters())


def test_batch_size_does_not_change_values(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_checkpoint(checkpoint, device="cpu")
    tokens = fixed_texts(opened, PROBLEMS)
    whole, n = record_heads(opened.model, tokens, MEASURES)
    monkeypatch.setattr(distill.training.trajectory, "_BATCH_TOKENS", 1)
    single, n_single = record_heads(opened.model, tokens, MEASURES)
    np.testing.assert_allclose(whole, single, rtol=0, atol=1e-6)
    assert np.array_equal(n, n_single)


def test_errors_name_what_to_do(tmp_path: Path, checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint, device="cpu")
    with pytest.raises(StudyError, match=r"problem 7 has .* the model has 512 positions"):
        fixed_texts(opened, [Problem(7, "How many? " * 400, "#### 1")])
    with pytest.raises(StudyError, match="has no checkpoint-N"):
        checkpoint_folders(tmp_path)
    with pytest.raises(StudyError, match="at least one"):
        record_checkpoints([], PROBLEMS, MEASURES)
    (tmp_path / TRAJECTORY_FILE).write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a readable Parquet"):
        read_trajectory(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: pd.concat([f, f.assign(model="other")]), "2 students"),
        (lambda f: f.assign(step=f["step"] - 1), "step -1"),
        (lambda f: f.iloc[:-1], "step 7 has other heads"),
        (lambda f: f.assign(mean=np.nan), "have texts but a mean that is not finite"),
    ],
)
def test_an_inconsistent_table_is_refused(tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], words: str) -> None:
    axes = [["pupil"], [0, 7], [0, 1], [0, 1], ["entropy_nats"], REGIONS]
    frame = pd.MultiIndex.from_product(axes, names=list(TRAJECTORY.key)).to_frame(index=False).assign(mean=0.5, n_examples=3)
    distill.training.trajectory.check_trajectory(frame, "here")
    from interp.tables.schema import write

    write(change(frame), TRAJECTORY, tmp_path / TRAJECTORY_FILE)
    with pytest.raises(StudyError, match=words):
        read_trajectory(tmp_path)
    with pytest.raises(InputError, match="repeat a key"):
        validate(pd.concat([frame, frame]), TRAJECTORY)


def test_checkpoints_on_disk_give_the_rows_of_the_callback(tmp_path: Path, learn: Callable[..., Any], checkpoint: Path) -> None:
    steps = (0, 4, 6, STEPS)
    learn(tmp_path / "pupil", steps)
    expected = read_trajectory(tmp_path / "pupil")
    with pytest.raises(Stop):
        learn(tmp_path / "left" / "pupil", None, callbacks=[StopAt(6)])
    partial = tmp_path / "left" / "pupil.partial"
    (partial / "checkpoint-10").mkdir()  # not an adapter
    (partial / "checkpoint-last").mkdir()
    folders = checkpoint_folders(partial)
    assert [folder.name for folder in folders] == ["checkpoint-4", "checkpoint-6"]
    found = record_checkpoints(folders, PROBLEMS, MEASURES, device="cpu", base=str(checkpoint))
    assert set(found["model"]) == {"pupil"}
    assert list(dict.fromkeys(found["step"])) == [0, 4, 6]
    for step in (0, 4, 6):
        np.testing.assert_allclose(at_step(found, step), at_step(expected, step), rtol=0, atol=1e-6)
    validate(found, TRAJECTORY)
