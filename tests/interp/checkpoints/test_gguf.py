"""A GGUF file gives the same model as its safetensors folder, or it is refused by the name of what cannot be applied."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.checkpoints.opening import identify, open_checkpoint
from interp.tables.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("assets")

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with other heads": ("llama", {"head_dim": 16}),
    "llama, another rotary base": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama, linear scaling": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama, yarn": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2, yarn": (
        "qwen2",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}},
    ),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {}),
    "gemma2, other caps": ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5}),
    "gemma3": ("gemma3_text", {"layer_types": ["sliding_attention"] * 2, "rope_parameters": None}),
    "phi3": ("phi3", {}),
    "phi3 without a window": ("phi3", {"sliding_window": None}),
    "phi3, part of each head rotated": (
        "phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    ),
    "gpt2": ("gpt2", {}),
}


def perturb(model: Any) -> Any:
    """Change all weights, so that a bias or a norm that is left out shows."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    return model


@pytest.mark.parametrize("case", MODELS)
def test_a_file_gives_the_numbers_of_the_folder(
    case: str,
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    save_tokenizer: Callable[..., None],
    write_gguf: Callable[..., Any],
    logits_of: Callable[..., torch.Tensor],
) -> None:
    family, settings = MODELS[case]
    model = perturb(tiny_model(family, **settings))
    model.save_pretrained(tmp_path / "folder")
    save_tokenizer(tmp_path / "folder")
    write_gguf(tmp_path / "model.gguf", model)
    wanted = logits_of(open_checkpoint(tmp_path / "folder", device="cpu").model)
    found = open_checkpoint(tmp_path / "model.gguf", device="cpu")
    torch.testing.assert_close(logits_of(found.model), wanted, rtol=1e-4, atol=1e-4)
    assert found.identity["n_parameters"] == model.num_parameters()
    assert found.identity["unused_weights"] == []


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe"])
def test_experts_give_the_numbers_of_the_folder(
    family: str, tmp_path: Path, write_gguf: Callable[..., Any], logits_of: Callable[..., torch.Tensor]
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 256, "num_experts": 4, "num_experts_per_tok": 2}
    own = {"moe_intermediate_size": 24, "norm_topk_prob": family == "qwen3_moe", "tie_word_embeddings": False}
    own |= {"shared_expert_intermediate_size": 40} if family == "qwen2_moe" else {"head_dim": 16}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **sizes, **own, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = perturb(AutoModelForCausalLM.from_config(config).eval())
    write_gguf(tmp_path / "model.gguf", model)
    found = open_checkpoint(tmp_path / "model.gguf", device="cpu")
    torch.testing.assert_close(logits_of(found.model), logits_of(model), rtol=1e-4, atol=1e-4)
    write_gguf(tmp_path / "torn.gguf", model, without("blk.1.ffn_up_exps.weight"))
    with pytest.raises(CheckpointError, match=r"missing, the first is blk\.1\.ffn_up_exps\.weight"):
        open_checkpoint(tmp_path / "torn.gguf", device="cpu")


def llama3_factors(tensors: dict[str, Any], _: dict[str, Any], *, factor: float = 8.0) -> None:
    """Add the factors of Llama 3.1, worked by hand: wavelengths 6, 63, 628 and 6,283 of 8,192 trained positions."""
    smooth = (8192 / (2 * np.pi * 1000) - 1) / (4 - 1)
    tensors["rope_freqs.weight"] = np.array([1, 1, 1, 1 / ((1 - smooth) / factor + smooth)], np.float32)


def test_rotary_factors_of_llama3_are_applied(
    tmp_path: Path, tiny_model: Callable[..., Any], write_gguf: Callable[..., Any], logits_of: Callable[..., torch.Tensor]
) -> None:
    scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, **scaling}
    write_gguf(tmp_path / "model.gguf", tiny_model("llama"), llama3_factors)
    found = open_checkpoint(tmp_path / "model.gguf", device="cpu").model
    assert {key: found.config.rope_parameters[key] for key in rope} == rope
    torch.testing.assert_close(logits_of(found), logits_of(tiny_model("llama", rope_parameters=rope)), rtol=1e-4, atol=1e-4)


def without(name: str) -> Callable[..., None]:
    return lambda tensors, _: tensors.pop(name)


def with_tensor(name: str, size: int = 4) -> Callable[..., None]:
    return lambda tensors, _: tensors.update({name: np.ones(size, np.float32)})


def with_key(key: str, value: Any) -> Callable[..., None]:
    return lambda _, metadata: metadata.update({key: value})


def without_key(key: str) -> Callable[..., None]:
    return lambda _, metadata: metadata.pop(key)


REFUSED: dict[str, tuple[str, Callable[..., None], str]] = {
    "missing matrix": ("llama", without("blk.1.attn_q.weight"), "1 of the model's tensors are missing, the first is blk.1.attn_q.weight"),
    "missing norm": ("qwen2", without("output_norm.weight"), "output_norm.weight"),
    "missing bias": ("qwen2", without("blk.0.attn_k.bias"), "blk.0.attn_k.bias"),
    "missing embedding": ("llama", without("token_embd.weight"), "token_embd.weight is missing"),
    "only some biases": ("llama", with_tensor("blk.0.attn_q.bias", 32), "missing, the first is blk.0.attn_k.bias"),
    "bias without a place": ("llama", with_tensor("output.bias"), "no place in LlamaForCausalLM, the first is output.bias"),
    "other rotary factors": ("llama", with_tensor("rope_freqs.weight"), "other rotary factors"),
    "long rotary factors": ("phi3", with_tensor("rope_factors_long.weight"), "the first is rope_factors_long.weight"),
    "other rotary scaling": ("llama", with_key("rope.scaling.type", "longrope"), "llama.rope.scaling.type is longrope"),
    "scaled attention": ("llama", with_key("rope.scaling.attn_factor", 1.5), "llama.rope.scaling.attn_factor is 1.5"),
    "factor without a type": ("llama", with_key("rope.scaling.factor", 2.0), "llama.rope.scaling.factor"),
    "part of each head rotated": ("llama", with_key("rope.dimension_count", 4), "llama.rope.dimension_count is 4; only 8"),
    "window": ("llama", with_key("attention.sliding_window", 64), r"llama.attention.sliding_window \(= 64\) cannot be applied"),
    "cap": ("qwen2", with_key("attn_logit_softcapping", 50.0), "qwen2.attn_logit_softcapping"),
    "experts": ("llama", with_key("expert_count", 8), "llama.expert_count is 8"),
    "scale of logits": ("llama", with_key("logit_scale", 0.5), "llama.logit_scale"),
    "unknown key": ("llama", with_key("invented.next_year", 1), "llama.invented.next_year"),
    "sizes of values": ("llama", with_key("attention.value_length", 4), "llama.attention.value_length is 4"),
    "groups not given": ("llama", without_key("attention.head_count_kv"), "llama.attention.head_count_kv is missing"),
    "a list of sizes": ("llama", with_key("attention.head_count", [4, 2]), "which is not one number"),
    "a text as a size": ("llama", with_key("context_length", "long"), "llama.context_length is 'long'"),
    "size not given": ("llama", without_key("context_length"), "llama.context_length is missing"),
    "more layers than stored": ("llama", with_key("block_count", 1_000_000_000), "block_count is 1000000000, but .* 2 layers"),
    "fewer layers than stored": ("llama", with_key("block_count", 1), "block_count is 1, but .* 2 layers"),
    "another hidden size": ("llama", with_key("embedding_length", 1 << 30), "token_embd.weight has 32 columns"),
    "another vocabulary": ("llama", with_key("vocab_size", 1 << 30), "llama.vocab_size is 1073741824; only 48"),
    "adapter": ("llama", with_key("general.type", "adapter"), r"a model's adapter \(general.type\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_applied_is_refused_by_name(
    case: str,
    tmp_path: Path,
    assets: Path,
    tiny_model: Callable[..., Any],
    write_gguf: Callable[..., Any],
    folders_below: Callable[[Path], list[str]],
) -> None:
    family, change, message = REFUSED[case]
    write_gguf(tmp_path / "model.gguf", tiny_model(family), change)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path / "model.gguf", device="cpu")
    assert "model.gguf" in str(caught.value)
    assert folders_below(assets) == []


def test_an_unsupported_architecture_is_refused(tmp_path: Path, tiny_model: Callable[..., Any], write_gguf: Callable[..., Any]) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_model("olmo2"))
    with pytest.raises(CheckpointError, match="architecture 'olmo2' exactly; supported: llama, "):
        open_checkpoint(tmp_path / "model.gguf", device="cpu")


def test_the_parts_of_a_split_file_are_joined(
    tmp_path: Path,
    assets: Path,
    tiny_model: Callable[..., Any],
    write_gguf: Callable[..., Any],
    logits_of: Callable[..., torch.Tensor],
    folders_below: Callable[[Path], list[str]],
) -> None:
    model = perturb(tiny_model("llama"))
    parts = write_gguf(tmp_path / "tiny.gguf", model, split=3)
    opened = [open_checkpoint(part, device="cpu") for part in (parts[0], parts[2])]
    for checkpoint in opened:
        torch.testing.assert_close(logits_of(checkpoint.model), logits_of(model), rtol=1e-4, atol=1e-4)
        assert checkpoint.name == "tiny"
    assert identify(parts[1]) == identify(parts[0])
    assert len(folders_below(assets)) == 1
    assert not list(assets.rglob("*.gguf"))


def test_missing_parts_are_named(tmp_path: Path, tiny_model: Callable[..., Any], write_gguf: Callable[..., Any]) -> None:
    parts = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), split=4)
    parts[1].unlink()
    parts[3].unlink()
    with pytest.raises(CheckpointError, match=r"missing next to it: tiny-00002-of-00004.gguf, tiny-00004-of-00004.gguf; fetch"):
        open_checkpoint(parts[0], device="cpu")


def test_parts_of_another_model_or_under_another_name_are_refused(
    tmp_path: Path, tiny_model: Callable[..., Any], write_gguf: Callable[..., Any]
) -> None:
    parts = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), split=2)
    renamed = Path(shutil.copy(parts[0], tmp_path / "renamed.gguf"))
    with pytest.raises(CheckpointError, match="part 1 of 2 of a split model, but its name does not say so"):
        open_checkpoint(renamed, device="cpu")
    shutil.copy(parts[0], parts[1])
    with pytest.raises(CheckpointError, match=r"part 2 of 2, but its header says split.no = 0, split.count = 2"):
        open_checkpoint(parts[0], device="cpu")


@pytest.mark.parametrize("at", [8, 24], ids=["number of tensors", "length of a key"])
def test_a_length_beyond_the_file_is_refused_before_it_is_read(
    at: int, tmp_path: Path, tiny_model: Callable[..., Any], write_gguf: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, tiny_model("llama"))
    content = bytearray(path.read_bytes())
    content[at : at + 8] = (1 << 60).to_bytes(8, "little")
    path.write_bytes(content)
    monkeypatch.setattr("gguf.GGUFReader", lambda *_: pytest.fail("the file was read"))
    with pytest.raises(CheckpointError, match=r"the header counts|goes beyond the end of the file"):
        open_checkpoint(path, device="cpu")
