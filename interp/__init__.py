"""Exact statistics of every attention head of a causal language model, recorded during its ordinary forward pass.

    from interp import annotate, open_checkpoint, record

Names are imported on first use, so that `import interp` and `interp.table` need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analyses.inline import show
    from interp.checkpoints import Checkpoint, CheckpointError, open_checkpoint
    from interp.measures import MEASURES, Measure, load_measures
    from interp.recorder import Recording, record
    from interp.seam import RecordingError
    from interp.table import MeasureInfo
    from interp.tokens import Tokens, annotate
    from interp.totals import HeadTotals

_HOMES = {
    "Checkpoint": "interp.checkpoints",
    "CheckpointError": "interp.checkpoints",
    "open_checkpoint": "interp.checkpoints",
    "MEASURES": "interp.measures",
    "Measure": "interp.measures",
    "load_measures": "interp.measures",
    "Recording": "interp.recorder",
    "RecordingError": "interp.seam",
    "record": "interp.recorder",
    "MeasureInfo": "interp.table",
    "Tokens": "interp.tokens",
    "annotate": "interp.tokens",
    "HeadTotals": "interp.totals",
    "show": "analyses.inline",  # the one name from an upper floor: a notebook looks for everything here
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
