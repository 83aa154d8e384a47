"""Bad input: one error line that names the fault, exit code 2, and nothing left on disk."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.analyses.heads.conftest import SEVERAL_BATCHES, change_json, error_of, nothing_at, run_of, same_tables, truncate

Heads = Callable[..., Any]
"""The fixture that runs the command: `(*arguments)` -> code, out, err."""
Save = Callable[..., Path]


@dataclass(frozen=True)
class Bench:
    """What bad inputs are made from."""

    folder: Path
    checkpoint: Path
    adapter: Path
    save_checkpoint: Save
    save_adapter: Save

    def copy(self, what: Path, name: str = "copy") -> Path:
        return Path(shutil.copytree(what, self.folder / name))

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


@pytest.fixture
def bench(tmp_path: Path, checkpoint: Path, adapter: Path, save_checkpoint: Save, save_adapter: Save) -> Bench:
    (tmp_path / "in").mkdir()
    return Bench(tmp_path / "in", checkpoint, adapter, save_checkpoint, save_adapter)


Case = tuple[list[Any], tuple[str, ...]]
"""Arguments, and words that the message must have."""


MakeCase = Callable[[Bench], Case]


def change_weights(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def write_gguf(path: Path, architecture: str) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_tensor("token_embd.weight", np.zeros((40, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def no_such_model(bench: Bench) -> Case:
    return ["--model", bench.folder / "nope"], ("no such model", "nope")


def no_such_gguf(bench: Bench) -> Case:
    return ["--model", "nope.gguf"], ("no such model", "nope.gguf")


def name_too_long_for_a_file(bench: Bench) -> Case:
    return ["--model", "x" * 300], ("no such model",)


def file_that_is_not_a_model(bench: Bench) -> Case:
    return ["--model", bench.file("weights.pt", "x")], ("weights.pt", "folder")


def folder_without_config(bench: Bench) -> Case:
    return ["--model", bench.folder], (str(bench.folder), "config.json", "adapter_config.json")


def config_that_is_not_json(bench: Bench) -> Case:
    (bench.copy(bench.checkpoint) / "config.json").write_text("{")
    return ["--model", bench.folder / "copy"], ("copy", "config.json")


def config_without_type(bench: Bench) -> Case:
    change_json(bench.copy(bench.checkpoint) / "config.json", model_type=None, architectures=None)
    return ["--model", bench.folder / "copy"], ("copy", "config.json")


def folder_without_weights(bench: Bench) -> Case:
    (bench.copy(bench.checkpoint) / "model.safetensors").unlink()
    return ["--model", bench.folder / "copy"], ("no weights", "model.safetensors")


def pickled_weights(bench: Bench) -> Case:
    (bench.copy(bench.checkpoint) / "model.safetensors").rename(bench.folder / "copy" / "pytorch_model.bin")
    return ["--model", bench.folder / "copy"], ("pickled", "pytorch_model.bin", "not read")


def shard_missing(bench: Bench) -> Case:
    model = bench.copy(bench.checkpoint)
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    )
    return ["--model", model], ("1 of 2", "model-2.safetensors")


def damaged_index_of_shards(bench: Bench) -> Case:
    model = bench.copy(bench.checkpoint)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text("{}")
    return ["--model", bench.folder / "copy"], ("model.safetensors.index.json", "weight_map")


def truncated_weights(bench: Bench) -> Case:
    truncate(bench.copy(bench.checkpoint) / "model.safetensors")
    return ["--model", bench.folder / "copy"], ("model.safetensors", "damaged or truncated")


def empty_weights(bench: Bench) -> Case:
    (bench.copy(bench.checkpoint) / "model.safetensors").write_bytes(b"")
    return ["--model", bench.folder / "copy"], ("model.safetensors", "damaged or truncated")


def missing_keys(bench: Bench) -> Case:
    weights = bench.copy(bench.checkpoint) / "model.safetensors"
    change_weights(weights, lambda w: {key: value for key, value in w.items() if "layers.1.self_attn.k_proj" not in key})
    return ["--model", bench.folder / "copy"], ("1 weights", "missing", "layers.1.self_attn.k_proj")


def keys_of_another_shape(bench: Bench) -> Case:
    change_json(bench.copy(bench.checkpoint) / "config.json", intermediate_size=40)
    return ["--model", bench.folder / "copy"], ("copy", "mlp.down_proj.weight ([32, 48] instead of [32, 40])")


def no_tokenizer(bench: Bench) -> Case:
    for path in bench.copy(bench.checkpoint).glob("tokenizer*"):
        path.unlink()
    return ["--model", bench.folder / "copy"], ("copy", "tokenizer")


def tokenizer_without_offsets(bench: Bench) -> Case:
    from transformers import ByT5Tokenizer

    model = bench.copy(bench.checkpoint)
    for path in [*model.glob("tokenizer*"), *model.glob("chat_template*")]:
        path.unlink()
    ByT5Tokenizer().save_pretrained(model)
    return ["--model", model], ("ByT5Tokenizer", "offsets")


def encoder_only(bench: Bench) -> Case:
    from transformers import BertConfig, BertForMaskedLM

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(bench.folder / "bert")
    return ["--model", bench.folder / "bert"], ("bert", "encoder-only")


def encoder_decoder(bench: Bench) -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(
        bench.folder / "t5"
    )
    return ["--model", bench.folder / "t5"], ("t5", "encoder-decoder")


def not_a_language_model(bench: Bench) -> Case:
    change_json(bench.copy(bench.checkpoint) / "config.json", model_type="vit", architectures=["ViTModel"])
    return ["--model", bench.folder / "copy"], ("vit", "not a causal language model")


def nan_in_attention(bench: Bench) -> Case:
    def spoil(weights: dict[str, Any]) -> dict[str, Any]:
        weights["model.layers.1.self_attn.q_proj.weight"][0, 0] = float("nan")
        return weights

    change_weights(bench.copy(bench.checkpoint) / "model.safetensors", spoil)
    return ["--model", bench.folder / "copy"], ("layer 1", "finite")


def text_longer_than_the_positions(bench: Bench) -> Case:
    short = bench.save_checkpoint(bench.folder / "short", max_position_embeddings=60)
    return ["--model", short], ("problem 2", "73 tokens", "60 positions")


def answer_longer_than_the_positions(bench: Bench) -> Case:
    return ["--text", "generated", "--max-new-tokens", "500"], ("500 of them new", "512 positions")


def adapter_whose_config_names_no_base(bench: Bench) -> Case:
    change_json(bench.copy(bench.adapter) / "adapter_config.json", base_model_name_or_path=None)
    return ["--model", bench.folder / "copy"], ("names no base", "--base")


def adapter_whose_base_is_gone(bench: Bench) -> Case:
    change_json(bench.copy(bench.adapter) / "adapter_config.json", base_model_name_or_path="/models/gone")
    return ["--model", bench.folder / "copy"], ("/models/gone", "--base")


def adapter_of_an_adapter(bench: Bench) -> Case:
    change_json(bench.copy(bench.adapter) / "adapter_config.json", base_model_name_or_path=str(bench.adapter))
    return ["--model", bench.folder / "copy"], ("adapter itself", "merge")


def adapter_of_another_base(bench: Bench) -> Case:
    other = bench.save_checkpoint(bench.folder / "other", hidden_size=48)
    return ["--model", bench.adapter, "--base", other], ("does not fit", str(other), "size mismatch")


def adapter_of_another_architecture(bench: Bench) -> Case:
    other = bench.save_checkpoint(bench.folder / "other", "gpt2")
    return ["--model", bench.adapter, "--base", other], ("does not fit", str(other))


def truncated_adapter(bench: Bench) -> Case:
    truncate(bench.copy(bench.adapter) / "adapter_model.safetensors")
    return ["--model", bench.folder / "copy"], ("adapter_model.safetensors", "damaged or truncated")


def pickled_adapter(bench: Bench) -> Case:
    (bench.copy(bench.adapter) / "adapter_model.safetensors").rename(bench.folder / "copy" / "adapter_model.bin")
    return ["--model", bench.folder / "copy"], ("pickled", "safetensors")


def untrained_adapter(bench: Bench) -> Case:
    return ["--model", bench.save_adapter(bench.folder / "zero", bench.checkpoint, scale=0.0)], ("changes nothing", "lora_B")


def adapter_with_missing_keys(bench: Bench) -> Case:
    weights = bench.copy(bench.adapter) / "adapter_model.safetensors"
    change_weights(weights, lambda w: {key: value for key, value in w.items() if "layers.1" not in key})
    return ["--model", bench.folder / "copy"], ("incomplete", "layers.1")


def adapter_without_weights(bench: Bench) -> Case:
    change_weights(bench.copy(bench.adapter) / "adapter_model.safetensors", lambda w: {})
    return ["--model", bench.folder / "copy"], ("no weights",)


def adapter_of_an_unknown_kind(bench: Bench) -> Case:
    change_json(bench.copy(bench.adapter) / "adapter_config.json", peft_type="NEXT_YEARS")
    return ["--model", bench.folder / "copy"], ("adapter_config.json",)


def adapter_with_a_broken_tokenizer(bench: Bench) -> Case:
    (bench.copy(bench.adapter) / "tokenizer_config.json").write_text("{")
    return ["--model", bench.folder / "copy"], ("copy", "tokenizer")


def prompt_tuning(bench: Bench) -> Case:
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": 4,
        "base_model_name_or_path": str(bench.checkpoint),
    }
    (bench.copy(bench.adapter) / "adapter_config.json").write_text(json.dumps(config))
    return ["--model", bench.folder / "copy"], ("PROMPT_TUNING", "virtual tokens")


def base_without_an_adapter(bench: Bench) -> Case:
    return ["--base", bench.checkpoint], ("--base", "no adapter")


def gguf_of_bad_magic(bench: Bench) -> Case:
    return ["--model", bench.file("bad.gguf", b"GGML" + bytes(100))], ("bad.gguf", "not a GGUF file")


def gguf_with_nothing_but_its_magic(bench: Bench) -> Case:
    return ["--model", bench.file("cut.gguf", b"GGUF")], ("cut.gguf", "cannot read")


def gguf_of_unknown_architecture(bench: Bench) -> Case:
    write_gguf(bench.folder / "odd.gguf", "nosuchmodel")
    return ["--model", bench.folder / "odd.gguf"], ("odd.gguf", "cannot read")


def gguf_truncated(bench: Bench) -> Case:
    truncate(write_gguf(bench.folder / "torn.gguf", "llama"))
    return ["--model", bench.folder / "torn.gguf"], ("torn.gguf", "cannot read")


def broken_line(bench: Bench) -> Case:
    path = bench.file("broken.jsonl", '{"question": "q 1", "answer": "#### 1"}\n{"question": \n')
    return ["--problems", path], ("broken.jsonl, line 2", "not JSON")


def missing_field(bench: Bench) -> Case:
    return ["--problems", bench.file("field.jsonl", '{"question": "q 1", "reply": "1"}')], ("field.jsonl, line 1", "'answer'", "'reply'")


def empty_file(bench: Bench) -> Case:
    return ["--problems", bench.file("empty.jsonl", "")], ("empty.jsonl is empty",)


def no_such_problems(bench: Bench) -> Case:
    return ["--problems", bench.folder / "none.jsonl"], ("none.jsonl", "shipped, gsm8k")


def unknown_measure(bench: Bench) -> Case:
    return ["--measures", "entropy_bits"], ("entropy_bits", "entropy_nats", "numeric_enrichment", "sparsity_010_published")


def backend_that_cannot_give_a_measure(bench: Bench) -> Case:
    return ["--backend", "flash", "--measures", "sparsity_010"], ("flash", "sparsity_010")


def unknown_device(bench: Bench) -> Case:
    return ["--device", "gpu"], ("'gpu'", "cpu, cuda")


def device_that_does_not_parse(bench: Bench) -> Case:
    return ["--device", "cpu:x"], ("'cpu:x'", "cpu, cuda")


CASES = (
    no_such_model,
    no_such_gguf,
    name_too_long_for_a_file,
    file_that_is_not_a_model,
    folder_without_config,
    config_that_is_not_json,
    config_without_type,
    folder_without_weights,
    pickled_weights,
    shard_missing,
    damaged_index_of_shards,
    truncated_weights,
    empty_weights,
    missing_keys,
    keys_of_another_shape,
    no_tokenizer,
    tokenizer_without_offsets,
    encoder_only,
    encoder_decoder,
    not_a_language_model,
    nan_in_attention,
    text_longer_than_the_positions,
    answer_longer_than_the_positions,
    adapter_whose_config_names_no_base,
    adapter_whose_base_is_gone,
    adapter_of_an_adapter,
    adapter_of_another_base,
    adapter_of_another_architecture,
    truncated_adapter,
    pickled_adapter,
    untrained_adapter,
    adapter_with_missing_keys,
    adapter_without_weights,
    adapter_of_an_unknown_kind,
    adapter_with_a_broken_tokenizer,
    prompt_tuning,
    base_without_an_adapter,
    gguf_of_bad_magic,
    gguf_with_nothing_but_its_magic,
    gguf_of_unknown_architecture,
    gguf_truncated,
    broken_line,
    missing_field,
    empty_file,
    no_such_problems,
    unknown_measure,
    backend_that_cannot_give_a_measure,
    unknown_device,
    device_that_does_not_parse,
)


@pytest.fixture
def own_assets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Convert GGUF files into a cache of this test."""
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


@pytest.mark.usefixtures("own_assets_cache")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_bad_input_is_refused_in_two_lines_and_leaves_nothing(heads: Heads, bench: Bench, tmp_path: Path, case: MakeCase) -> None:
    arguments, words = case(bench)
    out = tmp_path / "out" / "run"
    message = error_of(heads("--out", out, *arguments))
    for word in words:
        assert word in message
    assert not out.parent.exists() or nothing_at(out)


def test_a_hub_id_without_network_suggests_a_local_folder(heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    message = error_of(heads("--out", tmp_path / "run", "--model", "nobody/nothing"))
    assert "'nobody/nothing'" in message
    assert "without network" in message
    assert "--model path/to/folder" in message
    assert nothing_at(tmp_path / "run")


def test_a_missing_cuda_device_is_refused(heads: Heads, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    for device in ("cuda", "cuda:0", "balanced"):
        message = error_of(heads("--out", tmp_path / "run", "--device", device))
        assert repr(device) in message
        assert "no CUDA device" in message
    assert nothing_at(tmp_path / "run")


REMOTE_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({mark!r}).write_text("ran")
class StrangerConfig(LlamaConfig):
    model_type = "stranger"
class StrangerModel(LlamaForCausalLM):
    config_class = StrangerConfig
class StrangerTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def remote(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkpoint with code of its own, which writes a file called `mark` when it runs."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    model = Path(shutil.copytree(checkpoint, tmp_path / "stranger"))
    (model / "strange.py").write_text(REMOTE_CODE.format(mark=str(tmp_path / "mark")))
    classes = {"AutoConfig": "strange.StrangerConfig", "AutoModelForCausalLM": "strange.StrangerModel"}
    change_json(model / "config.json", model_type="stranger", architectures=["StrangerModel"], auto_map=classes)
    tokenizer = {"AutoTokenizer": [None, "strange.StrangerTokenizer"]}
    change_json(model / "tokenizer_config.json", tokenizer_class="StrangerTokenizer", auto_map=tokenizer)
    return model


def test_remote_code_is_not_run_by_default(heads: Heads, remote: Path, tmp_path: Path) -> None:
    assert "--trust-remote-code" in error_of(heads("--out", tmp_path / "run", "--model", remote))
    # transformers knows this architecture and uses its own code; the tokenizer still needs remote code
    change_json(remote / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    assert "--trust-remote-code" in error_of(heads("--out", tmp_path / "run", "--model", remote))
    assert nothing_at(tmp_path / "run")
    change_json(remote / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert heads("--out", tmp_path / "run", "--model", remote).code == 0
    assert run_of(tmp_path / "run")["model"]["architecture"] == "LlamaForCausalLM"
    assert not (tmp_path / "mark").exists()


def test_remote_code_runs_if_it_is_trusted(heads: Heads, remote: Path, tmp_path: Path, good: Path) -> None:
    ran = heads("--out", tmp_path / "run", "--model", remote, "--name", "tiny", "--trust-remote-code", *SEVERAL_BATCHES)
    assert ran.code == 0
    assert (tmp_path / "mark").read_text() == "ran"
    assert run_of(tmp_path / "run")["model"]["architecture"] == "StrangerModel"
    same_tables(tmp_path / "run", good)
