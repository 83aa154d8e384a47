"""Exact statistics of every attention head of a causal language model, recorded during its ordinary forward pass.

    from interp import annotate, open_checkpoint, record

Names are imported on first use, so that `import interp` and `interp.tables.schema` need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analyses.examples.notebook import show
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
    "Checkpoint": "interp.checkpoints.opening",
    "CheckpointError": "interp.tables.errors",
    "open_checkpoint": "interp.checkpoints.opening",
    "MEASURES": "interp.measures.catalog",
    "Measure": "interp.measures.catalog",
    "load_measures": "interp.measures.catalog",
    "Recording": "interp.recording.recorder",
    "RecordingError": "interp.tables.errors",
    "record": "interp.recording.recorder",
    "MeasureInfo": "interp.tables.schema",
    "Tokens": "interp.tokens",
    "annotate": "interp.tokens",
    "HeadTotals": "interp.recording.totals",
    "show": "analyses.examples.notebook",  # the one name from an upper floor: a notebook looks for everything here
}

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
    "show",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'interp' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
