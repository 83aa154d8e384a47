"""Heads under right and wrong answers: maps of the differences, and the foremost heads with their intervals."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.comparison.head_shifts import RATE, clear_map
from figures.drawing import style
from figures.drawing.columns import counts
from figures.drawing.grid import grid, grid_shape, is_measured
from interp.tables.contrast import CONTRAST, PAIRED
from interp.tables.errors import InputError
from interp.tables.results import measure_infos
from interp.tables.schema import REGIONS, MeasureInfo, read

KIND = "contrast"
"""As `kind` in run.json."""


REQUIRED = ("command", "models", "measures", "region", "grader")


MOST_MEASURES = 6
"""Measures in a forest plot, those with the smallest q."""


MOST_HEADS = 8
"""Heads of each of them."""


TESTS = {True: "models paired by problem, t test clustered by problem", False: "Welch's t test"}


def is_contrast(folder: Path) -> bool:
    """Whether a folder holds right answers against wrong ones, as `analyses.contrast.run` writes them."""
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8")).get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        return False


def draw_contrast(
    folder: Path, out: Path | None = None, region: str | None = None, measures: Sequence[str] = (), models: Sequence[str] = ()
) -> list[Path]:
    """Draw the maps and the forest plots of a contrast from its tables, in the style in use.

    Args:
        folder: as `analyses.contrast.run` writes it.
        out: where to write figures/; None: the folder itself.
        region: where the queries stand; None: as run.json says.
        measures: names to draw; none: all.
        models: names with maps; none: the models paired by problem where they are tested, else every model. Forest plots are drawn of
            all that are tested.

    Returns:
        The written files; none where no head is tested in the region.

    Raises:
        InputError: no contrast there, or an unknown region, measure or model.
        InputError: the table is missing, torn or breaks its schema.
        OSError: `out` cannot be written to.
    """
    run = _read_run(folder)
    table = read(folder / "contrast.parquet", CONTRAST)
    table = table.assign(model=table["model"].astype(str), measure=table["measure"].astype(str), region=table["region"].astype(str))
    infos = measure_infos(run)
    region = _known("region", [region or run["region"]], REGIONS)[0]
    infos = {name: infos[name] for name in _known("measure", measures or list(infos), infos)}
    known = list(dict.fromkeys(table["model"]))
    tested = [name for name in known if table.loc[(table["model"] == name) & (table["region"] == region), "p"].notna().any()]
    usual = [PAIRED] if PAIRED in tested else tested
    mapped = [name for name in _known("model", models or usual, known) if name in tested]
    drawn = (folder if out is None else out) / "figures"
    drawn.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    names = _file_names(known)
    for model in tested:
        figure = forest(table[table["model"] == model], infos, _subtitle(run), region)
        if figure is not None:
            written += style.save(figure, drawn, f"forest{names[model]}")
    for model in mapped:
        for info in infos.values():
            figure = contrast_map(table[table["model"] == model], info, _subtitle(run), region)
            if figure is not None:
                written += style.save(figure, drawn, f"contrast_map{names[model]}_{info.name}")
    return written


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); make the contrast again") from error
    missing = [key for key in REQUIRED if not isinstance(run, dict) or key not in run]
    if missing or run.get("kind") != KIND:
        raise InputError(f"{path} has no {', '.join(missing) or f'kind {KIND!r}'}; make the contrast again")
    return run


def _known(what: str, asked: Sequence[str], known: Sequence[str] | dict[str, Any]) -> list[str]:
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise InputError(f"unknown {what} {unknown[0]!r}; known: {', '.join(known)}")
    return list(asked)


def _file_names(models: Sequence[str]) -> dict[str, str]:
    """A part of a file's name for each model, each its own: nothing where there is one."""
    if len(models) == 1:
        return {models[0]: ""}
    plain = {name: re.sub(r"[^\w.\-]+", "-", name).strip("-") or "model" for name in models}
    taken = list(plain.values())
    return {name: f"_{text}" if taken.count(text) == 1 else f"_{text}-{at}" for at, (name, text) in enumerate(plain.items())}


def _subtitle(run: dict[str, Any]) -> str:
    return f"own answers, graded by {run['grader']}"


def about_contrast(contrast: pd.DataFrame, measure: str | None, region: str) -> str:
    """What is compared, the numbers of answers, queries, test and correction, as a figure's subtitle names them.

    Args:
        contrast: rows of `interp.tables.contrast.CONTRAST` of one model.
        measure: whose counts are named; None for all.
        region: where the queries stand.

    Raises:
        InputError: the table holds several models.
    """
    names = sorted(contrast["model"].astype(str).unique())
    if len(names) != 1:
        raise InputError(f"the table of the contrast has {len(names)} models ({', '.join(names)}); choose the rows of one")
    rows = contrast[(contrast["region"] == region) & (contrast["measure"] == measure if measure else True) & contrast["p"].notna()]
    paired = names[0] == PAIRED
    said = f"{counts(rows['n_right'])} right, {counts(rows['n_wrong'])} wrong answers"
    said += f" on {counts(rows['n_problems'])} problems that have both" if paired else ""
    layers, heads = grid_shape(contrast)
    test = f"{TESTS[paired]}, Benjamini-Hochberg over {layers} × {heads} heads"
    return style.joined("" if paired else names[0], said, f"{region} queries", test)


@style.paper_style()
def contrast_map(contrast: pd.DataFrame, info: MeasureInfo, subtitle: str = "", region: str = "response") -> Figure | None:
    """Right minus wrong answers of every head, layers along x; heads that are not significant in grey, undefined ones hatched.

    Args:
        contrast: rows of `interp.tables.contrast.CONTRAST` of one model.
        info: the measure.
        subtitle: what was run; model, counts, region, test and correction are added.
        region: where the queries stand.

    Returns:
        The figure, one column wide, or None where no head has a test.

    Raises:
        InputError: the table holds several models.
    """
    if not is_measured(contrast, info.name):
        return None
    values = grid(contrast, info.name, region, "difference")
    clear = grid(contrast, info.name, region, "q") <= RATE
    about = about_contrast(contrast, info.name, region)
    if not np.isfinite(values).any():
        return None
    return clear_map(values, clear, replace(info, title=f"Right minus wrong: {info.title}"), (about, subtitle))


def forest_rows(contrast: pd.DataFrame, region: str) -> dict[str, pd.DataFrame]:
    """The heads of a forest plot: for the measures with the smallest q (then p), the heads with the smallest, the foremost first."""
    rows = contrast[(contrast["region"] == region) & contrast["q"].notna() & contrast["ci_low"].notna()]
    rows = rows.sort_values(["q", "p", "layer", "head"], kind="stable")
    foremost = list(dict.fromkeys(rows["measure"].astype(str)))[:MOST_MEASURES]
    return {name: rows[rows["measure"] == name].head(MOST_HEADS) for name in foremost}


@style.paper_style()
def forest(contrast: pd.DataFrame, measures: dict[str, MeasureInfo], subtitle: str = "", region: str = "response") -> Figure | None:
    """Differences of the foremost heads with their 95 % intervals and q, a panel a measure; two columns wide, or one with one measure.

    Args:
        contrast: rows of `interp.tables.contrast.CONTRAST` of one model.
        measures: those to draw, by name.
        subtitle: what was run; model, counts, region, test and correction are added.
        region: where the queries stand.

    Returns:
        The figure, or None where no head has a test.

    Raises:
        InputError: the table holds several models.
    """
    chosen = forest_rows(contrast[contrast["measure"].isin(list(measures))], region)
    if not chosen:
        return None
    at = style.look()
    title = "Heads that differ most between right and wrong answers (right minus wrong)"
    scope = f"{len(chosen)} measures" if len(chosen) > 1 else "measure"
    note = f"the {scope} with the smallest q, up to {MOST_HEADS} heads each · line: 95 % interval of each head alone · head: layer.head"
    subtitle = style.joined(about_contrast(contrast, None, region), note, subtitle)
    most = max(map(len, chosen.values()))
    margins = (0.42, 0.54, 0.26, 0.22)
    columns = min(2, len(chosen))
    width = at.two if columns == 2 else at.one
    across = width / columns - (margins[0] + margins[1]) * at.zoom
    figure, every = style.panels(
        title, subtitle, len(chosen), columns, panel=(across, 0.16 * most + 0.1), margins=margins, legend_room=0.2, width=width
    )
    top = 1 - style.titles_inches(width, title, subtitle) / figure.get_figheight()
    figure.legend(_key(), _KEY, loc="upper left", bbox_to_anchor=(0, top), ncols=2, borderpad=0, handlelength=1.5)
    for axes, (name, rows) in zip(every, chosen.items(), strict=True):
        _draw_forest(axes, rows, most)
        room = style.axes_inches(axes)[0] + (margins[0] + margins[1]) * at.zoom - 0.1
        axes.set_title(style.heading(measures[name], room, 1), loc="left", x=-margins[0] * at.zoom / style.axes_inches(axes)[0] + 0.03)
    return figure


_KEY = [f"q ≤ {RATE:g}", f"q > {RATE:g}"]


def _key() -> list[Line2D]:
    at = style.look()
    looks = ((at.blue, at.blue), (at.grey, at.background))
    return [
        Line2D([], [], color=line, marker="o", markersize=3.5 * at.zoom, markerfacecolor=face, linewidth=at.zoom) for line, face in looks
    ]


def _draw_forest(axes: Axes, rows: pd.DataFrame, most: int) -> None:
    at = style.look()
    axes.axvline(0.0, color=at.grey, linewidth=0.5 * at.zoom, zorder=1)
    heights = np.arange(len(rows))
    for clear, colour, face in ((True, at.blue, at.blue), (False, at.grey, at.background)):
        kind = (rows["q"] <= RATE).to_numpy() == clear
        part, y = rows[kind], heights[kind]
        axes.hlines(y, part["ci_low"], part["ci_high"], color=colour, linewidth=at.zoom, zorder=2)
        axes.scatter(part["difference"], y, s=12 * at.zoom**2, facecolors=face, edgecolors=colour, linewidths=0.8 * at.zoom, zorder=3)
    axes.set_ylim(most - 0.4, -0.6)
    axes.set_yticks(heights, [f"{layer}.{head}" for layer, head in zip(rows["layer"], rows["head"], strict=True)])
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: style.tick_text(value))
    for y, q in zip(heights, rows["q"], strict=True):
        text = "q < 0.001" if q < 0.001 else f"q = {q:.3f}" if q < 0.1 else f"q = {q:.2f}"
        axes.annotate(text, (1, y), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center_baseline")
    style.open_axes(axes)
