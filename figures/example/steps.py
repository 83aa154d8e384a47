"""Attention of chosen heads at each step of the response: on the question's numbers, and on results of earlier steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from figures.drawing.layout import axes_inches, few_ticks, open_axes, set_titles, titles_inches
from figures.drawing.style import active_style, new_figure, paper_style
from figures.drawing.text import joined, line_inches, wrapped
from figures.example.read import Example
from figures.example.token_labels import flow
from figures.example.tokens import boxed, heads_text, printed_inches, problem_text, truncated
from interp.tables.errors import InputError
from interp.tables.example import STEP_QUANTITIES

_QUANTITY_TITLES = {"question_numbers": "on the question's numbers", "earlier_results": "on earlier steps' results"}

_ABSENT = {"question_numbers": "no number there", "earlier_results": "none before"}
"""Text in place of the bars of a step that has no value."""

_HATCHES = ("", "//////", "......", "xxxxxx")

Step = dict[str, Any]
"""A step of the response as in run.json: its text and its sums."""


@paper_style()
def step_bars(example: Example, heads: Sequence[tuple[int, int]]) -> Figure:
    """Draw the attention of heads at each step of the response: a row of panels per model, a panel per quantity, a bar per head.

    A bar is the mean over the step's tokens of the attention on the question's numbers, or on results of earlier steps. "none before" is
    written where no earlier step has a result. Steps are numbered from 1; a step with a wrong sum has a cross and the sum as it was
    written, with the exact value where it is known.

    Args:
        example: as `figures.example.read.read_example` returns it.
        heads: (layer, head), at least one; they need not be watched.

    Raises:
        InputError: there is no head, or one that the table does not have.
    """
    heads = [(int(layer), int(head)) for layer, head in heads]
    _require_steps(example, heads)
    style = active_style()
    width = style.column("two")
    steps = {model: _steps_of(example, model) for model in example.models}
    values = _step_values(example, heads)
    bar = max(0.07 * style.zoom, 2 * line_inches() / (len(heads) + 1))
    pitch = max(bar * (len(heads) + 1), 2.15 * line_inches())
    names = [f"head {layer}.{head}" for layer, head in heads]
    places = flow([0.3 * style.zoom + printed_inches(name) for name in names], width - 0.1)
    legend = (places[-1][1] + 1) * line_inches() * 1.15 + 0.06
    title = "Attention of heads at each step (probability)"
    wrong = any(_wrong_sums(step) for of_model in steps.values() for step in of_model)
    subtitle = joined(
        problem_text(example),
        "mean over the tokens of a step",
        "bars: heads as layer.head",
        "✗: a wrong sum" if wrong else "",
    )
    beside = 2 if width >= 2 * (1.0 + 1.3) * style.zoom else 1
    labels = (width * 0.28 if beside == 2 else width * 0.45) - 0.1
    left, right, above, below = labels + 0.1, 0.12 * style.zoom, 2 * line_inches() + 0.08, 0.34 * style.zoom
    across = (width - left - beside * right - (beside - 1) * 0.1) / beside
    heights = {model: max(len(of_model), 1) * pitch for model, of_model in steps.items()}
    rows = len(STEP_QUANTITIES) // beside
    titles = titles_inches(width, title, subtitle)
    height = titles + legend + sum(rows * (above + inside + below) for inside in heights.values())
    figure = new_figure(width, height, constrained=False)
    set_titles(figure, title, subtitle)
    _draw_legend(figure, names, places, titles)
    finite = [value for value in values.values() if np.isfinite(value)]
    high = max([*finite, 0.0]) * 1.05 or 1.0
    top = titles + legend
    for model, of_model in steps.items():
        for place, quantity in enumerate(STEP_QUANTITIES):
            row, column = divmod(place, beside)
            x = left + column * (across + right + 0.1)
            y = height - top - row * (above + heights[model] + below) - above - heights[model]
            axes = figure.add_axes((x / width, y / height, across / width, heights[model] / height))
            axes.set_title(wrapped(f"{boxed(model)}: {_QUANTITY_TITLES[quantity]}", across + right, 2), loc="left")
            part = np.array([[values.get((model, quantity, head, step), np.nan) for step in range(len(of_model))] for head in heads], float)
            _draw_bars(axes, heads, part, _ABSENT[quantity])
            axes.set_xlim(0, high)
            few_ticks(axes, "x")
            axes.set_xlabel("probability")
            if column == 0:
                _draw_step_labels(axes, of_model, labels)
        top += rows * (above + heights[model] + below)
    return figure


def _require_steps(example: Example, heads: Sequence[tuple[int, int]]) -> None:
    known = set(zip(example.steps["layer"].astype(int), example.steps["head"].astype(int), strict=True))
    unknown = [head for head in heads if known and head not in known]
    if unknown or not heads:
        problem = f"head {unknown[0][0]}.{unknown[0][1]} is not in the table of steps" if unknown else "no head to draw"
        raise InputError(f"{problem}; it has {heads_text(sorted(known))}")


def _steps_of(example: Example, model: str) -> list[Step]:
    """Return the steps that the table has, with their texts and sums where run.json has them."""
    known = next(entry for entry in example.run["models"] if str(entry["name"]) == model).get("steps") or []
    count = int(example.steps.loc[example.steps["model"].astype(str) == model, "step"].to_numpy(int).max(initial=-1)) + 1
    return [dict(known[index]) if index < len(known) else {"text": "", "sums": []} for index in range(count)]


def _step_values(example: Example, heads: Sequence[tuple[int, int]]) -> dict[tuple[str, str, tuple[int, int], int], float]:
    columns = ("model", "quantity", "layer", "head", "step", "value")
    rows = zip(*(example.steps[name] for name in columns), strict=True)
    wanted = set(heads)
    return {
        (str(model), str(quantity), (int(layer), int(head)), int(step)): float(value)
        for model, quantity, layer, head, step, value in rows
        if (int(layer), int(head)) in wanted
    }


def _wrong_sums(step: Step) -> str:
    """Return the wrong sums of a step as a text, "" without one."""
    wrong = [one for one in step.get("sums") or [] if one.get("right") is False]
    texts = (f"{one['written']} = {one['result']}" + (f" (exact: {one['value']})" if one.get("value") else "") for one in wrong)
    return f"✗ {'; '.join(texts)}" if wrong else ""


def _bar_style(index: int) -> dict[str, Any]:
    style = active_style()
    color = style.series[index % len(style.series)]
    return {"facecolor": color, "edgecolor": style.background, "hatch": _HATCHES[index % len(_HATCHES)], "linewidth": 0.3 * style.zoom}


def _draw_legend(figure: Figure, names: Sequence[str], places: Sequence[tuple[float, int]], top: float) -> None:
    width, height = figure.get_size_inches()
    zoom = active_style().zoom
    for index, (name, (x, line)) in enumerate(zip(names, places, strict=True)):
        y = top + (line + 0.5) * line_inches() * 1.15
        box = ((0.05 + x) / width, 1 - (y + 0.035 * zoom) / height), 0.24 * zoom / width, 0.07 * zoom / height
        figure.add_artist(Rectangle(*box, transform=figure.transFigure, **_bar_style(index)))
        figure.text((0.05 + x + 0.28 * zoom) / width, 1 - y / height, name, va="center_baseline")


def _draw_bars(axes: Axes, heads: Sequence[tuple[int, int]], values: np.ndarray, absent: str) -> None:
    """Draw bars of `values` [head, step]; a step without a value has the text `absent`."""
    style = active_style()
    thick, steps = 0.84 / len(heads), values.shape[1]
    for index, (head, part) in enumerate(zip(heads, values, strict=True)):
        known = np.isfinite(part)
        y = np.arange(steps) - 0.42 + (index + 0.5) * thick
        axes.barh(y[known], part[known], height=thick, label=f"{head[0]}.{head[1]}", **_bar_style(index))
    for step in np.flatnonzero(~np.isfinite(values).any(axis=0)):
        axes.text(0.02, float(step), absent, transform=axes.get_yaxis_transform(), va="center_baseline", color=style.gray)
    if not steps:
        axes.text(0.5, 0.5, "no step", transform=axes.transAxes, ha="center", va="center")
    axes.set_ylim(max(steps, 1) - 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(axis="x", color=style.faint, linewidth=0.4)
    axes.set_axisbelow(True)
    open_axes(axes)


def _draw_step_labels(axes: Axes, steps: Sequence[Step], room: float) -> None:
    """Write the number and the first words of each step left of its bars, and wrong sums below."""
    style = active_style()
    width, height = axes_inches(axes)
    for index, step in enumerate(steps):
        text = " ".join(boxed(" ".join(str(step.get("text", "")).split())).split())
        wrong = truncated(boxed(_wrong_sums(step)), room)
        middle = 1 - (index + 0.5) / len(steps)
        off = line_inches() / 2 / height if wrong else 0.0
        place: dict[str, Any] = {"transform": axes.transAxes, "va": "center_baseline"}
        axes.text(-(room + 0.05) / width, middle + off, truncated(f"{index + 1}  {text}", room), **place)
        if wrong:
            axes.text(-(room + 0.05) / width, middle - off, wrong, color=style.vermillion, **place)
