"""Accuracy of students, and whether it goes with how far their heads moved."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy import stats

from figures.drawing import lines as named_lines
from figures.drawing import style
from figures.drawing.colors import colour_scale, draw_colour_bar, draw_map
from figures.drawing.columns import counts, optional, require
from figures.drawing.grid import grid
from figures.drawing.lines import line_inches, widest
from interp.tables.schema import MeasureInfo
from interp.tables.shifts import FEWEST_STUDENTS

LEVEL = 0.05
"""Heads with a q up to this are drawn in full colour."""


RHO = MeasureInfo("spearman", "Spearman's ρ of a head's shift with accuracy", "1", -1.0, 1.0, "over students")


PERMUTATIONS = 10_000


ENDS = ["accuracy", "accuracy_low", "accuracy_high"]


def _graded(models: pd.DataFrame) -> pd.DataFrame:
    """The students with a known accuracy, conditions kept together in order of appearance; columns that may be missing are added."""
    require(models, ("model",), "models")
    frame = models.assign(
        model=models["model"].astype(str),
        condition=(models["condition"] if "condition" in models else models["model"]).astype(str),
        **{name: optional(models, name) for name in ("seed", "accuracy", "accuracy_low", "accuracy_high", "n_problems", "shift")},
    )
    frame = frame[np.isfinite(frame["accuracy"])]
    order = {name: at for at, name in enumerate(dict.fromkeys(frame["condition"]))}
    return frame.assign(place=frame["condition"].map(order)).sort_values(["place", "seed"], kind="stable").reset_index(drop=True)


def _drawn(graded: pd.DataFrame) -> str:
    """How many problems, and what the whiskers are."""
    n = f"n = {counts(graded['n_problems'])} problems each" if graded["n_problems"].notna().all() else "number of problems unknown"
    without = graded[["accuracy_low", "accuracy_high"]].isna().any(axis=1)
    return style.joined(
        n,
        "" if without.all() else "whiskers: 95 % Wilson interval over problems",
        "no whiskers: interval unknown" if without.any() else "",
    )


@style.paper_style()
def accuracy_bars(models: pd.DataFrame, subtitle: str = "") -> Figure | None:
    """Accuracy of every student with its interval, grouped by condition, a point a seed; one column wide.

    Args:
        models: model, condition, seed, accuracy, accuracy_low, accuracy_high, n_problems; all but the first may be missing. Accuracies
            are shares from 0 to 1.
        subtitle: what was run.

    Returns:
        The figure, or None where no accuracy is known.

    Raises:
        InputError: there is no column model.
    """
    graded = _graded(models)
    if graded.empty:
        return None
    conditions = list(dict.fromkeys(graded["condition"]))
    look = named_lines.looks(conditions)
    left_out = len(models) - len(graded)
    title = "Accuracy (share of problems solved)"
    note = style.joined(
        subtitle,
        f"{len(graded)} model{'s' * (len(graded) > 1)}, a point each",
        _drawn(graded),
        "no test",
        f"{left_out} without a known accuracy left out" if left_out else "",
    )
    at = style.look()
    width = at.column("one")
    names = {name: style.wrapped(name, min(1.1 * at.zoom, width / 3), 1) for name in conditions}
    left, right, bottom = 0.15 + widest(list(names.values())), 0.8 * at.zoom, 0.36 * at.zoom
    rows = graded["place"].to_numpy(float) * 0.5 + np.arange(len(graded))  # half a row between conditions
    down = (rows.max() + 1) * line_inches() + 0.04
    figure = style.new_figure(width, style.titles_inches(width, title, note) + 0.06 + down + bottom, constrained=False)
    style.set_titles(figure, title, note)
    height = figure.get_figheight()
    axes = figure.add_axes((left / width, bottom / height, (width - left - right) / width, down / height))
    ends = graded[ENDS].to_numpy(float)
    for row, condition, seed, (value, low, high) in zip(rows, graded["condition"], graded["seed"].to_numpy(float), ends, strict=True):
        colour = look[condition].colour
        if np.isfinite(low) and np.isfinite(high):
            axes.plot([low, high], [row, row], color=colour, linewidth=1.0, solid_capstyle="butt")
        axes.plot(value, row, "o", color=colour, markersize=3, clip_on=False)
        text = f"{value:.3f}" + (f" · seed {int(seed)}" if np.isfinite(seed) else "")
        axes.annotate(text, (1, row), (4, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points", va="center_baseline")
    centres = [float(rows[(graded["condition"] == name).to_numpy()].mean()) for name in conditions]
    axes.set_yticks(centres, [names[name] for name in conditions])
    axes.set_ylim(rows.max() + 0.6, -0.6)
    axes.set_xlim(0, min(1.0, max(0.05, float(np.nanmax(ends)) * 1.05)))
    _few_x_ticks(axes)
    axes.set_xlabel("accuracy (share of problems)")
    axes.grid(axis="x", color=at.faint, linewidth=0.4)
    style.open_axes(axes)
    return figure


def _few_x_ticks(axes: Axes) -> None:
    fitting = int(style.axes_inches(axes)[0] / (0.4 * style.look().zoom))
    axes.xaxis.set_major_locator(MaxNLocator(min(4, max(1, fitting)), steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: style.tick_text(value))


def rank_correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Spearman's rho of two columns, and its two-sided p by permutations.

    Args:
        x: one value a student.
        y: likewise.

    Returns:
        rho, NaN where one column is constant or there are fewer than two students; p over all orders of up to 7 students and 10,000 random
        ones of more, NaN with fewer than `interp.tables.shifts.FEWEST_STUDENTS` students.
    """
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan, np.nan
    ranks = stats.rankdata(x), stats.rankdata(y)

    def rho(one: np.ndarray) -> float:
        return float(np.corrcoef(one, ranks[1])[0, 1])

    if len(x) < FEWEST_STUDENTS:
        return rho(ranks[0]), np.nan
    test = stats.permutation_test(
        (ranks[0],), lambda one: abs(rho(one)), permutation_type="pairings", n_resamples=PERMUTATIONS, alternative="greater",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return rho(ranks[0]), float(test.pvalue)


@style.paper_style()
def accuracy_against_shift(
    models: pd.DataFrame, accuracy: pd.DataFrame | None, infos: Mapping[str, MeasureInfo], subtitle: str = "", region: str = "response"
) -> Figure | None:
    """Accuracy against how far a student's heads moved, a point a student; below, measures by heads that go with accuracy.

    Models whose shift is 0, such as the baseline, are drawn hollow and count neither in n nor in the correlation.

    Args:
        models: model, condition, accuracy, accuracy_low, accuracy_high, n_problems, shift (mean of |d_z| over heads and measures).
        accuracy: rows of `interp.tables.shifts.ACCURACY_SLOPES`; without a p value in the region there is no second panel. May be None.
        infos: name to description of the measures, in the order of drawing.
        subtitle: what was run.
        region: where the queries of the second panel stand.

    Returns:
        The figure, two columns wide, or None where no student has both an accuracy and a shift.

    Raises:
        InputError: a table lacks a column that is needed.
    """
    graded = _graded(models)
    graded = graded[np.isfinite(graded["shift"])].reset_index(drop=True)
    students = graded[graded["shift"] != 0]
    if students.empty:
        return None
    shares = _shares(accuracy, infos, region)
    look = named_lines.looks(list(graded["condition"]))
    rho, p = rank_correlation(students["shift"].to_numpy(float), students["accuracy"].to_numpy(float))
    n = len(students)
    said = f"Spearman's ρ = {rho:.2f}" if np.isfinite(rho) else "no correlation: one student, or all alike"
    if n < FEWEST_STUDENTS:
        tested = f"no p value below {FEWEST_STUDENTS} students"
    else:
        tested = f"p = {p:.2g} (permutations of students taken as independent, one test)" if np.isfinite(p) else ""
    title = "Accuracy against the heads' mean shift"
    note = style.joined(  # what was tested comes first: a subtitle that is too long is cut at its end
        f"n = {n} student{'s' * (n > 1)}", said, tested, _drawn(graded),
        "hollow: no shift, not counted" if len(graded) > n else "",
        f"below: q by Benjamini-Hochberg over all heads of a measure, {region} queries" if shares is not None else "",
        subtitle,
    )  # fmt: skip
    at = style.look()
    width, line = at.two, line_inches()
    names = [style.wrapped(name, 1.3 * at.zoom, 1) for name in graded["model"]]
    down = max(2.0 * at.zoom, line * len(names))
    below = 0.0 if shares is None else line * 1.15 * len(shares) + 0.5 * at.zoom
    left, bottom, room = 0.45 * at.zoom, 0.38 * at.zoom, named_lines.LEADER + 0.08 + widest(names)
    across = width - left - room - 0.05
    figure = style.new_figure(width, style.titles_inches(width, title, note) + 0.1 + down + bottom + below, constrained=False)
    style.set_titles(figure, title, note)
    height = figure.get_figheight()
    axes = figure.add_axes((left / width, (bottom + below) / height, across / width, down / height))
    ends = graded[ENDS].to_numpy(float)
    for condition, x, (value, low, high) in zip(graded["condition"], graded["shift"].to_numpy(float), ends, strict=True):
        colour = look[condition].colour
        if np.isfinite(low) and np.isfinite(high):
            axes.plot([x, x], [low, high], color=colour, linewidth=0.8, alpha=0.6)
        axes.plot(x, value, "o", markersize=3.5, color=colour, markerfacecolor=colour if x else "none", clip_on=False)
    axes.set_ylim(0, min(1.0, max(0.05, float(np.nanmax(ends)) * 1.05)))
    axes.set_xlim(0, float(graded["shift"].max()) * 1.06)
    _few_x_ticks(axes)
    style.few_y_ticks(axes)
    axes.set_xlabel("shift: mean |d_z| over heads and measures (standard deviations)")
    axes.set_ylabel("accuracy (share of problems)")
    style.open_axes(axes)
    _name_points(axes, graded, names, look)
    if shares is not None:
        _draw_shares(figure, shares, infos)
    return figure


def _name_points(axes: Axes, graded: pd.DataFrame, names: list[str], look: Mapping[str, named_lines.LineStyle]) -> None:
    """Names in a column right of the axes, by height, with a thin line from each point."""
    width, height = style.axes_inches(axes)
    high, most = axes.get_ylim()[1], axes.get_xlim()[1]
    up = graded["accuracy"].to_numpy(float) / high * height
    line = line_inches()
    places = named_lines.spread(up, line, line / 2, height - line / 2)
    for name, x, y, place, condition in zip(names, graded["shift"], up, places, graded["condition"], strict=True):
        colour = look[condition].colour
        across = [x / most + 0.04 / width, 1 + 0.02 / width, 1 + (named_lines.LEADER - 0.02) / width]
        axes.plot(
            across, [y / height, place / height, place / height], color=colour, linewidth=0.4, alpha=0.6, transform=axes.transAxes,
            clip_on=False,
        )  # fmt: skip
        axes.text(1 + named_lines.LEADER / width, place / height, name, color=colour, va="center_baseline", transform=axes.transAxes)


def _shares(accuracy: pd.DataFrame | None, infos: Mapping[str, MeasureInfo], region: str) -> pd.DataFrame | None:
    """By measure, heads with a q up to the level and heads with a q; None where there is no p value."""
    if accuracy is None:
        return None
    require(accuracy, ("measure", "region", "q"), "accuracy")
    tested = accuracy[(accuracy["region"] == region) & accuracy["q"].notna()]
    tested = tested.assign(measure=tested["measure"].astype(str), clear=tested["q"] <= LEVEL)
    counted = tested.groupby("measure")["clear"].agg(["sum", "size"])
    counted = counted.reindex([name for name in infos if name in counted.index])
    return None if counted.empty else counted


def _draw_shares(figure: Figure, shares: pd.DataFrame, infos: Mapping[str, MeasureInfo]) -> None:
    """A bar a measure, over the whole width, at the figure's foot."""
    at = style.look()
    width, height = figure.get_size_inches()
    titles = [style.wrapped(infos[str(name)].title, width * 0.45, 1) for name in shares.index]
    left, right, bottom = widest(titles) + 0.18, 0.7 * at.zoom + 0.1, 0.36 * at.zoom
    down = line_inches() * 1.15 * len(shares)
    axes = figure.add_axes((left / width, bottom / height, (width - left - right) / width, down / height))
    rows = np.arange(len(shares))
    axes.barh(rows, shares["sum"] / shares["size"], height=0.7, color=at.blue, linewidth=0)
    for row, (clear, every) in zip(rows, shares.itertuples(index=False), strict=True):
        axes.annotate(
            f"{clear} of {every}", (1, float(row)), (2, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
            va="center_baseline",
        )  # fmt: skip
    axes.set_yticks(rows, titles)
    axes.set_ylim(len(shares) - 0.4, -0.6)
    axes.set_xlim(0, max(0.05, float((shares["sum"] / shares["size"]).max()) * 1.05))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: style.tick_text(value))
    axes.set_xlabel(f"heads whose shift goes with accuracy, q ≤ {LEVEL} (share)")
    style.open_axes(axes)


@style.paper_style()
def accuracy_heads(accuracy: pd.DataFrame, info: MeasureInfo, subtitle: str = "", region: str = "response") -> Figure | None:
    """Spearman's rho of each head's shift with accuracy over students, one column wide; dimmed where q > 0.05.

    With fewer students than a p value needs, no map is drawn, since rho of so few is large by chance: the figure says so.

    Args:
        accuracy: rows of `interp.tables.shifts.ACCURACY_SLOPES`.
        info: the measure whose shift is meant.
        subtitle: what was run; n, test and correction are added.
        region: where the queries stand.

    Returns:
        The figure, or None where the table has no row of the measure and region.

    Raises:
        InputError: the table lacks a column.
    """
    require(accuracy, ("layer", "head", "measure", "region", "spearman", "p", "q", "n_students"), "accuracy")
    rows = accuracy[(accuracy["measure"] == info.name) & (accuracy["region"] == region)]
    if rows.empty:
        return None
    at = style.look()
    width = at.column("one")
    title = f"{RHO.title} ({style.unit_label(RHO)})"
    n = counts(rows["n_students"])
    about = style.joined(style.printable(info.title), f"{region} queries", f"n = {n} students")
    if not rows["p"].notna().any():
        few = int(rows["n_students"].max()) < FEWEST_STUDENTS
        reason = f"a p value needs at least {FEWEST_STUDENTS} students" if few else "no head's shift differs between students"
        subtitle = style.joined(about, subtitle)
        room = 0.4 * at.zoom
        figure = style.new_figure(width, style.titles_inches(width, title, subtitle) + room, constrained=False)
        style.set_titles(figure, title, subtitle)
        said = style.wrapped(f"No test is made, and no map drawn: {reason}.", width - 0.1, 2)
        figure.text(0.05 / width, 0.8 * room / figure.get_figheight(), said, va="top")
        return figure
    rho, q = grid(accuracy, info.name, region, "spearman"), grid(accuracy, info.name, region, "q")
    clear = q <= LEVEL
    tested = "permutation test over students taken as independent"
    found = f"Benjamini-Hochberg over {int(np.isfinite(q).sum())} heads: {int(clear.sum())} with q ≤ {LEVEL}"
    subtitle = style.joined(about, f"{tested}, {found}", subtitle)  # a subtitle that is too long is cut at its end
    scale = colour_scale(RHO, rho)
    room = style.titles_inches(width, title, subtitle) + 0.55 * at.zoom
    height = at.height(float(np.clip((width - 0.75 * at.zoom) * rho.shape[1] / rho.shape[0], 1.15, 2.4)), room)
    figure = style.new_figure(width, height + room)
    axes = figure.add_subplot()
    style.set_titles(figure, title, subtitle)
    unsure = np.where(np.isfinite(rho), 1.0, np.nan).T
    image = draw_map(axes, rho, scale)
    axes.imshow(np.ma.masked_invalid(unsure), cmap=ListedColormap([at.quiet[0]]), aspect="auto", interpolation="nearest", zorder=1)
    image.set_alpha(np.where(clear, 1.0, 0.3).T)
    image.set_zorder(2)
    axes.set_xlabel("layer")
    axes.set_ylabel("head")
    bar = figure.colorbar(ScalarMappable(scale.norm, scale.colours), ax=axes, extend=scale.extend, aspect=28, pad=0.02)
    draw_colour_bar(bar, scale)
    bar.set_label("Spearman's ρ")
    marks = [Patch(facecolor=at.quiet[0], linewidth=0)]
    texts = [f"dimmed: q > {LEVEL}"]
    if np.isnan(rho).any():
        marks.append(Patch(facecolor=at.undefined_face, edgecolor=at.undefined_hatch, hatch="//////", linewidth=0))
        texts.append("undefined")
    figure.legend(marks, texts, loc="outside lower left", ncols=2)
    return figure
