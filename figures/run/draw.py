"""Draw a run folder: read its tables, write its figures and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from figures.drawing import style
from figures.run.catalog import FIGURES, MEASURE_FIGURES
from figures.run.page import report
from interp.tables.errors import InputError
from interp.tables.heads import HEADS, INPUTS
from interp.tables.results import measure_infos
from interp.tables.schema import REGIONS, read

REQUIRED = ("command", "model", "measures", "text", "chat", "dtype", "device", "problems")
"""Keys that run.json must have; `model` needs a `name`. Every other key may be absent, and the page leaves it out."""


def draw_run(folder: Path, out: Path | None = None, region: str = "response") -> list[Path]:
    """Draw every figure of a run, and its page, from its tables.

    Reads `run.json`, `heads.parquet` and `inputs.parquet`. Writes `figures/*.png`, `figures/*.pdf` and `report.html`,
    over those of an earlier drawing. A figure whose measures were not run is left out.

    Args:
        folder: a run folder, as `analyses.heads` writes it.
        out: where to write; created if needed. None: the run folder itself.
        region: where the queries of the maps, rankings and distributions stand, one of `interp.tables.schema.REGIONS`.

    Returns:
        The written files, the page last.

    Raises:
        InputError: the folder or one of its files is missing, run.json is broken or lacks a key, or `region` is
            unknown.
        InputError: a table is torn or breaks its schema, or holds other measures than run.json or several models.
        OSError: `out` cannot be written to.
    """
    if region not in REGIONS:
        raise InputError(f"unknown region {region!r}; known: {', '.join(REGIONS)}")
    run = read_run(folder)
    heads = read(folder / "heads.parquet", HEADS)
    inputs = read(folder / "inputs.parquet", INPUTS)
    measures = measure_infos(run)
    models = sorted(heads["model"].astype(str).unique())
    if len(models) != 1:
        raise InputError(f"{folder / 'heads.parquet'}: expected one model, found {len(models)}: {', '.join(models)}")
    undescribed = sorted(set(heads["measure"].astype(str)) - set(measures))
    if undescribed:
        raise InputError(f"{folder / 'heads.parquet'}: measures that run.json does not describe: {', '.join(undescribed)}")
    out = folder if out is None else out
    figure_folder = out / "figures"
    figure_folder.mkdir(parents=True, exist_ok=True)
    subtitle = run_subtitle(run, heads)
    written: list[Path] = []
    for name, draw in FIGURES.items():
        figure = draw(heads, measures, subtitle, region)
        if figure is not None:
            written += style.save(figure, figure_folder, name)
    for kind, draw_measure in MEASURE_FIGURES.items():
        for info in measures.values():
            figure = draw_measure(heads, info, subtitle, region)
            if figure is not None:
                written += style.save(figure, figure_folder, f"{kind}_{info.name}")
    page = out / "report.html"
    page.write_text(report(run, heads, inputs, figure_folder, region), encoding="utf-8")
    return [*written, page]


def read_run(folder: Path) -> dict[str, Any]:
    """Read run.json and check that the folder is a whole run folder.

    Raises:
        InputError: see `draw_run`.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    for name in ("run.json", "heads.parquet", "inputs.parquet"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}; a run folder of analyses.heads has one")
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    missing = [key for key in REQUIRED if not isinstance(run, dict) or key not in run]
    if missing:
        raise InputError(f"{path}: missing {', '.join(missing)}")
    if not isinstance(run["model"], dict) or "name" not in run["model"]:
        raise InputError(f"{path}: model needs a name")
    return run


def run_subtitle(run: dict[str, Any], heads: pd.DataFrame) -> str:
    """What was run, in a line for the figures: model, text, number of examples."""
    return style.joined(run["model"]["name"], f"{run['text']} text", f"n = {heads['n_examples'].to_numpy().max()} examples")
