"""A tiny saved model, an adapter of it, and small tools that the tests of checkpoints share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.checkpoints import opening

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(44))]
"""As many as the tiny models' vocabulary."""


@pytest.fixture(scope="session")
def save_tokenizer() -> Callable[..., None]:
    """Save a tokenizer of the tiny models' vocabulary in a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def save(folder: Path, **settings: Any) -> None:
        fast = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
        fast.pre_tokenizer = pre_tokenizers.Whitespace()
        special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        PreTrainedTokenizerFast(tokenizer_object=fast, **special, **settings).save_pretrained(folder)

    return save


@pytest.fixture(scope="session")
def change_json() -> Callable[..., None]:
    """Change keys of a JSON file."""

    def change(path: Path, **changes: Any) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")

    return change


@pytest.fixture(scope="session")
def sha256() -> Callable[[Path], str]:
    return lambda path: hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def logits_of() -> Callable[[Any], torch.Tensor]:
    """Return a model's logits of a fixed text."""

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=torch.arange(4, 24)[None], use_cache=False).logits

    return logits


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Any], save_tokenizer: Callable[..., None]) -> Path:
    """A tiny Llama, saved. Read only."""
    target = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("llama").save_pretrained(target)
    save_tokenizer(target)
    return target


@pytest.fixture(scope="session")
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


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for converted weights that only this test uses."""
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


@pytest.fixture(scope="session")
def folders_below() -> Callable[[Path], list[str]]:
    """Return the names of what the cache holds."""
    return lambda assets: sorted(path.name for path in assets.glob("primed-heads/gguf/*/*"))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights are loaded."""
    monkeypatch.setattr(opening, "load_model", lambda *_, **__: pytest.fail("the weights were loaded"))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("the weights were loaded"))


ARCHITECTURES: dict[str, str] = {"mistral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3"}
"""llama.cpp's names of architectures that transformers calls otherwise."""


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., list[Path]]:
    """`(path, model, ...)` writes a tiny model as a GGUF file with a byte-pair tokenizer, as llama.cpp's converter lays it out.

    `change` gets the tensors and the metadata, both as dicts without the architecture's prefix, and may change them; `split` writes as many
    parts and returns their paths.
    """

    def write(path: Path, model: Any, change: Callable[[dict[str, Any], dict[str, Any]], None] | None = None, split: int = 0) -> list[Path]:
        metadata, tensors = gguf_metadata(model.config), gguf_tensors(model)
        if change is not None:
            change(tensors, metadata)
        family = str(model.config.model_type)
        architecture = ARCHITECTURES.get(family, family)
        if not split:
            write_gguf_part(path, architecture, metadata, tensors)
            return [path]
        parts = [path.with_name(f"{path.stem}-{number + 1:05d}-of-{split:05d}.gguf") for number in range(split)]
        for number, part in enumerate(parts):
            own = {name: tensor for at, (name, tensor) in enumerate(tensors.items()) if at * split // len(tensors) == number}
            about = {"split.no": number, "split.count": split, "split.tensors.count": len(tensors)}
            write_gguf_part(part, architecture, metadata if number == 0 else {}, own, about, with_tokenizer=number == 0)
        return parts

    return write


def write_gguf_part(
    path: Path,
    architecture: str,
    metadata: dict[str, Any],
    tensors: dict[str, Any],
    about: dict[str, int] | None = None,
    *,
    with_tokenizer: bool = True,
) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    for key, value in metadata.items():
        adders[type(value)](key if key.startswith("general.") else f"{architecture}.{key}", value)
    for key, value in (about or {}).items():
        (writer.add_int32 if key == "split.tensors.count" else writer.add_uint16)(key, value)
    if with_tokenizer:
        letters, merges = [*"\u0120abcdefghijklmnopqrstuvwxyz0123456789"], [f"w {letter}" for letter in "abcdefgh"]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["<pad>", "<s>", "</s>", *letters, *(merge.replace(" ", "") for merge in merges)])
        writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
        writer.add_token_merges(merges)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_metadata(config: Any) -> dict[str, Any]:
    """Return what llama.cpp's converter writes of a config."""
    rms = hasattr(config, "rms_norm_eps")
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": 4 * config.hidden_size if config.model_type == "gpt2" else config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
    }
    found |= (
        {"attention.layer_norm_rms_epsilon": config.rms_norm_eps} if rms else {"attention.layer_norm_epsilon": config.layer_norm_epsilon}
    )
    if config.model_type == "gpt2":
        return found
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    found |= {"attention.head_count_kv": config.num_key_value_heads, "rope.freq_base": float(rope["rope_theta"])}
    if head_size != config.hidden_size // config.num_attention_heads:
        found |= {"attention.key_length": head_size, "attention.value_length": head_size}
    if config.model_type in ("llama", "mistral"):
        found |= {"vocab_size": config.vocab_size, "rope.dimension_count": head_size}
    if config.model_type == "phi3":
        found |= {"rope.dimension_count": int(rope.get("partial_rotary_factor", 1.0) * head_size)}
        found |= {"rope.scaling.original_context_length": config.max_position_embeddings}
    if config.model_type in ("gemma2", "gemma3_text", "phi3"):
        found["attention.sliding_window"] = config.sliding_window or 0
    if config.model_type == "gemma2":
        found |= {f"{name}_logit_softcapping": float(getattr(config, f"{name}_logit_softcapping")) for name in ("attn", "final")}
    if "moe" in config.model_type:
        found |= {"expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok}
        found["expert_feed_forward_length"] = config.moe_intermediate_size
        if config.model_type == "qwen2_moe":
            found["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    if rope["rope_type"] in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    return found


def gguf_tensors(model: Any) -> dict[str, Any]:
    """Return a model's weights as llama.cpp's converter stores them."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    config = model.config
    family = str(config.model_type)
    wanted = ARCHITECTURES.get(family, family)
    names = get_tensor_name_map(next(key for key, name in MODEL_ARCH_NAMES.items() if name == wanted), config.num_hidden_layers)
    found = {}
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, ending = key.rsplit(".", 1) if key.endswith((".weight", ".bias")) else (key, "weight")
        array = weight.float().numpy()
        if wanted == "llama" and (".q_proj" in key or ".k_proj" in key):  # llama.cpp pairs the rotary dimensions the other way
            heads = config.num_attention_heads if ".q_proj" in key else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        if wanted.startswith("gemma") and "norm" in key:
            array = array + 1
        if family == "gpt2" and stem.endswith(("c_attn", "c_proj", "c_fc")) and ending == "weight":
            array = array.T
        if stem.endswith("experts.gate_up_proj"):
            layer, half = stem.split(".")[2], array.shape[1] // 2
            found |= {f"blk.{layer}.ffn_gate_exps.weight": array[:, :half], f"blk.{layer}.ffn_up_exps.weight": array[:, half:]}
            continue
        if stem.endswith("shared_expert_gate"):
            array = array[0]
        name = names.get_name(stem)
        assert name is not None, key
        found[f"{name}.{ending}"] = array
    return found
