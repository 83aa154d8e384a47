"""Measures of how concentrated a query's attention is."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.measures.measure import Measure, Rows, by_name
from interp.tables.schema import MeasureInfo


def entropy_nats(rows: Rows) -> Tensor:
    """Return H_i = -sum_j p_ij ln p_ij."""
    return rows.entropy


def entropy_normalized(rows: Rows) -> Tensor:
    """Return H_i / ln n_i; undefined for n_i = 1."""
    return torch.where(rows.n_allowed > 1, rows.entropy / rows.n_allowed.log().clamp_min(1e-12), torch.nan)


def renyi2_nats(rows: Rows) -> Tensor:
    """Return -ln sum_j p_ij^2."""
    return -rows.collision.clamp_min(1e-30).log()


def max_prob(rows: Rows) -> Tensor:
    """Return max_j p_ij."""
    return rows.max_prob


SPREAD_MEASURES: dict[str, Measure] = by_name(
    Measure(
        MeasureInfo("entropy_nats", "Attention entropy", "nats", 0, 5, "H_i = -sum_j p_ij ln p_ij"),
        entropy_nats,
        frozenset({"entropy"}),
    ),
    Measure(
        MeasureInfo("entropy_normalized", "Normalized entropy", "1", 0, 1, "H_i / ln n_i, with n_i allowed keys"),
        entropy_normalized,
        frozenset({"entropy"}),
    ),
    Measure(
        MeasureInfo("renyi2_nats", "Rényi-2 entropy", "nats", 0, 5, "-ln sum_j p_ij^2"),
        renyi2_nats,
        frozenset({"collision"}),
    ),
    Measure(
        MeasureInfo("max_prob", "Largest probability", "probability", 0, 1, "max_j p_ij"),
        max_prob,
        frozenset({"max_prob"}),
    ),
)
