"""TODO_DOC interp/tables/shifts.py."""

from __future__ import annotations

import pyarrow as pa

from interp.tables.schema import REGIONS, TableSchema

FEWEST_STUDENTS = 5
"""With fewer students than this, a correlation with accuracy has no p value: 4 give no permutation p below 1/12."""


_TEXT = pa.dictionary(pa.int32(), pa.string())


_HEAD: list[tuple[str, pa.DataType]] = [("layer", pa.int16()), ("head", pa.int16()), ("measure", _TEXT), ("region", _TEXT)]


_INTERVAL: list[tuple[str, pa.DataType]] = [("ci_low", pa.float64()), ("ci_high", pa.float64())]


_TEST: list[tuple[str, pa.DataType]] = [("effect", pa.float64()), ("p", pa.float64()), ("q", pa.float64())]


HEAD_KEY = ("layer", "head", "measure", "region")


SHIFTS = TableSchema(
    name="shifts",
    arrow=pa.schema(
        [
            ("model", _TEXT),
            ("baseline", _TEXT),
            *_HEAD,
            ("base_mean", pa.float64()),
            ("mean", pa.float64()),
            ("difference", pa.float64()),
            *_INTERVAL,
            *_TEST,
            ("n_examples", pa.int32()),
        ]
    ),
    key=("model", *HEAD_KEY),
    choices={"region": REGIONS},
)
"""One model less its baseline, a row a head, measure and region: mean paired difference with a bootstrap interval over examples, effect
size d_z, paired t test, q over all heads."""


CONDITIONS = TableSchema(
    name="conditions",
    arrow=pa.schema(
        [
            ("condition", _TEXT),
            ("baseline", _TEXT),
            *_HEAD,
            ("difference", pa.float64()),
            *_INTERVAL,
            ("sd_seeds", pa.float64()),
            ("se_examples", pa.float64()),
            ("p", pa.float64()),
            ("q", pa.float64()),
            ("n_seeds", pa.int32()),
            ("n_examples", pa.int32()),
        ]
    ),
    key=("condition", *HEAD_KEY),
    choices={"region": REGIONS},
)
"""A condition's students of several seeds less the baseline: interval and p take seeds and examples both as drawn at random. Beside them
the spread between seeds (standard deviation of their differences) and within a seed (mean standard error over examples)."""


LAYERS = TableSchema(
    name="layers",
    arrow=pa.schema(
        [
            ("model", _TEXT),
            ("baseline", _TEXT),
            ("layer", pa.int16()),
            ("measure", _TEXT),
            ("region", _TEXT),
            ("mean", pa.float64()),
            ("mean_low", pa.float64()),
            ("mean_high", pa.float64()),
            ("difference", pa.float64()),
            *_INTERVAL,
            ("magnitude", pa.float64()),
            ("n_heads", pa.int32()),
            ("n_examples", pa.int32()),
        ]
    ),
    key=("model", "layer", "measure", "region"),
    choices={"region": REGIONS},
)
"""A layer's mean over heads, its difference from the baseline, and the mean over heads of the size of their differences (magnitude)."""


RANKS = TableSchema(
    name="ranks",
    arrow=pa.schema([("model", _TEXT), *_HEAD, ("rank", pa.float64()), ("rank_low", pa.float64()), ("rank_high", pa.float64())]),
    key=("model", *HEAD_KEY),
    choices={"region": REGIONS},
)
"""A head's rank among all heads of its model (1 has the largest value; ties share the mean), with a bootstrap interval over examples."""


AGREEMENT = TableSchema(
    name="agreement",
    arrow=pa.schema(
        [
            ("model", _TEXT),
            ("other", _TEXT),
            ("measure", _TEXT),
            ("region", _TEXT),
            ("spearman", pa.float64()),
            *_INTERVAL,
            ("n_heads", pa.int32()),
            ("n_examples", pa.int32()),
        ]
    ),
    key=("model", "other", "measure", "region"),
    choices={"region": REGIONS},
)
"""Spearman's correlation of two models' values over heads: does the order of heads stay?"""


ACCURACY_SLOPES = TableSchema(
    name="accuracy",
    arrow=pa.schema([*_HEAD, ("spearman", pa.float64()), ("p", pa.float64()), ("q", pa.float64()), ("n_students", pa.int32())]),
    key=HEAD_KEY,
    choices={"region": REGIONS},
)
"""Spearman's correlation over students of a head's difference from the baseline with accuracy; permutation p from 5 students on."""


MAP_DIVERGENCES = TableSchema(
    name="divergences",
    arrow=pa.schema([("model", _TEXT), ("baseline", _TEXT), *_HEAD, ("mean", pa.float64()), *_INTERVAL, ("n_examples", pa.int32())]),
    key=("model", *HEAD_KEY),
    choices={"region": REGIONS},
)
"""How far two models' maps of one head are from each other on the same text (js, cosine), or all models' maps (variance)."""


TRAJECTORY = TableSchema(
    name="trajectory",
    arrow=pa.schema([("model", _TEXT), ("step", pa.int32()), *_HEAD, ("mean", pa.float64()), ("n_examples", pa.int32())]),
    key=("model", "step", *HEAD_KEY),
    choices={"region": REGIONS},
)
"""A student's heads while it learns: at each recorded step (0 is the base) the mean over a few fixed texts."""


SHIFT_TABLES = {
    schema.name: schema for schema in (SHIFTS, CONDITIONS, LAYERS, RANKS, AGREEMENT, ACCURACY_SLOPES, MAP_DIVERGENCES, TRAJECTORY)
}
