from __future__ import annotations

import copy
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
from distill.evaluation.likelihood import score_texts
from distill.evaluation.options import EvaluationConfig
from distill.evaluation.statistics import students_table
from distill.objectives import chunked as losses
from distill.objectives.aligned import aligned_texts
from distill.problems.grading import GRADERS, grade
from distill.problems.sets import Problem, load_problems
from distill.records.record import Record
from distill.sources.texts import Text
from distill.strategies import Strategy
from distill.teachers.generate import Generated, Sampling
from interp.checkpoints.opening import open_checkpoint
from interp.checkpoints.unembedding import OutputHead, hidden_states, output_head
from interp.tables.errors import InputError, StudyError

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
    """`(folder, config, problems=...)` lets the tiny student answer."""

    def run(folder: Path, config: EvaluationConfig = QUICK, *, problems: Sequence[Problem] = asked, **changes: Any) -> Path:
        given: dict[str, Any] = {"context": CONTEXT, "chat": True, "about": ABOUT, **changes}
        context, chat = given.pop("context"), given.pop("chat")
        return answer_problems(student.model, student.tokenizer, problems, config, context, chat, folder=folder, **given)

    return run


def responses(folder: Path) -> pd.DataFrame:
    return pq.read_table(folder / "responses.parquet").to_pandas()


def said(
    tokenizer: Any, text: str, finish: Any = "eos", *, first: Sequence[int] = (), log_probs: Sequence[float] | None = None
) -> Generated:
    """What a model would have generated; log-probabilities -0.01, -0.02, ... unless given."""
    ids = [*first, *tokenizer(text, add_special_tokens=False)["input_ids"], *([tokenizer.eos_token_id] if finish == "eos" else [])]
    each = log_probs or [-0.01 * (n + 1) for n in range(len(ids))]
    return Generated(tuple(ids), text, finish, np.asarray(each, np.float32))


class Spoken:
    """Stands for `generate`: says given answers, and keeps what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: Sequence[Generated]) -> None:
        self.answers, self.calls = list(answers), []
        monkeypatch.setattr(evaluate, "generate", self)

    def __call__(self, model: Any, tokenizer: Any, prompts: Any, sampling: Sampling, *, batch_size: int, keys: Any) -> list[Generated]:
        self.calls.append((prompts, sampling, keys))
        return [self.answers.pop(0) for _ in prompts]


# --- answers --------------------------------------------------------------------------------------------------------


def test_answers_are_the_models_own(tmp_path: Path, answer: Callable[..., Path], student: Any, asked: list[Problem]) -> None:
    """Oracle: `generate` of transformers on one prompt at a time."""
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


def test_every_grader_on_every_answer(
    tmp_path: Path, answer: Callable[..., Path], student: Any, asked: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = ["#### 24", "The answer is 30.\nThe answer is 31.", "so 107", "none", "#### 36", "about #### 15", "#### 25"]
    finishes = ["eos", "eos", "eos", "eos", "length", "length", "stop"]
    order = sorted(asked, key=lambda p: -len(CONTEXT.encode(student.tokenizer, p.question, True)))
    Spoken(monkeypatch, [said(student.tokenizer, told[p.index], finishes[p.index]) for p in order])
    folder = answer(tmp_path / "e")
    assert responses(folder)["response"].tolist() == told
    grades = pq.read_table(folder / "grades.parquet").to_pylist()
    assert [(row["problem"], row["grader"]) for row in grades] == [(p.index, name) for p in asked for name in GRADERS]
    for row in grades:
        at = row["problem"]
        verdict = grade(told[at], asked[at].answer, [row["grader"]], cut=finishes[at] == "length")[0]
        assert (row["model"], row["correct"], row["extracted"]) == ("none-seed0", verdict.correct, verdict.extracted)
    summary = json.loads((folder / "evaluation.json").read_text())
    assert summary["accuracy"]["strict"] == pytest.approx(3 / 7)
    assert summary["cut"] == pytest.approx(2 / 7)
    assert summary["answers"] == 7
    assert summary["tokens"] == responses(folder)["tokens"].sum()
    assert summary["without_confidence"] == responses(folder)["confidence"].isna().sum() >= 1
    assert summary["settings"]["about"] == ABOUT
    assert summary["settings"]["context"] == CONTEXT.content
    own = read_answers(folder, "strict")
    assert own["correct"].sum() == 3
    assert students_table(own, "none")["right"].tolist() == [3]


def test_which_answers_share_a_batch_changes_nothing(tmp_path: Path, answer: Callable[..., Path]) -> None:
    first, *others = (responses(answer(tmp_path / str(size), replace(QUICK, batch_size=size))) for size in (7, 1, 2))
    for other in others:
        pd.testing.assert_frame_equal(first, other, rtol=1e-3)


def test_samples_differ_and_depend_on_problem_and_number_alone(tmp_path: Path, answer: Callable[..., Path], asked: list[Problem]) -> None:
    config = replace(QUICK, samples=3, temperature=1.0)
    whole = responses(answer(tmp_path / "a", config))
    assert list(zip(whole["problem"], whole["sample"], strict=True)) == [(p.index, s) for p in asked for s in range(3)]
    assert (whole.groupby("problem")["response"].nunique() == 3).all()
    moved = [replace(p, index=p.index + 10) for p in asked[2:4]]  # the same problems in another place of another set
    part = responses(answer(tmp_path / "b", replace(config, batch_size=5), problems=moved))
    kept = whole[whole["problem"].isin([2, 3])]
    assert part["response"].tolist() == kept["response"].tolist()
    other = responses(answer(tmp_path / "c", replace(config, seed=1)))
    assert other["response"].tolist() != whole["response"].tolist()


def test_the_config_is_what_generation_gets(
    tmp_path: Path, answer: Callable[..., Path], student: Any, asked: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluationConfig(max_new_tokens=5, batch_size=4, samples=2, temperature=0.7, top_p=0.9, stop=("Q:", "\n\n"), seed=3)
    spoken = Spoken(monkeypatch, [said(student.tokenizer, "5")] * 14)
    answer(tmp_path / "e", config, context=Strategy("s"), chat=False)
    assert [len(prompts) for prompts, _, _ in spoken.calls] == [4, 4, 4, 2]
    assert {sampling for _, sampling, _ in spoken.calls} == {Sampling(5, 0.7, 0.9, 3, ("Q:", "\n\n"))}
    plain = [student.tokenizer(f"Question: {p.question}\nAnswer:")["input_ids"] for p in asked for _ in range(2)]
    given = [prompt for prompts, _, _ in spoken.calls for prompt in prompts]
    assert given == sorted(plain, key=len, reverse=True)
    assert len({key for _, _, keys in spoken.calls for key in keys}) == 14


# --- confidence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number", "first"),
    [
        ("Ann has 24 pens, so 5.\n#### 24", 2, ()),
        ("The answer is 24. I repeat: the answer is 24", 1, ()),
        ("3*4 = 12 so 12+12 = 24 pens", 1, ()),
        ("so #### 24", 1, (1, 1, 1)),  # special tokens that the text does not show
    ],
)
def test_confidence_is_of_the_numbers_own_tokens(student: Any, text: str, number: int, first: Sequence[int]) -> None:
    """Oracle: tokens found one by one; the `number`-th place of 24 is the one that counts."""
    tokenizer = student.tokenizer
    spoken = said(tokenizer, text, first=first)
    at = [m for m in range(len(text)) if text.startswith("24", m)][number - 1]
    ends = np.cumsum([len(tokenizer.decode([i])) for i in spoken.ids[len(first) :]])
    inside = [n for n, end in enumerate(ends) if end > at and end - len(tokenizer.decode([spoken.ids[len(first) + n]])) < at + 2]
    expected = math.exp(np.mean([spoken.log_probs[len(first) + n] for n in inside]))
    assert evaluate._confidence(spoken, tokenizer) == pytest.approx(expected, rel=1e-6)


def test_confidence_by_hand(student: Any) -> None:
    """Two tokens of probability 1/2 and 1/8: geometric mean 1/4."""
    two = [i for t in ("2", "4") for i in student.tokenizer(t, add_special_tokens=False)["input_ids"]]
    assert len(two) == 2
    mark = student.tokenizer("#### ", add_special_tokens=False)["input_ids"]
    each = [-9.0] * len(mark) + [math.log(1 / 2), math.log(1 / 8), -9.0]
    spoken = Generated((*mark, *two, student.tokenizer.eos_token_id), "#### 24", "eos", np.asarray(each, np.float32))
    assert evaluate._confidence(spoken, student.tokenizer) == pytest.approx(1 / 4)


@pytest.mark.parametrize(("text", "finish"), [("no number at all", "eos"), ("", "eos"), ("#### 2", "length")])
def test_no_answer_has_no_confidence(student: Any, text: str, finish: str) -> None:
    assert math.isnan(evaluate._confidence(said(student.tokenizer, text, finish), student.tokenizer))


def test_confidence_does_not_depend_on_whose_verdict_is_shown(
    tmp_path: Path, answer: Callable[..., Path], student: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that another grader needs no new answers: this text has another number for each of the two."""
    text = "The answer is 24. Or 30"
    found = []
    for grader in ("first_final", "flexible"):
        Spoken(monkeypatch, [said(student.tokenizer, text)] * 7)
        folder = answer(tmp_path / grader, replace(QUICK, grader=grader))
        found.append(read_answers(folder, grader))
    assert found[0]["confidence"].tolist() == found[1]["confidence"].tolist()
    assert found[0]["extracted"].tolist() != found[1]["extracted"].tolist()


# --- going on -------------------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from distill import evaluate
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


def test_killed_and_gone_on_with(tmp_path: Path, checkpoint: Path, problems: Path) -> None:
    """Killed in the third of four batches, while grading, and after the last rename: the files are those of an undisturbed run.

    Each call is a process of its own, forked so that the model is loaded once.
    """
    (tmp_path / "answer.py").write_text(SCRIPT.format(root=str(Path(__file__).parents[3]), about=ABOUT))
    calls = ["whole:never", "killed:batch 3", "killed:grading", "killed:cleaning", "killed:never"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "answer.py", str(checkpoint), str(problems), *calls]
    told = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    # the moment, the exit code (10 + batches generated, or the signal), parts left behind
    assert told == ["never,14,0", "batch 3,-9,2", "grading,-9,4", "cleaning,-9,4", "never,10,0"]
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    whole, killed = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("whole", "killed"))
    timed = ("seconds", "tokens_per_second")
    assert {k: v for k, v in whole.items() if k not in timed} == {k: v for k, v in killed.items() if k not in timed}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["answer.py", "killed", "whole"]


class Stopped(Exception):
    """Ends a call in its midst."""


def stop_at(monkeypatch: pytest.MonkeyPatch, call: int) -> list[int]:
    """Ends generation at a call; the list grows with every call."""
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
    # "overwritten" keeps the footer, so that only reading the rows shows it
    part.write_bytes({"truncated": content[:-50], "overwritten": content[:4] + bytes(200) + content[204:], "empty": b""}[damage])
    answer(tmp_path / "e")
    assert len(calls) == 5  # the damaged part and the one that is missing
    assert all((whole / name).read_bytes() == (tmp_path / "e" / name).read_bytes() for name in FILES)


def test_going_on_with_another_batch_size(tmp_path: Path, answer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = responses(answer(tmp_path / "whole"))
    stop_at(monkeypatch, 3)
    with pytest.raises(Stopped):
        answer(tmp_path / "e", replace(QUICK, batch_size=2))
    pd.testing.assert_frame_equal(whole, responses(answer(tmp_path / "e", replace(QUICK, batch_size=4))), rtol=1e-3)


def test_a_full_disk_loses_nothing(tmp_path: Path, answer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_other_settings_are_refused_by_name(
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


def test_what_leaves_the_answers_alone_may_change(tmp_path: Path, answer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    before = (answer(tmp_path / "e") / "responses.parquet").read_bytes()
    calls = stop_at(monkeypatch, 0)
    answer(tmp_path / "e", replace(QUICK, batch_size=1, grader="flexible", level=0.9, resamples=10))
    assert not calls
    assert (tmp_path / "e" / "responses.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": replace(QUICK, grader="strct")}, "unknown grader 'strct'; known: first_final"),
        ({"problems": [Problem(0, "1 + 1?", "#### 2"), Problem(1, "2 + 2?", "four")]}, "'four' ends in no number"),
    ],
)
def test_what_cannot_be_graded_is_refused_before_the_work(
    tmp_path: Path, answer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str
) -> None:
    calls = stop_at(monkeypatch, 0)
    with pytest.raises(InputError, match=words):
        answer(tmp_path / "e", **change)
    assert not calls
    assert list(tmp_path.iterdir()) == []


# --- reading --------------------------------------------------------------------------------------------------------


def test_the_untouched_student_has_no_seed(tmp_path: Path, answer: Callable[..., Path]) -> None:
    table = read_answers(answer(tmp_path / "e", about={"condition": "untouched", "seed": None}), "first_final")
    assert table["seed"].isna().all()
    assert str(table["seed"].dtype) == "Int64"
    assert students_table(table, "untouched")["seed"].isna().all()


def test_what_cannot_be_read_is_named(tmp_path: Path, answer: Callable[..., Path]) -> None:
    with pytest.raises(StudyError, match=r"absent holds no whole evaluation .* run evaluate"):
        read_answers(tmp_path / "absent", "strict")
    folder = answer(tmp_path / "e")
    with pytest.raises(StudyError, match="no verdicts of 'mine'; it has those of first_final, strict"):
        read_answers(folder, "mine")
    for name, content in (("evaluation.json", b"{"), ("grades.parquet", b"PAR1"), ("evaluation.json", b"{}")):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(StudyError, match="holds no whole evaluation"):
            read_answers(folder, "strict")
        (folder / name).write_bytes(kept)


# --- likelihood and divergence --------------------------------------------------------------------------------------

ANSWERS = ("3*4 = 12", "15 x 2 = $30 and so on for a while", "100", "24 are left.\n#### 24")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., Path]) -> Any:
    """Wider than the student, with the same tokenizer and a matrix of more rows."""
    settings = {"hidden_size": 48, "vocab_size": 416, "seed": 7}
    return open_checkpoint(save_checkpoint(tmp_path_factory.mktemp("teacher") / "wide", **settings), device="cpu")


@pytest.fixture(scope="module")
def records(teacher: Any) -> list[Record]:
    """Answers with the teacher's hidden states, under a prompt that the student never sees."""
    made = []
    for number, text in enumerate(ANSWERS):
        given = Strategy("told", "Be clear.").encode(teacher.tokenizer, f"What is {number}?", True)
        response = [*teacher.tokenizer(text, add_special_tokens=False)["input_ids"], teacher.tokenizer.eos_token_id]
        ids = torch.tensor([[*given, *response]])
        with torch.no_grad():
            states = hidden_states(teacher.model, ids, torch.ones_like(ids))[0, len(given) - 1 : -1]
        made.append(Record(number, f"What is {number}?", f"#### {number}", tuple(given), tuple(response), text, "eos", {"hidden": states}))
    return made


def texts_of(records: Sequence[Record], tokenizer: Any) -> tuple[Text, ...]:
    return aligned_texts(records, tokenizer, CONTEXT, True, max_tokens=500, same_tokenizer=True).texts


def dense(model: Any, text: Text) -> torch.Tensor:
    """Oracle: the student's log-probabilities at the scored places, in float64, one text at a time, through its own whole logits."""
    whole = copy.deepcopy(model).double()
    with torch.no_grad():
        logits = whole(input_ids=torch.tensor([text.ids])).logits[0]
    return torch.log_softmax(logits[text.first : text.first + len(text.targets)], -1)


def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    return float((log_p.exp() * (log_p - log_q)).sum())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_likelihood_is_the_dense_one_whatever_the_batch(
    tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any], records: list[Record], family: str
) -> None:
    model = tiny_model(family, vocab_size=400)
    texts = texts_of([replace(r, signals={}) for r in records], tiny_tokenizer())
    expected = []
    for text in texts:
        log_q = dense(model, text)
        expected.append(-float(log_q.gather(1, torch.tensor(text.targets)[:, None]).sum()))
    for batch_size in (1, 3, 4):
        scores = score_texts(model, texts, 0, batch_size=batch_size)
        assert scores["nll"].tolist() == pytest.approx(expected, rel=1e-4)
        assert scores["tokens"].tolist() == [len(text.targets) for text in texts]
        assert scores["kl"].isna().all()
    assert score_texts(model, texts, 5, batch_size=4)["nll"].tolist() == pytest.approx(expected, rel=1e-4)


def test_chunks_of_tokens_change_nothing(student: Any, records: list[Record], teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, head = texts_of(records, student.tokenizer), output_head(teacher.model)
    whole = score_texts(student.model, texts, 0, batch_size=4, teacher_head=head)
    monkeypatch.setattr(losses, "_CHUNK_BYTES", 3 * 400 * 4)
    seen: list[int] = []
    product = losses.head_product
    monkeypatch.setattr(losses, "head_product", lambda head, hidden: seen.append(len(hidden)) or product(head, hidden))
    pd.testing.assert_frame_equal(whole, score_texts(student.model, texts, 0, batch_size=4, teacher_head=head), rtol=1e-4)
    assert sorted(set(seen))[-2:] == [3, 8]  # 8 rows are the probe of the output head


def test_divergence_from_hidden_states_is_the_dense_one(student: Any, records: list[Record], teacher: Any) -> None:
    """Over the ids that both have, each side made to sum to 1 again; KL(teacher || student), not the other."""
    texts = texts_of(records, student.tokenizer)
    scores = score_texts(student.model, texts, 0, batch_size=3, teacher_head=output_head(teacher.model))
    weight = output_head(teacher.model).weight.detach().double()
    forward, reverse = [], []
    for text, r in zip(texts, records, strict=True):
        log_p = torch.log_softmax((r.signals["hidden"].double() @ weight.T)[:, :400], -1)
        forward.append(kl(log_p, dense(student.model, text)))
        reverse.append(kl(dense(student.model, text), log_p))
    assert scores["kl"].tolist() == pytest.approx(forward, rel=1e-4)
    assert scores["kl"].tolist() != pytest.approx(reverse, rel=1e-3)
    assert scores["nll"].tolist() == pytest.approx(score_texts(student.model, texts, 0, batch_size=1)["nll"].tolist(), rel=1e-4)


def test_tiers_agree_and_a_top_k_is_a_lower_bound(student: Any, records: list[Record], teacher: Any) -> None:
    head = OutputHead(output_head(teacher.model).weight.detach()[:400])
    whole = [torch.log_softmax(head.logits(r.signals["hidden"]), -1) for r in records]

    def measured(signals: list[dict[str, torch.Tensor]]) -> np.ndarray:
        made = [replace(r, signals=s) for r, s in zip(records, signals, strict=True)]
        return score_texts(student.model, texts_of(made, student.tokenizer), 0, batch_size=4)["kl"].to_numpy()

    def top(k: int) -> list[dict[str, torch.Tensor]]:
        best = [log_p.topk(k) for log_p in whole]
        return [{"topk_ids": b.indices.int(), "topk_log_probs": b.values} for b in best]

    exact = measured([{"dense_log_probs": log_p} for log_p in whole])
    assert measured(top(400)) == pytest.approx(exact, rel=1e-4)
    few, more = measured(top(4)), measured(top(100))
    assert (few >= 0).all()
    assert (few < more).all()
    assert (more < exact).all()
    padded = [{"dense_log_probs": torch.cat([log_p, torch.full((len(log_p), 16), -30.0)], 1)} for log_p in whole]
    assert measured(padded) == pytest.approx(exact, rel=1e-4)


def test_no_divergence_from_itself(student: Any, records: list[Record]) -> None:
    """The student's own states under its own prompt, as a teacher's."""
    made = []
    for text, r in zip(texts_of(records, student.tokenizer), records, strict=True):
        ids = torch.tensor([text.ids])
        with torch.no_grad():
            states = hidden_states(student.model, ids, torch.ones_like(ids))[0, text.first :]
        made.append(replace(r, signals={"hidden": states}))
    own = output_head(student.model)
    scores = score_texts(student.model, texts_of(made, student.tokenizer), 0, batch_size=2, teacher_head=own)
    assert scores["kl"].tolist() == pytest.approx([0.0] * len(made), abs=1e-4)


def test_a_model_in_training_mode_is_refused(student: Any, records: list[Record]) -> None:
    model = copy.deepcopy(student.model).train()
    with pytest.raises(StudyError, match=r"training mode.*model.eval"):
        score_texts(model, texts_of(records, student.tokenizer), 0, batch_size=2)
