from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.problems.sets import Problem
from distill.strategies import Strategy
from distill.teachers.options import TeacherConfig
from distill.teachers.teacher import open_teacher, same_tokenizer, tokenizer_digest
from interp.tables.errors import CheckpointError, StudyError

PROBLEMS = [Problem(i, f"How many are {i} and 3?", f"{i}+3 = {i + 3}\n#### {i + 3}") for i in range(4)]
TOLD = Strategy("told", "Be clear.")


@pytest.fixture
def config(checkpoint: Path) -> TeacherConfig:
    return TeacherConfig(model=str(checkpoint), device="cpu", max_new_tokens=6, batch_size=3, top_k=4)


def test_chat_needs_a_chat_template(config: TeacherConfig, save_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    bare = save_checkpoint(tmp_path / "bare", template=None)
    for kind in ("transformers", "vllm"):
        with pytest.raises(StudyError, match="no chat template"):
            open_teacher(replace(config, kind=kind, signal="topk", model=str(bare), chat=True))
    assert open_teacher(replace(config, model=str(bare))).identity["chat"] is False


def test_settings_that_a_teacher_cannot_use_are_refused() -> None:
    with pytest.raises(StudyError, match=r"teacher\.signal is 'hidden', which a teacher of kind openai cannot give; allowed: text, topk"):
        open_teacher(TeacherConfig(kind="openai", url="http://localhost/v1"))
    with pytest.raises(StudyError, match="at most 20"):
        open_teacher(TeacherConfig(kind="openai", url="http://localhost/v1", signal="topk", top_k=21))
    with pytest.raises(StudyError, match=r"teacher\.tokenizer"):
        open_teacher(TeacherConfig(kind="openai", url="http://localhost/v1", signal="topk", top_k=20))
    with pytest.raises(StudyError, match=r"teacher\.url"):
        open_teacher(TeacherConfig(kind="openai", signal="text"))
    with pytest.raises(StudyError, match=r"teacher\.responses"):
        open_teacher(TeacherConfig(kind="replay", signal="text"))
    with pytest.raises(CheckpointError, match="no such model"):
        open_teacher(TeacherConfig(model="./nowhere"))
    reference = open_teacher(TeacherConfig(kind="reference", signal="text"))
    with pytest.raises(StudyError, match="published"):
        reference.score_prompts(PROBLEMS, TOLD, 10)
    with pytest.raises(StudyError, match="live"):
        reference.model_and_head()


def test_tokenizers_are_compared_by_content(tiny_tokenizer: Callable[..., Any]) -> None:
    one, same = tiny_tokenizer(), tiny_tokenizer(None)
    assert same_tokenizer(one, same) is None
    assert tokenizer_digest(one) != tokenizer_digest(same)  # the template decides prompts
    assert tokenizer_digest(one) == tokenizer_digest(tiny_tokenizer())
    grown = tiny_tokenizer()
    grown.add_tokens(["<new>"])
    assert same_tokenizer(one, grown) == f"id {len(one)} is None to the teacher and '<new>' to the student"
    from tokenizers import pre_tokenizers

    other = tiny_tokenizer()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert "split the same text differently" in str(same_tokenizer(one, other))


def test_tokenizers_with_other_merges_differ(tiny_tokenizer: Callable[..., Any]) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    one = tiny_tokenizer()
    content = json.loads(one.backend_tokenizer.to_str())
    merges = content["model"]["merges"]

    def other(changed: list[Any]) -> Any:
        model = {**content["model"], "merges": changed}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps({**content, "model": model})))

    assert same_tokenizer(one, other(merges)) is None
    for changed in (merges[::-1], merges[1:], merges[:70] + merges[71:], merges[:-1]):
        assert other(changed).get_vocab() == one.get_vocab()
        assert "split the same text differently" in str(same_tokenizer(one, other(changed)))
