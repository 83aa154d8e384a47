"""How heads move during the training of students."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.drawing.colors import color_scale, draw_map
from figures.drawing.columns import count_text, optional_column, require_columns
from figures.drawing.layout import axes_inches, count_ticks, equal_panels, few_ticks, open_axes, titles_inches
from figures.drawing.lines import LineStyle, line_panels, line_styles
from figures.drawing.panels import BAR_ROOM, bar_above
from figures.drawing.style import active_style, paper_style
from figures.drawing.text import heading, joined, line_inches, plural, tick_text, unit_label, wrapped
from interp.tables.schema import MeasureInfo

_COLUMNS = ("model", "condition", "step", "layer", "head", "measure", "region", "mean")

_CONDITION_ROW = 0.3
"""Height of a condition in the panel of accuracies, in inches: its name above its points."""


def _differences(trajectory: pd.DataFrame, info: MeasureInfo, region: str) -> tuple[pd.DataFrame, list[int]]:
    """Return each student's difference from its first recorded step, [(condition, model, step), (layer, head)], and those first steps."""
    require_columns(trajectory, _COLUMNS, "trajectory")
    rows = trajectory[(trajectory["measure"] == info.name) & (trajectory["region"] == region)]
    if rows.empty:
        return pd.DataFrame(), []
    rows = rows.assign(condition=rows["condition"].astype(str), model=rows["model"].astype(str))
    order = {name: index for index, name in enumerate(dict.fromkeys(rows["condition"]))}
    wide = rows.pivot_table(
        index=["condition", "model", "step"], columns=["layer", "head"], values="mean", observed=True, dropna=False, aggfunc="first"
    )
    wide = wide[wide.notna().any(axis=1)]
    if wide.empty:
        return wide, []
    wide = wide.sort_index(level="condition", key=lambda names: names.map(order), sort_remaining=False, kind="stable")
    first = wide.groupby(level=["condition", "model"], sort=False).transform(lambda values: values.iloc[0])
    starts = wide.index.to_frame(index=False).groupby(["condition", "model"], sort=False)["step"].min()
    return wide - first, sorted({int(step) for step in starts})


def _origin(starts: list[int]) -> str:
    return f"step {starts[0]}" if len(starts) == 1 else "a student's first recorded step"


def _draw_students(axes: Axes, by_student: pd.DataFrame, line: LineStyle, marker: str = "") -> None:
    """Draw a thin line per student, [step, student], and a thick one for their mean where there are several students."""
    several = by_student.shape[1] > 1
    width, alpha = (0.5, 0.6) if several else (1.3, 1.0)
    for _, values in by_student.items():
        known = values.dropna()
        axes.plot(
            known.index, known, color=line.color, linestyle=line.dash, linewidth=width, alpha=alpha, marker="" if several else marker,
            markersize=2,
        )  # fmt: skip
    if several:
        mean = by_student.dropna().mean(axis=1)  # only steps that every student has: otherwise the mean would be over changing students
        axes.plot(mean.index, mean, color=line.color, linestyle=line.dash, linewidth=1.3, marker=marker, markersize=2)


@paper_style()
def trajectory_curves(
    trajectory: pd.DataFrame,
    training: pd.DataFrame | None,
    models: pd.DataFrame | None,
    info: MeasureInfo,
    subtitle: str = "",
    region: str = "response",
) -> Figure | None:
    """Draw how far heads are from their first recorded step, the loss, and the final accuracy, two columns wide.

    The first panel has the mean over heads of |difference from the first recorded step|: thin lines are students, the thick one is the
    mean of a condition's students at the steps that all of them have. The panels of loss and accuracy are left out where nothing is known.

    Args:
        trajectory: model, condition, seed, step, layer, head, measure, region, mean (over examples).
        training: model, condition, step, loss (nats per token); or None.
        models: model, condition, accuracy, accuracy_low, accuracy_high, n_problems; or None.
        info: the measure.
        subtitle: what was run.
        region: where the queries are.

    Returns:
        The figure, or None where the trajectory has no row of the measure and region.

    Raises:
        InputError: a table lacks a column that is needed.
    """
    differences, starts = _differences(trajectory, info, region)
    if differences.empty:
        return None
    size = differences.abs().mean(axis=1)
    conditions = list(dict.fromkeys(differences.index.get_level_values("condition")))
    styles = line_styles(conditions)
    losses = _losses(training, conditions)
    graded = _graded(models, conditions)
    students = len(set(differences.index.get_level_values("model")))
    panels = ["shift", *(["loss"] if losses is not None else []), *(["accuracy"] if graded is not None else [])]
    title = heading(info, active_style().two - 1.6, 1, size=active_style().title) + ": shift of heads"
    note = joined(
        subtitle,
        f"{region} queries",
        f"n = {plural(students, 'student')}, {differences.shape[1]} heads",
        "thin: a student, thick: mean of a condition's students" if students > len(conditions) else "one line per student",
        "" if graded is None else f"whiskers: 95 % Wilson interval over n = {count_text(graded['n_problems'])} problems",
        "no interval over examples, no test",
    )
    down = max(1.6, _CONDITION_ROW * len(conditions) if graded is not None else 0.0)
    figure, every, _ = line_panels(
        title, note, styles, len(panels), len(panels), down=down, margins=(0.5, 0.1, 0.3, 0.38), beside=False
    )  # fmt: skip
    by_panel = dict(zip(panels, every, strict=True))
    _draw_by_step(by_panel["shift"], size, styles, f"mean |difference from {_origin(starts)}| ({unit_label(info)})")
    if losses is not None:
        _draw_by_step(by_panel["loss"], losses, styles, "training loss (nats per token)")
    if graded is not None:
        _draw_accuracy(by_panel["accuracy"], graded, styles)
    return figure


def _draw_by_step(axes: Axes, values: pd.Series, styles: Mapping[str, LineStyle], title: str) -> None:
    """Draw values by (condition, model, step), one line per student."""
    marker = "o" if len(values) < 200 else ""
    for name, line in styles.items():
        if name in values.index.get_level_values("condition"):
            _draw_students(axes, values.loc[name].unstack("model"), line, marker)
    across = axes_inches(axes)[0]
    axes.set_title(wrapped(title, across + 0.4, 2), loc="left", x=-0.35 / across)
    axes.set_xlabel("training step")
    axes.set_ylim(bottom=0)
    few_ticks(axes, "x")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    few_ticks(axes, "y")
    open_axes(axes)


def _losses(training: pd.DataFrame | None, conditions: list[str]) -> pd.Series | None:
    if training is None or training.empty:
        return None
    require_columns(training, ("model", "condition", "step", "loss"), "training")
    rows = training.assign(condition=training["condition"].astype(str), model=training["model"].astype(str))
    rows = rows[rows["loss"].notna() & rows["condition"].isin(conditions)]
    return rows.groupby(["condition", "model", "step"], sort=False)["loss"].last() if len(rows) else None


def _graded(models: pd.DataFrame | None, conditions: list[str]) -> pd.DataFrame | None:
    if models is None:
        return None
    require_columns(models, ("model", "condition"), "models")
    columns = {name: optional_column(models, name) for name in ("accuracy", "accuracy_low", "accuracy_high", "n_problems")}
    frame = models.assign(condition=models["condition"].astype(str), **columns)
    frame = frame[frame["accuracy"].notna() & frame["condition"].isin(conditions)]
    return frame if len(frame) else None


def _draw_accuracy(axes: Axes, graded: pd.DataFrame, styles: Mapping[str, LineStyle]) -> None:
    """Draw one row per condition: its name, and below it a point with its interval for each student."""
    across, down = axes_inches(axes)
    zoom = active_style().zoom
    columns = ["accuracy", "accuracy_low", "accuracy_high"]
    for row, (name, line) in enumerate(styles.items()):
        students = graded[graded["condition"] == name]
        x, y = 0.04 / across, 1 - (row * _CONDITION_ROW + 0.08) * zoom / down
        axes.text(x, y, wrapped(name, across - 0.1, 1), color=line.color, va="center_baseline", transform=axes.transAxes)
        for index, (value, low, high) in enumerate(students[columns].to_numpy(float)):
            y = (row * _CONDITION_ROW + 0.17 + 0.1 * (index + 0.5) / len(students)) * zoom
            axes.plot([low, high], [y, y], color=line.color, linewidth=0.7)
            axes.plot(value, y, "o", color=line.color, markersize=2.5)
    axes.set_xlim(0, min(1.0, max(0.05, float(np.nanmax(graded[columns].to_numpy(float))) * 1.05)))
    axes.set_ylim(down, 0)
    axes.set_yticks([])
    few_ticks(axes, "x")
    axes.set_title("final accuracy", loc="left")
    axes.set_xlabel("share of problems")
    open_axes(axes)


def _means_of_conditions(differences: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the mean over a condition's students at the steps that all of them have, [step, (layer, head)]."""
    means = {}
    for name, students in differences.groupby(level="condition", sort=False):
        n = students.index.get_level_values("model").nunique()
        by_step = students.groupby(level="step")
        means[str(name)] = by_step.mean()[by_step.size() == n]
    return means


@paper_style()
def trajectory_heads(
    trajectory: pd.DataFrame, info: MeasureInfo, subtitle: str = "", region: str = "response", count: int = 20
) -> Figure | None:
    """Draw the heads that moved most by training step, one panel per condition on one scale; two columns wide.

    Shown are the heads with the largest |difference from the first recorded step| at any step, of the mean over a condition's students at
    the steps that all of them have, sorted by that difference.

    Args:
        trajectory: as for `trajectory_curves`.
        info: the measure.
        subtitle: what was run; the limits of the color scale are added.
        region: where the queries are.
        count: largest number of heads to draw.

    Returns:
        The figure, or None where no head is defined.

    Raises:
        InputError: the table lacks a column.
    """
    differences, starts = _differences(trajectory, info, region)
    if differences.empty:
        return None
    means = _means_of_conditions(differences)
    largest = pd.concat([mean.abs().max() for mean in means.values()], axis=1).max(axis=1).dropna()
    if largest.empty:
        return None
    chosen = largest.sort_values(ascending=False, kind="stable").index[:count]
    students = len(set(differences.index.get_level_values("model")))
    arrays = {name: mean[chosen].to_numpy(float) for name, mean in means.items()}
    changes = MeasureInfo(info.name, f"difference from {_origin(starts)}", info.unit, None, None, info.formula)
    every_value = np.concatenate([values.ravel() for values in arrays.values()])
    scale = color_scale(changes, np.concatenate([every_value, -every_value]))  # both signs put 0 in the middle
    title = heading(info, active_style().two - 2.1, 1, size=active_style().title) + ": heads that moved most"
    note = joined(
        subtitle,
        f"{region} queries",
        f"the {len(chosen)} of {differences.shape[1]} heads with the largest difference at any step",
        f"n = {plural(students, 'student')}" + ("; mean over a condition's students" if students > len(arrays) else ""),
        "one column per recorded step",
        scale.note(),
        "hatched: undefined" if np.isnan(every_value).any() else "",
        "no test",
    )
    columns = min(3, len(arrays))
    margins = (0.45, 0.1, 0.2, 0.38)
    style = active_style()
    across = style.two / columns - (margins[0] + margins[1]) * style.zoom
    down = max(0.55, line_inches() / style.zoom * 1.1 * len(chosen))  # room for the label along y
    figure, every = equal_panels(title, note, len(arrays), columns, panel=(across, down), margins=margins, legend_room=BAR_ROOM)
    image = None
    for axes, (name, values) in zip(every, arrays.items(), strict=True):
        image = draw_map(axes, values, scale)
        steps = means[name].index
        ticks = count_ticks(across, len(steps), 0.4)
        axes.set_xticks(ticks, [tick_text(float(steps[tick])) for tick in ticks])
        axes.set_yticks(range(len(chosen)), [f"{layer}.{head}" for layer, head in chosen])
        axes.set_title(wrapped(name, across, 1), loc="left")
        axes.set_xlabel("training step")
        axes.set_ylabel("layer.head")
    assert image is not None
    bar_above(figure, image, scale, heading(changes, style.two / 2, 1), titles_inches(style.two, title, note))
    return figure
