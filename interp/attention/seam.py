"""Replace a model's attention, from `connect` until `Connection.close`. This is the only module that touches a model's attention.

It uses transformers' `AttentionInterface` and `AttentionMaskInterface`. While a connection is open, each layer's queries, keys, values,
mask and scores go to a `StandIn`, which computes the layer's output. Afterwards the model is as it was. Models that bypass the two
interfaces raise a `RecordingError`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interp.attention.masks import LazyMask, lazy_mask
from interp.attention.statistics import Scores
from interp.tables.errors import RecordingError

_NAME = "primed_heads"
"""Name of our attention in transformers' two interfaces."""

_ACTIVE: ContextVar[tuple[Connection, ...]] = ContextVar("primed_heads_connections", default=())

_LOCK = threading.Lock()

_SWITCHED: dict[int, _Switch] = {}


class StandIn(Protocol):
    """Computes a model's attention in place of the model."""

    def covers(self, module: nn.Module) -> bool:
        """Return whether the module belongs to its model."""
        ...

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the arguments with which the model's decoder was called, before any of its layers."""
        ...

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: LazyMask, scores: Scores) -> Tensor:
        """Return the output of a layer, [batch, query, head, value_dim], given its number and its tensors, [batch, head, token, dim]."""
        ...


@dataclass
class _Switch:
    """A config whose attention is replaced while at least one connection needs it."""

    config: Any
    original: str
    users: int = 0


@dataclass(eq=False)
class Connection:
    """A stand-in connected to its model. Made by `connect`.

    Attributes:
        stand_in: computes the attention.
        root: the model.
        text_config: the model's config; for a multimodal model, the config of its text decoder.
        layers: indices of its attention layers.
    """

    stand_in: StandIn
    root: PreTrainedModel
    text_config: Any
    layers: tuple[int, ...]
    _configs: list[int] = field(default_factory=list)
    _hook: Any = None
    _token: Token[tuple[Connection, ...]] | None = None

    def _open(self) -> None:
        _switch_on(self.root, self._configs)
        try:
            # hook the decoder: PEFT calls the model's forward without the model's hooks, but every model calls its decoder
            self._hook = self.root.base_model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
            self._token = _ACTIVE.set((*_ACTIVE.get(), self))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Restore the model's own attention."""
        if self._token is not None:
            _ACTIVE.reset(self._token)
            self._token = None
        if self._hook is not None:
            self._hook.remove()
        _switch_off(self._configs)

    def has_config(self, config: Any) -> bool:
        """Return whether a mask requested with this config is for the model."""
        return config is self.text_config or id(config) in self._configs

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _connection_of(module) is self:  # otherwise another thread or an inner connection uses the model
            self.stand_in.begin(args, kwargs)


def connect(stand_in: StandIn, root: PreTrainedModel) -> Connection:
    """Replace the attention of a model and all its submodels by a stand-in, for calls from this thread.

    Raises:
        RecordingError: the model does not use transformers' `AttentionInterface`.
    """
    connection = Connection(stand_in, root, root.config.get_text_config(decoder=True), attention_layers(root.config))
    connection._open()
    return connection


def attention_layers(config: Any) -> tuple[int, ...]:
    """Return the indices of the layers with softmax attention, according to the config (hybrid models list the type of each layer)."""
    text = config.get_text_config(decoder=True)
    types = getattr(text, "layer_types", None)
    if types is None:
        return tuple(range(text.num_hidden_layers))
    return tuple(at for at, kind in enumerate(types[: text.num_hidden_layers]) if kind != "linear_attention" and "attention" in kind)


def text_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model: the given one, or the one that PEFT, DDP or FSDP wraps.

    Raises:
        RecordingError: there is no transformers model.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise RecordingError(f"{type(model).__name__} holds no transformers model (PreTrainedModel); only such models can be recorded")


def _switch_on(root: PreTrainedModel, switched: list[int]) -> None:
    """Replace the attention of every submodel, and count the connections that need it."""
    with _LOCK:
        models = [m for m in root.modules() if isinstance(m, PreTrainedModel)]
        for model in models:
            if not model._can_set_attn_implementation():
                raise RecordingError(
                    f"{type(model).__name__} does not use transformers' AttentionInterface, so its heads cannot be recorded; use one of "
                    "llama, mistral, qwen2, qwen3, gemma2, gemma3, gpt2, gpt_neox, phi3, olmo2, gpt_oss, deepseek_v3 or most other families"
                )
            if getattr(model.config, "reorder_and_upcast_attn", False):
                raise RecordingError(f"{type(model).__name__} with reorder_and_upcast_attn bypasses AttentionInterface; set it to False")
        for config in {id(m.config): m.config for m in models}.values():
            switch = _SWITCHED.setdefault(id(config), _Switch(config, str(config._attn_implementation)))
            switch.users += 1
            switched.append(id(config))
            config._attn_implementation_internal = _NAME


def _switch_off(switched: list[int]) -> None:
    with _LOCK:
        while switched:
            name = switched.pop()
            switch = _SWITCHED[name]
            switch.users -= 1
            if switch.users == 0:
                switch.config._attn_implementation_internal = switch.original
                del _SWITCHED[name]


def _original(config: Any) -> str:
    with _LOCK:
        switch = _SWITCHED.get(id(config))
        return config._attn_implementation if switch is None else switch.original


def _connection_of(module: nn.Module) -> Connection | None:
    return next((c for c in reversed(_ACTIVE.get()) if c.stand_in.covers(module)), None)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute an attention layer; transformers calls this for every layer while a connection is open."""
    connection = _connection_of(module)
    if connection is None:  # a forward of another thread, which is not recorded
        original = _original(module.config)
        eager: Callable[..., Any] = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)  # type: ignore[assignment]
        function = ALL_ATTENTION_FUNCTIONS.get_interface(original, eager)
        return function(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    layer = getattr(module, "layer_idx", None)
    if layer not in connection.layers:
        raise RecordingError(f"{type(module).__name__} has layer_idx {layer}; expected one of {list(connection.layers)}")
    if dropout > 0:
        raise RecordingError("the model is in training mode with attention dropout; call model.eval() to record it")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    scores = Scores(scale, kwargs.get("softcap"), kwargs.get("s_aux"), kwargs.get("position_bias"))
    mask = _layer_mask(module, query, key, attention_mask, kwargs)
    return connection.stand_in.attend(layer, query, key, value, mask, scores), None


def _mask_function(*args: Any, config: Any = None, **kwargs: Any) -> object:
    """Return a layer's mask; transformers calls this for every mask while a connection is open."""
    if any(c.has_config(config) for c in _ACTIVE.get()):
        mask = lazy_mask(*args, **kwargs)
        if mask.kv_offset + mask.kv_length != mask.q_offset + mask.q_length:  # `generate` makes masks before it calls any layer
            raise RecordingError("the cache is preallocated (static), which cannot be recorded; use the default dynamic cache")
        return mask
    original = _original(config)
    return ALL_MASK_ATTENTION_FUNCTIONS[original](*args, config=config, **kwargs)


AttentionInterface.register(_NAME, _attention)


AttentionMaskInterface.register(_NAME, _mask_function)


def _layer_mask(module: nn.Module, query: Tensor, key: Tensor, mask: object, kwargs: dict[str, Any]) -> LazyMask:
    """Return a layer's mask, given the arguments that transformers passes to its attention function."""
    causal = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise RecordingError(f"{type(module).__name__} is not causal; only causal self-attention can be recorded")
    if isinstance(mask, Tensor):
        mask = _tensor_mask(mask, query, key)
    if not isinstance(mask, LazyMask):
        raise RecordingError(
            f"{type(module).__name__} got a {type(mask).__name__} as its mask; a bool tensor, or a mask that transformers makes, is needed"
        )
    if (mask.q_length, mask.kv_length) != (query.shape[2], key.shape[2]):
        raise RecordingError(
            f"{type(module).__name__}: the mask is for {mask.q_length} queries and {mask.kv_length} keys, the layer has "
            f"{query.shape[2]} and {key.shape[2]}; preallocated (static) caches cannot be recorded"
        )
    return mask


def _tensor_mask(mask: Tensor, query: Tensor, key: Tensor) -> LazyMask:
    """Return the mask for a [batch, 1, query, key] tensor that the caller passed to the model."""
    if mask.dtype != torch.bool:
        raise RecordingError(f"the 4-dimensional attention mask has dtype {mask.dtype}; pass a bool mask or a 2-dimensional mask")
    if mask.shape[1] != 1:
        raise RecordingError(f"the attention mask has {mask.shape[1]} masks per example; only one mask for all heads can be recorded")
    batch, q_length, kv_length = query.shape[0], query.shape[2], key.shape[2]

    def rule(b: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return mask[b if mask.shape[0] > 1 else torch.zeros_like(b), 0, q, k]

    return LazyMask(batch, q_length, kv_length, 0, 0, rule, None, False, False, mask.device)
