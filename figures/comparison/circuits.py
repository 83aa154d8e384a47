"""What LoRA adapters change in every head's QK and OV circuit, from their weights alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.drawing import lines as named_lines
from figures.drawing import style
from figures.drawing.columns import require
from figures.drawing.panels import map_panels
from interp.tables.schema import MeasureInfo

CIRCUITS = {"qk": "QK", "ov": "OV"}


RELATIVE = MeasureInfo("relative", "Change of a head's circuit by its size", "1", 0.0, None, "||change||_F / ||base||_F")


NORMS = "Frobenius norm of the change by that of the base's circuit, exact from the weights"


def _checked(lora: pd.DataFrame) -> pd.DataFrame:
    require(lora, ("model", "layer", "head", "circuit", "relative"), "lora")
    condition = lora["condition"] if "condition" in lora else lora["model"]
    rows = lora.assign(model=lora["model"].astype(str), condition=condition.astype(str), circuit=lora["circuit"].astype(str))
    return rows[rows["circuit"].isin(list(CIRCUITS))]


def adapter_map(lora: pd.DataFrame, subtitle: str = "") -> Figure | None:
    """Relative change of every head's QK and OV circuit, two maps a student, all on one scale; two columns wide.

    Args:
        lora: rows of `interp.circuits.lora_geometry` with the columns model and condition (may be missing) before them.
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
        for circuit, written in CIRCUITS.items():
            chosen = student[student["circuit"] == circuit]
            values = np.full(shape, np.nan)
            values[chosen["layer"].to_numpy(int), chosen["head"].to_numpy(int)] = chosen["relative"].to_numpy(float)
            maps[f"{written} · {name}"] = values
    n = len(maps) // len(CIRCUITS)
    subtitle = style.joined(subtitle, f"n = {n} student{'s' * (n > 1)} of {shape[0] * shape[1]} heads", NORMS, "no test")
    return map_panels(maps, RELATIVE, "What the adapters change in each head (ratio)", subtitle)


@style.paper_style()
def adapter_layers(lora: pd.DataFrame, subtitle: str = "") -> Figure | None:
    """Mean relative change of the heads' QK and OV circuits by layer, a line a student; two columns wide.

    Students of one condition share a colour; where a condition has several, they are thin and their mean is thick.

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
    look = named_lines.looks(list(rows["condition"]))
    students = rows["model"].nunique()
    several = students > len(look)
    heads = int(rows["head"].max()) + 1
    title = "What the adapters change, by layer (ratio)"
    lines = "thin line: a student, thick: mean of a condition's students" if several else "a line a student"
    n = f"n = {students} student{'s' * (students > 1)}, {heads} heads a layer"
    subtitle = style.joined(subtitle, f"mean over a layer's heads; {lines}", n, NORMS, "no interval, no test")
    figure, every, beside = named_lines.line_panels(title, subtitle, look, 2, 2, down=1.7, margins=(0.5, 0.08, 0.24, 0.36))
    layers = int(rows["layer"].max()) + 1
    means = rows.groupby(["circuit", "condition", "model", "layer"], as_index=False)["relative"].mean()
    high = float(means["relative"].max())
    for axes, (circuit, written) in zip(every, CIRCUITS.items(), strict=True):
        lines = {}
        for name, one in look.items():
            of_condition = means[(means["circuit"] == circuit) & (means["condition"] == name)]
            if of_condition.empty:
                continue
            by_student = of_condition.pivot(index="layer", columns="model", values="relative").reindex(
                range(layers)
            )  # layers without attention leave a gap
            thick = by_student.mean(axis=1)
            if by_student.shape[1] > 1:
                axes.plot(by_student.index, by_student, color=one.colour, linestyle=one.dash, linewidth=0.5, alpha=0.6)
            mark = "o" if thick.notna().sum() == 1 else ""
            axes.plot(thick.index, thick, color=one.colour, linestyle=one.dash, linewidth=1.3, marker=mark, markersize=3)
            lines[name] = one, thick
        axes.set_xlim(-0.5, layers - 0.5)
        axes.set_ylim(0, high * 1.05 if high > 0 else 1.0)
        axes.set_xticks(style.count_ticks(style.axes_inches(axes)[0], layers))
        style.few_y_ticks(axes)
        axes.set_title(f"{written} circuit", loc="left")
        axes.set_xlabel("layer")
        style.open_axes(axes)
        if beside:
            named_lines.name_ends(axes, lines)
    every[0].set_ylabel("relative change (ratio)")
    return figure
