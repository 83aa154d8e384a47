"""Draw the figures of a contrast from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from figures.contrast.catalog import CONTRAST_FIGURES
from figures.contrast.read import read_contrast
from figures.drawing.entry import draw_figures


def draw_contrast(
    folder: Path, out: Path | None = None, region: str | None = None, measures: Sequence[str] = (), models: Sequence[str] = ()
) -> list[Path]:
    """Draw the maps and the forest plots of a contrast from its tables, in the active style. A contrast has no page.

    Args:
        folder: as `analyses.contrast.run` writes it.
        out: where to write figures/; None: the folder itself.
        region: where the queries are; None: the region in run.json.
        measures: names of the measures to draw; all if none is given.
        models: names of the models with maps; if none is given, the models paired by problem where they are tested, else every model.
            Forest plots are drawn for all models that are tested.

    Returns:
        The written files; none where no head is tested in the region.

    Raises:
        InputError: see `figures.contrast.read.read_contrast`.
        OSError: `out` cannot be written to.
    """
    content = read_contrast(folder, region, measures, models)
    drawn = draw_figures("contrast_figures", CONTRAST_FIGURES, content, (folder if out is None else out) / "figures")
    return [path for figure in drawn for path in figure.files]
