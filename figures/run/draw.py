"""Draw the figures and the page of a head run from its folder."""

from __future__ import annotations

from pathlib import Path

from figures.drawing.entry import draw_figures
from figures.run.catalog import RUN_FIGURES
from figures.run.page import run_page
from figures.run.read import read_head_run
from interp.tables.files import write_text


def draw_run(folder: Path, out: Path | None = None, region: str = "response") -> list[Path]:
    """Draw every figure of a head run, and its page, from its tables.

    Reads `run.json`, `heads.parquet` and `inputs.parquet`. Writes `figures/*.png`, `figures/*.pdf` and `report.html`, replacing those of
    an earlier call. A figure whose measures were not taken is left out.

    Args:
        folder: a head run, as `analyses.heads` writes it.
        out: where to write; created if needed. None: the folder itself.
        region: where the queries of maps, rankings and distributions are, one of `interp.tables.schema.REGIONS`.

    Returns:
        The written files, the page last.

    Raises:
        InputError: see `figures.run.read.read_head_run`.
        OSError: `out` cannot be written to.
    """
    content = read_head_run(folder, region)
    out = folder if out is None else out
    drawn = draw_figures("run_figures", RUN_FIGURES, content, out / "figures")
    page = out / "report.html"
    write_text(page, run_page(content, drawn))
    return [*(path for figure in drawn for path in figure.files), page]
