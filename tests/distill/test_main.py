from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from distill.__main__ import main
from distill.problems.grading import GRADERS
from distill.study.config import read_study

STUDY = """
conditions = ["untouched", "finetune", "none", "told", "same"]
seeds = [0, 1]
strategies = ["{strategies}"]
out = "{out}"

[data]
train = {{ problems = "{problems}", first = 0, limit = 4 }}
heldout = {{ problems = "{problems}", first = 4, limit = 1 }}
test = {{ problems = "{problems}", first = 5, limit = 2 }}

[teacher]
model = "{teacher}"
device = "cpu"
max_new_tokens = 8
shard_rows = 2

[student]
model = "{student}"
device = "cpu"
rank = 2

[objective]
temperature = 2.0

[train]
epochs = 1
batch_size = 2
learning_rate = 1e-2
logging_steps = 1

[evaluation]
max_new_tokens = 8
resamples = 50
"""
STRATEGIES = """
[[strategy]]
name = "told"
text = "Be clear."

[[strategy]]
name = "same"
text = "Be clear."
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., Path]) -> Path:
    """A teacher of another size with the students' tokenizer."""
    return save_checkpoint(tmp_path_factory.mktemp("teachers") / "wide", hidden_size=48, seed=3)


@pytest.fixture
def study(tmp_path: Path, checkpoint: Path, wide: Path, problems: Path) -> Path:
    (tmp_path / "mine.toml").write_text(STRATEGIES)
    file = tmp_path / "study.toml"
    places = {"strategies": tmp_path / "mine.toml", "out": tmp_path / "out", "problems": problems, "teacher": wide, "student": checkpoint}
    file.write_text(STUDY.format(**places))
    return file


@pytest.fixture
def distill(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*arguments: Any) -> Ran:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return Ran(code, printed.out, printed.err)

    return run


def tree(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in without and p.suffix != ".lock"
    }


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONWARNINGS": "ignore"}
"""The environment of a separate process."""

TIMED = ("evaluation.json", "training.jsonl")
"""Files that hold durations."""


def test_complete_study_can_be_run_again(study: Path, distill: Callable[..., Ran], tmp_path: Path) -> None:
    ran = distill("run", study, "--quiet")
    assert ran.code == 0, ran.err
    out = tmp_path / "out"
    for words in (
        "grader first_final",
        "at most 8 tokens for every condition",
        "0.5 CE + 0.5 T^2 KL(teacher || student) at T = 2",
        "p_holm",
    ):
        assert words in ran.out
    assert ran.out.strip() in (out / "results.md").read_text()
    students, conditions = pd.read_csv(out / "students.csv"), pd.read_csv(out / "conditions.csv")
    assert students[["condition", "seed"]].fillna(-1).to_numpy().tolist() == [
        ["untouched", -1],
        *([name, seed] for name in ("finetune", "none", "told", "same") for seed in (0, 1)),
    ]
    assert conditions["condition"].tolist() == ["untouched", "finetune", "none", "told", "same"]
    assert students["kl_baseline"].notna().all()
    assert (students["kl_own"].notna() == students["condition"].isin(["none", "told", "same"])).all()

    # two strategies with the same text share their records, and their students are equal to the byte
    assert len(list((out / "records").glob("*/group.json"))) == 3
    for seed in (0, 1):
        told, same = (out / "students" / f"{name}-seed{seed}" / "adapter_model.safetensors" for name in ("told", "same"))
        assert told.read_bytes() == same.read_bytes()
    assert told.read_bytes() != (out / "students" / "none-seed1" / "adapter_model.safetensors").read_bytes()

    card = json.loads((out / "students" / "told-seed0" / "card.json").read_text())
    assert (card["condition"], card["seed"], card["strategy"]["text"]) == ("told", 0, "Be clear.")
    assert card["parents"]["teacher"]["name"] == "wide"
    assert card["counts"]["kept"] == 4
    assert json.loads((out / "students" / "finetune-seed0" / "card.json").read_text())["parents"]["teacher"] is None

    # finished work is not repeated; what was deleted is made again with the same content
    before = tree(out)
    assert distill("run", study, "--quiet").code == 0
    assert tree(out) == before
    shutil.rmtree(out / "students" / "none-seed0")
    shutil.rmtree(out / "evaluations" / "told-seed1")
    assert distill("run", study, "--quiet").code == 0
    assert tree(out, without=TIMED) == {name: data for name, data in before.items() if Path(name).name not in TIMED}

    ran = distill("inspect", out, "--rows", 1)
    assert ran.code == 0, ran.err
    assert "Be clear." in ran.out
    assert "problem 0" in ran.out


def test_steps_can_be_run_one_by_one(study: Path, distill: Callable[..., Ran], tmp_path: Path, checkpoint: Path) -> None:
    few = ("--set", 'conditions=["none", "told"]', "--set", "seeds=[0]", "--quiet")
    ran = distill("train", study, *few, "--condition", "told")
    assert ran.code == 2
    assert "run collect" in ran.err
    assert distill("collect", study, *few).code == 0
    ran = distill("evaluate", study, *few)
    assert ran.code == 2
    assert "run `python -m distill train`" in ran.err
    ran = distill("train", study, *few, "--seed", 0)
    assert ran.code == 0, ran.err
    assert ran.out.split() == [str(tmp_path / "out" / "students" / name) for name in ("none-seed0", "told-seed0")]
    assert distill("evaluate", study, *few).code == 0
    ran = distill("evaluate", study, *few, "--model", checkpoint)
    assert ran.code == 0, ran.err
    assert "tiny" in ran.out


@pytest.mark.parametrize(
    "settings",
    [
        ['objective.name="published"', 'objective.divergence="reverse_kl"', "objective.temperature=5.94"],
        ['objective.name="published"', 'objective.divergence="reverse_kl"', 'objective.order="lexicographic"', 'teacher.signal="dense"'],
        ['objective.teacher="live"', 'teacher.signal="text"', 'objective.divergence="jsd"'],
        ['teacher.signal="topk"', "teacher.top_k=5", "objective.temperature=1.0"],
        ['teacher.signal="topk"', "teacher.top_k=5", 'objective.topk_at_temperature="truncate"'],
        ['teacher.kind="reference"', 'teacher.signal="text"', "objective.alpha=1.0"],
        ['student.instruction="Answer briefly."', "student.chat=false", "student.dropout=0.2"],
    ],
    ids=["published", "lexicographic", "live", "topk", "truncated", "reference", "context"],
)
def test_other_objectives_teachers_and_contexts(study: Path, distill: Callable[..., Ran], tmp_path: Path, settings: list[str]) -> None:
    options = [part for setting in [*settings, 'conditions=["none", "told"]', "seeds=[0]"] for part in ("--set", setting)]
    ran = distill("run", study, "--quiet", *options)
    assert ran.code == 0, ran.err
    card = json.loads((tmp_path / "out" / "students" / "told-seed0" / "card.json").read_text())
    assert card["settings"]["objective"]["name"] in ran.out
    assert (card["missing_mass"] is not None) == ("truncate" in " ".join(settings))
    if card["missing_mass"] is not None:
        lower, upper = card["missing_mass"]
        assert 0 < lower <= upper < 1
        assert f"{lower:.1%} to {upper:.1%} of the teacher's mass is outside the stored top 5" in ran.err


def test_changed_parents_are_refused_by_name(
    study: Path, distill: Callable[..., Ran], tmp_path: Path, save_checkpoint: Callable[..., Path], checkpoint: Path
) -> None:
    base, replies = tmp_path / "base", tmp_path / "replies.jsonl"
    shutil.copytree(checkpoint, base)
    questions = [json.loads(line)["question"] for line in Path(read_study(study).data.train.problems).read_text().splitlines()]
    replies.write_text("".join(json.dumps({"question": q, "response": "It is 5."}) + "\n" for q in questions))
    options = [f"student.model={base}", "teacher.kind=replay", f"teacher.responses={replies}", "teacher.signal=text", "objective.alpha=1.0"]
    few = [p for o in [*options, 'conditions=["none"]', "seeds=[0]"] for p in ("--set", o)]
    assert distill("run", study, "--quiet", *few).code == 0
    replies.write_text(replies.read_text().replace("It is 5.", "It is 6."))
    assert distill("collect", study, "--quiet", *few).code == 0
    for command in ("train", "run"):
        ran = distill(command, study, "--quiet", *few)
        assert ran.code == 2
        assert "parents.teacher.sha256: was" in ran.err
    replies.write_text(replies.read_text().replace("It is 6.", "It is 5."))
    assert distill("run", study, "--quiet", *few).code == 0
    shutil.rmtree(base)
    save_checkpoint(base, seed=9)
    ran = distill("evaluate", study, "--quiet", *few)
    assert ran.code == 2
    assert "parents.base.weights_sha256: was" in ran.err


def test_evaluations_with_other_settings_are_in_no_table(study: Path, distill: Callable[..., Ran], tmp_path: Path) -> None:
    few = ("--set", 'conditions=["none", "told"]', "--set", "seeds=[0]", "--quiet")
    assert distill("run", study, *few).code == 0
    out = tmp_path / "out"
    shutil.rmtree(out / "evaluations" / "told-seed0")
    before = (out / "results.md").read_text()
    ran = distill("evaluate", study, *few, "--condition", "told", "--set", "evaluation.max_new_tokens=4")
    assert ran.code == 2
    assert "none-seed0 was evaluated with other settings" in ran.err
    assert "evaluation.max_new_tokens: was 8, is 4" in ran.err
    assert (out / "results.md").read_text() == before
    assert json.loads((out / "study.json").read_text())["evaluation"]["max_new_tokens"] == 8
    students = pd.read_csv(out / "students.csv")
    assert students[["objective", "grader", "max_new_tokens"]].drop_duplicates().to_numpy().tolist() == [["aligned", "first_final", 8]]


def test_damaged_results_are_moved_aside_and_made_again(study: Path, distill: Callable[..., Ran], tmp_path: Path) -> None:
    few = ("--set", 'conditions=["none"]', "--set", "seeds=[0]", "--quiet")
    assert distill("run", study, *few).code == 0
    out = tmp_path / "out"
    before = tree(out, without=TIMED)
    for broken in (
        "students/none-seed0/adapter_model.safetensors",
        "students/none-seed0/card.json",
        "evaluations/none-seed0/evaluation.json",
        "evaluations/none-seed0/responses.parquet",
        "evaluations/none-seed0/grades.parquet",
        "evaluations/none-seed0/heldout.json",
    ):
        (out / broken).write_bytes((out / broken).read_bytes()[:20])
        ran = distill("run", study, *few)
        assert ran.code == 0, ran.err
        for aside in out.rglob("*.damaged-1"):
            assert aside.name in ran.err
            shutil.rmtree(aside)
        assert tree(out, without=TIMED) == before, broken


def test_leftovers_of_a_killed_process_are_removed(study: Path, distill: Callable[..., Ran], tmp_path: Path) -> None:
    few = ("--set", 'conditions=["none"]', "--set", "seeds=[0]", "--quiet")
    assert distill("run", study, *few).code == 0
    students = tmp_path / "out" / "students"
    (students / "none-seed0.partial" / "checkpoint-1").mkdir(parents=True)
    assert distill("run", study, *few).code == 0
    assert not (students / "none-seed0.partial").exists()
    shutil.rmtree(students / "none-seed0")
    (students / ".none-seed0.draft").mkdir()
    assert distill("run", study, *few).code == 0
    assert sorted(p.name for p in students.iterdir() if p.suffix != ".lock") == ["none-seed0"]
    assert (students / "none-seed0" / "training.jsonl").is_file()


AT_ONCE = """
import os, runpy, sys
import distill.study.run, distill.training.train  # once, before both processes are forked

children = []
for number in range(2):
    child = os.fork()
    if child == 0:
        for stream in ("out", "err"):
            os.dup2(os.open(f"{number}.{stream}", os.O_WRONLY | os.O_CREAT), {"out": 1, "err": 2}[stream])
        sys.argv[0] = "distill"
        runpy.run_module("distill", run_name="__main__", alter_sys=True)  # ends with the command's exit code
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def test_two_simultaneous_runs_give_the_files_of_one(study: Path, distill: Callable[..., Ran], tmp_path: Path) -> None:
    few = ["--set", 'conditions=["none", "told"]', "--set", "seeds=[0]", "--quiet"]
    command = [sys.executable, "-c", AT_ONCE, "run", str(study), *few]
    both = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert both.stdout.strip() == "[0, 0]", (both.stderr, *((tmp_path / f"{number}.err").read_text() for number in range(2)))
    assert (tmp_path / "0.out").read_bytes() == (tmp_path / "1.out").read_bytes() != b""
    assert distill("run", study, *few, "--out", tmp_path / "alone").code == 0
    assert tree(tmp_path / "out", without=(*TIMED, "study.json")) == tree(tmp_path / "alone", without=(*TIMED, "study.json"))


def test_search_writes_the_best_settings_and_refuses_others(study: Path, distill: Callable[..., Ran], tmp_path: Path) -> None:
    options = ("--set", "search.trials=2", "--set", "search.rank=[2]", "--quiet")
    ran = distill("search", study, *options)
    assert ran.code == 0, ran.err
    assert "heldout_nll" in ran.out
    assert (tmp_path / "out" / "search" / "best.toml").is_file()
    ran = distill("search", study, *options, "--set", 'search.metric="heldout_accuracy"')
    assert ran.code == 2
    assert "search" in ran.err
    for other in ("train.epochs=2", "student.lora_alpha=3", "data.heldout.first=5", "objective.divergence=reverse_kl"):
        ran = distill("search", study, *options, "--set", other, "--set", "data.test.first=6", "--set", "data.test.limit=1")
        assert ran.code == 2
        assert "was begun with other settings" in ran.err


def test_changed_settings_are_refused_by_name(study: Path, distill: Callable[..., Ran]) -> None:
    few = ("--set", 'conditions=["none"]', "--set", "seeds=[0]", "--quiet")
    assert distill("run", study, *few).code == 0
    ran = distill("run", study, *few, "--set", "train.learning_rate=0.5")
    assert ran.code == 2
    assert "train.learning_rate: was 0.01, is 0.5" in ran.err
    ran = distill("evaluate", study, *few, "--set", "objective.temperature=5.0")
    assert ran.code == 2
    assert "objective.temperature: was 2.0, is 5.0" in ran.err
    ran = distill("run", study, *few, "--set", "evaluation.max_new_tokens=9")
    assert ran.code == 2
    assert "evaluation.max_new_tokens: was 8, is 9" in ran.err
    assert distill("run", study, *few, "--set", "train.logging_steps=2", "--set", "teacher.batch_size=1").code == 0


def test_different_tokenizers_need_training_on_text_alone(
    study: Path, distill: Callable[..., Ran], tmp_path: Path, save_checkpoint: Callable[..., Path]
) -> None:
    other = save_checkpoint(tmp_path / "other", vocab_size=401)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)
    few = ("--set", 'conditions=["none"]', "--set", "seeds=[0]", "--quiet", "--set", f"teacher.model={other}")
    ran = distill("run", study, *few)
    assert ran.code == 2
    assert "'<new>' to the teacher and None to the student" in ran.err
    assert "alpha = 1" in ran.err
    ran = distill("run", study, *few, "--set", "objective.alpha=1.0", "--out", tmp_path / "text")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (['conditions=["none", "tolt"]'], "did you mean told?"),
        (["objective.divergence=kl"], "known: forward_kl, reverse_kl, jsd"),
        (["train.epoch=3"], "did you mean epochs?"),
        (['student.targets=["query"]'], "has no query; its linear layers are"),
        (["student.model=./nowhere"], "no such model"),
        (["teacher.model=./nowhere"], "no such model"),
        (["teacher.kind=oracle"], "known: transformers"),
        (["data.test.first=0"], "share the question"),
        (["data.train.limit=99"], "needs problems 0 to 98"),
        (["baseline=teacher"], "not a condition of the study"),
        (["evaluation.grader=best"], "known: first_final"),
        (["train.optimizer=sdg"], "sdg"),
        (['student.targets=["mlp"]'], "which LoRA cannot adapt"),
        (['student.targets=["norm"]'], "which LoRA cannot adapt"),
        (['objective.name="published"', 'objective.divergence="reverse_kl"', 'conditions=["none", "step_by_step"]'], 'place is "after"'),
        (["objective.max_tokens=5"], "max_tokens is 5"),
        (["objective.keep=correct"], "no text is left"),
        (["out=/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_bad_input_is_one_error_and_exit_2(study: Path, distill: Callable[..., Ran], settings: list[str], words: str) -> None:
    options = [part for setting in ['conditions=["none"]', "seeds=[0]", *settings] for part in ("--set", setting)]
    ran = distill("run", study, "--quiet", *options)
    assert ran.code == 2
    assert words in ran.err
    assert "Traceback" not in ran.err


def test_wrong_names_and_files_are_refused(study: Path, distill: Callable[..., Ran], tmp_path: Path) -> None:
    for arguments, words in (
        (("run", tmp_path / "none.toml"), "cannot be read"),
        (("collect", study, "--condition", "nobody"), "conditions: untouched, finetune"),
        (("train", study, "--seed", 7), "seeds: 0, 1"),
        (("inspect", tmp_path / "none"), "is not a folder of records"),
        (("inspect", tmp_path), "holds no records"),
        (("train", study, "--condition", "untouched"), "nothing to train"),
    ):
        ran = distill(*arguments)
        assert ran.code == 2
        assert words in ran.err


BOTH_COMMANDS = """
import runpy, sys

given = sys.argv[1:]
for command in ("collect", "train"):
    sys.argv = ["distill", command, *given]
    try:
        runpy.run_module("distill", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
"""


def test_two_processes_give_the_records_and_student_of_one(study: Path, distill: Callable[..., Ran], tmp_path: Path) -> None:
    few = ["--set", 'conditions=["none"]', "--set", "seeds=[0]", "--quiet"]
    assert distill("collect", study, *few).code == 0
    assert distill("train", study, *few).code == 0
    script = tmp_path / "both.py"  # one launch for both commands
    script.write_text(BOTH_COMMANDS)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    arguments = [str(script), str(study), *few, "--set", "train.batch_size=1", "--out", str(tmp_path / "two")]
    subprocess.run([sys.executable, *launch, *arguments], check=True, env=ENVIRONMENT, cwd=tmp_path)
    assert tree(tmp_path / "two" / "records") == tree(tmp_path / "out" / "records")
    one, two = (load_file(tmp_path / name / "students" / "none-seed0" / "adapter_model.safetensors") for name in ("out", "two"))
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=0)


def test_launcher_is_refused_for_other_commands(study: Path, distill: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = distill("run", study)
    assert ran.code == 2
    assert "under a launcher, use collect and train" in ran.err


def test_help_loads_no_heavy_packages() -> None:
    code = "import sys, distill.__main__; print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.strip() == "[]"


def test_help_of_inspect_describes_the_graders(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["inspect", "--help"])
    printed = capsys.readouterr().out
    assert all(f"{name}:" in printed for name in GRADERS)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("collect", ("--condition", "absent"), "--condition absent is not a condition of the study"),
        ("train", ("--condition", "absent"), "--condition absent is not a condition of the study"),
        ("train", ("--condition", "untouched"), "there is nothing to train"),
        ("train", ("--seed", 7), "--seed 7 is not a seed of the study"),
        ("evaluate", ("--seed", 7), "--seed 7 is not a seed of the study"),
    ],
)
def test_a_wrong_selection_is_refused_before_anything_is_written(
    distill: Callable[..., Any], study: Path, tmp_path: Path, command: str, options: tuple[Any, ...], message: str
) -> None:
    ran = distill(command, study, "--out", tmp_path / "selected", *options)
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "selected").exists()


def test_a_file_in_place_of_the_results_folder_is_refused(distill: Callable[..., Any], study: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    ran = distill("run", study, "--out", tmp_path / "taken")
    assert ran.code == 2
    assert "is a file, and the study's results go there; name a folder with --out" in ran.err
    assert (tmp_path / "taken").read_text() == "mine"
