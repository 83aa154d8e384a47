"""TODO_DOC interp/tables/contrast.py."""

from __future__ import annotations

import pyarrow as pa

from interp.tables.schema import REGIONS, TableSchema

PAIRED = "(paired)"
"""Stands in the column `model` for all models together."""


_TEXT = pa.dictionary(pa.int32(), pa.string())


_NUMBERS: list[tuple[str, pa.DataType]] = [
    *((name, pa.float64()) for name in ("right_mean", "wrong_mean", "difference", "ci_low", "ci_high", "effect", "p", "q")),
    *((name, pa.int32()) for name in ("n_right", "n_wrong", "n_problems")),
]


CONTRAST = TableSchema(
    name="contrast",
    arrow=pa.schema([("model", _TEXT), ("layer", pa.int16()), ("head", pa.int16()), ("measure", _TEXT), ("region", _TEXT), *_NUMBERS]),
    key=("model", "layer", "head", "measure", "region"),
    choices={"region": REGIONS},
)
"""Right less wrong answers, a row a head, measure and region. Of one model: as `two_groups` says; effect is Hedges' g. Of `PAIRED`: as
`two_way` says; effect is the difference by the model's residual standard deviation, and the counts are of problems that have both right
and wrong answers. Where there are fewer than `FEWEST`, all but the counts and the means is NaN."""


ANSWERS = TableSchema(
    name="answers",
    arrow=pa.schema(
        [
            ("model", _TEXT),
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
"""A row an answer: what the grader took from it ("" where it found none), its verdict, the tokens of the answer (special ones left out),
and whether it ran into the limit of new tokens."""


CONTRAST_TABLES = {schema.name: schema for schema in (CONTRAST, ANSWERS)}
