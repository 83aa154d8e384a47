"""Read the folder of a contrast: heads on right and on wrong answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from figures.drawing.entry import Choice
from figures.folder import file_parts, known_names, read_about
from interp.tables.contrast import CONTRAST, PAIRED
from interp.tables.results import measure_infos
from interp.tables.schema import REGIONS, MeasureInfo, read

_NEEDED = ("command", "models", "measures", "region", "grader")


@dataclass(frozen=True)
class Contrast:
    """A contrast, as its figures are drawn from it.

    Attributes:
        run: the content of run.json.
        table: rows of `interp.tables.contrast.CONTRAST`.
        measures: those to draw, by name.
        tested: models with a test in the region.
        mapped: tested models with a map for each measure.
        region: where the queries are.
    """

    run: dict[str, Any]
    table: pd.DataFrame
    measures: dict[str, MeasureInfo]
    tested: tuple[str, ...]
    mapped: tuple[str, ...]
    region: str

    @property
    def subtitle(self) -> str:
        """What was read, and how it was graded."""
        return f"own answers, graded by {self.run['grader']}"

    def rows_of(self, model: str) -> pd.DataFrame:
        """Return the rows of one model."""
        return self.table[self.table["model"] == model]

    def table_names(self) -> Collection[str]:
        """Return the names of the tables that the folder has."""
        return ("contrast",)

    def choices(self, of: Choice) -> Mapping[str, Any]:
        """Return measures by name, and tested or mapped models by a part of a file name, which is empty for an only model."""
        if of == "measure":
            return self.measures
        names = list(dict.fromkeys(self.table["model"]))
        parts = file_parts(names) if len(names) > 1 else {names[0]: ""}
        chosen = {"model": self.mapped, "tested": self.tested}.get(of, ())
        return {parts[name]: name for name in chosen}

    def caption_fields(self, chosen: Mapping[Choice, Any]) -> dict[str, str]:
        """Return the fields of captions: {model}, {region} and, for a figure of one measure, {title}."""
        model = chosen.get("model") or chosen.get("tested") or ""
        return {"model": model, "region": self.region, "title": chosen["measure"].title if "measure" in chosen else ""}


def read_contrast(folder: Path, region: str | None = None, measures: Sequence[str] = (), models: Sequence[str] = ()) -> Contrast:
    """Return a contrast, read from run.json and contrast.parquet.

    Args:
        folder: as `analyses.contrast.run` writes it.
        region: where the queries are; None: the region in run.json.
        measures: names of the measures to draw; all if none is given.
        models: names of the models with maps; if none is given, the models paired by problem where they are tested, else every model.

    Raises:
        InputError: the folder is not a contrast, a region, measure or model is unknown, or the table is missing, damaged or breaks its
            schema.
    """
    run = read_about(folder, _NEEDED, ("contrast",), "python -m analyses.examples --contrast")
    table = read(folder / "contrast.parquet", CONTRAST)
    table = table.assign(**{column: table[column].astype(str) for column in ("model", "measure", "region")})
    infos = measure_infos(run)
    region = known_names("region", [region or run["region"]], REGIONS)[0]
    infos = {name: infos[name] for name in known_names("measure", measures or infos, infos)}
    names = list(dict.fromkeys(table["model"]))
    tested = [name for name in names if table.loc[(table["model"] == name) & (table["region"] == region), "p"].notna().any()]
    usual = [PAIRED] if PAIRED in tested else tested
    mapped = [name for name in known_names("model", models or usual, names) if name in tested]
    return Contrast(run, table, infos, tuple(tested), tuple(mapped), region)
