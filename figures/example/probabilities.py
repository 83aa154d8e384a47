"""TODO_DOC figures/example/probabilities.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from figures.drawing import style
from figures.drawing.lines import line_inches
from figures.example import token_labels
from figures.example.read import Example
from figures.example.token_labels import MARKERS, NUMBER_ROLES, Slot, boxed, colour, cut, inches

LOW = 0.5
"""A number read with a smaller probability is named with the most likely token, where another one was likelier."""


FLOOR = 1e-12
"""Smallest probability on a logarithmic axis; smaller ones are drawn there."""


# --- numbers ------------------------------------------------------------------------------------------------------------


@style.paper_style()
def number_probabilities(example: Example) -> Figure:
    """Probability of every number token that was read, from the tokens before it, in the order of the text; a panel a model.

    Markers and colours are roles. A token that was read with a probability under 0.5, where another was likelier, is outlined and named
    with the likeliest and its probability, the least probable ones first; the subtitle says how many names find no room. The axis is
    logarithmic, for all models alike, and what is below 1e-12 is drawn at 1e-12; where a probability is 0 it is linear instead.

    Args:
        example: as `figures.example.read.read_example` gives it.
    """
    at = style.look()
    width = at.column("two")
    tables = {model: _read_numbers(example, model) for model in example.models}
    all_read = np.concatenate([table["probability"].to_numpy(float) for table in tables.values()])
    least = float(all_read.min()) if all_read.size else 1.0
    log = least > 0
    floor = min(0.1, max(FLOOR, 10.0 ** math.floor(math.log10(max(least, FLOOR))))) if log else 0.0
    roles = token_labels.roles_in(tables, NUMBER_ROLES)
    whose = "models" if len(tables) > 1 else "the model"
    title = f"How {whose} expected each number: probability of the token that was read"
    named = any(_low_places(table) for table in tables.values())
    slots = {model: token_labels.token_slots(table) for model, table in tables.items()}
    left, right = 0.5 * at.zoom, 0.1 * at.zoom
    across = width - left - right - 1e-6
    said = style.joined(
        token_labels.problem_text(example),
        "each token of a number, in the order of the text",
        "logarithmic axis" if log else "linear axis, as a probability is 0",
        f"outlined and named: what was likelier where the token read has less than {LOW:g}" if named else "",
        token_labels.left_out_note(sum(token_labels.left_out(of_model, across) for of_model in slots.values())),
    )
    bottom = max(token_labels.label_room(of_model, width - left - right) for of_model in slots.values()) + line_inches() + 0.06
    key = token_labels.role_key_room(roles, width)
    above = 2 * line_inches() + 0.06
    # A note of names that are left out may cost a line of room, and with it names; rarely another round is needed.
    subtitle, titles, down, names = said, 0.0, 0.0, {}
    for _ in range(4):
        titles, down = style.titles_inches(width, title, subtitle), 1.35 * at.zoom
        if len(tables) == 1:
            down = at.height(down, titles + key + above + bottom, 0.9)
        names = {model: _place_names(table, _spots(table, floor, (across, down)), (across, down)) for model, table in tables.items()}
        without = sum(len(_low_places(table)) - len(names[model]) for model, table in tables.items())
        before, subtitle = subtitle, style.joined(said, _names_left_out(without))
        if subtitle == before:
            break
    figure, every = style.panels(
        title,
        subtitle,
        len(tables),
        1,
        panel=(across, down / at.zoom),
        margins=(left / at.zoom, right / at.zoom, above / at.zoom, bottom / at.zoom),
        legend_room=key / at.zoom,
        width=width,
    )
    token_labels.draw_role_key(figure, roles, titles + 0.02)
    for axes, (model, table) in zip(every, tables.items(), strict=True):
        _, height = style.axes_inches(axes)
        axes.text(0, 1 + (line_inches() + 0.02) / height, cut(boxed(model), width - left - right), transform=axes.transAxes, va="bottom")
        axes.set_ylabel("probability")
        if log:
            axes.set_yscale("log")
            axes.set_ylim(floor, 1.0)
            axes.yaxis.set_major_locator(LogLocator(numticks=5))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(
                lambda value, _: style.tick_text(value) if value >= 0.001 else f"{value:.0e}".replace("e-0", "e-")
            )
        else:
            axes.set_ylim(0, 1)
        style.open_axes(axes)
        if table.empty:
            axes.set_xticks([])
            axes.text(0.5, 0.5, "no number was read", transform=axes.transAxes, ha="center", va="center")
            continue
        _points(axes, table, slots[model], floor, bottom)
        _draw_names(axes, table, floor, names[model])
    return figure


def _read_numbers(example: Example, model: str) -> pd.DataFrame:
    """The number tokens that were read: their columns, probability and rank, and the likeliest token with its probability."""
    nexts = example.next[example.next["model"].astype(str) == model]
    read = nexts[nexts["is_read"].astype(bool)].set_index("position")
    likeliest = nexts[nexts["rank"] == 1].set_index("position")
    tokens = token_labels.tokens_of(example, model)
    tokens = tokens[tokens.index.isin(read.index)]
    return tokens.assign(
        probability=read["probability"].reindex(tokens.index),
        rank=read["rank"].reindex(tokens.index),
        likeliest=likeliest["token"].reindex(tokens.index),
        likeliest_probability=likeliest["probability"].reindex(tokens.index),
    )


def _low_places(table: pd.DataFrame) -> list[int]:
    """Places of tokens read with a low probability where another was likelier, the least probable ones first."""
    low = (table["probability"] < LOW) & (table["rank"] > 1) & table["likeliest"].notna()
    return sorted(np.flatnonzero(low).tolist(), key=lambda place: (float(table["probability"].iloc[place]), place))


def _names_left_out(count: int) -> str:
    """Names that find no room as the subtitle says it; "" for none."""
    return f"{count} {'name' if count == 1 else 'names'} left out for room" if count else ""


def _spots(table: pd.DataFrame, floor: float, size: tuple[float, float]) -> np.ndarray:
    """Where points stand, inches from the corner of axes of that size, shape (tokens, 2); linear where the floor is 0, else logarithmic."""
    drawn = np.maximum(table["probability"].to_numpy(float), floor)
    up = np.log(drawn / floor) / -math.log(floor) if floor > 0 else drawn
    return np.column_stack([(np.arange(len(table)) + 0.5) / max(1, len(table)), up]) * size


def _two_digits(value: float) -> str:
    """A probability with two significant digits, so that labels are equally exact."""
    return f"{value:#.2g}".replace("e-0", "e-")


def _points(axes: Axes, table: pd.DataFrame, slots: Sequence[Slot], floor: float, bottom: float) -> None:
    """Points of one model, lines between regions and steps, and labels below."""
    at = style.look()
    width, height = style.axes_inches(axes)
    count = len(table)
    drawn = np.maximum(table["probability"].to_numpy(float), floor)
    places = np.arange(count)
    axes.set_xlim(-0.5, count - 0.5)
    token_labels.draw_borders(axes.axvline, slots)
    for role in NUMBER_ROLES:
        of_role = (table["role"] == role).to_numpy(bool)
        if of_role.any():
            look = {
                "color": colour(role),
                "marker": MARKERS[role],
                "s": (3.2 * at.zoom) ** 2,
                "linewidths": 0,
                "clip_on": False,
                "zorder": 3,
            }
            axes.scatter(places[of_role], drawn[of_role], label=role, **look)
    axes.grid(axis="y", color=at.faint, linewidth=0.4)
    axes.set_axisbelow(True)
    token_labels.draw_labels(axes, slots, token_labels.chosen_labels(slots, width), "bottom")
    axes.text(0.5, -(bottom - 0.04) / height, "token", transform=axes.transAxes, ha="center", va="bottom", color=at.grey)


def _place_names(table: pd.DataFrame, spots: np.ndarray, size: tuple[float, float]) -> list[tuple[str, float, float]]:
    """What was likelier beside low points, where neither a point nor a name is in the way: text, left and foot as shares of the axes."""
    at = style.look()
    width, height = size
    radius, line = 0.03 * at.zoom, line_inches()
    taken = [(x - radius, x + radius, y - radius, y + radius) for x, y in spots]
    names = []
    for place in _low_places(table):
        row, (x, y) = table.iloc[place], spots[place]
        text = f"“{token_labels.label_of(str(row['likeliest']), str(row['likeliest']))}” {_two_digits(float(row['likeliest_probability']))}"
        text = cut(text, 1.1 * at.zoom)
        wide = inches(text)
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
            others = (other for at_point, other in enumerate(taken) if at_point != place)
            if inside and not any(box[0] < other[1] and other[0] < box[1] and box[2] < other[3] and other[2] < box[3] for other in others):
                taken.append(box)
                names.append((text, left / width, (foot + 0.22 * line) / height))
                break
    return names


def _draw_names(axes: Axes, table: pd.DataFrame, floor: float, names: Sequence[tuple[str, float, float]]) -> None:
    """Outline every low point, and write the names that found room."""
    at = style.look()
    drawn = np.maximum(table["probability"].to_numpy(float), floor)
    outline = {"markerfacecolor": "none", "markeredgecolor": at.ink, "markeredgewidth": 0.6 * at.zoom, "markersize": 3.6 * at.zoom}
    for place in _low_places(table):
        marker = MARKERS[str(table["role"].iloc[place])]
        axes.plot([place], [drawn[place]], marker, clip_on=False, zorder=4, gid="outlined", **outline)
    behind = {"facecolor": at.background, "edgecolor": "none", "pad": 0.2}
    for text, left, foot in names:
        axes.text(left, foot, text, transform=axes.transAxes, va="baseline", color=at.ink, bbox=behind, gid="likeliest", zorder=2)
