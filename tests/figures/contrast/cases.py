"""Contrasts that are known by construction, shared by the tests of this folder."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd

from analyses.contrast.statistics import contrast_table
from interp.tables.heads import HeadValues
from interp.tables.schema import REGIONS, MeasureInfo

INFOS = (
    MeasureInfo("entropy_nats", "Entropy of attention", "nats", 0.0, None, "−Σ p log p"),
    MeasureInfo("numeric_mass", "Attention on numbers", "probability", 0.0, 1.0, "Σ p"),
    MeasureInfo("numeric_z", "Attention on numbers against shuffles", "standard deviations", None, None, "(x−μ)/σ"),
)


PLANTED = {(0, 1): 0.15, (2, 3): -0.15}


@cache
def make_table(layers: int = 3, heads: int = 4, n: int = 60, names: tuple[str, ...] = ("one", "two"), seed: int = 0) -> pd.DataFrame:
    """Models whose heads in `PLANTED` differ between right and wrong answers; one head of the last measure is undefined."""
    random = np.random.default_rng(seed)
    right = random.random((len(names), n)) < np.linspace(0.3, 0.7, len(names))[:, None]
    runs = []
    for name, verdicts in zip(names, right, strict=True):
        values = random.normal(0.4, 0.1, (n, layers, heads, len(INFOS), len(REGIONS)))
        for (layer, head), size in PLANTED.items():
            values[verdicts, layer, head] += size
        values[:, 1, 1, 2] = np.nan
        runs.append(HeadValues(name, tuple(range(n)), tuple(range(layers)), heads, tuple(info.name for info in INFOS), values))
    return contrast_table(runs, right)


def of(table: pd.DataFrame, model: str) -> pd.DataFrame:
    return table[table["model"] == model]
