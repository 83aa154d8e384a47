"""Shifts of heads that are known by construction, shared by the tests of maps and volcano plots."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd

from analyses.shifts.differences import shifts_table
from interp.tables.heads import HeadValues, ModelRun
from interp.tables.schema import REGIONS, MeasureInfo
from tests.figures.texts import LONG

INFO = MeasureInfo("numeric_mass", "Attention on numbers", "probability", 0.0, 1.0, "Σ p")


def runs(layers: int, heads: int, *, moved: dict[tuple[int, int], float], n: int = 30, seed: int = 0) -> tuple[ModelRun, ModelRun]:
    """A baseline and a student whose heads in `moved` are shifted by the given amounts on every text, with noise."""
    random = np.random.default_rng(seed)
    base = random.beta(0.6, 5.0, (1, layers, heads, 1, len(REGIONS))) + random.normal(0, 0.02, (n, layers, heads, 1, len(REGIONS)))
    other = base + random.normal(0, 0.02, base.shape)
    for (layer, head), shift in moved.items():
        other[:, layer, head] += shift

    def run(name: str, values: np.ndarray) -> ModelRun:
        return ModelRun(HeadValues(name, tuple(range(n)), tuple(range(layers)), heads, (INFO.name,), values), pd.DataFrame(), name)

    return run("base", base), run("student", other)


MOVED = {(0, 1): 0.1, (2, 3): -0.1, (1, 0): 0.04}


@cache
def long_table(layers: int, heads: int) -> pd.DataFrame:
    """Every sixth head moved; a student with a long name."""
    moved = {(layer, head): 0.05 * (-1) ** head for layer in range(0, layers, 3) for head in range(0, heads, 2)}
    table = shifts_table(*runs(layers, heads, moved=moved, n=6)).replace({"student": LONG[:40]})
    return table[table["region"] == "response"]


def where(table: pd.DataFrame, layer: int, head: int) -> pd.Series:
    return (table["layer"] == layer) & (table["head"] == head)
