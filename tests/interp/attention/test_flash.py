"""The flash backend: which layers it rules out, and that padding does not reach its statistics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import chunked_causal_mask_function, sliding_window_causal_mask_function

from interp.attention.blocked import blocked_pass
from interp.attention.flash import MAX_FLASH_SCORE, flash_obstacles, flash_pass
from interp.attention.masks import LazyMask, lazy_mask
from interp.attention.statistics import KeySets, Scores, Wanted
from tests.interp.attention.cases import RAGGED, Ragged, assert_close, make_sets, tensors


def why_not_flash(query: Tensor, key: Tensor, value: Tensor, mask: LazyMask, scores: Scores | None = None) -> str:
    return "; ".join(
        flash_obstacles(query, key, value, mask, scores or Scores(1.0), make_sets(torch.ones(*key.shape[:1], key.shape[2], 1)))
    )


def test_obstacles_name_everything_that_rules_a_layer_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.attention.flash.MAX_FLASH_SCORE", 1e6)
    query, key, value = tensors(12)
    causal = lazy_mask(2, 40, 40)
    window = lazy_mask(2, 40, 40, mask_function=sliding_window_causal_mask_function(8))
    chunked = lazy_mask(2, 40, 40, mask_function=chunked_causal_mask_function(8, torch.zeros(2, dtype=torch.long)))
    for mask in (causal, window, chunked):
        assert why_not_flash(query, key, value, mask) == ""
        assert why_not_flash(query, key, value, mask, Scores(1.0, sinks=torch.zeros(4))) == ""
    assert "without a soft cap or a position bias" in why_not_flash(query, key, value, causal, Scores(1.0, softcap=2.0))
    assert "without a soft cap or a position bias" in why_not_flash(query, key, value, causal, Scores(1.0, bias=torch.zeros(1, 1, 40, 40)))
    assert "in one of float32, bfloat16 and float16, got torch.float64" in why_not_flash(
        query.double(), key.double(), value.double(), causal
    )
    assert "in one of float32, bfloat16 and float16, got torch.bfloat16, torch.float32" in why_not_flash(
        query, key, value.bfloat16(), causal
    )
    assert "no attention kernel on meta" in why_not_flash(query.to("meta"), key.to("meta"), value.to("meta"), causal)
    monkeypatch.setattr("interp.attention.flash.MAX_MASK_ELEMENTS", 2 * 40 * 40)
    assert why_not_flash(query, key, value, window) == ""
    monkeypatch.setattr("interp.attention.flash.MAX_MASK_ELEMENTS", 2 * 40 * 40 - 1)
    assert "its mask would have 3,200 elements; at most 3,199 are allowed" in why_not_flash(query, key, value, window)
    assert why_not_flash(query, key, value, causal) == ""  # needs no mask
    reasons = why_not_flash(query, key, value, window, Scores(1.0, softcap=2.0))
    assert "without a soft cap or a position bias" in reasons
    assert "3,200 elements" in reasons


def test_scores_at_which_entropy_loses_digits_need_the_blocked_backend() -> None:
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
    key = key + 1000  # neither a common offset nor padding counts
    for example in range(4):
        key[example, :, ~real[example]] = query[example, :, ~real[example]] = math.nan
    below, above = (MAX_FLASH_SCORE * factor / largest for factor in (0.99, 1.01))
    assert flash_obstacles(query, key, value, mask, Scores(below), sets) == []
    assert "its entropy loses digits" in flash_obstacles(query, key, value, mask, Scores(above), sets)[0]
    with pytest.raises(ValueError, match=r"scores may be as large as 20; above 20 .* Use the blocked backend"):
        flash_pass(query, key, value, mask, Scores(above), sets)


def test_a_query_without_any_key_needs_the_blocked_backend() -> None:
    query, key, value = tensors(13)

    def others(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k < q

    mask, sets = lazy_mask(2, 40, 40, mask_function=others), make_sets(torch.ones(2, 40, 1))
    assert why_not_flash(query, key, value, mask) == "a query of a text may attend to no key"
    with pytest.raises(ValueError, match=r"a query of a text may attend to no key\. Use the blocked backend"):
        flash_pass(query, key, value, mask, Scores(1.0), sets)
    output, rows = blocked_pass(query, key, value, mask, Scores(1.0), sets, Wanted())
    assert output is not None
    assert not output[:, 0].any()
    assert not rows.masses[..., 0].any()
    later = make_sets(torch.ones(2, 40, 1), starts=(1, 1))  # now the first token is padding, and it is the only key of the second
    assert flash_obstacles(query, key, value, mask, Scores(1.0), later) == ["a query of a text may attend to no key"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_padding_does_not_change_the_statistics(bad: float) -> None:
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
        for name in ("entropy", "collision", "masses", "pair_masses", "n_allowed", "set_sizes", "pair_sizes"):
            assert_close(getattr(rows, name), getattr(expected, name).double(), 5e-6)
        assert not rows.entropy.transpose(1, 2)[~real[:, case.offset :]].any()
