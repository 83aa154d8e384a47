"""Change of every head's QK and OV circuit by a LoRA adapter: exact norms and singular values, from the adapter's factors.

A head reads and writes the residual stream only through two matrices (Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits"): QK = Wq^T Wk decides where it attends, and OV = Wo Wv what it moves. Both are d_model x d_model with rank at most head_dim. The
change that an adapter makes to them is a product of two thin factors, so no d_model x d_model matrix is formed.

The circuits are those of the weights alone: without the softmax scale, biases, the gains of norms before them or on queries and keys, and
rotary embedding (that is, at relative distance 0).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel, PeftType
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from scipy.special import entr
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from interp.attention.seam import attention_layers
from interp.tables.errors import CheckpointError

_CIRCUITS = ("qk", "ov")

_LAYOUTS: dict[tuple[str, ...], type[nn.Module]] = {
    ("q_proj", "k_proj", "v_proj", "o_proj"): nn.Linear,
    ("qkv_proj", "o_proj"): nn.Linear,
    ("c_attn", "c_proj"): Conv1D,
}
"""Supported names of an attention module's projections, with the output last, and their type without adapter. A fused projection holds the
rows of all queries, then of all keys, then of all values."""

_OTHER_PARTS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "query_layernorm", "key_layernorm", "rotary_emb")
"""Other modules that an attention module may have, in addition to dropout: they act on queries and keys only. Any other, such as a gate or
a norm of the output, changes what a head writes, so its circuits would not be products of the weights."""

_REWRITING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations of PEFT that change the base weights, so that the adapter's change is not the difference from the base model."""

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class _Rows:
    """Rows of a projection, [..., row, d_model], and their change as a product of thin factors.

    Attributes:
        weight: without the adapter, [..., row, d_model]; the output projection is transposed.
        left: [..., row, m]; m is 0 without an adapter.
        right: [..., m, d_model]; the change is left @ right.
    """

    weight: Tensor
    left: Tensor
    right: Tensor

    def part(self, start: int, stop: int) -> _Rows:
        """Return some of the rows."""
        return _Rows(self.weight[start:stop], self.left[start:stop], self.right)

    def heads(self, head_dim: int) -> _Rows:
        """Return the rows by head, [head, head_dim, ...], with factors of the smallest possible width: m is at most head_dim."""
        weight, left = self.weight.unflatten(0, (-1, head_dim)), self.left.unflatten(0, (-1, head_dim))
        right = self.right.expand(len(weight), *self.right.shape)
        if left.shape[-1] > head_dim:
            left, right = torch.eye(head_dim).to(left).expand(len(weight), head_dim, head_dim), left @ right
        return _Rows(weight, left, right)

    def at(self, heads: slice) -> _Rows:
        """Return some of the heads."""
        return _Rows(self.weight[heads], self.left[heads], self.right[heads])


@dataclass(frozen=True)
class _Change:
    """Change of one circuit of one head.

    Attributes:
        layer: index of the layer.
        head: index of the query head.
        circuit: one of "qk" and "ov".
        singular: singular values of the change, descending, float64; as many as the thin factors have columns.
        base_norm: Frobenius norm of the circuit without the adapter.
        d_model: width of the residual stream.
    """

    layer: int
    head: int
    circuit: str
    singular: np.ndarray
    base_norm: float
    d_model: int


def lora_geometry(model: nn.Module) -> pd.DataFrame:
    """Return size and rank of an adapter's change in the QK and OV circuit of every head.

    With query rows Wq_h, key and value rows Wk_g and Wv_g of the head's group (all [head_dim, d_model]) and output columns Wo_h [d_model,
    head_dim], the circuits are QK_h = Wq_h^T Wk_g and OV_h = Wo_h Wv_g (Elhage et al. 2021, "A Mathematical Framework for Transformer
    Circuits"). They are those of the weights alone: without rotary embedding (at relative distance 0), biases, softmax scale and gains of
    norms. The change is the circuit of the adapted weights, W + scaling B A, minus that of the base weights. It is a product of two factors
    with at most 2 head_dim inner columns (for each projection the adapter's r, or head_dim if that is less). The QR decompositions of the
    factors leave a core of that size with the same singular values. Everything is computed in float64 on the weights' device (CPU for MPS).

    Args:
        model: a `PeftModel` with one active, unmerged LoRA adapter on a causal language model of transformers, such as
            `open_checkpoint(adapter).model`. It may have any targets; those outside the attention have no effect.

    Returns:
        One row per layer, query head and circuit, in that order:

        - `layer`, `head`: indices from 0; layers without softmax attention have no rows;
        - `circuit`: "qk" or "ov";
        - `change_norm`: Frobenius norm of the change, in the weights' units; 0 if nothing changes;
        - `base_norm`: Frobenius norm of the circuit without the adapter, from ||X^T Y||_F^2 = trace(X X^T Y Y^T);
        - `relative`: change_norm / base_norm, a ratio; NaN if base_norm is 0;
        - `spectral_norm`: largest singular value of the change;
        - `stable_rank`: ||change||_F^2 / ||change||_2^2, from 1 to the rank; NaN if nothing changes;
        - `effective_rank`: exp of the entropy of the singular values divided by their sum (Roy & Vetterli 2007, "The effective rank"), from
          1 to the rank; NaN if nothing changes;
        - `rank`: number of singular values above d_model * eps(float64) * the largest, as in `numpy.linalg.matrix_rank`; 0 if nothing
          changes.

    Raises:
        CheckpointError: not exactly one LoRA adapter is active; it is merged, switched off, a variant such as DoRA, or its initialization
            changed the base weights; or the attention is of an unknown kind, quantized, or replaced by `modules_to_save`.
    """
    rows = []
    for change in _changes(model):
        singular = change.singular
        largest = float(singular.max(initial=0.0))
        norm = float(np.linalg.norm(singular))
        stable = effective = math.nan
        if largest > 0:
            stable = (norm / largest) ** 2
            effective = float(np.exp(entr(singular / singular.sum()).sum()))
        rows.append(
            {
                "layer": change.layer,
                "head": change.head,
                "circuit": change.circuit,
                "change_norm": norm,
                "base_norm": change.base_norm,
                "relative": norm / change.base_norm if change.base_norm > 0 else math.nan,
                "spectral_norm": largest,
                "stable_rank": stable,
                "effective_rank": effective,
                "rank": int((singular > largest * change.d_model * np.finfo(np.float64).eps).sum()),
            }
        )
    return pd.DataFrame(rows)


def lora_spectrum(model: nn.Module) -> pd.DataFrame:
    """Return the singular values of an adapter's change in the QK and OV circuit of every head (see `lora_geometry`).

    Args:
        model: as in `lora_geometry`.

    Returns:
        `layer`, `head`, `circuit`, `index` (from 0, the largest first) and `singular_value` (>= 0, in the weights' units). Each circuit has
        one row per inner column of its factors, which is at least the rank of the change: none if neither projection has an adapter.

    Raises:
        CheckpointError: as in `lora_geometry`.
    """
    changes = list(_changes(model))
    counts = [len(c.singular) for c in changes]
    return pd.DataFrame(
        {
            "layer": np.repeat(np.array([c.layer for c in changes], np.int64), counts),
            "head": np.repeat(np.array([c.head for c in changes], np.int64), counts),
            "circuit": np.repeat(np.array([c.circuit for c in changes], object), counts),
            "index": np.concatenate([np.arange(n) for n in counts]),
            "singular_value": np.concatenate([c.singular for c in changes]),
        }
    )


# --- the circuits ---------------------------------------------------------------------------------------------------


def _changes(model: nn.Module) -> Iterator[_Change]:
    adapter, root = _adapter(model)
    config = root.config.get_text_config(decoder=True)
    for layer, attention in _attentions(root).items():
        queries, keys, values, outputs = _projections(attention, config, adapter, f"layer {layer}'s {type(attention).__name__}")
        group = len(queries.weight) // len(keys.weight)
        for at in range(len(keys.weight)):  # the heads of a group share keys and values, so memory holds one group at a time
            heads, shared = slice(at * group, (at + 1) * group), slice(at, at + 1)
            pairs = {"qk": (queries.at(heads), keys.at(shared)), "ov": (outputs.at(heads), values.at(shared))}
            singular = {circuit: _singular_values(*pairs[circuit]) for circuit in _CIRCUITS}
            norms = {circuit: _base_norms(*pairs[circuit]) for circuit in _CIRCUITS}
            for member in range(group):
                for circuit in _CIRCUITS:
                    yield _Change(
                        layer=layer,
                        head=at * group + member,
                        circuit=circuit,
                        singular=singular[circuit][member],
                        base_norm=float(norms[circuit][member]),
                        d_model=queries.weight.shape[-1],
                    )


def _singular_values(x: _Rows, y: _Rows) -> np.ndarray:
    """Return the singular values of (X + dX)^T (Y + dY) - X^T Y = dX^T (Y + dY) + X^T dY for every head, [head, m].

    With dX = P Q and dY = S T this is [Q^T, X^T S] [P^T (Y + dY); T], which takes no difference of large numbers.

    Args:
        x: rows of each head of the group, [head, head_dim, d_model].
        y: rows that the heads share, [1, head_dim, d_model].
    """
    n_heads = len(x.weight)
    left = torch.cat((x.right.mT, x.weight.mT @ y.left), -1)
    right = torch.cat((x.left.mT @ (y.weight + y.left @ y.right), y.right.expand(n_heads, *y.right.shape[1:])), -2)
    if left.shape[-1] == 0:
        return np.zeros((n_heads, 0))
    # left = U L and right^T = V R with orthonormal columns in U and V, so the singular values are those of L R^T
    core = torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.mT, mode="r").R.mT
    return torch.linalg.svdvals(core).cpu().numpy()


def _base_norms(x: _Rows, y: _Rows) -> np.ndarray:
    """Return ||X^T Y||_F of every head, [head], from two Gram matrices of head_dim x head_dim."""
    squares = ((x.weight @ x.weight.mT) * (y.weight @ y.weight.mT)).sum((-2, -1))
    return squares.clamp(min=0).sqrt().cpu().numpy()  # rounding may make a zero negative


# --- the model's weights --------------------------------------------------------------------------------------------


def _adapter(model: nn.Module) -> tuple[str, PreTrainedModel]:
    """Return the name of the active LoRA adapter, and the model that it adapts."""
    if not isinstance(model, PeftModel):
        raise CheckpointError(f"{type(model).__name__} is not a PeftModel; open the folder of an adapter, not a full model")
    active = list(model.active_adapters)
    if len(active) != 1:
        raise CheckpointError(f"active adapters are {active}; activate exactly one with set_adapter")
    config: Any = model.peft_config[active[0]]
    if config.peft_type != PeftType.LORA:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise CheckpointError(f"adapter {active[0]!r} has type {kind}; only LoRA adapters are supported")
    for name, other in model.peft_config.items():  # adapters that are loaded but not active count too
        start = str(getattr(other, "init_lora_weights", "")).lower()
        if start.startswith(_REWRITING):
            raise CheckpointError(
                f"adapter {name!r} was initialized by {start}, which changes the base weights, so the original ones are not available; "
                "save it as plain LoRA first (PEFT's path_initial_model_for_weight_conversion)"
            )
    root = model.get_base_model()
    if not isinstance(root, PreTrainedModel):
        raise CheckpointError(f"the adapter's base is {type(root).__name__}; a causal language model of transformers is needed")
    layers = {name: module for name, module in root.named_modules() if isinstance(module, LoraLayer)}
    if not any(active[0] in module.lora_A for module in layers.values()):
        raise CheckpointError(f"adapter {active[0]!r} adapts no linear layer: the model has no lora_A of that name")
    for name, module in layers.items():
        if module.merged:
            raise CheckpointError(f"{name}: {module.merged_adapters} are merged into the base weights; call unmerge_adapter first")
        if module.disable_adapters:
            raise CheckpointError(f"{name}: its adapters are disabled; enable them first")
        if list(module.active_adapters) != active:
            raise CheckpointError(
                f"{name}: active adapters are {list(module.active_adapters)}, but {active} in the model; activate one with set_adapter"
            )
    return active[0], root


def _attentions(root: PreTrainedModel) -> dict[int, nn.Module]:
    """Return the attention module of every layer with softmax attention, by layer index."""
    found: dict[int, list[nn.Module]] = {layer: [] for layer in attention_layers(root.config)}
    for module in root.modules():
        layer = getattr(module, "layer_idx", None)
        if layer in found and _layout(module):
            found[layer].append(module)
    for name, module in root.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            inside = set(module.modules())
            layers = [layer for layer, modules in found.items() if inside.intersection(modules)]
            if layers:
                raise CheckpointError(
                    f"{name}: modules_to_save replaces the attention of layers {layers}, so the change is not that of LoRA alone; train "
                    "LoRA without modules_to_save on the attention"
                )
    for layer, modules in found.items():
        if len(modules) != 1:
            seen = [module for module in root.modules() if getattr(module, "layer_idx", None) == layer]
            kinds = "; ".join(f"{type(m).__name__} with {', '.join(n for n, _ in m.named_children())}" for m in modules or seen)
            allowed = " or ".join("/".join(names) for names in _LAYOUTS)
            raise CheckpointError(f"layer {layer}: expected one attention module with {allowed}, found {len(modules)} ({kinds or 'none'})")
    return {layer: modules[0] for layer, modules in found.items()}


def _layout(attention: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's projections; none if it is not a supported attention module."""
    children = dict(attention.named_children())
    return next((names for names in _LAYOUTS if all(name in children for name in names)), ())


def _projections(attention: nn.Module, config: Any, adapter: str, where: str) -> tuple[_Rows, _Rows, _Rows, _Rows]:
    """Return queries, keys, values and outputs, each [head, head_dim, d_model]."""
    names = _layout(attention)
    strange = [
        f"{name} ({type(module).__name__})"
        for name, module in attention.named_children()
        if name not in names + _OTHER_PARTS and not isinstance(module, nn.Dropout)
    ]
    if strange:
        raise CheckpointError(f"{where} also has {', '.join(strange)}; the circuits of such attention are not products of two weights")
    n_heads = int(config.num_attention_heads)
    head_dim = getattr(attention, "head_dim", None) or getattr(config, "head_dim", None)
    if not isinstance(head_dim, int):
        raise CheckpointError(f"{where}: head_dim is {head_dim!r}; the module or its config must have an integer head_dim")
    width = n_heads * head_dim
    rows = [_rows(attention.get_submodule(name), adapter, f"{where}.{name}", _LAYOUTS[names], name == names[-1]) for name in names]
    inputs, outputs = rows[:-1], rows[-1]
    if len(inputs) == 1:
        fused = inputs[0]
        n_rows = len(fused.weight)
        middle = (width + n_rows) // 2
        inputs = [fused.part(0, width), fused.part(width, middle), fused.part(middle, n_rows)]
    queries, keys, values = inputs
    shapes = [tuple(part.weight.shape) for part in (queries, keys, values, outputs)]
    n_groups, rest = divmod(len(keys.weight), head_dim)
    d_model = queries.weight.shape[-1]
    expected = [(width, d_model), (n_groups * head_dim, d_model), (n_groups * head_dim, d_model), (width, d_model)]
    if rest or n_groups == 0 or n_heads % n_groups or shapes != expected:
        raise CheckpointError(
            f"{where}: the weights of queries, keys, values and (transposed) output have shapes {shapes}; expected {n_heads} heads of size "
            f"{head_dim}, with key-value heads that each serve the same number of heads"
        )
    return queries.heads(head_dim), keys.heads(head_dim), values.heads(head_dim), outputs.heads(head_dim)


def _rows(module: nn.Module, adapter: str, where: str, kind: type[nn.Module], transposed: bool) -> _Rows:
    """Return a projection in float64, with one row per output, or per input if `transposed`."""
    base: Any = module.get_base_layer() if isinstance(module, LoraLinear) else module
    if not isinstance(base, kind):
        raise CheckpointError(f"{where} is {type(base).__name__}; a {kind.__name__} is needed, with or without LoRA")
    weight: Any = base.weight
    plain = type(weight) in (nn.Parameter, Tensor) and weight.dtype in _FLOATS and weight.ndim == 2 and weight.device.type != "meta"
    if not plain:
        raise CheckpointError(
            f"{where} ({type(base).__name__}) has no plain weights: {type(weight).__name__} of {weight.dtype}, {list(weight.shape)} on "
            f"{weight.device}; open the model in float32, bfloat16 or float16, without quantization or offloading"
        )
    device = torch.device("cpu") if weight.device.type == "mps" else weight.device  # MPS has no float64
    full = _float64(weight.T if kind is Conv1D else weight, device, where)  # [output, input]
    n_out, n_in = full.shape
    a, b = full.new_zeros(0, n_in), full.new_zeros(n_out, 0)
    if isinstance(module, LoraLinear) and adapter in module.lora_A:
        if adapter in module.lora_variant:
            name = type(module.lora_variant[adapter]).__name__
            raise CheckpointError(f"{where}: the adapter uses the variant {name}; only plain LoRA, which adds scaling B A, is supported")
        factors: Any = module.lora_A[adapter], module.lora_B[adapter]
        a = _float64(factors[0].weight, device, where)
        b = _float64(factors[1].weight, device, where) * float(module.scaling[adapter])
    return _Rows(full.T, a.T, b.T) if transposed else _Rows(full, b, a)


def _float64(tensor: Tensor, device: torch.device, where: str) -> Tensor:
    values = tensor.detach().to(device).double()
    if not bool(values.isfinite().all()):
        raise CheckpointError(f"{where}: the weights hold NaN or infinity; the checkpoint or the adapter is damaged")
    return values
