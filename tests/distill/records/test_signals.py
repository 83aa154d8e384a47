"""The mass that a stored top k leaves over."""

from __future__ import annotations

import pytest
import torch
from beartype import beartype
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import jaxtyped
from torch import Tensor

from distill.records.signals import missing_mass
from tests.distill.objectives.cases import (
    assert_same,
    log_probabilities,
)


@given(log_probabilities(12, 5.0), st.integers(1, 12), st.floats(0.2, 8.0))
def test_missing_mass_lies_between_its_bounds(log_p: Tensor, k: int, temperature: float) -> None:
    kept = log_p.topk(k, -1)
    tempered = (log_p / temperature).softmax(-1)
    missing = 1 - tempered.gather(1, kept.indices).sum().item()
    lower, upper = (bound.item() for bound in jaxtyped(typechecker=beartype)(missing_mass)(kept.values, 12, temperature))
    assert lower - 1e-9 <= missing <= upper + 1e-9
    assert 0 <= lower <= upper <= 1


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_bounds_of_the_missing_mass_are_reached(temperature: float) -> None:
    """Six tokens, two stored (0.4, 0.2), 0.4 left over: evenly four times 0.1, unevenly 0.2, 0.2, 0, 0."""
    power = 1 / temperature

    def missing(rest: list[float]) -> float:
        outside = sum(x**power for x in rest)
        return outside / (outside + 0.4**power + 0.2**power)

    lower, upper = missing_mass(torch.tensor([[0.2, 0.4]], dtype=torch.float64).log(), 6, temperature)
    assert [lower.item(), upper.item()] == pytest.approx(sorted([missing([0.1] * 4), missing([0.2, 0.2])]), rel=1e-6)
    # Four tokens, 0.3 stored: evenly three times 0.7 / 3, unevenly 0.3, 0.3 and the remainder 0.1.
    lower, upper = missing_mass(torch.tensor([[0.3]], dtype=torch.float64).log(), 4, temperature)
    uneven = 0.3**power + 0.3**power + 0.1**power
    even = 3 * (0.7 / 3) ** power
    expected = sorted(x / (x + 0.3**power) for x in (uneven, even))
    assert [lower.item(), upper.item()] == pytest.approx(expected, rel=1e-6)


def test_missing_mass_at_temperature_1_is_the_left_over_mass() -> None:
    log_p = torch.randn(4, 30, dtype=torch.float64).log_softmax(-1).topk(5, -1).values
    lower, upper = missing_mass(log_p, 30, 1.0)
    assert_same([lower, upper], [1 - log_p.exp().sum(-1)] * 2)
    # Not the largest after all: of three tokens 0.3 is stored, so that at most 0.3 and 0.3 are counted as left over.
    lower, upper = missing_mass(torch.tensor([[0.3]], dtype=torch.float64).log(), 3, 2.0)
    assert [lower.item(), upper.item()] == pytest.approx([2 / 3, 2 / 3])
    lower, upper = missing_mass(torch.tensor([[0.0, -9999.0]]), 30, 2.0)
    assert 0 <= lower.item() <= upper.item() < 1e-6
