"""Statistics of the blocked and the flash backend against float64 softmax, for ordinary and adversarial scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interp.attention.blocked import blocked_pass
from interp.attention.flash import flash_obstacles, flash_pass
from interp.attention.masks import lazy_mask
from interp.attention.statistics import KeySets, RowStatistics, Scores, Wanted
from interp.attention.triton import triton_pass
from interp.tables.errors import NonFiniteError
from tests.interp.attention.cases import assert_close, make_sets, probabilities, tensors

PASSES = ("blocked", "flash")


@pytest.fixture(autouse=True)
def any_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the flash backend take scores above those at which its tables are within 1e-6."""
    monkeypatch.setattr("interp.attention.flash.MAX_FLASH_SCORE", 1e6)


def run(
    backend: str, query: Tensor, key: Tensor, value: Tensor | None, mask: Any, scores: Scores, sets: KeySets
) -> tuple[Any, RowStatistics]:
    if backend == "flash":
        return flash_pass(query, key, value, mask, scores, sets)
    return blocked_pass(query, key, value, mask, scores, sets, Wanted(thresholds=(0.1,)))


def check(backend: str, query: Tensor, key: Tensor, value: Tensor, scores: Scores, tolerance: float) -> None:
    batch, _, length, _ = query.shape
    generator = torch.Generator().manual_seed(0)
    sets = make_sets((torch.rand(batch, length, 3, generator=generator) < 0.4).float())
    output, rows = run(backend, query, key, value, lazy_mask(batch, length, length), scores, sets)
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
    np.testing.assert_array_equal(rows.n_allowed, np.arange(1, length + 1)[None].repeat(batch, 0) + (scores.sinks is not None))
    np.testing.assert_array_equal(rows.set_sizes, sets.columns.cumsum(1))
    values = value.double().repeat_interleave(query.shape[1] // value.shape[1], 1)
    assert_close(output, (keys @ values).transpose(1, 2), tolerance)
    if backend == "blocked":
        assert rows.max_prob is not None
        assert rows.distance is not None
        assert_close(rows.max_prob, keys.amax(-1), tolerance)
        i, j = np.indices((length, length))
        assert_close(rows.distance, (keys * torch.from_numpy(i - j)).sum(-1) / keys.sum(-1), tolerance)
        near = ((keys - 0.1).abs() < 1e-4).any(-1)
        np.testing.assert_array_equal(rows.above[0.1][~near], (keys > 0.1).sum(-1)[~near])
    else:
        assert rows.max_prob is None
        assert rows.distance is None
        assert rows.above == {}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("sink", [None, -30.0, 0.0, 30.0])
def test_both_backends_agree_with_float64(backend: str, sink: float | None) -> None:
    query, key, value = tensors(0)
    sinks = None if sink is None else torch.tensor([sink, sink + 1, 0.5, -0.5])
    check(backend, query, key, value, Scores(0.8, sinks=sinks), 1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("backend", PASSES)
def test_a_large_common_offset_of_the_keys_changes_nothing(backend: str) -> None:
    query, key, value = tensors(1)
    check(backend, query, key + 50, value, Scores(8**-0.5), 1e-3)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("backend", PASSES)
def test_one_hot_rows_have_zero_entropy(backend: str) -> None:
    query, key, value = tensors(2)
    check(backend, 20 * query, 20 * key, value, Scores(1.0), 1e-3)
    length = key.shape[2]
    eye = torch.eye(length).expand(2, 2, length, length)
    wanted = torch.arange(length - 1, -1, -1).minimum(torch.arange(length))  # some allowed key of every query
    query = (200 * eye[:, :, wanted]).repeat_interleave(2, 1)
    _, rows = run(backend, query, eye.contiguous(), None, lazy_mask(2, length, length), Scores(1.0), make_sets(torch.zeros(2, length, 0)))
    assert float(rows.entropy.abs().max()) < 1e-4
    assert float((rows.collision - 1).abs().max()) < 1e-4
    if rows.distance is not None:
        assert_close(rows.distance, (torch.arange(length) - wanted).double().expand(2, 4, length), 1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_entropy_of_uniform_attention_is_the_log_of_the_number_of_keys(backend: str, constant: float) -> None:
    query, key, value = tensors(3)
    key = torch.full_like(key, constant)
    _, rows = run(backend, query, key, value, lazy_mask(2, 40, 40), Scores(1.0), make_sets(torch.ones(2, 40, 1)))
    n = torch.arange(1, 41).double().expand(2, 4, 40)
    assert_close(rows.entropy, n.log(), 1e-5)
    assert_close(rows.collision, 1 / n, 1e-5)
    if rows.distance is not None:
        assert_close(rows.distance, (n - 1) / 2, 1e-5)
    assert_close(rows.masses[0], torch.ones_like(n), 1e-5)


def test_a_very_strong_sink_takes_all_attention() -> None:
    query, key, value = tensors(4)
    sets = make_sets(torch.ones(2, 40, 1))
    for backend in PASSES:
        output, rows = run(backend, query, key, value, lazy_mask(2, 40, 40), Scores(1.0, sinks=torch.full((4,), 200.0)), sets)
        assert float(rows.masses.abs().max()) < 1e-20
        assert float(output.abs().max()) < 1e-20
        assert float(rows.entropy.abs().max()) < 1e-6
        assert float((rows.collision - 1).abs().max()) < 1e-6


@pytest.mark.usefixtures("small_blocks")
def test_capped_and_biased_scores_need_the_blocked_backend() -> None:
    query, key, value = tensors(5)
    bias = torch.randn(1, 4, 40, 40, generator=torch.Generator().manual_seed(9))
    for scores in (Scores(1.0, softcap=2.0), Scores(1.0, bias=bias), Scores(1.0, softcap=2.0, sinks=torch.zeros(4))):
        check("blocked", query, key, value, scores, 1e-5)
    for scores in (Scores(1.0, softcap=2.0), Scores(1.0, bias=bias)):
        with pytest.raises(ValueError, match="it needs scores without a soft cap or a position bias"):
            check("flash", query, key, value, scores, 1e-5)


@given(seed=st.integers(0, 2**20), length=st.integers(1, 50), scale=st.floats(0.01, 6), sink=st.booleans())
@settings(max_examples=25, deadline=None)
def test_statistics_stay_within_their_bounds(seed: int, length: int, scale: float, sink: bool) -> None:
    query, key, value = tensors(seed, batch=1, length=length)
    generator = torch.Generator().manual_seed(seed)
    sets = make_sets(torch.nn.functional.one_hot(torch.randint(0, 4, (1, length), generator=generator), 4).float())
    scores = Scores(scale, sinks=torch.randn(4, generator=generator) if sink else None)
    backends = PASSES[: 1 if flash_obstacles(query, key, value, lazy_mask(1, length, length), scores, sets) else 2]
    found = [run(backend, query, key, value, lazy_mask(1, length, length), scores, sets) for backend in backends]
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
        if rows.distance is not None:
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


@pytest.mark.parametrize("backend", PASSES)
def test_block_sizes_change_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = tensors(7, length=70)
    sets, scores = make_sets(torch.ones(2, 70, 2)), Scores(1.0, sinks=torch.zeros(4))
    output, rows = run(backend, query, key, value, lazy_mask(2, 70, 70), scores, sets)
    for n_rows, elements in ((1, 1), (16, 1), (16, 1 << 14), (128, 1 << 20)):
        monkeypatch.setattr("interp.attention.blocked.MIN_ROWS", n_rows)
        monkeypatch.setattr("interp.attention.blocked.MAX_ROWS", n_rows)
        monkeypatch.setattr("interp.attention.blocked.CPU_BLOCK_ELEMENTS", elements)
        again, others = run(backend, query, key, value, lazy_mask(2, 70, 70), scores, make_sets(torch.ones(2, 70, 2)))
        assert_close(again, output.double(), 1e-6)
        for name in ("entropy", "collision", "masses", "pair_masses", "n_allowed", "set_sizes", "pair_sizes"):
            assert_close(getattr(others, name), getattr(rows, name).double(), 1e-6)
        if rows.distance is not None:
            assert others.distance is not None
            assert_close(others.distance, rows.distance.double(), 1e-5)


@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_attention_that_is_not_finite_is_rejected(backend: str, bad: float) -> None:
    query, key, value = tensors(8)
    query[1, 2, 17, 0] = bad
    with pytest.raises(NonFiniteError, match="head 2, example 1 of the batch, query 17"):
        run(backend, query, key, value, lazy_mask(2, 40, 40), Scores(1.0), make_sets(torch.ones(2, 40, 1)))


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
    assert rows.distance is not None
    assert expected.distance is not None
    assert_close(rows.distance[:1, :, 13:], expected.distance.double(), 1e-5)


def test_padding_inside_a_text_is_masked() -> None:
    query, key, value = tensors(11)
    padding = torch.ones(2, 40, dtype=torch.bool)
    padding[:, 7] = False
    i = torch.arange(40)
    exact = probabilities(query, key, Scores(1.0), (i <= i[:, None]) & padding[0])
    for backend in PASSES:
        _, rows = run(
            backend, query, key, value, lazy_mask(2, 40, 40, attention_mask=padding), Scores(1.0), make_sets(torch.ones(2, 40, 1))
        )
        assert_close(rows.entropy, torch.special.entr(exact).sum(-1), 1e-5)
        np.testing.assert_array_equal(rows.n_allowed, ((i <= i[:, None]) & padding[0]).sum(-1)[None].repeat(2, 1))


def test_wrong_shapes_are_rejected_by_every_backend_and_by_the_key_sets() -> None:
    """The import hook of tests/conftest.py names these modules; a name that is wrong would check nothing, without an error."""
    query, key, value = tensors(10)
    mask, scores, sets = lazy_mask(2, 40, 40), Scores(1.0), make_sets(torch.ones(2, 40, 1))
    with pytest.raises(Exception, match="Type-check error"):
        blocked_pass(query[0], key, value, mask, scores, sets, Wanted())
    with pytest.raises(Exception, match="Type-check error"):
        flash_pass(query[0], key, value, mask, scores, sets)
    with pytest.raises(Exception, match="Type-check error"):
        triton_pass(query[0], key, value, mask, scores, sets, Wanted())
    with pytest.raises(Exception, match="type"):
        KeySets(torch.ones(40, 1), sets.pairs, 2, sets.starts, sets.stops)
