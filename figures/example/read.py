"""Read the folder of one problem: run.json and the tables of `interp.tables.example`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from figures.drawing.entry import Choice
from figures.folder import read_about
from interp.tables.errors import InputError
from interp.tables.example import EDGES, EXAMPLE_TABLES, NEXT, STANDING, STEPS, TOKENS
from interp.tables.results import measure_infos
from interp.tables.schema import MeasureInfo, read

_NEEDED = ("command", "kind", "text", "problem", "models", "measures", "layers", "n_heads", "watched", "chosen", "by", "region")


@dataclass(frozen=True)
class Example:
    """One problem, as read from its folder.

    Attributes:
        run: the content of run.json, as `analyses.examples` writes it.
        tokens: rows of `interp.tables.example.TOKENS`.
        edges: rows of `interp.tables.example.EDGES`.
        standing: rows of `interp.tables.example.STANDING`.
        steps: rows of `interp.tables.example.STEPS`.
        next: rows of `interp.tables.example.NEXT`.
    """

    run: dict[str, Any]
    tokens: pd.DataFrame
    edges: pd.DataFrame
    standing: pd.DataFrame
    steps: pd.DataFrame
    next: pd.DataFrame

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order of the command."""
        return [str(model["name"]) for model in self.run["models"]]

    @property
    def chosen(self) -> list[tuple[int, int]]:
        """(layer, head) of the heads that are shown first."""
        return [(int(layer), int(head)) for layer, head in self.run["chosen"]]

    @property
    def watched(self) -> list[tuple[int, int]]:
        """(layer, head) of the heads with a complete map."""
        return [(int(layer), int(head)) for layer, head in self.run["watched"]]

    @property
    def measures(self) -> dict[str, MeasureInfo]:
        """What was measured, by name."""
        return measure_infos(self.run)


@dataclass(frozen=True)
class ExampleHeads:
    """One problem and the heads to draw, as its figures are drawn from it.

    Attributes:
        example: the problem.
        heads: (layer, head), at least one.
    """

    example: Example
    heads: tuple[tuple[int, int], ...]

    def table_names(self) -> Collection[str]:
        """Return the names of the tables that the folder has."""
        return EXAMPLE_TABLES

    def choices(self, of: Choice) -> Mapping[str, Any]:
        """Return the heads by a part of a file name, such as "12_3", or the measures by name."""
        if of == "measure":
            return self.example.measures
        return {f"{layer}_{head}": (layer, head) for layer, head in self.heads} if of == "head" else {}

    def caption_fields(self, chosen: Mapping[Choice, Any]) -> dict[str, str]:
        """Return the fields of captions: {head} of a figure of one head, {title} of a figure of one measure."""
        head = "{}.{}".format(*chosen["head"]) if "head" in chosen else ""
        return {"head": head, "title": chosen["measure"].title if "measure" in chosen else ""}


def read_example(folder: Path) -> Example:
    """Return one problem, read from its folder.

    Raises:
        InputError: run.json is missing, damaged or lacks a key; or a table is missing, damaged, breaks its schema, or holds other models
            than run.json.
    """
    run = read_about(folder, _NEEDED, ("example",), "python -m analyses.examples")
    tables = {name: read(folder / f"{name}.parquet", schema) for name, schema in EXAMPLE_TABLES.items()}
    names = {str(model["name"]) for model in run["models"]}
    for name, table in tables.items():
        unknown = sorted(set(table["model"].astype(str)) - names)
        if unknown:
            raise InputError(f"{folder / name}.parquet: model {unknown[0]!r} is not in run.json, which has {', '.join(sorted(names))}")
    return Example(run, *(tables[schema.name] for schema in (TOKENS, EDGES, STANDING, STEPS, NEXT)))
