"""Read a GGUF file exactly, or refuse it by name: every tensor is used, every weight is given, every metadata key is applied or harmless.

transformers reads the tensors, but it drops metadata and tensors that it does not know and leaves missing weights at random values.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.checkpoints.found import first_line
from interp.tables.errors import CheckpointError

_LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Parameters that all published Llama 3.1, 3.2 and 3.3 models share."""

_LLAMA3_FACTORS = (8.0, 32.0)
"""Scaling factors of Llama 3.1 and 3.3 (8) and of Llama 3.2 (32)."""

_ROTARY_FACTORS = "rope_freqs.weight"
"""Tensor by which llama.cpp divides each rotary frequency."""

_SIZES = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "rope.dimension_count",
    "rope.freq_base",
)
"""Keys that hold one number in the supported architectures; elsewhere some hold one for each layer."""

_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a metadata value by its type in the file."""


class _Metadata:
    """Metadata of one architecture, of which each key is taken once; what is left over is neither applied nor harmless."""

    def __init__(self, path: Path, architecture: str, values: dict[str, Any]) -> None:
        self.path, self.architecture = path, architecture
        self.token_ids = [values.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")]
        self.rotary_factors: np.ndarray | None = values.get(_ROTARY_FACTORS)
        self._left = {key.removeprefix(f"{architecture}."): v for key, v in values.items() if key.startswith(f"{architecture}.")}

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def take(self, key: str, default: Any = None) -> Any:
        """Return the value of an optional key."""
        return self._left.pop(key, default)

    def check_sizes(self) -> None:
        """Raise if a size is not one number; transformers' config would raise without naming the key."""
        for key in _SIZES:
            if key in self:
                self._left[key] = self.number(key)

    def number(self, key: str, default: float | None = None) -> Any:
        """Return the value of a key that holds one number.

        Raises:
            CheckpointError: it is missing and has no default, or is something else.
        """
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            what = "is missing" if value is None else f"is {str(value)[:60]!r}, which is not one number"
            raise CheckpointError(f"{self.path}: cannot read this GGUF file: {self.architecture}.{key} {what}")
        return value

    def require(self, key: str, value: Any, allowed: Any) -> None:
        """Raise if a value is not the only one that can be applied."""
        if value != allowed:
            raise self.refusal(key, f"is {str(value)[:60]}; only {allowed} can be applied to this architecture")

    def refusal(self, key: str, why: str) -> CheckpointError:
        """Return the error of a key that cannot be applied."""
        return CheckpointError(
            f"{self.path}: {self.architecture}.{key} {why}; the model would give other numbers. Use the safetensors checkpoint instead"
        )

    def refuse_rest(self) -> None:
        """Raise if keys are left over."""
        for key, value in self._left.items():
            raise self.refusal(key, f"(= {str(value)[:60]}) cannot be applied")


def load_gguf(parts: Sequence[Path], scratch: Path) -> tuple[Any, Any]:
    """Return the model of a GGUF file in float32, and its tokenizer.

    Args:
        parts: the file, or the parts of a split one in order.
        scratch: an existing folder for temporary files; it is left empty.

    Raises:
        CheckpointError: the file is damaged or incomplete, or holds something that cannot be applied exactly.
        OSError: the parts cannot be joined for want of space.
    """
    path = parts[0]
    try:
        values, shapes = _read_header(path)
        if len(parts) == 1:
            count = values.get("split.count", 1)
            if count not in (0, 1):
                raise CheckpointError(
                    f"{path} is part {values.get('split.no', 0) + 1} of {count} of a split model, but its name does not say so; name the "
                    f"parts NAME-00001-of-{count:05d}.gguf and so on, in one folder"
                )
            return _load(path, path, values, shapes)
        joined = scratch / "joined.gguf"
        try:
            _join(parts, joined)
            return _load(path, joined, *_read_header(joined))
        finally:
            joined.unlink(missing_ok=True)
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # the readers raise KeyError, ValueError, IndexError and others on files they do not know
        raise CheckpointError(f"{path}: transformers cannot read this GGUF file ({first_line(error)})") from error


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return the metadata of a file without its tokenizer, with its rotary factors, and the shapes of its tensors, rows first."""
    from gguf import GGUFReader

    _check_lengths(path.read_bytes() if path.stat().st_size < 1 << 16 else np.memmap(path, mode="r"))
    reader = GGUFReader(path)
    values = {
        key: field.contents()
        for key, field in reader.fields.items()
        if not key.startswith("tokenizer.") or key.endswith("_token_id")  # the rest is long
    }
    values |= {tensor.name: np.array(tensor.data, np.float32) for tensor in reader.tensors if tensor.name == _ROTARY_FACTORS}
    return values, {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in reader.tensors}


def _check_lengths(data: Any) -> None:
    """Raise ValueError if a length in the header goes beyond the file; gguf's reader would fill the memory with what is not there."""

    def number(at: int, form: str) -> int:
        width = struct.calcsize(form)
        if at + width > len(data):
            raise ValueError("the header ends in the middle")
        return struct.unpack(form, bytes(data[at : at + width]))[0]

    def after(at: int, kind: int) -> int:
        if kind == 8:
            end = at + 8 + number(at, "<Q")
        elif kind == 9:
            item, count = number(at, "<I"), number(at + 4, "<Q")
            end = at + 12
            if item in _WIDTHS:
                end += count * _WIDTHS[item]
            else:
                for _ in range(count):
                    end = after(end, item)
        else:
            end = at + _WIDTHS[kind]
        if end > len(data):
            raise ValueError("a length in the header goes beyond the end of the file")
        return end

    n_tensors, n_keys = number(8, "<Q"), number(16, "<Q")
    if 24 * n_tensors > len(data):
        raise ValueError(f"the header counts {n_tensors} tensors, more than the file can hold")
    at = 24
    for _ in range(n_keys):
        at = after(at, 8)
        at = after(at + 4, number(at, "<I"))


def _join(parts: Sequence[Path], target: Path) -> None:
    """Write the parts of a split model as one file."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    readers = [GGUFReader(part) for part in parts]
    for number, (part, reader) in enumerate(zip(parts, readers, strict=True)):
        found = [int(reader.fields[key].contents()) if key in reader.fields else None for key in ("split.no", "split.count")]
        if found != [number, len(parts)]:
            raise CheckpointError(
                f"{part}: its name says part {number + 1} of {len(parts)}, but its header says split.no = {found[0]}, "
                f"split.count = {found[1]}; these are not the parts of one model"
            )
    writer = GGUFWriter(target, str(readers[0].fields["general.architecture"].contents()))
    try:
        for key, field in readers[0].fields.items():
            if not key.startswith(("GGUF.", "split.")) and key != "general.architecture":
                kind = field.types[0]
                writer.add_key_value(key, field.contents(), kind, field.types[-1] if kind == GGUFValueType.ARRAY else None)
        for reader in readers:
            for tensor in reader.tensors:
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    expected = readers[0].fields.get("split.tensors.count")
    n_tensors = sum(len(reader.tensors) for reader in readers)
    if expected is not None and int(expected.contents()) != n_tensors:
        raise CheckpointError(f"{parts[0]}: the parts hold {n_tensors} tensors; the header says {int(expected.contents())}")


def _load(named: Path, file: Path, values: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> tuple[Any, Any]:
    """Return a model and its tokenizer from a complete file, which messages call `named`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    architecture = str(values.get("general.architecture"))
    if architecture not in _FAMILIES:
        raise CheckpointError(
            f"{named}: cannot read a GGUF file of architecture {architecture!r} exactly; supported: {', '.join(_FAMILIES)}. "
            "Use the safetensors checkpoint instead"
        )
    kind = values.get("general.type", "model")
    if kind != "model":
        raise CheckpointError(f"{named}: the file holds a model's {kind} (general.type), not a model")
    metadata = _Metadata(named, architecture, values)
    _check_sizes(metadata, shapes)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    special = _FAMILIES[architecture](config, metadata, shapes)
    metadata.refuse_rest()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        config=config,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    model, info = loaded
    _check_tensors(named, architecture, model, sorted(info["missing_keys"]), set(shapes) - special)
    return model, tokenizer


def _check_sizes(metadata: _Metadata, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise if the header's sizes are not those of the tensors, before a model of these sizes is built."""
    metadata.check_sizes()
    layers = {int(found[1]) for name in shapes if (found := re.match(r"blk\.(\d+)\.", name))}
    wanted, hidden = metadata.number("block_count"), metadata.number("embedding_length")
    if layers != set(range(len(layers))) or len(layers) != wanted:
        raise CheckpointError(
            f"{metadata.path}: {metadata.architecture}.block_count is {wanted}, but the file holds tensors of {len(layers)} layers, "
            f"up to blk.{max(layers, default=-1)}; the file is incomplete"
        )
    embedding = shapes.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{metadata.path}: the tensor token_embd.weight is missing; the file is incomplete")
    if embedding[-1] != hidden:
        raise CheckpointError(
            f"{metadata.path}: {metadata.architecture}.embedding_length is {hidden}, but token_embd.weight has {embedding[-1]} columns"
        )


def _check_tensors(path: Path, architecture: str, model: Any, missing: list[str], names: set[str]) -> None:
    """Raise if a tensor of the file was not used, or a weight of the model was not given."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    known = {_expert_name(name): weight for name, weight in get_gguf_hf_weights_map(model, processor).items()}
    tied = {"output.weight"} if model.config.tie_word_embeddings else set()
    absent = sorted(set(known) - names - tied)
    if absent:
        raise CheckpointError(f"{path}: {len(absent)} of the model's tensors are missing, the first is {absent[0]}; the file is incomplete")
    if missing:
        raise CheckpointError(f"{path}: {len(missing)} weights of the model are not in the file, the first is {missing[0]}")
    unused = sorted(names - set(known))
    if unused:
        raise CheckpointError(
            f"{path}: {len(unused)} tensors have no place in {type(model).__name__}, the first is {unused[0]}; without them the model "
            "would give other numbers. Use the safetensors checkpoint instead"
        )


def _expert_name(name: str) -> str:
    """Return a tensor's name as files have it; transformers' map leaves out the ending of stacked experts."""
    return f"{name}.weight" if name.endswith("_exps") else name


# --- architectures: each function applies the metadata to the config, and returns the names of tensors that became part of it ------------


def _common(config: Any, metadata: _Metadata, shapes: dict[str, tuple[int, ...]], norm: str) -> tuple[int, int]:
    """Apply sizes and the norm's epsilon; return the head size and the number of dimensions that are rotated.

    Defaults of absent keys are llama.cpp's.
    """
    hidden, heads = shapes["token_embd.weight"][-1], metadata.number("attention.head_count")
    if not isinstance(heads, int) or heads < 1:
        raise metadata.refusal("attention.head_count", f"is {heads}")
    head_size = metadata.number("attention.key_length", hidden // heads)
    metadata.require("attention.value_length", metadata.number("attention.value_length", head_size), head_size)
    config.num_hidden_layers = len({name.split(".")[1] for name in shapes if name.startswith("blk.")})
    config.hidden_size, config.num_attention_heads = hidden, heads
    config.max_position_embeddings = metadata.number("context_length")
    config.vocab_size = shapes["token_embd.weight"][0]
    config.bos_token_id, config.eos_token_id, config.pad_token_id = metadata.token_ids  # not those of transformers' default model
    metadata.require("vocab_size", metadata.take("vocab_size", config.vocab_size), config.vocab_size)
    groups = metadata.number("attention.head_count_kv", heads)
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = groups
    else:
        metadata.require("attention.head_count_kv", groups, heads)
    if hasattr(config, "head_dim") or head_size != hidden // heads:
        config.head_dim = head_size
    setattr(config, norm, metadata.number(f"attention.layer_norm{'_rms' if norm == 'rms_norm_eps' else ''}_epsilon"))
    for key in ("expert_count", "expert_used_count"):
        if metadata.architecture not in ("qwen2moe", "qwen3moe"):
            metadata.require(key, metadata.take(key, 0), 0)
    metadata.take("tensor_data_layout")  # tells what the file was converted from
    return head_size, metadata.number("rope.dimension_count", head_size)


def _rope(metadata: _Metadata) -> dict[str, Any]:
    """Return the rotary parameters that metadata names."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": metadata.number("rope.freq_base", 10000.0)}
    metadata.take("rope.scaling.finetuned")  # a remark
    original = metadata.take("rope.scaling.original_context_length")
    old_factor = metadata.take("rope.scale_linear")
    kind = metadata.take("rope.scaling.type", "linear" if old_factor is not None else "none")
    factor = metadata.number("rope.scaling.factor", 1.0 if old_factor is None else old_factor)
    if kind == "linear":
        rope |= {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        rope |= {"rope_type": "yarn", "factor": factor}
        if original is None:
            raise metadata.refusal("rope.scaling.type", "is yarn without rope.scaling.original_context_length")
        rope["original_max_position_embeddings"] = original
        for key in ("beta_fast", "beta_slow"):
            if f"rope.scaling.yarn_{key}" in metadata:
                rope[key] = metadata.number(f"rope.scaling.yarn_{key}")
        metadata.require("rope.scaling.yarn_ext_factor", metadata.number("rope.scaling.yarn_ext_factor", 1.0), 1.0)
        metadata.require("rope.scaling.yarn_attn_factor", metadata.number("rope.scaling.yarn_attn_factor", 1.0), 1.0)
    elif kind != "none":
        raise metadata.refusal("rope.scaling.type", f"is {str(kind)[:60]}, which cannot be applied")
    elif factor != 1.0:
        raise metadata.refusal("rope.scaling.factor", f"is {factor} without rope.scaling.type")
    metadata.require("rope.scaling.attn_factor", metadata.number("rope.scaling.attn_factor", 1.0), 1.0)
    return rope


def _rotate_all(metadata: _Metadata, head_size: int, rotated: int) -> None:
    metadata.require("rope.dimension_count", rotated, head_size)


def _llama(config: Any, metadata: _Metadata, shapes: dict[str, tuple[int, ...]]) -> set[str]:
    if "attention.head_count_kv" not in metadata:  # transformers leaves the rows of queries and keys in llama.cpp's order then
        raise metadata.refusal("attention.head_count_kv", "is missing, without which transformers cannot order the rotated dimensions")
    _rotate_all(metadata, *_common(config, metadata, shapes, "rms_norm_eps"))
    config.intermediate_size = metadata.number("feed_forward_length")
    config.rope_parameters = _rope(metadata)
    if hasattr(config, "sliding_window"):  # a model whose general.name is "mistral"
        config.sliding_window = None
    config.attention_bias = "blk.0.attn_q.bias" in shapes
    config.mlp_bias = "blk.0.ffn_up.bias" in shapes
    return _llama3_scaling(config, metadata)


def _llama3_scaling(config: Any, metadata: _Metadata) -> set[str]:
    """Apply the rotary factors of Llama 3.1 and later, which converters store as a tensor in place of their parameters."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    factors, plain = metadata.rotary_factors, config.rope_parameters
    if factors is None:
        return set()
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    wanted = 1.0 / (plain["rope_theta"] ** exponents * torch.from_numpy(factors.ravel()))
    for factor in _LLAMA3_FACTORS if plain["rope_type"] == "default" else ():
        config.rope_parameters = {**plain, "rope_type": "llama3", "factor": factor, **_LLAMA3_SCALING}
        found, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        if found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-5, atol=0):
            return {_ROTARY_FACTORS}
    raise CheckpointError(
        f"{metadata.path}: the tensor {_ROTARY_FACTORS} holds other rotary factors than Llama 3.1 to 3.3 have, which cannot be applied; "
        "use the safetensors checkpoint instead"
    )


def _qwen(config: Any, metadata: _Metadata, shapes: dict[str, tuple[int, ...]]) -> set[str]:
    _rotate_all(metadata, *_common(config, metadata, shapes, "rms_norm_eps"))
    config.rope_parameters = _rope(metadata)
    config.attention_bias = "blk.0.attn_q.bias" in shapes
    if metadata.architecture in ("qwen2", "qwen3"):
        config.intermediate_size = metadata.number("feed_forward_length")
        return set()
    metadata.take("feed_forward_length")  # of dense layers, whose tensors are refused
    config.num_experts = metadata.number("expert_count")
    config.num_experts_per_tok = metadata.number("expert_used_count")
    config.moe_intermediate_size = metadata.number("expert_feed_forward_length")
    config.norm_topk_prob = metadata.architecture == "qwen3moe"
    if metadata.architecture == "qwen2moe":
        config.shared_expert_intermediate_size = metadata.number("expert_shared_feed_forward_length")
    return set()


def _gemma2(config: Any, metadata: _Metadata, shapes: dict[str, tuple[int, ...]]) -> set[str]:
    head_size, rotated = _common(config, metadata, shapes, "rms_norm_eps")
    _rotate_all(metadata, head_size, rotated)
    config.intermediate_size = metadata.number("feed_forward_length")
    config.rope_parameters = _rope(metadata)
    config.sliding_window = metadata.number("attention.sliding_window", 4096)
    config.attn_logit_softcapping = metadata.number("attn_logit_softcapping", 50.0)
    config.final_logit_softcapping = metadata.number("final_logit_softcapping", 30.0)
    # The scale of scores is not in the file; llama.cpp knows the 27B model by its number of layers.
    config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if config.num_hidden_layers == 46 else head_size
    return set()


def _gemma3(config: Any, metadata: _Metadata, shapes: dict[str, tuple[int, ...]]) -> set[str]:
    head_size, rotated = _common(config, metadata, shapes, "rms_norm_eps")
    _rotate_all(metadata, head_size, rotated)
    config.intermediate_size = metadata.number("feed_forward_length")
    local = {"rope_type": "default", "rope_theta": metadata.number("rope.freq_base_swa", 10000.0)}
    config.rope_parameters = {"full_attention": _rope(metadata), "sliding_attention": local}
    config.sliding_window = metadata.number("attention.sliding_window")
    metadata.require("attention.sliding_window_pattern", metadata.take("attention.sliding_window_pattern", 6), 6)
    layers = range(1, config.num_hidden_layers + 1)
    config.layer_types = ["full_attention" if layer % 6 == 0 else "sliding_attention" for layer in layers]
    config.attn_logit_softcapping = None
    config.final_logit_softcapping = metadata.number("final_logit_softcapping", 0.0) or None
    config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if config.num_hidden_layers == 62 else head_size
    return set()


def _phi3(config: Any, metadata: _Metadata, shapes: dict[str, tuple[int, ...]]) -> set[str]:
    head_size, rotated = _common(config, metadata, shapes, "rms_norm_eps")
    config.intermediate_size = metadata.number("feed_forward_length")
    original = metadata.take("rope.scaling.original_context_length", config.max_position_embeddings)
    metadata.require("rope.scaling.original_context_length", original, config.max_position_embeddings)
    config.original_max_position_embeddings = original
    config.rope_parameters = {**_rope(metadata), "partial_rotary_factor": rotated / head_size}
    config.sliding_window = metadata.number("attention.sliding_window", 0) or None
    return set()


def _gpt2(config: Any, metadata: _Metadata, shapes: dict[str, tuple[int, ...]]) -> set[str]:
    head_size, rotated = _common(config, metadata, shapes, "layer_norm_epsilon")
    _rotate_all(metadata, head_size, rotated)
    config.n_inner = metadata.number("feed_forward_length")
    return set()


_FAMILIES: dict[str, Callable[[Any, _Metadata, dict[str, tuple[int, ...]]], set[str]]] = {
    "llama": _llama,
    "qwen2": _qwen,
    "qwen2moe": _qwen,
    "qwen3": _qwen,
    "qwen3moe": _qwen,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "gpt2": _gpt2,
}
"""Architectures whose conversion is compared with the same model saved as a folder, in tests/interp/checkpoints/test_gguf.py."""
