"""GGUF files of tiny models, as llama.cpp's converter lays them out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ARCHITECTURES: dict[str, str] = {"mistral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3"}
"""llama.cpp's names of architectures that transformers calls otherwise."""

Change = Callable[[dict[str, Any], dict[str, Any]], None]
"""Changes tensors and metadata in place."""


def write_gguf(path: Path, model: Any, change: Change | None = None, split: int = 0) -> list[Path]:
    """Write a tiny model as a GGUF file with a byte-pair tokenizer, as llama.cpp's converter lays it out.

    `change` gets the tensors and the metadata, both as dicts without the architecture's prefix, and may change them; `split` writes as many
    parts and returns their paths.
    """
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
        writer.add_token_types([3, 3, 3] + [1] * (len(letters) + len(merges)))
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
