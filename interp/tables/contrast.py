"""The tables that `analyses.examples --contrast` writes: right answers compared with wrong ones, per head, and the answers."""

from __future__ import annotations

import pyarrow as pa

from interp.tables.schema import REGIONS, TEXT_TYPE, TableSchema

PAIRED = "(paired)"
"""The value of column `model` in rows of all models together."""

_NUMBERS: list[tuple[str, pa.DataType]] = [
    *((name, pa.float64()) for name in ("right_mean", "wrong_mean", "difference", "ci_low", "ci_high", "effect", "p", "q")),
    *((name, pa.int32()) for name in ("n_right", "n_wrong", "n_problems")),
]

CONTRAST = TableSchema(
    name="contrast",
    arrow=pa.schema(
        [("model", TEXT_TYPE), ("layer", pa.int16()), ("head", pa.int16()), ("measure", TEXT_TYPE), ("region", TEXT_TYPE), *_NUMBERS]
    ),
    key=("model", "layer", "head", "measure", "region"),
    choices={"region": REGIONS},
)
"""Right minus wrong answers, one row per head, measure and region.

One model: columns as in `analyses.contrast.statistics.two_groups`; effect is Hedges' g. `PAIRED`: as in `two_way`; effect is the difference
divided by the residual standard deviation, and the counts are of problems that have both right and wrong answers. With too few answers
in a group, everything but the counts and the means is NaN.
"""

ANSWERS = TableSchema(
    name="answers",
    arrow=pa.schema(
        [
            ("model", TEXT_TYPE),
            ("problem", pa.int32()),
            ("extracted", pa.string()),
            ("correct", pa.bool_()),
            ("n_tokens", pa.int32()),
            ("truncated", pa.bool_()),
        ]
    ),
    key=("model", "problem"),
    choices={},
)
"""One row per answer: what the grader extracted ("" where it found nothing), its verdict, the number of tokens without special ones, and
whether the answer was truncated at the limit of new tokens."""
