"""The flash backend: output and log-sum-exp from a fused kernel, and the statistics derived from them.

With s_ij = scaling * q_i . k_j, entropy_i = LSE_i - scaling * q_i . SDPA(q, k, V=k)_i. Masses are SDPA with indicator columns as values,
single entries are exp(s_ij - LSE_i), and sum_j p_ij^2 = exp(LSE(2 * scaling) - 2 * LSE(scaling)). The backend cannot give the largest
probability, the distance, counts above a threshold, or the probabilities themselves. `flash_obstacles` lists why a layer is ruled out: a
soft cap, a position bias, a mask too large to build, or scores so large that the entropy would lose digits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.attention.masks import LazyMask
from interp.attention.statistics import STATISTICS, KeySets, RowStatistics, Scores, Wanted, empty_statistics, raise_if_not_finite, with_sink

_PAIRS_AT_ONCE = 8192
"""Number of query-key pairs whose vectors are gathered at once."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

MAX_MASK_ELEMENTS = 1 << 28
"""Largest [batch, query, key] mask that `flash_pass` builds for a sliding window or a padded batch: one text of 16,384 tokens."""

MAX_FLASH_SCORE = 20.0
"""Largest score, bounded by the norms of queries and centered keys, up to which `flash_pass` keeps tables within 1e-6.

Its entropy is a difference of numbers of that size, and the CPU kernel computes exponentials to 20 bits. Measured with random weights and
60 to 4,096 tokens: the error is at most 6e-7 up to a score of 23, 1.4e-6 at 27, and 2.4e-6 at 36.
"""

FLASH_STATISTICS = STATISTICS - {"distance", "max_prob", "probabilities"}
"""Statistics that `flash_pass` can give in addition to masses. A distance would be a small difference of large positions: off by 9e-5 at
2,000 tokens."""


def _is_triangle(mask: LazyMask, sets: KeySets) -> bool:
    """Return whether every real query attends to exactly the keys up to itself, so that no mask is needed."""
    if any(sets.starts) or not mask.plain_causal or mask.q_length != mask.kv_length:
        return False
    return all(first == 0 and stop <= last for (first, last), stop in zip(mask.real_keys, sets.stops, strict=True))


def flash_obstacles(query: Tensor, key: Tensor, value: Tensor | None, mask: LazyMask, scores: Scores, sets: KeySets) -> list[str]:
    """Return every reason why `flash_pass` cannot take a layer; an empty list if it can.

    Scores are bounded last, and only if nothing else rules the layer out.

    Args:
        query: as in `flash_pass`.
        key: as in `flash_pass`.
        value: as in `flash_pass`.
        mask: which keys each query may attend to.
        scores: how scores are computed.
        sets: which queries are real.
    """
    found = []
    if scores.softcap is not None or scores.bias is not None:
        found.append("it needs scores without a soft cap or a position bias")
    if query.device.type not in ("cpu", "cuda"):
        found.append(f"no attention kernel on {query.device.type} returns its log-sum-exp")
    dtypes = {t.dtype for t in (query, key, value) if t is not None}
    if len(dtypes) > 1 or query.dtype not in _DTYPES:
        found.append(f"it needs query, key and value in one of float32, bfloat16 and float16, got {', '.join(sorted(map(str, dtypes)))}")
    dims = {t.shape[-1] for t in (query, value) if t is not None}
    if query.device.type == "cuda" and any(dim % 8 for dim in dims):
        found.append(f"its kernel needs head sizes that are multiples of 8, got {', '.join(map(str, sorted(dims)))}")
    if not _is_triangle(mask, sets):
        elements = query.shape[0] * mask.q_length * mask.kv_length
        if elements > MAX_MASK_ELEMENTS:
            found.append(f"its mask would have {elements:,} elements; at most {MAX_MASK_ELEMENTS:,} are allowed")
        elif _has_query_without_keys(query, mask, sets):
            found.append("a query of a text may attend to no key")
    if not found:
        largest = _largest_score(query, key, scores.scaling, sets, mask.q_offset - mask.kv_offset)
        if MAX_FLASH_SCORE < largest < float("inf"):  # scores that are not finite are an error with any backend
            found.append(f"scores may be as large as {largest:.0f}; above {MAX_FLASH_SCORE:.0f} its entropy loses digits")
    return found


def _real_keys(sets: KeySets, keys: int, device: torch.device) -> Tensor:
    """Return which keys are real tokens, bool [batch, key]."""
    at = torch.arange(keys, device=device)
    return torch.stack([(at >= start) & (at < stop) for start, stop in zip(sets.starts, sets.stops, strict=True)])


def _largest_score(query: Tensor, key: Tensor, scaling: float, sets: KeySets, shift: int) -> float:
    """Return a bound of |score| over real tokens, with keys centered as in `flash_pass`: scaling * |q| * |k - mean|."""
    real = _real_keys(sets, key.shape[2], query.device)
    of_query = torch.linalg.vector_norm(query.float(), dim=-1).masked_fill(~real[:, None, shift : shift + query.shape[2]], 0).amax(-1)
    centered, _ = _centered(key, real)
    of_key = torch.linalg.vector_norm(centered, dim=-1).masked_fill(~real[:, None], 0).amax(-1)
    return abs(scaling) * float((of_query * of_key.repeat_interleave(query.shape[1] // key.shape[1], 1)).max())


def _centered(key: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys in float32 minus their mean over real tokens, and that mean, [batch, kv_head, dim]. Padding may hold any values."""
    key = key.float().masked_fill(~real[:, None, :, None], 0)
    mean = key.sum(2) / real.sum(1)[:, None, None]
    return key - mean[:, :, None], mean


def _has_query_without_keys(query: Tensor, mask: LazyMask, sets: KeySets) -> bool:
    """Return whether some real query may attend to no key. A causal or windowed mask allows the query itself; others are evaluated."""
    shift, edges = mask.q_offset - mask.kv_offset, list(zip(mask.real_keys, sets.starts, sets.stops, strict=True))
    if (mask.plain_causal or mask.window is not None) and all(first <= start and stop <= last for (first, last), start, stop in edges):
        return False
    for example, (_, start, stop) in enumerate(edges):
        q0, q1 = max(0, start - shift), min(mask.q_length, stop - shift)
        here = slice(example, example + 1)
        if q0 < q1 and mask.block(here, q0, q1, start, stop, query.device, padded=True).closed:
            return True
    return False


def _fused(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """Return a fused kernel's output and its log-sum-exp (float32). `allowed` None means causal."""
    if query.device.type == "cpu":
        bias = None
        if allowed is not None:
            bias = torch.zeros(allowed.shape, dtype=query.dtype, device=query.device).masked_fill_(~allowed, torch.finfo(query.dtype).min)
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, allowed is None, attn_mask=bias, scale=scaling
        )
        return output, lse.float()
    if query.device.type == "cuda":
        bias = None
        if allowed is not None:
            keys = key.shape[2]
            lowest, wide = torch.finfo(query.dtype).min, -(-keys // 16) * 16  # the kernel needs rows aligned to 16 elements
            bias = torch.full((*allowed.shape[:3], wide), lowest, dtype=query.dtype, device=query.device)[..., :keys]
            bias = bias.masked_fill_(allowed, 0.0).expand(-1, query.shape[1], -1, -1)  # one mask for all heads, as in torch's own sdpa
        output, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, True, 0.0, allowed is None, scale=scaling
        )
        return output, lse[..., : query.shape[2]].float()
    raise ValueError(f"device is {query.device.type}; the flash backend runs on cpu and cuda. Use the blocked backend")


def _pair_masses(
    query: Tensor,
    key: Tensor,
    scores: Scores,
    lse: Tensor,
    share: Tensor | None,
    sets: KeySets,
    seen: Callable[[int, Tensor, Tensor], Tensor],
    shift: int,
) -> tuple[Tensor, Tensor]:
    """Return the attention summed over each set of pairs, computed entry by entry from the log-sum-exp: exp(s_ij - LSE_i).

    Args:
        query: [batch, head, query, dim].
        key: [batch, kv_head, key, dim].
        scores: how scores are computed, without a position bias.
        lse: log-sum-exp of the keys' scores, [batch, head, query].
        share: the share of the probability that a sink leaves to the keys, [batch, head, query], or None.
        sets: the pairs.
        seen: whether queries of an example may attend to the keys paired with them, bool [pair]; both are positions among the keys held.
        shift: position of the first query among the keys held.

    Returns:
        The masses, [set, batch, head, query], and the number of allowed keys, [set, batch, query].
    """
    batch, heads, length, _ = query.shape
    kv_heads, n_sets = key.shape[1], sets.n_pair_sets
    masses = query.new_zeros(n_sets, batch, heads, length, dtype=torch.float32)
    counts = query.new_zeros(n_sets, batch, length, dtype=torch.float32)
    for example in range(batch):
        pairs = sets.pairs[example]
        if shift or length != key.shape[2]:
            pairs = pairs[:, (pairs[0] >= shift) & (pairs[0] < shift + length)]
        mass, count = query.new_zeros(heads, n_sets * length, dtype=torch.float32), counts.new_zeros(n_sets * length)
        for query_at, key_at, number in (part.long().unbind() for part in pairs.split(_PAIRS_AT_ONCE, 1)):
            allowed = seen(example, query_at, key_at)
            row = query_at - shift
            place = number * length + row
            count.index_add_(0, place, allowed.float())
            of_query = query[example].index_select(1, row).float().unflatten(0, (kv_heads, -1))
            of_key = key[example].index_select(1, key_at).float()[:, None]
            score = scores.scaling * (of_query * of_key).sum(-1).flatten(0, 1)
            if scores.softcap is not None:
                score = scores.softcap * torch.tanh(score / scores.softcap)
            chosen = (score - lse[example].index_select(1, row)).exp().masked_fill_(~allowed, 0)
            if share is not None:
                chosen = chosen * share[example].index_select(1, row)
            mass.index_add_(1, place, chosen)
        masses[:, example] = mass.view(heads, n_sets, length).transpose(0, 1)
        counts[:, example] = count.view(n_sets, length)
    return masses, counts


def flash_pass(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch kv_head key dim"],
    value: Float[Tensor, "batch kv_head key value_dim"] | None,
    mask: LazyMask,
    scores: Scores,
    sets: KeySets,
) -> tuple[Float[Tensor, "batch query head value_dim"] | None, RowStatistics]:
    """Compute a layer's output, masses, entropy and collision from the log-sum-exp of a fused kernel.

    The output comes from the kernel in the model's dtype and with the model's own keys. The statistics come from float32 calls with keys
    centered over the text: softmax does not change, and the entropy loses no digits to a common offset.

    Args and returns: as `blocked_pass`; `max_prob` and `distance` are None, and `above` is empty.

    Raises:
        ValueError: `flash_obstacles` rules the layer out; the message has every reason.
        NonFiniteError: the attention of a real token is NaN or infinite.
    """
    obstacles = flash_obstacles(query, key, value, mask, scores, sets)
    if obstacles:
        raise ValueError(f"the flash backend cannot take this layer: {'; '.join(obstacles)}. Use the blocked backend")
    heads, length = query.shape[1:3]
    groups, shift = heads // key.shape[1], mask.q_offset - mask.kv_offset
    rows = empty_statistics(query, sets.columns.shape[-1], sets.n_pair_sets, Wanted(max_prob=False, distance=False))
    real = _real_keys(sets, key.shape[2], query.device)
    padding = ~real[:, shift : shift + length]
    allowed = None if _is_triangle(mask, sets) else _allowed(mask, real, query.device)
    output = None if value is None else _output(query, key, value, allowed, scores.scaling)
    query32 = query.float().masked_fill(padding[:, None, :, None], 0)
    key32, mean = _centered(key, real)
    key32 = key32.repeat_interleave(groups, 1)
    lse, rows.entropy, rows.collision, masses = _statistics(query32, key32, sets.columns, allowed, scores.scaling)
    offset = scores.scaling * (query32 * mean.repeat_interleave(groups, 1)[:, :, None]).sum(-1)  # what centering takes from the scores
    share, rows.entropy, rows.collision = with_sink(lse + offset, rows.entropy, rows.collision, scores.sinks, slice(0, heads))
    if share is not None:
        masses = masses * share[..., None]
        output = None if output is None else (output * share[..., None]).to(output.dtype)
    rows.masses = masses.permute(3, 0, 1, 2)

    def seen(example: int, query_at: Tensor, key_at: Tensor) -> Tensor:
        return torch.ones_like(key_at, dtype=torch.bool) if allowed is None else allowed[example, 0, query_at - shift, key_at]

    rows.pair_masses, rows.pair_sizes = _pair_masses(query32, key32, scores, lse, share, sets, seen, shift)
    rows.n_allowed, rows.set_sizes = _key_counts(allowed, sets.columns, length)
    rows.n_allowed += share is not None
    for by_query in (rows.n_allowed, rows.set_sizes, rows.pair_sizes):
        by_query.masked_fill_(padding[..., None] if by_query is rows.set_sizes else padding, 0)
    for by_head in (rows.entropy, rows.collision, rows.masses, rows.pair_masses):
        by_head.masked_fill_(padding[:, None], 0)
    raise_if_not_finite(rows.entropy)
    return None if output is None else output.transpose(1, 2), rows


def _allowed(mask: LazyMask, real: Tensor, device: torch.device) -> Tensor:
    """Return which keys each query may attend to, bool [batch, 1, query, key]."""
    batch, keys = real.shape
    block = mask.block(slice(0, batch), 0, mask.q_length, 0, keys, device, padded=True)
    allowed = torch.zeros(batch, 1, mask.q_length, keys, dtype=torch.bool, device=device)
    allowed[..., block.first : block.open_until] = True
    allowed[..., block.open_until : block.last] = block.allowed[:, None]
    return allowed.logical_and_(real[:, None, None])


def _output(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, scaling: float) -> Tensor:
    """Return the layer's output in the model's dtype, [batch, head, query, value_dim], not yet scaled by a sink."""
    groups, wide = query.shape[1] // key.shape[1], max(query.shape[-1], value.shape[-1])
    padded = [F.pad(t, (0, wide - t.shape[-1])) for t in (query, key, value)]
    padded[1:] = [t.repeat_interleave(groups, 1) for t in padded[1:]]
    output, _ = _fused(padded[0], padded[1], padded[2], allowed, scaling)
    return output[..., : value.shape[-1]]


def _statistics(
    query: Tensor, key: Tensor, columns: Tensor, allowed: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log-sum-exp, entropy and collision, [batch, head, query], and masses, [batch, head, query, column], over the keys alone.

    Args:
        query: float32, [batch, head, query, dim].
        key: float32, centered, [batch, head, key, dim].
        columns: weight of each key in each token set, [batch, key, column].
        allowed: which keys each query may attend to; None for a causal mask.
        scaling: factor of q.k.
    """
    heads, dim = query.shape[1], query.shape[-1]
    mixed, lse = [], query.new_empty(0)
    for part in torch.cat([key, columns[:, None].expand(-1, heads, -1, -1)], -1).split(dim, -1):
        output, lse = _fused(query, key, F.pad(part, (0, dim - part.shape[-1])), allowed, scaling)
        mixed.append(output[..., : part.shape[-1]])
    mixed = torch.cat(mixed, -1)
    _, lse_double = _fused(query, key, torch.zeros_like(key), allowed, 2 * scaling)
    entropy = lse - scaling * (query * mixed[..., :dim]).sum(-1)
    return lse, entropy, (lse_double - 2 * lse).exp(), mixed[..., dim:]


def _key_counts(allowed: Tensor | None, columns: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return how many keys each query may attend to, [batch, query], and how many in each token set, [batch, query, column]."""
    if allowed is None:
        counts = torch.arange(1, length + 1, device=columns.device).float().expand(len(columns), length).clone()
        return counts, columns.cumsum(1)
    return allowed[:, 0].sum(-1).float(), torch.matmul(allowed[:, 0].float(), columns)
