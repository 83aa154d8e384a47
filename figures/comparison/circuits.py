"""What LoRA adapters change in every head's QK and OV circuit, computed from the weights alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.drawing.columns import condition_names, require_columns
from figures.drawing.layout import axes_inches, count_ticks, few_ticks, open_axes
from figures.drawing.lines import draw_seeds, line_panels, line_styles, name_line_ends
from figures.drawing.panels import map_panels
from figures.drawing.style import paper_style
from figures.drawing.text import joined, plural
from interp.tables.schema import MeasureInfo

_CIRCUIT_NAMES = {"qk": "QK", "ov": "OV"}

_RELATIVE = MeasureInfo("relative", "Relative change of a head's circuit", "1", 0.0, None, "||change||_F / ||base||_F")

_NORMS = "Frobenius norm of the change / Frobenius norm of the base model's circuit, exact from the weights"


def _checked(lora: pd.DataFrame) -> pd.DataFrame:
    require_columns(lora, ("model", "layer", "head", "circuit", "relative"), "lora")
    rows = lora.assign(model=lora["model"].astype(str), condition=condition_names(lora), circuit=lora["circuit"].astype(str))
    return rows[rows["circuit"].isin(list(_CIRCUIT_NAMES))]


def adapter_map(lora: pd.DataFrame, subtitle: str = "") -> Figure | None:
    """Draw the relative change of every head's QK and OV circuit, two maps per student on one scale; two columns wide.

    Args:
        lora: geometry of the adapters: model, condition (optional), layer, head, circuit ("qk" or "ov"), relative.
        subtitle: what was run.

    Returns:
        The figure, or None where the table has no row. Layers without softmax attention are hatched.

    Raises:
        InputError: the table lacks a column.
    """
    rows = _checked(lora)
    if rows.empty:
        return None
    shape = int(rows["layer"].max()) + 1, int(rows["head"].max()) + 1
    maps = {}
    for name, student in rows.groupby("model", sort=False):
        for circuit, title in _CIRCUIT_NAMES.items():
            chosen = student[student["circuit"] == circuit]
            values = np.full(shape, np.nan)
            values[chosen["layer"].to_numpy(int), chosen["head"].to_numpy(int)] = chosen["relative"].to_numpy(float)
            maps[f"{title} · {name}"] = values
    n = f"n = {plural(len(maps) // len(_CIRCUIT_NAMES), 'student')} of {shape[0] * shape[1]} heads"
    return map_panels(maps, _RELATIVE, "Change of each head by the adapters (ratio)", joined(subtitle, n, _NORMS, "no test"))


@paper_style()
def adapter_layers(lora: pd.DataFrame, subtitle: str = "") -> Figure | None:
    """Draw the mean relative change of the heads' QK and OV circuits by layer, one line per student; two columns wide.

    Students of one condition share a color; where a condition has several students, their lines are thin and their mean is thick.

    Args:
        lora: as for `adapter_map`.
        subtitle: what was run.

    Returns:
        The figure, or None where the table has no row.

    Raises:
        InputError: the table lacks a column.
    """
    rows = _checked(lora)
    if rows.empty:
        return None
    styles = line_styles(list(rows["condition"]))
    students = rows["model"].nunique()
    title = "Change by the adapters, by layer (ratio)"
    several = "thin line: a student, thick: mean of a condition's students" if students > len(styles) else "one line per student"
    n = f"n = {plural(students, 'student')}, {int(rows['head'].max()) + 1} heads per layer"
    subtitle = joined(subtitle, f"mean over a layer's heads; {several}", n, _NORMS, "no interval, no test")
    figure, every, beside = line_panels(title, subtitle, styles, 2, 2, down=1.7, margins=(0.5, 0.08, 0.24, 0.36))
    layers = int(rows["layer"].max()) + 1
    means = rows.groupby(["circuit", "condition", "model", "layer"], as_index=False)["relative"].mean()
    high = float(means["relative"].max())
    for axes, (circuit, name) in zip(every, _CIRCUIT_NAMES.items(), strict=True):
        lines = {}
        for condition, line in styles.items():
            of_condition = means[(means["circuit"] == circuit) & (means["condition"] == condition)]
            if of_condition.empty:
                continue
            by_student = of_condition.pivot(index="layer", columns="model", values="relative")
            by_student = by_student.reindex(range(layers))  # layers without attention leave a gap
            lines[condition] = line, draw_seeds(axes, by_student, line, linewidth=1.3)
        axes.set_xlim(-0.5, layers - 0.5)
        axes.set_ylim(0, high * 1.05 if high > 0 else 1.0)
        axes.set_xticks(count_ticks(axes_inches(axes)[0], layers))
        few_ticks(axes, "y")
        axes.set_title(f"{name} circuit", loc="left")
        axes.set_xlabel("layer")
        open_axes(axes)
        if beside:
            name_line_ends(axes, lines)
    every[0].set_ylabel("relative change (ratio)")
    return figure
