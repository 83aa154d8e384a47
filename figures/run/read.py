"""Read the folder of a head run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from figures.drawing.entry import Choice
from figures.drawing.text import joined
from figures.folder import known_names, read_about
from interp.tables.errors import InputError
from interp.tables.heads import HEADS, INPUTS
from interp.tables.results import measure_infos
from interp.tables.schema import REGIONS, MeasureInfo, read

_NEEDED = ("command", "model", "measures", "text", "chat", "dtype", "device", "problems")
"""Keys that run.json must have; `model` needs a `name`. The page leaves out every other key that is absent."""


@dataclass(frozen=True)
class HeadRun:
    """A head run, as its figures and its page are drawn from it.

    Attributes:
        run: the content of run.json.
        heads: the head table of one model.
        inputs: every token that the model read.
        measures: by name, in the order of run.json.
        region: where the queries of maps, rankings and distributions are, one of `interp.tables.schema.REGIONS`.
    """

    run: dict[str, Any]
    heads: pd.DataFrame
    inputs: pd.DataFrame
    measures: dict[str, MeasureInfo]
    region: str = "response"

    @property
    def subtitle(self) -> str:
        """What was run, in one line: model, text, number of examples."""
        return joined(self.run["model"]["name"], f"{self.run['text']} text", f"n = {self.heads['n_examples'].to_numpy().max()} examples")

    def table_names(self) -> Collection[str]:
        """Return the names of the tables that the folder has."""
        return ("heads", "inputs")

    def choices(self, of: Choice) -> Mapping[str, Any]:
        """Return the measures by name; a head run has no other choice."""
        return self.measures if of == "measure" else {}

    def caption_fields(self, chosen: Mapping[Choice, Any]) -> dict[str, str]:
        """Return the fields of captions: {n}, {region} and, for a figure of one measure, {title}."""
        title = chosen["measure"].title if "measure" in chosen else ""
        return {"n": examples_and_queries(self.heads, self.region), "region": self.region, "title": title}


def read_head_run(folder: Path, region: str = "response") -> HeadRun:
    """Return a head run, read from `run.json`, `heads.parquet` and `inputs.parquet`.

    Raises:
        InputError: the folder or one of its files is missing, run.json is damaged or lacks a key, `region` is unknown, a table is damaged
            or breaks its schema, or the head table has several models or measures that run.json does not describe.
    """
    known_names("region", [region], REGIONS)
    run = read_about(folder, _NEEDED, (None,), "python -m analyses.heads")
    if not isinstance(run["model"], dict) or "name" not in run["model"]:
        raise InputError(f"{folder / 'run.json'}: model needs a name")
    for name in ("heads.parquet", "inputs.parquet"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}; a head run of python -m analyses.heads has one")
    heads = read(folder / "heads.parquet", HEADS)
    inputs = read(folder / "inputs.parquet", INPUTS)
    measures = measure_infos(run)
    models = sorted(heads["model"].astype(str).unique())
    if len(models) != 1:
        raise InputError(f"{folder / 'heads.parquet'}: expected one model, found {len(models)}: {', '.join(models)}")
    undescribed = sorted(set(heads["measure"].astype(str)) - set(measures))
    if undescribed:
        raise InputError(f"{folder / 'heads.parquet'}: measures that run.json does not describe: {', '.join(undescribed)}")
    return HeadRun(run, heads, inputs, measures, region)


def examples_and_queries(heads: pd.DataFrame, region: str) -> str:
    """Return the sample size of a region, such as "n = 40 examples, up to 3,120 queries per head"."""
    rows: pd.DataFrame = heads.loc[heads["region"] == region]
    if rows.empty:
        return "n = 0"
    most = {column: int(rows[column].to_numpy().max()) for column in ("n_examples", "n_queries")}
    return f"n = {most['n_examples']:,} examples, up to {most['n_queries']:,} queries per head"
