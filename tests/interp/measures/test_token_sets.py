"""Token sets and pairs: shuffles of number tokens, and pairs of equal tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from interp.measures.token_sets import N_SHUFFLES, SHUFFLE_BIN, duplicate_tokens, induction_targets, numeric_shuffles
from interp.tokens import NUMBER_ROLES
from tests.interp.measures.cases import random_annotated


def test_shuffles_keep_region_bin_and_number_and_depend_on_seed_and_example_alone(tiny_tokens: Callable[..., Any]) -> None:
    text = tiny_tokens((70, 70)).texts[1]
    numeric, shuffled = text.in_role(*NUMBER_ROLES), numeric_shuffles(text, 5)
    assert shuffled.shape == (N_SHUFFLES, 70)
    for region in ("question", "response"):
        places = np.flatnonzero(text.in_region(region) & (np.arange(70) > 0))
        for at in range(0, len(places), SHUFFLE_BIN):
            inside = places[at : at + SHUFFLE_BIN]
            assert (shuffled[:, inside].sum(1) == numeric[inside].sum()).all()
    template = text.in_region("template")
    assert (shuffled[:, template] == numeric[template]).all()
    np.testing.assert_array_equal(shuffled, numeric_shuffles(text, 5))
    assert (shuffled != numeric_shuffles(text, 6)).any()
    assert (shuffled != numeric_shuffles(replace(text, example=0), 5)).any()


def test_pairs_of_equal_tokens() -> None:
    text = random_annotated([1, 2, 1, 2, 1])
    assert sorted(zip(*duplicate_tokens(text).tolist(), strict=True)) == [(2, 0), (3, 1), (4, 0), (4, 2)]
    assert sorted(zip(*induction_targets(text).tolist(), strict=True)) == [(2, 1), (3, 2), (4, 1), (4, 3)]
    assert duplicate_tokens(random_annotated([3, 4, 5])).shape == (2, 0)
