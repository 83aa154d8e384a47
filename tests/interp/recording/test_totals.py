"""Totals: means worked by hand, merged parts against the complete totals, tables."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.measures.catalog import MEASURES
from interp.recording.totals import HeadTotals, heads_table
from interp.tables.heads import EXAMPLE_VALUES, HEADS
from interp.tables.schema import REGIONS, validate

NAMES = ("entropy_nats", "previous_mass", "numeric_z")
CHOSEN = [MEASURES[name] for name in NAMES]
PARTS = sum(m.parts for m in CHOSEN)


def random_batch(examples: int, queries: int, heads: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(PARTS, examples, heads, queries, generator=generator)
    values[1, ..., 0] = torch.nan
    regions = (torch.rand(examples, len(REGIONS), queries, generator=generator) < 0.6).float()
    return values, regions


def totals_of(values: torch.Tensor, regions: torch.Tensor, examples: list[int]) -> HeadTotals:
    totals = HeadTotals(CHOSEN, examples, (2, 5), values.shape[2])
    totals.update(2, values.transpose(0, 1), regions)
    totals.update(5, 1 - values.transpose(0, 1), regions)
    return totals


def test_means_worked_by_hand() -> None:
    totals = HeadTotals([MEASURES["previous_mass"]], [7], [3], 2)
    values = torch.tensor([[[[torch.nan, 0.5, 0.25, 1.0], [torch.nan, 0.0, 1.0, 0.5]]]])
    regions = torch.tensor([[[1.0, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]])
    totals.update(3, values, regions)
    table = totals.examples_table("m").set_index(["head", "region"])
    assert table["value"].to_dict() == pytest.approx(
        {
            (0, "question"): 0.5,
            (0, "response"): 0.625,
            (0, "all"): 1.75 / 3,
            (1, "question"): 0.0,
            (1, "response"): 0.75,
            (1, "all"): 0.5,
        }
    )
    assert table["n_queries"].tolist() == [1, 2, 3, 1, 2, 3]
    assert set(table["example"]) == {7}
    assert set(table["layer"]) == {3}


def test_a_value_that_is_never_defined_is_nan_with_zero_queries() -> None:
    totals = HeadTotals([MEASURES["previous_mass"]], [0, 1], [0], 1)
    totals.update(0, torch.full((2, 1, 1, 3), torch.nan), torch.ones(2, 3, 3))
    values, counts = totals.values()
    assert np.isnan(values).all()
    assert (counts == 0).all()
    validate(totals.examples_table("m"), EXAMPLE_VALUES)
    validate(heads_table("m", values, counts, [0], ["previous_mass"], 0), HEADS)


def test_numeric_z_is_computed_from_the_means_of_its_parts() -> None:
    values, regions = random_batch(1, 6, 1, 0)
    found, counts = totals_of(values, regions, [0]).values()
    chosen = regions[0, 2].bool()
    means = values[2:, 0, 0, chosen].double().mean(-1).numpy()
    expected = (means[0] - means[1:].mean()) / means[1:].std(ddof=1)
    assert found[0, 0, 0, 2, 2] == pytest.approx(expected, rel=1e-5)
    assert counts[0, 0, 0, 2, 2] == chosen.sum()


@given(n_examples=st.integers(1, 7), cuts=st.lists(st.integers(0, 6), max_size=4), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_merged_parts_equal_the_complete_totals(n_examples: int, cuts: list[int], seed: int) -> None:
    values, regions = random_batch(n_examples, 9, 3, seed)
    order = np.random.default_rng(seed).permutation(n_examples)
    complete = totals_of(values, regions, list(range(n_examples)))
    edges = sorted({0, n_examples, *(c for c in cuts if c < n_examples)})
    parts = [order[a:b] for a, b in itertools.pairwise(edges)]
    totals = [totals_of(values[:, part], regions[part], part.tolist()) for part in parts]
    merged = totals[0]
    for other in totals[1:]:
        merged = merged.merge(other)
    expected, found = complete.examples_table("m"), merged.examples_table("m")
    assert found.drop(columns="value").equals(expected.drop(columns="value"))
    np.testing.assert_allclose(found["value"], expected["value"], rtol=1e-6, atol=2e-6)
    swapped = totals[-1].merge(totals[0]) if len(totals) > 1 else totals[0]
    assert set(swapped.examples) == set(totals[-1].examples) | set(totals[0].examples)


def test_queries_of_one_example_can_be_added_in_parts() -> None:
    values, regions = random_batch(2, 10, 3, 1)
    complete = totals_of(values, regions, [4, 6])
    front, back = (totals_of(values[..., cut], regions[..., cut], [4, 6]) for cut in (slice(0, 3), slice(3, 10)))
    merged = front.merge(back)
    assert merged.examples == (4, 6)
    np.testing.assert_array_equal(merged.counts, complete.counts)
    np.testing.assert_allclose(merged.sums, complete.sums, rtol=1e-6)


def test_totals_of_different_models_do_not_merge() -> None:
    mine = HeadTotals(CHOSEN, [0], (0, 1), 4)
    for other in (
        HeadTotals(CHOSEN[:2], [1], (0, 1), 4),
        HeadTotals(CHOSEN, [1], (0, 2), 4),
        HeadTotals(CHOSEN, [1], (0, 1), 3),
    ):
        with pytest.raises(ValueError, match=r"totals differ: measures .* layers .* heads"):
            mine.merge(other)


def test_tables_match_their_schemas_and_order() -> None:
    values, regions = random_batch(3, 8, 2, 2)
    totals = totals_of(values, regions, [9, 3, 5])
    table = totals.examples_table("m")
    validate(table, EXAMPLE_VALUES)
    keys = table[["example", "layer", "head"]].drop_duplicates().to_numpy().tolist()
    assert keys == sorted(keys)
    assert table["measure"].drop_duplicates().tolist() == list(NAMES)
    found, counts = totals.values()
    heads = heads_table("m", found, counts, totals.layers, NAMES, 0)
    validate(heads, HEADS)
    mean = table.groupby(["layer", "head", "measure", "region"], sort=False)["value"].mean().to_numpy()
    np.testing.assert_allclose(heads["value"], mean)
    assert (heads["n_examples"] == 3).all()
    assert heads["n_queries"].sum() == table["n_queries"].sum()
    assert (heads["ci_low"] <= heads["value"]).all()
    assert (heads["value"] <= heads["ci_high"]).all()
