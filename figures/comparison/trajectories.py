"""When heads moved while their students learnt."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.drawing import lines as named_lines
from figures.drawing import style
from figures.drawing.colors import colour_scale, draw_map
from figures.drawing.columns import counts, optional, require
from figures.drawing.lines import line_inches
from figures.drawing.panels import BAR_ROOM, bar_above
from interp.tables.schema import MeasureInfo

COLUMNS = ("model", "condition", "step", "layer", "head", "measure", "region", "mean")


ROW = 0.3
"""Height of a condition in the panel of accuracies, inches: its name above its points."""


def _moved(trajectory: pd.DataFrame, info: MeasureInfo, region: str) -> tuple[pd.DataFrame, list[int]]:
    """Each student's difference from its first recorded step, [(condition, model, step), (layer, head)], and those first steps."""
    require(trajectory, COLUMNS, "trajectory")
    rows = trajectory[(trajectory["measure"] == info.name) & (trajectory["region"] == region)]
    if rows.empty:
        return pd.DataFrame(), []
    rows = rows.assign(condition=rows["condition"].astype(str), model=rows["model"].astype(str))
    order = {name: at for at, name in enumerate(dict.fromkeys(rows["condition"]))}
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


def _common(by_student: pd.DataFrame) -> pd.DataFrame:
    """Steps that every student has: a mean over others would change who is in it."""
    return by_student.dropna()


def _draw_students(axes: Axes, by_student: pd.DataFrame, one: named_lines.LineStyle, marker: str = "") -> None:
    """A thin line a student, [step, student], and a thick one for their mean where there are several."""
    many = by_student.shape[1] > 1
    for _, values in by_student.items():
        known = values.dropna()
        width, alpha = (0.5, 0.6) if many else (1.3, 1.0)
        axes.plot(
            known.index,
            known,
            color=one.colour,
            linestyle=one.dash,
            linewidth=width,
            alpha=alpha,
            marker="" if many else marker,
            markersize=2,
        )
    if many:
        mean = _common(by_student).mean(axis=1)
        axes.plot(mean.index, mean, color=one.colour, linestyle=one.dash, linewidth=1.3, marker=marker, markersize=2)


@style.paper_style()
def trajectory_curves(
    trajectory: pd.DataFrame,
    training: pd.DataFrame | None,
    models: pd.DataFrame | None,
    info: MeasureInfo,
    subtitle: str = "",
    region: str = "response",
) -> Figure | None:
    """How far heads are from where they began, the loss, and the accuracy at the end; by training step, two columns wide.

    The first panel has the mean over heads of |difference from the first recorded step|: thin lines are students, the thick one is the
    mean of a condition's students at the steps that all of them have. The panels of loss and accuracy are left out where nothing is known.

    Args:
        trajectory: model, condition, seed, step, layer, head, measure, region, mean (over examples).
        training: model, condition, step, loss (nats a token); or None.
        models: model, condition, accuracy, accuracy_low, accuracy_high, n_problems; or None.
        info: the measure.
        subtitle: what was run.
        region: where the queries stand.

    Returns:
        The figure, or None where the trajectory has no row of the measure and region.

    Raises:
        InputError: a table lacks a column that is needed.
    """
    moved, starts = _moved(trajectory, info, region)
    if moved.empty:
        return None
    size = moved.abs().mean(axis=1)
    conditions = list(dict.fromkeys(moved.index.get_level_values("condition")))
    look = named_lines.looks(conditions)
    losses = _losses(training, conditions)
    graded = _graded(models, conditions)
    students = len(set(moved.index.get_level_values("model")))
    kinds = ["moved", *(["loss"] if losses is not None else []), *(["accuracy"] if graded is not None else [])]
    title = style.heading(info, style.look().two - 1.6, 1, size=style.look().title) + ": how far heads moved"
    note = style.joined(
        subtitle,
        f"{region} queries",
        f"n = {students} student{'s' * (students > 1)}, {moved.shape[1]} heads",
        "thin: a student, thick: mean of a condition's students" if students > len(conditions) else "a line a student",
        "" if graded is None else f"whiskers: 95 % Wilson interval over n = {counts(graded['n_problems'])} problems",
        "no interval over examples, no test",
    )
    down = max(1.6, ROW * len(conditions) if graded is not None else 0.0)
    figure, every, _ = named_lines.line_panels(
        title, note, look, len(kinds), len(kinds), down=down, margins=(0.5, 0.1, 0.3, 0.38), beside=False
    )
    for axes, kind in zip(every, kinds, strict=True):
        if kind == "accuracy":
            assert graded is not None
            _draw_accuracy(axes, graded, look)
            continue
        for name, one in look.items():
            if kind == "moved":
                _draw_students(axes, size.loc[name].unstack("model"), one, "o" if len(size) < 200 else "")
            elif losses is not None and name in losses.index.get_level_values("condition"):
                _draw_students(axes, losses.loc[name].unstack("model"), one, "o" if len(losses) < 200 else "")
        wanted = (
            f"mean |difference from {_origin(starts)}| ({style.unit_label(info)})" if kind == "moved" else "training loss (nats a token)"
        )
        across = style.axes_inches(axes)[0]
        axes.set_title(style.wrapped(wanted, across + 0.4, 2), loc="left", x=-0.35 / across)
        axes.set_xlabel("training step")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(lambda value, _: style.tick_text(value))
        style.few_y_ticks(axes)
        style.open_axes(axes)
    return figure


def _losses(training: pd.DataFrame | None, conditions: list[str]) -> pd.Series | None:
    if training is None or training.empty:
        return None
    require(training, ("model", "condition", "step", "loss"), "training")
    rows = training.assign(condition=training["condition"].astype(str), model=training["model"].astype(str))
    rows = rows[rows["loss"].notna() & rows["condition"].isin(conditions)]
    return rows.groupby(["condition", "model", "step"], sort=False)["loss"].last() if len(rows) else None


def _graded(models: pd.DataFrame | None, conditions: list[str]) -> pd.DataFrame | None:
    if models is None:
        return None
    require(models, ("model", "condition"), "models")
    columns = {name: optional(models, name) for name in ("accuracy", "accuracy_low", "accuracy_high", "n_problems")}
    frame = models.assign(condition=models["condition"].astype(str), **columns)
    frame = frame[frame["accuracy"].notna() & frame["condition"].isin(conditions)]
    return frame if len(frame) else None


def _draw_accuracy(axes: Axes, graded: pd.DataFrame, look: dict[str, named_lines.LineStyle]) -> None:
    """A row a condition: its name, and below it a point with its interval for each student."""
    across, down = style.axes_inches(axes)
    zoom = style.look().zoom
    for row, (name, one) in enumerate(look.items()):
        students = graded[graded["condition"] == name]
        x, y = 0.04 / across, 1 - (row * ROW + 0.08) * zoom / down
        axes.text(x, y, style.wrapped(name, across - 0.1, 1), color=one.colour, va="center_baseline", transform=axes.transAxes)
        for at, (value, low, high) in enumerate(students[["accuracy", "accuracy_low", "accuracy_high"]].to_numpy(float)):
            y = (row * ROW + 0.17 + 0.1 * (at + 0.5) / len(students)) * zoom
            axes.plot([low, high], [y, y], color=one.colour, linewidth=0.7)
            axes.plot(value, y, "o", color=one.colour, markersize=2.5)
    ends = graded[["accuracy", "accuracy_low", "accuracy_high"]].to_numpy(float)
    axes.set_xlim(0, min(1.0, max(0.05, float(np.nanmax(ends)) * 1.05)))
    axes.set_ylim(down, 0)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: style.tick_text(value))
    axes.set_title("accuracy at the end", loc="left")
    axes.set_xlabel("share of problems")
    style.open_axes(axes)


@style.paper_style()
def trajectory_heads(
    trajectory: pd.DataFrame, info: MeasureInfo, subtitle: str = "", region: str = "response", count: int = 20
) -> Figure | None:
    """Heads that moved most by training step, a panel a condition on one scale; two columns wide.

    Shown are the heads with the largest |difference from the first recorded step| at any step, of the mean over a condition's students at
    the steps that all of them have; the order is that of the size.

    Args:
        trajectory: as for `trajectory_curves`.
        info: the measure.
        subtitle: what was run; the scale's limits are added.
        region: where the queries stand.
        count: heads to draw, at most.

    Returns:
        The figure, or None where no head is defined.

    Raises:
        InputError: the table lacks a column.
    """
    moved, starts = _moved(trajectory, info, region)
    if moved.empty:
        return None
    means = {}
    for name, students in moved.groupby(level="condition", sort=False):
        n = students.index.get_level_values("model").nunique()
        by_step = students.groupby(level="step")
        means[name] = by_step.mean()[by_step.size() == n]
    largest = pd.concat([mean.abs().max() for mean in means.values()], axis=1).max(axis=1).dropna()
    if largest.empty:
        return None
    chosen = largest.sort_values(ascending=False, kind="stable").index[:count]
    students = len(set(moved.index.get_level_values("model")))
    arrays = {name: mean[chosen].to_numpy(float) for name, mean in means.items()}
    changes = MeasureInfo(info.name, f"difference from {_origin(starts)}", info.unit, None, None, info.formula)
    every_value = np.concatenate([values.ravel() for values in arrays.values()])
    scale = colour_scale(changes, np.concatenate([every_value, -every_value]))  # both signs: 0 in the middle
    undefined = bool(np.isnan(every_value).any())
    title = style.heading(info, style.look().two - 2.1, 1, size=style.look().title) + ": heads that moved most"
    note = style.joined(
        subtitle,
        f"{region} queries",
        f"the {len(chosen)} of {moved.shape[1]} heads with the largest difference at any step",
        f"n = {students} student{'s' * (students > 1)}" + ("; mean over a condition's" if students > len(arrays) else ""),
        "a column a recorded step",
        scale.note(),
        "hatched: undefined" if undefined else "",
        "no test",
    )
    columns = min(3, len(arrays))
    margins = (0.45, 0.1, 0.2, 0.38)
    at = style.look()
    across = at.two / columns - (margins[0] + margins[1]) * at.zoom
    down = max(0.55, line_inches() / at.zoom * 1.1 * len(chosen))  # room for the label along y
    figure, every = style.panels(title, note, len(arrays), columns, panel=(across, down), margins=margins, legend_room=BAR_ROOM)
    image = None
    for axes, (name, values) in zip(every, arrays.items(), strict=True):
        image = draw_map(axes, values, scale)
        steps = means[name].index
        ticks = style.count_ticks(across, len(steps), 0.4)
        axes.set_xticks(ticks, [style.tick_text(float(steps[tick])) for tick in ticks])
        axes.set_yticks(range(len(chosen)), [f"{layer}.{head}" for layer, head in chosen])
        axes.set_title(style.wrapped(str(name), across, 1), loc="left")
        axes.set_xlabel("training step")
        axes.set_ylabel("layer.head")
    assert image is not None
    bar_above(figure, image, scale, style.heading(changes, at.two / 2, 1), style.titles_inches(at.two, title, note))
    return figure
