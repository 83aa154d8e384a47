from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.problems.sets import Problem
from distill.strategies import Strategy
from distill.teachers.catalog import TEACHERS
from distill.teachers.options import TeacherConfig
from distill.teachers.teacher import open_teacher
from interp.checkpoints.opening import open_checkpoint
from interp.checkpoints.unembedding import output_head

PROBLEMS = [Problem(i, f"How many are {i} and 3?", f"{i}+3 = {i + 3}\n#### {i + 3}") for i in range(4)]
TOLD = Strategy("told", "Be clear.")


@pytest.fixture
def config(checkpoint: Path) -> TeacherConfig:
    return TeacherConfig(model=str(checkpoint), device="cpu", max_new_tokens=6, batch_size=3, top_k=4)


@pytest.mark.parametrize("signal", TEACHERS["transformers"].signals)
def test_answers_come_with_the_signals_of_their_own_prompt(config: TeacherConfig, checkpoint: Path, signal: Any) -> None:
    teacher = open_teacher(replace(config, signal=signal))
    records = teacher.answer(PROBLEMS, TOLD)
    opened = open_checkpoint(checkpoint, device="cpu")
    for record, problem in zip(records, PROBLEMS, strict=True):
        assert (record.index, record.question, record.reference) == (problem.index, problem.question, problem.answer)
        assert list(record.prompt_ids) == TOLD.encode(opened.tokenizer, problem.question, True)
        assert record.finish == ("eos" if record.response_ids[-1] == 2 else "length")
        with torch.no_grad():
            ids = torch.tensor([[*record.prompt_ids, *record.response_ids]])
            log_p = torch.log_softmax(opened.model(input_ids=ids).logits[0, len(record.prompt_ids) - 1 : -1], -1)
        assert log_p.argmax(-1).tolist() == list(record.response_ids)
        if signal == "text":
            assert record.signals == {}
        elif signal == "topk":
            torch.testing.assert_close(record.signals["topk_log_probs"], log_p.topk(4).values, atol=1e-4, rtol=0)
        elif signal == "hidden":
            head = teacher.head()
            assert head is not None
            torch.testing.assert_close(torch.log_softmax(head.logits(record.signals["hidden"]), -1), log_p, atol=1e-4, rtol=0)
        else:
            torch.testing.assert_close(record.signals["dense_log_probs"], log_p, atol=1e-4, rtol=0)
    assert (teacher.head() is not None) == (signal == "hidden")


def test_prompts_are_scored_as_in_the_published_code(config: TeacherConfig, checkpoint: Path) -> None:
    """Instruction, space and question without template or special tokens; a distribution after every token, including the last."""
    (record, *_) = open_teacher(replace(config, signal="dense")).score_prompts(PROBLEMS, TOLD, 9)
    opened = open_checkpoint(checkpoint, device="cpu")
    ids = opened.tokenizer("Be clear. " + PROBLEMS[0].question, add_special_tokens=False)["input_ids"][:9]
    with torch.no_grad():
        log_p = torch.log_softmax(opened.model(input_ids=torch.tensor([ids])).logits[0], -1)
    assert (list(record.prompt_ids), record.response_ids, record.text) == (ids, (), "")
    torch.testing.assert_close(record.signals["dense_log_probs"], log_p, atol=1e-5, rtol=0)


def test_identity_needs_no_weights_and_holds_no_paths(
    config: TeacherConfig, checkpoint: Path, save_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = save_checkpoint(tmp_path / checkpoint.name)
    other = save_checkpoint(tmp_path / "other" / checkpoint.name, seed=1)
    monkeypatch.setattr("interp.checkpoints.opening.open_checkpoint", lambda *_, **__: pytest.fail("the weights were loaded"))
    own = open_teacher(config)
    assert own.identity == open_teacher(replace(config, model=str(copy))).identity
    assert own.identity != open_teacher(replace(config, model=str(other))).identity
    assert own.identity != open_teacher(replace(config, chat=False)).identity
    assert str(checkpoint.parent) not in json.dumps(own.identity)
    assert own.tokenizer is not None


@pytest.mark.parametrize("signal", ["text", "topk", "hidden"])
def test_scored_prompts_have_every_signal(config: TeacherConfig, checkpoint: Path, signal: Any) -> None:
    teacher = open_teacher(replace(config, signal=signal))
    assert teacher.tokenizer is not None
    for record, problem in zip(teacher.score_prompts(PROBLEMS, Strategy("none"), 100), PROBLEMS, strict=True):
        assert teacher.tokenizer.decode(record.prompt_ids) == problem.question  # no instruction, so no space before it
        with torch.no_grad():
            logits = open_checkpoint(checkpoint, device="cpu").model(input_ids=torch.tensor([record.prompt_ids])).logits[0]
        if signal == "text":
            assert record.signals == {}
        elif signal == "topk":
            expected = torch.log_softmax(logits, -1).topk(4)
            torch.testing.assert_close(record.signals["topk_log_probs"], expected.values, atol=1e-5, rtol=0)
            assert record.signals["topk_ids"].tolist() == expected.indices.tolist()
        else:
            head = teacher.head()
            assert head is not None
            torch.testing.assert_close(head.logits(record.signals["hidden"]), logits, atol=1e-4, rtol=1e-4)


def test_live_teacher_returns_its_model(config: TeacherConfig) -> None:
    teacher = open_teacher(config)
    model, head = teacher.model_and_head()
    assert torch.equal(head.weight, output_head(model).weight)
    teacher.close()
    assert len(teacher.answer(PROBLEMS[:1], TOLD)) == 1  # loaded again
