"""Heads of two models that were matched by their behavior: their depths in the models, and their similarity."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from figures.drawing.columns import require_columns
from figures.drawing.layout import open_axes, set_titles, titles_inches
from figures.drawing.style import active_style, new_figure, paper_style
from figures.drawing.text import joined, wrapped

_COLUMNS = ("depth_one", "depth_other", "similarity", "margin")


@paper_style()
def match_depths(matches: pd.DataFrame, one: str, other: str, subtitle: str = "") -> Figure | None:
    """Draw the depth of each matched head in one model against its partner's, colored by similarity; one column wide.

    Args:
        matches: matched pairs with the columns depth_one, depth_other, similarity and margin.
        one: name of the first model.
        other: name of the second model.
        subtitle: what was run; the number of heads and the meaning of the markers are added.

    Returns:
        The figure, or None where no head is matched.

    Raises:
        InputError: the table lacks a column.
    """
    require_columns(matches, _COLUMNS, "matches")
    if matches.empty:
        return None
    style = active_style()
    width = style.one
    mutual = (matches["margin"] > 0).to_numpy()
    note = joined(
        subtitle,
        f"{len(matches)} matched heads",
        f"filled: each is the other's most similar ({mutual.mean():.0%})",
        "depth: layer / last layer",
        "no test",
    )
    title = "Matched heads: depth and similarity (Pearson's r)"
    figure = new_figure(width, titles_inches(width, title, note) + 0.85 * width)
    set_titles(figure, title, note)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=style.gray, linewidth=0.6, zorder=0)
    for chosen, marker in ((~mutual, "x"), (mutual, "o")):
        rows = matches[chosen]
        points = axes.scatter(
            rows["depth_one"],
            rows["depth_other"],
            c=rows["similarity"],
            vmin=-1,
            vmax=1,
            cmap=style.map_colors,
            s=9,
            marker=marker,
            linewidths=0.7,
        )
    bar = figure.colorbar(points, ax=axes, fraction=0.05)
    bar.set_label("similarity (Pearson's r)")
    axes.set_xlabel(wrapped(f"depth in {one}", width - 1, 1))
    axes.set_ylabel(wrapped(f"depth in {other}", width - 1, 1))
    axes.set_aspect("equal")
    open_axes(axes)
    return figure
