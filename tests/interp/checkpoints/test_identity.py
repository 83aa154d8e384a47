"""What identifies a checkpoint, wherever its files are."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.checkpoints.opening import identify, open_checkpoint, open_tokenizer
from interp.tables.errors import CheckpointError


def test_sharded_weights_are_hashed_together(
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    save_tokenizer: Callable[..., Any],
    sha256: Callable[..., Any],
    logits_of: Callable[..., Any],
) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    save_tokenizer(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    checkpoint = open_checkpoint(tmp_path, device="cpu")
    assert torch.equal(logits_of(checkpoint.model), logits_of(model))
    lines = "".join(f"{shard.name} {sha256(shard)}\n" for shard in shards)
    assert checkpoint.identity["weights_sha256"] == hashlib.sha256(lines.encode()).hexdigest()


def test_replaced_weights_have_another_hash(
    tmp_path: Path, folder: Path, tiny_model: Callable[..., Any], sha256: Callable[..., Any]
) -> None:
    model = Path(shutil.copytree(folder, tmp_path / "copy"))
    before = open_checkpoint(model, device="cpu").identity["weights_sha256"]
    tiny_model("llama", seed=1).save_pretrained(model)
    after = open_checkpoint(model, device="cpu").identity["weights_sha256"]
    assert before != after == sha256(model / "model.safetensors")


@pytest.mark.usefixtures("no_weights")
def test_a_folder_is_identified_by_content_without_loading(
    folder: Path, tmp_path: Path, change_json: Callable[..., Any], sha256: Callable[..., Any]
) -> None:
    weights = sha256(folder / "model.safetensors")
    about = identify(folder)
    assert {name: about[name] for name in ("name", "weights_sha256")} == {"name": "tiny", "weights_sha256": weights}
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "tiny"))
    assert identify(copy) == about  # the identity does not contain the path
    change_json(copy / "config.json", rope_theta=123.0)  # other numbers of the same weights
    assert identify(copy) != about
    with (copy / "model.safetensors").open("ab") as file:
        file.write(b"!")
    assert identify(copy)["weights_sha256"] == sha256(copy / "model.safetensors") != weights


@pytest.mark.usefixtures("no_weights")
def test_an_adapter_is_identified_with_its_base(
    adapter: Path, folder: Path, tmp_path: Path, change_json: Callable[..., Any], sha256: Callable[..., Any]
) -> None:
    base = identify(folder)
    about = {"name": "lora", "weights_sha256": sha256(adapter / "adapter_model.safetensors"), "base": base}
    assert identify(adapter) == about
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    shutil.copytree(folder, tmp_path / "tiny")
    change_json(lora / "adapter_config.json", base_model_name_or_path="../tiny")
    assert identify(lora) == about
    change_json(lora / "adapter_config.json", base_model_name_or_path="../gone")
    for ask in (identify, open_tokenizer):
        with pytest.raises(CheckpointError, match="its base cannot be opened"):
            ask(lora)


@pytest.mark.usefixtures("no_weights")
def test_a_hub_model_is_identified_by_revision_without_its_weights(
    folder: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change_json: Callable[..., Any]
) -> None:
    asked = []

    def download(hub_id: str, **options: Any) -> str:
        asked.append((hub_id, options["revision"]))
        assert "*.safetensors" not in options["allow_patterns"]  # the weights of a teacher may fill a disk
        return str(tmp_path / "0123abcd")

    shutil.copytree(folder, tmp_path / "0123abcd")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert identify("someone/their-model", revision="v2") == {"name": "their-model", "revision": "0123abcd"}
    assert open_tokenizer("someone/their-model", revision="v2")("w3 w5")["input_ids"] == [7, 9]
    assert asked == [("someone/their-model", "v2")] * 2
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    change_json(lora / "adapter_config.json", base_model_name_or_path="someone/base", revision="v3")
    assert identify(lora)["base"] == {"name": "base", "revision": "0123abcd"}
    assert asked[2:] == [("someone/base", "v3")]


def test_a_gguf_file_is_identified_without_conversion(
    tmp_path: Path,
    assets: Path,
    tiny_model: Callable[..., Any],
    write_gguf: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    sha256: Callable[..., Any],
) -> None:
    path = tmp_path / "tiny-f32.gguf"
    write_gguf(path, tiny_model("llama"))
    with monkeypatch.context() as patch:
        patch.setattr("interp.checkpoints.loading.converted_folder", lambda _: pytest.fail("the weights were converted"))
        assert identify(path) == {"name": "tiny-f32", "weights_sha256": sha256(path)}
    tokenizer = open_tokenizer(path)
    assert tokenizer.convert_ids_to_tokens(tokenizer("wd ok", add_special_tokens=False)["input_ids"]) == ["wd", "\u0120", "o", "k"]
    (tmp_path / "other.gguf").write_bytes(b"text")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        identify(tmp_path / "other.gguf")


@pytest.mark.parametrize("ask", [identify, open_tokenizer])
def test_a_missing_model_cannot_be_identified(ask: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    (tmp_path / "empty").mkdir()
    for source, words in (
        ("./nowhere", "no such model"),
        ("empty", "neither config.json"),
        ("someone/model", "could not be fetched from the hub .*no route to host"),
    ):
        with pytest.raises(CheckpointError, match=words):
            ask(source)
