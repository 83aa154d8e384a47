"""The blocked backend: one exact pass over blocks of queries. It supports every measure and every model.

It computes the scores of one block of queries, takes every statistic while they are in cache, and computes the layer's output from them.
One product of the probabilities with [V, indicator columns] gives both the output and the masses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.attention.masks import LOWEST, LazyMask, MaskBlock
from interp.attention.statistics import KeySets, RowStatistics, Scores, Wanted, empty_statistics, raise_if_not_finite, with_sink

CPU_BLOCK_ELEMENTS = 1 << 21
"""Scores held at once on a CPU: 8 MB in each of two buffers."""

_ACCELERATOR_BLOCK_ELEMENTS = 1 << 25
"""Scores held at once on other devices: 128 MB of float32 in each of two buffers."""

MIN_ROWS, MAX_ROWS = 32, 64
"""Range of the number of queries in a block on a CPU. Smaller blocks waste the matrix product, larger ones compute more scores above the
diagonal (measured: LOG.md). A block of several texts has the minimum."""

MAX_PADDING = 0.125
"""Largest share of padding in a group of texts that a CPU computes together."""


def blocked_pass(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch kv_head key dim"],
    value: Float[Tensor, "batch kv_head key value_dim"] | None,
    mask: LazyMask,
    scores: Scores,
    sets: KeySets,
    wanted: Wanted,
) -> tuple[Float[Tensor, "batch query head value_dim"] | None, RowStatistics]:
    """Compute a layer's output and every statistic of its queries in one exact pass over blocks of queries.

    Args:
        query: queries after rotary embedding, as the model's attention function gets them.
        key: keys after rotary embedding; each key head serves head / kv_head query heads.
        value: values; None computes statistics only.
        mask: which keys each query may attend to.
        scores: how scores are computed.
        sets: what to sum attention over. Only queries in [starts, stops) are computed; all other rows are zero.
        wanted: which optional statistics to compute.

    Returns:
        The output in the dtype of `value`, [batch, query, head, value_dim], or None; and the statistics.

    Raises:
        NonFiniteError: the attention of a real token is NaN or infinite.
    """
    layer = _LayerPass(query, key, value, mask, scores, sets, wanted)
    padding = MAX_PADDING if query.device.type == "cpu" else 1
    for examples in _example_groups(sets.starts, sets.stops, layer.max_examples, padding):
        layer.compute(examples)
    return layer.output, layer.finished_rows()


def _block_sizes(device: torch.device, batch: int, kv_heads: int, groups: int, keys: int) -> tuple[int, int, int]:
    """Return the maximum number of examples, key-value heads and queries in a block: on a CPU what stays in cache."""
    if device.type == "cpu":
        examples = min(batch, CPU_BLOCK_ELEMENTS // (kv_heads * groups * MIN_ROWS * keys))
        if examples > 1:
            return examples, kv_heads, MIN_ROWS
        heads = max(1, min(kv_heads, CPU_BLOCK_ELEMENTS // (groups * MAX_ROWS * keys)))
        return 1, heads, max(MIN_ROWS, min(MAX_ROWS, CPU_BLOCK_ELEMENTS // (heads * groups * keys) // 16 * 16))
    rows = _ACCELERATOR_BLOCK_ELEMENTS // max(1, batch * kv_heads * groups * keys)
    if rows >= 16:
        return batch, kv_heads, min(rows, 1024)
    return 1, kv_heads, max(16, _ACCELERATOR_BLOCK_ELEMENTS // (kv_heads * groups * keys))


def _example_groups(starts: Sequence[int], stops: Sequence[int], most: int, padding: float) -> list[slice]:
    """Return runs of neighboring examples to compute together.

    Args:
        starts: first real token of each example.
        stops: one past the last real token of each example.
        most: maximum number of examples in a run.
        padding: maximum share of padding in the rectangle around a run.
    """
    groups, begin = [], 0
    for end in range(1, len(starts) + 1):
        widest = max(stops[begin : end + 1]) - min(starts[begin : end + 1])
        real = sum(stops[begin : end + 1]) - sum(starts[begin : end + 1])
        if end == len(starts) or end - begin == most or real < (1 - padding) * widest * (end + 1 - begin):
            groups.append(slice(begin, end))
            begin = end
    return groups


def _zero_padding(output: Tensor | None, rows: RowStatistics, examples: slice, of: Tensor, at: Tensor, shift: int) -> None:
    """Set output and statistics of padding to zero.

    Args:
        output: [batch, query, head, value_dim], or None.
        rows: the statistics.
        examples: the group of examples that `of` counts in.
        of: example of each padding token, counted from the group's first.
        at: its position, counted from the first key held.
        shift: position of the first query, counted in the same way.
    """
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


@dataclass(frozen=True)
class _HeadGroup:
    """Some examples and some key-value heads with their query heads. Each pair of example and key-value head is one matrix product.

    Attributes:
        examples: which examples of the batch.
        heads: which query heads.
        n_examples: number of examples.
        n_heads: number of query heads.
        n_products: number of matrix products.
        keys: [product, dim, key] float32.
        weights: what the probabilities are multiplied by, [product, key, mixed]: values, set columns, distance.
        columns: weight of each key in each token set, [example, key, column].
        columns_before: sum of `columns` over all earlier keys, [example, key + 1, column]; None for a group that does not count the keys
            that each query may attend to. They are the same for all heads and layers, so one group of heads counts them.
    """

    examples: slice
    heads: slice
    n_examples: int
    n_heads: int
    n_products: int
    keys: Tensor
    weights: Tensor
    columns: Tensor
    columns_before: Tensor | None


@dataclass(frozen=True)
class _Distribution:
    """Softmax of one block of scores and its statistics, all over the keys alone.

    Attributes:
        prob: [product, row, key].
        max_prob: [product, row].
        lse: log-sum-exp of the scores, [example, head, query].
        entropy: [example, head, query].
        collision: [example, head, query].
    """

    prob: Tensor
    max_prob: Tensor
    lse: Tensor
    entropy: Tensor
    collision: Tensor


class _LayerPass:
    """One layer's tensors, the buffers that its blocks share, and the results so far.

    Attributes:
        output: [batch, query, head, value_dim], or None.
        rows: the statistics.
        max_examples: maximum number of examples to compute together.
    """

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor | None, mask: LazyMask, scores: Scores, sets: KeySets, wanted: Wanted
    ) -> None:
        batch, heads, self._length, self._dim = query.shape
        self._query, self._key, self._value = query, key, value
        self._mask, self._scores, self._sets, self._wanted = mask, scores, sets, wanted
        self._kv_heads, self._n_keys = key.shape[1], key.shape[2]
        self._groups = heads // self._kv_heads
        self._value_dim = 0 if value is None else value.shape[-1]
        self._shift = mask.q_offset - mask.kv_offset
        self.rows = empty_statistics(query, sets.columns.shape[-1], sets.n_pair_sets, wanted)
        self.output = None if value is None else value.new_zeros(batch, self._length, heads, self._value_dim)
        self.max_examples, self._max_kv, self._max_rows = _block_sizes(query.device, batch, self._kv_heads, self._groups, self._n_keys)
        # columns of a mixed row: [values, set columns, distance, unused]; a product is faster if its width is a multiple of 16
        self._distance_column = self._value_dim + sets.columns.shape[-1]
        self._n_mixed = -(-(self._distance_column + 1) // 16) * 16
        n_rows = self.max_examples * self._max_kv * self._groups * min(self._max_rows, self._length)
        sizes = (n_rows * self._n_keys, n_rows * self._n_keys, n_rows * self._n_mixed)
        self._score_buffer, self._prob_buffer, self._mixed_buffer = (
            torch.empty(size, dtype=torch.float32, device=query.device) for size in sizes
        )
        self._position = torch.arange(self._n_keys, dtype=torch.float32, device=query.device)
        # which keys a query may attend to is the same for every layer with this mask
        self._counting = mask.counted is None or mask.counted[0] is not sets
        if not self._counting:
            assert mask.counted is not None
            _, self.rows.n_allowed, self.rows.set_sizes, self.rows.pair_sizes = mask.counted

    def compute(self, examples: slice) -> None:
        """Compute all heads and queries of some examples."""
        start, stop = min(self._sets.starts[examples]), max(self._sets.stops[examples])
        padding = self._sets.padding(examples)
        for first_kv in range(0, self._kv_heads, self._max_kv):
            group = self._head_group(examples, first_kv, padding)
            for q0 in range(max(0, start - self._shift), min(self._length, stop - self._shift), self._max_rows):
                q1 = min(q0 + self._max_rows, self._length, stop - self._shift)
                block = self._mask.block(examples, q0, q1, start, stop, self._query.device, padded=padding is not None)
                if block.first < block.last:
                    self._block(group, q0, q1, block)
        if padding is not None:
            _zero_padding(self.output, self.rows, examples, *padding, self._shift)

    def finished_rows(self) -> RowStatistics:
        """Return the statistics of all queries, and keep the counts of keys for the next layer."""
        rows, mask, sets = self.rows, self._mask, self._sets
        raise_if_not_finite(rows.entropy)
        if self._counting:
            mask.counted = (sets, rows.n_allowed, rows.set_sizes, rows.pair_sizes)
        if self._scores.sinks is not None:
            rows.n_allowed = rows.n_allowed.clone()  # the mask keeps the original for the next layer
            for example, (start, stop) in enumerate(zip(sets.starts, sets.stops, strict=True)):
                rows.n_allowed[example, max(0, start - self._shift) : max(0, stop - self._shift)] += 1
        return rows

    def _head_group(self, examples: slice, first_kv: int, padding: tuple[Tensor, Tensor] | None) -> _HeadGroup:
        """Return keys and weights of some examples and of the key-value heads from `first_kv` on."""
        last_kv = min(first_kv + self._max_kv, self._kv_heads)
        n_kv, n_examples = last_kv - first_kv, examples.stop - examples.start
        columns = self._sets.columns[examples]
        keys = self._key[examples, first_kv:last_kv].float()
        weights = torch.zeros(n_examples, n_kv, self._n_keys, self._n_mixed, device=self._query.device)
        if self._value is not None:
            weights[..., : self._value_dim] = self._value[examples, first_kv:last_kv]
        weights[..., self._value_dim : self._distance_column] = columns[:, None]
        if padding is not None:  # padding may hold any values, NaN included
            keys = keys.clone()
            keys[padding[0], :, padding[1]] = 0
            weights[padding[0], :, padding[1]] = 0
        return _HeadGroup(
            examples=examples,
            heads=slice(first_kv * self._groups, last_kv * self._groups),
            n_examples=n_examples,
            n_heads=n_kv * self._groups,
            n_products=n_examples * n_kv,
            keys=keys.flatten(0, 1).transpose(1, 2),
            weights=weights.flatten(0, 1),
            columns=columns,
            columns_before=F.pad(columns.cumsum(1), (0, 0, 1, 0)) if self._counting and first_kv == 0 else None,
        )

    def _block(self, group: _HeadGroup, q0: int, q1: int, block: MaskBlock) -> None:
        """Compute output and statistics of the queries [q0, q1) of a group."""
        rows, inside = self.rows, (group.examples, group.heads, slice(q0, q1))
        by_query = (group.n_examples, group.n_heads, q1 - q0)
        score = self._masked_scores(group, q0, q1, block)
        found = self._softmax(score, by_query)
        share, entropy, collision = with_sink(found.lse, found.entropy, found.collision, self._scores.sinks, group.heads)
        rows.entropy[inside], rows.collision[inside] = entropy, collision
        self._mix(group, q0, q1, block, found.prob, share)
        if group.columns_before is not None:
            self._count_keys(group, group.columns_before, q0, q1, block)
        if self._sets.n_pair_sets:
            self._pairs(group, q0, q1, block, found.prob, share)
        if rows.max_prob is not None:
            rows.max_prob[inside] = found.max_prob.view(by_query) * (1 if share is None else share)
        if self._wanted.on_block is not None:
            given = found.prob.view(*by_query, -1)
            self._wanted.on_block(inside, block.first, given if share is None else given * share[..., None])
        for threshold, counted in rows.above.items():
            limit = threshold if share is None else (threshold / share).view(*score.shape[:2], 1)
            torch.gt(found.prob, limit, out=score)  # overwrites the scores, which are no longer needed
            counted[inside] = score.sum(-1).view(by_query)

    def _masked_scores(self, group: _HeadGroup, q0: int, q1: int, block: MaskBlock) -> Tensor:
        """Return the scores of the queries [q0, q1), [product, row, key]; a row is one query of one of the heads that share a key head."""
        n, k0, k1 = q1 - q0, block.first, block.last
        scores, inside = self._scores, (group.examples, group.heads, slice(q0, q1))
        score = _view(self._score_buffer, group.n_products, self._groups * n, k1 - k0)
        by_head = score.view(group.n_examples, group.n_heads, n, k1 - k0)
        # the queries of all heads that share a key head are stacked, so keys are not repeated
        rows = (self._query[inside].float() * scores.scaling).reshape(group.n_products, self._groups * n, self._dim)
        torch.bmm(rows, group.keys[..., k0:k1], out=score)
        if scores.softcap is not None:
            score.div_(scores.softcap).tanh_().mul_(scores.softcap)
        if scores.bias is not None:
            bias = scores.bias if scores.bias.shape[0] == 1 else scores.bias[group.examples]
            bias = bias if bias.shape[1] == 1 else bias[:, group.heads]
            by_head.add_(bias[:, :, q0:q1, k0:k1]).clamp_(min=LOWEST)
        partly_open = by_head[..., block.open_until - k0 :]
        torch.minimum(partly_open, block.ceiling[:, None], out=partly_open)
        return score

    def _softmax(self, score: Tensor, by_query: tuple[int, int, int]) -> _Distribution:
        """Return the distribution over the keys. The scores are overwritten."""
        prob = _view(self._prob_buffer, *score.shape)
        # with scores relative to the largest, entropy is a sum of small terms, whatever offset the scores have
        largest = score.amax(-1, keepdim=True)
        score.sub_(largest)
        torch.softmax(score, -1, out=prob)
        top = prob.amax(-1)
        log_sum = -top.log()  # log-sum-exp of the relative scores
        entropy = (log_sum - score.mul_(prob).sum(-1)).view(by_query)
        collision = torch.linalg.vector_norm(prob, dim=-1).square_().view(by_query)
        lse = (largest.squeeze(-1) + log_sum).view(by_query)
        return _Distribution(prob, top, lse, entropy, collision)

    def _mix(self, group: _HeadGroup, q0: int, q1: int, block: MaskBlock, prob: Tensor, share: Tensor | None) -> None:
        """Store output, masses and distance: the probabilities times the weights."""
        n, k0, k1, distance = q1 - q0, block.first, block.last, self._distance_column
        inside = (group.examples, group.heads, slice(q0, q1))
        group.weights[:, k0:k1, distance] = self._position[k0:k1] - (q0 + self._shift)
        mixed = _view(self._mixed_buffer, group.n_products, self._groups * n, self._n_mixed)
        torch.bmm(prob, group.weights[:, k0:k1], out=mixed)
        mixed = mixed.view(group.n_examples, group.n_heads, n, self._n_mixed)
        if self.rows.distance is not None:  # over the keys alone, whatever share a sink takes
            self.rows.distance[inside] = self._position[:n] - mixed[..., distance]
        if share is not None:
            mixed = mixed * share[..., None]
        if block.closed:  # a query without any key gets a zero output, as in the fused kernels
            mixed = mixed * (block.counts > 0)[:, None, :, None]
        if self.output is not None:
            self.output[group.examples, q0:q1, group.heads] = mixed[..., : self._value_dim].transpose(1, 2)
        self.rows.masses[:, group.examples, group.heads, q0:q1] = mixed[..., self._value_dim : distance].permute(3, 0, 1, 2)

    def _count_keys(self, group: _HeadGroup, before: Tensor, q0: int, q1: int, block: MaskBlock) -> None:
        """Store how many keys each query may attend to, in total and in each token set."""
        self.rows.n_allowed[group.examples, q0:q1] = block.counts.float()
        opened = (before[:, block.open_until] - before[:, block.first])[:, None]
        partly = torch.matmul(block.allowed.float(), group.columns[:, block.open_until : block.last])
        self.rows.set_sizes[group.examples, q0:q1] = opened + partly

    def _pairs(self, group: _HeadGroup, q0: int, q1: int, block: MaskBlock, prob: Tensor, share: Tensor | None) -> None:
        """Store the attention of chosen query-key pairs, summed over each set of pairs, and how many of their keys are allowed."""
        n, span, n_sets = q1 - q0, block.last - block.first, self._sets.n_pair_sets
        of, flat, place = self._sets.entries(group.examples, q0 + self._shift, n, block.first, block.last)
        total = prob.new_zeros(group.n_examples * n_sets * n, group.n_heads)
        total.index_add_(0, place, prob.view(group.n_examples, group.n_heads, n * span)[of, :, flat])
        total = total.view(group.n_examples, n_sets, n, group.n_heads).permute(1, 0, 3, 2)
        self.rows.pair_masses[:, group.examples, group.heads, q0:q1] = total if share is None else total * share
        if group.columns_before is not None:
            sizes = prob.new_zeros(group.n_examples * n_sets * n).index_add_(0, place, block.sees(of, flat, span))
            self.rows.pair_sizes[:, group.examples, q0:q1] = sizes.view(group.n_examples, n_sets, n).transpose(0, 1)


def _view(buffer: Tensor, products: int, rows: int, width: int) -> Tensor:
    """Return the beginning of a buffer as [product, row, width]."""
    return buffer[: products * rows * width].view(products, rows, width)
