"""Measures of attention by position: to the token itself, to the previous and the first token, and the mean distance."""

from __future__ import annotations

from torch import Tensor

from interp.measures.measure import Measure, Rows, by_name
from interp.measures.token_sets import first_token, previous_position, same_position
from interp.tables.schema import MeasureInfo


def self_mass(rows: Rows) -> Tensor:
    """Return p_ii."""
    return rows.pair_mass("self")


def previous_mass(rows: Rows) -> Tensor:
    """Return p_{i,i-1}; undefined for the first token."""
    return rows.pair_mass("previous")


def bos_mass(rows: Rows) -> Tensor:
    """Return p_i0, the attention to the text's first token."""
    return rows.mass("first")


def mean_distance(rows: Rows) -> Tensor:
    """Return sum_j p_ij (i - j)."""
    return rows.distance


PLACE_MEASURES: dict[str, Measure] = by_name(
    Measure(
        MeasureInfo("self_mass", "Attention to the token itself", "probability", 0, 1, "p_ii"),
        self_mass,
        pairs={"self": same_position},
    ),
    Measure(
        MeasureInfo("previous_mass", "Attention to the previous token", "probability", 0, 1, "p_i,i-1"),
        previous_mass,
        pairs={"previous": previous_position},
    ),
    Measure(
        MeasureInfo("bos_mass", "Attention to the first token", "probability", 0, 1, "p_i0"),
        bos_mass,
        sets={"first": first_token},
    ),
    Measure(
        MeasureInfo("mean_distance", "Mean attention distance", "tokens", 0, 150, "sum_j p_ij (i - j)"),
        mean_distance,
        frozenset({"distance"}),
    ),
)
