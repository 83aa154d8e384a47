"""Every figure of a head run, and what a reader must know of it."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from figures.run.distributions import distributions
from figures.run.head_maps import head_map, overview
from figures.run.layer_curves import layer_curves
from figures.run.number_heads import number_heads
from figures.run.scatter import entropy_against_numeric_mass
from interp.tables.schema import MeasureInfo

RunFigure = Callable[[pd.DataFrame, dict[str, MeasureInfo], str, str], Figure | None]
"""(heads, measures, subtitle, region) to a figure, or None where its measures were not run."""


MeasureFigure = Callable[[pd.DataFrame, MeasureInfo, str, str], Figure | None]
"""(heads, measure, subtitle, region) to a figure, or None where the measure was not run."""


FIGURES: dict[str, RunFigure] = {
    "overview": overview,
    "number_heads": number_heads,
    "entropy_against_numeric_mass": entropy_against_numeric_mass,
    "layer_curves": layer_curves,
    "distributions": distributions,
}
"""One figure a run; the key is its file's name."""


MEASURE_FIGURES: dict[str, MeasureFigure] = {"head_map": head_map}
"""One figure for each measure; its file is named `<key>_<measure>`."""
