from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
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

import distill.training.trajectory
from distill.__main__ import main
from distill.objectives.aligned import aligned_texts
from distill.objectives.options import ObjectiveConfig
from distill.problems.sets import Problem
from distill.records.record import Record
from distill.strategies import Strategy
from distill.students.lora import new_student
from distill.students.options import StudentConfig
from distill.study.config import study_from
from distill.training.options import TrainConfig
from distill.training.train import train_student
from distill.training.trajectory import (
    FILE,
    HeadTrajectory,
    checkpoint_folders,
    fixed_texts,
    read_trajectory,
    record_checkpoints,
    record_heads,
    recording_steps,
    summary,
    trajectory_rows,
)
from interp.checkpoints.opening import open_checkpoint
from interp.recording.recorder import record
from interp.tables.errors import InputError, NonFiniteError, RecordingError, StudyError
from interp.tables.schema import REGIONS, validate
from interp.tables.shifts import TRAJECTORY

CARD: dict[str, Any] = {
    "condition": "none",
    "seed": 0,
    "strategy": {"text": ""},
    "settings": {"student": {"model": "tiny"}, "objective": {"name": "aligned"}},
    "parents": {"teacher": {"name": "tiny"}},
    "formula": "CE",
    "counts": {"records": 1, "kept": 1},
    "versions": {"primed-heads": "0"},
}
MEASURES = ("entropy_nats", "numeric_mass", "sparsity_010")
PROBLEMS = tuple(
    Problem(40 + n, f"Ann has {n} cats and {2 * n} dogs. How many?", f"{n}+{2 * n} = {3 * n}\n#### {3 * n}") for n in (3, 11, 250)
)
QUICK = TrainConfig(
    epochs=2,
    batch_size=2,
    gradient_accumulation=2,
    learning_rate=1e-2,
    logging_steps=1,
    save_steps=2,
    warmup_steps=0,
    optimizer="adamw_torch",
)
"""Thirteen texts: seven steps, the last with blanks."""
STEPS = 7


class Stop(RuntimeError):
    """Stands for a kill."""


class StopAt(TrainerCallback):
    """Raises once a step is done, before a checkpoint of it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Stop


@pytest.fixture
def learn(checkpoint: Path) -> Callable[..., HeadTrajectory | None]:
    """`(folder, records, ...)` trains a student with dropout; `records` None leaves the callback away."""

    def run(
        folder: Path,
        records: int | Sequence[int] | None = (0, 3, 4, STEPS),
        *,
        train: TrainConfig = QUICK,
        measures: Sequence[str] = MEASURES,
        callbacks: Sequence[TrainerCallback] = (),
        **student: Any,
    ) -> HeadTrajectory | None:
        config = StudentConfig(model=str(checkpoint), device="cpu", rank=2, dropout=0.3, **student)
        model, base = new_student(config, 0)
        answers = [Record(i, f"How many are {i} and 3?", "#### 1", (), (), "5" * (i + 1) + " so 7", "eos") for i in range(13)]
        texts = aligned_texts(answers, base.tokenizer, Strategy("s"), True, max_tokens=300, same_tokenizer=False)
        follow = None if records is None else HeadTrajectory(fixed_texts(base, PROBLEMS), measures, "pupil", records)
        train_student(
            folder,
            model,
            base.tokenizer,
            texts,
            objective=ObjectiveConfig(alpha=1.0),
            config=train,
            seed=0,
            card=CARD,
            callbacks=callbacks,
            trajectory=follow,
        )
        return follow

    return run


def oracle(model: Any, tokenizer: Any, measures: Sequence[str] = MEASURES) -> pd.Series:
    """Each text by itself, through the whole model: the mean over texts of their values."""
    from interp.tokens import annotate

    values = []
    for p in PROBLEMS:
        tokens = annotate(tokenizer, p.question, p.answer, examples=[p.index])
        with torch.no_grad(), record(model, tokens, list(measures)) as heads:
            model(**tokens.inputs)
        values.append(heads.examples("x").set_index(["layer", "head", "measure", "region"])["value"])
    return pd.concat(values, axis=1).mean(axis=1)


def at_step(table: pd.DataFrame, step: int) -> pd.Series:
    return table[table["step"] == step].astype({"measure": str, "region": str}).set_index(["layer", "head", "measure", "region"])["mean"]


def losses(folder: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (folder / "training.jsonl").read_text().splitlines()) if "loss" in line]


def head_lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (folder / "training.jsonl").read_text().splitlines()) if "heads/moved" in line]


def test_the_last_step_is_the_student_and_the_first_its_base(tmp_path: Path, learn: Callable[..., Any], checkpoint: Path) -> None:
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
def test_training_is_the_same_without_it(tmp_path: Path, learn: Callable[..., Any], change: dict[str, Any]) -> None:
    """With dropout: random numbers, modes and log are what they would have been."""
    train = replace(QUICK, **change)
    learn(tmp_path / "with", (0, 1, 2, 5), train=train)
    learn(tmp_path / "without", None, train=train)
    with_it, without = (tmp_path / name / "adapter_model.safetensors" for name in ("with", "without"))
    assert with_it.read_bytes() == without.read_bytes()
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert len(losses(tmp_path / "with")) == STEPS
    assert not (tmp_path / "without" / FILE).exists()
    assert head_lines(tmp_path / "without") == []


def test_recording_draws_no_random_number_and_leaves_the_modes(checkpoint: Path) -> None:
    model, base = new_student(StudentConfig(model=str(checkpoint), device="cpu", rank=2, dropout=0.3), 0)
    model.train()
    model.base_model.model.model.layers[1].eval()
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    record_heads(model, fixed_texts(base, PROBLEMS), MEASURES)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert any(p.requires_grad for p in model.parameters())


def test_small_batches_give_the_same(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_checkpoint(checkpoint, device="cpu")
    tokens = fixed_texts(opened, PROBLEMS)
    whole, n = record_heads(opened.model, tokens, MEASURES)
    monkeypatch.setattr(distill.training.trajectory, "BATCH_TOKENS", 1)
    single, n_single = record_heads(opened.model, tokens, MEASURES)
    np.testing.assert_allclose(whole, single, rtol=0, atol=1e-6)
    assert np.array_equal(n, n_single)


@pytest.mark.parametrize("stop", [1, 5, 6])
def test_a_killed_run_ends_with_the_same_file(tmp_path: Path, learn: Callable[..., Any], stop: int) -> None:
    """Killed before any checkpoint, after step 5 (checkpoint 4; step 5 was recorded), and right after a checkpoint."""
    steps = (0, 1, 2, 5, STEPS)
    learn(tmp_path / "whole" / "pupil", steps)
    folder = tmp_path / "killed" / "pupil"
    with pytest.raises(Stop):
        learn(folder, steps, callbacks=[StopAt(stop)])
    assert not folder.exists()
    kept = sorted(path.name for path in (tmp_path / "killed" / "pupil.partial" / "heads").glob("*.parquet"))
    assert kept == [f"step-{step:06d}.parquet" for step in steps if step <= stop]
    learn(folder, steps)
    for name in (FILE, "adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / "pupil" / name).read_bytes(), name
    timeless = [
        [{key: value for key, value in line.items() if key != "heads/seconds"} for line in head_lines(place)]
        for place in (folder, tmp_path / "whole" / "pupil")
    ]
    assert timeless[0] == timeless[1]
    assert [line["step"] for line in timeless[0]] == list(steps)


def test_what_was_recorded_is_not_recorded_again(tmp_path: Path, learn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stop):
        learn(tmp_path / "pupil", (0, 2, 3, STEPS), callbacks=[StopAt(5)])
    calls: list[int] = []
    whole = distill.training.trajectory.record_heads
    monkeypatch.setattr(distill.training.trajectory, "record_heads", lambda *given: calls.append(1) or whole(*given))
    learn(tmp_path / "pupil", (0, 2, 3, STEPS))  # goes on from checkpoint 4
    assert len(calls) == 1


def test_begun_in_the_midst_the_base_is_step_0(tmp_path: Path, learn: Callable[..., Any]) -> None:
    """Switched on, or given other measures, after a checkpoint: what is gone is not made up, the base can still be read."""
    learn(tmp_path / "whole" / "pupil", (0, 4, STEPS))
    with pytest.raises(Stop):
        learn(tmp_path / "late" / "pupil", (0, 2, 4), measures=("max_prob",), callbacks=[StopAt(5)])
    learn(tmp_path / "late" / "pupil", (0, 2, 4, STEPS))
    late, whole = (read_trajectory(tmp_path / name / "pupil") for name in ("late", "whole"))
    pd.testing.assert_frame_equal(late, whole)
    adapters = [(tmp_path / name / "pupil" / "adapter_model.safetensors").read_bytes() for name in ("late", "whole")]
    assert adapters[0] == adapters[1]


def test_few_numbers_reach_the_log(tmp_path: Path, learn: Callable[..., Any]) -> None:
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
    assert summary(now, first) == {"heads/a": pytest.approx(2.3), "heads/moved": pytest.approx(0.5 / spread)}
    assert summary(now[now["measure"] == "b"], first[first["measure"] == "b"]) == {}
    json.dumps(summary(now, first), allow_nan=False)


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
def test_steps_are_even(total: int, records: int, steps: list[int]) -> None:
    assert recording_steps(total, records) == steps


def test_no_two_recordings_are_nearer_than_ten_steps() -> None:
    for total in range(10, 400):
        for records in range(2, 50):
            steps = recording_steps(total, records)
            assert len(steps) <= records
            assert (steps[0], steps[-1]) == (0, total)
            assert min(np.diff(steps)) >= 10


# --- what cannot be recorded -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RecordingError("GPT9Model does not use\nthe seam"), NonFiniteError("layer 1: NaN")])
def test_what_cannot_be_recorded_is_noted_and_trained(
    tmp_path: Path, learn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    learn(tmp_path / "without", None)
    monkeypatch.setattr(distill.training.trajectory, "record_heads", refuse)
    learn(tmp_path / "pupil")
    said = [line for line in capsys.readouterr().err.splitlines() if "heads are not recorded" in line]
    assert len(said) == 1
    assert " ".join(str(error).split()) in said[0]
    adapters = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("pupil", "without")]
    assert adapters[0] == adapters[1]
    with pytest.raises(StudyError, match="has no trajectory"):
        read_trajectory(tmp_path / "pupil")


def test_what_fails_later_keeps_what_was_recorded(
    tmp_path: Path, learn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, calls = distill.training.trajectory.record_heads, []

    def once(*given: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise NonFiniteError("layer 0: NaN")
        return whole(*given)

    monkeypatch.setattr(distill.training.trajectory, "record_heads", once)
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


def test_errors_say_what_to_do(tmp_path: Path, checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint, device="cpu")
    tokens = fixed_texts(opened, PROBLEMS)
    with pytest.raises(InputError, match="entropie"):
        HeadTrajectory(tokens, ["entropie"], "pupil")
    with pytest.raises(StudyError, match="at least 2"):
        HeadTrajectory(tokens, MEASURES, "pupil", 1)
    with pytest.raises(StudyError, match=r"problem 7 has .* the model has 512 positions"):
        fixed_texts(opened, [Problem(7, "How many? " * 400, "#### 1")])
    with pytest.raises(StudyError, match="holds no checkpoint-N"):
        checkpoint_folders(tmp_path)
    with pytest.raises(StudyError, match="at least one"):
        record_checkpoints([], PROBLEMS, MEASURES)
    (tmp_path / FILE).write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a readable Parquet"):
        read_trajectory(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: pd.concat([f, f.assign(model="other")]), "2 students"),
        (lambda f: f.assign(step=f["step"] - 1), "step -1"),
        (lambda f: f.iloc[:-1], "step 7 holds other heads"),
        (lambda f: f.assign(mean=np.nan), "not finite"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], words: str) -> None:
    axes = [["pupil"], [0, 7], [0, 1], [0, 1], ["entropy_nats"], REGIONS]
    frame = pd.MultiIndex.from_product(axes, names=list(TRAJECTORY.key)).to_frame(index=False).assign(mean=0.5, n_examples=3)
    distill.training.trajectory.check_trajectory(frame, "here")
    from interp.tables.schema import write

    write(change(frame), TRAJECTORY, tmp_path / FILE)
    with pytest.raises(StudyError, match=words):
        read_trajectory(tmp_path)
    with pytest.raises(InputError, match="repeat a key"):
        validate(pd.concat([frame, frame]), TRAJECTORY)


# --- checkpoints on disk ----------------------------------------------------------------------------------------------


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


# --- studies and processes ---------------------------------------------------------------------------------------------

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


def test_a_study_follows_heads_and_keeps_students_when_that_changes(
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
    adapter, changed = (folder / "adapter_model.safetensors").read_bytes(), (folder / FILE).stat().st_mtime_ns
    assert main(["train", str(file), "--quiet", "--set", "heads.records=0"]) == 0
    assert (folder / FILE).stat().st_mtime_ns == changed
    assert main(["train", str(file), "--quiet", "--set", "heads.records=0", "--out", str(tmp_path / "off")]) == 2  # no records there
    (tmp_path / "off" / "records").mkdir(exist_ok=True, parents=True)
    assert main(["collect", str(file), "--quiet", "--out", str(tmp_path / "off")]) == 0
    assert main(["train", str(file), "--quiet", "--set", "heads.records=0", "--out", str(tmp_path / "off")]) == 0
    off = tmp_path / "off" / "students" / "none-seed0"
    assert not (off / FILE).exists()
    assert (off / "adapter_model.safetensors").read_bytes() == adapter
    capfd.readouterr()
    assert main(["train", str(file), "--quiet", "--set", 'heads.measures=["entropie"]']) == 2
    assert "heads.measures: unknown measures entropie" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ({"records": 1}, "heads.records is 1"),
        ({"records": -2}, "heads.records is -2"),
        ({"texts": 0}, "heads.texts is 0"),
        ({"measures": []}, "at least one"),
        ({"measures": ["max_prob", "max_prob"]}, "each once"),
        ({"steps": 3}, "unknown key heads.steps"),
    ],
)
def test_settings_that_make_no_sense(heads: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        study_from({"name": "s", "heads": heads})


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
from distill.training.trajectory import HeadTrajectory, fixed_texts

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


def test_two_processes_learn_and_record_what_one_does(tmp_path: Path, checkpoint: Path) -> None:
    """Thirteen texts: the last step has blanks, and the second rank more of them than the first."""
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
