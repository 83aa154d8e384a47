"""TODO_DOC interp/measures/places.py."""

from __future__ import annotations

from torch import Tensor

from interp.measures.measure import Rows


def self_mass(rows: Rows) -> Tensor:
    """p_ii."""
    return rows.pair_mass("self")


def previous_mass(rows: Rows) -> Tensor:
    """p_{i,i-1}; undefined at the first token."""
    return rows.pair_mass("previous")


def bos_mass(rows: Rows) -> Tensor:
    """p_i0, the mass on the text's first token."""
    return rows.mass("first")


def mean_distance(rows: Rows) -> Tensor:
    """sum_j p_ij (i - j)."""
    return rows.distance


def duplicate_token_mass(rows: Rows) -> Tensor:
    """Sum of p_ij over earlier keys with the query's own token; undefined where there is none."""
    return rows.pair_mass("duplicate")


def induction_mass(rows: Rows) -> Tensor:
    """Sum of p_ij over keys that followed earlier occurrences of the query's token; undefined where there is none."""
    return rows.pair_mass("induction")
