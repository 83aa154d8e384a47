# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The published study's curves over layers and its ranking of heads, computed from stored maps. Needs no torch.

Definitions are those of the code of arXiv 2412.17846 (github.com/alonso130r/knowledge-distillation, `SA-convergence-comparison.py` and
`attention-head-locator.py`). a_ij is the stored attention of query i to key j, T the number of tokens, p_ij = a_ij / sum_k a_ik:

    entropy       mean over i of - sum_j p_ij ln p_ij, nats; 0 ln 0 = 0, nothing is added inside the logarithm
    self_focus    mean over i of p_ii
    sparsity      #{(i, j): p_ij > 0.1} / T^2: share of all entries, including those above the diagonal
    layer_cosine  sum_ij a_ij b_ij / sqrt(sum_ij a_ij^2 sum_ij b_ij^2), b the same head's map in the previous layer
    variance      mean over all T^2 entries of the variance of a_ij over models, divided by their number (ddof 0)

each per layer and head; a curve is the mean over a layer's heads. The published code renormalizes rows for the first three only; cosine
and variance use the maps as stored. It computes in float32, this module in float64. Its figure of the cosine has no point for the first
layer and therefore draws every other layer one position too far left; here a row has the number of the later of its two layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analyses.shifts.published.stored_maps import StoredMaps, check_comparable
from interp.tables.errors import InputError
from interp.tables.published import CURVES, SPARSITY_THRESHOLD


def curve_values(maps: StoredMaps) -> pd.DataFrame:
    """Return every head's values, whose means over heads are the published curves (formulas in this module's docstring).

    Returns:
        A row per layer, curve and head: model, layer, head, curve (as in `CURVES`), value. The first layer has no `layer_cosine`.

    Raises:
        InputError: as `StoredMaps.layer`.
    """
    frames: list[pd.DataFrame] = []
    before: np.ndarray | None = None
    for layer in maps.layers:
        stored = maps.layer(layer)
        p = stored / stored.sum(-1, keepdims=True)
        values = {
            "entropy": -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1).mean(-1) + 0.0,  # one-hot rows give 0, not -0
            "self_focus": np.diagonal(p, axis1=-2, axis2=-1).mean(-1),
            "sparsity": (p > SPARSITY_THRESHOLD).mean((-2, -1)),
        }
        if before is not None:
            norms = np.sqrt((stored**2).sum((-2, -1)) * (before**2).sum((-2, -1)))
            values["layer_cosine"] = (stored * before).sum((-2, -1)) / norms
        before = stored
        frames += [pd.DataFrame({"layer": layer, "head": range(maps.n_heads), "curve": name, "value": v}) for name, v in values.items()]
    frame = pd.concat(frames, ignore_index=True)
    frame.insert(0, "model", maps.name)
    return frame


def curve_means(maps: StoredMaps) -> pd.DataFrame:
    """Return the four published curves over layers: entropy, self-attention focus, sparsity above 0.1, cosine to the previous layer.

    Returns:
        A row per layer and curve: model, layer, curve, unit, value (mean over the layer's heads), sd (over the heads, ddof 0),
        n_heads. The first layer has no `layer_cosine`.

    Raises:
        InputError: as `StoredMaps.layer`.
    """
    heads = curve_values(maps).groupby(["model", "layer", "curve"], sort=False)["value"]
    frame = pd.DataFrame({"value": heads.mean(), "sd": heads.std(ddof=0), "n_heads": heads.size()}).reset_index()
    frame.insert(3, "unit", [CURVES[name].unit for name in frame["curve"]])
    return frame


def variance_ranking(models: Sequence[StoredMaps]) -> pd.DataFrame:
    """Return the heads ranked by how much their maps differ between models (formula in this module's docstring).

    Returns:
        A row per head, the largest variance first: layer, head, variance (probability squared), rank (1 is the largest; ties are ordered
        by layer and head), n_models.

    Raises:
        InputError: fewer than two models; models with different layers, heads or tokens; or as `StoredMaps.layer`.
    """
    if len(models) < 2:
        raise InputError(f"a variance across models needs two or more, given: {[model.name for model in models]}")
    check_comparable(models)
    frames: list[pd.DataFrame] = []
    for layer in models[0].layers:
        maps = [model.layer(layer) for model in models]
        variance = [float(np.var(np.stack([stored[head] for stored in maps]), axis=0).mean()) for head in range(models[0].n_heads)]
        frames.append(pd.DataFrame({"layer": layer, "head": range(models[0].n_heads), "variance": variance}))
    frame = pd.concat(frames, ignore_index=True).sort_values("variance", ascending=False, kind="stable", ignore_index=True)
    frame["rank"] = np.arange(1, len(frame) + 1)
    frame["n_models"] = len(models)
    return frame
