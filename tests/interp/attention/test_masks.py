"""Blocks of a lazy mask against the complete mask that transformers makes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    chunked_causal_mask_function,
    packed_sequence_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
    sliding_window_overlay,
)

from interp.attention.masks import LazyMask, MaskBlock, lazy_mask

Rule = Callable[..., object]
CPU = torch.device("cpu")


def rules(batch: int, keys: int) -> dict[str, Rule]:
    return {
        "causal": causal_mask_function,
        "window": sliding_window_causal_mask_function(5),
        "chunked": chunked_causal_mask_function(8, torch.zeros(batch, dtype=torch.long)),
        "packed": lambda b, h, q, k: packed_sequence_mask_function(torch.arange(keys).expand(batch, keys) // 7)(b, h, q, k) & (q >= k),
    }


def unfolded(block: MaskBlock, keys: int) -> torch.Tensor:
    """Return the block as a [batch or 1, query, key] bool mask."""
    rows = torch.zeros(*block.allowed.shape[:2], keys, dtype=torch.bool)
    rows[..., block.first : block.open_until] = True
    rows[..., block.open_until : block.last] = block.allowed
    return rows


def check_blocks(mask: LazyMask, expected: torch.Tensor, n_rows: int, start: int, stop: int) -> None:
    batch, length, keys = expected.shape
    shift = mask.q_offset - mask.kv_offset
    for example in range(batch):
        examples = slice(example, example + 1)
        for q0 in range(max(0, start - shift), min(length, stop - shift), n_rows):
            q1 = min(q0 + n_rows, length, stop - shift)
            wanted = expected[examples, q0:q1].clone()
            wanted[..., :start] = False
            wanted[..., stop:] = False
            block = mask.block(examples, q0, q1, start, stop, CPU, padded=mask.padding is not None)
            rows = unfolded(block, keys)
            assert torch.equal(rows.expand_as(wanted), wanted)
            assert torch.equal(block.counts.expand(1, q1 - q0), wanted.sum(-1))
            assert block.closed == bool((wanted.sum(-1) == 0).any())
            assert start <= block.first <= block.open_until <= block.last <= stop
            span = block.last - block.first
            flat = torch.arange((q1 - q0) * span)
            if span:
                inside = wanted[0, :, block.first : block.last].flatten()
                assert torch.equal(block.sees(torch.zeros_like(flat), flat, span).bool(), inside)
            assert torch.equal(block.ceiling == torch.inf, block.allowed)
            assert set(block.ceiling.unique().tolist()) <= {torch.inf, torch.finfo(torch.float32).min}


@pytest.mark.parametrize("use_vmap", [False, True])
@pytest.mark.parametrize("pattern", ["causal", "window", "chunked", "packed"])
@given(
    length=st.integers(1, 30),
    n_rows=st.integers(1, 12),
    offset=st.integers(0, 10),
    pads=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=2, max_size=2),
)
@settings(max_examples=12, deadline=None)
def test_all_blocks_together_equal_the_complete_mask(
    pattern: str, use_vmap: bool, length: int, n_rows: int, offset: int, pads: list[tuple[int, int]]
) -> None:
    keys = length + offset
    padding = torch.ones(2, keys, dtype=torch.bool)
    for row, (left, right) in zip(padding, pads, strict=True):
        row[: min(left, keys - 1)] = False
        row[max(keys - right, 1) :] = False
    rule = rules(2, keys)[pattern]
    given_padding = None if bool(padding.all()) else padding
    settings_ = {"q_offset": offset, "mask_function": rule, "attention_mask": given_padding, "use_vmap": use_vmap}
    expected = sdpa_mask(2, length, keys, allow_is_causal_skip=False, **settings_)
    assert expected is not None
    mask = lazy_mask(2, length, keys, **settings_)
    assert mask.plain_causal == (pattern == "causal")
    check_blocks(mask, expected[:, 0], n_rows, 0, keys)


def test_a_block_of_a_window_holds_only_the_keys_inside() -> None:
    mask = lazy_mask(1, 64, 64, mask_function=sliding_window_causal_mask_function(8))
    block = mask.block(slice(0, 1), 32, 40, 0, 64, CPU, padded=False)
    assert (block.first, block.last) == (25, 40)
    assert block.counts.tolist() == [[8] * 8]


def test_a_mask_without_padding_stores_no_padding() -> None:
    assert lazy_mask(2, 4, 4, attention_mask=torch.ones(2, 4, dtype=torch.bool)).padding is None
    assert lazy_mask(2, 4, 4, attention_mask=torch.tensor([[True] * 4, [False, True, True, True]])).padding is not None


def test_blocks_are_cached_for_the_next_layer_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = lazy_mask(1, 64, 64, mask_function=sliding_window_causal_mask_function(8))
    block = mask.block(slice(0, 1), 0, 16, 0, 64, CPU, padded=False)
    assert mask.block(slice(0, 1), 0, 16, 0, 64, CPU, padded=False) is block
    monkeypatch.setattr("interp.attention.masks.CACHED_ELEMENTS", 0)
    block = mask.block(slice(0, 1), 16, 32, 0, 64, CPU, padded=False)
    assert mask.block(slice(0, 1), 16, 32, 0, 64, CPU, padded=False) is not block


def test_a_query_without_any_key_has_an_empty_block() -> None:
    padding = torch.tensor([[False, False, False, True]])
    block = lazy_mask(1, 4, 4, attention_mask=padding).block(slice(0, 1), 0, 2, 0, 4, CPU, padded=True)
    assert block.first == block.last
    assert block.closed
    assert block.counts.tolist() == [[0, 0]]
    assert block.to(CPU) is block


def test_only_the_causal_window_of_transformers_has_a_width() -> None:
    assert lazy_mask(1, 9, 9, mask_function=sliding_window_causal_mask_function(4)).window == 4
    others = (
        causal_mask_function,
        chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.long)),
        packed_sequence_mask_function(torch.zeros(1, 9)),
        sliding_window_overlay(4),
        and_masks(sliding_window_overlay(4), causal_mask_function, causal_mask_function),
        and_masks(sliding_window_overlay(4), lambda b, h, q, k: k >= 0),
        and_masks(sliding_window_overlay(4), sliding_window_overlay(4)),
        and_masks(sliding_window_causal_mask_function(4), causal_mask_function),
        lambda b, h, q, k: k <= q,
    )
    for rule in others:
        mask = lazy_mask(1, 9, 9, mask_function=rule, local_size=4)
        assert mask.window is None
        assert mask.plain_causal == (rule is causal_mask_function)
