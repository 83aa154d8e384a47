"""Random layers, ragged batches and float64 probabilities that the tests of the attention backends share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from interp.attention.blocked import blocked_pass
from interp.attention.masks import LazyMask, lazy_mask
from interp.attention.statistics import KeySets, RowStatistics, Scores, Wanted


def make_sets(columns: Tensor, starts: tuple[int, ...] | None = None, stops: tuple[int, ...] | None = None) -> KeySets:
    """Return the columns as key sets, with the pairs (i, i) and (i, i - 1)."""
    batch, keys, _ = columns.shape
    at = torch.arange(keys)
    same = torch.stack([at, at, torch.zeros_like(at)])
    previous = torch.stack([at[1:], at[:-1], torch.ones_like(at[1:])])
    pairs = torch.cat([same, previous], 1)
    pairs = pairs[:, pairs[0].argsort(stable=True)]
    return KeySets(columns, (pairs,) * batch, 2, starts or (0,) * batch, stops or (keys,) * batch)


def probabilities(query: Tensor, key: Tensor, scores: Scores, allowed: Tensor) -> Tensor:
    """Return the float64 softmax over keys and sink, [batch, head, query, key or sink]."""
    key = key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
    score = scores.scaling * query.double() @ key.transpose(2, 3)
    if scores.softcap is not None:
        score = scores.softcap * torch.tanh(score / scores.softcap)
    if scores.bias is not None:
        score = score + scores.bias.double()
    score = score.masked_fill(~allowed, -torch.inf)
    if scores.sinks is not None:
        sink = scores.sinks.double().view(1, -1, 1, 1).expand(*score.shape[:3], 1)
        score = torch.cat([score, sink], -1)
    return score.softmax(-1)


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (found.double() - expected).abs() / expected.abs().clamp_min(1)
    assert float(error.max()) <= tolerance, f"worst {float(error.max()):.2e}"


def tensors(seed: int, batch: int = 2, heads: int = 4, kv_heads: int = 2, length: int = 40, dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, heads, length, dim), (batch, kv_heads, length, dim), (batch, kv_heads, length, dim + 4))
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


@dataclass(frozen=True)
class Ragged:
    """A padded batch of texts of different length: `keys` keys, of which the last `keys - offset` are also queries."""

    starts: tuple[int, ...] = (0, 3, 0, 9)
    stops: tuple[int, ...] = (40, 40, 33, 36)
    keys: int = 40
    offset: int = 0
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    bias: str | None = None

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(3)
        batch = len(self.starts)
        shapes = ((batch, 4, self.keys - self.offset, 8), (batch, 2, self.keys, 8), (batch, 2, self.keys, 12))
        query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
        return query, key, value

    def mask(self, batch: int, length: int, keys: int, offset: int, padding: Tensor | None = None) -> LazyMask:
        rule = causal_mask_function if self.window is None else sliding_window_causal_mask_function(self.window)
        return lazy_mask(batch, length, keys, q_offset=offset, mask_function=rule, attention_mask=padding)

    def scores(self) -> Scores:
        generator = torch.Generator().manual_seed(4)
        shape = {"one": (1, 4), "one head": (len(self.starts), 1), "each": (len(self.starts), 4)}
        bias = None if self.bias is None else torch.randn(*shape[self.bias], self.keys - self.offset, self.keys, generator=generator)
        return Scores(0.7, self.softcap, torch.randn(4, generator=generator) if self.sinks else None, bias)

    def columns(self) -> Tensor:
        at = torch.arange(self.keys)
        real = torch.stack([(at >= a) & (at < b) for a, b in zip(self.starts, self.stops, strict=True)])
        weights = (torch.rand(len(self.starts), self.keys, 3, generator=torch.Generator().manual_seed(5)) < 0.4).float()
        return weights * real[..., None]

    def pairs(self, start: int, stop: int, first_query: int) -> Tensor:
        at = torch.arange(max(start + 1, first_query), stop)
        both = torch.stack([torch.cat([at, at]), torch.cat([at, at - 1]), torch.cat([0 * at, 0 * at + 1])])
        return both[:, both[0].argsort(stable=True)]

    def run(self, bad: float, wanted: Wanted) -> tuple[Tensor, RowStatistics]:
        """Compute the complete batch at once, with `bad` in all padding."""
        query, key, value = self.tensors()
        at = torch.arange(self.keys)
        padding = torch.stack([(at >= a) & (at < b) for a, b in zip(self.starts, self.stops, strict=True)])
        for example, real in enumerate(padding):
            key[example, :, ~real] = value[example, :, ~real] = bad
            query[example, :, ~real[self.offset :]] = bad
        pairs = tuple(self.pairs(a, b, self.offset) for a, b in zip(self.starts, self.stops, strict=True))
        sets = KeySets(self.columns(), pairs, 2, self.starts, self.stops)
        mask = self.mask(len(self.starts), self.keys - self.offset, self.keys, self.offset, padding)
        output, rows = blocked_pass(query, key, value, mask, self.scores(), sets, wanted)
        assert output is not None
        return output, rows

    def alone(self, example: int) -> tuple[slice, Tensor, RowStatistics]:
        """Compute one text without its padding; return the place of its queries in the batch, the output and the statistics."""
        query, key, value = self.tensors()
        start, stop = self.starts[example], self.stops[example]
        first = max(start, self.offset)
        inside, keys, here = slice(first - self.offset, stop - self.offset), slice(start, stop), slice(example, example + 1)
        scores = self.scores()
        if scores.bias is not None:
            of = scores.bias if scores.bias.shape[0] == 1 else scores.bias[here]
            scores = replace(scores, bias=of[:, :, inside, keys])
        sets = KeySets(self.columns()[here, keys], (self.pairs(0, stop - start, first - start),), 2, (0,), (stop - start,))
        mask = self.mask(1, stop - first, stop - start, first - start)
        output, rows = blocked_pass(
            query[here, :, inside], key[here, :, keys], value[here, :, keys], mask, scores, sets, Wanted(thresholds=(0.1,))
        )
        assert output is not None
        return inside, output, rows


RAGGED = {
    "plain": Ragged(),
    "left": Ragged(starts=(0, 5, 2, 39), stops=(40,) * 4),
    "right": Ragged(starts=(0,) * 4, stops=(40, 1, 37, 36)),
    "window": Ragged(window=6),
    "sinks": Ragged(sinks=True),
    "softcap": Ragged(softcap=2.0),
    "bias": Ragged(bias="one"),
    "bias_of_each_text": Ragged(bias="each"),
    "bias_of_all_heads": Ragged(bias="one head", window=9),
    "prefix": Ragged(offset=17),
    "prefix_window": Ragged(offset=17, window=6, sinks=True),
    "prefix_bias": Ragged(offset=11, bias="each", softcap=2.0),
    "everything": Ragged(window=9, softcap=2.0, sinks=True, bias="each"),
}
