"""Measures of attention to numbers and arithmetic operators."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from interp.measures.measure import Measure, Rows, by_name
from interp.measures.token_sets import N_SHUFFLES, TokenSet, not_first_token, numeric_beyond_first, numeric_shuffles, with_roles
from interp.tables.schema import MeasureInfo
from interp.tokens import NUMBER_ROLES

_NUMERIC: dict[str, TokenSet] = {"numeric": with_roles(*NUMBER_ROLES)}


def numeric_mass(rows: Rows) -> Tensor:
    """Return the sum of p_ij over number tokens."""
    return rows.mass("numeric")


def numeric_mass_question(rows: Rows) -> Tensor:
    """Return the sum of p_ij over the numbers of the question."""
    return rows.mass("question_number")


def numeric_mass_operand(rows: Rows) -> Tensor:
    """Return the sum of p_ij over the numbers of the response that are neither results nor the answer."""
    return rows.mass("operand")


def numeric_mass_intermediate(rows: Rows) -> Tensor:
    """Return the sum of p_ij over intermediate results."""
    return rows.mass("intermediate_result")


def numeric_mass_final(rows: Rows) -> Tensor:
    """Return the sum of p_ij over the final answer."""
    return rows.mass("final_answer")


def operator_mass(rows: Rows) -> Tensor:
    """Return the sum of p_ij over arithmetic operators."""
    return rows.mass("operator")


def numeric_mass_without_bos(rows: Rows) -> Tensor:
    """Return (mass on number tokens j > 0) / (mass on all tokens j > 0).

    Undefined if no key but the first token is allowed, or if these keys get no attention.
    """
    others = rows.mass("not_first")
    return torch.where(others > 0, rows.mass("numeric_beyond_first") / others.clamp_min(1e-38), torch.nan)


def numeric_enrichment(rows: Rows) -> Tensor:
    """Return numeric mass / (share of number tokens among A_i); undefined if A_i holds no number token."""
    size = rows.set_size("numeric")
    uniform = size / rows.n_allowed
    return torch.where(size > 0, rows.mass("numeric") / uniform.clamp_min(1e-12), torch.nan)


def numeric_z_parts(rows: Rows) -> Tensor:
    """Return the numeric mass, followed by the mass on each shuffled set, [1 + N_SHUFFLES, batch, head, query]."""
    return torch.cat([rows.mass("numeric")[None], rows.mass("numeric_shuffles")])


def numeric_z(parts: np.ndarray) -> np.ndarray:
    """Return (m - mean of shuffles) / standard deviation of shuffles; undefined if all shuffles have the same mass.

    Args:
        parts: means of `numeric_z_parts` over the queries of a region, [1 + N_SHUFFLES, ...].
    """
    spread = parts[1:].std(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 1e-9, (parts[0] - parts[1:].mean(0)) / spread, np.nan)


NUMBER_MEASURES: dict[str, Measure] = by_name(
    Measure(
        MeasureInfo("numeric_mass", "Attention to numbers", "probability", 0, 0.5, "sum of p_ij over number tokens"),
        numeric_mass,
        sets=_NUMERIC,
    ),
    Measure(
        MeasureInfo(
            "numeric_mass_question",
            "Attention to the question's numbers",
            "probability",
            0,
            0.5,
            "sum of p_ij over numbers of the question",
        ),
        numeric_mass_question,
        sets={"question_number": with_roles("question_number")},
    ),
    Measure(
        MeasureInfo(
            "numeric_mass_operand",
            "Attention to operands",
            "probability",
            0,
            0.5,
            "sum of p_ij over numbers of the response that are neither result nor answer",
        ),
        numeric_mass_operand,
        sets={"operand": with_roles("operand")},
    ),
    Measure(
        MeasureInfo(
            "numeric_mass_intermediate",
            "Attention to intermediate results",
            "probability",
            0,
            0.5,
            "sum of p_ij over numbers after '=' or a calculator annotation",
        ),
        numeric_mass_intermediate,
        sets={"intermediate_result": with_roles("intermediate_result")},
    ),
    Measure(
        MeasureInfo(
            "numeric_mass_final",
            "Attention to the final answer",
            "probability",
            0,
            0.5,
            "sum of p_ij over the number after '####' or 'the answer is'",
        ),
        numeric_mass_final,
        sets={"final_answer": with_roles("final_answer")},
    ),
    Measure(
        MeasureInfo(
            "operator_mass",
            "Attention to operators",
            "probability",
            0,
            0.5,
            "sum of p_ij over + - * / x = between numbers",
        ),
        operator_mass,
        sets={"operator": with_roles("operator")},
    ),
    Measure(
        MeasureInfo(
            "numeric_mass_without_bos",
            "Attention to numbers, excluding the first token",
            "probability",
            0,
            0.5,
            "sum of p_ij over numbers j > 0 / sum of p_ij over all j > 0",
        ),
        numeric_mass_without_bos,
        sets={"numeric_beyond_first": numeric_beyond_first, "not_first": not_first_token},
    ),
    Measure(
        MeasureInfo(
            "numeric_enrichment",
            "Enrichment of numbers",
            "x uniform",
            0,
            4,
            "numeric mass / share of number tokens among the allowed keys; 1 = uniform attention",
        ),
        numeric_enrichment,
        sets=_NUMERIC,
    ),
    Measure(
        MeasureInfo(
            "numeric_z",
            "Numbers vs. shuffled positions",
            "standard deviations",
            -6,
            6,
            f"(m - mean m_k) / sd m_k over {N_SHUFFLES} position-matched shuffles of the number tokens",
        ),
        numeric_z_parts,
        sets={**_NUMERIC, "numeric_shuffles": numeric_shuffles},
        combine=numeric_z,
        parts=1 + N_SHUFFLES,
    ),
)
