"""TODO_DOC interp/measures/spread.py."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.measures.measure import Rows


def entropy_nats(rows: Rows) -> Tensor:
    """H_i = - sum_j p_ij ln p_ij."""
    return rows.entropy


def entropy_normalized(rows: Rows) -> Tensor:
    """H_i / ln n_i; undefined where n_i = 1."""
    return torch.where(rows.n_allowed > 1, rows.entropy / rows.n_allowed.log().clamp_min(1e-12), torch.nan)


def renyi2_nats(rows: Rows) -> Tensor:
    """- ln sum_j p_ij^2."""
    return -rows.collision.clamp_min(1e-30).log()


def max_prob(rows: Rows) -> Tensor:
    """max_j p_ij."""
    return rows.max_prob


def sparsity_010(rows: Rows) -> Tensor:
    """(number of keys with p_ij > 0.1) / n_i."""
    return rows.above(0.1) / rows.n_allowed


def sparsity_010_published(rows: Rows) -> Tensor:
    """(number of keys with p_ij > 0.1) / T, whose mean over all T queries is the share of all T x T entries."""
    return rows.above(0.1) / rows.length
