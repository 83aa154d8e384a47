"""TODO_DOC distill/settings.py."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from interp.tables.errors import StudyError


def require(condition: bool, message: str) -> None:
    if not condition:
        raise StudyError(message)


def require_seed(seed: int, name: str) -> None:
    require(0 <= seed < 1 << 32, f"{name}: {seed} is no seed; 0 to {(1 << 32) - 1} are")


def nearest_hint(word: str, known: Sequence[str]) -> str:
    near = get_close_matches(word, known, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def as_tables(config: Any) -> dict[str, Any]:
    """A section, or a whole study, as plain tables of JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # msgspec leaves out what it set to a default


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The keys whose values differ between two trees of tables, as lines "train.epochs: was 2.0, is 1.0"."""
    lines = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: was {old!r}, is {new!r}")
    return lines
