"""Exact per-query statistics of softmax attention, without a [head, query, key] tensor of the whole text. Tensors in, tensors out.

Two ways give the same numbers:

- `blocked_pass` computes the scores of a block of queries, takes every statistic while they are in cache, and forms the layer's output with
  them: one product of the probabilities with [V, indicator columns] gives output and masses together. It has no restriction.
- `flash_pass` asks a fused kernel for output and log-sum-exp and gets the statistics by algebra: with s_ij = scaling * q_i . k_j,
  entropy_i = LSE_i - scaling * q_i . SDPA(q, k, V=k)_i; masses are SDPA with indicator columns as values; chosen entries are
  exp(s_ij - LSE_i); sum_j p_ij^2 = exp(LSE(2 * scaling) - 2 * LSE(scaling)). It has no largest probability, no counts and no
  probabilities themselves, and `flash_obstacles` says which layers it cannot express: those with a soft cap or a position bias, and those
  whose mask would be a tensor too large to make, and those with scores so large that the entropy's difference would lose digits.

Axes: batch head query key dim column pair. Statistics are float32 whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.masks import LOWEST, LazyMask

CPU_BLOCK_ELEMENTS = 1 << 21
"""Scores held at once on a CPU: 8 MB in each of two buffers."""
ACCELERATOR_BLOCK_ELEMENTS = 1 << 25
"""Scores held at once elsewhere: 128 MB of float32 in each of two buffers."""
MIN_ROWS, MAX_ROWS = 32, 64
"""Queries of a block on a CPU: fewer waste the matrix product, more waste work above the diagonal (measured: LOG.md). Where several texts
fill the block it is the fewest."""
MAX_PADDING = 0.125
"""Share of padding in texts that a CPU takes together."""
CACHED_PAIRS = 1 << 21
"""Chosen entries whose places in their blocks are kept for the next layer (12 bytes each): those of some 8,000 tokens of GSM8K."""
PAIRS_AT_ONCE = 8192
"""Chosen entries whose queries and keys are gathered at once."""

FLASH_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_MASK_ELEMENTS = 1 << 28
"""Largest [batch, query, key] mask that `flash_pass` makes where a window slides or a batch is padded: one text of 16,384 tokens."""
MAX_FLASH_SCORE = 128.0
"""Largest score, by the norms of queries and centred keys, up to which `flash_pass` keeps tables within 1e-6: its entropy is a difference
of numbers of that size (measured: 6e-7 at 138, 1.4e-6 at 276; a single row that is nearly one-hot, at 1,100, is 1.5e-4 off)."""
FLASH_STATISTICS = frozenset({"entropy", "collision"})
"""What `flash_pass` can give beside masses."""
STATISTICS = FLASH_STATISTICS | {"max_prob", "probabilities"}
"""Per-query statistics that a measure may ask for by name, beside masses and counts above a threshold."""


class NonFiniteAttentionError(ValueError):
    """Attention of a real token is NaN or infinite."""


@dataclass(frozen=True)
class KeySets:
    """Which keys (or query-key pairs) to sum attention over, for a padded batch.

    Attributes:
        columns: indicator (or weight) of each key in each set, [batch, key, column].
        pairs: for each example of the batch, query, key and set number of every chosen entry, [3, pair] int32, sorted by query.
        n_pair_sets: how many sets of pairs there are.
        starts: first real token of each example.
        stops: one past the last real token of each example.
    """

    columns: Float[Tensor, "batch key column"]
    pairs: tuple[Int[Tensor, "3 _pair"], ...]
    n_pair_sets: int
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    _cuts: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _padding: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def to(self, device: torch.device) -> KeySets:
        """The same sets on another device."""
        if self.columns.device == device:
            return self
        return KeySets(self.columns.to(device), tuple(p.to(device) for p in self.pairs), self.n_pair_sets, self.starts, self.stops)

    def padding(self, examples: slice) -> tuple[Tensor, Tensor] | None:
        """Keys in the rectangle around some examples that are padding: which of these examples, and where. None if there are none."""
        starts, stops = self.starts[examples], self.stops[examples]
        if min(starts) == max(starts) and min(stops) == max(stops):
            return None
        name = (examples.start, examples.stop)
        found = self._padding.get(name)
        if found is None:
            at = torch.arange(min(starts), max(stops), device=self.columns.device)
            real = torch.stack([(at >= start) & (at < stop) for start, stop in zip(starts, stops, strict=True)])
            of, where = (~real).nonzero(as_tuple=True)
            found = self._padding[name] = (of, where + min(starts))
        return found

    def entries(self, examples: slice, row: int, rows: int, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """Chosen entries inside one block.

        Returns:
            Their example, counted from the block's first; flat index into [rows, last - first]; flat index into [example, set, rows].
        """
        name = (examples.start, examples.stop, row, rows, first, last)
        found = self._cuts.get(name)
        if found is None:
            parts = []
            for at, pairs in enumerate(self.pairs[examples]):
                edges = torch.tensor([row, row + rows], dtype=pairs.dtype, device=pairs.device)
                begin, end = torch.searchsorted(pairs[0].contiguous(), edges).tolist()
                query, key, number = pairs[:, begin:end].long()
                inside = (key >= first) & (key < last)
                query, key, number = query[inside] - row, key[inside] - first, number[inside]
                place = (at * self.n_pair_sets + number) * rows + query
                parts.append(torch.stack([torch.full_like(query, at), query * (last - first) + key, place]))
            of, flat, place = torch.cat(parts, 1).int()
            found = (of, flat, place)
            if len(of) + sum(len(cut[0]) for cut in self._cuts.values()) <= CACHED_PAIRS:
                self._cuts[name] = found
        return found


@dataclass
class RowStatistics:
    """Statistics of every query of one layer. Rows of padding hold zeros.

    Attributes:
        n_allowed: keys that the query may attend to (an attention sink counts as one more), [batch, query].
        set_sizes: sum of each column over those keys, [batch, query, column].
        masses: attention summed over each column, [column, batch, head, query].
        pair_masses: attention summed over each set of pairs, [set, batch, head, query].
        pair_sizes: how many keys each query has in each set of pairs, [set, batch, query].
        distance: expected query position - key position, in tokens, over real keys, [batch, head, query].
        entropy: in nats, an attention sink being one more outcome, [batch, head, query].
        collision: sum of squared probabilities, likewise.
        max_prob: largest probability of a key.
        above: number of keys whose probability is greater than the threshold, by threshold.
    """

    n_allowed: Float[Tensor, "batch query"]
    set_sizes: Float[Tensor, "batch query column"]
    masses: Float[Tensor, "column batch head query"]
    pair_masses: Float[Tensor, "set batch head query"]
    pair_sizes: Float[Tensor, "set batch query"]
    distance: Float[Tensor, "batch head query"]
    entropy: Float[Tensor, "batch head query"]
    collision: Float[Tensor, "batch head query"]
    max_prob: Float[Tensor, "batch head query"] | None
    above: dict[float, Float[Tensor, "batch head query"]]


@dataclass(frozen=True)
class Scores:
    """How a layer makes its scores: `softcap * tanh(scaling * q.k / softcap) + bias`, and the sink's score beside them.

    Attributes:
        scaling: factor of q.k.
        softcap: None where the scores are not capped.
        sinks: one extra score a head that takes part in the softmax and has no value, [head].
        bias: added to the scores before the mask, [batch or 1, head or 1, query, key].
    """

    scaling: float
    softcap: float | None = None
    sinks: Float[Tensor, " head"] | None = None
    bias: Float[Tensor, "#batch #head query key"] | None = None


@dataclass(frozen=True)
class Wanted:
    """What to compute beyond masses, entropy and collision.

    Attributes:
        max_prob: the largest probability.
        thresholds: count probabilities above each.
        on_block: called with each block's place and probabilities, `on_block((examples, heads, queries), first, probabilities)`;
            the probabilities are [batch, head, query, key] of the keys from `first` on, and are overwritten after the call.
    """

    max_prob: bool = True
    thresholds: tuple[float, ...] = ()
    on_block: Callable[[tuple[slice, slice, slice], int, Tensor], None] | None = None


def _empty_statistics(query: Tensor, n_columns: int, n_pair_sets: int, wanted: Wanted, *, blocked: bool) -> RowStatistics:
    batch, heads, length, _ = query.shape

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float32, device=query.device)

    return RowStatistics(
        n_allowed=zeros(batch, length),
        set_sizes=zeros(batch, length, n_columns),
        masses=zeros(n_columns, batch, heads, length),
        pair_masses=zeros(n_pair_sets, batch, heads, length),
        pair_sizes=zeros(n_pair_sets, batch, length),
        distance=zeros(batch, heads, length),
        entropy=zeros(batch, heads, length),
        collision=zeros(batch, heads, length),
        max_prob=zeros(batch, heads, length) if blocked and wanted.max_prob else None,
        above={t: zeros(batch, heads, length) for t in wanted.thresholds} if blocked else {},
    )


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


def _with_sink(lse: Tensor, entropy: Tensor, collision: Tensor, sinks: Tensor | None, heads: slice) -> tuple[Tensor | None, Tensor, Tensor]:
    """Add the sink as one more outcome to the distribution over keys.

    Args:
        lse: log-sum-exp of the keys' scores, [batch, head, query].
        entropy: of the distribution over keys alone.
        collision: likewise.
        sinks: score of each head's sink, [head], or None.
        heads: which heads of `sinks` these are.

    Returns:
        The keys' share w of the probability (None without a sink), entropy w H + h(w), collision w^2 C + (1 - w)^2.
    """
    if sinks is None:
        return None, entropy, collision
    relative = sinks[heads].float().view(1, -1, 1) - lse
    sink, share = torch.sigmoid(relative), torch.sigmoid(-relative)
    # -w ln w = w softplus(x) and -s ln s = s softplus(-x): exact also where one of them is nearly 1
    entropy = share * (entropy + F.softplus(relative)) + sink * F.softplus(-relative)
    return share, entropy, share.square() * collision + sink.square()


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
    raise ValueError(f"the flash way runs on cpu and cuda, not on {query.device.type}; use the blocked way")


def _raise_if_not_finite(entropy: Tensor) -> None:
    if not bool(torch.isfinite(entropy).all()):
        batch, head, query = (int(i) for i in (~torch.isfinite(entropy)).nonzero()[0])
        raise NonFiniteAttentionError(f"attention is not finite: head {head}, example {batch} of the batch, query {query}")


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
        NonFiniteAttentionError: a real token's attention is NaN or infinite.
    """
    batch, heads, length, dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    groups = heads // kv_heads
    n_columns, n_pair_sets = sets.columns.shape[-1], sets.n_pair_sets
    value_dim = 0 if value is None else value.shape[-1]
    shift = mask.q_offset - mask.kv_offset
    rows = _empty_statistics(query, n_columns, n_pair_sets, wanted, blocked=True)
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
                share, entropy, collision = _with_sink(lse, entropy, collision, scores.sinks, head_slice)
                weights[:, k0:k1, distance_column] = position[k0:k1] - (q0 + shift)
                mixed = mixed_buffer[: n_batch * width * n * n_mixed].view(n_products, groups * n, n_mixed)
                torch.bmm(prob, weights[:, k0:k1], out=mixed)
                mixed = mixed.view(n_batch, width, n, n_mixed)
                distance = position[:n] - mixed[..., distance_column]
                if share is not None:
                    mixed = mixed * share[..., None]
                if block.closed:  # a query without any key: zero output, as the fused kernels have it
                    mixed = mixed * (block.counts > 0)[:, None, :, None]
                if output is not None:
                    output[examples, q0:q1, head_slice] = mixed[..., :value_dim].transpose(1, 2)
                rows.entropy[inside], rows.collision[inside], rows.distance[inside] = entropy, collision, distance
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
    _raise_if_not_finite(rows.entropy)
    if counting:
        mask.counted = (sets, rows.n_allowed, rows.set_sizes, rows.pair_sizes)
    if scores.sinks is not None:
        rows.n_allowed = rows.n_allowed.clone()  # which the mask keeps for the next layer
        for example, (start, stop) in enumerate(zip(sets.starts, sets.stops, strict=True)):
            rows.n_allowed[example, max(0, start - shift) : max(0, stop - shift)] += 1
    return output, rows


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
        if MAX_FLASH_SCORE < largest < float("inf"):  # what is not finite is an error of the model, whatever way runs
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

    Args and returns: as `blocked_pass`; `max_prob` is None, `above` is empty.

    Raises:
        ValueError: a layer that `flash_obstacles` names; with every reason.
        NonFiniteAttentionError: a real token's attention is NaN or infinite.
    """
    obstacles = flash_obstacles(query, key, value, mask, scores, sets)
    if obstacles:
        raise ValueError(f"the flash way cannot take this layer: {'; '.join(obstacles)}; use the blocked way")
    batch, heads, length, dim = query.shape
    groups, keys, shift = heads // key.shape[1], key.shape[2], mask.q_offset - mask.kv_offset
    rows = _empty_statistics(query, sets.columns.shape[-1], sets.n_pair_sets, Wanted(), blocked=False)
    at, real = torch.arange(keys, device=query.device), _real_keys(sets, keys, query.device)
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
    position = (at - keys // 2).float().expand(batch, 1, keys)
    extra = torch.cat([position.transpose(1, 2), sets.columns], -1)[:, None].expand(-1, heads, -1, -1)
    parts = torch.cat([key32, extra], -1).split(dim, -1)
    mixed, lse = [], query32.new_empty(0)
    for part in parts:
        part_output, lse = _fused(query32, key32, F.pad(part, (0, dim - part.shape[-1])), allowed, scores.scaling)
        mixed.append(part_output[..., : part.shape[-1]])
    mixed = torch.cat(mixed, -1)
    _, lse_double = _fused(query32, key32, torch.zeros_like(key32), allowed, 2 * scores.scaling)
    entropy = lse - scores.scaling * (query32 * mixed[..., :dim]).sum(-1)
    collision = (lse_double - 2 * lse).exp()
    moved = scores.scaling * (query32 * mean.repeat_interleave(groups, 1)[:, :, None]).sum(-1)
    share, entropy, collision = _with_sink(lse + moved, entropy, collision, scores.sinks, slice(0, heads))
    middle = at[shift : shift + length] - keys // 2
    rows.distance = middle - mixed[..., dim]
    masses = mixed[..., dim + 1 :]
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
    for by_head in (rows.entropy, rows.collision, rows.distance, rows.masses, rows.pair_masses):
        by_head.masked_fill_(padding[:, None], 0)
    _raise_if_not_finite(rows.entropy)
    return None if output is None else output.transpose(1, 2), rows
