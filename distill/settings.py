"""Checks and comparisons of the settings of a study."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from interp.tables.errors import StudyError

FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
"""Names of studies and strategies, which become names of folders."""


def require_setting(condition: bool, message: str) -> None:
    """Raise a StudyError with a message unless a condition holds."""
    if not condition:
        raise StudyError(message)


def require_seed(seed: int, name: str) -> None:
    """Raise a StudyError unless a seed is an unsigned 32-bit integer, which all random generators accept."""
    require_setting(0 <= seed < 1 << 32, f"{name} is {seed}; it must lie between 0 and {(1 << 32) - 1}")


def as_tables(config: Any) -> dict[str, Any]:
    """Return a section, or a complete study, as plain JSON objects with all defaults."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the keys whose values differ between two nested mappings, as lines such as "train.epochs: was 2.0, is 1.0"."""
    lines = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += changed_settings(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: was {old!r}, is {new!r}")
    return lines
