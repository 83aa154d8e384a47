"""Every per-query statistic of `blocked_pass` from one Triton flash-attention kernel, at every length without a [query, key] tensor.

The kernel (interp/triton_kernel.py) reads queries and keys once, in the model's dtype, and accumulates output and statistics in float32.
Counts above a threshold cost a second look at the few tiles that may hold such a key, chosen pairs a look at their own keys.
How many keys a query may see, in all and of each set, is the same for every head and layer: it is counted once, from sums over the keys.

Triton is imported when the pass runs; with TRITON_INTERPRET=1 in the environment before that, it runs on a CPU (slowly, for tests).
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

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


MAX_DIM = 256


MAX_COLUMNS = 64


MAX_BATCH_HEADS = 65_535
"""CUDA's limit for the second side of a grid."""


LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Blocks:
    """How the kernel is cut: queries and keys of a tile, and how Triton compiles it."""

    queries: int
    keys: int
    warps: int
    stages: int = 2


HALF_BLOCKS = {64: Blocks(128, 64, 8), 128: Blocks(128, 64, 8), 256: Blocks(64, 32, 8)}
"""By the largest head size they are for, bfloat16 and float16. Chosen so that compute capability 9.0 spills (next to) no registers, by the
assembler's report; not tuned on a device."""


FLOAT_BLOCKS = {64: Blocks(32, 32, 8), 128: Blocks(32, 32, 8), 256: Blocks(16, 32, 8)}
"""float32, whose products do not go to the tensor cores (TF32 would cost the precision that float32 is asked for)."""


@functools.cache
def _interpreted() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


def available(device: torch.device) -> tuple[bool, str]:
    """Whether the kernel can run on a device, and why not (empty where it can)."""
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
    """Why `triton_pass` cannot take a layer, known before it is tried: every reason, none where it can.

    It can: causal and causal sliding window, with real tokens in one piece (padding left, right or both), soft cap and sinks. It cannot:
    chunked, packed and users' own rules, padding between real tokens, a position bias, and what its constants exclude.

    Args: as `triton_pass`.
    """
    found = []
    edges = zip(mask.real_keys, sets.starts, sets.stops, strict=True)
    whole = all(first <= start and stop <= last for (first, last), start, stop in edges)
    if not (mask.plain_causal or mask.window is not None) or not whole or scores.bias is not None or scores.scaling <= 0:
        found.append(
            "it knows causal and sliding-window masks with padding at the ends, and scores of a positive scaling without a position bias: "
            "this layer has others"
        )
    if wanted.on_block is not None:
        found.append("it never holds the probabilities that a measure or a map asks for")
    if any(not 0 < t < 1 for t in wanted.thresholds):
        found.append(f"thresholds are {wanted.thresholds}; it allows numbers between 0 and 1")
    dtypes = {t.dtype for t in (query, key, value) if t is not None}
    if len(dtypes) != 1 or query.dtype not in DTYPES:
        found.append(f"it takes bfloat16, float16 or float32 alone, got {', '.join(sorted(map(str, dtypes)))}")
    dim = max(query.shape[-1], 0 if value is None else value.shape[-1])
    if dim > MAX_DIM or sets.columns.shape[-1] > MAX_COLUMNS:
        found.append(
            f"it takes heads of at most {MAX_DIM} dimensions and {MAX_COLUMNS} columns of token sets, got {dim} and "
            f"{sets.columns.shape[-1]}"
        )
    if query.shape[0] * query.shape[1] > MAX_BATCH_HEADS:
        found.append(f"it takes at most {MAX_BATCH_HEADS} heads of all texts together, got {query.shape[0] * query.shape[1]}")
    can, why = available(query.device)
    return found if can else [*found, why]


@dataclass(frozen=True)
class _Prepared:
    """What is the same for every layer with this mask and these sets, on one device.

    Attributes:
        sets: the sets that this was made for.
        device: where it lies.
        bounds: first and one-past-last query, first and one-past-last key of each example, counted in keys held, [4, batch] int32.
        real: which queries count, [batch, 1, query].
        columns: the sets' columns, filled with zeros to a power of two of them; bfloat16 where nothing is lost by it.
        n_allowed: keys to see, [batch, query].
        set_sizes: of each column, [batch, query, column].
        pair_starts: where each query's chosen keys begin and end in the two lists that follow, [batch, query + 1] int32.
        pair_keys: chosen keys of all examples, counted in keys held.
        pair_numbers: the set of each.
        pair_sizes: chosen keys that a query may see, [set, batch, query].
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
    last = torch.minimum(rows + 1, key_stop)
    # an empty range where the query is padding or sees nothing
    last = torch.where(real, last, 0).clamp(0, mask.kv_length)
    first = torch.minimum(first, last).expand_as(last)
    before = F.pad(sets.columns.double().cumsum(1), (0, 0, 1, 0))
    width = sets.columns.shape[-1]
    before_last, before_first = (before.gather(1, at[..., None].expand(-1, -1, width)) for at in (last, first))
    narrow = sets.columns.bfloat16()
    exact = bool(torch.equal(narrow.float(), sets.columns.float()))
    # whole rows of a power of two of columns can be loaded ahead of their use
    columns = F.pad(narrow if exact else sets.columns.float(), (0, _power_of_two(width) - width))
    starts, lists, sizes = [], [], torch.zeros(sets.n_pair_sets, *real.shape, device=device)
    n_listed = 0
    for example, pairs in enumerate(sets.pairs):
        query, key, number = pairs[:, (pairs[0] >= shift) & (pairs[0] < shift + mask.q_length)].long()  # sorted by query
        query = query - shift
        starts.append(n_listed + torch.searchsorted(query.contiguous(), torch.arange(mask.q_length + 1, device=device)))
        lists.append(torch.stack([key, number]))
        seen = (key >= first[example, query]) & (key < last[example, query])
        sizes[:, example].index_put_((number, query), seen.float(), accumulate=True)
        n_listed += len(query)
    pair_keys, pair_numbers = torch.cat(lists, 1).int()
    made = _Prepared(
        sets=sets,
        device=device,
        bounds=bounds,
        real=real[:, None],
        columns=columns.contiguous(),
        n_allowed=(last - first).float(),
        set_sizes=(before_last - before_first).float(),
        pair_starts=torch.stack(starts).int().contiguous(),
        pair_keys=pair_keys.contiguous(),
        pair_numbers=pair_numbers.contiguous(),
        pair_sizes=sizes,
    )
    mask.prepared = made
    return made


def _blocks(dtype: torch.dtype, dim: int) -> Blocks:
    table = FLOAT_BLOCKS if dtype == torch.float32 else HALF_BLOCKS
    return next(blocks for largest, blocks in table.items() if dim <= largest)


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
    """One flash-attention pass: the layer's output and every statistic of every query.

    Products of bfloat16 and float16 run on the tensor cores with float32 sums, like the model's own flash attention; float32 runs in
    float32. Statistics never see rounded probabilities: only the output does, as in every flash kernel.

    Args and returns: as `blocked_pass`, without `wanted.on_block`. Every row that is not in [starts, stops) is zero.

    Raises:
        ValueError: a layer that `triton_obstacles` names; with every reason.
        NonFiniteError: a real token's attention is NaN or infinite.
    """
    obstacles = triton_obstacles(query, key, value, mask, scores, sets, wanted)
    if obstacles:
        raise ValueError(f"the triton backend cannot take this layer: {'; '.join(obstacles)}; use the blocked backend")
    from interp.attention.triton_kernel import heads_forward

    batch, heads, length, dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    device, shift = query.device, mask.q_offset - mask.kv_offset
    prepared = _prepare(mask, sets, device)
    n_columns, n_thresholds = sets.columns.shape[-1], len(wanted.thresholds)
    value_dim = 0 if value is None else value.shape[-1]
    query, key, of_value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, key if value is None else value))
    output = query.new_empty(batch, length, heads, value_dim)
    statistics = torch.empty(5, batch, heads, length, device=device)
    masses = torch.empty(n_columns, batch, heads, length, device=device)
    above = torch.empty(n_thresholds, batch, heads, length, device=device)
    pair_masses = torch.empty(sets.n_pair_sets, batch, heads, length, device=device)
    thresholds = torch.tensor(wanted.thresholds or (1.0,), dtype=torch.float32, device=device)
    columns = prepared.columns if query.dtype != torch.float32 else prepared.columns.float()
    sinks = statistics if scores.sinks is None else scores.sinks.float().contiguous()
    blocks = _blocks(query.dtype, max(dim, value_dim))
    cap_scale, cap, factor = 0.0, 0.0, scores.scaling * LOG2_E
    if scores.softcap is not None:  # the cap comes before the factor
        cap_scale, cap, factor = scores.scaling / scores.softcap, scores.softcap, LOG2_E
    grid = (-(-length // blocks.queries), batch * heads)
    kernel: Any = heads_forward
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](
            query, key, of_value, columns, sinks, thresholds, prepared.bounds, prepared.pair_starts, prepared.pair_keys,
            prepared.pair_numbers, output, statistics, masses, above, pair_masses,
            *query.stride()[:3], *key.stride()[:3], *of_value.stride()[:3],
            batch * heads * length, batch, heads, heads // kv_heads, length, keys, shift, mask.window or 0,
            factor, cap_scale, cap, min(wanted.thresholds, default=1.0),
            DIM=dim,
            VALUE_DIM=value_dim,
            COLUMNS=n_columns,
            THRESHOLDS=n_thresholds,
            BLOCK_DIM=_power_of_two(dim),
            BLOCK_VALUE=_power_of_two(value_dim),
            BLOCK_COLUMNS=_power_of_two(n_columns),
            BLOCK_QUERIES=blocks.queries,
            BLOCK_KEYS=blocks.keys,
            BLOCK_THRESHOLDS=_power_of_two(n_thresholds, 2),
            PAIR_SETS=sets.n_pair_sets,
            BLOCK_PAIR_SETS=_power_of_two(sets.n_pair_sets, 2),
            CAPPED=scores.softcap is not None,
            WINDOWED=mask.window is not None,
            SINK=scores.sinks is not None,
            SPLIT=columns.dtype == torch.bfloat16,
            EMULATED=_interpreted(),
            num_warps=blocks.warps,
            num_stages=blocks.stages,
        )  # fmt: skip
    lse, entropy, collision, distance, top = statistics
    share, entropy, collision = with_sink(lse, entropy, collision, scores.sinks, slice(0, heads))
    if share is not None:  # the sink alone has its say in rows of padding
        entropy, collision = (t.where(prepared.real, 0.0) for t in (entropy, collision))
    raise_if_not_finite(entropy)

    rows = RowStatistics(
        n_allowed=prepared.n_allowed if share is None else (prepared.n_allowed + 1).where(prepared.real[:, 0], 0.0),
        set_sizes=prepared.set_sizes,
        masses=masses,
        pair_masses=pair_masses,
        pair_sizes=prepared.pair_sizes,
        distance=distance if wanted.distance else None,
        entropy=entropy,
        collision=collision,
        max_prob=top if wanted.max_prob else None,
        above=dict(zip(wanted.thresholds, above, strict=True)),
    )
    return None if value is None else output, rows
