"""Inputs and outputs of the attention backends: scores, sets of keys, and the statistics of each query.

Three backends compute the statistics without a [head, query, key] tensor of the complete text: `interp.attention.blocked`,
`interp.attention.flash` and `interp.attention.triton`. They give the same numbers; this module holds what they share.

Axes: batch head query key dim column pair. Statistics are float32 whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.attention.masks import LazyMask
from interp.tables.errors import NonFiniteError

_CACHED_PAIRS = 1 << 21
"""Maximum number of query-key pairs whose places in their blocks are cached for the next layer (12 bytes each): those of about 8,000 tokens
of GSM8K."""

STATISTICS = frozenset({"entropy", "collision", "distance", "max_prob", "probabilities"})
"""Per-query statistics that a measure may request by name, in addition to masses and counts above a threshold."""


@dataclass(frozen=True)
class KeySets:
    """Keys and query-key pairs to sum attention over, for a padded batch.

    Attributes:
        columns: weight of each key in each set, usually 0 or 1, [batch, key, column].
        pairs: query, key and set number of every pair of each example, [3, pair] int32, sorted by query.
        n_pair_sets: number of sets of pairs.
        starts: first real token of each example.
        stops: one past the last real token of each example.
    """

    columns: Float[Tensor, "batch key column"]
    pairs: tuple[Int[Tensor, "3 _pair"], ...]
    n_pair_sets: int
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    _blocks: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _padding: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def to(self, device: torch.device) -> KeySets:
        """Return the same sets on another device."""
        if self.columns.device == device:
            return self
        return KeySets(self.columns.to(device), tuple(p.to(device) for p in self.pairs), self.n_pair_sets, self.starts, self.stops)

    def padding(self, examples: slice) -> tuple[Tensor, Tensor] | None:
        """Return the padding in the rectangle around some examples: example counted from the first, and position; None without padding."""
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
        """Return the query-key pairs inside one block.

        Returns:
            Of each pair: its example, counted from the block's first; flat index into [rows, last - first]; flat index into
            [example, set, rows].
        """
        name = (examples.start, examples.stop, row, rows, first, last)
        found = self._blocks.get(name)
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
            if len(of) + sum(len(block[0]) for block in self._blocks.values()) <= _CACHED_PAIRS:
                self._blocks[name] = found
        return found


@dataclass
class RowStatistics:
    """Statistics of every query of one layer. Rows of padding are zero.

    Attributes:
        n_allowed: number of keys that the query may attend to, plus one for an attention sink, [batch, query].
        set_sizes: sum of each column over those keys, [batch, query, column].
        masses: attention summed over each column, [column, batch, head, query].
        pair_masses: attention summed over each set of pairs, [set, batch, head, query].
        pair_sizes: number of allowed keys of each query in each set of pairs, [set, batch, query].
        distance: mean of query position - key position over the keys, in tokens, [batch, head, query]; None if it was not requested.
        entropy: in nats, with an attention sink as one more outcome, [batch, head, query].
        collision: sum of squared probabilities, with an attention sink as one more outcome, [batch, head, query].
        max_prob: largest probability of a key, [batch, head, query]; None if it was not requested.
        above: number of keys whose probability exceeds a threshold, [batch, head, query] by threshold.
    """

    n_allowed: Float[Tensor, "batch query"]
    set_sizes: Float[Tensor, "batch query column"]
    masses: Float[Tensor, "column batch head query"]
    pair_masses: Float[Tensor, "set batch head query"]
    pair_sizes: Float[Tensor, "set batch query"]
    distance: Float[Tensor, "batch head query"] | None
    entropy: Float[Tensor, "batch head query"]
    collision: Float[Tensor, "batch head query"]
    max_prob: Float[Tensor, "batch head query"] | None
    above: dict[float, Float[Tensor, "batch head query"]]


@dataclass(frozen=True)
class Scores:
    """How a layer computes its scores, `softcap * tanh(scaling * q.k / softcap) + bias`, and the scores of its attention sinks.

    Attributes:
        scaling: factor of q.k.
        softcap: bound of the scores; None for scores that are not capped.
        sinks: one extra score per head, which takes part in the softmax and has no value, [head].
        bias: added to the scores before the mask, [batch or 1, head or 1, query, key].
    """

    scaling: float
    softcap: float | None = None
    sinks: Float[Tensor, " head"] | None = None
    bias: Float[Tensor, "#batch #head query key"] | None = None


@dataclass(frozen=True)
class Wanted:
    """What to compute in addition to masses, entropy and collision.

    Attributes:
        max_prob: whether to compute the largest probability.
        thresholds: thresholds above which to count probabilities.
        distance: whether to compute the mean distance.
        on_block: called with the place and the probabilities of each block, `on_block((examples, heads, queries), first, probabilities)`.
            The probabilities are [batch, head, query, key] of the keys from `first` on, and are overwritten after the call.
    """

    max_prob: bool = True
    thresholds: tuple[float, ...] = ()
    distance: bool = True
    on_block: Callable[[tuple[slice, slice, slice], int, Tensor], None] | None = None


def empty_statistics(query: Tensor, n_columns: int, n_pair_sets: int, wanted: Wanted) -> RowStatistics:
    """Return zeros for every statistic of a layer's queries, [batch, head, query, dim], and None for those that were not requested."""
    batch, heads, length, _ = query.shape

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float32, device=query.device)

    return RowStatistics(
        n_allowed=zeros(batch, length),
        set_sizes=zeros(batch, length, n_columns),
        masses=zeros(n_columns, batch, heads, length),
        pair_masses=zeros(n_pair_sets, batch, heads, length),
        pair_sizes=zeros(n_pair_sets, batch, length),
        distance=zeros(batch, heads, length) if wanted.distance else None,
        entropy=zeros(batch, heads, length),
        collision=zeros(batch, heads, length),
        max_prob=zeros(batch, heads, length) if wanted.max_prob else None,
        above={t: zeros(batch, heads, length) for t in wanted.thresholds},
    )


def with_sink(lse: Tensor, entropy: Tensor, collision: Tensor, sinks: Tensor | None, heads: slice) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return entropy and collision with an attention sink as one more outcome of the distribution over keys.

    Args:
        lse: log-sum-exp of the keys' scores, [batch, head, query].
        entropy: entropy over the keys alone, [batch, head, query].
        collision: collision over the keys alone, [batch, head, query].
        sinks: score of each head's sink, [head], or None.
        heads: which heads of `sinks` the rows belong to.

    Returns:
        The share w of the probability that the sink leaves to the keys (None without a sink), the entropy w H + h(w) and the collision
        w^2 C + (1 - w)^2.
    """
    if sinks is None:
        return None, entropy, collision
    relative = sinks[heads].float().view(1, -1, 1) - lse
    sink, share = torch.sigmoid(relative), torch.sigmoid(-relative)
    # -w ln w = w softplus(x) and -s ln s = s softplus(-x), which is exact even if one of them is nearly 1
    entropy = share * (entropy + F.softplus(relative)) + sink * F.softplus(-relative)
    return share, entropy, share.square() * collision + sink.square()


def raise_if_not_finite(entropy: Tensor) -> None:
    """Raise if an entropy, [batch, head, query], is NaN or infinite.

    Raises:
        NonFiniteError: the message has the place of the first such entropy.
    """
    if not bool(torch.isfinite(entropy).all()):
        batch, head, query = (int(i) for i in (~torch.isfinite(entropy)).nonzero()[0])
        raise NonFiniteError(f"attention is not finite: head {head}, example {batch} of the batch, query {query}")


def attention_output(query: Tensor, key: Tensor, value: Tensor, mask: LazyMask, scores: Scores) -> Tensor:
    """Return the layer's output without statistics, [batch, query, head, value_dim], for decoding steps and for passes with gradients."""
    batch, heads, length, _ = query.shape
    groups = heads // key.shape[1]
    block = mask.block(slice(0, batch), 0, length, 0, key.shape[2], query.device, padded=True)
    allowed = torch.zeros(block.allowed.shape[0], 1, length, key.shape[2], dtype=torch.bool, device=query.device)
    allowed[..., block.first : block.open_until] = True
    allowed[..., block.open_until : block.last] = block.allowed[:, None]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if scores.softcap is None and scores.sinks is None and scores.bias is None:
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scores.scaling)
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
