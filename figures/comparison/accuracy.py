"""Accuracy of students, and whether it is correlated with the shift of their heads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import stats

from figures.drawing.colors import color_scale, draw_color_bar, draw_map, undefined_patch
from figures.drawing.columns import condition_names, count_text, optional_column, require_columns
from figures.drawing.grid import grid
from figures.drawing.layout import axes_inches, few_ticks, map_height, open_axes, set_titles, titles_inches
from figures.drawing.lines import NAME_OFFSET, LineStyle, line_styles, spread, widest
from figures.drawing.significance import FALSE_DISCOVERY_RATE
from figures.drawing.style import active_style, new_figure, paper_style
from figures.drawing.text import joined, line_inches, plural, printable, wrapped
from interp.tables.schema import MeasureInfo
from interp.tables.shifts import FEWEST_STUDENTS

_RHO = MeasureInfo("spearman", "Spearman's ρ of a head's shift and accuracy", "1", -1.0, 1.0, "over students")

_PERMUTATIONS = 10_000

_ENDS = ["accuracy", "accuracy_low", "accuracy_high"]


def _graded(models: pd.DataFrame) -> pd.DataFrame:
    """Return the students with a known accuracy, grouped by condition in order of appearance; optional columns are added."""
    require_columns(models, ("model",), "models")
    optional = ("seed", "accuracy", "accuracy_low", "accuracy_high", "n_problems", "shift")
    frame = models.assign(
        model=models["model"].astype(str),
        condition=condition_names(models),
        **{name: optional_column(models, name) for name in optional},
    )
    frame = frame[np.isfinite(frame["accuracy"])]
    order = {name: index for index, name in enumerate(dict.fromkeys(frame["condition"]))}
    return frame.assign(place=frame["condition"].map(order)).sort_values(["place", "seed"], kind="stable").reset_index(drop=True)


def _about_intervals(graded: pd.DataFrame) -> str:
    """Return the number of problems, and what the whiskers are."""
    known = graded["n_problems"].notna().all()
    without = graded[["accuracy_low", "accuracy_high"]].isna().any(axis=1)
    return joined(
        f"n = {count_text(graded['n_problems'])} problems each" if known else "number of problems unknown",
        "" if without.all() else "whiskers: 95 % Wilson interval over problems",
        "no whiskers: interval unknown" if without.any() else "",
    )


@paper_style()
def accuracy_bars(models: pd.DataFrame, subtitle: str = "") -> Figure | None:
    """Draw the accuracy of every student with its interval, grouped by condition, one point per seed; one column wide.

    Args:
        models: model, condition, seed, accuracy, accuracy_low, accuracy_high, n_problems; all but the first are optional. Accuracies
            are shares from 0 to 1.
        subtitle: what was run.

    Returns:
        The figure, or None where no accuracy is known.

    Raises:
        InputError: there is no column `model`.
    """
    graded = _graded(models)
    if graded.empty:
        return None
    conditions = list(dict.fromkeys(graded["condition"]))
    left_out = len(models) - len(graded)
    title = "Accuracy (share of problems solved)"
    note = joined(
        subtitle,
        f"{plural(len(graded), 'model')}, one point each",
        _about_intervals(graded),
        "no test",
        f"{left_out} without a known accuracy left out" if left_out else "",
    )
    style = active_style()
    width = style.column("one")
    names = {name: wrapped(name, min(1.1 * style.zoom, width / 3), 1) for name in conditions}
    left, right, bottom = 0.15 + widest(list(names.values())), 0.8 * style.zoom, 0.36 * style.zoom
    rows = graded["place"].to_numpy(float) * 0.5 + np.arange(len(graded))  # half a row between conditions
    down = (rows.max() + 1) * line_inches() + 0.04
    figure = new_figure(width, titles_inches(width, title, note) + 0.06 + down + bottom, constrained=False)
    set_titles(figure, title, note)
    height = figure.get_figheight()
    axes = figure.add_axes((left / width, bottom / height, (width - left - right) / width, down / height))
    _draw_students(axes, graded, rows, line_styles(conditions))
    centers = [float(rows[(graded["condition"] == name).to_numpy()].mean()) for name in conditions]
    axes.set_yticks(centers, [names[name] for name in conditions])
    axes.set_ylim(rows.max() + 0.6, -0.6)
    axes.set_xlim(0, _accuracy_limit(graded))
    _fitting_x_ticks(axes)
    axes.set_xlabel("accuracy (share of problems)")
    axes.grid(axis="x", color=style.faint, linewidth=0.4)
    open_axes(axes)
    return figure


def _draw_students(axes: Axes, graded: pd.DataFrame, rows: np.ndarray, styles: Mapping[str, LineStyle]) -> None:
    """Draw one row per student: interval, point, and its number on the right."""
    ends = graded[_ENDS].to_numpy(float)
    for row, condition, seed, (value, low, high) in zip(rows, graded["condition"], graded["seed"].to_numpy(float), ends, strict=True):
        color = styles[condition].color
        if np.isfinite(low) and np.isfinite(high):
            axes.plot([low, high], [row, row], color=color, linewidth=1.0, solid_capstyle="butt")
        axes.plot(value, row, "o", color=color, markersize=3, clip_on=False)
        text = f"{value:.3f}" + (f" · seed {int(seed)}" if np.isfinite(seed) else "")
        axes.annotate(text, (1, row), (4, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points", va="center_baseline")


def _accuracy_limit(graded: pd.DataFrame) -> float:
    """Return the end of an axis of accuracies."""
    return min(1.0, max(0.05, float(np.nanmax(graded[_ENDS].to_numpy(float))) * 1.05))


def _fitting_x_ticks(axes: Axes) -> None:
    few_ticks(axes, "x", min(4, max(1, int(axes_inches(axes)[0] / (0.4 * active_style().zoom)))))


def rank_correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return Spearman's rho of two columns, and its two-sided p by permutations.

    Args:
        x: one value per student.
        y: one value per student.

    Returns:
        rho, NaN where one column is constant or there are fewer than two students; p over all orders for up to 7 students and over 10,000
        random ones for more, NaN with fewer than `interp.tables.shifts.FEWEST_STUDENTS` students.
    """
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan, np.nan
    ranks = stats.rankdata(x), stats.rankdata(y)

    def rho(one: np.ndarray) -> float:
        return float(np.corrcoef(one, ranks[1])[0, 1])

    if len(x) < FEWEST_STUDENTS:
        return rho(ranks[0]), np.nan
    test = stats.permutation_test(
        (ranks[0],), lambda one: abs(rho(one)), permutation_type="pairings", n_resamples=_PERMUTATIONS, alternative="greater",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return rho(ranks[0]), float(test.pvalue)


def _about_correlation(students: pd.DataFrame) -> str:
    """Return n, rho and p of shift and accuracy over students."""
    rho, p = rank_correlation(students["shift"].to_numpy(float), students["accuracy"].to_numpy(float))
    n = len(students)
    tested = f"p = {p:.2g} (permutations of students taken as independent, one test)" if np.isfinite(p) else ""
    return joined(
        f"n = {plural(n, 'student')}",
        f"Spearman's ρ = {rho:.2f}" if np.isfinite(rho) else "no correlation: one student, or all values equal",
        f"no p value below {FEWEST_STUDENTS} students" if n < FEWEST_STUDENTS else tested,
    )


@paper_style()
def accuracy_against_shift(
    models: pd.DataFrame, accuracy: pd.DataFrame | None, infos: Mapping[str, MeasureInfo], subtitle: str = "", region: str = "response"
) -> Figure | None:
    """Draw accuracy against the mean shift of a student's heads, one point per student; below, heads whose shift is correlated with it.

    Models whose shift is 0, such as the baseline, are drawn hollow and are not part of n and the correlation.

    Args:
        models: model, condition, accuracy, accuracy_low, accuracy_high, n_problems, shift (mean of |d_z| over heads and measures).
        accuracy: rows of `interp.tables.shifts.ACCURACY_SLOPES`; without a p value in the region there is no second panel. May be None.
        infos: name to description of the measures, in the order of drawing.
        subtitle: what was run.
        region: where the queries of the second panel are.

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
    shares = _significant_shares(accuracy, infos, region)
    title = "Accuracy (share of problems) against the mean shift of heads (standard deviations)"
    note = joined(  # the test comes first, because a subtitle that is too long is truncated at its end
        _about_correlation(students),
        _about_intervals(graded),
        "hollow: no shift, not counted" if len(graded) > len(students) else "",
        f"below: q by Benjamini-Hochberg over all heads of a measure, {region} queries" if shares is not None else "",
        subtitle,
    )
    style = active_style()
    width, line = style.two, line_inches()
    names = [wrapped(name, 1.3 * style.zoom, 1) for name in graded["model"]]
    down = max(2.0 * style.zoom, line * len(names))
    below = 0.0 if shares is None else line * 1.15 * len(shares) + 0.5 * style.zoom
    left, bottom, room = 0.45 * style.zoom, 0.38 * style.zoom, NAME_OFFSET + 0.08 + widest(names)
    across = width - left - room - 0.05
    figure = new_figure(width, titles_inches(width, title, note) + 0.1 + down + bottom + below, constrained=False)
    set_titles(figure, title, note)
    height = figure.get_figheight()
    axes = figure.add_axes((left / width, (bottom + below) / height, across / width, down / height))
    _draw_points(axes, graded, names, line_styles(list(graded["condition"])))
    if shares is not None:
        _draw_shares(figure, shares, infos)
    return figure


def _draw_points(axes: Axes, graded: pd.DataFrame, names: list[str], styles: Mapping[str, LineStyle]) -> None:
    """Draw accuracy against shift with intervals, and the models' names on the right."""
    ends = graded[_ENDS].to_numpy(float)
    for condition, x, (value, low, high) in zip(graded["condition"], graded["shift"].to_numpy(float), ends, strict=True):
        color = styles[condition].color
        if np.isfinite(low) and np.isfinite(high):
            axes.plot([x, x], [low, high], color=color, linewidth=0.8, alpha=0.6)
        axes.plot(x, value, "o", markersize=3.5, color=color, markerfacecolor=color if x else "none", clip_on=False)
    axes.set_ylim(0, _accuracy_limit(graded))
    axes.set_xlim(0, float(graded["shift"].max()) * 1.06)
    _fitting_x_ticks(axes)
    few_ticks(axes, "y")
    axes.set_xlabel("shift: mean |d_z| over heads and measures (standard deviations)")
    axes.set_ylabel("accuracy (share of problems)")
    open_axes(axes)
    _name_points(axes, graded, names, styles)


def _name_points(axes: Axes, graded: pd.DataFrame, names: list[str], styles: Mapping[str, LineStyle]) -> None:
    """Write names in a column right of the axes, in order of accuracy, with a thin line from each point."""
    width, height = axes_inches(axes)
    high, most = axes.get_ylim()[1], axes.get_xlim()[1]
    up = graded["accuracy"].to_numpy(float) / high * height
    line = line_inches()
    places = spread(up, line, line / 2, height - line / 2)
    for name, x, y, place, condition in zip(names, graded["shift"], up, places, graded["condition"], strict=True):
        color = styles[condition].color
        across = [x / most + 0.04 / width, 1 + 0.02 / width, 1 + (NAME_OFFSET - 0.02) / width]
        axes.plot(
            across, [y / height, place / height, place / height], color=color, linewidth=0.4, alpha=0.6, transform=axes.transAxes,
            clip_on=False,
        )  # fmt: skip
        axes.text(1 + NAME_OFFSET / width, place / height, name, color=color, va="center_baseline", transform=axes.transAxes)


def _significant_shares(accuracy: pd.DataFrame | None, infos: Mapping[str, MeasureInfo], region: str) -> pd.DataFrame | None:
    """Return, by measure, the number of significant heads and of heads with a q; None where there is no p value."""
    if accuracy is None:
        return None
    require_columns(accuracy, ("measure", "region", "q"), "accuracy")
    tested = accuracy[(accuracy["region"] == region) & accuracy["q"].notna()]
    tested = tested.assign(measure=tested["measure"].astype(str), significant=tested["q"] <= FALSE_DISCOVERY_RATE)
    counted = tested.groupby("measure")["significant"].agg(["sum", "size"])
    counted = counted.reindex([name for name in infos if name in counted.index])
    return None if counted.empty else counted


def _draw_shares(figure: Figure, shares: pd.DataFrame, infos: Mapping[str, MeasureInfo]) -> None:
    """Draw one bar per measure over the full width at the bottom of the figure."""
    style = active_style()
    width, height = figure.get_size_inches()
    titles = [wrapped(infos[str(name)].title, width * 0.45, 1) for name in shares.index]
    left, right, bottom = widest(titles) + 0.18, 0.7 * style.zoom + 0.1, 0.36 * style.zoom
    down = line_inches() * 1.15 * len(shares)
    axes = figure.add_axes((left / width, bottom / height, (width - left - right) / width, down / height))
    rows = np.arange(len(shares))
    axes.barh(rows, shares["sum"] / shares["size"], height=0.7, color=style.blue, linewidth=0)
    for row, (significant, total) in zip(rows, shares.itertuples(index=False), strict=True):
        axes.annotate(
            f"{significant} of {total}", (1, float(row)), (2, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
            va="center_baseline",
        )  # fmt: skip
    axes.set_yticks(rows, titles)
    axes.set_ylim(len(shares) - 0.4, -0.6)
    axes.set_xlim(0, max(0.05, float((shares["sum"] / shares["size"]).max()) * 1.05))
    few_ticks(axes, "x")
    axes.set_xlabel(f"heads whose shift is correlated with accuracy, q ≤ {FALSE_DISCOVERY_RATE} (share)")
    open_axes(axes)


@paper_style()
def accuracy_heads(accuracy: pd.DataFrame, info: MeasureInfo, subtitle: str = "", region: str = "response") -> Figure | None:
    """Draw Spearman's rho of each head's shift and accuracy over students, one column wide; heads with q > 0.05 are dimmed.

    With fewer students than a p value needs no map is drawn, because rho of so few is large by chance; the figure states the reason.

    Args:
        accuracy: rows of `interp.tables.shifts.ACCURACY_SLOPES`.
        info: the measure of the shift.
        subtitle: what was run; n, test and correction are added.
        region: where the queries are.

    Returns:
        The figure, or None where the table has no row of the measure and region.

    Raises:
        InputError: the table lacks a column.
    """
    require_columns(accuracy, ("layer", "head", "measure", "region", "spearman", "p", "q", "n_students"), "accuracy")
    rows = accuracy[(accuracy["measure"] == info.name) & (accuracy["region"] == region)]
    if rows.empty:
        return None
    about = joined(printable(info.title), f"{region} queries", f"n = {count_text(rows['n_students'])} students")
    if not rows["p"].notna().any():
        few = int(rows["n_students"].max()) < FEWEST_STUDENTS
        reason = f"a p value needs at least {FEWEST_STUDENTS} students" if few else "no head's shift differs between students"
        return _figure_without_map(joined(about, subtitle), f"No test was made, and no map is drawn: {reason}.")
    return _correlation_map(grid(accuracy, info.name, region, "spearman"), grid(accuracy, info.name, region, "q"), about, subtitle)


_RHO_TITLE = f"{_RHO.title} (ratio)"


def _figure_without_map(subtitle: str, reason: str) -> Figure:
    width = active_style().column("one")
    room = 0.4 * active_style().zoom
    figure = new_figure(width, titles_inches(width, _RHO_TITLE, subtitle) + room, constrained=False)
    set_titles(figure, _RHO_TITLE, subtitle)
    figure.text(0.05 / width, 0.8 * room / figure.get_figheight(), wrapped(reason, width - 0.1, 2), va="top")
    return figure


def _correlation_map(rho: np.ndarray, q: np.ndarray, about: str, subtitle: str) -> Figure:
    style = active_style()
    width = style.column("one")
    significant = q <= FALSE_DISCOVERY_RATE
    found = f"Benjamini-Hochberg over {int(np.isfinite(q).sum())} heads: {int(significant.sum())} with q ≤ {FALSE_DISCOVERY_RATE}"
    tested = f"permutation test over students taken as independent, {found}"
    subtitle = joined(about, tested, subtitle)  # what was run comes last, because a subtitle that is too long is truncated at its end
    scale = color_scale(_RHO, rho)
    room = titles_inches(width, _RHO_TITLE, subtitle) + 0.55 * style.zoom
    figure = new_figure(width, map_height(width, rho.shape, room) + room)
    axes = figure.add_subplot()
    set_titles(figure, _RHO_TITLE, subtitle)
    image = draw_map(axes, rho, scale)
    behind = np.ma.masked_invalid(np.where(np.isfinite(rho), 1.0, np.nan).T)
    axes.imshow(behind, cmap=ListedColormap([style.quiet[0]]), aspect="auto", interpolation="nearest", zorder=1)
    image.set_alpha(np.where(significant, 1.0, 0.3).T)
    image.set_zorder(2)
    axes.set_xlabel("layer")
    axes.set_ylabel("head")
    bar = figure.colorbar(ScalarMappable(scale.norm, scale.colors), ax=axes, extend=scale.extend, aspect=28, pad=0.02)
    draw_color_bar(bar, scale)
    bar.set_label("Spearman's ρ")
    marks = [Patch(facecolor=style.quiet[0], linewidth=0)]
    texts = [f"dimmed: q > {FALSE_DISCOVERY_RATE}"]
    if np.isnan(rho).any():
        marks.append(undefined_patch())
        texts.append("undefined")
    figure.legend(marks, texts, loc="outside lower left", ncols=2)
    return figure
