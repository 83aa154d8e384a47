"""Every figure of a head run.

Add a figure by adding an entry to `RUN_FIGURES`, or from a package of your own by an entry point to a `FigureEntry`:

    [project.entry-points."primed_heads.run_figures"]
    sinks = "my_package:SINKS"
"""

from __future__ import annotations

from figures.drawing.entry import FigureEntry
from figures.run.distributions import distributions
from figures.run.head_maps import head_map, overview
from figures.run.layer_curves import layer_curves
from figures.run.number_heads import number_heads
from figures.run.scatter import entropy_against_numeric_mass

RUN_FIGURES: dict[str, FigureEntry] = {
    "overview": FigureEntry(
        lambda run: overview(run.heads, run.measures, run.subtitle, run.region),
        "All measures for all heads. {n}. Queries: {region}. Color limits are fixed except where a star marks limits that follow the data; "
        "hatched cells are undefined. Intervals are not drawn; the table of top heads lists them.",
    ),
    "number_heads": FigureEntry(
        lambda run: number_heads(run.heads, run.measures, run.subtitle, run.region),
        "The heads with the most attention on numbers. {n}. Queries: {region}. Whiskers are each head's own 95 % bootstrap interval over "
        "examples. They are not adjusted for the selection of the top heads.",
    ),
    "entropy_against_numeric_mass": FigureEntry(
        lambda run: entropy_against_numeric_mass(run.heads, run.measures, run.subtitle, run.region),
        "Entropy against attention on numbers, one point per head. {n}. Queries: {region}. Intervals are not drawn.",
    ),
    "layer_curves": FigureEntry(
        lambda run: layer_curves(run.heads, run.measures, run.subtitle, run.region),
        "All measures by layer: mean over heads, one line per region of queries. {n}. Dark band: the mean of the ends of the heads' 95 % "
        "intervals, an upper bound for the width of the mean's own interval. Light band: 5th to 95th percentile of heads ({region} "
        "queries), which is a spread, not an interval.",
    ),
    "distributions": FigureEntry(
        lambda run: distributions(run.heads, run.measures, run.subtitle, run.region),
        "Distribution of all measures over the heads of each layer. {n}. Queries: {region}. Dots are heads; boxes are quartiles and lines "
        "are medians. Intervals are not drawn.",
    ),
    "head_map": FigureEntry(
        lambda run, measure: head_map(run.heads, measure, run.subtitle, run.region),
        "{title}. {n}. Queries: {region}.",
        each=("measure",),
        section="measures",
    ),
}
"""File name to figure. A figure for each measure adds the measure's name to the file name; section "measures" is the page's last one."""
