"""Read the folder of a comparison."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from figures.drawing.entry import Choice
from figures.drawing.text import joined
from figures.folder import file_parts, known_names, read_about
from interp.tables.results import measure_infos
from interp.tables.schema import REGIONS, MeasureInfo, read
from interp.tables.shifts import SHIFT_TABLES
from interp.tables.versions import current_columns

HEADLINE_MEASURES = ("entropy_nats", "numeric_mass", "previous_mass", "bos_mass", "induction_mass")
"""Measures that are drawn by default: how broad attention is, and attention on the four targets that most heads have."""

_MOST_MODELS = 6
"""Models (or conditions) with a difference map and a volcano plot of their own by default."""

COMPARISON_KINDS = ("shifts", "match", "published", "trajectory")
"""Values of `kind` in the run.json of a comparison."""

_NEEDED = ("command", "n_examples", "measures", "models", "warnings")


@dataclass(frozen=True)
class Comparison:
    """A comparison, as its figures and its page are drawn from it.

    Attributes:
        run: the content of run.json.
        tables: by name.
        measures: those to draw, by name.
        models: models or conditions with figures of their own.
        region: where the queries are.
    """

    run: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    measures: dict[str, MeasureInfo]
    models: tuple[str, ...]
    region: str

    @property
    def subtitle(self) -> str:
        """What was read; figures add models, n and test."""
        return f"{self.run['text']} text" if self.run.get("text") else ""

    @property
    def counted(self) -> str:
        """What was read with the number of examples, for tables that do not hold it."""
        return joined(self.subtitle, f"n = {self.run['n_examples']} examples")

    @property
    def baseline(self) -> str:
        """Name of the baseline; empty where there is none."""
        return str(self.run.get("baseline", ""))

    def shifts_of(self, name: str) -> tuple[pd.DataFrame, bool]:
        """Return the shifts of a model, or those of a condition in the same form; and whether its test crosses seeds with examples."""
        shifts = self.tables["shifts"]
        rows = shifts[shifts["model"] == name]
        if len(rows):
            return rows, False
        conditions = self.tables["conditions"]
        rows = conditions[conditions["condition"] == name].rename(columns={"condition": "model"})
        models = self.tables["models"]
        of_seeds = shifts[shifts["model"].isin(models.loc[models["condition"] == name, "model"])]
        keys = ["layer", "head", "measure", "region"]
        effect = of_seeds.groupby(keys, observed=True, sort=False)["effect"].mean().reset_index()
        return rows.merge(effect, on=keys, how="left"), True

    def with_condition(self, table: str) -> pd.DataFrame:
        """Return a table with the columns `condition` and `seed` of its models, which draws seeds of one condition together."""
        models = self.tables["models"]
        columns = [column for column in ("model", "condition", "seed") if column in models]
        return self.tables[table].astype({"model": str}).merge(models[columns], on="model")

    def table_names(self) -> Collection[str]:
        """Return the names of the tables that the folder has."""
        return self.tables

    def choices(self, of: Choice) -> Mapping[str, Any]:
        """Return the measures by name, and the models by a part of a file name."""
        if of == "measure":
            return self.measures
        parts = file_parts(self.models) if of == "model" else {}
        return {part: name for name, part in parts.items()}

    def caption_fields(self, chosen: Mapping[Choice, Any]) -> dict[str, str]:
        """Return the fields of captions: {baseline}, {region}, {n}, {model} and its {test}, and the {title} of the measure."""
        model, test = str(chosen.get("model", "")), ""
        if model:
            test = "seeds and examples crossed" if self.shifts_of(model)[1] else "paired t test over examples"
        return {
            "baseline": self.baseline,
            "region": self.region,
            "n": f"n = {self.run['n_examples']} examples",
            "model": model,
            "test": test,
            "title": chosen["measure"].title if "measure" in chosen else "",
        }


def read_comparison(folder: Path, region: str | None = None, measures: Sequence[str] = (), models: Sequence[str] = ()) -> Comparison:
    """Return a comparison, read from run.json and all tables of the folder.

    Args:
        folder: as `analyses.shifts` writes it.
        region: where the queries are; None: the region in run.json.
        measures: names of the measures to draw; if none is given, those of `HEADLINE_MEASURES`.
        models: models or conditions with figures of their own; if none is given, the first few.

    Raises:
        InputError: the folder is not a comparison, a region, measure or model is unknown, or a table is damaged or breaks its schema.
    """
    run = read_about(folder, _NEEDED, COMPARISON_KINDS, "python -m analyses.shifts")
    tables = _read_tables(folder)
    region = known_names("region", [region or str(run.get("region", "response"))], REGIONS)[0]
    return Comparison(run, tables, _chosen_measures(run, measures), _chosen_models(tables, models), region)


def _read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    tables = {}
    for file in sorted(folder.glob("*.parquet")):
        schema = SHIFT_TABLES.get(file.stem)
        tables[file.stem] = read(file, schema) if schema is not None else current_columns(pd.read_parquet(file))
    for file in sorted(folder.glob("*.csv")):
        tables[file.stem] = current_columns(pd.read_csv(file))
    return tables


def _chosen_measures(run: dict[str, Any], asked: Sequence[str]) -> dict[str, MeasureInfo]:
    if run["kind"] == "match":  # profiles are over many measures at once
        return {}
    infos = measure_infos(run)
    usual = [name for name in HEADLINE_MEASURES if name in infos] or list(infos)[: len(HEADLINE_MEASURES)]
    return {name: infos[name] for name in known_names("measure", asked or usual, infos)}


def _chosen_models(tables: dict[str, pd.DataFrame], asked: Sequence[str]) -> tuple[str, ...]:
    if "shifts" not in tables:
        return ()
    models = list(dict.fromkeys(tables["shifts"]["model"].astype(str)))
    conditions = list(dict.fromkeys(tables["conditions"]["condition"].astype(str)))
    several = int(tables["conditions"]["n_seeds"].to_numpy().max()) > 1
    usual = (conditions if several else models)[:_MOST_MODELS]
    return tuple(known_names("model", asked or usual, list(dict.fromkeys([*models, *conditions]))))
