"""TODO_DOC interp/measures/numbers.py."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from interp.measures.measure import Rows
from interp.measures.token_sets import (
    TokenSet,
    of_roles,
)
from interp.tokens import NUMBER_ROLES


def numeric_mass(rows: Rows) -> Tensor:
    """Sum of p_ij over number tokens."""
    return rows.mass("numeric")


def numeric_mass_question(rows: Rows) -> Tensor:
    """Sum of p_ij over the question's numbers."""
    return rows.mass("question_number")


def numeric_mass_operand(rows: Rows) -> Tensor:
    """Sum of p_ij over the response's numbers that are neither results nor the answer."""
    return rows.mass("operand")


def numeric_mass_intermediate(rows: Rows) -> Tensor:
    """Sum of p_ij over intermediate results."""
    return rows.mass("intermediate_result")


def numeric_mass_final(rows: Rows) -> Tensor:
    """Sum of p_ij over the final answer."""
    return rows.mass("final_answer")


def operator_mass(rows: Rows) -> Tensor:
    """Sum of p_ij over arithmetic operators."""
    return rows.mass("operator")


def numeric_mass_without_bos(rows: Rows) -> Tensor:
    """Numeric mass / mass on all keys but the first token; undefined where no other key is allowed or none has any mass."""
    others = rows.mass("not_first")
    return torch.where(others > 0, rows.mass("numeric_beyond_first") / others.clamp_min(1e-38), torch.nan)


def numeric_enrichment(rows: Rows) -> Tensor:
    """Numeric mass / (share of number tokens among A_i); undefined where A_i has none."""
    size = rows.set_size("numeric")
    uniform = size / rows.n_allowed
    return torch.where(size > 0, rows.mass("numeric") / uniform.clamp_min(1e-12), torch.nan)


def numeric_z_parts(rows: Rows) -> Tensor:
    """Numeric mass, then the mass on each shuffled set, [1 + N_SHUFFLES, batch, head, query]."""
    return torch.cat([rows.mass("numeric")[None], rows.mass("numeric_shuffles")])


def numeric_z(parts: np.ndarray) -> np.ndarray:
    """(m - mean of shuffles) / standard deviation of shuffles, of the means over a region's queries; undefined where they do not differ."""
    spread = parts[1:].std(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 1e-9, (parts[0] - parts[1:].mean(0)) / spread, np.nan)


NUMERIC: dict[str, TokenSet] = {"numeric": of_roles(*NUMBER_ROLES)}
