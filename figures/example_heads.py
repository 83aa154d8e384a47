"""One problem under the lens: how its heads stand against the run, where they look step by step, what the model expected of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from figures import style, token_labels
from figures.example_folder import Example
from figures.head_maps import Scale, colour_scale, draw_map
from figures.map_panels import bar_above
from figures.named_lines import line_inches
from figures.token_labels import MARKERS, NUMBER_ROLES, Slot, boxed, colour, cut, inches
from interp.example import STEP_QUANTITIES
from interp.table import MeasureInfo

LEVEL = 0.05
"""Heads whose q is at most this are marked."""
SHOWN = 0.99
"""Share of heads within the limits of t's colours."""
LOW = 0.5
"""A number read with a smaller probability is named with the most likely token, where another one was likelier."""
BAR_ROOM = 0.33
"""Room of the colour bar over the maps, inches of a paper: `bar_above` with its ticks, and no more."""
FLOOR = 1e-12
"""Smallest probability on a logarithmic axis; smaller ones are drawn there."""
QUANTITY_TITLES = {"question_numbers": "on the question's numbers", "earlier_results": "on earlier steps' results"}
ABSENT = {"question_numbers": "no number there", "earlier_results": "none before"}
"""What stands for the bars of a step that has no value."""
HATCHES = ("", "//////", "......", "xxxxxx")


class ExampleHeadsError(ValueError):
    """What is asked for is not in the folder; the message names what is."""


@style.paper_style()
def standing_map(example: Example, measure: str | None = None, region: str | None = None) -> Figure:
    """Every head's t on this problem against the run, a map a model; or its value where nothing was compared.

    t = (value - mean) / (sd sqrt(1 + 1 / n)) over the run's other n problems: red is more than usual, blue less, and a dot marks q <= 0.05
    (Benjamini-Hochberg over all heads of a model); the subtitle says where no head has one. The scale is symmetric about 0 and the same for
    all models; it ends where 99 % of the heads' |t| do, and the others have the end's colour. A model that was not compared, beside others
    that were, is hatched.

    Args:
        example: as `figures.example_folder.read_example` gives it.
        measure: name; None: that by which heads were chosen.
        region: where the queries stand; None: likewise.

    Raises:
        ExampleHeadsError: the measure or region has no row.
    """
    measure, region = measure or str(example.run["by"]), region or str(example.run["region"])
    standing = example.standing
    rows = standing[(standing["measure"] == measure) & (standing["region"] == region)]
    if rows.empty or measure not in example.measures:
        raise ExampleHeadsError(f"no row of {measure!r} at {region!r} queries; measures: {', '.join(example.measures)}")
    layers = [int(layer) for layer in example.run["layers"]]
    info = example.measures[measure]
    compared = bool(np.isfinite(rows["t"].to_numpy(float)).any())
    column = "t" if compared else "value"
    maps = {model: _heads(example, rows, model, layers, column) for model in example.models}
    marks = {model: _heads(example, rows, model, layers, "q") for model in example.models}
    values = np.stack(list(maps.values()))
    if compared:
        # One head in a hundred may be far out; it must not pale all others.
        most = float(np.nanquantile(np.abs(values), SHOWN, method="higher")) or 1.0
        scale = round_ticks(colour_scale(MeasureInfo("t", "t", "t", -most, most, ""), values))
        label, title = "t", f"{info.title}: this problem against the run (t)"
    else:
        scale = colour_scale(info, values)
        label, title = style.unit_label(info), f"{info.title} on this problem ({style.unit_label(info)})"
    problems = sorted({int(n) for n in rows["n_examples"] if n > 0})
    against = f"against {' or '.join(map(str, problems))} other problems" if compared else "compared with no run"
    subtitle = style.joined(
        token_labels.problem_text(example),
        against,
        f"{region} queries",
        _told_dots(marks) if compared else "",
        f"colours end at {SHOWN:.0%} of the heads' |t|" if compared and scale.extend != "neither" else "",
        "" if compared else scale.note(),
        "hatched: undefined" if np.isnan(values).any() else "",
    )
    at = style.look()
    one = len(maps) == 1
    width = at.column("one" if one else "two")
    columns = 1 if width < at.two else min(len(maps), 3)
    across = width / columns - (0.32 + 0.14) * at.zoom - 1e-6
    unlike = {model: compared and not np.isfinite(maps[model]).any() for model in maps}
    names = {model: style.wrapped(boxed(model) + " · not compared" * unlike[model], across, 2) for model in maps}
    lines = max(name.count("\n") + 1 for name in names.values())
    margins = (0.32, 0.14, lines * line_inches() / at.zoom + 0.06, 0.34)
    down = float(np.clip(across * int(example.run["n_heads"]) / len(layers), 0.8 * at.zoom, 2.2 * at.zoom))
    titles = style.titles_inches(width, title, subtitle)
    if columns >= len(maps):
        down = at.height(down, titles + (margins[2] + margins[3] + BAR_ROOM) * at.zoom, 0.8)
    figure, every = style.panels(
        title,
        subtitle,
        len(maps),
        columns,
        panel=(across, down / at.zoom),
        margins=margins,
        legend_room=BAR_ROOM,
        width=width,
    )
    image = None
    for axes, model in zip(every, maps, strict=True):
        image = draw_map(axes, maps[model], scale)
        axes.set_xticks(ticks := [int(tick) for tick in axes.get_xticks()], [str(layers[tick]) for tick in ticks])
        axes.set_xlabel("layer")
        axes.set_ylabel("head")
        axes.set_title(names[model], loc="left")
        layer, head = np.nonzero(marks[model] <= LEVEL)
        size = 72 * min(style.axes_inches(axes)[0] / len(layers), style.axes_inches(axes)[1] / int(example.run["n_heads"]))
        dot = float(np.clip(0.3 * size, 0.6, 3.0))
        axes.plot(layer, head, "o", color="black", markersize=dot, markeredgewidth=dot / 4, markeredgecolor="white", gid="significant")
    assert image is not None
    bar_above(figure, image, scale, label, titles)
    return figure


def _told_dots(q: dict[str, np.ndarray]) -> str:
    """What a dot is, or that there is none."""
    if any((values <= LEVEL).any() for values in q.values()):
        return f"dot: q ≤ {LEVEL:g} over all heads"
    return f"no head has q ≤ {LEVEL:g}"


def round_ticks(scale: Scale) -> Scale:
    """The scale with round numbers on its bar, within its limits."""
    low, high = float(scale.norm.vmin or 0.0), float(scale.norm.vmax or 0.0)
    ticks = tuple(float(tick) for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high)
    return replace(scale, ticks=ticks, tick_labels=tuple(map(style.tick_text, ticks)))


def _heads(example: Example, rows: pd.DataFrame, model: str, layers: Sequence[int], column: str) -> np.ndarray:
    """A column of the standing table, [layer, head]: layers are those that were measured, in their order."""
    of_model = rows[rows["model"].astype(str) == model]
    values = np.full((len(layers), int(example.run["n_heads"])), np.nan)
    row = np.array([layers.index(int(layer)) for layer in of_model["layer"]], int)
    values[row, of_model["head"].to_numpy(int)] = of_model[column].to_numpy(float)
    return values


# --- steps --------------------------------------------------------------------------------------------------------------


@style.paper_style()
def step_bars(example: Example, heads: Sequence[tuple[int, int]]) -> Figure:
    """Where chosen heads look at each step of the response: a row of panels a model, a panel a quantity, a bar a head.

    A bar is the mean over the step's tokens of the attention that falls on the question's numbers, or on results of earlier steps. "none
    before" stands where no earlier step has a result. Steps are numbered from 1; under one with a wrong sum stands a cross and what was
    written, with the exact value where it is known.

    Args:
        example: as `figures.example_folder.read_example` gives it.
        heads: (layer, head), at least one; whether they were watched does not matter.

    Raises:
        ExampleHeadsError: no head, or one that the table does not have.
    """
    heads = [(int(layer), int(head)) for layer, head in heads]
    known = set(zip(example.steps["layer"].astype(int), example.steps["head"].astype(int), strict=True))
    unknown = [head for head in heads if known and head not in known]
    if unknown or not heads:
        told = f"head {unknown[0][0]}.{unknown[0][1]} is not in the table of steps" if unknown else "no head to draw"
        raise ExampleHeadsError(f"{told}; it has {token_labels.heads_text(sorted(known))}")
    at = style.look()
    width = at.column("two")
    steps = {model: _steps_of(example, model) for model in example.models}
    values = _step_values(example, heads)
    bar = max(0.07 * at.zoom, 2 * line_inches() / (len(heads) + 1))
    pitch = max(bar * (len(heads) + 1), 2.15 * line_inches())
    names = [f"head {layer}.{head}" for layer, head in heads]
    widths = [0.3 * at.zoom + inches(name) for name in names]
    places = token_labels.flow(widths, width - 0.1)
    key = (places[-1][1] + 1) * line_inches() * 1.15 + 0.06
    title = "Where heads look at each step: attention (probability)"
    wrong = any(_wrong(step) for of_model in steps.values() for step in of_model)
    subtitle = style.joined(
        token_labels.problem_text(example),
        "mean over the tokens of a step",
        "bars: heads as layer.head",
        "✗: a sum that is wrong" if wrong else "",
    )
    beside = 2 if width >= 2 * (1.0 + 1.3) * at.zoom else 1
    labels = (width * 0.28 if beside == 2 else width * 0.45) - 0.1
    left, right, above, below = labels + 0.1, 0.12 * at.zoom, 2 * line_inches() + 0.08, 0.34 * at.zoom
    across = (width - left - beside * right - (beside - 1) * 0.1) / beside
    heights = {model: max(len(of_model), 1) * pitch for model, of_model in steps.items()}
    rounds = len(STEP_QUANTITIES) // beside
    titles = style.titles_inches(width, title, subtitle)
    height = titles + key + sum(rounds * (above + inside + below) for inside in heights.values())
    figure = style.new_figure(width, height, constrained=False)
    style.set_titles(figure, title, subtitle)
    _head_key(figure, names, places, titles)
    finite = [value for value in values.values() if np.isfinite(value)]
    high = max([*finite, 0.0]) * 1.05 or 1.0
    top = titles + key
    for model, of_model in steps.items():
        for place, quantity in enumerate(STEP_QUANTITIES):
            row, column = divmod(place, beside)
            x = left + column * (across + right + 0.1)
            y = height - top - row * (above + heights[model] + below) - above - heights[model]
            axes = figure.add_axes((x / width, y / height, across / width, heights[model] / height))
            said = f"{boxed(model)}: {QUANTITY_TITLES[quantity]}"
            axes.set_title(style.wrapped(said, across + right, 2), loc="left")
            part = np.array([[values.get((model, quantity, head, step), np.nan) for step in range(len(of_model))] for head in heads], float)
            _bars(axes, heads, part, ABSENT[quantity])
            axes.set_xlim(0, high)
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(lambda value, _: style.tick_text(value))
            axes.set_xlabel("probability")
            if column == 0:
                _step_labels(axes, of_model, labels)
        top += rounds * (above + heights[model] + below)
    return figure


def _steps_of(example: Example, model: str) -> list[dict[str, Any]]:
    """The steps that the table has, with their texts and sums where run.json has them."""
    told = next(entry for entry in example.run["models"] if str(entry["name"]) == model).get("steps") or []
    count = int(example.steps.loc[example.steps["model"].astype(str) == model, "step"].to_numpy(int).max(initial=-1)) + 1
    return [dict(told[at]) if at < len(told) else {"text": "", "sums": []} for at in range(count)]


def _step_values(example: Example, heads: Sequence[tuple[int, int]]) -> dict[tuple[str, str, tuple[int, int], int], float]:
    columns = ("model", "quantity", "layer", "head", "step", "value")
    rows = zip(*(example.steps[name] for name in columns), strict=True)
    wanted = set(heads)
    return {
        (str(model), str(quantity), (int(layer), int(head)), int(step)): float(value)
        for model, quantity, layer, head, step, value in rows
        if (int(layer), int(head)) in wanted
    }


def _wrong(step: dict[str, Any]) -> str:
    """The wrong sums of a step as a text, "" without one."""
    wrong = [one for one in step.get("sums") or [] if one.get("right") is False]
    told = (f"{one['written']} = {one['result']}" + (f" (exact: {one['value']})" if one.get("value") else "") for one in wrong)
    return f"✗ {'; '.join(told)}" if wrong else ""


def _head_look(at: int) -> dict[str, Any]:
    look = style.look()
    shade = look.series[at % len(look.series)]
    return {"facecolor": shade, "edgecolor": look.background, "hatch": HATCHES[at % len(HATCHES)], "linewidth": 0.3 * look.zoom}


def _head_key(figure: Figure, names: Sequence[str], places: Sequence[tuple[float, int]], top: float) -> None:
    width, height = figure.get_size_inches()
    zoom = style.look().zoom
    for at, (name, (x, line)) in enumerate(zip(names, places, strict=True)):
        y = top + (line + 0.5) * line_inches() * 1.15
        box = ((0.05 + x) / width, 1 - (y + 0.035 * zoom) / height), 0.24 * zoom / width, 0.07 * zoom / height
        figure.add_artist(Rectangle(*box, transform=figure.transFigure, **_head_look(at)))
        figure.text((0.05 + x + 0.28 * zoom) / width, 1 - y / height, name, va="center_baseline")


def _bars(axes: Axes, heads: Sequence[tuple[int, int]], values: np.ndarray, absent: str) -> None:
    """Bars of `values` [head, step]."""
    at = style.look()
    thick, steps = 0.84 / len(heads), values.shape[1]
    for place, (head, part) in enumerate(zip(heads, values, strict=True)):
        known = np.isfinite(part)
        y = np.arange(steps) - 0.42 + (place + 0.5) * thick
        axes.barh(y[known], part[known], height=thick, label=f"{head[0]}.{head[1]}", **_head_look(place))
    for step in np.flatnonzero(~np.isfinite(values).any(axis=0)):
        axes.text(0.02, float(step), absent, transform=axes.get_yaxis_transform(), va="center_baseline", color=at.grey)
    if not steps:
        axes.text(0.5, 0.5, "no step", transform=axes.transAxes, ha="center", va="center")
    axes.set_ylim(max(steps, 1) - 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(axis="x", color=at.faint, linewidth=0.4)
    axes.set_axisbelow(True)
    style.open_axes(axes)


def _step_labels(axes: Axes, steps: Sequence[dict[str, Any]], room: float) -> None:
    """Number and begin of each step left of its bars, wrong sums under it."""
    at = style.look()
    width, _ = style.axes_inches(axes)
    for place, step in enumerate(steps):
        first = cut(f"{place + 1}  {' '.join(boxed(' '.join(str(step.get('text', '')).split())).split())}", room)
        wrong = cut(boxed(_wrong(step)), room) if _wrong(step) else ""
        middle = 1 - (place + 0.5) / len(steps)
        off = line_inches() / 2 / style.axes_inches(axes)[1] if wrong else 0.0
        axes.text(-(room + 0.05) / width, middle + off, first, transform=axes.transAxes, va="center_baseline")
        if wrong:
            axes.text(-(room + 0.05) / width, middle - off, wrong, transform=axes.transAxes, va="center_baseline", color=at.vermillion)


# --- numbers ------------------------------------------------------------------------------------------------------------


@style.paper_style()
def number_probabilities(example: Example) -> Figure:
    """Probability of every number token that was read, from the tokens before it, in the order of the text; a panel a model.

    Markers and colours are roles. A token that was read with a probability under 0.5, where another was likelier, is outlined and named
    with the likeliest and its probability, the least probable ones first; the subtitle says how many names find no room. The axis is
    logarithmic, for all models alike, and what is below 1e-12 is drawn at 1e-12; where a probability is 0 it is linear instead.

    Args:
        example: as `figures.example_folder.read_example` gives it.
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
