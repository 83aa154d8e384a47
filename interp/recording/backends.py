"""Which backend records a layer: `interp.attention.blocked`, `interp.attention.flash` or `interp.attention.triton`.

`check_backend` checks measures, model and device before a pass; `backend_of_layer` checks the tensors of each layer during it. If the
backend of a recording cannot take a layer, the blocked backend takes it. Each backend's module lists what it cannot take.
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

BACKENDS = ("blocked", "flash", "triton")


def choose_backend(model: nn.Module, measures: Iterable[Measure], *, maps: bool = False, device: str | None = None) -> str:
    """Return the default backend: "flash" on CUDA if every measure is made of masses and entropies, otherwise "blocked".

    On a CPU the blocked backend computes every measure in less time than the flash backend needs for its calls (benchmarks/heads.py).
    """
    root = text_model(model)
    device = device or next(root.parameters()).device.type
    return "flash" if device == "cuda" and not _obstacles("flash", root, measures, device, maps=maps) else "blocked"


def check_backend(backend: str, model: nn.Module, measures: Iterable[Measure], *, maps: bool = False) -> None:
    """Raise if a backend is unknown, or if the measures, the model or the device rule it out.

    Raises:
        RecordingError: the message has every reason.
    """
    if backend not in BACKENDS:
        raise RecordingError(f"backend is {backend!r}; allowed: {', '.join(BACKENDS)}")
    root = text_model(model)
    obstacles = _obstacles(backend, root, measures, next(root.parameters()).device.type, maps=maps)
    if obstacles:
        raise RecordingError(f"the {backend} backend cannot be used: {'; '.join(obstacles)}. Use the blocked backend")


def backend_of_layer(
    backend: str, query: Tensor, key: Tensor, value: Tensor | None, mask: LazyMask, scores: Scores, sets: KeySets, wanted: Wanted
) -> str:
    """Return the backend that takes a layer: the recording's backend, or "blocked" if that one cannot take the layer.

    Args:
        backend: the recording's backend.
        query: as in `blocked_pass`.
        key: as in `blocked_pass`.
        value: as in `blocked_pass`.
        mask: as in `blocked_pass`.
        scores: as in `blocked_pass`.
        sets: as in `blocked_pass`.
        wanted: as in `blocked_pass`, without `on_block`, which only the blocked backend supports.
    """
    if backend == "flash":
        return "blocked" if flash_obstacles(query, key, value, mask, scores, sets) else "flash"
    if backend == "triton":
        from interp.attention.triton import triton_obstacles

        return "blocked" if triton_obstacles(query, key, value, mask, scores, sets, wanted) else "triton"
    return backend


def _obstacles(backend: str, root: PreTrainedModel, measures: Iterable[Measure], device: str, *, maps: bool) -> list[str]:
    """Return why measures, model or device rule a backend out; nothing rules out the blocked backend."""
    if backend == "blocked":
        return []
    needed = "the probabilities"
    unsupported = [m.info.name for m in measures if "probabilities" in m.statistics]
    found = ["it does not give the probabilities that maps need"] if maps else []
    if backend == "flash":
        needed = "more than masses and entropies"
        unsupported = [m.info.name for m in measures if m.thresholds or not m.statistics <= FLASH_STATISTICS]
        if getattr(root.config.get_text_config(decoder=True), "attn_logit_softcapping", None):
            found.append("the model has a soft cap on its scores")
        if device not in ("cpu", "cuda"):
            found.append(f"no attention kernel on {device} returns its log-sum-exp")
    else:
        from interp.attention.triton import available

        usable, why = available(torch.device(device))
        found += [] if usable else [why]
    return ([f"it does not support {', '.join(unsupported)}, which need {needed}"] if unsupported else []) + found
