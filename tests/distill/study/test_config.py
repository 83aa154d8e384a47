from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill.settings import as_tables
from distill.study.config import Study, read_study, study_from
from distill.training.options import PRESETS, TrainConfig
from interp.tables.errors import StudyError


def test_defaults_are_a_complete_study() -> None:
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
        ({"seeds": [1, 1]}, ["seeds", "only once"]),
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
        ({"seeds": [1 << 32]}, ["seeds is 4294967296", "between 0 and 4294967295"]),
        ({"evaluation": {"seed": -1}}, ["evaluation.seed is -1"]),
        ({"student": {"lora_alpha": 0}}, ["lora_alpha is 0"]),
    ],
)
def test_wrong_settings_are_named(content: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(StudyError) as raised:
        study_from({"name": "s", **content}, "s.toml")
    assert str(raised.value).startswith("s.toml: ")
    for word in words:
        assert word in str(raised.value)


def test_text_signal_is_enough_without_a_divergence() -> None:
    assert study_from({"name": "s", "teacher": {"signal": "text"}, "objective": {"alpha": 1.0}}).objective.alpha == 1
    assert study_from({"name": "s", "teacher": {"signal": "text"}, "conditions": ["untouched", "finetune"], "baseline": "finetune"})


def test_keys_override_the_preset() -> None:
    paper = study_from({"name": "s", "train": {"preset": "paper"}}).train
    assert (paper.learning_rate, paper.optimizer, paper.optimizer_arguments, paper.epochs) == (5e-6, "sgd", "momentum=0.9", 2.0)
    assert study_from({"name": "s", "train": {"preset": "paper", "epochs": 1}}).train.epochs == 1
    assert set(PRESETS["paper"]) <= set(as_tables(TrainConfig()))


def test_command_line_settings_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("seeds = [0]\n[train]\nepochs = 3\n")
    study = read_study(file, ["train.epochs=1", "seeds=[4, 5]", "student.model=./some/folder", "data.train.limit=7"])
    assert (study.name, study.train.epochs, study.seeds, study.student.model) == ("mine", 1, (4, 5), "./some/folder")
    assert study.data.train.limit == 7


@pytest.mark.parametrize(
    ("setting", "words"), [("train.epochs", "KEY=VALUE"), ("seeds.a=1", "not a section"), ("train.epoch=1", "did you mean")]
)
def test_bad_command_line_settings_are_refused(tmp_path: Path, setting: str, words: str) -> None:
    (tmp_path / "s.toml").write_text("seeds = [0]\n")
    with pytest.raises(StudyError, match=words):
        read_study(tmp_path / "s.toml", [setting])


@pytest.mark.parametrize(("content", "words"), [(b"a = ", "not valid TOML"), (b"\xff\xfe", "not valid TOML"), (None, "cannot be read")])
def test_unreadable_files_are_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "s.toml").write_bytes(content)
    with pytest.raises(StudyError, match=words):
        read_study(tmp_path / "s.toml")


def test_study_is_frozen() -> None:
    with pytest.raises(AttributeError):
        study_from({"name": "s"}).name = "t"  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(study_from({"name": "s"}), Study)


def test_study_of_version_01_is_read() -> None:
    study = study_from({"name": "s", "objective": {"cut": "drop"}})
    assert study.objective.truncated == "drop"
    assert study_from({"name": "s", "objective": {"cut": "keep"}}) == study_from({"name": "s"})
    with pytest.raises(StudyError, match=r"objective\.cut"):
        study_from({"name": "s", "objective": {"cut": "keep", "truncated": "keep"}})
