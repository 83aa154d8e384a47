"""What a layer's attention is made of, and what is asked of it: scores, sets of keys, the statistics of its rows. Tensors in, tensors out.

Three backends compute the statistics, without a [head, query, key] tensor of the whole text: `interp.attention.blocked`, `interp.attention.flash` and
`interp.attention.triton`. They give the same numbers, and what is the same in all of them is here.

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

CACHED_PAIRS = 1 << 21
"""Chosen entries whose places in their blocks are kept for the next layer (12 bytes each): those of some 8,000 tokens of GSM8K."""


STATISTICS = frozenset({"entropy", "collision", "distance", "max_prob", "probabilities"})
"""Per-query statistics that a measure may ask for by name, beside masses and counts above a threshold."""


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
        distance: expected query position - key position, in tokens, over real keys, [batch, head, query]; None where it is not wanted.
        entropy: in nats, an attention sink being one more outcome, [batch, head, query].
        collision: sum of squared probabilities, likewise.
        max_prob: largest probability of a key; likewise.
        above: number of keys whose probability is greater than the threshold, by threshold.
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
        distance: the expected distance.
        on_block: called with each block's place and probabilities, `on_block((examples, heads, queries), first, probabilities)`;
            the probabilities are [batch, head, query, key] of the keys from `first` on, and are overwritten after the call.
    """

    max_prob: bool = True
    thresholds: tuple[float, ...] = ()
    distance: bool = True
    on_block: Callable[[tuple[slice, slice, slice], int, Tensor], None] | None = None


def empty_statistics(query: Tensor, n_columns: int, n_pair_sets: int, wanted: Wanted) -> RowStatistics:
    """Statistics of a layer's queries, [batch, head, query, dim], before any is known: zeros, and what is not wanted is not there."""
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


def raise_if_not_finite(entropy: Tensor) -> None:
    """Refuse statistics of which an entropy, [batch, head, query], is NaN or infinite.

    Raises:
        NonFiniteError: with the place of the first.
    """
    if not bool(torch.isfinite(entropy).all()):
        batch, head, query = (int(i) for i in (~torch.isfinite(entropy)).nonzero()[0])
        raise NonFiniteError(f"attention is not finite: head {head}, example {batch} of the batch, query {query}")


def attention_output(query: Tensor, key: Tensor, value: Tensor, mask: LazyMask, scores: Scores) -> Tensor:
    """The layer's output alone, [batch, query, head, value_dim]: for decoding steps and where gradients flow."""
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
