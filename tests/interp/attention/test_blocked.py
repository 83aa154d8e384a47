"""The blocked backend: texts of one batch give the same numbers as each text alone, whatever the padding holds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interp.attention.blocked import MAX_PADDING
from interp.attention.statistics import RowStatistics, Wanted
from tests.interp.attention.cases import RAGGED, Ragged, assert_close, probabilities


def by_row(rows: RowStatistics) -> dict[str, Tensor]:
    """Return every statistic as [batch, query, ...]."""
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
            # a distance is computed relative to its block of rows, which begins elsewhere
            assert_close(found[name][example : example + 1, inside], expected.double(), 5e-6 if name == "distance" else 1e-6)
    for name, values in found.items():
        assert not values[padding].any(), name


@pytest.mark.parametrize("share", [MAX_PADDING, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("name", RAGGED)
def test_texts_of_one_block_equal_each_text_alone(name: str, bad: float, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.attention.blocked.MAX_PADDING", share)
    check_ragged(RAGGED[name], bad)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["everything", "prefix_window"])
def test_texts_of_small_blocks_equal_each_text_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_texts_of_random_length_equal_each_text_alone(
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
def test_blocks_cover_every_entry_of_the_maps_once(name: str, sizes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert bool((times[example, :, rows].bool() | ~allowed[rows]).all())  # entries outside all blocks are masked
        assert_close(found, exact, 1e-6)
        if not case.sinks:
            assert_close(found.sum(-1), torch.ones_like(found[..., 0]).double(), 1e-6)
