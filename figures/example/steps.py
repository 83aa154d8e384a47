"""TODO_DOC figures/example/steps.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from figures.drawing import style
from figures.drawing.lines import line_inches
from figures.example import token_labels
from figures.example.read import Example
from figures.example.token_labels import boxed, cut, inches
from interp.tables.errors import InputError
from interp.tables.example import STEP_QUANTITIES

QUANTITY_TITLES = {"question_numbers": "on the question's numbers", "earlier_results": "on earlier steps' results"}


ABSENT = {"question_numbers": "no number there", "earlier_results": "none before"}
"""What stands for the bars of a step that has no value."""


HATCHES = ("", "//////", "......", "xxxxxx")


# --- steps --------------------------------------------------------------------------------------------------------------


@style.paper_style()
def step_bars(example: Example, heads: Sequence[tuple[int, int]]) -> Figure:
    """Where chosen heads look at each step of the response: a row of panels a model, a panel a quantity, a bar a head.

    A bar is the mean over the step's tokens of the attention that falls on the question's numbers, or on results of earlier steps. "none
    before" stands where no earlier step has a result. Steps are numbered from 1; under one with a wrong sum stands a cross and what was
    written, with the exact value where it is known.

    Args:
        example: as `figures.example.read.read_example` gives it.
        heads: (layer, head), at least one; whether they were watched does not matter.

    Raises:
        InputError: no head, or one that the table does not have.
    """
    heads = [(int(layer), int(head)) for layer, head in heads]
    known = set(zip(example.steps["layer"].astype(int), example.steps["head"].astype(int), strict=True))
    unknown = [head for head in heads if known and head not in known]
    if unknown or not heads:
        told = f"head {unknown[0][0]}.{unknown[0][1]} is not in the table of steps" if unknown else "no head to draw"
        raise InputError(f"{told}; it has {token_labels.heads_text(sorted(known))}")
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
