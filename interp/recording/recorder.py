"""Record every attention head of a model during its ordinary forward pass: `with record(model, tokens) as heads: model(**tokens.inputs)`.

Inside the context the recording stands in for the model's attention (`interp.attention.seam`): it computes every layer's exact output and the heads'
statistics in one pass. On leaving, also by an exception, the model is as it was. A pass that did not record every layer once is refused.
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
from interp.measures.measure import Block, Measure, Rows, key_sets
from interp.recording.backends import backend_of_layer, check_backend, choose_backend
from interp.recording.totals import HeadTotals, heads_table
from interp.tables.errors import NonFiniteError, RecordingError
from interp.tables.schema import REGIONS
from interp.tokens import Tokens


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
        backend: "blocked", "flash" or "triton": how statistics are to be taken.
        backends: by layer, how they were taken: "blocked" also where `backend` cannot express the layer's mask, scores or sizes
            (`flash_obstacles`, `triton_obstacles`). Queries of text that the model wrote are always blocked, and not named here.
        maps: whole attention maps of the heads that were named, {(layer, head): [batch, query, key] float32}, zero at padding.
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
        whole = bool(maps) or reader is not None
        self.backend = backend or choose_backend(model, self.measures.values(), maps=whole)
        check_backend(self.backend, model, self.measures.values(), maps=whole)
        self.backends: dict[int, str] = {}
        thresholds = tuple(sorted({t for m in self.measures.values() for t in m.thresholds}))
        read = set().union(*(m.statistics for m in self.measures.values()))
        self._wanted = Wanted("max_prob" in read, thresholds, "distance" in read)
        self._reader = reader
        self._heads = int(config.get_text_config(decoder=True).num_attention_heads)
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
        self._connection: Connection | None = None

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

    # --- the context ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Recording:
        if self._read or self._connection is not None:
            raise RecordingError("a recording takes one pass; call record again for another")
        self._connection = connect(self, self._root)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None  # which holds the recording
        if kind is None:
            self._finish()

    # --- during the forward -----------------------------------------------------------------------------------------

    def covers(self, module: nn.Module) -> bool:
        """The module belongs to the recorded model."""
        return id(module) in self._modules

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check that a forward reads the tokens."""
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

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: LazyMask, scores: Scores) -> Tensor:
        """Compute one layer's attention output and take its statistics."""
        if mask.q_offset > 0:
            return self._attend_written(layer, query, key, value, mask, scores)
        differentiable = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
        if layer in self._recorded:
            raise RecordingError(f"layer {layer} was recorded twice: one recording takes one pass over its tokens")
        self._check_padding(mask)
        if self._reader is not None and self._writing:
            raise RecordingError("maps are read from a whole text, not while a model writes it; call the model with use_cache=False")
        with torch.no_grad():
            sets = self._on(query.device).sets
            values = None if differentiable else value
            self.backends[layer] = backend_of_layer(self.backend, query, key, values, mask, scores, sets, self._wanted)
            output, rows, blocks = self._pass(query, key, values, mask, scores, sets, layer, self.backends[layer])
            if self._writing:  # later queries need these keys, and the text is measured when it is whole
                self._written.keys[layer] = [key.detach()]
                self._written.prompt[layer] = (rows, blocks)
            else:
                self._add(layer, rows, blocks)
        self._recorded.append(layer)
        if self._reader is not None:
            self._reader.end_layer(layer, (rows.n_allowed - int(scores.sinks is not None)).clamp(min=0))
        return attention_output(query, key, value, mask, scores) if output is None else output

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
        try:
            if backend == "flash":
                return *flash_pass(query, key, value, mask, scores, sets), {}
            if backend == "triton":
                from interp.attention.triton import triton_pass

                return *triton_pass(query, key, value, mask, scores, sets, self._wanted), {}
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

            wanted = replace(self._wanted, on_block=on_block if by_block or heads or reader else None)
            output, rows = blocked_pass(query, key, value, mask, scores, sets, wanted)
            for head in heads:
                for kept_map, start, stop in zip(self.maps[layer, head], sets.starts, sets.stops, strict=True):
                    kept_map[:start] = kept_map[stop:] = 0
            return output, rows, blocks
        except NonFiniteError as error:
            raise NonFiniteError(f"layer {layer}: {error}; is the checkpoint damaged, or float16 too narrow?") from error

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

    def _attend_written(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: LazyMask, scores: Scores) -> Tensor:
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
        return attention_output(query, key, value, mask, scores)

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
    backend: str | None = None,
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
        backend: "blocked", "flash", or "triton" (one GPU kernel, not yet run on a GPU); None chooses by `choose_way`. Layers that it cannot
            express are taken by the blocked backend: `Recording.backends` says which.
        maps: (layer, head) of which the whole attention map is kept.
        seed: of the shuffled token sets.
        reader: is given every map block by block while the model computes it; `measures` may then be empty ({}).

    Raises:
        RecordingError: on entering: a model without the attention seam, an unknown backend or head. On leaving: a layer that was not
            recorded. Inside: a forward over other tokens, a layer recorded twice, beams, static caches.
        NonFiniteError: NaN in attention.
        InputError: an unknown measure.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give the model itself (checkpoint.model)")
    if not isinstance(tokens, Tokens):
        raise TypeError(f"tokens is a {type(tokens).__name__}; annotate(tokenizer, question, response) makes them")
    measures = [measures] if isinstance(measures, str) else measures
    chosen = measures if isinstance(measures, Mapping) else load_measures(measures)
    return Recording(model, tokens, chosen, backend, maps, seed, reader)


def _stop_ids(model: PreTrainedModel) -> list[int]:
    stop = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
