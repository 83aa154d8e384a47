"""The probability that a model gave each token of a number that it read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from figures.drawing.layout import axes_inches, equal_panels, open_axes, titles_inches
from figures.drawing.style import active_style, paper_style
from figures.drawing.text import joined, line_inches, tick_text
from figures.example.read import Example
from figures.example.token_labels import (
    Slot,
    chosen_labels,
    draw_borders,
    draw_labels,
    draw_role_legend,
    label_room,
    labels_left_out,
    left_out_note,
    role_legend_room,
    token_slots,
)
from figures.example.tokens import (
    MARKERS,
    ROLES_OF_NUMBERS,
    boxed,
    label_of,
    printed_inches,
    problem_text,
    role_color,
    roles_in,
    tokens_of,
    truncated,
)

_UNEXPECTED = 0.5
"""A token that was read with a smaller probability is labeled with the most likely token, where another one was more likely."""

_FLOOR = 1e-12
"""Smallest probability on a logarithmic axis; smaller ones are drawn there."""

Names = list[tuple[str, float, float]]
"""Text, left and bottom of names, as fractions of the axes."""


@paper_style()
def number_probabilities(example: Example) -> Figure:
    """Draw the probability of every token of a number that was read, given the tokens before it, in text order; one panel per model.

    Markers and colors are roles. A token that was read with a probability below 0.5, where another was more likely, is outlined and labeled
    with the most likely token and its probability, the least probable ones first; the subtitle states how many have no room. The axis is
    logarithmic, the same for all models, and probabilities below 1e-12 are drawn at 1e-12; where a probability is 0 the axis is linear.

    Args:
        example: as `figures.example.read.read_example` returns it.
    """
    style = active_style()
    width = style.column("two")
    tables = {model: _read_numbers(example, model) for model in example.models}
    floor = _axis_floor(np.concatenate([table["probability"].to_numpy(float) for table in tables.values()]))
    roles = roles_in(tables, ROLES_OF_NUMBERS)
    title = "Probability of each token of a number that was read"
    slots = {model: token_slots(table) for model, table in tables.items()}
    left, right = 0.5 * style.zoom, 0.1 * style.zoom
    across = width - left - right - 1e-6
    outlined = any(_unexpected_places(table) for table in tables.values())
    note = joined(
        problem_text(example),
        "each token of a number, in the order of the text",
        "logarithmic axis" if floor else "linear axis, because a probability is 0",
        f"outlined and labeled: the most likely token where the token read has less than {_UNEXPECTED:g}" if outlined else "",
        left_out_note(sum(labels_left_out(of_model, across) for of_model in slots.values())),
    )
    bottom = max(label_room(of_model, width - left - right) for of_model in slots.values()) + line_inches() + 0.06
    legend = role_legend_room(roles, width)
    above = 2 * line_inches() + 0.06
    # A note of names that are left out can take a line of room, and with it names; more than one further round is rarely needed.
    subtitle, titles, down, names = note, 0.0, 0.0, {}
    for _ in range(4):
        titles, down = titles_inches(width, title, subtitle), 1.35 * style.zoom
        if len(tables) == 1:
            down = style.height(down, titles + legend + above + bottom, 0.9)
        size = (across, down)
        names = {model: _place_names(table, _spots(table, floor, size), size) for model, table in tables.items()}
        without = sum(len(_unexpected_places(table)) - len(names[model]) for model, table in tables.items())
        before, subtitle = subtitle, joined(note, left_out_note(without, "name"))
        if subtitle == before:
            break
    figure, every = equal_panels(
        title,
        subtitle,
        len(tables),
        1,
        panel=(across, down / style.zoom),
        margins=(left / style.zoom, right / style.zoom, above / style.zoom, bottom / style.zoom),
        legend_room=legend / style.zoom,
        width=width,
    )
    draw_role_legend(figure, roles, titles + 0.02)
    for axes, (model, table) in zip(every, tables.items(), strict=True):
        _prepare_axes(axes, truncated(boxed(model), width - left - right), floor)
        if table.empty:
            axes.set_xticks([])
            axes.text(0.5, 0.5, "no number was read", transform=axes.transAxes, ha="center", va="center")
            continue
        _draw_points(axes, table, slots[model], floor, bottom)
        _draw_names(axes, table, floor, names[model])
    return figure


def _axis_floor(probabilities: np.ndarray) -> float:
    """Return the lower end of the axis; 0 for a linear axis."""
    least = float(probabilities.min()) if probabilities.size else 1.0
    return min(0.1, max(_FLOOR, 10.0 ** math.floor(math.log10(max(least, _FLOOR))))) if least > 0 else 0.0


def _prepare_axes(axes: Axes, name: str, floor: float) -> None:
    """Write the model's name, and set limits and ticks along y."""
    _, height = axes_inches(axes)
    axes.text(0, 1 + (line_inches() + 0.02) / height, name, transform=axes.transAxes, va="bottom")
    axes.set_ylabel("probability")
    if floor:
        axes.set_yscale("log")
        axes.set_ylim(floor, 1.0)
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: tick_text(value) if value >= 0.001 else f"{value:.0e}".replace("e-0", "e-"))
    else:
        axes.set_ylim(0, 1)
    open_axes(axes)


def _read_numbers(example: Example, model: str) -> pd.DataFrame:
    """Return the number tokens that were read: their columns, probability and rank, and the most likely token with its probability."""
    nexts = example.next[example.next["model"].astype(str) == model]
    read = nexts[nexts["is_read"].astype(bool)].set_index("position")
    most_likely = nexts[nexts["rank"] == 1].set_index("position")
    tokens = tokens_of(example, model)
    tokens = tokens[tokens.index.isin(read.index)]
    return tokens.assign(
        probability=read["probability"].reindex(tokens.index),
        rank=read["rank"].reindex(tokens.index),
        most_likely=most_likely["token"].reindex(tokens.index),
        most_likely_probability=most_likely["probability"].reindex(tokens.index),
    )


def _unexpected_places(table: pd.DataFrame) -> list[int]:
    """Return the rows of tokens read with a low probability where another was more likely, the least probable ones first."""
    low = (table["probability"] < _UNEXPECTED) & (table["rank"] > 1) & table["most_likely"].notna()
    return sorted(np.flatnonzero(low).tolist(), key=lambda place: (float(table["probability"].iloc[place]), place))


def _spots(table: pd.DataFrame, floor: float, size: tuple[float, float]) -> np.ndarray:
    """Return where points are, in inches from the corner of axes of that size, [token, 2]; linear where the floor is 0."""
    drawn = np.maximum(table["probability"].to_numpy(float), floor)
    up = np.log(drawn / floor) / -math.log(floor) if floor > 0 else drawn
    return np.column_stack([(np.arange(len(table)) + 0.5) / max(1, len(table)), up]) * size


def _two_digits(value: float) -> str:
    """Return a probability with two significant digits, so that all labels have the same precision."""
    return f"{value:#.2g}".replace("e-0", "e-")


def _draw_points(axes: Axes, table: pd.DataFrame, slots: Sequence[Slot], floor: float, bottom: float) -> None:
    """Draw the points of one model, borders between regions and steps, and labels below."""
    style = active_style()
    width, height = axes_inches(axes)
    count = len(table)
    drawn = np.maximum(table["probability"].to_numpy(float), floor)
    places = np.arange(count)
    axes.set_xlim(-0.5, count - 0.5)
    draw_borders(axes.axvline, slots)
    for role in ROLES_OF_NUMBERS:
        of_role = (table["role"] == role).to_numpy(bool)
        if of_role.any():
            axes.scatter(
                places[of_role], drawn[of_role], label=role, color=role_color(role), marker=MARKERS[role], s=(3.2 * style.zoom) ** 2,
                linewidths=0, clip_on=False, zorder=3,
            )  # fmt: skip
    axes.grid(axis="y", color=style.faint, linewidth=0.4)
    axes.set_axisbelow(True)
    draw_labels(axes, slots, chosen_labels(slots, width), "bottom")
    axes.text(0.5, -(bottom - 0.04) / height, "token", transform=axes.transAxes, ha="center", va="bottom", color=style.gray)


def _place_names(table: pd.DataFrame, spots: np.ndarray, size: tuple[float, float]) -> Names:
    """Return the most likely tokens next to unexpected points, where they cover neither a point nor another name."""
    style = active_style()
    width, height = size
    radius, line = 0.03 * style.zoom, line_inches()
    taken = [(x - radius, x + radius, y - radius, y + radius) for x, y in spots]
    names = []
    for place in _unexpected_places(table):
        row, (x, y) = table.iloc[place], spots[place]
        token = str(row["most_likely"])
        text = truncated(f"“{label_of(token, token)}” {_two_digits(float(row['most_likely_probability']))}", 1.1 * style.zoom)
        wide = printed_inches(text)
        for left, foot in (
            (x - wide / 2, y + radius),
            (x - wide / 2, y - radius - line),
            (x + radius + 0.02, y - line / 2),
            (x - radius - 0.02 - wide, y - line / 2),
            (x - radius, y + radius),
            (x + radius - wide, y + radius),
        ):
            box = (left - 0.02, left + wide + 0.02, foot, foot + line)
            inside = box[0] >= 0 and box[1] <= width + 0.02 and box[2] >= 0.01 and box[3] <= height + line
            others = (other for index, other in enumerate(taken) if index != place)
            if inside and not any(box[0] < other[1] and other[0] < box[1] and box[2] < other[3] and other[2] < box[3] for other in others):
                taken.append(box)
                names.append((text, left / width, (foot + 0.22 * line) / height))
                break
    return names


def _draw_names(axes: Axes, table: pd.DataFrame, floor: float, names: Names) -> None:
    """Outline every unexpected point, and write the names that have room."""
    style = active_style()
    drawn = np.maximum(table["probability"].to_numpy(float), floor)
    for place in _unexpected_places(table):
        axes.plot(
            [place], [drawn[place]], MARKERS[str(table["role"].iloc[place])], clip_on=False, zorder=4, gid="outlined",
            markerfacecolor="none", markeredgecolor=style.ink, markeredgewidth=0.6 * style.zoom, markersize=3.6 * style.zoom,
        )  # fmt: skip
    behind = {"facecolor": style.background, "edgecolor": "none", "pad": 0.2}
    for text, left, foot in names:
        axes.text(left, foot, text, transform=axes.transAxes, va="baseline", color=style.ink, bbox=behind, gid="most_likely", zorder=2)
