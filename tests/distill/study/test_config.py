from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.settings import as_tables, differences
from distill.study.config import Study, read_study, study_from
from distill.training.options import PRESETS, TrainConfig
from interp.tables.errors import StudyError


def test_defaults_are_a_whole_study() -> None:
    study = study_from({"name": "s"})
    assert study.folder == Path("runs/s")
    assert study_from(as_tables(study)) == study


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"trian": {}}, ["trian", "did you mean train?"]),
        ({"train": {"epoch": 1}}, ["train.epoch", "did you mean epochs?", "[train]"]),
        ({"alpha": 0.5}, ["alpha", "objective.alpha"]),
        ({"data": {"train": {"limits": 3}}}, ["data.train.limits", "limit"]),
        ({"train": {"epochs": "two"}}, ["float", "train.epochs"]),
        ({"train": {"epochs": 0}}, ["train.epochs is 0"]),
        ({"train": {"preset": "papre"}}, ["papre", "paper"]),
        ({"objective": {"divergence": "forwardkl"}}, ["forwardkl", "did you mean forward_kl?", "reverse_kl, jsd"]),
        ({"objective": {"alpha": 1.5}}, ["alpha is 1.5", "[0, 1]"]),
        ({"objective": {"temperature": 0}}, ["temperature is 0"]),
        ({"objective": {"name": "published"}}, ["reverse_kl"]),
        ({"objective": {"order": "lexicographic"}}, ["published"]),
        ({"teacher": {"signal": "logits"}}, ["logits", "teacher.signal"]),
        ({"teacher": {"signal": "text"}}, ["alpha", "text", "hidden"]),
        ({"teacher": {"signal": "topk"}, "objective": {"temperature": 5.9}}, ["5.9", "top-k", "truncate"]),
        ({"teacher": {"kind": "vllm", "signal": "topk"}, "objective": {"teacher": "live"}}, ["live", "transformers"]),
        ({"evaluation": {"samples": 4}}, ["samples", "temperature"]),
        ({"search": {"split": "test"}}, ["test", "heldout"]),
        ({"search": {"alpha": [0.5, 0.1]}}, ["search.alpha", "lowest"]),
        ({"conditions": []}, ["conditions"]),
        ({"seeds": [1, 1]}, ["seeds", "once"]),
        ({"name": "a/b"}, ["a/b"]),
        ({"data": {"test": {"first": -1}}}, ["first is -1"]),
        ({"student": {"targets": []}}, ["targets"]),
        ({"data": {"heldout": {"problems": "gsm8k", "split": "test"}}}, ["data.heldout.split", "only data.test"]),
        ({"data": {"train": {"problems": "mine/test.jsonl", "split": "test"}}}, ["data.train.split", "only data.test"]),
        ({"evaluation": {"stop": [""]}}, ["evaluation.stop"]),
        ({"teacher": {"signal": "hiden"}}, ["hiden", "did you mean hidden?", "known: text, topk, hidden, dense"]),
        ({"data": {"test": {"problems": "mine.jsonl", "split": "foo"}}}, ["foo", "known: train, test"]),
        ({"train": {"epochs": float("inf")}}, ["train.epochs is inf"]),
        ({"train": {"warmup_steps": float("nan")}}, ["train.warmup_steps is nan"]),
        ({"train": {"max_grad_norm": -1}}, ["train.max_grad_norm is -1"]),
        ({"train": {"preset": ["paper"]}}, ["['paper']", "known: paper"]),
        ({"seeds": [1 << 32]}, ["seeds: 4294967296", "0 to 4294967295"]),
        ({"evaluation": {"seed": -1}}, ["evaluation.seed: -1"]),
        ({"student": {"lora_alpha": 0}}, ["lora_alpha is 0"]),
    ],
)
def test_what_is_wrong_is_named(content: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(StudyError) as raised:
        study_from({"name": "s", **content}, "s.toml")
    assert str(raised.value).startswith("s.toml: ")
    for word in words:
        assert word in str(raised.value)


def test_text_is_enough_where_the_teacher_teaches_by_text() -> None:
    assert study_from({"name": "s", "teacher": {"signal": "text"}, "objective": {"alpha": 1.0}}).objective.alpha == 1
    assert study_from({"name": "s", "teacher": {"signal": "text"}, "conditions": ["untouched", "finetune"], "baseline": "finetune"})


def test_preset_is_the_papers_and_keys_beside_it_win() -> None:
    paper = study_from({"name": "s", "train": {"preset": "paper"}}).train
    assert (paper.learning_rate, paper.optimizer, paper.optimizer_arguments, paper.epochs) == (5e-6, "sgd", "momentum=0.9", 2.0)
    assert study_from({"name": "s", "train": {"preset": "paper", "epochs": 1}}).train.epochs == 1
    assert set(PRESETS["paper"]) <= set(as_tables(TrainConfig()))


def test_settings_change_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("seeds = [0]\n[train]\nepochs = 3\n")
    study = read_study(file, ["train.epochs=1", "seeds=[4, 5]", "student.model=./some/folder", "data.train.limit=7"])
    assert (study.name, study.train.epochs, study.seeds, study.student.model) == ("mine", 1, (4, 5), "./some/folder")
    assert study.data.train.limit == 7


@pytest.mark.parametrize(
    ("setting", "words"), [("train.epochs", "KEY=VALUE"), ("seeds.a=1", "no section"), ("train.epoch=1", "did you mean")]
)
def test_bad_settings(tmp_path: Path, setting: str, words: str) -> None:
    (tmp_path / "s.toml").write_text("seeds = [0]\n")
    with pytest.raises(StudyError, match=words):
        read_study(tmp_path / "s.toml", [setting])


@pytest.mark.parametrize(("content", "words"), [(b"a = ", "no valid TOML"), (b"\xff\xfe", "no valid TOML"), (None, "cannot be read")])
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "s.toml").write_bytes(content)
    with pytest.raises(StudyError, match=words):
        read_study(tmp_path / "s.toml")


TREES = st.recursive(st.integers(0, 2), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8)


@given(st.dictionaries(st.sampled_from("abc"), TREES), st.dictionaries(st.sampled_from("abc"), TREES))
def test_differences_are_none_exactly_where_trees_are_equal(before: dict[str, Any], now: dict[str, Any]) -> None:
    assert (differences(before, now) == []) == (before == now or _no_values(before, now))


def _no_values(before: Any, now: Any) -> bool:
    """An absent table and an empty one differ, but by no key below them."""
    return all(not differences({"k": before.get(k)}, {"k": now.get(k)}) for k in {*before, *now})


def test_differences_name_the_key() -> None:
    before, now = as_tables(study_from({"name": "s"})), as_tables(study_from({"name": "s", "train": {"epochs": 5}}))
    assert differences(before, now) == ["train.epochs: was 2.0, is 5.0"]


def test_study_is_frozen() -> None:
    with pytest.raises(AttributeError):
        study_from({"name": "s"}).name = "t"  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(study_from({"name": "s"}), Study)
