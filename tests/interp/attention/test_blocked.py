"""Texts that a block takes together are as they are alone, whatever stands in the padding."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.interp.test_attention import assert_close, probabilities
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from interp.attention.blocked import MAX_PADDING, blocked_pass
from interp.attention.masks import LazyMask, lazy_mask
from interp.attention.statistics import KeySets, RowStatistics, Scores, Wanted


@dataclass(frozen=True)
class Ragged:
    """Texts of one padded batch, in a rectangle of `keys` keys of which the last `keys - offset` are queries."""

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
        """The whole batch at once, with `bad` in all padding."""
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
        """One text without its padding: where its queries stand in the batch, output, statistics."""
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


def by_row(rows: RowStatistics) -> dict[str, Tensor]:
    """Every statistic as [batch, query, ...]."""
    assert rows.max_prob is not None
    found = {"n_allowed": rows.n_allowed, "set_sizes": rows.set_sizes, "pair_sizes": rows.pair_sizes.permute(1, 2, 0)}
    found |= {name: getattr(rows, name).transpose(1, 2) for name in ("entropy", "collision", "distance", "max_prob")}
    found |= {name: getattr(rows, name).permute(1, 3, 2, 0) for name in ("masses", "pair_masses")}
    return found | {"above": rows.above[0.1].transpose(1, 2)}


def check_ragged(case: Ragged, bad: float) -> None:
    output, rows = case.run(bad, Wanted(thresholds=(0.1,)))
    found = {"output": output, **by_row(rows)}
    padding = torch.ones(len(case.starts), case.keys - case.offset, dtype=torch.bool)
    for example in range(len(case.starts)):
        if case.stops[example] <= case.offset:
            continue
        inside, alone_output, alone = case.alone(example)
        padding[example, inside] = False
        for name, expected in {"output": alone_output, **by_row(alone)}.items():
            # a distance is a difference inside its block of rows, which begins elsewhere
            assert_close(found[name][example : example + 1, inside], expected.double(), 5e-6 if name == "distance" else 1e-6)
    for name, values in found.items():
        assert not values[padding].any(), name


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


@pytest.mark.parametrize("share", [MAX_PADDING, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("name", RAGGED)
def test_texts_of_one_block_are_as_they_are_alone(name: str, bad: float, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.attention.blocked.MAX_PADDING", share)
    check_ragged(RAGGED[name], bad)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["everything", "prefix_window"])
def test_texts_of_small_blocks_are_as_they_are_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_ragged(RAGGED[name], math.nan)
    monkeypatch.setattr("interp.attention.blocked._block_sizes", lambda device, batch, kv_heads, groups, keys: (2, 1, 5))
    monkeypatch.setattr("interp.attention.blocked.MAX_PADDING", 1.0)
    check_ragged(RAGGED[name], math.nan)


@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=5),
    left=st.lists(st.integers(0, 6), min_size=5, max_size=5),
    right=st.integers(0, 4),
    n_rows=st.sampled_from([1, 7, 32]),
    share=st.sampled_from([0.0, 0.125, 1.0]),
    window=st.sampled_from([None, 1, 5]),
    sinks=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_random_lengths_are_as_they_are_alone(
    lengths: list[int], left: list[int], right: int, n_rows: int, share: float, window: int | None, sinks: bool
) -> None:
    starts = tuple(left[: len(lengths)])
    stops = tuple(a + n for a, n in zip(starts, lengths, strict=True))
    case = Ragged(starts, stops, max(stops) + right, window=window, sinks=sinks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.attention.blocked.MAX_PADDING", share)
        patch.setattr(
            "interp.attention.blocked._block_sizes", lambda device, batch, kv_heads, groups, keys: (min(3, batch), kv_heads, n_rows)
        )
        check_ragged(case, math.nan)


@pytest.mark.parametrize("sizes", [(4, 2, 16), (2, 1, 7), (1, 2, 40)])
@pytest.mark.parametrize("name", ["plain", "window", "sinks", "prefix", "bias_of_each_text"])
def test_blocks_are_the_whole_maps_each_place_once(name: str, sizes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    case = RAGGED[name]
    monkeypatch.setattr("interp.attention.blocked.MAX_PADDING", 1.0)
    monkeypatch.setattr("interp.attention.blocked._block_sizes", lambda device, batch, kv_heads, groups, keys: sizes)
    shape = (len(case.starts), 4, case.keys - case.offset, case.keys)
    maps, times = torch.zeros(shape), torch.zeros(shape)

    def on_block(inside: tuple[slice, slice, slice], first: int, given_probabilities: Tensor) -> None:
        place = (*inside, slice(first, first + given_probabilities.shape[-1]))
        assert maps[place].shape == given_probabilities.shape
        maps[place] = given_probabilities
        times[place] += 1

    case.run(math.nan, Wanted(on_block=on_block))
    assert float(times.max()) == 1
    query, key, _ = case.tensors()
    i, j = torch.arange(case.offset, case.keys)[:, None], torch.arange(case.keys)
    for example, (start, stop) in enumerate(zip(case.starts, case.stops, strict=True)):
        allowed = (j <= i) & (j >= start) & (j < stop) & (j > i - (case.window or case.keys))
        rows = slice(max(0, start - case.offset), stop - case.offset)
        scores = case.scores()
        scores = replace(scores, bias=None if scores.bias is None else scores.bias[example : example + 1, :, rows])
        exact = probabilities(query[example : example + 1, :, rows], key[example : example + 1], scores, allowed[rows])[0, ..., : case.keys]
        found = maps[example, :, rows]
        assert bool((times[example, :, rows].bool() | ~allowed[rows]).all())  # what no block holds is what no query may see
        assert_close(found, exact, 1e-6)
        if not case.sinks:
            assert_close(found.sum(-1), torch.ones_like(found[..., 0]).double(), 1e-6)
