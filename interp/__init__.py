"""Exact statistics of every attention head of a causal language model, recorded during its ordinary forward pass.

    from interp import annotate, open_checkpoint, record

Names are imported on first use, so that `import interp` and `interp.tables.schema` need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.checkpoints.loading import Checkpoint
    from interp.checkpoints.opening import open_checkpoint
    from interp.measures.catalog import MEASURES, load_measures
    from interp.measures.measure import Measure
    from interp.recording.recorder import Recording, record
    from interp.recording.totals import HeadTotals
    from interp.tables.errors import CheckpointError, RecordingError
    from interp.tables.schema import MeasureInfo
    from interp.tokens import Tokens, annotate

_HOMES = {
    "MEASURES": "interp.measures.catalog",
    "Checkpoint": "interp.checkpoints.loading",
    "CheckpointError": "interp.tables.errors",
    "HeadTotals": "interp.recording.totals",
    "Measure": "interp.measures.measure",
    "MeasureInfo": "interp.tables.schema",
    "Recording": "interp.recording.recorder",
    "RecordingError": "interp.tables.errors",
    "Tokens": "interp.tokens",
    "annotate": "interp.tokens",
    "load_measures": "interp.measures.catalog",
    "open_checkpoint": "interp.checkpoints.opening",
    "record": "interp.recording.recorder",
}
"""The module that defines each name."""

__all__ = [
    "MEASURES",
    "Checkpoint",
    "CheckpointError",
    "HeadTotals",
    "Measure",
    "MeasureInfo",
    "Recording",
    "RecordingError",
    "Tokens",
    "annotate",
    "load_measures",
    "open_checkpoint",
    "record",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "show":
        from interp.tables.versions import moved_message

        raise ImportError(moved_message("interp.show"), name="interp.show")
    raise AttributeError(f"module 'interp' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
