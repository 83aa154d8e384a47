"""Opening one adapter on its base. Several on one model: tests/interp/recording/test_divergence.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.checkpoints.opening import open_checkpoint
from interp.tables.errors import CheckpointError


def test_an_adapter_changes_its_base_and_can_be_disabled(
    adapter: Path, folder: Path, sha256: Callable[..., Any], logits_of: Callable[..., Any]
) -> None:
    base, adapted = open_checkpoint(folder, device="cpu"), open_checkpoint(adapter, device="cpu")
    assert not any(parameter.requires_grad for parameter in adapted.model.parameters())
    assert not torch.allclose(logits_of(base.model), logits_of(adapted.model), atol=1e-3)
    with adapted.model.disable_adapter():
        torch.testing.assert_close(logits_of(adapted.model), logits_of(base.model))
    assert adapted.position_limit == 256
    about = {"kind": "adapter", "source": str(adapter), "revision": None, "peft_type": "LORA", "rank": 2}
    weights = {"weights_sha256": sha256(adapter / "adapter_model.safetensors")}
    expected = {**base.identity, "name": "lora", "adapter": {**about, **weights}}
    got = {**adapted.identity, "n_parameters": expected["n_parameters"], "architecture": expected["architecture"]}
    assert got == expected


def test_an_adapter_from_the_hub_records_its_source_and_revision(adapter: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda hub_id, **_: str(adapter))
    identity = open_checkpoint("someone/lora", device="cpu").identity
    assert identity["adapter"]["source"] == "someone/lora"
    assert identity["adapter"]["revision"] == adapter.name
    assert (identity["kind"], identity["source"], identity["revision"]) == ("folder", str(folder), None)


def test_base_overrides_the_base_of_the_config(
    adapter: Path, tmp_path: Path, tiny_model: Callable[..., Any], save_tokenizer: Callable[..., Any], logits_of: Callable[..., Any]
) -> None:
    tiny_model("llama", seed=5).save_pretrained(tmp_path / "other")
    save_tokenizer(tmp_path / "other")
    one, other = open_checkpoint(adapter, device="cpu"), open_checkpoint(adapter, base=str(tmp_path / "other"), device="cpu")
    assert other.identity["source"] == str(tmp_path / "other")
    assert other.identity["weights_sha256"] != one.identity["weights_sha256"]
    assert other.identity["adapter"] == one.identity["adapter"]
    assert not torch.allclose(logits_of(one.model), logits_of(other.model), atol=1e-3)


@pytest.mark.parametrize(("named", "place"), [("../base", "base"), ("inside", "lora/inside")])
def test_a_relative_base_is_found_from_the_adapter_folder(
    adapter: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, place: str, change_json: Callable[..., Any]
) -> None:
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    shutil.copytree(folder, tmp_path / place)
    change_json(lora / "adapter_config.json", base_model_name_or_path=named)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # wherever the command runs
    checkpoint = open_checkpoint("../lora", device="cpu")
    assert Path(checkpoint.identity["source"]).resolve() == tmp_path / place


def test_the_tokenizer_of_an_adapter_is_preferred(adapter: Path, tmp_path: Path, save_tokenizer: Callable[..., Any]) -> None:
    assert open_checkpoint(adapter, device="cpu").tokenizer.chat_template is None
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    save_tokenizer(lora, chat_template="{{ messages[0]['content'] }}")
    assert open_checkpoint(lora, device="cpu").tokenizer.chat_template == "{{ messages[0]['content'] }}"


def test_an_adapter_that_changes_nothing_is_refused(adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    path = lora / "adapter_model.safetensors"
    weights = load_file(path)
    for scale, message in ((1e-3, None), (1e-30, "logits with and without it are equal"), (0.0, "lora_B are zero")):
        scaled = {key: value * scale if "lora_B" in key else value for key, value in weights.items()}
        save_file(scaled, path, metadata={"format": "pt"})
        if message is None:
            open_checkpoint(lora, device="cpu")
        else:
            with pytest.raises(CheckpointError, match=message):
                open_checkpoint(lora, device="cpu")
