"""Which software made a result, and what earlier versions of this project called things.

`OLD_*` is the one map of old names: whatever reads a file that an earlier version wrote passes it through `current` or
`current_columns`, so only this module knows that a name ever changed.
"""

from __future__ import annotations

import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "pandas", "pyarrow")

OLD_COLUMNS = {"cut": "truncated", "n_cut": "n_truncated"}
"""Columns of tables: the name in version 0.1, and the name now."""

OLD_KEYS = {"way": "backend", "cut": "truncated", "n_cut": "n_truncated"}
"""Keys of run.json, settings.json, study files and cards: the name in version 0.1, and the name now."""

OLD_VALUES = {"text": {"gold": "reference"}}
"""Values by key, as `OLD_KEYS`."""

OLD_OPTIONS = {"--way": "--backend", "--text gold": "--text reference"}
"""Command-line options of version 0.1 that are still accepted and are not listed in --help."""

MOVED = {
    "interp.measures": "interp (`from interp import Measure, MeasureInfo`) or interp.measures.catalog",
    "interp.table": "interp.tables.schema and interp.tables.heads",
    "interp.show": "analyses.examples.show",
    "distill.trajectory": "distill.training.trajectory",
}
"""Import paths that the documentation of version 0.1 showed: the path then, and the path now."""


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in ("primed-heads", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def current(content: Any, *, under: str | None = None) -> Any:
    """Return the content of a JSON or TOML file of any version under today's keys and values.

    Args:
        content: as read; dicts and lists are copied, everything else is returned as it is.
        under: the key that holds the content.
    """
    if isinstance(content, dict):
        return {OLD_KEYS.get(key, key): current(value, under=OLD_KEYS.get(key, key)) for key, value in content.items()}
    if isinstance(content, list):
        return [current(value) for value in content]
    if under in OLD_VALUES and isinstance(content, str):
        return OLD_VALUES[under].get(content, content)
    return content


def current_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table of any version under today's column names."""
    return frame.rename(columns={old: new for old, new in OLD_COLUMNS.items() if new not in frame.columns})


def current_options(arguments: list[str]) -> list[str]:
    """Return command-line arguments with the options of earlier versions replaced by today's."""
    replaced: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        option = OLD_OPTIONS.get(option, option)
        before = replaced[-1] if replaced else ""
        if f"{before} {argument}" in OLD_OPTIONS:
            argument = OLD_OPTIONS[f"{before} {argument}"].split()[1]
        elif equals and f"{option} {value}" in OLD_OPTIONS:
            argument = OLD_OPTIONS[f"{option} {value}"].replace(" ", "=")
        else:
            argument = option + equals + value
        replaced.append(argument)
    return replaced
