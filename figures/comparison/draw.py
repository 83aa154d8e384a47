"""Draw the figures and the page of a comparison from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures.comparison.catalog import COMPARISON_FIGURES, SECTIONS
from figures.comparison.read import Comparison, read_comparison
from figures.drawing.entry import DrawnFigure, draw_figures
from figures.drawing.significance import FALSE_DISCOVERY_RATE
from figures.drawing.text import plural, unit_label
from figures.pages import listed_facts, page_environment, pictures
from interp.tables.files import write_text

_LISTED_HEADS = 12
"""Heads listed for each model and measure."""


def draw_comparison(
    folder: Path, out: Path | None = None, region: str | None = None, measures: Sequence[str] = (), models: Sequence[str] = ()
) -> list[Path]:
    """Draw every figure of a comparison, and its page, from its tables.

    Args:
        folder: as `analyses.shifts` writes it.
        out: where to write; None: the folder itself.
        region: where the queries are; None: the region in run.json.
        measures: names of the measures to draw; if none is given, `figures.comparison.read.HEADLINE_MEASURES`.
        models: models or conditions with figures of their own; if none is given, the first few.

    Returns:
        The written files, the page last.

    Raises:
        InputError: see `figures.comparison.read.read_comparison`; or a table that a figure needs lacks a column.
        OSError: `out` cannot be written to.
    """
    content = read_comparison(folder, region, measures, models)
    out = folder if out is None else out
    drawn = draw_figures("comparison_figures", COMPARISON_FIGURES, content, out / "figures")
    page = out / "report.html"
    write_text(page, comparison_page(content, drawn))
    return [*(path for figure in drawn for path in figure.files), page]


def comparison_page(comparison: Comparison, drawn: Sequence[DrawnFigure]) -> str:
    """Return the page of a comparison; a section without figures is left out."""
    embedded = pictures(drawn)
    sections = [(section, [figure for figure in embedded if figure.section == key]) for key, section in SECTIONS.items()]
    return page_environment().get_template("comparison.html.j2").render(
        run=comparison.run,
        title=_title(comparison.run),
        facts=_facts(comparison),
        sections=[(section, figures) for section, figures in sections if figures],
        top=_largest_shifts(comparison),
        listed=_LISTED_HEADS,
        region=comparison.region,
    )  # fmt: skip


def _title(run: dict[str, Any]) -> str:
    names = [str(model["name"]) for model in run["models"]]
    match run["kind"]:
        case "match":
            return f"Matched heads of {' and '.join(names)}"
        case "published":
            return f"Published maps of {', '.join(names)}"
        case "trajectory":
            return f"Heads of {plural(len(names), 'student')} during training"
        case _:
            return f"Heads of {plural(len(names) - 1, 'model')} compared with {run['baseline']}"


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    run = comparison.run
    return listed_facts(
        {
            "Models": [str(model["name"]) for model in run["models"]],
            "Baseline": run.get("baseline"),
            "Examples": run["n_examples"],
            "Heads": f"{run['n_layers']} layers × {run['n_heads']} heads" if "n_layers" in run else None,
            "Text read": run.get("text"),
            "Queries of the figures": comparison.region if run["kind"] != "published" else None,
            "Seed": run.get("seed"),
            "Command": run["command"],
            "Versions": run.get("versions"),
        }
    )


def _largest_shifts(comparison: Comparison) -> list[dict[str, Any]]:
    """Return, for each model and measure that is drawn, the significant heads with the largest difference."""
    tables = []
    for name in comparison.models:
        rows, crossed = comparison.shifts_of(name)
        for info in comparison.measures.values():
            part = rows[(rows["measure"] == info.name) & (rows["region"] == comparison.region) & (rows["q"] < FALSE_DISCOVERY_RATE)]
            part = part.assign(size=-part["difference"].abs()).sort_values(["size", "layer", "head"], kind="stable").head(_LISTED_HEADS)
            listed = [
                [f"{row['layer']}.{row['head']}", *(f"{row[column]:.3g}" for column in ("difference", "ci_low", "ci_high", "effect", "q"))]
                for row in part.to_dict("records")
            ]
            tables.append({"model": name, "measure": f"{info.title} ({unit_label(info)})", "rows": listed, "crossed": crossed})
    return tables
