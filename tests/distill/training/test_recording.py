"""Heads recorded during training: the training is the same, and the table is complete."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import TrainerCallback

import distill.training.recording
import distill.training.trajectory
from distill.__main__ import main
from distill.study.config import study_from
from distill.training.recording import HeadTrajectory, recording_steps, tracked_numbers
from distill.training.trajectory import (
    TRAJECTORY_FILE,
    fixed_texts,
    read_trajectory,
    trajectory_rows,
)
from interp.checkpoints.opening import open_checkpoint
from interp.tables.errors import InputError, NonFiniteError, RecordingError, StudyError
from interp.tables.schema import REGIONS
from tests.distill.training.cases import CARD, MEASURES, PROBLEMS, QUICK, STEPS, Stop, StopAt, at_step, head_lines, learner, losses, oracle


@pytest.fixture
def learn(checkpoint: Path) -> Callable[..., HeadTrajectory | None]:
    return learner(checkpoint)


def test_the_last_step_is_the_student_and_the_first_is_its_base(tmp_path: Path, learn: Callable[..., Any], checkpoint: Path) -> None:
    learn(tmp_path / "pupil")
    table = read_trajectory(tmp_path / "pupil")
    assert list(dict.fromkeys(table["step"])) == [0, 3, 4, STEPS]
    assert set(table["model"]) == {"pupil"}
    assert set(table["region"]) == set(REGIONS)
    assert set(table["n_examples"]) == {len(PROBLEMS)}
    student, base = (open_checkpoint(source, device="cpu") for source in (tmp_path / "pupil", checkpoint))
    for step, opened in ((STEPS, student), (0, base)):
        expected = oracle(opened.model, opened.tokenizer)
        found = at_step(table, step)
        assert set(found.index) == set(expected.index)
        np.testing.assert_allclose(found[expected.index], expected, rtol=0, atol=1e-5)
    assert (at_step(table, STEPS) - at_step(table, 0)).abs().max() > 1e-3
    assert not (tmp_path / "pupil.partial").exists()


@pytest.mark.parametrize("change", [{}, {"gradient_checkpointing": True, "gradient_accumulation": 1, "epochs": 1.0}])
def test_recording_does_not_change_the_training(tmp_path: Path, learn: Callable[..., Any], change: dict[str, Any]) -> None:
    """With dropout, so that random numbers count."""
    train = replace(QUICK, **change)
    learn(tmp_path / "with", (0, 1, 2, 5), train=train)
    learn(tmp_path / "without", None, train=train)
    with_it, without = (tmp_path / name / "adapter_model.safetensors" for name in ("with", "without"))
    assert with_it.read_bytes() == without.read_bytes()
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert len(losses(tmp_path / "with")) == STEPS
    assert not (tmp_path / "without" / TRAJECTORY_FILE).exists()
    assert head_lines(tmp_path / "without") == []


@pytest.mark.parametrize("stop", [1, 5, 6])
def test_a_killed_run_resumes_to_the_same_files(tmp_path: Path, learn: Callable[..., Any], stop: int) -> None:
    """Killed before any checkpoint, after step 5 (from checkpoint 4; step 5 was recorded), and right after a checkpoint."""
    steps = (0, 1, 2, 5, STEPS)
    learn(tmp_path / "whole" / "pupil", steps)
    folder = tmp_path / "killed" / "pupil"
    with pytest.raises(Stop):
        learn(folder, steps, callbacks=[StopAt(stop)])
    assert not folder.exists()
    kept = sorted(path.name for path in (tmp_path / "killed" / "pupil.partial" / "heads").glob("*.parquet"))
    assert kept == [f"step-{step:06d}.parquet" for step in steps if step <= stop]
    learn(folder, steps)
    for name in (TRAJECTORY_FILE, "adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / "pupil" / name).read_bytes(), name
    timeless = [
        [{key: value for key, value in line.items() if key != "heads/seconds"} for line in head_lines(place)]
        for place in (folder, tmp_path / "whole" / "pupil")
    ]
    assert timeless[0] == timeless[1]
    assert [line["step"] for line in timeless[0]] == list(steps)


def test_recorded_steps_are_not_recorded_again(tmp_path: Path, learn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stop):
        learn(tmp_path / "pupil", (0, 2, 3, STEPS), callbacks=[StopAt(5)])
    calls: list[int] = []
    whole = distill.training.recording.record_heads
    monkeypatch.setattr(distill.training.recording, "record_heads", lambda *given: calls.append(1) or whole(*given))
    learn(tmp_path / "pupil", (0, 2, 3, STEPS))  # resumes from checkpoint 4
    assert len(calls) == 1


def test_recording_that_starts_in_the_middle_of_training_has_the_base_as_step_0(tmp_path: Path, learn: Callable[..., Any]) -> None:
    """Recording was turned on, or measures were changed, after a checkpoint: earlier steps are missing, the base can still be read."""
    learn(tmp_path / "whole" / "pupil", (0, 4, STEPS))
    with pytest.raises(Stop):
        learn(tmp_path / "late" / "pupil", (0, 2, 4), measures=("max_prob",), callbacks=[StopAt(5)])
    learn(tmp_path / "late" / "pupil", (0, 2, 4, STEPS))
    late, whole = (read_trajectory(tmp_path / name / "pupil") for name in ("late", "whole"))
    pd.testing.assert_frame_equal(late, whole)
    adapters = [(tmp_path / name / "pupil" / "adapter_model.safetensors").read_bytes() for name in ("late", "whole")]
    assert adapters[0] == adapters[1]


def test_numbers_of_each_recording_reach_the_log(tmp_path: Path, learn: Callable[..., Any]) -> None:
    told: list[tuple[int, dict[str, float]]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "heads/moved" in logs:
                told.append((state.global_step, dict(logs)))

    follow = learn(tmp_path / "pupil", callbacks=[Tracker()])
    table = read_trajectory(tmp_path / "pupil")
    assert [step for step, _ in told] == [0, 3, 4, STEPS]
    responses = table[table["region"] == "response"]

    def heads(step: int) -> pd.DataFrame:
        return responses[responses["step"] == step].pivot_table("mean", ["layer", "head"], "measure", observed=True)

    base = heads(0)
    for (step, logs), line in zip(told, head_lines(tmp_path / "pupil"), strict=True):
        now = heads(step)
        for measure in MEASURES:
            assert logs[f"heads/{measure}"] == pytest.approx(now[measure].mean(), abs=1e-12)
        moved = ((now - base).abs().mean() / base.std(ddof=0)).mean()
        assert logs["heads/moved"] == pytest.approx(moved, abs=1e-12)
        assert (moved == 0) == (step == 0)
        assert line["step"] == step
        assert line["heads/moved"] == logs["heads/moved"]
    assert sum(line["heads/seconds"] for line in head_lines(tmp_path / "pupil")) == pytest.approx(follow.seconds, abs=0.01)


def test_undefined_numbers_are_left_out() -> None:
    means = np.full((2, 3, 2, len(REGIONS)), np.nan)
    means[:, :, 0, 1] = [[1, 2, 3], [1, 2, np.nan]]
    first, now = (trajectory_rows("x", 0, [0, 1], ["a", "b"], m, np.isfinite(m)) for m in (means, means + 0.5))
    spread = np.std([1, 2, 3, 1, 2])
    assert tracked_numbers(now, first) == {"heads/a": pytest.approx(2.3), "heads/moved": pytest.approx(0.5 / spread)}
    assert tracked_numbers(now[now["measure"] == "b"], first[first["measure"] == "b"]) == {}
    json.dumps(tracked_numbers(now, first), allow_nan=False)


@pytest.mark.parametrize(
    ("total", "records", "steps"),
    [
        (3, 6, [0, 3]),
        (10, 6, [0, 10]),
        (25, 6, [0, 12, 25]),
        (50, 6, [0, 10, 20, 30, 40, 50]),
        (1000, 6, [0, 200, 400, 600, 800, 1000]),
        (1000, 2, [0, 1000]),
        (1, 6, [0, 1]),
    ],
)
def test_recording_steps_are_evenly_spaced(total: int, records: int, steps: list[int]) -> None:
    assert recording_steps(total, records) == steps


def test_recordings_are_at_least_ten_steps_apart() -> None:
    for total in range(10, 400):
        for records in range(2, 50):
            steps = recording_steps(total, records)
            assert len(steps) <= records
            assert (steps[0], steps[-1]) == (0, total)
            assert min(np.diff(steps)) >= 10


@pytest.mark.parametrize("error", [RecordingError("GPT9Model does not use\nthe seam"), NonFiniteError("layer 1: NaN")])
def test_training_continues_if_heads_cannot_be_recorded(
    tmp_path: Path, learn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    learn(tmp_path / "without", None)
    monkeypatch.setattr(distill.training.recording, "record_heads", refuse)
    learn(tmp_path / "pupil")
    said = [line for line in capsys.readouterr().err.splitlines() if "heads are not recorded" in line]
    assert len(said) == 1
    assert " ".join(str(error).split()) in said[0]
    adapters = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("pupil", "without")]
    assert adapters[0] == adapters[1]
    with pytest.raises(StudyError, match="has no trajectory"):
        read_trajectory(tmp_path / "pupil")


def test_recordings_before_a_failure_are_kept(
    tmp_path: Path, learn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, calls = distill.training.recording.record_heads, []

    def once(*given: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise NonFiniteError("layer 0: NaN")
        return whole(*given)

    monkeypatch.setattr(distill.training.recording, "record_heads", once)
    learn(tmp_path / "pupil", (0, 2, 3, 5, STEPS))
    assert set(read_trajectory(tmp_path / "pupil")["step"]) == {0, 2}
    assert "step 3: layer 0: NaN" in capsys.readouterr().err


@pytest.mark.parametrize("engine", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharded_weights_are_not_recorded(
    tmp_path: Path, checkpoint: Path, engine: DistributedType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_checkpoint(checkpoint, device="cpu")
    follow = HeadTrajectory(fixed_texts(opened, PROBLEMS), MEASURES, "pupil")
    PartialState(cpu=True)
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", engine)
    where, state = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(is_world_process_zero=True, max_steps=50, global_step=0)
    follow.on_train_begin(where, state, SimpleNamespace(should_log=False), model=opened.model)  # type: ignore[arg-type]
    state.global_step = 50
    follow.on_step_end(where, state, SimpleNamespace(should_log=False), model=opened.model)  # type: ignore[arg-type]
    assert "weights are sharded" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert follow.files(tmp_path) == {}


def test_impossible_recordings_are_refused(checkpoint: Path) -> None:
    tokens = fixed_texts(open_checkpoint(checkpoint, device="cpu"), PROBLEMS)
    with pytest.raises(InputError, match="entropie"):
        HeadTrajectory(tokens, ["entropie"], "pupil")
    with pytest.raises(StudyError, match="at least 2"):
        HeadTrajectory(tokens, MEASURES, "pupil", 1)


STUDY = """
conditions = ["untouched", "none"]
out = "{out}"
[data]
train = {{ problems = "{problems}", first = 0, limit = 4 }}
heldout = {{ problems = "{problems}", first = 4, limit = 2 }}
test = {{ problems = "{problems}", first = 6, limit = 1 }}
[teacher]
model = "{model}"
device = "cpu"
max_new_tokens = 8
[student]
model = "{model}"
device = "cpu"
rank = 2
[train]
epochs = 1
batch_size = 2
learning_rate = 1e-2
"""


def test_a_study_records_heads_and_keeps_students_if_that_changes(
    tmp_path: Path, checkpoint: Path, problems: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.toml"
    file.write_text(STUDY.format(out=tmp_path / "out", problems=problems, model=checkpoint))
    folder = tmp_path / "out" / "students" / "none-seed0"
    assert main(["collect", str(file), "--quiet"]) == 0
    assert main(["train", str(file), "--quiet"]) == 0
    table = read_trajectory(folder)
    assert set(table["model"]) == {"none-seed0"}
    assert set(table["step"]) == {0, 2}
    assert table["n_examples"].max() == 2
    assert set(table["measure"]) == set(study_from({"name": "s"}).heads.measures)
    adapter, changed = (folder / "adapter_model.safetensors").read_bytes(), (folder / TRAJECTORY_FILE).stat().st_mtime_ns
    assert main(["train", str(file), "--quiet", "--set", "heads.records=0"]) == 0
    assert (folder / TRAJECTORY_FILE).stat().st_mtime_ns == changed
    assert main(["train", str(file), "--quiet", "--set", "heads.records=0", "--out", str(tmp_path / "off")]) == 2  # no records there
    (tmp_path / "off" / "records").mkdir(exist_ok=True, parents=True)
    assert main(["collect", str(file), "--quiet", "--out", str(tmp_path / "off")]) == 0
    assert main(["train", str(file), "--quiet", "--set", "heads.records=0", "--out", str(tmp_path / "off")]) == 0
    off = tmp_path / "off" / "students" / "none-seed0"
    assert not (off / TRAJECTORY_FILE).exists()
    assert (off / "adapter_model.safetensors").read_bytes() == adapter
    capfd.readouterr()
    assert main(["train", str(file), "--quiet", "--set", 'heads.measures=["entropie"]']) == 2
    error = capfd.readouterr().err
    assert "heads.measures: " in error
    assert "'entropie' is not known" in error


SCRIPT = """
import sys
from pathlib import Path
import torch
from distill.objectives.aligned import aligned_texts
from distill.objectives.options import ObjectiveConfig
from distill.students.options import StudentConfig
from distill.training.options import TrainConfig
from distill.problems.sets import Problem
from distill.records.record import Record
from distill.strategies import Strategy
from distill.students.lora import new_student
from distill.training.train import train_student
from distill.training.recording import HeadTrajectory
from distill.training.trajectory import fixed_texts

records = [Record(i, f"How many are {{i}} and 3?", "#### 1", (), (), "5" * (i + 1) + " so 7", "eos") for i in range(13)]
problems = [Problem(n, f"Ann has {{n}} cats. How many?", f"#### {{n}}") for n in (3, 11)]

def learn(model, folder, batch, followed):
    model, base = new_student(StudentConfig(model=model, device="cpu", rank=2), 0)
    texts = aligned_texts(records, base.tokenizer, Strategy("s"), True, max_tokens=300, same_tokenizer=False)
    follow = HeadTrajectory(fixed_texts(base, problems), ["entropy_nats", "numeric_mass"], "pupil", [0, 1, 3])
    train_student(folder, model, base.tokenizer, texts, objective=ObjectiveConfig(alpha=1.0), seed=0, card={card!r},
                  config=TrainConfig(epochs=2, batch_size=batch, learning_rate=1e-2, save_steps=2, logging_steps=1),
                  trajectory=follow if followed else None)

if __name__ == "__main__":
    torch.set_num_threads(1)
    learn(sys.argv[1], Path(sys.argv[2], "two"), 2, True)
    learn(sys.argv[1], Path(sys.argv[2], "two without"), 2, False)
"""


def test_two_processes_train_and_record_like_one(tmp_path: Path, checkpoint: Path) -> None:
    """With thirteen texts: the last step has blank texts, and the second rank has more of them than the first."""
    script = tmp_path / "learn.py"
    script.write_text(SCRIPT.format(card=CARD))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    subprocess.run([sys.executable, *launch, str(script), str(checkpoint), str(tmp_path)], check=True, env=environment)
    runpy.run_path(str(script))["learn"](str(checkpoint), tmp_path / "one", 4, True)
    adapters = {name: tmp_path / name / "adapter_model.safetensors" for name in ("one", "two", "two without")}
    one, two = (load_file(adapters[name]) for name in ("one", "two"))
    assert set(one) == set(two)
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=2e-5) for name in one)
    assert adapters["two"].read_bytes() == adapters["two without"].read_bytes()
    assert json.loads((tmp_path / "two without" / "card.json").read_text())["training"]["ranks"] == 2
    one, two = (read_trajectory(tmp_path / name) for name in ("one", "two"))
    assert json.loads((tmp_path / "two" / "card.json").read_text())["training"]["ranks"] == 2
    assert list(dict.fromkeys(two["step"])) == [0, 1, 3, 7]
    np.testing.assert_allclose(one["mean"], two["mean"], rtol=0, atol=2e-5)
    assert at_step(two, 0).equals(at_step(one, 0))
    assert [line["step"] for line in losses(tmp_path / "two")] == list(range(1, 8))
