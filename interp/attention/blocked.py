"""The blocked backend: one exact pass over blocks of queries. It has no restriction.

It computes the scores of a block of queries, takes every statistic while they are in cache, and forms the layer's output with them: one
product of the probabilities with [V, indicator columns] gives output and masses together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.attention.masks import LOWEST, LazyMask
from interp.attention.statistics import KeySets, RowStatistics, Scores, Wanted, empty_statistics, raise_if_not_finite, with_sink

CPU_BLOCK_ELEMENTS = 1 << 21
"""Scores held at once on a CPU: 8 MB in each of two buffers."""


ACCELERATOR_BLOCK_ELEMENTS = 1 << 25
"""Scores held at once elsewhere: 128 MB of float32 in each of two buffers."""


MIN_ROWS, MAX_ROWS = 32, 64
"""Queries of a block on a CPU: fewer waste the matrix product, more waste work above the diagonal (measured: LOG.md). Where several texts
fill the block it is the fewest."""


MAX_PADDING = 0.125
"""Share of padding in texts that a CPU takes together."""


def _block_sizes(device: torch.device, batch: int, kv_heads: int, groups: int, keys: int) -> tuple[int, int, int]:
    """Examples (at most), key-value heads and queries of a block: what stays in cache on a CPU, the whole batch elsewhere."""
    if device.type == "cpu":
        examples = min(batch, CPU_BLOCK_ELEMENTS // (kv_heads * groups * MIN_ROWS * keys))
        if examples > 1:
            return examples, kv_heads, MIN_ROWS
        heads = max(1, min(kv_heads, CPU_BLOCK_ELEMENTS // (groups * MAX_ROWS * keys)))
        return 1, heads, max(MIN_ROWS, min(MAX_ROWS, CPU_BLOCK_ELEMENTS // (heads * groups * keys) // 16 * 16))
    rows = ACCELERATOR_BLOCK_ELEMENTS // max(1, batch * kv_heads * groups * keys)
    if rows >= 16:
        return batch, kv_heads, min(rows, 1024)
    return 1, kv_heads, max(16, ACCELERATOR_BLOCK_ELEMENTS // (kv_heads * groups * keys))


def _example_groups(starts: Sequence[int], stops: Sequence[int], most: int, padding: float) -> list[slice]:
    """Which neighbours to take together: at most so many, and no more than this share of their rectangle padding."""
    groups, begin = [], 0
    for end in range(1, len(starts) + 1):
        widest = max(stops[begin : end + 1]) - min(starts[begin : end + 1])
        real = sum(stops[begin : end + 1]) - sum(starts[begin : end + 1])
        if end == len(starts) or end - begin == most or real < (1 - padding) * widest * (end + 1 - begin):
            groups.append(slice(begin, end))
            begin = end
    return groups


def _blank(output: Tensor | None, rows: RowStatistics, examples: slice, of: Tensor, at: Tensor, shift: int) -> None:
    """Write zeros to the rows of padding, which is in example `of` of these at place `at`, counted in keys held."""
    here = (at >= shift) & (at < shift + rows.entropy.shape[-1])
    of, at = of[here] + examples.start, at[here] - shift
    for by_query in (output, rows.n_allowed, rows.set_sizes):
        if by_query is not None:
            by_query[of, at] = 0
    for by_head in (rows.entropy, rows.collision, rows.distance, rows.max_prob, *rows.above.values()):
        if by_head is not None:
            by_head[of, :, at] = 0
    for by_set in (rows.masses, rows.pair_masses):
        by_set[:, of, :, at] = 0
    rows.pair_sizes[:, of, at] = 0


def blocked_pass(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch kv_head key dim"],
    value: Float[Tensor, "batch kv_head key value_dim"] | None,
    mask: LazyMask,
    scores: Scores,
    sets: KeySets,
    wanted: Wanted,
) -> tuple[Float[Tensor, "batch query head value_dim"] | None, RowStatistics]:
    """One exact pass over blocks of queries: the layer's output and every statistic.

    Args:
        query: after rotary embedding, as the attention function gets it.
        key: likewise; each key head serves head / kv_head query heads.
        value: None to get statistics alone.
        mask: which keys a query may see.
        scores: how scores are made.
        sets: what to sum attention over. Only queries in [starts, stops) are computed; other rows are zero.
        wanted: which further statistics.

    Returns:
        Output in the dtype of `value`, [batch, query, head, value_dim], and the statistics.

    Raises:
        NonFiniteError: a real token's attention is NaN or infinite.
    """
    batch, heads, length, dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    groups = heads // kv_heads
    n_columns, n_pair_sets = sets.columns.shape[-1], sets.n_pair_sets
    value_dim = 0 if value is None else value.shape[-1]
    shift = mask.q_offset - mask.kv_offset
    rows = empty_statistics(query, n_columns, n_pair_sets, wanted)
    output = None if value is None else value.new_zeros(batch, length, heads, value_dim)
    n_examples, n_kv, n_rows = _block_sizes(query.device, batch, kv_heads, groups, keys)
    size = n_examples * n_kv * groups * min(n_rows, length) * keys
    score_buffer, prob_buffer = (torch.empty(size, dtype=torch.float32, device=query.device) for _ in range(2))
    # [V, indicators, distance, nothing]: a product whose width is a multiple of 16 takes less time than a narrower one
    distance_column = value_dim + n_columns
    n_mixed = -(-(distance_column + 1) // 16) * 16
    mixed_buffer = torch.empty(n_examples * n_kv * groups * min(n_rows, length) * n_mixed, dtype=torch.float32, device=query.device)
    position = torch.arange(keys, dtype=torch.float32, device=query.device)
    # how many keys there are to see is the same for every layer that shares the mask
    counting = mask.counted is None or mask.counted[0] is not sets
    if not counting:
        assert mask.counted is not None
        _, rows.n_allowed, rows.set_sizes, rows.pair_sizes = mask.counted

    for examples in _example_groups(sets.starts, sets.stops, n_examples, MAX_PADDING if query.device.type == "cpu" else 1):
        n_batch = examples.stop - examples.start
        start, stop = min(sets.starts[examples]), max(sets.stops[examples])
        padding = sets.padding(examples)
        columns = sets.columns[examples]
        sizes_before = F.pad(columns.cumsum(1), (0, 0, 1, 0))
        for h0 in range(0, kv_heads, n_kv):
            h1 = min(h0 + n_kv, kv_heads)
            width, n_products = (h1 - h0) * groups, n_batch * (h1 - h0)
            head_slice = slice(h0 * groups, h1 * groups)
            keys_of = key[examples, h0:h1].float()
            weights = torch.zeros(n_batch, h1 - h0, keys, n_mixed, device=query.device)
            if value is not None:
                weights[..., :value_dim] = value[examples, h0:h1]
            weights[..., value_dim:distance_column] = columns[:, None]
            if padding is not None:  # which may hold anything
                keys_of = keys_of.clone()
                keys_of[padding[0], :, padding[1]] = 0
                weights[padding[0], :, padding[1]] = 0
            keys_t, weights = keys_of.flatten(0, 1).transpose(1, 2), weights.flatten(0, 1)
            for q0 in range(max(0, start - shift), min(length, stop - shift), n_rows):
                q1 = min(q0 + n_rows, length, stop - shift)
                block = mask.block(examples, q0, q1, start, stop, query.device, padded=padding is not None)
                k0, k1 = block.first, block.last
                n, span = q1 - q0, k1 - k0
                if span == 0:
                    continue
                inside = (examples, head_slice, slice(q0, q1))
                by_head, by_query = (n_batch, width, n, span), (n_batch, width, n)
                score = score_buffer[: n_batch * width * n * span].view(n_products, groups * n, span)
                prob = prob_buffer[: n_batch * width * n * span].view(n_products, groups * n, span)
                # the queries of a key head lie one under the other, so keys are not repeated
                q_block = (query[inside].float() * scores.scaling).reshape(n_products, groups * n, dim)
                torch.bmm(q_block, keys_t[..., k0:k1], out=score)
                if scores.softcap is not None:
                    score.div_(scores.softcap).tanh_().mul_(scores.softcap)
                if scores.bias is not None:
                    bias = scores.bias if scores.bias.shape[0] == 1 else scores.bias[examples]
                    bias = bias if bias.shape[1] == 1 else bias[:, head_slice]
                    score.view(by_head).add_(bias[:, :, q0:q1, k0:k1]).clamp_(min=LOWEST)
                closed_keys = score.view(by_head)[..., block.open_until - k0 :]
                torch.minimum(closed_keys, block.ceiling[:, None], out=closed_keys)
                # scores relative to the largest: entropy is then a sum of small terms, whatever offset the scores have
                largest = score.amax(-1, keepdim=True)
                score.sub_(largest)
                torch.softmax(score, -1, out=prob)
                top = prob.amax(-1)
                log_sum = -top.log()  # of the scores relative to the largest
                entropy = (log_sum - score.mul_(prob).sum(-1)).view(by_query)
                collision = torch.linalg.vector_norm(prob, dim=-1).square_().view(by_query)
                lse = (largest.squeeze(-1) + log_sum).view(by_query)
                share, entropy, collision = with_sink(lse, entropy, collision, scores.sinks, head_slice)
                weights[:, k0:k1, distance_column] = position[k0:k1] - (q0 + shift)
                mixed = mixed_buffer[: n_batch * width * n * n_mixed].view(n_products, groups * n, n_mixed)
                torch.bmm(prob, weights[:, k0:k1], out=mixed)
                mixed = mixed.view(n_batch, width, n, n_mixed)
                if rows.distance is not None:  # over keys alone, whatever a sink takes
                    rows.distance[inside] = position[:n] - mixed[..., distance_column]
                if share is not None:
                    mixed = mixed * share[..., None]
                if block.closed:  # a query without any key: zero output, as the fused kernels have it
                    mixed = mixed * (block.counts > 0)[:, None, :, None]
                if output is not None:
                    output[examples, q0:q1, head_slice] = mixed[..., :value_dim].transpose(1, 2)
                rows.entropy[inside], rows.collision[inside] = entropy, collision
                rows.masses[:, examples, head_slice, q0:q1] = mixed[..., value_dim:distance_column].permute(3, 0, 1, 2)
                if counting and h0 == 0:
                    rows.n_allowed[examples, q0:q1] = block.counts.float()
                    before = (sizes_before[:, block.open_until] - sizes_before[:, k0])[:, None]
                    partly = torch.matmul(block.allowed.float(), columns[:, block.open_until : k1])
                    rows.set_sizes[examples, q0:q1] = before + partly
                if n_pair_sets:
                    of, flat, place = sets.entries(examples, q0 + shift, n, k0, k1)
                    total = prob.new_zeros(n_batch * n_pair_sets * n, width)
                    total.index_add_(0, place, prob.view(n_batch, width, n * span)[of, :, flat])
                    total = total.view(n_batch, n_pair_sets, n, width).permute(1, 0, 3, 2)
                    rows.pair_masses[:, examples, head_slice, q0:q1] = total if share is None else total * share
                    if counting and h0 == 0:
                        sizes = prob.new_zeros(n_batch * n_pair_sets * n).index_add_(0, place, block.sees(of, flat, span))
                        rows.pair_sizes[:, examples, q0:q1] = sizes.view(n_batch, n_pair_sets, n).transpose(0, 1)
                if rows.max_prob is not None:
                    rows.max_prob[inside] = top.view(by_query) * (1 if share is None else share)
                if wanted.on_block is not None:
                    given = prob.view(by_head) if share is None else prob.view(by_head) * share[..., None]
                    wanted.on_block(inside, k0, given)
                for threshold, counted in rows.above.items():
                    limit = threshold if share is None else (threshold / share).view(n_products, groups * n, 1)
                    torch.gt(prob, limit, out=score)  # the scores are not needed any more
                    counted[inside] = score.sum(-1).view(by_query)
        if padding is not None:
            _blank(output, rows, examples, *padding, shift)
    raise_if_not_finite(rows.entropy)
    if counting:
        mask.counted = (sets, rows.n_allowed, rows.set_sizes, rows.pair_sizes)
    if scores.sinks is not None:
        rows.n_allowed = rows.n_allowed.clone()  # which the mask keeps for the next layer
        for example, (start, stop) in enumerate(zip(sets.starts, sets.stops, strict=True)):
            rows.n_allowed[example, max(0, start - shift) : max(0, stop - shift)] += 1
    return output, rows
