"""The results of a contrast: its tables, and the folder that they are written to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from interp.tables.results import Kind

CONTRAST_FOLDER = Kind(noun="contrast", kinds=("contrast",), names=r"heads|(contrast|answers)\.parquet", carried=("heads",))
"""The results folder of a contrast; head runs are carried over when the contrast is made again."""


@dataclass(frozen=True)
class ContrastResult:
    """A finished contrast.

    Attributes:
        folder: the results folder.
        contrast: the `contrast` table (`interp.tables.contrast.CONTRAST`).
        answers: the `answers` table (`interp.tables.contrast.ANSWERS`).
        run: the content of run.json.
    """

    folder: Path
    contrast: pd.DataFrame
    answers: pd.DataFrame
    run: dict[str, Any]
