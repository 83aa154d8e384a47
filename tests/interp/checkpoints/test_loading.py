"""Loading onto a device, and converting GGUF files."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.checkpoints import loading
from interp.checkpoints.opening import open_checkpoint
from interp.tables.errors import CheckpointError


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize(("asked", "got"), [("auto", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")])
def test_auto_dtype_is_float32_on_a_cpu(
    tmp_path: Path, tiny_model: Callable[..., Any], stored: str, asked: str, got: str, save_tokenizer: Callable[..., Any]
) -> None:
    tiny_model("llama", dtype=stored).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    checkpoint = open_checkpoint(tmp_path, device="cpu", dtype=asked)
    assert checkpoint.model.dtype == getattr(torch, got)
    assert checkpoint.identity["dtype"] == got


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_families_are_loaded(
    tmp_path: Path, tiny_model: Callable[..., Any], family: str, save_tokenizer: Callable[..., Any], logits_of: Callable[..., Any]
) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    checkpoint = open_checkpoint(tmp_path, device="cpu")
    torch.testing.assert_close(logits_of(checkpoint.model), logits_of(model), rtol=1e-5, atol=1e-5)
    assert (checkpoint.identity["n_layers"], checkpoint.identity["n_heads"]) == (2, 4)


def test_the_logging_level_of_transformers_is_restored(folder: Path, tmp_path: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    open_checkpoint(folder, device="cpu")
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path, device="cpu")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "cpu:x", "balanced:1", "cuda:x", "cuda:99", ""])
def test_an_unavailable_device_is_refused(folder: Path, device: str) -> None:
    with pytest.raises(CheckpointError, match=repr(device)):
        open_checkpoint(folder, device=device)


def test_a_classifier_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "classifier"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForSequenceClassification"]}))
    with pytest.raises(CheckpointError, match="LlamaForSequenceClassification does not predict the next token"):
        open_checkpoint(folder, device="cpu")


def test_a_gguf_file_gives_the_model_that_was_written(
    tmp_path: Path,
    assets: Path,
    tiny_model: Callable[..., Any],
    write_gguf: Callable[..., None],
    sha256: Callable[..., Any],
    logits_of: Callable[..., Any],
    folders_below: Callable[..., Any],
) -> None:
    model, path = tiny_model("llama"), tmp_path / "tiny-f32.gguf"
    write_gguf(path, model)
    checkpoint = open_checkpoint(path, device="cpu")
    torch.testing.assert_close(logits_of(checkpoint.model), logits_of(model), rtol=1e-4, atol=1e-4)
    identity = checkpoint.identity
    assert (identity["kind"], identity["source"], identity["name"]) == ("gguf", str(path), "tiny-f32")
    assert identity["weights_sha256"] == sha256(path)
    assert identity["dtype"] == "float32"
    assert checkpoint.tokenizer.is_fast
    ids = checkpoint.tokenizer("wd ok", add_special_tokens=False)["input_ids"]
    assert checkpoint.tokenizer.convert_ids_to_tokens(ids) == ["wd", "\u0120", "o", "k"]
    assert folders_below(assets) == [sha256(path)]


def fake_conversion(monkeypatch: pytest.MonkeyPatch, convert: Callable[[Path, Path], None] | None = None) -> list[Path]:
    """Replace the conversion with a cheap one; return the list of where it wrote."""
    targets: list[Path] = []

    def write(gguf: Path, target: Path) -> None:
        targets.append(target)
        target.mkdir()
        (target / "config.json").write_bytes(gguf.read_bytes())
        if convert is not None:
            convert(gguf, target)

    monkeypatch.setattr(loading, "_convert", write)
    return targets


def test_a_gguf_file_is_converted_once_per_content(
    tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch, folders_below: Callable[..., Any]
) -> None:
    targets, path = fake_conversion(monkeypatch), tmp_path / "a.gguf"
    path.write_bytes(b"GGUF one")
    first = loading.converted_folder(path)
    assert loading.converted_folder(path) == first
    (tmp_path / "same.gguf").write_bytes(b"GGUF one")
    assert loading.converted_folder(tmp_path / "same.gguf") == first
    assert len(targets) == 1
    path.write_bytes(b"GGUF other")
    second = loading.converted_folder(path)
    assert ((first / "config.json").read_bytes(), (second / "config.json").read_bytes()) == (b"GGUF one", b"GGUF other")
    assert folders_below(assets) == sorted([first.name, second.name])


def test_simultaneous_conversions_do_not_collide(
    tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch, sha256: Callable[..., Any], folders_below: Callable[..., Any]
) -> None:
    together = threading.Barrier(4)
    targets, path = fake_conversion(monkeypatch, lambda *_: (together.wait(30), None)[1]), tmp_path / "a.gguf"
    path.write_bytes(b"GGUF")
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(loading.converted_folder, [path] * 4))
    assert len(set(targets)) == 4
    assert len(found) == 1
    assert (found.pop() / "config.json").read_bytes() == b"GGUF"
    assert folders_below(assets) == [sha256(path)]


@pytest.mark.parametrize("error", [CheckpointError("cannot be read"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path,
    assets: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    sha256: Callable[..., Any],
    folders_below: Callable[..., Any],
) -> None:
    def fail(*_: Path) -> None:
        raise error

    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF")
    with monkeypatch.context() as patch:
        fake_conversion(patch, fail)
        with pytest.raises(CheckpointError if isinstance(error, Exception) else KeyboardInterrupt):
            loading.converted_folder(path)
    assert folders_below(assets) == []
    fake_conversion(monkeypatch)
    assert loading.converted_folder(path).name == sha256(path)


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("dear")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "file" / "assets"))
    fake_conversion(monkeypatch)
    with pytest.raises(CheckpointError, match="HF_ASSETS_CACHE"):
        open_checkpoint(tmp_path / "a.gguf", device="cpu")
