"""Loading onto a device."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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
