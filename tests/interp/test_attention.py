"""The two passes against float64 softmax, on ordinary and on adversarial scores."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.masking_utils import causal_mask_function, chunked_causal_mask_function, sliding_window_causal_mask_function

from interp import attention
from interp.attention import (
    KeySets,
    NonFiniteAttentionError,
    RowStatistics,
    Scores,
    Wanted,
    blocked_pass,
    flash_obstacles,
    flash_pass,
)
from interp.masks import LazyMask, lazy_mask

PASSES = ("blocked", "flash")


def make_sets(columns: Tensor, starts: tuple[int, ...] | None = None, stops: tuple[int, ...] | None = None) -> KeySets:
    """Columns as given, with the pairs (i, i) and (i, i - 1)."""
    batch, keys, _ = columns.shape
    at = torch.arange(keys)
    same = torch.stack([at, at, torch.zeros_like(at)])
    previous = torch.stack([at[1:], at[:-1], torch.ones_like(at[1:])])
    pairs = torch.cat([same, previous], 1)
    pairs = pairs[:, pairs[0].argsort(stable=True)]
    return KeySets(columns, (pairs,) * batch, 2, starts or (0,) * batch, stops or (keys,) * batch)


def run(way: str, query: Tensor, key: Tensor, value: Tensor | None, mask: Any, scores: Scores, sets: KeySets) -> tuple[Any, RowStatistics]:
    if way == "flash":
        return flash_pass(query, key, value, mask, scores, sets)
    return blocked_pass(query, key, value, mask, scores, sets, Wanted(thresholds=(0.1,)))


def probabilities(query: Tensor, key: Tensor, scores: Scores, allowed: Tensor) -> Tensor:
    """Float64 softmax over keys and sink, [batch, head, query, key or sink]."""
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


def check(way: str, query: Tensor, key: Tensor, value: Tensor, scores: Scores, tolerance: float) -> None:
    batch, _, length, _ = query.shape
    generator = torch.Generator().manual_seed(0)
    sets = make_sets((torch.rand(batch, length, 3, generator=generator) < 0.4).float())
    output, rows = run(way, query, key, value, lazy_mask(batch, length, length), scores, sets)
    allowed = torch.ones(length, length).tril().bool()
    p = probabilities(query, key, scores, allowed)
    keys = p[..., :length]
    logs = torch.where(p > 0, p, 1).log()
    assert_close(rows.entropy, -(p * logs).sum(-1), tolerance)
    assert_close(rows.collision, p.square().sum(-1), tolerance)
    masses = torch.einsum("bhqk,bkc->cbhq", keys, sets.columns.double())
    assert_close(rows.masses, masses, tolerance)
    assert_close(rows.pair_masses[0], keys.diagonal(dim1=2, dim2=3), tolerance)
    assert_close(rows.pair_masses[1][..., 1:], keys[..., 1:, :].diagonal(dim1=2, dim2=3), tolerance)
    i, j = np.indices((length, length))
    distance = (keys * torch.from_numpy(i - j)).sum(-1) / keys.sum(-1)
    assert_close(rows.distance, distance, tolerance)
    np.testing.assert_array_equal(rows.n_allowed, np.arange(1, length + 1)[None].repeat(batch, 0) + (scores.sinks is not None))
    np.testing.assert_array_equal(rows.set_sizes, sets.columns.cumsum(1))
    values = value.double().repeat_interleave(query.shape[1] // value.shape[1], 1)
    assert_close(output, (keys @ values).transpose(1, 2), tolerance)
    if way == "blocked":
        assert rows.max_prob is not None
        assert_close(rows.max_prob, keys.amax(-1), tolerance)
        near = ((keys - 0.1).abs() < 1e-4).any(-1)
        np.testing.assert_array_equal(rows.above[0.1][~near], (keys > 0.1).sum(-1)[~near])
    else:
        assert rows.max_prob is None
        assert rows.above == {}


def tensors(seed: int, batch: int = 2, heads: int = 4, kv_heads: int = 2, length: int = 40, dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, heads, length, dim), (batch, kv_heads, length, dim), (batch, kv_heads, length, dim + 4))
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("way", PASSES)
@pytest.mark.parametrize("sink", [None, -30.0, 0.0, 30.0])
def test_both_passes_agree_with_float64(way: str, sink: float | None) -> None:
    query, key, value = tensors(0)
    sinks = None if sink is None else torch.tensor([sink, sink + 1, 0.5, -0.5])
    check(way, query, key, value, Scores(0.8, sinks=sinks), 1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("way", PASSES)
def test_a_large_common_offset_in_the_keys_changes_nothing(way: str) -> None:
    query, key, value = tensors(1)
    check(way, query, key + 50, value, Scores(8**-0.5), 1e-3)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("way", PASSES)
def test_one_hot_rows_have_no_entropy(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MAX_FLASH_SCORE", 1e6)  # the arithmetic holds 1e-3 here, but not the 1e-6 that the rule is for
    query, key, value = tensors(2)
    check(way, 20 * query, 20 * key, value, Scores(1.0), 1e-3)
    length = key.shape[2]
    eye = torch.eye(length).expand(2, 2, length, length)
    wanted = torch.arange(length - 1, -1, -1).minimum(torch.arange(length))  # some allowed key of every query
    query = (200 * eye[:, :, wanted]).repeat_interleave(2, 1)
    _, rows = run(way, query, eye.contiguous(), None, lazy_mask(2, length, length), Scores(1.0), make_sets(torch.zeros(2, length, 0)))
    assert float(rows.entropy.abs().max()) < 1e-4
    assert float((rows.collision - 1).abs().max()) < 1e-4
    assert_close(rows.distance, (torch.arange(length) - wanted).double().expand(2, 4, length), 1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("way", PASSES)
@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_uniform_attention_has_the_log_of_the_number_of_keys(way: str, constant: float) -> None:
    query, key, value = tensors(3)
    key = torch.full_like(key, constant)
    _, rows = run(way, query, key, value, lazy_mask(2, 40, 40), Scores(1.0), make_sets(torch.ones(2, 40, 1)))
    n = torch.arange(1, 41).double().expand(2, 4, 40)
    assert_close(rows.entropy, n.log(), 1e-5)
    assert_close(rows.collision, 1 / n, 1e-5)
    assert_close(rows.distance, (n - 1) / 2, 1e-5)
    assert_close(rows.masses[0], torch.ones_like(n), 1e-5)


def test_a_sink_alone_takes_everything() -> None:
    query, key, value = tensors(4)
    sets = make_sets(torch.ones(2, 40, 1))
    for way in PASSES:
        output, rows = run(way, query, key, value, lazy_mask(2, 40, 40), Scores(1.0, sinks=torch.full((4,), 200.0)), sets)
        assert float(rows.masses.abs().max()) < 1e-20
        assert float(output.abs().max()) < 1e-20
        assert float(rows.entropy.abs().max()) < 1e-6
        assert float((rows.collision - 1).abs().max()) < 1e-6


@pytest.mark.usefixtures("small_blocks")
def test_capped_and_biased_scores_are_for_the_blocked_way() -> None:
    query, key, value = tensors(5)
    bias = torch.randn(1, 4, 40, 40, generator=torch.Generator().manual_seed(9))
    for scores in (Scores(1.0, softcap=2.0), Scores(1.0, bias=bias), Scores(1.0, softcap=2.0, sinks=torch.zeros(4))):
        check("blocked", query, key, value, scores, 1e-5)
    for scores in (Scores(1.0, softcap=2.0), Scores(1.0, bias=bias)):
        with pytest.raises(ValueError, match="it needs plain scaled scores"):
            check("flash", query, key, value, scores, 1e-5)


@given(seed=st.integers(0, 2**20), length=st.integers(1, 50), scale=st.floats(0.01, 6), sink=st.booleans())
@settings(max_examples=25, deadline=None)
def test_laws_of_the_statistics(seed: int, length: int, scale: float, sink: bool) -> None:
    query, key, value = tensors(seed, batch=1, length=length)
    generator = torch.Generator().manual_seed(seed)
    sets = make_sets(torch.nn.functional.one_hot(torch.randint(0, 4, (1, length), generator=generator), 4).float())
    scores = Scores(scale, sinks=torch.randn(4, generator=generator) if sink else None)
    ways = PASSES[: 1 if flash_obstacles(query, key, value, lazy_mask(1, length, length), scores, sets) else 2]
    found = [run(way, query, key, value, lazy_mask(1, length, length), scores, sets) for way in ways]
    for _, rows in found:
        n = rows.n_allowed[:, None].log()
        assert bool((rows.entropy > -1e-4).all())
        assert bool((rows.entropy < n + 1e-4).all())
        assert bool((-rows.collision.log() <= rows.entropy + 1e-4).all())
        assert bool(((rows.masses > -1e-5) & (rows.masses < 1 + 1e-5)).all())
        total = rows.masses.sum(0)
        assert bool((total < 1 + 1e-5).all())
        if not sink:
            assert float((total - 1).abs().max()) < 1e-5
        assert bool((rows.distance > -1e-3).all())
        assert bool((rows.distance < torch.arange(length) + 1e-3).all())
    if len(found) == 1:
        return
    (output, blocked), (flash_output, flash) = found
    assert_close(flash.entropy, blocked.entropy.double(), 1e-3)
    assert_close(flash.masses, blocked.masses.double(), 1e-4)
    assert_close(flash.pair_masses, blocked.pair_masses.double(), 1e-4)
    assert_close(flash_output, output.double(), 1e-4)


def test_entropy_agrees_with_scipy() -> None:
    query, key, _ = tensors(6)
    length = key.shape[2]
    p = probabilities(query, key, Scores(1.0), torch.ones(length, length).tril().bool()).numpy()
    _, rows = run("blocked", query, key, None, lazy_mask(2, length, length), Scores(1.0), make_sets(torch.zeros(2, length, 0)))
    assert_close(rows.entropy, torch.from_numpy(scipy.stats.entropy(p, axis=-1)), 1e-5)


@pytest.mark.parametrize("way", PASSES)
def test_block_sizes_change_nothing(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = tensors(7, length=70)
    sets, scores = make_sets(torch.ones(2, 70, 2)), Scores(1.0, sinks=torch.zeros(4))
    output, rows = run(way, query, key, value, lazy_mask(2, 70, 70), scores, sets)
    for n_rows, elements in ((1, 1), (16, 1), (16, 1 << 14), (128, 1 << 20)):
        monkeypatch.setattr(attention, "MIN_ROWS", n_rows)
        monkeypatch.setattr(attention, "MAX_ROWS", n_rows)
        monkeypatch.setattr(attention, "CPU_BLOCK_ELEMENTS", elements)
        again, others = run(way, query, key, value, lazy_mask(2, 70, 70), scores, make_sets(torch.ones(2, 70, 2)))
        assert_close(again, output.double(), 1e-6)
        for name in ("entropy", "collision", "distance", "masses", "pair_masses", "n_allowed", "set_sizes", "pair_sizes"):
            assert_close(getattr(others, name), getattr(rows, name).double(), 1e-6 if name != "distance" else 1e-5)


@pytest.mark.parametrize("way", PASSES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_attention_that_is_not_finite_is_refused(way: str, bad: float) -> None:
    query, key, value = tensors(8)
    query[1, 2, 17, 0] = bad
    with pytest.raises(NonFiniteAttentionError, match="head 2, example 1 of the batch, query 17"):
        run(way, query, key, value, lazy_mask(2, 40, 40), Scores(1.0), make_sets(torch.ones(2, 40, 1)))


def test_padding_rows_are_zero_and_never_computed() -> None:
    query, key, value = tensors(9)
    padding = torch.ones(2, 40, dtype=torch.bool)
    padding[0, :13] = False
    query[0, :, :13] = key[0, :, :13] = value[0, :, :13] = 1e30
    sets = make_sets(torch.ones(2, 40, 1), starts=(13, 0))
    _, rows = run("blocked", query, key, value, lazy_mask(2, 40, 40, attention_mask=padding), Scores(1.0), sets)
    assert float(rows.entropy[0, :, :13].abs().max()) == 0
    assert float(rows.masses[:, 0, :, :13].abs().max()) == 0
    alone = make_sets(torch.ones(1, 27, 1))
    _, expected = run("blocked", query[:1, :, 13:], key[:1, :, 13:], value[:1, :, 13:], lazy_mask(1, 27, 27), Scores(1.0), alone)
    assert_close(rows.entropy[:1, :, 13:], expected.entropy.double(), 1e-6)
    assert_close(rows.distance[:1, :, 13:], expected.distance.double(), 1e-5)


# --- padding ----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("share", [attention.MAX_PADDING, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("name", RAGGED)
def test_texts_of_one_block_are_as_they_are_alone(name: str, bad: float, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MAX_PADDING", share)
    check_ragged(RAGGED[name], bad)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["everything", "prefix_window"])
def test_texts_of_small_blocks_are_as_they_are_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_ragged(RAGGED[name], math.nan)
    monkeypatch.setattr(attention, "_block_sizes", lambda device, batch, kv_heads, groups, keys: (2, 1, 5))
    monkeypatch.setattr(attention, "MAX_PADDING", 1.0)
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
        patch.setattr(attention, "MAX_PADDING", share)
        patch.setattr(attention, "_block_sizes", lambda device, batch, kv_heads, groups, keys: (min(3, batch), kv_heads, n_rows))
        check_ragged(case, math.nan)


@pytest.mark.parametrize("sizes", [(4, 2, 16), (2, 1, 7), (1, 2, 40)])
@pytest.mark.parametrize("name", ["plain", "window", "sinks", "prefix", "bias_of_each_text"])
def test_blocks_are_the_whole_maps_each_place_once(name: str, sizes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    case = RAGGED[name]
    monkeypatch.setattr(attention, "MAX_PADDING", 1.0)
    monkeypatch.setattr(attention, "_block_sizes", lambda device, batch, kv_heads, groups, keys: sizes)
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


def test_padding_inside_a_text_is_no_triangle() -> None:
    query, key, value = tensors(11)
    padding = torch.ones(2, 40, dtype=torch.bool)
    padding[:, 7] = False
    i = torch.arange(40)
    exact = probabilities(query, key, Scores(1.0), (i <= i[:, None]) & padding[0])
    for way in PASSES:
        _, rows = run(way, query, key, value, lazy_mask(2, 40, 40, attention_mask=padding), Scores(1.0), make_sets(torch.ones(2, 40, 1)))
        assert_close(rows.entropy, torch.special.entr(exact).sum(-1), 1e-5)
        np.testing.assert_array_equal(rows.n_allowed, ((i <= i[:, None]) & padding[0]).sum(-1)[None].repeat(2, 1))


# --- which layers the flash way cannot express ------------------------------------------------------------------------


def why_not_flash(query: Tensor, key: Tensor, value: Tensor, mask: LazyMask, scores: Scores | None = None) -> str:
    return "; ".join(
        flash_obstacles(query, key, value, mask, scores or Scores(1.0), make_sets(torch.ones(*key.shape[:1], key.shape[2], 1)))
    )


def test_what_the_flash_way_can_express(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = tensors(12)
    causal = lazy_mask(2, 40, 40)
    window = lazy_mask(2, 40, 40, mask_function=sliding_window_causal_mask_function(8))
    chunked = lazy_mask(2, 40, 40, mask_function=chunked_causal_mask_function(8, torch.zeros(2, dtype=torch.long)))
    for mask in (causal, window, chunked):
        assert why_not_flash(query, key, value, mask) == ""
        assert why_not_flash(query, key, value, mask, Scores(1.0, sinks=torch.zeros(4))) == ""
    assert "plain scaled scores" in why_not_flash(query, key, value, causal, Scores(1.0, softcap=2.0))
    assert "plain scaled scores" in why_not_flash(query, key, value, causal, Scores(1.0, bias=torch.zeros(1, 1, 40, 40)))
    assert "alone, got torch.float64" in why_not_flash(query.double(), key.double(), value.double(), causal)
    assert "alone, got torch.bfloat16, torch.float32" in why_not_flash(query, key, value.bfloat16(), causal)
    assert "no kernel on meta" in why_not_flash(query.to("meta"), key.to("meta"), value.to("meta"), causal)
    monkeypatch.setattr(attention, "MAX_MASK_ELEMENTS", 2 * 40 * 40)
    assert why_not_flash(query, key, value, window) == ""
    monkeypatch.setattr(attention, "MAX_MASK_ELEMENTS", 2 * 40 * 40 - 1)
    assert "its mask would have 3,200 elements, more than 3,199" in why_not_flash(query, key, value, window)
    assert why_not_flash(query, key, value, causal) == ""  # needs no mask
    reasons = why_not_flash(query, key, value, window, Scores(1.0, softcap=2.0))
    assert "plain scaled scores" in reasons
    assert "3,200 elements" in reasons


def test_scores_in_which_a_difference_loses_digits_are_for_the_blocked_way() -> None:
    case = Ragged()
    query, key, value = case.tensors()
    at = torch.arange(case.keys)
    real = torch.stack([(at >= a) & (at < b) for a, b in zip(case.starts, case.stops, strict=True)])
    sets, mask = KeySets(case.columns(), (torch.zeros(3, 0).long(),) * 4, 0, case.starts, case.stops), case.mask(4, 40, 40, 0, real)
    largest = 0.0
    for example, inside in enumerate(real):
        of_key = key[example, :, inside].double()
        norms = (of_key - of_key.mean(1, keepdim=True)).norm(dim=-1).amax(-1).repeat_interleave(2)
        largest = max(largest, float((query[example, :, inside].double().norm(dim=-1).amax(-1) * norms).max()))
    key = key + 1000  # a common offset is taken away, and padding does not count
    for example in range(4):
        key[example, :, ~real[example]] = query[example, :, ~real[example]] = math.nan
    below, above = (attention.MAX_FLASH_SCORE * factor / largest for factor in (0.99, 1.01))
    assert flash_obstacles(query, key, value, mask, Scores(below), sets) == []
    assert "its float32 difference loses digits" in flash_obstacles(query, key, value, mask, Scores(above), sets)[0]
    with pytest.raises(ValueError, match=r"scores may be as large as 129, and above 128 .* use the blocked way"):
        flash_pass(query, key, value, mask, Scores(above), sets)


def test_a_query_that_sees_nothing_is_for_the_blocked_way() -> None:
    query, key, value = tensors(13)

    def others(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k < q

    mask, sets = lazy_mask(2, 40, 40, mask_function=others), make_sets(torch.ones(2, 40, 1))
    assert why_not_flash(query, key, value, mask) == "a query of a text sees no key"
    with pytest.raises(ValueError, match="a query of a text sees no key; use the blocked way"):
        flash_pass(query, key, value, mask, Scores(1.0), sets)
    output, rows = blocked_pass(query, key, value, mask, Scores(1.0), sets, Wanted())
    assert output is not None
    assert not output[:, 0].any()
    assert not rows.masses[..., 0].any()
    later = make_sets(torch.ones(2, 40, 1), starts=(1, 1))  # the first token is padding, but what the rule leaves it is not
    assert flash_obstacles(query, key, value, mask, Scores(1.0), later) == ["a query of a text sees no key"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_padding_does_not_reach_the_statistics_of_the_flash_way(bad: float) -> None:
    for case in (RAGGED["plain"], RAGGED["right"], RAGGED["window"], RAGGED["sinks"], RAGGED["prefix_window"]):
        query, key, _ = case.tensors()
        at = torch.arange(case.keys)
        real = torch.stack([(at >= a) & (at < b) for a, b in zip(case.starts, case.stops, strict=True)])
        for example in range(len(case.starts)):
            key[example, :, ~real[example]] = bad
            query[example, :, ~real[example, case.offset :]] = bad
        pairs = tuple(case.pairs(a, b, case.offset) for a, b in zip(case.starts, case.stops, strict=True))
        sets = KeySets(case.columns(), pairs, 2, case.starts, case.stops)
        mask = case.mask(len(case.starts), case.keys - case.offset, case.keys, case.offset, real)
        _, rows = flash_pass(query, key, None, mask, case.scores(), sets)
        _, expected = case.run(bad, Wanted(thresholds=(0.1,)))
        for name in ("entropy", "collision", "distance", "masses", "pair_masses", "n_allowed", "set_sizes", "pair_sizes"):
            assert_close(getattr(rows, name), getattr(expected, name).double(), 5e-6)
        assert not rows.entropy.transpose(1, 2)[~real[:, case.offset :]].any()


def test_shapes_are_executed() -> None:
    query, key, value = tensors(10)
    with pytest.raises(Exception, match="Type-check error"):
        blocked_pass(query[0], key, value, lazy_mask(2, 40, 40), Scores(1.0), make_sets(torch.ones(2, 40, 1)), Wanted())
