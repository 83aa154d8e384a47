"""Every figure of a contrast.

Add a figure by adding an entry to `CONTRAST_FIGURES`, or from a package of your own by an entry point in the group
`primed_heads.contrast_figures`.
"""

from __future__ import annotations

from figures.contrast.forest import forest
from figures.contrast.maps import contrast_map
from figures.drawing.entry import FigureEntry

CONTRAST_FIGURES: dict[str, FigureEntry] = {
    "forest": FigureEntry(
        lambda contrast, model: forest(contrast.rows_of(model), contrast.measures, contrast.subtitle, contrast.region),
        "Heads of {model} that differ most between right and wrong answers. Queries: {region}.",
        each=("tested",),
    ),
    "contrast_map": FigureEntry(
        lambda contrast, model, measure: contrast_map(contrast.rows_of(model), measure, contrast.subtitle, contrast.region),
        "Right minus wrong answers of {model}: {title}. Queries: {region}.",
        each=("model", "measure"),
    ),
}
"""File name to figure; the model and the measure are added to the file name."""
