"""The triton backend: every per-query statistic of `blocked_pass` from one flash-attention kernel, without a [query, key] tensor.

The kernel (`interp.attention.triton_kernel`) reads queries and keys once, in the model's dtype, and accumulates output and statistics in
float32. Counts above a threshold take a second pass over the few tiles that may hold such a key, and query-key pairs take one more read of
their keys. The number of keys that a query may attend to, in total and in each token set, is the same for every head and layer, so it is
counted once, outside the kernel.

Triton is imported when the pass runs. With TRITON_INTERPRET=1 in the environment before that, the kernel runs on a CPU (slowly, for tests).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.attention.masks import LazyMask
from interp.attention.statistics import KeySets, RowStatistics, Scores, Wanted, raise_if_not_finite, with_sink

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

MAX_DIM = 256
"""Largest head size."""

MAX_COLUMNS = 64
"""Maximum number of columns of token sets."""

MAX_BATCH_HEADS = 65_535
"""CUDA's limit for the second dimension of a grid."""

_LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class TileSizes:
    """Queries and keys of a tile, and the number of warps and pipeline stages that Triton compiles for."""

    queries: int
    keys: int
    warps: int
    stages: int = 2


HALF_TILES = {64: TileSizes(128, 64, 8), 128: TileSizes(128, 64, 8), 256: TileSizes(64, 32, 8)}
"""Tiles for bfloat16 and float16, by largest head size. Chosen so that compute capability 9.0 spills almost no registers, according to the
assembler; not tuned on a device."""

_FLOAT_TILES = {64: TileSizes(32, 32, 8), 128: TileSizes(32, 32, 8), 256: TileSizes(16, 32, 8)}
"""Tiles for float32, by largest head size. Its products do not use the tensor cores: TF32 would lose the precision of float32."""


@functools.cache
def _interpreted() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


def available(device: torch.device) -> tuple[bool, str]:
    """Return whether the kernel can run on a device, and the reason if it cannot."""
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    if _interpreted():
        return (True, "") if device.type == "cpu" else (False, f"Triton's interpreter runs on the cpu, not on {device.type}")
    if device.type != "cuda":
        return False, f"the kernel runs on cuda, not on {device.type}"
    if torch.version.cuda is not None and torch.cuda.get_device_capability(device) < (8, 0):
        return False, f"the kernel needs compute capability 8.0, {torch.cuda.get_device_name(device)} has less"
    return True, ""


def triton_obstacles(
    query: Tensor, key: Tensor, value: Tensor | None, mask: LazyMask, scores: Scores, sets: KeySets, wanted: Wanted
) -> list[str]:
    """Return every reason why `triton_pass` cannot take a layer; an empty list if it can.

    It supports causal masks and causal sliding windows with contiguous real tokens (padding left, right or both), soft caps and sinks. It
    does not support chunked, packed and custom masks, padding between real tokens, a position bias, or sizes above its constants.

    Args: as `triton_pass`.
    """
    found = []
    edges = zip(mask.real_keys, sets.starts, sets.stops, strict=True)
    contiguous = all(first <= start and stop <= last for (first, last), start, stop in edges)
    if not (mask.plain_causal or mask.window is not None) or not contiguous or scores.bias is not None or scores.scaling <= 0:
        found.append("it needs a causal or sliding-window mask with padding at the ends only, a positive scaling and no position bias")
    if wanted.on_block is not None:
        found.append("it does not keep the probabilities that a measure or a map needs")
    if any(not 0 < t < 1 for t in wanted.thresholds):
        found.append(f"thresholds are {wanted.thresholds}; it needs numbers between 0 and 1")
    dtypes = {t.dtype for t in (query, key, value) if t is not None}
    if len(dtypes) != 1 or query.dtype not in _DTYPES:
        found.append(f"it needs query, key and value in one of bfloat16, float16 and float32, got {', '.join(sorted(map(str, dtypes)))}")
    dim = max(query.shape[-1], 0 if value is None else value.shape[-1])
    if dim > MAX_DIM or sets.columns.shape[-1] > MAX_COLUMNS:
        found.append(f"it takes head sizes up to {MAX_DIM} and {MAX_COLUMNS} columns of token sets, got {dim} and {sets.columns.shape[-1]}")
    if query.shape[0] * query.shape[1] > MAX_BATCH_HEADS:
        found.append(f"it takes at most {MAX_BATCH_HEADS} heads of all texts together, got {query.shape[0] * query.shape[1]}")
    can, why = available(query.device)
    return found if can else [*found, why]


@dataclass(frozen=True)
class _Prepared:
    """What every layer with this mask and these key sets shares, on one device.

    Attributes:
        sets: the key sets.
        device: the device.
        bounds: first and one-past-last query, first and one-past-last key of each example, as positions among the keys held,
            [4, batch] int32.
        real: which queries are real tokens, [batch, 1, query].
        columns: the sets' columns, padded with zeros to a power of two; bfloat16 if that is exact.
        n_allowed: number of allowed keys, [batch, query].
        set_sizes: number of allowed keys in each token set, [batch, query, column].
        pair_starts: where each query's pairs begin and end in the two lists that follow, [batch, query + 1] int32.
        pair_keys: key of each pair, as a position among the keys held.
        pair_numbers: set number of each pair.
        pair_sizes: number of allowed keys in each set of pairs, [set, batch, query].
    """

    sets: KeySets
    device: torch.device
    bounds: Tensor
    real: Tensor
    columns: Tensor
    n_allowed: Tensor
    set_sizes: Tensor
    pair_starts: Tensor
    pair_keys: Tensor
    pair_numbers: Tensor
    pair_sizes: Tensor


def _prepare(mask: LazyMask, sets: KeySets, device: torch.device) -> _Prepared:
    """Return what every layer with this mask and these key sets shares, stored at the mask after the first call."""
    known = mask.prepared
    if isinstance(known, _Prepared) and known.sets is sets and known.device == device:
        return known
    shift = mask.q_offset - mask.kv_offset
    key_starts, key_stops = zip(*mask.real_keys, strict=True)
    edges = (
        sets.starts,
        sets.stops,
        tuple(max(pair) for pair in zip(sets.starts, key_starts, strict=True)),
        tuple(min(pair) for pair in zip(sets.stops, key_stops, strict=True)),
    )
    bounds = torch.tensor(edges, dtype=torch.int32, device=device)
    start, stop, key_start, key_stop = bounds.long()[:, :, None]
    rows = torch.arange(shift, shift + mask.q_length, device=device)[None]
    real = (rows >= start) & (rows < stop)
    first = key_start if mask.window is None else torch.maximum(key_start, rows - mask.window + 1)
    # an empty range for padding and for queries without keys
    last = torch.where(real, torch.minimum(rows + 1, key_stop), 0).clamp(0, mask.kv_length)
    first = torch.minimum(first, last).expand_as(last)
    width = sets.columns.shape[-1]
    before = F.pad(sets.columns.double().cumsum(1), (0, 0, 1, 0))
    before_last, before_first = (before.gather(1, at[..., None].expand(-1, -1, width)) for at in (last, first))
    pair_starts, pair_keys, pair_numbers, pair_sizes = _prepared_pairs(sets, shift, first, last)
    made = _Prepared(
        sets=sets,
        device=device,
        bounds=bounds,
        real=real[:, None],
        columns=_prepared_columns(sets.columns),
        n_allowed=(last - first).float(),
        set_sizes=(before_last - before_first).float(),
        pair_starts=pair_starts,
        pair_keys=pair_keys,
        pair_numbers=pair_numbers,
        pair_sizes=pair_sizes,
    )
    mask.prepared = made
    return made


def _prepared_columns(columns: Tensor) -> Tensor:
    """Return the columns padded to a power of two, so that the kernel can load complete rows ahead of their use; bfloat16 if exact."""
    narrow = columns.bfloat16()
    exact = bool(torch.equal(narrow.float(), columns.float()))
    width = columns.shape[-1]
    return F.pad(narrow if exact else columns.float(), (0, _power_of_two(width) - width)).contiguous()


def _prepared_pairs(sets: KeySets, shift: int, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return `pair_starts`, `pair_keys`, `pair_numbers` and `pair_sizes` of `_Prepared`.

    Args:
        sets: the key sets.
        shift: position of the first query among the keys held.
        first: first key that each query may attend to, [batch, query].
        last: one past the last key that each query may attend to, [batch, query].
    """
    length = last.shape[1]
    starts, lists, sizes = [], [], torch.zeros(sets.n_pair_sets, *last.shape, device=last.device)
    n_listed = 0
    for example, pairs in enumerate(sets.pairs):
        query, key, number = pairs[:, (pairs[0] >= shift) & (pairs[0] < shift + length)].long()  # sorted by query
        query = query - shift
        starts.append(n_listed + torch.searchsorted(query.contiguous(), torch.arange(length + 1, device=last.device)))
        lists.append(torch.stack([key, number]))
        allowed = (key >= first[example, query]) & (key < last[example, query])
        sizes[:, example].index_put_((number, query), allowed.float(), accumulate=True)
        n_listed += len(query)
    keys, numbers = torch.cat(lists, 1).int()
    return torch.stack(starts).int().contiguous(), keys.contiguous(), numbers.contiguous(), sizes


def tile_sizes(dtype: torch.dtype, dim: int) -> TileSizes:
    """Return the tile for a dtype and a head size."""
    table = _FLOAT_TILES if dtype == torch.float32 else HALF_TILES
    return next(tile for largest, tile in table.items() if dim <= largest)


def _power_of_two(n: int, least: int = 16) -> int:
    return max(least, 1 << (n - 1).bit_length())


def triton_pass(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch kv_head key dim"],
    value: Float[Tensor, "batch kv_head key value_dim"] | None,
    mask: LazyMask,
    scores: Scores,
    sets: KeySets,
    wanted: Wanted,
) -> tuple[Float[Tensor, "batch query head value_dim"] | None, RowStatistics]:
    """Compute a layer's output and every statistic of its queries in one flash-attention pass.

    Products of bfloat16 and float16 run on the tensor cores with float32 sums, as in the model's own flash attention. float32 stays
    float32. Only the output uses rounded probabilities, as in every flash kernel; statistics do not.

    Args and returns: as `blocked_pass`, without `wanted.on_block`. Every row outside [starts, stops) is zero.

    Raises:
        ValueError: `triton_obstacles` rules the layer out; the message has every reason.
        NonFiniteError: the attention of a real token is NaN or infinite.
    """
    obstacles = triton_obstacles(query, key, value, mask, scores, sets, wanted)
    if obstacles:
        raise ValueError(f"the triton backend cannot take this layer: {'; '.join(obstacles)}. Use the blocked backend")
    prepared = _prepare(mask, sets, query.device)
    results = _Results.empty(query, 0 if value is None else value.shape[-1], sets, wanted)
    _launch(query, key, value, mask, scores, wanted, prepared, results)
    lse, entropy, collision, distance, top = results.statistics
    share, entropy, collision = with_sink(lse, entropy, collision, scores.sinks, slice(0, query.shape[1]))
    if share is not None:  # padding has no keys, so there the sink alone would decide
        entropy, collision = (t.where(prepared.real, 0.0) for t in (entropy, collision))
    raise_if_not_finite(entropy)
    rows = RowStatistics(
        n_allowed=prepared.n_allowed if share is None else (prepared.n_allowed + 1).where(prepared.real[:, 0], 0.0),
        set_sizes=prepared.set_sizes,
        masses=results.masses,
        pair_masses=results.pair_masses,
        pair_sizes=prepared.pair_sizes,
        distance=distance if wanted.distance else None,
        entropy=entropy,
        collision=collision,
        max_prob=top if wanted.max_prob else None,
        above=dict(zip(wanted.thresholds, results.above, strict=True)),
    )
    return None if value is None else results.output, rows


@dataclass(frozen=True)
class _Results:
    """The tensors that the kernel fills.

    Attributes:
        output: [batch, query, head, value_dim] in the model's dtype.
        statistics: log-sum-exp, entropy, collision, distance and largest probability, [5, batch, head, query].
        masses: [column, batch, head, query].
        above: [threshold, batch, head, query].
        pair_masses: [set, batch, head, query].
    """

    output: Tensor
    statistics: Tensor
    masses: Tensor
    above: Tensor
    pair_masses: Tensor

    @staticmethod
    def empty(query: Tensor, value_dim: int, sets: KeySets, wanted: Wanted) -> _Results:
        """Return tensors that are not initialized."""
        batch, heads, length, _ = query.shape

        def rows(n: int) -> Tensor:
            return torch.empty(n, batch, heads, length, device=query.device)

        return _Results(
            output=query.new_empty(batch, length, heads, value_dim),
            statistics=rows(5),
            masses=rows(sets.columns.shape[-1]),
            above=rows(len(wanted.thresholds)),
            pair_masses=rows(sets.n_pair_sets),
        )


def _launch(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    mask: LazyMask,
    scores: Scores,
    wanted: Wanted,
    prepared: _Prepared,
    results: _Results,
) -> None:
    """Run the kernel over all queries and heads."""
    from interp.attention.triton_kernel import heads_forward

    (batch, heads, length, dim), value_dim, device = query.shape, results.output.shape[-1], query.device
    n_columns, n_thresholds, n_pair_sets = len(results.masses), len(results.above), len(results.pair_masses)
    query, key, of_value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, key if value is None else value))
    thresholds = torch.tensor(wanted.thresholds or (1.0,), dtype=torch.float32, device=device)
    columns = prepared.columns if query.dtype != torch.float32 else prepared.columns.float()
    sinks = results.statistics if scores.sinks is None else scores.sinks.float().contiguous()
    tile = tile_sizes(query.dtype, max(dim, value_dim))
    cap_scale, cap, factor = 0.0, 0.0, scores.scaling * _LOG2_E
    if scores.softcap is not None:  # the cap is applied before the factor
        cap_scale, cap, factor = scores.scaling / scores.softcap, scores.softcap, _LOG2_E
    grid = (-(-length // tile.queries), batch * heads)
    kernel: Any = heads_forward
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](
            query, key, of_value, columns, sinks, thresholds, prepared.bounds, prepared.pair_starts, prepared.pair_keys,
            prepared.pair_numbers, results.output, results.statistics, results.masses, results.above, results.pair_masses,
            *query.stride()[:3], *key.stride()[:3], *of_value.stride()[:3],
            batch * heads * length, batch, heads, heads // key.shape[1], length, key.shape[2],
            mask.q_offset - mask.kv_offset, mask.window or 0,
            factor, cap_scale, cap, min(wanted.thresholds, default=1.0),
            DIM=dim, VALUE_DIM=value_dim, COLUMNS=n_columns, THRESHOLDS=n_thresholds, PAIR_SETS=n_pair_sets,
            BLOCK_DIM=_power_of_two(dim), BLOCK_VALUE=_power_of_two(value_dim), BLOCK_COLUMNS=_power_of_two(n_columns),
            BLOCK_QUERIES=tile.queries, BLOCK_KEYS=tile.keys,
            BLOCK_THRESHOLDS=_power_of_two(n_thresholds, 2), BLOCK_PAIR_SETS=_power_of_two(n_pair_sets, 2),
            CAPPED=scores.softcap is not None, WINDOWED=mask.window is not None, SINK=scores.sinks is not None,
            SPLIT=columns.dtype == torch.bfloat16, EMULATED=_interpreted(),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
