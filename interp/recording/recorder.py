"""Record every attention head of a model during its ordinary forward pass: `with record(model, tokens) as heads: model(**tokens.inputs)`.

Inside the context the recording replaces the model's attention (`interp.attention.seam`): it computes the exact output of every layer and
the statistics of its heads in one pass. On exit, also after an exception, the model is as it was. A pass that did not record every layer
exactly once raises an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.attention.blocked import blocked_pass
from interp.attention.flash import flash_pass
from interp.attention.masks import LazyMask
from interp.attention.seam import Connection, attention_layers, connect, text_model
from interp.attention.statistics import KeySets, RowStatistics, Scores, Wanted, attention_output
from interp.measures.catalog import load_measures
from interp.measures.measure import Measure, ProbabilityBlock, Rows, key_sets
from interp.recording.backends import backend_of_layer, check_backend, choose_backend
from interp.recording.totals import HeadTotals, heads_table
from interp.tables.errors import NonFiniteError, RecordingError
from interp.tables.schema import REGIONS
from interp.tokens import Tokens


@dataclass(frozen=True)
class MapBlock:
    """A block of one layer's attention maps, passed on while it is computed.

    Attributes:
        layer: index of the layer.
        examples: which examples of the batch.
        heads: which heads.
        queries: positions of the queries in the padded batch.
        keys: positions of the keys in the padded batch; these queries give no attention to any other key.
        probabilities: [example, head, query, key] float32, overwritten after the reader returns. Rows of padding are meaningless.
        has_sink: whether the heads have an attention sink, which gets the rest of each row's probability.
    """

    layer: int
    examples: slice
    heads: slice
    queries: slice
    keys: slice
    probabilities: Tensor
    has_sink: bool


class MapReader(Protocol):
    """Reads every attention map of a pass block by block, without holding a complete map."""

    def read(self, block: MapBlock) -> None:
        """Read one block."""
        ...

    def end_layer(self, layer: int, n_keys: Tensor) -> None:
        """Note that all blocks of a layer were read, and the number of keys that each query may attend to, [batch, query]."""
        ...


@dataclass(frozen=True)
class _OnDevice:
    """Token sets, region weights, positions and lengths of the batch on one device."""

    sets: KeySets
    regions: Tensor
    positions: Tensor
    lengths: Tensor


@dataclass
class _Generated:
    """What is kept while a model generates: per layer the prompt's statistics, the new queries, and the keys of all tokens so far."""

    prompt: dict[int, tuple[RowStatistics, dict[str, Tensor]]] = field(default_factory=dict)
    queries: dict[int, list[Tensor]] = field(default_factory=dict)
    keys: dict[int, list[Tensor]] = field(default_factory=dict)
    calls: dict[int, tuple[LazyMask, Scores]] = field(default_factory=dict)


class Recording:
    """Statistics of every head for one batch of tokens. Made by `record`.

    Attributes:
        tokens: the texts; after `generate`, including the generated text.
        measures: by name.
        backend: "blocked", "flash" or "triton".
        backends: the backend that took each layer: `backend`, or "blocked" if that one cannot take the layer (`flash_obstacles`,
            `triton_obstacles`). Queries of generated text always use the blocked backend, whatever is listed here.
        maps: attention maps of the requested heads, {(layer, head): [batch, query, key] float32}, zero for padding.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: Tokens,
        measures: Mapping[str, Measure],
        backend: str | None,
        maps: Sequence[tuple[int, int]],
        seed: int,
        reader: MapReader | None = None,
    ) -> None:
        self._root = text_model(model)
        self._modules = {id(module) for module in model.modules()}
        config = self._root.config
        self._layers = attention_layers(config)
        self._seed = seed
        self.tokens = tokens
        self.measures = dict(measures)
        needs_maps = bool(maps) or reader is not None
        self.backend = backend or choose_backend(model, self.measures.values(), maps=needs_maps)
        check_backend(self.backend, model, self.measures.values(), maps=needs_maps)
        self.backends: dict[int, str] = {}
        thresholds = tuple(sorted({t for m in self.measures.values() for t in m.thresholds}))
        read = set().union(*(m.statistics for m in self.measures.values()))
        self._wanted = Wanted("max_prob" in read, thresholds, "distance" in read)
        self._reader = reader
        self._heads = int(config.get_text_config(decoder=True).num_attention_heads)
        unknown = [(la, h) for la, h in maps if la not in self._layers or not 0 <= h < self._heads]
        if unknown:
            raise RecordingError(unknown_head(*unknown[0], self._layers, self._heads))
        self._maps = tuple(maps)
        self.maps: dict[tuple[int, int], Tensor] = {}
        self._prepare(tokens)
        self._recorded: list[int] = []
        self._read: list[Tensor] = []
        self._generating = False
        self._generated = _Generated()
        self._totals: HeadTotals | None = None
        self._partial = HeadTotals(list(self.measures.values()), self._examples(), self._layers, self._heads)
        self._connection: Connection | None = None

    # --- inputs of the pass -------------------------------------------------------------------------------------

    def _examples(self) -> list[int]:
        numbers = [text.example for text in self.tokens.texts]
        if len(set(numbers)) != len(numbers):
            raise RecordingError(f"examples of the batch have the numbers {numbers}; each example needs its own")
        return numbers

    def _prepare(self, tokens: Tokens) -> None:
        """Compute token sets, pairs and region weights of the padded batch."""
        self._sets, self._columns, self._pairs = key_sets(tokens, list(self.measures.values()), self._seed)
        regions = [np.stack([t.in_region(name) & t.is_query for name in REGIONS]) for t in tokens.texts]
        self._regions = torch.from_numpy(tokens.pad(regions, False)).float()
        positions = tokens.pad([np.arange(len(t)) for t in tokens.texts], -1)
        self._positions = torch.from_numpy(positions)
        self._lengths = torch.tensor([len(t) for t in tokens.texts])
        self._copies: dict[torch.device, _OnDevice] = {}

    def _on(self, device: torch.device) -> _OnDevice:
        """Return the inputs of the pass on a layer's device, copying them at most once."""
        if device not in self._copies:
            self._copies[device] = _OnDevice(
                self._sets.to(device), self._regions.to(device), self._positions.to(device), self._lengths.to(device)
            )
        return self._copies[device]

    # --- the context ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Recording:
        if self._read or self._connection is not None:
            raise RecordingError("this recording was used before; a recording takes one pass, so call record again")
        self._connection = connect(self, self._root)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None  # it refers to the recording
        if kind is None:
            self._finish()

    # --- during the forward -----------------------------------------------------------------------------------------

    def covers(self, module: nn.Module) -> bool:
        """Return whether a module belongs to the recorded model."""
        return id(module) in self._modules

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check that a forward reads the tokens of the recording."""
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            raise RecordingError("the forward got no input_ids; call model(**tokens.inputs)")
        ids = ids.detach().cpu()
        self._generating = kwargs.get("past_key_values") is not None  # a plain forward creates its own cache, if any
        if not self._read:
            expected = self.tokens.inputs["input_ids"]
            if ids.shape != expected.shape or not torch.equal(ids, expected):
                raise RecordingError(
                    f"the forward reads other tokens, {tuple(ids.shape)}, than the recording was made for, {tuple(expected.shape)}; "
                    "beam search and several samples per prompt cannot be recorded"
                )
        elif ids.shape[0] != len(self.tokens):
            raise RecordingError(f"the forward reads {ids.shape[0]} texts; the recording was made for {len(self.tokens)}")
        self._read.append(ids)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: LazyMask, scores: Scores) -> Tensor:
        """Return one layer's attention output, and record its statistics."""
        if mask.q_offset > 0:
            return self._attend_generated(layer, query, key, value, mask, scores)
        differentiable = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
        if layer in self._recorded:
            raise RecordingError(f"layer {layer} was called twice; a recording takes one pass over its tokens")
        self._check_padding(mask)
        if self._reader is not None and self._generating:
            raise RecordingError("a reader cannot follow a model while it generates; call the model with use_cache=False")
        with torch.no_grad():
            sets = self._on(query.device).sets
            values = None if differentiable else value
            self.backends[layer] = backend_of_layer(self.backend, query, key, values, mask, scores, sets, self._wanted)
            output, rows, blocks = self._pass(query, key, values, mask, scores, sets, layer, self.backends[layer])
            if self._generating:  # measures need the complete text, and later queries need these keys
                self._generated.keys[layer] = [key.detach()]
                self._generated.prompt[layer] = (rows, blocks)
            else:
                self._add(layer, rows, blocks)
        self._recorded.append(layer)
        if self._reader is not None:
            self._reader.end_layer(layer, (rows.n_allowed - int(scores.sinks is not None)).clamp(min=0))
        return attention_output(query, key, value, mask, scores) if output is None else output

    def _check_padding(self, mask: LazyMask) -> None:
        if mask.q_length != mask.kv_length:
            raise RecordingError(
                "the first pass has a filled cache; record the complete text, or generate from the prompt in the recording"
            )
        given = mask.padding
        wanted = self.tokens.inputs["attention_mask"].bool()
        right = self.tokens.padding_side == "right"
        if given is None and (right or bool(wanted.all())):
            return
        if given is None or not torch.equal(given.cpu()[:, : wanted.shape[1]], wanted):
            raise RecordingError("the forward's attention_mask differs from that of the tokens; call model(**tokens.inputs)")

    def _pass(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        mask: LazyMask,
        scores: Scores,
        sets: KeySets,
        layer: int,
        backend: str,
    ) -> tuple[Tensor | None, RowStatistics, dict[str, Tensor]]:
        """Return output and statistics of a layer, and the values of measures that read the probabilities."""
        try:
            if backend == "flash":
                return *flash_pass(query, key, value, mask, scores, sets), {}
            if backend == "triton":
                from interp.attention.triton import triton_pass

                return *triton_pass(query, key, value, mask, scores, sets, self._wanted), {}
            return self._blocked_pass(query, key, value, mask, scores, sets, layer)
        except NonFiniteError as error:
            raise NonFiniteError(f"layer {layer}: {error}; is the checkpoint damaged, or the range of float16 exceeded?") from error

    def _blocked_pass(
        self, query: Tensor, key: Tensor, value: Tensor | None, mask: LazyMask, scores: Scores, sets: KeySets, layer: int
    ) -> tuple[Tensor | None, RowStatistics, dict[str, Tensor]]:
        """Return what `_pass` does, from the blocked backend, and fill the requested maps of the layer."""
        by_block = {name: m for name, m in self.measures.items() if "probabilities" in m.statistics}
        blocks = {name: torch.full(query.shape[:3], torch.nan, device=query.device) for name in by_block}
        maps = self._layer_maps(layer, query, key.shape[2])
        positions, reader = self._on(query.device).positions, self._reader

        def on_block(inside: tuple[slice, slice, slice], first: int, probabilities: Tensor) -> None:
            examples, heads, queries = inside
            rows = slice(queries.start + mask.q_offset, queries.stop + mask.q_offset)
            keys = slice(first, first + probabilities.shape[-1])
            block = ProbabilityBlock(probabilities, positions[examples, rows], positions[examples, keys])
            for name, measure in by_block.items():
                blocks[name][inside] = measure.compute(block).float()
            if reader is not None:
                reader.read(MapBlock(layer, examples, heads, rows, keys, probabilities, scores.sinks is not None))
            for head, kept in maps.items():
                if heads.start <= head < heads.stop:
                    first_row = kept.shape[1] - query.shape[2]
                    target = kept[examples, first_row + queries.start : first_row + queries.stop, keys]
                    target.copy_(probabilities[:, head - heads.start])

        wanted = replace(self._wanted, on_block=on_block if by_block or maps or reader else None)
        output, rows = blocked_pass(query, key, value, mask, scores, sets, wanted)
        for kept in maps.values():
            for of_text, start, stop in zip(kept, sets.starts, sets.stops, strict=True):
                of_text[:start] = of_text[stop:] = 0
        return output, rows, blocks

    def _layer_maps(self, layer: int, query: Tensor, n_keys: int) -> dict[int, Tensor]:
        """Return the requested maps of a layer by head, with room for the queries and keys of this pass."""
        batch, _, length, _ = query.shape
        for head in dict.fromkeys(head for at, head in self._maps if at == layer):
            prompt = self.maps.get((layer, head))  # after generation, the map of the prompt
            size = length if prompt is None else n_keys
            self.maps[layer, head] = query.new_zeros(batch, size, n_keys, dtype=torch.float32)
            if prompt is not None:
                self.maps[layer, head][:, : prompt.shape[1], : prompt.shape[2]] = prompt
        return {head: kept for (at, head), kept in self.maps.items() if at == layer}

    def _add(self, layer: int, statistics: RowStatistics, blocks: dict[str, Tensor], first: int = 0) -> None:
        """Evaluate the measures on the rows of a layer, which begin with query `first` of the padded batch."""
        device, length = statistics.entropy.device, statistics.entropy.shape[-1]
        here = self._on(device)
        rows = Rows(statistics, self._columns, self._pairs, here.positions[:, first : first + length], here.lengths)
        parts = []
        for name, measure in self.measures.items():
            value = blocks[name] if name in blocks else measure.compute(rows)
            value = value if measure.parts > 1 else value[None]
            parts.append(value.expand(measure.parts, *statistics.entropy.shape).transpose(0, 1))
        if not parts:  # a reader may need no measures
            return
        self._partial.update(layer, torch.cat(parts, 1), here.regions[..., first : first + length])

    # --- generation -------------------------------------------------------------------------------------------------

    def _attend_generated(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: LazyMask, scores: Scores) -> Tensor:
        """Return the output of a later step of generation, and keep its queries and keys until the text is complete."""
        held = self._generated.keys.get(layer)
        if held is None:
            raise RecordingError(f"layer {layer} continues a text whose prompt was not recorded; call model.generate with use_cache=True")
        length = query.shape[2]
        if sum(part.shape[2] for part in held) != mask.q_offset:
            raise RecordingError("the cache was truncated or reordered; assisted generation and beam search cannot be recorded")
        held.append(key[:, :, key.shape[2] - length :].detach().clone())
        self._generated.queries.setdefault(layer, []).append(query.detach())
        self._generated.calls[layer] = (mask, scores)
        return attention_output(query, key, value, mask, scores)

    def _finish_generated(self) -> None:
        """Annotate the complete text, and measure the rows of the prompt and those of the generated tokens."""
        prompt = self.tokens.width
        if len(self._read) > 1:
            new_ids = torch.cat(self._read[1:], 1).numpy()
            self.tokens = self.tokens.extend(new_ids, _stop_ids(self._root))
            self._prepare(self.tokens)
        for layer, (rows, blocks) in self._generated.prompt.items():
            self._add(layer, rows, blocks)
        for layer in list(self._generated.queries):
            mask, scores = self._generated.calls[layer]
            query = torch.cat(self._generated.queries.pop(layer), 2)
            key = torch.cat(self._generated.keys.pop(layer), 2)
            generated_mask = replace(
                mask, q_length=query.shape[2], kv_length=key.shape[2], q_offset=prompt, kv_offset=0, counted=None, _blocks={}, _cached=0
            )
            with torch.no_grad():
                sets = self._on(query.device).sets
                _, rows, blocks = self._pass(query, key, None, generated_mask, scores, sets, layer, "blocked")
                self._add(layer, rows, blocks, prompt)

    # --- results ----------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        missing = sorted(set(self._layers) - set(self._recorded))
        if missing:
            name = type(self._root).__name__
            if not self._read:
                raise RecordingError(f"nothing was recorded: {name} was not called inside the `with` block, in the same thread")
            raise RecordingError(
                f"{name}: {len(self._recorded)} of {len(self._layers)} attention layers were recorded, missing {missing[:8]}: they were "
                "not called, or they bypass transformers' AttentionInterface"
            )
        self._finish_generated()
        self._generated = _Generated()
        self._totals = self._partial

    @property
    def totals(self) -> HeadTotals:
        """Totals of the batch, from which the tables are made."""
        if self._totals is None:
            raise RecordingError("the recording is not complete; read its results after the `with` block")
        return self._totals

    def examples(self, model: str = "model") -> pd.DataFrame:
        """Return the `examples` table of this batch."""
        return self.totals.examples_table(model)

    def table(self, model: str = "model", seed: int = 0) -> pd.DataFrame:
        """Return the `heads` table of this batch: mean over its examples, with a bootstrap interval if there are several."""
        values, counts = self.totals.values()
        return heads_table(model, values, counts, self._layers, list(self.measures), seed)


def record(
    model: nn.Module,
    tokens: Tokens,
    measures: Iterable[str] | Mapping[str, Measure] | None = None,
    *,
    backend: str | None = None,
    maps: Sequence[tuple[int, int]] = (),
    seed: int = 0,
    reader: MapReader | None = None,
) -> Recording:
    """Return a context that records every attention head of a model during one pass over some tokens.

        with record(model, tokens) as heads:
            model(**tokens.inputs)
        heads.table()

    The pass may be a plain forward over `tokens`, or `model.generate(**tokens.inputs)` (greedy or sampled, one continuation per prompt);
    `heads.tokens` then includes the generated text. The model may have PEFT adapters, be wrapped, or be split over devices.

    Args:
        model: a causal language model of transformers.
        tokens: from `annotate`.
        measures: names, or `Measure` objects by name; None for all of `load_measures`.
        backend: "blocked", "flash", or "triton" (one GPU kernel, not yet run on a GPU); None for `choose_backend`. The blocked backend
            takes layers that this one cannot; `Recording.backends` lists the backend of each layer.
        maps: (layer, head) pairs whose complete attention map is kept.
        seed: of the shuffled token sets.
        reader: gets every map block by block while the model computes it; `measures` may then be empty ({}).

    Raises:
        RecordingError: at once, an unknown backend or head, or a backend that is ruled out; on entry, a model without transformers'
            `AttentionInterface`; inside, a forward over other tokens, a layer that is called twice, beam search, static caches; on exit, a
            layer that was not recorded.
        NonFiniteError: the attention is NaN or infinite.
        InputError: a measure is unknown.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; pass the model itself, such as checkpoint.model")
    if not isinstance(tokens, Tokens):
        raise TypeError(f"tokens is a {type(tokens).__name__}; make it with annotate(tokenizer, question, response)")
    measures = [measures] if isinstance(measures, str) else measures
    chosen = measures if isinstance(measures, Mapping) else load_measures(measures)
    return Recording(model, tokens, chosen, backend, maps, seed, reader)


def unknown_head(layer: int, head: int, layers: Sequence[int], n_heads: int) -> str:
    """Return the message for a head that the model does not have."""
    return f"no head {layer}.{head}: the model has layers {layers[0]} to {layers[-1]} with heads 0 to {n_heads - 1}"


def _stop_ids(model: PreTrainedModel) -> list[int]:
    stop = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
