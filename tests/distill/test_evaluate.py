from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import distill.evaluate
from distill.batches import Text, aligned_texts
from distill.config import EvaluationConfig
from distill.evaluate import EvaluationError, answer_problems, read_answers, score_texts
from distill.generate import Generated
from distill.grading import GRADERS, GradingError
from distill.output_head import hidden_states, output_head
from distill.problems import Problem
from distill.records import Record
from distill.strategies import Strategy
from interp.checkpoints import open_checkpoint

PROBLEMS = [Problem(i, f"How many are {i} and 3?" + " Really?" * (i % 3), f"#### {i + 3}") for i in range(7)]
ABOUT = {"condition": "none", "seed": 0, "name": "none-seed0"}
QUICK = EvaluationConfig(max_new_tokens=6, batch_size=3)
ALONE = Strategy("student")


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> Any:
    return open_checkpoint(checkpoint, device="cpu")


def evaluate(opened: Any, folder: Path, config: EvaluationConfig = QUICK, problems: list[Problem] | None = None, **about: Any) -> Path:
    return answer_problems(
        opened.model, opened.tokenizer, problems or PROBLEMS, config, ALONE, True, folder=folder, about={**ABOUT, **about}
    )


def test_every_answer_and_every_verdict_is_kept(opened: Any, tmp_path: Path) -> None:
    folder = evaluate(opened, tmp_path / "e")
    responses = pq.read_table(folder / "responses.parquet").to_pandas()
    grades = pq.read_table(folder / "grades.parquet").to_pandas()
    assert responses["problem"].tolist() == list(range(7))
    assert list(grades.columns) == ["model", "problem", "sample", "grader", "extracted", "correct"]
    assert len(grades) == 7 * len(GRADERS)
    about = json.loads((folder / "evaluation.json").read_text())
    assert (about["answers"], about["tokens"]) == (7, int(responses["tokens"].sum()))
    assert about["tokens_per_second"] > 0
    answers = read_answers(folder, "first_final")
    assert set(answers["condition"]) == {"none"}
    assert answers["correct"].mean() == about["accuracy"]["first_final"]
    assert not (tmp_path / "e.partial").exists()


def test_batches_change_nothing(opened: Any, tmp_path: Path) -> None:
    one, all_ = (evaluate(opened, tmp_path / str(n), replace(QUICK, batch_size=n)) for n in (1, 7))
    first, second = (pq.read_table(folder / "responses.parquet").to_pandas() for folder in (one, all_))
    pd.testing.assert_frame_equal(first, second, atol=1e-5)


def test_a_model_that_knows_is_right_and_sure(opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The confidence is that of the number's tokens alone, by hand: exp of the mean of their log-probabilities."""

    def knowing(model: Any, tokenizer: Any, prompts: Any, sampling: Any, **_: Any) -> list[Generated]:
        made = []
        for ids in prompts:
            asked = int(tokenizer.decode(ids).split("are ")[1].split(" and")[0])
            said = tokenizer(f"So 9. The answer is {asked + 3}. The answer is 1.", add_special_tokens=False)["input_ids"]
            pieces = [tokenizer.decode([i]) for i in said]
            logs = [math.log(0.25) if any(c.isdigit() for c in piece) else -9.0 for piece in pieces]
            made.append(Generated((*said, 2), tokenizer.decode(said), "eos", torch.tensor([*logs, -9.0]).numpy()))
        return made

    monkeypatch.setattr(distill.evaluate, "generate", knowing)
    answers = read_answers(evaluate(opened, tmp_path / "e"), "first_final")
    assert answers["correct"].all()
    assert answers["confidence"].tolist() == pytest.approx([0.25] * 7, abs=0.05)
    assert not read_answers(tmp_path / "e", "flexible")["correct"].any()


def test_samples_differ_and_repeat(opened: Any, tmp_path: Path) -> None:
    sampled = replace(QUICK, samples=3, temperature=1.0)
    one, again = (read_answers(evaluate(opened, tmp_path / name, sampled), "strict") for name in "ab")
    assert len(one) == 21
    assert one["response"].tolist() == again["response"].tolist()
    assert one.groupby("problem")["response"].nunique().max() > 1


def test_what_is_finished_is_kept_and_other_settings_are_named(opened: Any, tmp_path: Path) -> None:
    folder = evaluate(opened, tmp_path / "e")
    before = (folder / "responses.parquet").stat().st_mtime_ns
    answer_problems(None, None, PROBLEMS, replace(QUICK, batch_size=1, grader="strict"), ALONE, True, folder=folder, about=ABOUT)
    assert (folder / "responses.parquet").stat().st_mtime_ns == before
    for change, words in (
        ({"config": replace(QUICK, max_new_tokens=9)}, "evaluation.max_new_tokens: was 6, is 9"),
        ({"problems": PROBLEMS[:3]}, "problems_sha256"),
        ({"seed": 4}, "about.seed: was 0, is 4"),
    ):
        with pytest.raises(EvaluationError, match=words):
            evaluate(opened, folder, **change)  # pyright: ignore[reportArgumentType]


def test_what_cannot_be_graded_is_refused_before_the_work(opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill.evaluate, "generate", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(GradingError, match="unknown grader 'frist'"):
        evaluate(opened, tmp_path / "e", replace(QUICK, grader="frist"))
    with pytest.raises(GradingError, match="ends in no number"):
        evaluate(opened, tmp_path / "e", problems=[*PROBLEMS, Problem(8, "Why?", "because")])


def test_no_evaluation_there(tmp_path: Path, opened: Any) -> None:
    with pytest.raises(EvaluationError, match="no whole evaluation"):
        read_answers(tmp_path, "strict")
    with pytest.raises(EvaluationError, match="no verdicts of 'x'; it has those of first_final, strict"):
        read_answers(evaluate(opened, tmp_path / "e"), "x")


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from distill.config import EvaluationConfig
from distill.evaluate import answer_problems
from distill.problems import Problem
from distill.strategies import Strategy
from interp.checkpoints import open_checkpoint
opened = open_checkpoint(sys.argv[1], device="cpu")
problems = [Problem(i, f"How many are {{i}} and 3?", f"#### {{i}}") for i in range(12)]
answer_problems(opened.model, opened.tokenizer, problems, EvaluationConfig(max_new_tokens=40, batch_size=2, samples=2, temperature=1.0),
                Strategy("s"), True, folder=Path(sys.argv[2]), about={about!r})
"""


def test_killed_and_gone_on_with(tmp_path: Path, checkpoint: Path) -> None:
    script = tmp_path / "answer.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[2]), about=ABOUT))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), str(checkpoint), str(tmp_path / "whole")], check=True, env=environment)
    process = subprocess.Popen([sys.executable, str(script), str(checkpoint), str(tmp_path / "killed")], env=environment)
    while not (tmp_path / "killed.partial" / "part-000004.parquet").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / "killed.partial" / "part-000002.parquet").write_bytes(b"PAR1")  # damaged meanwhile
    subprocess.run([sys.executable, str(script), str(checkpoint), str(tmp_path / "killed")], check=True, env=environment)
    for name in ("responses.parquet", "grades.parquet"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# --- likelihood and divergence --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(
    opened: Any, tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., Path]
) -> tuple[Any, list[Record], tuple[Text, ...]]:
    """A wider teacher, and its answers with hidden states."""
    torch.manual_seed(9)
    teacher = open_checkpoint(save_checkpoint(tmp_path_factory.mktemp("t") / "wide", hidden_size=48), device="cpu")
    records = []
    for p in PROBLEMS:
        asked = Strategy("told", "Be clear.").encode(teacher.tokenizer, p.question, True)
        said = [*teacher.tokenizer(f"It is {p.index}.", add_special_tokens=False)["input_ids"], 2]
        ids = torch.tensor([[*asked, *said]])
        with torch.no_grad():
            states = hidden_states(teacher.model, ids, torch.ones_like(ids))[0, len(asked) - 1 : -1]
        records.append(Record(p.index, p.question, p.answer, tuple(asked), tuple(said), f"It is {p.index}.", "eos", {"hidden": states}))
    texts = aligned_texts(records, opened.tokenizer, ALONE, True, max_tokens=400, same_tokenizer=True).texts
    return teacher, records, texts


def test_likelihood_and_divergence_are_those_of_whole_logits_in_float64(opened: Any, scored: Any) -> None:
    teacher, records, texts = scored
    head = output_head(teacher.model)
    found = score_texts(opened.model, texts, 0, batch_size=3, teacher_head=head)
    for row, record in zip(found.itertuples(), records, strict=True):
        asked = ALONE.encode(opened.tokenizer, record.question, True)
        with torch.no_grad():
            logits = opened.model(input_ids=torch.tensor([[*asked, *record.response_ids]])).logits[0, len(asked) - 1 : -1].double()
        ours = torch.log_softmax(logits, -1)
        theirs = torch.log_softmax(record.signals["hidden"].double() @ head.weight.double().T, -1)
        assert row.tokens == len(record.response_ids)
        assert row.nll == pytest.approx(-ours.gather(1, torch.tensor(record.response_ids)[:, None]).sum().item(), rel=1e-4)
        assert row.kl == pytest.approx((theirs.exp() * (theirs - ours)).sum().item(), rel=1e-4)


def test_batches_and_padding_change_no_score(opened: Any, scored: Any) -> None:
    teacher, _, texts = scored
    head = output_head(teacher.model)
    one, all_ = (score_texts(opened.model, texts, 0, batch_size=n, teacher_head=head) for n in (1, 7))
    pd.testing.assert_frame_equal(one, all_, rtol=1e-4)


def test_the_teacher_does_not_diverge_from_itself(scored: Any) -> None:
    teacher, records, _ = scored
    told = aligned_texts(records, teacher.tokenizer, Strategy("told", "Be clear."), True, max_tokens=400, same_tokenizer=True).texts
    found = score_texts(teacher.model, told, 0, batch_size=7, teacher_head=output_head(teacher.model))
    assert found["kl"].abs().max() < 1e-4


def test_without_signals_there_is_no_divergence(opened: Any, scored: Any) -> None:
    bare = [replace(t, record=replace(t.record, signals={})) for t in scored[2]]
    found = score_texts(opened.model, bare, 0, batch_size=7)
    assert found["kl"].isna().all()
    assert (found["nll"] > 0).all()
