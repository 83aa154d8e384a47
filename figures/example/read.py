"""Read the folder of one problem under the lens: run.json and the tables of `interp.tables.example`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from interp.tables.errors import InputError
from interp.tables.example import EDGES, EXAMPLE_TABLES, NEXT, STANDING, STEPS, TOKENS
from interp.tables.results import measure_infos
from interp.tables.schema import MeasureInfo, read

KIND = "example"
"""As `kind` in run.json."""


REQUIRED = ("command", "kind", "text", "problem", "models", "measures", "layers", "n_heads", "watched", "chosen", "by", "region")


@dataclass(frozen=True)
class Example:
    """One problem under the lens, as read from its folder.

    Attributes:
        run: the contents of run.json (`analyses.examples` says what is in it).
        tokens: of `interp.tables.example.TOKENS`.
        edges: of `interp.tables.example.EDGES`.
        standing: of `interp.tables.example.STANDING`.
        steps: of `interp.tables.example.STEPS`.
        next: of `interp.tables.example.NEXT`.
    """

    run: dict[str, Any]
    tokens: pd.DataFrame
    edges: pd.DataFrame
    standing: pd.DataFrame
    steps: pd.DataFrame
    next: pd.DataFrame

    @property
    def models(self) -> list[str]:
        """Names, in the order in which they were asked for."""
        return [str(model["name"]) for model in self.run["models"]]

    @property
    def chosen(self) -> list[tuple[int, int]]:
        """(layer, head) that are shown first, the foremost first."""
        return [(int(layer), int(head)) for layer, head in self.run["chosen"]]

    @property
    def watched(self) -> list[tuple[int, int]]:
        """(layer, head) whose map is there in whole."""
        return [(int(layer), int(head)) for layer, head in self.run["watched"]]

    @property
    def measures(self) -> dict[str, MeasureInfo]:
        """What was measured, by name."""
        return measure_infos(self.run)


def is_example(folder: Path) -> bool:
    """Whether a folder is one of `analyses.examples`."""
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8")).get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        return False


def read_example(folder: Path) -> Example:
    """Read a folder.

    Raises:
        InputError: run.json is missing, broken or lacks a key.
        InputError: a table is missing, torn or breaks its schema, or holds other models than run.json.
    """
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); look at the problem again with python -m analyses.examples") from error
    missing = [key for key in REQUIRED if not isinstance(run, dict) or key not in run]
    if missing or run["kind"] != KIND:
        raise InputError(
            f"{path} has no {', '.join(missing) or f'kind {KIND!r}'}; look at the problem again with python -m analyses.examples"
        )
    tables = {name: read(folder / f"{name}.parquet", schema) for name, schema in EXAMPLE_TABLES.items()}
    names = {str(model["name"]) for model in run["models"]}
    for name, table in tables.items():
        strangers = sorted(set(table["model"].astype(str)) - names)
        if strangers:
            raise InputError(f"{folder / name}.parquet: model {strangers[0]!r} is not in run.json, which has {', '.join(sorted(names))}")
    return Example(run, *(tables[schema.name] for schema in (TOKENS, EDGES, STANDING, STEPS, NEXT)))
