"""Record every attention head of a model during its ordinary forward pass: `with record(model, tokens) as heads: model(**tokens.inputs)`.

The only file that touches a model's attention. It goes through transformers' attention seam (`AttentionInterface`): inside the context
the model's attention function is ours, which computes the layer's exact output and the heads' statistics in one pass; on leaving, also by
an exception, the model is as it was. Models that bypass the seam are refused, and so is a pass that did not record every layer once.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interp.attention import (
    FLASH_STATISTICS,
    KeySets,
    NonFiniteAttentionError,
    RowStatistics,
    Scores,
    Wanted,
    blocked_pass,
    flash_obstacles,
    flash_pass,
)
from interp.masks import LazyMask, lazy_mask
from interp.measures import Block, Measure, Rows, key_sets, load_measures
from interp.table import REGIONS
from interp.tokens import Tokens
from interp.totals import HeadTotals, heads_table

NAME = "primed_heads"
WAYS = ("blocked", "flash", "triton")

_ACTIVE: ContextVar[tuple[Recording, ...]] = ContextVar("primed_heads_recordings", default=())
_LOCK = threading.Lock()
_SWITCHED: dict[int, _Switch] = {}


class RecordingError(RuntimeError):
    """A model or a pass that cannot be recorded exactly; the message says why and what can be."""


@dataclass(frozen=True)
class MapBlock:
    """A block of one layer's attention maps, as it is computed.

    Attributes:
        layer: its number.
        examples: which rows of the batch.
        heads: which heads.
        queries: which tokens attend, counted in the padded batch.
        keys: which tokens they attend to; all others get nothing from these queries.
        probabilities: [example, head, query, key] float32; overwritten once the reader returns. Rows of padding mean nothing.
        has_sink: the heads have an attention sink, which takes what a row lacks to 1.
    """

    layer: int
    examples: slice
    heads: slice
    queries: slice
    keys: slice
    probabilities: Tensor
    has_sink: bool


class MapReader(Protocol):
    """Who wants every map of a pass but need not hold one: it is given block after block, and each layer's end."""

    def read(self, block: MapBlock) -> None:
        """Look at one block."""
        ...

    def end_layer(self, layer: int, n_keys: Tensor) -> None:
        """All blocks of a layer were read; `n_keys` says how many keys each query may see, [batch, query]."""
        ...


@dataclass
class _Switch:
    """One config whose attention is ours while at least one recording needs it."""

    config: Any
    original: str
    users: int = 0


def attention_layers(config: Any) -> tuple[int, ...]:
    """Numbers of the layers that have softmax attention, by the model's config (hybrid models name each layer's type)."""
    text = config.get_text_config(decoder=True)
    types = getattr(text, "layer_types", None)
    if types is None:
        return tuple(range(text.num_hidden_layers))
    return tuple(at for at, kind in enumerate(types[: text.num_hidden_layers]) if kind != "linear_attention" and "attention" in kind)


def choose_way(model: nn.Module, measures: Iterable[Measure], *, maps: bool = False, device: str | None = None) -> str:
    """How to record by default: "flash" on CUDA where every measure is linear in the probabilities or an entropy, else "blocked".

    On a CPU the blocked pass gives every measure for less than the flash way's calls cost (benchmarks/heads.py).
    Layers whose mask or scores the flash way cannot express are then blocked, each by itself (`Recording.ways`).
    """
    root = _text_model(model)
    device = device or next(root.parameters()).device.type
    return "flash" if device == "cuda" and not _obstacles("flash", root, measures, device, maps=maps) else "blocked"


def check_way(way: str, model: nn.Module, measures: Iterable[Measure], *, maps: bool = False) -> None:
    """Refuse a way that is unknown, or that measures, model or device do not allow, before any pass.

    Raises:
        RecordingError: with every reason.
    """
    if way not in WAYS:
        raise RecordingError(f"way is {way!r}; allowed: {', '.join(WAYS)}")
    root = _text_model(model)
    obstacles = _obstacles(way, root, measures, next(root.parameters()).device.type, maps=maps)
    if obstacles:
        raise RecordingError(f"the {way} way cannot be taken: {'; '.join(obstacles)}. The blocked way can")


def _obstacles(way: str, root: PreTrainedModel, measures: Iterable[Measure], device: str, *, maps: bool) -> list[str]:
    """Why a way cannot be taken, by measures, model and device. The blocked way always can."""
    if way == "blocked":
        return []
    whole = [m.info.name for m in measures if "probabilities" in m.statistics]
    found = ["maps cannot be had without the probabilities"] if maps else []
    if way == "flash":
        whole = [m.info.name for m in measures if m.thresholds or not m.statistics <= FLASH_STATISTICS]
        if getattr(root.config.get_text_config(decoder=True), "attn_logit_softcapping", None):
            found.append("the model caps its scores")
        if device not in ("cpu", "cuda"):
            found.append(f"no kernel on {device} returns its log-sum-exp")
    else:
        from interp.triton_pass import available

        usable, why = available(torch.device(device))
        found += [] if usable else [why]
    return ([f"{', '.join(whole)} cannot be had without the probabilities"] if whole else []) + found


def _text_model(model: nn.Module) -> PreTrainedModel:
    for module in model.modules():  # the model itself, or what PEFT, DDP or FSDP wrapped
        if isinstance(module, PreTrainedModel):
            return module
    raise RecordingError(f"{type(model).__name__} holds no transformers model; models of transformers can be recorded")


@dataclass(frozen=True)
class _OnDevice:
    """Token sets, region weights, positions and lengths of the batch on one device."""

    sets: KeySets
    regions: Tensor
    positions: Tensor
    lengths: Tensor


@dataclass
class _Written:
    """What is kept while a model writes: per layer the prompt's statistics, new queries, and keys of all tokens so far."""

    prompt: dict[int, tuple[RowStatistics, dict[str, Tensor]]] = field(default_factory=dict)
    queries: dict[int, list[Tensor]] = field(default_factory=dict)
    keys: dict[int, list[Tensor]] = field(default_factory=dict)
    calls: dict[int, tuple[LazyMask, Scores]] = field(default_factory=dict)


class Recording:
    """Statistics of every head for one batch of tokens. Made by `record`.

    Attributes:
        tokens: the texts; after `generate`, with what the model wrote.
        measures: by name.
        way: "blocked", "flash" or "triton": how statistics are to be taken.
        ways: by layer, how they were taken: "blocked" also where `way` cannot express the layer's mask, scores or sizes
            (`flash_obstacles`, `triton_obstacles`). Queries of text that the model wrote are always blocked, and not named here.
        maps: whole attention maps of the heads that were named, {(layer, head): [batch, query, key] float32}, zero at padding.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: Tokens,
        measures: Mapping[str, Measure],
        way: str | None,
        maps: Sequence[tuple[int, int]],
        seed: int,
        reader: MapReader | None = None,
    ) -> None:
        self._root = _text_model(model)
        self._modules = {id(module) for module in model.modules()}
        config = self._root.config
        self._text_config = config.get_text_config(decoder=True)
        self._layers = attention_layers(config)
        self._seed = seed
        self.tokens = tokens
        self.measures = dict(measures)
        whole = bool(maps) or reader is not None
        self.way = way or choose_way(model, self.measures.values(), maps=whole)
        check_way(self.way, model, self.measures.values(), maps=whole)
        self.ways: dict[int, str] = {}
        self._reader = reader
        self._heads = int(self._text_config.num_attention_heads)
        unknown = [(la, h) for la, h in maps if la not in self._layers or not 0 <= h < self._heads]
        if unknown:
            raise RecordingError(
                f"no head {unknown[0][0]}.{unknown[0][1]}: the model has layers {self._layers[0]} to {self._layers[-1]} "
                f"with heads 0 to {self._heads - 1}"
            )
        self._maps = tuple(maps)
        self.maps: dict[tuple[int, int], Tensor] = {}
        self._prepare(tokens)
        self._recorded: list[int] = []
        self._read: list[Tensor] = []
        self._writing = False
        self._written = _Written()
        self._totals: HeadTotals | None = None
        self._partial = HeadTotals(list(self.measures.values()), self._examples(), self._layers, self._heads)
        self._token: Token[tuple[Recording, ...]] | None = None
        self._switched: list[int] = []
        self._hook: Any = None

    # --- what the pass is given -------------------------------------------------------------------------------------

    def _examples(self) -> list[int]:
        numbers = [text.example for text in self.tokens.texts]
        if len(set(numbers)) != len(numbers):
            raise RecordingError(f"example numbers repeat within the batch: {numbers}")
        return numbers

    def _prepare(self, tokens: Tokens) -> None:
        """Token sets, pairs and region weights of the (padded) batch."""
        self._sets, self._columns, self._pairs = key_sets(tokens, list(self.measures.values()), self._seed)
        regions = [np.stack([t.in_region(name) & t.is_query for name in REGIONS]) for t in tokens.texts]
        self._regions = torch.from_numpy(tokens.pad(regions, False)).float()
        positions = tokens.pad([np.arange(len(t)) for t in tokens.texts], -1)
        self._positions = torch.from_numpy(positions)
        self._lengths = torch.tensor([len(t) for t in tokens.texts])
        self._copies: dict[torch.device, _OnDevice] = {}

    def _on(self, device: torch.device) -> _OnDevice:
        """What the pass needs on a layer's device, moved there once."""
        if device not in self._copies:
            self._copies[device] = _OnDevice(
                self._sets.to(device), self._regions.to(device), self._positions.to(device), self._lengths.to(device)
            )
        return self._copies[device]

    # --- switching --------------------------------------------------------------------------------------------------

    def __enter__(self) -> Recording:
        if self._read or self._token is not None:
            raise RecordingError("a recording takes one pass; call record again for another")
        _switch_on(self._root, self._switched)
        try:
            # PEFT calls the model's forward without its hooks, but every model calls its decoder
            self._hook = self._root.base_model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
            self._token = _ACTIVE.set((*_ACTIVE.get(), self))
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._leave()
        if kind is None:
            self._finish()

    def _leave(self) -> None:
        if self._token is not None:
            _ACTIVE.reset(self._token)
            self._token = None
        if self._hook is not None:
            self._hook.remove()
        _switch_off(self._switched)

    # --- during the forward -----------------------------------------------------------------------------------------

    def covers(self, module: nn.Module) -> bool:
        """The module belongs to the recorded model."""
        return id(module) in self._modules

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _recording_of(module) is not self:
            return  # another thread uses the model, or an inner recording takes this pass
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            raise RecordingError("the forward was given no input_ids, so it cannot be checked against the tokens")
        ids = ids.detach().cpu()
        self._writing = kwargs.get("past_key_values") is not None  # a plain forward makes its own cache, if any
        if not self._read:
            expected = self.tokens.inputs["input_ids"]
            if ids.shape != expected.shape or not torch.equal(ids, expected):
                raise RecordingError(
                    f"the forward reads other tokens ({tuple(ids.shape)}) than the recording was opened for "
                    f"({tuple(expected.shape)}); beams and several samples a prompt cannot be recorded"
                )
        elif ids.shape[0] != len(self.tokens):
            raise RecordingError(f"the forward reads {ids.shape[0]} texts, the recording was opened for {len(self.tokens)}")
        self._read.append(ids)

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: object,
        scaling: float | None,
        dropout: float,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, None]:
        """Compute one layer's attention output and take its statistics."""
        layer = getattr(module, "layer_idx", None)
        if layer not in self._layers:
            raise RecordingError(f"{type(module).__name__} says it is layer {layer}; expected one of {list(self._layers)}")
        differentiable = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        if dropout > 0:
            raise RecordingError("the model is in training mode with attention dropout; call model.eval() to record it")
        scores = Scores(scale, kwargs.get("softcap"), kwargs.get("s_aux"), kwargs.get("position_bias"))
        mask = self._mask(module, query, key, mask, kwargs)
        if mask.q_offset > 0:
            return self._attend_written(layer, query, key, value, mask, scores)
        if layer in self._recorded:
            raise RecordingError(f"layer {layer} was recorded twice: one recording takes one pass over its tokens")
        self._check_padding(mask)
        if self._reader is not None and self._writing:
            raise RecordingError("maps are read from a whole text, not while a model writes it; call the model with use_cache=False")
        with torch.no_grad():
            sets = self._on(query.device).sets
            values = None if differentiable else value
            self.ways[layer] = self._way_of(query, key, values, mask, scores, sets)
            output, rows, blocks = self._pass(query, key, values, mask, scores, sets, layer, self.ways[layer])
            if self._writing:  # later queries need these keys, and the text is measured when it is whole
                self._written.keys[layer] = [key.detach()]
                self._written.prompt[layer] = (rows, blocks)
            else:
                self._add(layer, rows, blocks)
        self._recorded.append(layer)
        if self._reader is not None:
            self._reader.end_layer(layer, (rows.n_allowed - int(scores.sinks is not None)).clamp(min=0))
        if output is None:
            output = _attention_output(query, key, value, mask, scores)
        return output, None

    def _mask(self, module: nn.Module, query: Tensor, key: Tensor, mask: object, kwargs: dict[str, Any]) -> LazyMask:
        causal = kwargs.get("is_causal")
        if not (getattr(module, "is_causal", True) if causal is None else causal):
            raise RecordingError(f"{type(module).__name__} is not causal: only causal self-attention can be recorded")
        if isinstance(mask, Tensor):
            mask = _tensor_mask(mask, query, key)
        if not isinstance(mask, LazyMask):
            raise RecordingError(f"{type(module).__name__} got a {type(mask).__name__} as its mask, so what it may attend to is not known")
        if (mask.q_length, mask.kv_length) != (query.shape[2], key.shape[2]):
            raise RecordingError(
                f"{type(module).__name__}: the mask is for {mask.q_length} queries and {mask.kv_length} keys, the layer has "
                f"{query.shape[2]} and {key.shape[2]}; preallocated (static) caches cannot be recorded"
            )
        return mask

    def _check_padding(self, mask: LazyMask) -> None:
        if mask.q_length != mask.kv_length:
            raise RecordingError("the first pass has a filled cache; record the whole text, or the prompt before it is continued")
        given = mask.padding
        wanted = self.tokens.inputs["attention_mask"].bool()
        right = self.tokens.padding_side == "right"
        if given is None and (right or bool(wanted.all())):
            return
        if given is None or not torch.equal(given.cpu()[:, : wanted.shape[1]], wanted):
            raise RecordingError("the forward's attention_mask does not fit the tokens; call model(**tokens.inputs)")

    def _wanted(self, on_block: Callable[[tuple[slice, slice, slice], int, Tensor], None] | None = None) -> Wanted:
        measures = self.measures.values()
        thresholds = tuple(sorted({t for m in measures for t in m.thresholds}))
        return Wanted(any("max_prob" in m.statistics for m in measures), thresholds, on_block)

    def _way_of(self, query: Tensor, key: Tensor, value: Tensor | None, mask: LazyMask, scores: Scores, sets: KeySets) -> str:
        """The way that takes a layer: the recording's, or the blocked one where that one cannot express the layer."""
        if self.way == "flash":
            return "blocked" if flash_obstacles(query, key, value, mask, scores, sets) else "flash"
        if self.way == "triton":
            from interp.triton_pass import triton_obstacles

            return "blocked" if triton_obstacles(query, key, value, mask, scores, sets, self._wanted()) else "triton"
        return self.way

    def _pass(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        mask: LazyMask,
        scores: Scores,
        sets: KeySets,
        layer: int,
        way: str,
    ) -> tuple[Tensor | None, RowStatistics, dict[str, Tensor]]:
        try:
            if way == "flash":
                return *flash_pass(query, key, value, mask, scores, sets), {}
            if way == "triton":
                from interp.triton_pass import triton_pass

                return *triton_pass(query, key, value, mask, scores, sets, self._wanted()), {}
            by_block = {name: m for name, m in self.measures.items() if "probabilities" in m.statistics}
            shape = (*query.shape[:3],)
            blocks = {name: torch.full(shape, torch.nan, device=query.device) for name in by_block}
            heads = [head for at, head in self._maps if at == layer]
            kept = {head: query.new_zeros(shape[0], shape[2], key.shape[2], dtype=torch.float32) for head in heads}
            for head, kept_map in kept.items():
                known = self.maps.get((layer, head))
                if known is not None:  # the prompt's map, from before the model wrote on
                    grown = kept_map.new_zeros(shape[0], key.shape[2], key.shape[2])
                    grown[:, : known.shape[1], : known.shape[2]] = known
                    self.maps[layer, head] = grown
                else:
                    self.maps[layer, head] = kept_map
            first_row = self.maps[layer, heads[0]].shape[1] - shape[2] if heads else 0
            positions, reader = self._on(query.device).positions, self._reader

            def on_block(inside: tuple[slice, slice, slice], first: int, probabilities: Tensor) -> None:
                examples, head_slice, queries = inside
                rows = slice(queries.start + mask.q_offset, queries.stop + mask.q_offset)
                keys = slice(first, first + probabilities.shape[-1])
                block = Block(probabilities, positions[examples, rows], positions[examples, keys])
                for name, measure in by_block.items():
                    blocks[name][inside] = measure.compute(block).float()
                if reader is not None:
                    reader.read(MapBlock(layer, examples, head_slice, rows, keys, probabilities, scores.sinks is not None))
                for head in heads:
                    if head_slice.start <= head < head_slice.stop:
                        target = self.maps[layer, head][examples, first_row + queries.start : first_row + queries.stop, keys]
                        target.copy_(probabilities[:, head - head_slice.start])

            wanted = self._wanted(on_block if by_block or heads or reader else None)
            output, rows = blocked_pass(query, key, value, mask, scores, sets, wanted)
            for head in heads:
                for kept_map, start, stop in zip(self.maps[layer, head], sets.starts, sets.stops, strict=True):
                    kept_map[:start] = kept_map[stop:] = 0
            return output, rows, blocks
        except NonFiniteAttentionError as error:
            raise NonFiniteAttentionError(f"layer {layer}: {error}; is the checkpoint damaged, or float16 too narrow?") from error

    def _add(self, layer: int, statistics: RowStatistics, blocks: dict[str, Tensor], first: int = 0) -> None:
        """Evaluate the measures on a layer's rows, the first of which is query `first` of the padded batch."""
        device, length = statistics.entropy.device, statistics.entropy.shape[-1]
        here = self._on(device)
        rows = Rows(statistics, self._columns, self._pairs, here.positions[:, first : first + length], here.lengths)
        parts = []
        for name, measure in self.measures.items():
            value = blocks[name] if name in blocks else measure.compute(rows)
            value = value if measure.parts > 1 else value[None]
            parts.append(value.expand(measure.parts, *statistics.entropy.shape).transpose(0, 1))
        if not parts:  # a reader may want the maps alone
            return
        self._partial.update(layer, torch.cat(parts, 1), here.regions[..., first : first + length])

    # --- generation -------------------------------------------------------------------------------------------------

    def _attend_written(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: LazyMask, scores: Scores) -> tuple[Tensor, None]:
        """A later step of a generating model: keep its queries and keys, whose statistics are taken once the text is whole."""
        held = self._written.keys.get(layer)
        if held is None:
            raise RecordingError(f"layer {layer} continues a text whose beginning was not recorded with use_cache")
        length = query.shape[2]
        if sum(part.shape[2] for part in held) != mask.q_offset:
            raise RecordingError("the cache was cut or reordered (assisted or beam search), which cannot be recorded")
        held.append(key[:, :, key.shape[2] - length :].detach().clone())
        self._written.queries.setdefault(layer, []).append(query.detach())
        self._written.calls[layer] = (mask, scores)
        return _attention_output(query, key, value, mask, scores), None

    def _finish_written(self) -> None:
        """Annotate the whole text, and measure the prompt's rows and those of the new tokens on it."""
        prompt = self.tokens.width
        if len(self._read) > 1:
            new_ids = torch.cat(self._read[1:], 1).numpy()
            self.tokens = self.tokens.extend(new_ids, _stop_ids(self._root))
            self._prepare(self.tokens)
        for layer, (rows, blocks) in self._written.prompt.items():
            self._add(layer, rows, blocks)
        for layer in list(self._written.queries):
            mask, scores = self._written.calls[layer]
            query = torch.cat(self._written.queries.pop(layer), 2)
            key = torch.cat(self._written.keys.pop(layer), 2)
            whole = replace(
                mask, q_length=query.shape[2], kv_length=key.shape[2], q_offset=prompt, kv_offset=0, counted=None, _blocks={}, _cached=0
            )
            with torch.no_grad():
                sets = self._on(query.device).sets
                _, rows, blocks = self._pass(query, key, None, whole, scores, sets, layer, "blocked")
                self._add(layer, rows, blocks, prompt)

    # --- results ----------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        missing = sorted(set(self._layers) - set(self._recorded))
        if missing:
            name = type(self._root).__name__
            if not self._read:
                raise RecordingError(f"nothing was recorded: {name} was not called inside the recording (in this thread)")
            raise RecordingError(
                f"{name}: {len(self._recorded)} of {len(self._layers)} attention layers were recorded, missing {missing[:8]}: "
                "the others bypass transformers' AttentionInterface"
            )
        self._finish_written()
        self._written = _Written()
        self._totals = self._partial

    @property
    def totals(self) -> HeadTotals:
        """The sums that the tables are made from."""
        if self._totals is None:
            raise RecordingError("the recording is not complete; read it after its `with` block")
        return self._totals

    def examples(self, model: str = "model") -> pd.DataFrame:
        """The `examples` table of this batch."""
        return self.totals.examples_table(model)

    def table(self, model: str = "model", seed: int = 0) -> pd.DataFrame:
        """The `heads` table of this batch: mean over its examples, with a bootstrap interval where there are several."""
        values, counts = self.totals.values()
        return heads_table(model, values, counts, self._layers, list(self.measures), seed)


def record(
    model: nn.Module,
    tokens: Tokens,
    measures: Iterable[str] | Mapping[str, Measure] | None = None,
    *,
    way: str | None = None,
    maps: Sequence[tuple[int, int]] = (),
    seed: int = 0,
    reader: MapReader | None = None,
) -> Recording:
    """Record every attention head of a model during one pass over some tokens.

        with record(model, tokens) as heads:
            model(**tokens.inputs)
        heads.table()

    The pass may be a plain forward over `tokens`, or `model.generate(**tokens.inputs)` (greedy or sampled, one continuation a prompt),
    whose own text is then part of `heads.tokens`. The model may carry PEFT adapters, be wrapped, or be split over devices.

    Args:
        model: a causal language model of transformers.
        tokens: from `annotate`.
        measures: names, or `Measure` objects by name; None for all that `load_measures` knows.
        way: "blocked", "flash", or "triton" (one GPU kernel, not yet run on a GPU); None chooses by `choose_way`. Layers that it cannot
            express are taken by the blocked way: `Recording.ways` says which.
        maps: (layer, head) of which the whole attention map is kept.
        seed: of the shuffled token sets.
        reader: is given every map block by block while the model computes it; `measures` may then be empty ({}).

    Raises:
        RecordingError: on entering: a model without the attention seam, an unknown way or head. On leaving: a layer that was not
            recorded. Inside: a forward over other tokens, a layer recorded twice, beams, static caches.
        NonFiniteAttentionError: NaN in attention.
        MeasureError: an unknown measure.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give the model itself (checkpoint.model)")
    if not isinstance(tokens, Tokens):
        raise TypeError(f"tokens is a {type(tokens).__name__}; annotate(tokenizer, question, response) makes them")
    measures = [measures] if isinstance(measures, str) else measures
    chosen = measures if isinstance(measures, Mapping) else load_measures(measures)
    return Recording(model, tokens, chosen, way, maps, seed, reader)


def _stop_ids(model: PreTrainedModel) -> list[int]:
    stop = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)


# --- the seam -------------------------------------------------------------------------------------------------------


def _switch_on(root: PreTrainedModel, switched: list[int]) -> None:
    """Make ours the attention of every submodel, counting the recordings that need it."""
    with _LOCK:
        models = [m for m in root.modules() if isinstance(m, PreTrainedModel)]
        for model in models:
            if not model._can_set_attn_implementation():
                raise RecordingError(
                    f"{type(model).__name__} does not use transformers' AttentionInterface, so its heads cannot be recorded; "
                    "llama, mistral, qwen2, qwen3, gemma2, gemma3, gpt2, gpt_neox, phi3, olmo2, gpt_oss, deepseek_v3 and most others do"
                )
            if getattr(model.config, "reorder_and_upcast_attn", False):
                raise RecordingError(f"{type(model).__name__} with reorder_and_upcast_attn bypasses the attention seam; set it to False")
        for config in {id(m.config): m.config for m in models}.values():
            switch = _SWITCHED.setdefault(id(config), _Switch(config, str(config._attn_implementation)))
            switch.users += 1
            switched.append(id(config))
            config._attn_implementation_internal = NAME


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


def _recording_of(module: nn.Module) -> Recording | None:
    return next((r for r in reversed(_ACTIVE.get()) if r.covers(module)), None)


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
    """What transformers calls for every attention layer while a recording is open."""
    recording = _recording_of(module)
    if recording is not None:
        return recording.attend(module, query, key, value, attention_mask, scaling, dropout, kwargs)
    original = _original(module.config)  # another thread's forward, unrecorded
    eager: Callable[..., Any] = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)  # type: ignore[assignment]
    function = ALL_ATTENTION_FUNCTIONS.get_interface(original, eager)
    return function(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)


def _mask_function(*args: Any, config: Any = None, **kwargs: Any) -> object:
    """What transformers calls for a layer's mask while a recording is open."""
    if any(config is r._text_config or id(config) in r._switched for r in _ACTIVE.get()):
        mask = lazy_mask(*args, **kwargs)
        if mask.kv_offset + mask.kv_length != mask.q_offset + mask.q_length:  # generate makes masks before any layer is called
            raise RecordingError("the cache has room for tokens to come; preallocated (static) caches cannot be recorded")
        return mask
    original = _original(config)
    return ALL_MASK_ATTENTION_FUNCTIONS[original](*args, config=config, **kwargs)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask_function)


def _tensor_mask(mask: Tensor, query: Tensor, key: Tensor) -> LazyMask:
    """A ready-made [batch, 1, query, key] mask, as a model's user may pass it."""
    if mask.dtype != torch.bool:
        raise RecordingError("a 4-dimensional attention mask of numbers cannot be recorded; pass a 2-dimensional or a bool mask")
    if mask.shape[1] != 1:
        raise RecordingError("attention masks that differ by head cannot be recorded")
    batch, q_length, kv_length = query.shape[0], query.shape[2], key.shape[2]

    def rule(b: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return mask[b if mask.shape[0] > 1 else torch.zeros_like(b), 0, q, k]

    return LazyMask(batch, q_length, kv_length, 0, 0, rule, None, False, False, mask.device)


def _attention_output(query: Tensor, key: Tensor, value: Tensor, mask: LazyMask, scores: Scores) -> Tensor:
    """The layer's output alone, [batch, query, head, value_dim]: for decoding steps and where gradients flow."""
    batch, heads, length, _ = query.shape
    groups = heads // key.shape[1]
    start = 0
    block = mask.block(slice(0, batch), 0, length, start, key.shape[2], query.device, padded=True)
    allowed = torch.zeros(block.allowed.shape[0], 1, length, key.shape[2], dtype=torch.bool, device=query.device)
    allowed[..., block.first : block.open_until] = True
    allowed[..., block.open_until : block.last] = block.allowed[:, None]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if scores.softcap is None and scores.sinks is None and scores.bias is None:
        output = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scores.scaling)
        return output.transpose(1, 2).contiguous()
    score = (query @ key.transpose(2, 3)).float() * scores.scaling
    if scores.softcap is not None:
        score = torch.tanh(score / scores.softcap) * scores.softcap
    if scores.bias is not None:
        score = score + scores.bias
    score = score.masked_fill(~allowed, torch.finfo(torch.float32).min)
    if scores.sinks is not None:
        sink = scores.sinks.float().view(1, -1, 1, 1).expand(batch, heads, length, 1)
        score = torch.cat([score, sink], -1)
    prob = score.softmax(-1)[..., : key.shape[2]].to(value.dtype)
    return (prob @ value).transpose(1, 2).contiguous()
