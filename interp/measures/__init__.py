"""What is measured of each attention head: one file per kind of measure, merged by `catalog`."""

from __future__ import annotations

from interp.tables.versions import moved_message

_VERSION_0_1 = frozenset(
    {"Block", "ENTRY_POINTS", "MEASURES", "Measure", "MeasureError", "MeasureInfo", "Rows", "key_sets", "load_measures"}
)
"""Names that version 0.1 defined here."""


def __getattr__(name: str) -> object:
    if name in _VERSION_0_1:
        raise ImportError(moved_message("interp.measures"), name="interp.measures")
    raise AttributeError(f"module 'interp.measures' has no attribute {name!r}")
