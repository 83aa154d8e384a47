"""The quantities of arXiv 2412.17846's figures of attention heads, computed from stored attention maps."""

from __future__ import annotations

from interp.tables.schema import MeasureInfo

SPARSITY_THRESHOLD = 0.1
"""Entries of an attention map above this probability count as large."""

CURVES: dict[str, MeasureInfo] = {
    info.name: info
    for info in (
        MeasureInfo("entropy", "Attention entropy", "nats", 0, None, "mean over queries of - sum_j p_ij ln p_ij, rows renormalized"),
        MeasureInfo("self_focus", "Self-attention focus", "probability", 0, 1, "mean over queries of p_ii, rows renormalized"),
        MeasureInfo("sparsity", "Share of all entries above 0.1", "share", 0, 0.1, "#{(i, j): p_ij > 0.1} / T^2, rows renormalized"),
        MeasureInfo(
            "layer_cosine", "Cosine to the layer before", "1", 0, 1, "cosine of a head's flattened map with that of the layer before"
        ),
    )
}
