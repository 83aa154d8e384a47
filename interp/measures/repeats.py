"""Measures of attention to repeated tokens, as in duplicate-token heads and induction heads."""

from __future__ import annotations

from torch import Tensor

from interp.measures.measure import Measure, Rows, by_name
from interp.measures.token_sets import duplicate_tokens, induction_targets
from interp.tables.schema import MeasureInfo


def duplicate_token_mass(rows: Rows) -> Tensor:
    """Return the sum of p_ij over earlier keys with the query's own token (Wang et al. 2022); undefined if there are none."""
    return rows.pair_mass("duplicate")


def induction_mass(rows: Rows) -> Tensor:
    """Return the sum of p_ij over keys that follow an earlier occurrence of the query's token (Olsson et al. 2022).

    Undefined if the token has no earlier occurrence.
    """
    return rows.pair_mass("induction")


REPEAT_MEASURES: dict[str, Measure] = by_name(
    Measure(
        MeasureInfo(
            "duplicate_token_mass",
            "Attention to the same token",
            "probability",
            0,
            1,
            "sum of p_ij over j < i with token_j = token_i",
        ),
        duplicate_token_mass,
        pairs={"duplicate": duplicate_tokens},
    ),
    Measure(
        MeasureInfo(
            "induction_mass",
            "Induction",
            "probability",
            0,
            1,
            "sum of p_ij over j with token_{j-1} = token_i, j - 1 < i",
        ),
        induction_mass,
        pairs={"induction": induction_targets},
    ),
)
