"""Changes of the circuits against dense d_model x d_model matrices, whose differences and singular values numpy computes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from interp.checkpoints.opening import open_checkpoint
from interp.circuits import lora_geometry, lora_spectrum
from interp.tables.errors import CheckpointError

ALL = ["q_proj", "k_proj", "v_proj", "o_proj"]
KEY = ["layer", "head", "circuit"]
TinyModel = Callable[..., Any]


def randomize(model: Any, seed: int = 0, adapter: str = "default") -> Any:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and f".{adapter}." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
    return model


def adapted(tiny_model: TinyModel, family: str = "llama", targets: Any = ALL, *, build: dict[str, Any] | None = None, **lora: Any) -> Any:
    """Return a tiny model with an untrained adapter, whose lora_B are zero."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": targets, "task_type": "CAUSAL_LM", **lora})
    return get_peft_model(tiny_model(family, **(build or {})), config)


def attention_of(model: Any, layer: int) -> Any:
    base = model.get_base_model()
    return base.transformer.h[layer].attn if hasattr(base, "transformer") else base.model.layers[layer].self_attn


def weights(model: Any, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of queries, keys and values and the columns of the output, from the base layers' weights."""
    attention = attention_of(model, layer)

    def matrix(name: str) -> np.ndarray:
        module = getattr(attention, name)
        weight = getattr(module, "base_layer", module).weight.detach().numpy()
        assert weight.dtype == np.float64
        return weight

    if hasattr(attention, "c_attn"):
        queries, keys, values = np.split(matrix("c_attn"), 3, axis=1)
        return queries.T, keys.T, values.T, matrix("c_proj").T
    if hasattr(attention, "qkv_proj"):
        config = model.config
        ends = np.cumsum([config.num_attention_heads * attention.head_dim, config.num_key_value_heads * attention.head_dim])
        queries, keys, values = np.split(matrix("qkv_proj"), ends)
        return queries, keys, values, matrix("o_proj")
    return matrix("q_proj"), matrix("k_proj"), matrix("v_proj"), matrix("o_proj")


def dense_circuits(model: Any, layer: int) -> dict[tuple[int, str], np.ndarray]:
    queries, keys, values, outputs = weights(model, layer)
    n_heads, size = model.config.num_attention_heads, attention_of(model, layer).head_dim
    group = n_heads // (len(keys) // size)
    circuits = {}
    for head in range(n_heads):
        mine, shared = slice(head * size, (head + 1) * size), slice(head // group * size, (head // group + 1) * size)
        circuits[head, "qk"] = queries[mine].T @ keys[shared]
        circuits[head, "ov"] = outputs[:, mine] @ values[shared]
    return circuits


def dense(model: Any) -> tuple[pd.DataFrame, dict[tuple[int, int, str], np.ndarray]]:
    """Return the table and all singular values from dense float64 circuits; the adapted weights are those that PEFT merges."""
    plain = copy.deepcopy(model).double()
    merged = copy.deepcopy(model).double()
    merged.merge_adapter()
    rows, spectra = [], {}
    for layer in range(model.config.num_hidden_layers):
        after = dense_circuits(merged, layer)
        for (head, circuit), before in dense_circuits(plain, layer).items():
            change = after[head, circuit] - before
            values = np.linalg.svd(change, compute_uv=False)
            none = not change.any()
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "circuit": circuit,
                    "change_norm": np.linalg.norm(change),
                    "base_norm": np.linalg.norm(before),
                    "relative": np.linalg.norm(change) / np.linalg.norm(before),
                    "spectral_norm": np.linalg.norm(change, 2),
                    "stable_rank": math.nan if none else (np.linalg.norm(change) / np.linalg.norm(change, 2)) ** 2,
                    "effective_rank": math.nan if none else math.exp(scipy.stats.entropy(values)),
                    "rank": np.linalg.matrix_rank(change),
                }
            )
            spectra[layer, head, circuit] = values
    return pd.DataFrame(rows), spectra


CASES: dict[str, tuple[str, Any, dict[str, Any], dict[str, Any]]] = {
    "grouped": ("llama", ALL, {}, {}),
    "one key head for all": ("llama", ALL, {"num_key_value_heads": 1}, {}),
    "as many key heads": ("llama", ALL, {"num_key_value_heads": 4}, {}),
    "only queries": ("llama", ["q_proj"], {}, {}),
    "only keys": ("llama", ["k_proj"], {}, {}),
    "values and outputs": ("llama", ["v_proj", "o_proj"], {}, {}),
    "queries and the MLP": ("llama", ["q_proj", "up_proj"], {}, {}),
    "only the MLP": ("llama", ["up_proj"], {}, {}),
    "heads wider than hidden / heads": ("qwen3", ALL, {}, {}),
    "heads narrower than hidden / heads": ("llama", ALL, {"head_dim": 4}, {}),
    "rank above head_dim": ("llama", ALL, {}, {"r": 12}),
    "rank above head_dim of keys only": ("llama", ALL, {}, {"rank_pattern": {"k_proj": 12}}),
    "more inner columns than d_model": ("llama", ALL, {"head_dim": 32}, {"r": 20}),
    "rslora": ("llama", ALL, {}, {"use_rslora": True}),
    "patterns": ("llama", ALL, {}, {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"o_proj": 3}}),
    "one layer": ("llama", ALL, {}, {"layers_to_transform": [1]}),
    "bfloat16": ("llama", ALL, {"dtype": "bfloat16"}, {}),
    "float64": ("llama", ALL, {"dtype": "float64"}, {}),
    "soft caps": ("gemma2", ALL, {}, {}),
    "biases": ("qwen2", ALL, {}, {"bias": "lora_only"}),
    "sinks": ("gpt_oss", ALL, {}, {}),
    "fused": ("phi3", ["qkv_proj", "o_proj"], {}, {}),
    "fused, rank above head_dim": ("phi3", ["qkv_proj"], {}, {"r": 12}),
    "Conv1D": ("gpt2", ["c_attn", "c_proj"], {}, {"fan_in_fan_out": True}),
    "Conv1D, inputs only": ("gpt2", ["c_attn"], {}, {"fan_in_fan_out": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_tables_equal_those_of_dense_circuits(tiny_model: TinyModel, case: str) -> None:
    family, targets, build, lora = CASES[case]
    model = randomize(adapted(tiny_model, family, targets, build=build, **lora))
    table, (expected, spectra) = lora_geometry(model), dense(model)
    pd.testing.assert_frame_equal(table, expected, rtol=1e-9, atol=1e-12, check_dtype=False)
    spectrum = lora_spectrum(model)
    assert list(spectrum.columns) == [*KEY, "index", "singular_value"]
    seen = {tuple(key): part for key, part in spectrum.groupby(KEY)}
    assert set(seen) <= set(spectra)
    for key, values in spectra.items():
        given_values = seen[key]["singular_value"].to_numpy() if key in seen else np.zeros(0)
        assert key not in seen or seen[key]["index"].tolist() == list(range(len(given_values)))
        padded = np.zeros(len(values))
        padded[: len(given_values)] = given_values
        np.testing.assert_allclose(padded, values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("targets", "lora", "qk", "ov"),
    [
        (["q_proj"], {"r": 3}, 3, 0),
        (["q_proj", "k_proj"], {"r": 3}, 6, 0),
        (["v_proj", "o_proj"], {"r": 12}, 0, 16),
        (["k_proj", "q_proj", "o_proj"], {"r": 3, "rank_pattern": {"k_proj": 12}}, 11, 3),
    ],
)
def test_a_spectrum_has_one_row_per_inner_column_of_the_factors(
    tiny_model: TinyModel, targets: list[str], lora: Any, qk: int, ov: int
) -> None:
    model = randomize(adapted(tiny_model, targets=targets, **lora))
    spectrum = lora_spectrum(model)
    for circuit, width in (("qk", qk), ("ov", ov)):
        counts = spectrum[spectrum["circuit"] == circuit].groupby(KEY).size()
        assert counts.tolist() == ([width] * 8 if width else [])
    ranks = lora_geometry(model).groupby("circuit")["rank"].unique()
    assert ranks["qk"].tolist() == [qk]
    assert ranks["ov"].tolist() == [ov]


def test_an_untrained_adapter_changes_nothing(tiny_model: TinyModel) -> None:
    table = lora_geometry(adapted(tiny_model))
    assert (table[["change_norm", "relative", "spectral_norm", "rank"]] == 0).all(axis=None)
    assert table[["stable_rank", "effective_rank"]].isna().all(axis=None)
    assert (table["base_norm"] > 0).all()
    assert (lora_spectrum(adapted(tiny_model))["singular_value"] == 0).all()


def test_a_circuit_that_is_zero_has_no_relative_change(tiny_model: TinyModel) -> None:
    model = randomize(adapted(tiny_model))
    with torch.no_grad():
        attention_of(model, 0).q_proj.base_layer.weight[:8] = 0  # head 0
    table = lora_geometry(model)
    first = (table["layer"] == 0) & (table["head"] == 0) & (table["circuit"] == "qk")
    assert table["base_norm"].eq(0).tolist() == first.tolist()
    assert table["relative"].isna().tolist() == first.tolist()
    assert (table["change_norm"] > 0).all()


def test_rank_equals_that_of_numpy(tiny_model: TinyModel) -> None:
    """Singular values of very different size: some count although they are tiny, and some are below the rounding of the largest."""
    model = randomize(adapted(tiny_model, targets=["o_proj"], build={"dtype": "float64", "num_hidden_layers": 1}))
    attention = attention_of(model, 0)
    a, b = attention.o_proj.lora_A["default"].weight, attention.o_proj.lora_B["default"].weight
    with torch.no_grad():
        b.mul_(torch.tensor([1.0, 1e-6, 1e-12, 1e-20], dtype=torch.float64))
    ranks = []
    for head in range(4):
        change = 1.5 * (b @ a[:, head * 8 : head * 8 + 8]).detach().numpy() @ weights(model, 0)[2][head // 2 * 8 : head // 2 * 8 + 8]
        ranks.append(np.linalg.matrix_rank(change))
    table = lora_geometry(model)
    assert table.loc[table["circuit"] == "ov", "rank"].tolist() == ranks == [3, 3, 3, 3]


def test_the_table_of_an_opened_adapter_has_every_head(adapter: Path, checkpoint: Path) -> None:
    opened = open_checkpoint(adapter, base=str(checkpoint), device="cpu")
    table = lora_geometry(opened.model)
    expected, _ = dense(opened.model)
    pd.testing.assert_frame_equal(table, expected, rtol=1e-9, atol=1e-12, check_dtype=False)
    assert (table["change_norm"] > 0).all()
    assert len(table) == 2 * 4 * 2


# --- which head ------------------------------------------------------------------------------------------------------


PLANTED = {
    # family, projection, rows of lora_B -> the circuit that changes
    "a query head": ("llama", "q_proj", slice(16, 24), "qk"),
    "a key head": ("llama", "k_proj", slice(8, 16), "qk"),
    "a value head": ("llama", "v_proj", slice(0, 8), "ov"),
    "a wide query head": ("qwen3", "q_proj", slice(48, 64), "qk"),
    "a fused query head": ("phi3", "qkv_proj", slice(8, 16), "qk"),
    "a fused key head": ("phi3", "qkv_proj", slice(40, 48), "qk"),
    "a fused value head": ("phi3", "qkv_proj", slice(48, 56), "ov"),
    "a Conv1D query head": ("gpt2", "c_attn", slice(24, 32), "qk"),
    "a Conv1D key head": ("gpt2", "c_attn", slice(40, 48), "qk"),
    "a Conv1D value head": ("gpt2", "c_attn", slice(80, 88), "ov"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_change_shows_in_the_heads_whose_forward_pass_changes(tiny_model: TinyModel, case: str) -> None:
    family, projection, rows, circuit = PLANTED[case]
    lora = {"fan_in_fan_out": True} if family == "gpt2" else {}
    model = randomize(adapted(tiny_model, family, [projection], build={"attention": "eager"}, layers_to_transform=[0], **lora)).eval()
    with torch.no_grad():
        planted = getattr(attention_of(model, 0), projection).lora_B["default"].weight
        kept = planted[rows].clone()
        planted.zero_()
        planted[rows] = kept
    table = lora_geometry(model)
    table = table[table["change_norm"] > 0]
    assert set(table["layer"]) == {0}
    assert set(table["circuit"]) == {circuit}
    assert set(table["head"]) == changed_heads(model, circuit)


def changed_heads(model: Any, circuit: str) -> set[int]:
    """Heads of layer 0 whose attention (qk), or whose output before the output projection (ov), the adapter changes."""
    attention = attention_of(model, 0)
    outputs = attention.c_proj if hasattr(attention, "c_proj") else attention.o_proj
    kept: list[torch.Tensor] = []
    hook = outputs.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    ids = torch.arange(1, 13)[None]
    with torch.no_grad():
        after = model(input_ids=ids, output_attentions=True).attentions[0]
        with model.disable_adapter():
            before = model(input_ids=ids, output_attentions=True).attentions[0]
    hook.remove()
    if circuit == "qk":
        return {head for head in range(after.shape[1]) if not torch.equal(after[:, head], before[:, head])}
    heads = [side.unflatten(-1, (after.shape[1], -1)) for side in kept]
    return {head for head in range(after.shape[1]) if not torch.equal(heads[0][..., head, :], heads[1][..., head, :])}


def test_a_planted_change_of_the_output_shows_in_its_head(tiny_model: TinyModel) -> None:
    model = randomize(adapted(tiny_model, "qwen3", ["o_proj"], layers_to_transform=[1]))
    with torch.no_grad():
        planted = attention_of(model, 1).o_proj.lora_A["default"].weight
        planted[:, :32] = 0
        planted[:, 48:] = 0
    table = lora_geometry(model)
    assert table[table["change_norm"] > 0][KEY].values.tolist() == [[1, 2, "ov"]]


# --- properties ------------------------------------------------------------------------------------------------------


@given(exponent=st.floats(-9, 9), sign=st.sampled_from([-1, 1]), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_scaling_the_output_adapter_scales_the_change(tiny_model: TinyModel, exponent: float, sign: int, seed: int) -> None:
    """Scales go down to 1e-9: the change is not lost next to a base a billion times as large."""
    scale = sign * 10**exponent
    model = randomize(adapted(tiny_model, targets=["o_proj"], build={"dtype": "float64", "num_hidden_layers": 1}), seed)
    before, values = lora_geometry(model), lora_spectrum(model)
    with torch.no_grad():
        attention_of(model, 0).o_proj.lora_B["default"].weight.mul_(scale)
    after, scaled = lora_geometry(model), lora_spectrum(model)
    for column in ("change_norm", "spectral_norm", "relative"):
        np.testing.assert_allclose(after[column], before[column] * abs(scale), rtol=1e-10)
    for column in ("stable_rank", "effective_rank", "rank", "base_norm"):
        np.testing.assert_allclose(after[column], before[column], rtol=1e-10)
    np.testing.assert_allclose(scaled["singular_value"], values["singular_value"] * abs(scale), rtol=1e-9)


class Shapes(TorchDispatchMode):
    """Collects the shapes of everything that torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, torch.Tensor):
                self.seen.add(tuple(one.shape))
        return result


def test_no_matrix_of_d_model_by_d_model_is_formed(tiny_model: TinyModel) -> None:
    model = randomize(adapted(tiny_model, build={"head_dim": 4}, r=6))  # 16 rows of queries; d_model is 32
    with Shapes() as shapes:
        lora_geometry(model)
    assert (16, 32) in shapes.seen  # the queries' weights were read
    assert not [shape for shape in shapes.seen if shape.count(32) > 1]


# --- adapters by name, and errors ----------------------------------------------------------------------------


def test_the_active_adapter_is_measured(tiny_model: TinyModel) -> None:
    model = randomize(adapted(tiny_model, targets=["q_proj"]))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    randomize(model, 1, "other")
    alone = lora_geometry(model)
    model.set_adapter("other")
    expected, _ = dense(model)
    pd.testing.assert_frame_equal(lora_geometry(model), expected, rtol=1e-9, atol=1e-12, check_dtype=False)
    assert set(alone.loc[alone["change_norm"] > 0, "circuit"]) == {"qk"}
    assert set(expected.loc[expected["change_norm"] > 0, "circuit"]) == {"ov"}


def test_the_model_is_unchanged(tiny_model: TinyModel) -> None:
    model = randomize(adapted(tiny_model))
    before = copy.deepcopy(model.state_dict())
    lora_geometry(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def both_active(model: Any) -> None:
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    model.base_model.set_adapter(["default", "other"])


def another_adapter_in_one_layer(model: Any) -> None:
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    attention_of(model, 0).q_proj.set_adapter("other")


def without_factors(model: Any) -> None:
    for layer in range(2):
        for name in ALL:
            setattr(attention_of(model, layer), name, getattr(attention_of(model, layer), name).base_layer)


def quantized(model: Any) -> None:
    base = attention_of(model, 1).k_proj.base_layer
    base.weight = nn.Parameter(base.weight.to(torch.int8), requires_grad=False)


def offloaded(model: Any) -> None:
    attention_of(model, 1).v_proj.to("meta")


def gated(model: Any) -> None:
    attention_of(model, 0).gate_proj = nn.Linear(32, 32)


def damaged(model: Any) -> None:
    with torch.no_grad():
        attention_of(model, 0).o_proj.lora_B["default"].weight[0, 0] = torch.nan


def doubled_queries(model: Any) -> None:
    attention_of(model, 0).q_proj = nn.Linear(32, 64)  # as gated queries have them


def unnumbered(model: Any) -> None:
    attention_of(model, 1).layer_idx = 0


def no_head_dim(model: Any) -> None:
    attention_of(model, 0).head_dim = None
    model.config.head_dim = None


def without_transformers_model(model: Any) -> None:
    model.base_model.model = nn.ModuleDict({"layer": attention_of(model, 0)})


REJECTED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "several": (both_active, r"active adapters are \['default', 'other'\]; activate exactly one"),
    "another adapter in one layer": (another_adapter_in_one_layer, r"active adapters are \['other'\], but \['default'\]"),
    "merged": (lambda model: model.merge_adapter(), "merged into the base"),
    "disabled": (lambda model: model.base_model.disable_adapter_layers(), "its adapters are disabled"),
    "no factors": (without_factors, "adapts no linear layer"),
    "quantized": (quantized, r"layer 1's LlamaAttention.k_proj \(Linear\) has no plain weights: Parameter of torch.int8"),
    "offloaded": (offloaded, "on meta"),
    "gated": (gated, r"also has gate_proj \(Linear\)"),
    "damaged": (damaged, "o_proj: the weights hold NaN or infinity"),
    "doubled queries": (doubled_queries, r"\(64, 32\).*expected 4 heads of size 8"),
    "unnumbered": (unnumbered, "layer 0: expected one attention module .* found 2"),
    "no head_dim": (no_head_dim, "head_dim is None; the module or its config must have an integer head_dim"),
    "no transformers model": (without_transformers_model, "base is ModuleDict"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_models_whose_circuits_are_unknown_are_rejected(tiny_model: TinyModel, case: str) -> None:
    change, message = REJECTED[case]
    model = randomize(adapted(tiny_model))
    change(model)
    for table in (lora_geometry, lora_spectrum):
        with pytest.raises(CheckpointError, match=message):
            table(model)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"use_dora": True}, "uses the variant DoraLinearVariant"),
        ({"init_lora_weights": "pissa"}, "initialized by pissa, which changes the base"),
        ({"init_lora_weights": "olora"}, "initialized by olora"),
        ({"modules_to_save": ["self_attn"], "targets": ["up_proj"]}, r"modules_to_save replaces the attention of layers \[0\]"),
        ({"modules_to_save": ["k_proj"], "targets": ["q_proj"]}, "k_proj is ModulesToSaveWrapper; a Linear is needed"),
        ({"target_parameters": ["q_proj.weight"], "targets": []}, "q_proj is ParamWrapper"),
    ],
)
def test_adapters_other_than_plain_lora_are_rejected(tiny_model: TinyModel, lora: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        lora_geometry(adapted(tiny_model, **lora))


def test_a_base_changed_by_an_inactive_adapter_is_rejected(tiny_model: TinyModel) -> None:
    model = adapted(tiny_model)
    start: Any = "pissa_niter_2"
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start, task_type="CAUSAL_LM"))
    with pytest.raises(CheckpointError, match="'other' was initialized by pissa_niter_2"):
        lora_geometry(model)


@pytest.mark.parametrize(
    ("family", "targets", "message"),
    [
        ("gpt_neox", ["query_key_value"], "layer 0: .*GPTNeoXAttention with query_key_value"),
        ("deepseek_v3", ["q_b_proj"], "layer 0: .*DeepseekV3Attention with q_a_proj"),
    ],
)
def test_unknown_attention_is_rejected(tiny_model: TinyModel, family: str, targets: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        lora_geometry(adapted(tiny_model, family, targets))


def test_models_without_a_lora_adapter_are_rejected(tiny_model: TinyModel) -> None:
    with pytest.raises(CheckpointError, match="LlamaForCausalLM is not a PeftModel"):
        lora_geometry(tiny_model("llama"))
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    with pytest.raises(CheckpointError, match="has type IA3; only LoRA"):
        lora_geometry(get_peft_model(tiny_model("llama"), config))
