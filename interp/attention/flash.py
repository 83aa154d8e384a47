"""The flash backend: output and log-sum-exp from a fused kernel, and the statistics from them by algebra.

With s_ij = scaling * q_i . k_j, entropy_i = LSE_i - scaling * q_i . SDPA(q, k, V=k)_i; masses are SDPA with indicator columns as values;
chosen entries are exp(s_ij - LSE_i); sum_j p_ij^2 = exp(LSE(2 * scaling) - 2 * LSE(scaling)). It has no largest probability, no distance,
no counts and no probabilities themselves. `flash_obstacles` says which layers it cannot express: those with a soft cap or a position bias,
those whose mask would be a tensor too large to make, and those with scores so large that the entropy's difference would lose digits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.attention.masks import LazyMask
from interp.attention.statistics import STATISTICS, KeySets, RowStatistics, Scores, Wanted, empty_statistics, raise_if_not_finite, with_sink

PAIRS_AT_ONCE = 8192
"""Chosen entries whose queries and keys are gathered at once."""


FLASH_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


MAX_MASK_ELEMENTS = 1 << 28
"""Largest [batch, query, key] mask that `flash_pass` makes where a window slides or a batch is padded: one text of 16,384 tokens."""


MAX_FLASH_SCORE = 20.0
"""Largest score, by the norms of queries and centred keys, up to which `flash_pass` keeps tables within 1e-6: its entropy is a difference
of numbers of that size, and the kernel for CPUs takes exponentials of 20 bits (measured with random weights, 60 to 4,096 tokens: at most
6e-7 up to 23, 1.4e-6 at 27, 2.4e-6 at 36)."""


FLASH_STATISTICS = STATISTICS - {"distance", "max_prob", "probabilities"}
"""What `flash_pass` can give beside masses. A distance would be a small difference of large positions: 9e-5 off at 2,000 tokens."""


def _is_triangle(mask: LazyMask, sets: KeySets) -> bool:
    """Every real query sees all keys up to itself and no other: no mask has to be made."""
    if any(sets.starts) or not mask.plain_causal or mask.q_length != mask.kv_length:
        return False
    return all(first == 0 and stop <= last for (first, last), stop in zip(mask.real_keys, sets.stops, strict=True))


def flash_obstacles(query: Tensor, key: Tensor, value: Tensor | None, mask: LazyMask, scores: Scores, sets: KeySets) -> list[str]:
    """Why `flash_pass` cannot take a layer, known before it is tried: none where it can.

    Scores are looked at last, where there is no other reason.

    Args:
        query: as in `flash_pass`, and so are the others.
        key: likewise.
        value: likewise.
        mask: which keys a query may see.
        scores: how scores are made.
        sets: which queries are real.
    """
    found = []
    if scores.softcap is not None or scores.bias is not None:
        found.append("it needs plain scaled scores, and this model caps or biases them")
    if query.device.type not in ("cpu", "cuda"):
        found.append(f"no kernel on {query.device.type} returns its log-sum-exp")
    dtypes = {t.dtype for t in (query, key, value) if t is not None}
    if len(dtypes) > 1 or query.dtype not in FLASH_DTYPES:
        found.append(f"it takes float32, bfloat16 or float16 alone, got {', '.join(sorted(map(str, dtypes)))}")
    dims = {t.shape[-1] for t in (query, value) if t is not None}
    if query.device.type == "cuda" and any(dim % 8 for dim in dims):
        found.append(f"its kernel takes head sizes that are multiples of 8, got {', '.join(map(str, sorted(dims)))}")
    if not _is_triangle(mask, sets):
        elements = query.shape[0] * mask.q_length * mask.kv_length
        if elements > MAX_MASK_ELEMENTS:
            found.append(f"its mask would have {elements:,} elements, more than {MAX_MASK_ELEMENTS:,}")
        elif _blind(query, mask, sets):
            found.append("a query of a text sees no key")
    if not found:
        largest = _largest_score(query, key, scores.scaling, sets, mask.q_offset - mask.kv_offset)
        if MAX_FLASH_SCORE < largest < float("inf"):  # what is not finite is an error of the model, whatever backend runs
            found.append(f"scores may be as large as {largest:.0f}, and above {MAX_FLASH_SCORE:.0f} its float32 difference loses digits")
    return found


def _real_keys(sets: KeySets, keys: int, device: torch.device) -> Tensor:
    """Which keys are real tokens, bool [batch, key]."""
    at = torch.arange(keys, device=device)
    return torch.stack([(at >= start) & (at < stop) for start, stop in zip(sets.starts, sets.stops, strict=True)])


def _largest_score(query: Tensor, key: Tensor, scaling: float, sets: KeySets, shift: int) -> float:
    """A bound of |score| over real tokens, with keys centred as `flash_pass` does it: scaling * |q| * |k - mean|."""
    real = _real_keys(sets, key.shape[2], query.device)
    of_query = torch.linalg.vector_norm(query.float(), dim=-1).masked_fill(~real[:, None, shift : shift + query.shape[2]], 0).amax(-1)
    centred, _ = _centred(key, real)
    of_key = torch.linalg.vector_norm(centred, dim=-1).masked_fill(~real[:, None], 0).amax(-1)
    return abs(scaling) * float((of_query * of_key.repeat_interleave(query.shape[1] // key.shape[1], 1)).max())


def _centred(key: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Keys in float32 less their mean over real tokens (padding may hold anything), and that mean, [batch, kv_head, dim]."""
    key = key.float().masked_fill(~real[:, None, :, None], 0)
    mean = key.sum(2) / real.sum(1)[:, None, None]
    return key - mean[:, :, None], mean


def _blind(query: Tensor, mask: LazyMask, sets: KeySets) -> bool:
    """Whether some real query sees no key. Causality and windows always leave it itself; any other rule is asked."""
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
    """A fused kernel's output and log-sum-exp (float32). `allowed` None means causal."""
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
            lowest, wide = torch.finfo(query.dtype).min, -(-keys // 16) * 16  # the kernel wants rows that start at multiples of 16 elements
            bias = torch.full((*allowed.shape[:3], wide), lowest, dtype=query.dtype, device=query.device)[..., :keys]
            bias = bias.masked_fill_(allowed, 0.0).expand(-1, query.shape[1], -1, -1)  # one for all heads, as torch's own sdpa does it
        output, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, True, 0.0, allowed is None, scale=scaling
        )
        return output, lse[..., : query.shape[2]].float()
    raise ValueError(f"the flash backend runs on cpu and cuda, not on {query.device.type}; use the blocked backend")


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
    """Attention summed over each set of pairs, entry by entry from the log-sum-exp: exp(s_ij - LSE_i).

    Args:
        query: [batch, head, query, dim].
        key: [batch, kv_head, key, dim].
        scores: how scores are made, without a position bias.
        lse: log-sum-exp of the keys' scores, [batch, head, query].
        share: the keys' share of the probability beside a sink, [batch, head, query], or None.
        sets: the pairs.
        seen: whether the queries of an example may see the keys beside them, bool [pair]. Both are counted in keys held.
        shift: where the first query stands, counted in keys held.

    Returns:
        Masses, [set, batch, head, query], and how many keys there are to see, [set, batch, query].
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
        for query_at, key_at, number in (part.long().unbind() for part in pairs.split(PAIRS_AT_ONCE, 1)):
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
    """The statistics that are linear in the probabilities, with entropy and collision, from a fused kernel's log-sum-exp.

    The output comes from the kernel in the model's dtype and with the model's own keys; statistics from float32 calls with keys
    centred over the text (softmax does not change, and the entropy then loses nothing to a common offset).

    Args and returns: as `blocked_pass`; `max_prob` and `distance` are None, `above` is empty.

    Raises:
        ValueError: a layer that `flash_obstacles` names; with every reason.
        NonFiniteError: a real token's attention is NaN or infinite.
    """
    obstacles = flash_obstacles(query, key, value, mask, scores, sets)
    if obstacles:
        raise ValueError(f"the flash backend cannot take this layer: {'; '.join(obstacles)}; use the blocked backend")
    batch, heads, length, dim = query.shape
    groups, keys, shift = heads // key.shape[1], key.shape[2], mask.q_offset - mask.kv_offset
    rows = empty_statistics(query, sets.columns.shape[-1], sets.n_pair_sets, Wanted(max_prob=False, distance=False))
    real = _real_keys(sets, keys, query.device)
    padding = ~real[:, shift : shift + length]
    allowed = None
    if not _is_triangle(mask, sets):
        block = mask.block(slice(0, batch), 0, length, 0, keys, query.device, padded=True)
        allowed = torch.zeros(batch, 1, length, keys, dtype=torch.bool, device=query.device)
        allowed[..., block.first : block.open_until] = True
        allowed[..., block.open_until : block.last] = block.allowed[:, None]
        allowed &= real[:, None, None]
    output = None
    if value is not None:
        wide = max(dim, value.shape[-1])
        padded = [F.pad(t, (0, wide - t.shape[-1])) for t in (query, key, value)]
        padded[1:] = [t.repeat_interleave(groups, 1) for t in padded[1:]]
        output, lse = _fused(padded[0], padded[1], padded[2], allowed, scores.scaling)
        output = output[..., : value.shape[-1]]
    query32 = query.float().masked_fill(padding[:, None, :, None], 0)
    key32, mean = _centred(key, real)
    key32 = key32.repeat_interleave(groups, 1)
    parts = torch.cat([key32, sets.columns[:, None].expand(-1, heads, -1, -1)], -1).split(dim, -1)
    mixed, lse = [], query32.new_empty(0)
    for part in parts:
        part_output, lse = _fused(query32, key32, F.pad(part, (0, dim - part.shape[-1])), allowed, scores.scaling)
        mixed.append(part_output[..., : part.shape[-1]])
    mixed = torch.cat(mixed, -1)
    _, lse_double = _fused(query32, key32, torch.zeros_like(key32), allowed, 2 * scores.scaling)
    entropy = lse - scores.scaling * (query32 * mixed[..., :dim]).sum(-1)
    collision = (lse_double - 2 * lse).exp()
    moved = scores.scaling * (query32 * mean.repeat_interleave(groups, 1)[:, :, None]).sum(-1)
    share, entropy, collision = with_sink(lse + moved, entropy, collision, scores.sinks, slice(0, heads))
    masses = mixed[..., dim:]
    if share is not None:
        masses = masses * share[..., None]
        output = None if output is None else (output * share[..., None]).to(output.dtype)
    rows.entropy, rows.collision, rows.masses = entropy, collision, masses.permute(3, 0, 1, 2)

    def seen(example: int, query_at: Tensor, key_at: Tensor) -> Tensor:
        return torch.ones_like(key_at, dtype=torch.bool) if allowed is None else allowed[example, 0, query_at - shift, key_at]

    rows.pair_masses, rows.pair_sizes = _pair_masses(query32, key32, scores, lse, share, sets, seen, shift)
    if allowed is None:
        rows.n_allowed = torch.arange(1, length + 1, device=query.device).float().expand(batch, length).clone()
        rows.set_sizes = sets.columns.cumsum(1)
    else:
        rows.n_allowed = allowed[:, 0].sum(-1).float()
        rows.set_sizes = torch.matmul(allowed[:, 0].float(), sets.columns)
    rows.n_allowed += share is not None
    for by_query in (rows.n_allowed, rows.set_sizes, rows.pair_sizes):
        by_query.masked_fill_(padding[..., None] if by_query is rows.set_sizes else padding, 0)
    for by_head in (rows.entropy, rows.collision, rows.masses, rows.pair_masses):
        by_head.masked_fill_(padding[:, None], 0)
    raise_if_not_finite(rows.entropy)
    return None if output is None else output.transpose(1, 2), rows
