"""The tables that `analyses.shifts` writes: how each head differs between models.

Differences are student minus baseline. Intervals are 95 % bootstrap intervals over examples unless a table says otherwise.
"""

from __future__ import annotations

import pyarrow as pa

from interp.tables.schema import REGIONS, TEXT_TYPE, TableSchema

FEWEST_STUDENTS = 5
"""With fewer students than this, a correlation with accuracy has no p value: with 4, no permutation p is below 1/12."""

_HEAD: list[tuple[str, pa.DataType]] = [("layer", pa.int16()), ("head", pa.int16()), ("measure", TEXT_TYPE), ("region", TEXT_TYPE)]

_INTERVAL: list[tuple[str, pa.DataType]] = [("ci_low", pa.float64()), ("ci_high", pa.float64())]

_TEST: list[tuple[str, pa.DataType]] = [("effect", pa.float64()), ("p", pa.float64()), ("q", pa.float64())]

HEAD_KEY = ("layer", "head", "measure", "region")

SHIFTS = TableSchema(
    name="shifts",
    arrow=pa.schema(
        [
            ("model", TEXT_TYPE),
            ("baseline", TEXT_TYPE),
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
"""One model minus its baseline, one row per head, measure and region: mean paired difference with a bootstrap interval over examples,
effect size d_z, p of a paired t test, and q over all heads."""

CONDITIONS = TableSchema(
    name="conditions",
    arrow=pa.schema(
        [
            ("condition", TEXT_TYPE),
            ("baseline", TEXT_TYPE),
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
"""A condition's students of several seeds minus the baseline. Interval and p treat both seeds and examples as random samples; `sd_seeds` is
the standard deviation of the seeds' differences, `se_examples` the mean standard error over examples within a seed."""

LAYERS = TableSchema(
    name="layers",
    arrow=pa.schema(
        [
            ("model", TEXT_TYPE),
            ("baseline", TEXT_TYPE),
            ("layer", pa.int16()),
            ("measure", TEXT_TYPE),
            ("region", TEXT_TYPE),
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
"""A layer's mean over heads, its difference from the baseline, and the mean over heads of their absolute differences (`magnitude`)."""

RANKS = TableSchema(
    name="ranks",
    arrow=pa.schema([("model", TEXT_TYPE), *_HEAD, ("rank", pa.float64()), ("rank_low", pa.float64()), ("rank_high", pa.float64())]),
    key=("model", *HEAD_KEY),
    choices={"region": REGIONS},
)
"""A head's rank among all heads of its model (1 for the largest value; ties share their mean rank), with an interval over examples."""

AGREEMENT = TableSchema(
    name="agreement",
    arrow=pa.schema(
        [
            ("model", TEXT_TYPE),
            ("other", TEXT_TYPE),
            ("measure", TEXT_TYPE),
            ("region", TEXT_TYPE),
            ("spearman", pa.float64()),
            *_INTERVAL,
            ("n_heads", pa.int32()),
            ("n_examples", pa.int32()),
        ]
    ),
    key=("model", "other", "measure", "region"),
    choices={"region": REGIONS},
)
"""Spearman's correlation over heads between two models' values: how far the order of heads is the same."""

ACCURACY_SLOPES = TableSchema(
    name="accuracy",
    arrow=pa.schema([*_HEAD, ("spearman", pa.float64()), ("p", pa.float64()), ("q", pa.float64()), ("n_students", pa.int32())]),
    key=HEAD_KEY,
    choices={"region": REGIONS},
)
"""Spearman's correlation over students between a head's difference from the baseline and accuracy; p from `FEWEST_STUDENTS` on."""

MAP_DIVERGENCES = TableSchema(
    name="divergences",
    arrow=pa.schema(
        [("model", TEXT_TYPE), ("baseline", TEXT_TYPE), *_HEAD, ("mean", pa.float64()), *_INTERVAL, ("n_examples", pa.int32())]
    ),
    key=("model", *HEAD_KEY),
    choices={"region": REGIONS},
)
"""How far apart two models' attention maps of one head are on the same text (js, cosine), or all models' maps (variance)."""

TRAJECTORY = TableSchema(
    name="trajectory",
    arrow=pa.schema([("model", TEXT_TYPE), ("step", pa.int32()), *_HEAD, ("mean", pa.float64()), ("n_examples", pa.int32())]),
    key=("model", "step", *HEAD_KEY),
    choices={"region": REGIONS},
)
"""A student's heads during training: the mean over a few fixed texts at each recorded step (0 is the base model)."""

SHIFT_TABLES = {
    schema.name: schema for schema in (SHIFTS, CONDITIONS, LAYERS, RANKS, AGREEMENT, ACCURACY_SLOPES, MAP_DIVERGENCES, TRAJECTORY)
}
"""Tables of a comparison with a schema, in files `NAME.parquet`."""
