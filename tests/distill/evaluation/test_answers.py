from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from distill.evaluation import answers as evaluate
from distill.evaluation.answers import answer_problems, read_answers
from distill.evaluation.options import EvaluationConfig
from distill.evaluation.statistics import accuracy_by_student
from distill.problems.grading import GRADERS, grade
from distill.problems.sets import Problem, load_problems
from distill.strategies import Strategy
from distill.teachers.generate import Generated, Sampling
from interp.checkpoints.opening import open_checkpoint
from interp.tables.errors import DamagedError, InputError, StudyError

QUICK = EvaluationConfig(max_new_tokens=12, batch_size=3)
CONTEXT = Strategy("student", "Give the number.", "after")
ABOUT = {"condition": "none", "seed": 0, "name": "none-seed0"}
FILES = ("responses.parquet", "grades.parquet")


@pytest.fixture(scope="module")
def student(checkpoint: Path) -> Any:
    return open_checkpoint(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def asked(problems: Path) -> list[Problem]:
    return load_problems(str(problems))


@pytest.fixture
def answer(student: Any, asked: list[Problem]) -> Callable[..., Path]:
    """`(folder, config, problems=...)` evaluates the tiny student."""

    def run(folder: Path, config: EvaluationConfig = QUICK, *, problems: Sequence[Problem] = asked, **changes: Any) -> Path:
        given: dict[str, Any] = {"context": CONTEXT, "chat": True, "about": ABOUT, **changes}
        context, chat = given.pop("context"), given.pop("chat")
        return answer_problems(student.model, student.tokenizer, problems, config, context, chat, folder=folder, **given)

    return run


def responses(folder: Path) -> pd.DataFrame:
    return pq.read_table(folder / "responses.parquet").to_pandas()


def generated(
    tokenizer: Any, text: str, finish: Any = "eos", *, first: Sequence[int] = (), log_probs: Sequence[float] | None = None
) -> Generated:
    """Return a text as if a model had generated it; log-probabilities are -0.01, -0.02, ... unless given."""
    ids = [*first, *tokenizer(text, add_special_tokens=False)["input_ids"], *([tokenizer.eos_token_id] if finish == "eos" else [])]
    each = log_probs or [-0.01 * (n + 1) for n in range(len(ids))]
    return Generated(tuple(ids), text, finish, np.asarray(each, np.float32))


class Scripted:
    """Replaces `generate`: returns given answers, and stores the calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: Sequence[Generated]) -> None:
        self.answers, self.calls = list(answers), []
        monkeypatch.setattr(evaluate, "generate", self)

    def __call__(self, model: Any, tokenizer: Any, prompts: Any, sampling: Sampling, *, batch_size: int, keys: Any) -> list[Generated]:
        self.calls.append((prompts, sampling, keys))
        return [self.answers.pop(0) for _ in prompts]


# --- answers --------------------------------------------------------------------------------------------------------


def test_answers_match_generate_of_transformers(tmp_path: Path, answer: Callable[..., Path], student: Any, asked: list[Problem]) -> None:
    """Oracle: `generate` on one prompt at a time."""
    table = responses(answer(tmp_path / "e"))
    assert table["problem"].tolist() == [p.index for p in asked]
    assert table["reference"].tolist() == [p.answer for p in asked]
    for p, row in zip(asked, table.itertuples(), strict=True):
        ids = torch.tensor([CONTEXT.encode(student.tokenizer, p.question, True)])
        mask = torch.ones_like(ids)
        whole = student.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
        new = whole[0, ids.shape[1] :].tolist()
        assert row.response == student.tokenizer.decode(new, skip_special_tokens=True)
        assert row.tokens == len(new)
        assert row.finish == ("eos" if new[-1] == student.tokenizer.eos_token_id else "length")


def test_every_answer_is_graded_by_every_grader(
    tmp_path: Path, answer: Callable[..., Path], student: Any, asked: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["#### 24", "The answer is 30.\nThe answer is 31.", "so 107", "none", "#### 36", "about #### 15", "#### 25"]
    finishes = ["eos", "eos", "eos", "eos", "length", "length", "stop"]
    order = sorted(asked, key=lambda p: -len(CONTEXT.encode(student.tokenizer, p.question, True)))
    Scripted(monkeypatch, [generated(student.tokenizer, texts[p.index], finishes[p.index]) for p in order])
    folder = answer(tmp_path / "e")
    assert responses(folder)["response"].tolist() == texts
    grades = pq.read_table(folder / "grades.parquet").to_pylist()
    assert [(row["problem"], row["grader"]) for row in grades] == [(p.index, name) for p in asked for name in GRADERS]
    for row in grades:
        at = row["problem"]
        verdict = grade(texts[at], asked[at].answer, [row["grader"]], truncated=finishes[at] == "length")[0]
        assert (row["model"], row["correct"], row["extracted"]) == ("none-seed0", verdict.correct, verdict.extracted)
    summary = json.loads((folder / "evaluation.json").read_text())
    assert summary["accuracy"]["strict"] == pytest.approx(3 / 7)
    assert summary["truncated"] == pytest.approx(2 / 7)
    assert summary["answers"] == 7
    assert summary["tokens"] == responses(folder)["tokens"].sum()
    assert summary["without_confidence"] == responses(folder)["confidence"].isna().sum() >= 1
    assert summary["settings"]["about"] == ABOUT
    assert summary["settings"]["context"] == CONTEXT.content
    own = read_answers(folder, "strict")
    assert own["correct"].sum() == 3
    assert accuracy_by_student(own, "none")["right"].tolist() == [3]


def test_batch_size_does_not_change_answers(tmp_path: Path, answer: Callable[..., Path]) -> None:
    first, *others = (responses(answer(tmp_path / str(size), replace(QUICK, batch_size=size))) for size in (7, 1, 2))
    for other in others:
        pd.testing.assert_frame_equal(first, other, rtol=1e-3)


def test_samples_depend_only_on_seed_problem_and_number(tmp_path: Path, answer: Callable[..., Path], asked: list[Problem]) -> None:
    config = replace(QUICK, samples=3, temperature=1.0)
    whole = responses(answer(tmp_path / "a", config))
    assert list(zip(whole["problem"], whole["sample"], strict=True)) == [(p.index, s) for p in asked for s in range(3)]
    assert (whole.groupby("problem")["response"].nunique() == 3).all()
    moved = [replace(p, index=p.index + 10) for p in asked[2:4]]  # the same problems at other positions of another set
    part = responses(answer(tmp_path / "b", replace(config, batch_size=5), problems=moved))
    kept = whole[whole["problem"].isin([2, 3])]
    assert part["response"].tolist() == kept["response"].tolist()
    other = responses(answer(tmp_path / "c", replace(config, seed=1)))
    assert other["response"].tolist() != whole["response"].tolist()


def test_settings_reach_generation(
    tmp_path: Path, answer: Callable[..., Path], student: Any, asked: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluationConfig(max_new_tokens=5, batch_size=4, samples=2, temperature=0.7, top_p=0.9, stop=("Q:", "\n\n"), seed=3)
    scripted = Scripted(monkeypatch, [generated(student.tokenizer, "5")] * 14)
    answer(tmp_path / "e", config, context=Strategy("s"), chat=False)
    assert [len(prompts) for prompts, _, _ in scripted.calls] == [4, 4, 4, 2]
    assert {sampling for _, sampling, _ in scripted.calls} == {Sampling(5, 0.7, 0.9, 3, ("Q:", "\n\n"))}
    plain = [student.tokenizer(f"Question: {p.question}\nAnswer:")["input_ids"] for p in asked for _ in range(2)]
    given = [prompt for prompts, _, _ in scripted.calls for prompt in prompts]
    assert given == sorted(plain, key=len, reverse=True)
    assert len({key for _, _, keys in scripted.calls for key in keys}) == 14


# --- confidence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number", "first"),
    [
        ("Ann has 24 pens, so 5.\n#### 24", 2, ()),
        ("The answer is 24. I repeat: the answer is 24", 1, ()),
        ("3*4 = 12 so 12+12 = 24 pens", 1, ()),
        ("so #### 24", 1, (1, 1, 1)),  # special tokens, which the text lacks
    ],
)
def test_confidence_covers_exactly_the_tokens_of_the_number(student: Any, text: str, number: int, first: Sequence[int]) -> None:
    """Oracle: tokens are located one by one; the `number`-th occurrence of 24 counts."""
    tokenizer = student.tokenizer
    answer = generated(tokenizer, text, first=first)
    at = [m for m in range(len(text)) if text.startswith("24", m)][number - 1]
    ends = np.cumsum([len(tokenizer.decode([i])) for i in answer.ids[len(first) :]])
    inside = [n for n, end in enumerate(ends) if end > at and end - len(tokenizer.decode([answer.ids[len(first) + n]])) < at + 2]
    expected = math.exp(np.mean([answer.log_probs[len(first) + n] for n in inside]))
    assert evaluate._confidence(answer, tokenizer) == pytest.approx(expected, rel=1e-6)


def test_confidence_hand_worked_case(student: Any) -> None:
    """Two tokens of probability 1/2 and 1/8: geometric mean 1/4."""
    two = [i for t in ("2", "4") for i in student.tokenizer(t, add_special_tokens=False)["input_ids"]]
    assert len(two) == 2
    mark = student.tokenizer("#### ", add_special_tokens=False)["input_ids"]
    each = [-9.0] * len(mark) + [math.log(1 / 2), math.log(1 / 8), -9.0]
    answer = Generated((*mark, *two, student.tokenizer.eos_token_id), "#### 24", "eos", np.asarray(each, np.float32))
    assert evaluate._confidence(answer, student.tokenizer) == pytest.approx(1 / 4)


@pytest.mark.parametrize(("text", "finish"), [("no number at all", "eos"), ("", "eos"), ("#### 2", "length")])
def test_answer_without_a_number_has_no_confidence(student: Any, text: str, finish: str) -> None:
    assert math.isnan(evaluate._confidence(generated(student.tokenizer, text, finish), student.tokenizer))


def test_confidence_does_not_depend_on_the_grader(
    tmp_path: Path, answer: Callable[..., Path], student: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two graders find different numbers in this text, and another grader must not need new answers."""
    text = "The answer is 24. Or 30"
    found = []
    for grader in ("first_final", "flexible"):
        Scripted(monkeypatch, [generated(student.tokenizer, text)] * 7)
        folder = answer(tmp_path / grader, replace(QUICK, grader=grader))
        found.append(read_answers(folder, grader))
    assert found[0]["confidence"].tolist() == found[1]["confidence"].tolist()
    assert found[0]["extracted"].tolist() != found[1]["extracted"].tolist()


# --- resuming -------------------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from distill.evaluation import answers as evaluate
from distill.evaluation.options import EvaluationConfig
from distill.problems.sets import load_problems
from distill.strategies import Strategy
from interp.checkpoints.opening import open_checkpoint

student, problems = open_checkpoint(sys.argv[1], device="cpu"), load_problems(sys.argv[2])

def answer(folder, moment):
    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(*arguments, **keywords):
        calls.append(1)
        return die() if moment == f"batch {{len(calls)}}" else generate(*arguments, **keywords)

    calls, generate = [], evaluate.generate
    evaluate.generate = counted
    if moment == "grading":
        evaluate.grade = lambda *given, **named: die() if given[0] else []
    if moment == "cleaning":
        evaluate.shutil.rmtree = lambda place, **_: die() if place.name.endswith(".partial") else None
    evaluate.answer_problems(student.model, student.tokenizer, problems, EvaluationConfig(max_new_tokens=12, batch_size=2),
                             Strategy("s"), True, folder=Path(folder), about={about!r})
    return len(calls)

for place, moment in (line.split(":") for line in sys.argv[3:]):
    child = os.fork()
    if child == 0:
        os._exit(10 + answer(place, moment))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(moment, code, len(list(Path(place + ".partial").glob("part-*.parquet"))), sep=",")
"""


def test_killed_evaluation_resumes_with_identical_files(tmp_path: Path, checkpoint: Path, problems: Path) -> None:
    """Killed in the third batch, while grading and after the last rename, the files equal those of an uninterrupted run.

    Each call is a forked process, so that the model is loaded once.
    """
    (tmp_path / "answer.py").write_text(SCRIPT.format(root=str(Path(__file__).parents[3]), about=ABOUT))
    calls = ["whole:never", "killed:batch 3", "killed:grading", "killed:cleaning", "killed:never"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "answer.py", str(checkpoint), str(problems), *calls]
    printed = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    # the moment, the exit code (10 + batches generated, or the signal), parts left behind
    assert printed == ["never,14,0", "batch 3,-9,2", "grading,-9,4", "cleaning,-9,4", "never,10,0"]
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    whole, killed = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("whole", "killed"))
    timed = ("seconds", "tokens_per_second")
    assert {k: v for k, v in whole.items() if k not in timed} == {k: v for k, v in killed.items() if k not in timed}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["answer.py", "killed", "whole"]


class Stopped(Exception):
    """Interrupts a call."""


def stop_at(monkeypatch: pytest.MonkeyPatch, call: int) -> list[int]:
    """Interrupt generation at the given call; the returned list grows with every call."""
    calls: list[int] = []
    generate = evaluate.generate

    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise Stopped
        return generate(*arguments, **keywords)

    monkeypatch.setattr(evaluate, "generate", counted)
    return calls


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "empty"])
def test_damaged_parts_are_made_again(tmp_path: Path, answer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    whole = answer(tmp_path / "whole")
    calls = stop_at(monkeypatch, 3)
    with pytest.raises(Stopped):
        answer(tmp_path / "e")
    part = sorted((tmp_path / "e.partial").glob("part-*"))[0]
    content = part.read_bytes()
    # "overwritten" keeps the footer, so only reading the rows finds the damage
    part.write_bytes({"truncated": content[:-50], "overwritten": content[:4] + bytes(200) + content[204:], "empty": b""}[damage])
    answer(tmp_path / "e")
    assert len(calls) == 5  # the damaged part and the one that is missing
    assert all((whole / name).read_bytes() == (tmp_path / "e" / name).read_bytes() for name in FILES)


def test_resuming_with_another_batch_size(tmp_path: Path, answer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = responses(answer(tmp_path / "whole"))
    stop_at(monkeypatch, 3)
    with pytest.raises(Stopped):
        answer(tmp_path / "e", replace(QUICK, batch_size=2))
    pd.testing.assert_frame_equal(whole, responses(answer(tmp_path / "e", replace(QUICK, batch_size=4))), rtol=1e-3)


def test_full_disk_leaves_nothing_behind(tmp_path: Path, answer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = answer(tmp_path / "whole")
    write, written = pq.write_table, []

    def full(table: Any, place: Path, *arguments: Any, **keywords: Any) -> None:
        written.append(place)
        if len(written) in (2, 5):  # a part, then the results
            place.write_bytes(b"PAR1 torn")
            raise OSError(errno.ENOSPC, "No space left on device", str(place))
        write(table, place, *arguments, **keywords)

    monkeypatch.setattr(evaluate.pq, "write_table", full)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            answer(tmp_path / "e")
        assert not (tmp_path / "e").exists()
    answer(tmp_path / "e")
    assert all((whole / name).read_bytes() == (tmp_path / "e" / name).read_bytes() for name in FILES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "whole"]


def test_draft_of_a_killed_call_is_removed(tmp_path: Path, answer: Callable[..., Path]) -> None:
    (tmp_path / ".e.draft-1-0").mkdir()
    (tmp_path / ".e.draft-1-0" / "responses.parquet").write_bytes(b"PAR1 torn")
    answer(tmp_path / "e")
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


CHANGES = [
    ({"config": replace(QUICK, max_new_tokens=13)}, "evaluation.max_new_tokens: was 12, is 13"),
    ({"config": replace(QUICK, stop=())}, "evaluation.stop: was"),
    ({"context": Strategy("s", "Other words.")}, "context.text: was"),
    ({"chat": False}, "chat: was True, is False"),
    ({"about": {**ABOUT, "adapter_sha256": "0"}}, "about.adapter_sha256: was None"),
    ({"problems": [Problem(0, "1 + 1?", "#### 2")]}, "problems_sha256: was"),
]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(("change", "words"), CHANGES, ids=[words.split(":")[0] for _, words in CHANGES])
def test_changed_settings_are_refused_by_name(
    tmp_path: Path, answer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str, finished: bool
) -> None:
    calls = stop_at(monkeypatch, 0 if finished else 2)
    if finished:
        answer(tmp_path / "e")
    else:
        with pytest.raises(Stopped):
            answer(tmp_path / "e")
    done = len(calls)
    with pytest.raises(StudyError, match=words):
        answer(tmp_path / "e", **change)
    assert len(calls) == done


def test_settings_that_do_not_change_answers_may_change(
    tmp_path: Path, answer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (answer(tmp_path / "e") / "responses.parquet").read_bytes()
    calls = stop_at(monkeypatch, 0)
    answer(tmp_path / "e", replace(QUICK, batch_size=1, grader="flexible", level=0.9, resamples=10))
    assert not calls
    assert (tmp_path / "e" / "responses.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"problems": [Problem(0, "1 + 1?", "#### 2"), Problem(1, "2 + 2?", "four")]}, "'four' does not end in a number"),
    ],
)
def test_references_without_a_number_are_refused_before_any_work(
    tmp_path: Path, answer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str
) -> None:
    calls = stop_at(monkeypatch, 0)
    with pytest.raises(InputError, match=words):
        answer(tmp_path / "e", **change)
    assert not calls
    assert list(tmp_path.iterdir()) == []


# --- reading --------------------------------------------------------------------------------------------------------


def test_student_without_training_has_no_seed(tmp_path: Path, answer: Callable[..., Path]) -> None:
    table = read_answers(answer(tmp_path / "e", about={"condition": "untouched", "seed": None}), "first_final")
    assert table["seed"].isna().all()
    assert str(table["seed"].dtype) == "Int64"
    assert accuracy_by_student(table, "untouched")["seed"].isna().all()


def test_incomplete_evaluations_are_refused(tmp_path: Path, answer: Callable[..., Path]) -> None:
    with pytest.raises(DamagedError, match=r"absent holds no complete evaluation .* run `python -m distill evaluate`"):
        read_answers(tmp_path / "absent", "strict")
    folder = answer(tmp_path / "e")
    with pytest.raises(DamagedError, match="no verdicts of 'mine'; it has those of first_final, strict"):
        read_answers(folder, "mine")
    for name, content in (("evaluation.json", b"{"), ("grades.parquet", b"PAR1"), ("evaluation.json", b"{}")):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(DamagedError, match="holds no complete evaluation"):
            read_answers(folder, "strict")
        (folder / name).write_bytes(kept)
