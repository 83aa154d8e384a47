"""Draw the figures and the page of a comparison from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from figures.comparison.catalog import COMPARISON_FIGURES
from figures.comparison.page import comparison_page
from figures.comparison.read import read_comparison
from figures.drawing.entry import draw_figures
from interp.tables.files import write_text


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
