"""LoRA students: how they are created, and their folders."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.students.card import read_card, read_student
from distill.students.lora import new_student, save_student
from distill.students.options import StudentConfig
from interp.checkpoints.opening import open_checkpoint
from interp.tables.errors import CheckpointError, StudyError

ABOUT: dict[str, Any] = {
    "condition": "teacher",
    "seed": 3,
    "strategy": {"text": "Be clear."},
    "settings": {"student": {"model": "tiny"}, "objective": {"name": "aligned"}},
    "parents": {"teacher": {"name": "wide"}},
    "formula": "CE",
    "counts": {"records": 5, "kept": 4},
    "versions": {"primed-heads": "0"},
    "training": {"steps": 2, "last_loss": 1.5},
}


def make(checkpoint: Path, seed: int = 0, **settings: Any) -> Any:
    return new_student(StudentConfig(model=str(checkpoint), device="cpu", **settings), seed)[0]


def change(model: Any) -> None:
    """Change the adapter as training would: an untrained one changes nothing, and is refused on opening."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)


def test_a_saved_student_opens_as_any_adapter(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)  # a path relative to this folder names the base
    model = make(Path(checkpoint.name), rank=3)
    change(model)
    save_student(model, tmp_path / "s", ABOUT)
    monkeypatch.chdir(tmp_path)
    opened = open_checkpoint("s", device="cpu")
    assert opened.identity["adapter"]["rank"] == 3
    digest = hashlib.sha256((tmp_path / "s" / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert read_card(tmp_path / "s") == {"format": 1, **ABOUT, "adapter_sha256": digest}
    assert read_student(tmp_path / "s") == read_card(tmp_path / "s")
    readme = (tmp_path / "s" / "README.md").read_text()
    assert "Be clear." in readme
    assert "4 of 5 records" in readme
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


def test_only_the_adapter_is_trained_and_the_seed_determines_it(checkpoint: Path) -> None:
    one, again, other = make(checkpoint), make(checkpoint), make(checkpoint, seed=1)
    names = [n for n, p in one.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in n for n in names)
    first, same, differ = (torch.cat([p.flatten() for n, p in m.named_parameters() if "lora_A" in n]) for m in (one, again, other))
    assert torch.equal(first, same)
    assert not torch.equal(first, differ)


def test_the_adapter_is_float32_on_a_bfloat16_base(checkpoint: Path) -> None:
    model = make(checkpoint, dtype="bfloat16")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (("q_proj", "query"), ["no query", "q_proj", "down_proj"]),
        (("nothing",), ["no nothing"]),
        (("q_proj", "lm_head"), ["lm_head", "output head"]),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused(checkpoint: Path, targets: tuple[str, ...], words: list[str]) -> None:
    with pytest.raises(StudyError) as raised:
        make(checkpoint, targets=targets)
    for word in words:
        assert word in str(raised.value)
    assert "lm_head" not in str(raised.value).split("linear layers are")[-1] or targets[-1] == "lm_head"


def test_an_adapter_is_refused_as_base(adapter: Path) -> None:
    with pytest.raises((StudyError, CheckpointError), match="adapter"):
        make(adapter)


def test_a_full_disk_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(checkpoint)
    write = Path.write_text

    def full(self: Path, *arguments: Any, **keywords: Any) -> int:
        if self.name == "README.md":
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, *arguments, **keywords)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        save_student(model, tmp_path / "s", ABOUT)
    assert list(tmp_path.iterdir()) == []


def test_saved_weights_are_those_of_the_model(checkpoint: Path, tmp_path: Path) -> None:
    model = make(checkpoint)
    change(model)
    save_student(model, tmp_path / "s", ABOUT)
    saved = load_file(tmp_path / "s" / "adapter_model.safetensors")
    own = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
    assert set(saved) == set(own)
    assert all(torch.equal(saved[n], own[n]) for n in own)
    assert json.loads((tmp_path / "s" / "adapter_config.json").read_text())["r"] == 8


def test_a_student_can_be_measured_by_analyses_heads(checkpoint: Path, tmp_path: Path) -> None:
    from analyses.heads.__main__ import main

    model = make(checkpoint)
    change(model)
    save_student(model, tmp_path / "s", ABOUT)
    options = ["--limit", "2", "--no-figures", "--device", "cpu", "--measures", "entropy_nats"]
    code = main(["--model", str(tmp_path / "s"), "--out", str(tmp_path / "run"), *options])
    assert code == 0
    assert (tmp_path / "run" / "heads.parquet").is_file()


def test_an_existing_student_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    model = make(checkpoint)
    change(model)
    save_student(model, tmp_path / "s", ABOUT)
    before = {file.name: file.read_bytes() for file in (tmp_path / "s").iterdir()}
    with pytest.raises(FileExistsError):
        save_student(model, tmp_path / "s", {**ABOUT, "seed": 4})
    assert {file.name: file.read_bytes() for file in (tmp_path / "s").iterdir()} == before


def test_drafts_of_killed_processes_are_removed(checkpoint: Path, tmp_path: Path) -> None:
    for name in (".s.draft", ".s.draft-1-ab"):  # of version 0.1, and of today
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"half")
    save_student(make(checkpoint), tmp_path / "s", ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
