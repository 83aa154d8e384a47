"""Measures that count keys with a probability above a threshold."""

from __future__ import annotations

from torch import Tensor

from interp.measures.measure import Measure, Rows, by_name
from interp.tables.schema import MeasureInfo


def sparsity_010(rows: Rows) -> Tensor:
    """Return (number of keys with p_ij > 0.1) / n_i."""
    return rows.above(0.1) / rows.n_allowed


def sparsity_010_published(rows: Rows) -> Tensor:
    """Return (number of keys with p_ij > 0.1) / T. Its mean over all T queries is the share of all T x T entries (arXiv 2412.17846)."""
    return rows.above(0.1) / rows.length


SPARSITY_MEASURES: dict[str, Measure] = by_name(
    Measure(
        MeasureInfo("sparsity_010", "Share of keys above 0.1", "share", 0, 0.1, "#{j: p_ij > 0.1} / n_i"),
        sparsity_010,
        thresholds=(0.1,),
    ),
    Measure(
        MeasureInfo(
            "sparsity_010_published",
            "Share of all entries above 0.1",
            "share",
            0,
            0.05,
            "#{j: p_ij > 0.1} / T; its mean over the text is the share of all T x T entries",
        ),
        sparsity_010_published,
        thresholds=(0.1,),
    ),
)
