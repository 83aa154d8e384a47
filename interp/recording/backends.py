"""Which of the three backends records a layer, by rule: `interp.attention.blocked`, `interp.attention.flash` or `interp.attention.triton`.

A backend is allowed by measures, model and device before any pass (`check_way`), and by each layer's tensors during it (`way_of_layer`): where
the backend of a recording cannot express a layer, the blocked backend takes it. What a layer must be like is said where the pass is.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.attention.flash import FLASH_STATISTICS, flash_obstacles
from interp.attention.masks import LazyMask
from interp.attention.seam import text_model
from interp.attention.statistics import KeySets, Scores, Wanted
from interp.measures.measure import Measure
from interp.tables.errors import RecordingError

WAYS = ("blocked", "flash", "triton")


def choose_backend(model: nn.Module, measures: Iterable[Measure], *, maps: bool = False, device: str | None = None) -> str:
    """How to record by default: "flash" on CUDA where every measure is made of masses and entropies, else "blocked".

    On a CPU the blocked pass gives every measure for less than the flash backend's calls cost (benchmarks/heads.py).
    Layers whose mask or scores the flash backend cannot express are then blocked, each by itself (`Recording.backends`).
    """
    root = text_model(model)
    device = device or next(root.parameters()).device.type
    return "flash" if device == "cuda" and not _obstacles("flash", root, measures, device, maps=maps) else "blocked"


def check_backend(backend: str, model: nn.Module, measures: Iterable[Measure], *, maps: bool = False) -> None:
    """Refuse a backend that is unknown, or that measures, model or device do not allow, before any pass.

    Raises:
        RecordingError: with every reason.
    """
    if backend not in WAYS:
        raise RecordingError(f"backend is {backend!r}; allowed: {', '.join(WAYS)}")
    root = text_model(model)
    obstacles = _obstacles(backend, root, measures, next(root.parameters()).device.type, maps=maps)
    if obstacles:
        raise RecordingError(f"the {backend} backend cannot be taken: {'; '.join(obstacles)}. The blocked backend can")


def backend_of_layer(
    backend: str, query: Tensor, key: Tensor, value: Tensor | None, mask: LazyMask, scores: Scores, sets: KeySets, wanted: Wanted
) -> str:
    """The backend that takes a layer: the recording's, or the blocked one where that one cannot express the layer.

    Args:
        backend: the recording's.
        query: as in the passes, and so are the others.
        key: likewise.
        value: likewise.
        mask: likewise.
        scores: likewise.
        sets: likewise.
        wanted: without `on_block`, which the blocked backend alone has.
    """
    if backend == "flash":
        return "blocked" if flash_obstacles(query, key, value, mask, scores, sets) else "flash"
    if backend == "triton":
        from interp.attention.triton import triton_obstacles

        return "blocked" if triton_obstacles(query, key, value, mask, scores, sets, wanted) else "triton"
    return backend


def _obstacles(backend: str, root: PreTrainedModel, measures: Iterable[Measure], device: str, *, maps: bool) -> list[str]:
    """Why a backend cannot be taken, by measures, model and device. The blocked backend always can."""
    if backend == "blocked":
        return []
    whole, short_of = [m.info.name for m in measures if "probabilities" in m.statistics], "without the probabilities"
    found = ["maps cannot be had without the probabilities"] if maps else []
    if backend == "flash":
        whole, short_of = [m.info.name for m in measures if m.thresholds or not m.statistics <= FLASH_STATISTICS], "from a log-sum-exp"
        if getattr(root.config.get_text_config(decoder=True), "attn_logit_softcapping", None):
            found.append("the model caps its scores")
        if device not in ("cpu", "cuda"):
            found.append(f"no kernel on {device} returns its log-sum-exp")
    else:
        from interp.attention.triton import available

        usable, why = available(torch.device(device))
        found += [] if usable else [why]
    return ([f"{', '.join(whole)} cannot be had {short_of}"] if whole else []) + found
