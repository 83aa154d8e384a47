"""Heads of two models matched by what they do: where in the models they stand, and how alike they are."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from figures.drawing import style
from figures.drawing.columns import require

COLUMNS = ("depth_one", "depth_other", "similarity", "margin")


@style.paper_style()
def match_depths(matches: pd.DataFrame, one: str, other: str, subtitle: str = "") -> Figure | None:
    """Depth of each matched head in one model against its partner's, coloured by similarity; one column wide.

    Args:
        matches: as `analyses.shifts.profiles.match_heads` gives it.
        one: name of the first model.
        other: name of the second.
        subtitle: what was run; the number of heads and what is drawn are added.

    Returns:
        The figure, or None where no head is matched.

    Raises:
        InputError: the table lacks a column.
    """
    require(matches, COLUMNS, "matches")
    if matches.empty:
        return None
    width = style.look().one
    note = style.joined(
        subtitle,
        f"{len(matches)} matched heads",
        f"filled: each is the other's most similar ({(matches['margin'] > 0).mean():.0%})",
        "depth: layer / last layer",
        "no test",
    )
    title = "Matched heads: depth and similarity (Pearson's r)"
    figure = style.new_figure(width, style.titles_inches(width, title, note) + 0.85 * width)
    style.set_titles(figure, title, note)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=style.look().grey, linewidth=0.6, zorder=0)
    best = (matches["margin"] > 0).to_numpy()
    for chosen, marker in ((~best, "x"), (best, "o")):
        rows = matches[chosen]
        drawn = axes.scatter(
            rows["depth_one"],
            rows["depth_other"],
            c=rows["similarity"],
            vmin=-1,
            vmax=1,
            cmap="viridis",
            s=9,
            marker=marker,
            linewidths=0.7,
        )
    bar = figure.colorbar(drawn, ax=axes, fraction=0.05)
    bar.set_label("similarity (Pearson's r)")
    axes.set_xlabel(style.wrapped(f"depth in {one}", width - 1, 1))
    axes.set_ylabel(style.wrapped(f"depth in {other}", width - 1, 1))
    axes.set_aspect("equal")
    style.open_axes(axes)
    return figure
