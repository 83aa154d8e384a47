from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from distill.problems.sets import Problem
from distill.strategies import Strategy
from distill.teachers.options import TeacherConfig
from distill.teachers.teacher import open_teacher
from distill.teachers.vllm import prompt_topk
from interp.checkpoints.opening import open_checkpoint
from interp.tables.errors import StudyError

PROBLEMS = [Problem(i, f"How many are {i} and 3?", f"{i}+3 = {i + 3}\n#### {i + 3}") for i in range(4)]
TOLD = Strategy("told", "Be clear.")


@pytest.fixture
def config(checkpoint: Path) -> TeacherConfig:
    return TeacherConfig(model=str(checkpoint), device="cpu", max_new_tokens=6, batch_size=3, top_k=4)


def test_top_k_of_prompt_log_probabilities() -> None:
    """Entry i is the distribution of token i; it also holds the chosen token if that is not among the k most likely."""

    @dataclass
    class Logprob:
        logprob: float

    entries = [None, {4: Logprob(-1.0)}, {7: Logprob(-0.1), 3: Logprob(-2.5), 9: Logprob(-8.0)}, {2: Logprob(-3.0), 9: Logprob(-0.2)}]
    found = prompt_topk(entries, 2, 2, "problem 0")
    assert found["topk_ids"].tolist() == [[7, 3], [9, 2]]
    assert found["topk_log_probs"].flatten().tolist() == pytest.approx([-0.1, -2.5, -0.2, -3.0])
    with pytest.raises(StudyError, match="problem 0"):
        prompt_topk([None, None], 1, 2, "problem 0")


@pytest.fixture
def engine(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A replacement of vLLM with its documented interface, which runs the tiny model; returns what it was called with."""
    from distill.teachers.generate import Sampling, generate

    seen: list[Any] = []
    opened = open_checkpoint(checkpoint, device="cpu")

    class LLM:
        def __init__(self, **settings: Any) -> None:
            seen.append(settings)

        def generate(self, prompts: list[dict[str, list[int]]], params: Any) -> list[SimpleNamespace]:
            params = params if isinstance(params, list) else [params] * len(prompts)
            seen.append(params)
            return [self._one(p["prompt_token_ids"], how) for p, how in zip(prompts, params, strict=True)]

        def _one(self, ids: list[int], how: SimpleNamespace) -> SimpleNamespace:
            (answer,) = generate(opened.model, opened.tokenizer, [ids], Sampling(how.max_tokens), batch_size=1)
            finish = "length" if answer.finish == "length" else "stop"
            out = SimpleNamespace(token_ids=list(answer.ids), text=answer.text, finish_reason=finish)
            with torch.no_grad():
                log_p = torch.log_softmax(opened.model(input_ids=torch.tensor([ids])).logits[0], -1)
            entries: list[Any] = [None]
            for at, token in enumerate(ids[1:]):
                listed = [token, *log_p[at].topk(getattr(how, "prompt_logprobs", 0)).indices.tolist()]  # the token itself is first
                entries.append({i: SimpleNamespace(logprob=log_p[at, i].item()) for i in listed})
            return SimpleNamespace(outputs=[out], prompt_logprobs=entries)

    fake: Any = ModuleType("vllm")
    fake.LLM, fake.SamplingParams = LLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", fake)
    return seen


@pytest.mark.parametrize("signal", ["text", "topk"])
def test_vllm_answers_equal_those_of_transformers(config: TeacherConfig, engine: list[Any], signal: Any) -> None:
    teacher = open_teacher(replace(config, kind="vllm", signal=signal, seed=3))
    assert engine == []  # it starts at the first answer
    served, own = teacher.answer(PROBLEMS, TOLD), open_teacher(replace(config, signal=signal)).answer(PROBLEMS, TOLD)
    for one, other in zip(served, own, strict=True):
        assert replace(one, signals={}) == replace(other, signals={})
        assert one.signals.keys() == other.signals.keys()
        for name, rows in one.signals.items():
            torch.testing.assert_close(rows, other.signals[name], atol=1e-4, rtol=0)
    started, chosen, *scored = engine
    assert (started["model"], started["max_logprobs"], started["logprobs_mode"]) == (config.model, 20, "raw_logprobs")
    assert len({how.seed for how in chosen}) == 4
    assert [(how.max_tokens, how.temperature, how.top_p) for how in chosen] == [(6, 0.0, 1.0)] * 4
    assert [(how.max_tokens, how.prompt_logprobs) for calls in scored for how in calls] == ([(1, 4)] * 4 if signal == "topk" else [])


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_missing_vllm_names_the_extra(checkpoint: Path) -> None:
    teacher = open_teacher(TeacherConfig(kind="vllm", model=str(checkpoint), signal="topk"))
    with pytest.raises(StudyError, match=r"primed-heads\[vllm\]"):
        teacher.answer(PROBLEMS, TOLD)
