"""Which software made a result, and what earlier versions of this project called things.

The `OLD_*` maps are the only place that knows that a name changed. Whatever reads a file that an earlier version may have written passes
its content through `current`, `current_columns` or `current_options`.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "pandas", "pyarrow")
"""Packages that decide the numbers."""

OLD_COLUMNS = {"cut": "truncated", "n_cut": "n_truncated"}
"""Columns of tables: the name in version 0.1, and the name now."""

OLD_KEYS = {
    "way": "backend",
    "n_cut": "n_truncated",
    "config.way": "backend",
    "measures.way": "backend",
    "generated.n_cut": "n_truncated",
    "models.n_cut": "n_truncated",
    "objective.cut": "truncated",
    "counts.cut": "truncated",
    "counts.dropped_cut": "dropped_truncated",
}
"""Keys of run.json, settings.json and study files: the key in version 0.1 below its sections, and the name now.

Sections are spelled out so that a key inside a user's own content, such as a model's identity, keeps its name.
"""

OLD_VALUES = {
    "text": {"gold": "reference"},
    "config.text": {"gold": "reference"},
}
"""Values by key, as in `OLD_KEYS`."""

OLD_OPTIONS = {"--way": "--backend"}
"""Command-line options of version 0.1 that are still accepted and are not listed in --help."""

OLD_OPTION_VALUES = {"--text": {"gold": "reference"}}
"""Values of options, likewise."""

MOVED = {
    "interp.measures": "interp (`from interp import Measure, MeasureInfo`) or interp.measures.catalog",
    "interp.table": "interp (`from interp import MeasureInfo`), interp.tables.schema or interp.tables.heads",
    "interp.show": "analyses.examples (`from analyses.examples import show`)",
    "distill.trajectory": "distill.training.trajectory",
}
"""Import paths that the documentation of version 0.1 showed: the path then, and the path now."""


def moved_message(path: str) -> str:
    """Return the message for whoever imports a path of version 0.1.

    Args:
        path: a key of `MOVED`.
    """
    return f"{path} has moved; import from {MOVED[path]}"


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
    """Return the content of run.json, settings.json or a study file of any version under today's keys and values.

    Args:
        content: as read; dicts and lists are copied, everything else is returned as it is.
        under: the section that holds the content, with dots between sections; None for the complete file.
    """
    if isinstance(content, list):
        return [current(value, under=under) for value in content]  # entries of a list are known by the list's name
    if isinstance(content, dict):
        renamed = {}
        for key, value in content.items():
            place = f"{under}.{key}" if under else str(key)
            new = OLD_KEYS.get(place, key)
            renamed[key if new in content else new] = current(value, under=place)
        return renamed
    if isinstance(content, str) and under in OLD_VALUES:
        return OLD_VALUES[under].get(content, content)
    return content


def current_names(columns: Iterable[str]) -> dict[str, str]:
    """Return today's name of each column of a table of any version, by the name that it has."""
    found = list(columns)
    return {name: OLD_COLUMNS.get(name, name) if OLD_COLUMNS.get(name) not in found else name for name in found}


def current_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table of any version under today's column names."""
    return frame.rename(columns=current_names(frame.columns))


def current_options(arguments: list[str]) -> list[str]:
    """Return command-line arguments with the options of earlier versions replaced by today's.

    Args:
        arguments: without the program's name. Values keep their text: only `gold` right after `--text` is replaced.
    """
    replaced: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, equals, value = argument.partition("=")
        if equals:
            value = OLD_OPTION_VALUES.get(option, {}).get(value, value)
        else:
            option = OLD_OPTION_VALUES.get(before, {}).get(option, option)
        replaced.append(OLD_OPTIONS.get(option, option) + equals + value)
    return replaced
