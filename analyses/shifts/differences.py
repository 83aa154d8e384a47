# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Heads compared across models that read the same texts: arrays in, tables out. Needs no torch.

Everything is paired by example: a difference is taken on one text and then averaged over texts. The false-discovery rate is controlled
over all heads of all layers for each measure and region of a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from math import factorial

import numpy as np
import pandas as pd
from scipy import stats

from interp.inference import benjamini_hochberg, bootstrap_interval, crossed_test, paired_t
from interp.tables.errors import InputError
from interp.tables.heads import HeadValues, ModelRun
from interp.tables.schema import REGIONS
from interp.tables.shifts import FEWEST_STUDENTS, HEAD_KEY

_RESOLUTION = 1e-6
"""A difference on one text below this value times max(1, |a|, |b|) counts as 0: it is rounding of float32."""

_RANK_RESAMPLES = 200


def example_differences(base: HeadValues, other: HeadValues) -> np.ndarray:
    """Return other minus base for each example, [example, layer, head, measure, region]; differences of float32 rounding are 0."""
    difference = other.values - base.values
    size = np.maximum(1.0, np.maximum(np.abs(base.values), np.abs(other.values)))
    return np.where(np.abs(difference) < _RESOLUTION * size, 0.0, difference)


def shifts_table(base: ModelRun, other: ModelRun, *, seed: int = 0) -> pd.DataFrame:
    """Return the rows of `interp.tables.shifts.SHIFTS` for one model compared with its baseline.

    Args:
        base: the baseline, aligned with `other`.
        other: the model.
        seed: seed of the bootstrap.
    """
    d = example_differences(base.values, other.values)
    flat = d.reshape(len(d), -1)
    mean, low, high = bootstrap_interval(flat, seed)
    p, effect = paired_t(flat)
    frame = _heads_index(other.values)
    frame.insert(0, "baseline", base.name)
    frame.insert(0, "model", other.name)
    both = np.isfinite(flat)
    frame["base_mean"] = _mean(base.values.values.reshape(flat.shape), both)
    frame["mean"] = _mean(other.values.values.reshape(flat.shape), both)
    frame["difference"], frame["ci_low"], frame["ci_high"] = mean, low, high
    frame["effect"], frame["p"], frame["q"] = effect, p, _q_over_heads(p, d.shape[1:])
    frame["n_examples"] = both.sum(0)
    return frame


def condition_shifts_table(bases: Sequence[ModelRun], others: Sequence[ModelRun], *, seed: int = 0) -> pd.DataFrame:
    """Return the rows of `interp.tables.shifts.CONDITIONS` for the students of one condition compared with the baseline's.

    Students are paired by seed if both conditions have the same seeds. A baseline with one student, such as the untouched one, is
    compared with every seed. Seeds are never pooled as if they were more examples: with two or more seeds, interval and p come from
    `interp.inference.crossed_test`; with one, from the bootstrap and the t test over examples, which describe this student only.

    Args:
        bases: runs of the baseline's students, aligned with `others`.
        others: runs of the condition's students.
        seed: seed of the bootstrap.

    Raises:
        InputError: both have several seeds, and none in common.
    """
    pairs = _pairs(bases, others)
    d = np.stack([example_differences(one.values, two.values) for one, two in pairs])
    n_seeds, n_examples = d.shape[:2]
    flat = d.reshape(n_seeds, n_examples, -1)
    by_seed = np.stack([_mean(one, np.isfinite(one)) for one in flat])
    errors = np.stack([_standard_error(one) for one in flat])
    if n_seeds > 1 and n_examples > 1:
        low, high, p = _crossed(flat)
    else:
        _, low, high = bootstrap_interval(flat.mean(0), seed)
        p = paired_t(flat.mean(0))[0]
    frame = _heads_index(others[0].values)
    frame.insert(0, "baseline", bases[0].condition)
    frame.insert(0, "condition", others[0].condition)
    frame["difference"], frame["ci_low"], frame["ci_high"] = by_seed.mean(0), low, high
    frame["sd_seeds"] = by_seed.std(0, ddof=1) if n_seeds > 1 else np.nan
    frame["se_examples"] = errors.mean(0)
    frame["p"], frame["q"] = p, _q_over_heads(p, d.shape[2:])
    frame["n_seeds"] = n_seeds
    frame["n_examples"] = np.isfinite(flat).all(0).sum(0)
    return frame


def _pairs(bases: Sequence[ModelRun], others: Sequence[ModelRun]) -> list[tuple[ModelRun, ModelRun]]:
    if len(bases) == 1:
        return [(bases[0], other) for other in others]
    known = {base.seed: base for base in bases}
    pairs = [(known[other.seed], other) for other in others if other.seed in known]
    if not pairs:
        if len(others) == 1:
            return [(base, others[0]) for base in bases]
        raise InputError(
            f"{bases[0].condition} has the seeds {[b.seed for b in bases]} and {others[0].condition} {[o.seed for o in others]}, with none "
            "in common"
        )
    return pairs


def _crossed(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return interval and p of `crossed_test` for each quantity, over the examples in which it is defined for every seed."""
    defined = np.asarray(np.isfinite(flat).all(0))
    low, high, p = (np.full(flat.shape[2], np.nan) for _ in range(3))
    complete = defined.all(0)
    low[complete], high[complete], p[complete] = crossed_test(flat[:, :, complete])
    for at in np.flatnonzero(~complete & (defined.sum(0) > 1)):
        low[at], high[at], p[at] = crossed_test(flat[:, defined[:, at], at])
    return low, high, p


def layers_table(base: ModelRun, other: ModelRun, *, seed: int = 0) -> pd.DataFrame:
    """Return the rows of `interp.tables.shifts.LAYERS` for one model compared with its baseline, which may be the model itself."""
    d = example_differences(base.values, other.values)
    with np.errstate(invalid="ignore"):
        of_layer = _nan_mean(other.values.values, 2)
        shift = _nan_mean(d, 2)
        size = _nan_mean(np.abs(_nan_mean(d, 0)), 1)
    n = len(d)
    mean, mean_low, mean_high = bootstrap_interval(of_layer.reshape(n, -1), seed)
    difference, low, high = bootstrap_interval(shift.reshape(n, -1), seed)
    index = pd.MultiIndex.from_product([other.values.layers, other.values.measures, REGIONS], names=["layer", "measure", "region"])
    frame = index.to_frame(index=False)
    frame.insert(0, "baseline", base.name)
    frame.insert(0, "model", other.name)
    frame["mean"], frame["mean_low"], frame["mean_high"] = mean, mean_low, mean_high
    frame["difference"], frame["ci_low"], frame["ci_high"] = difference, low, high
    frame["magnitude"] = size.ravel()
    frame["n_heads"] = other.values.n_heads
    frame["n_examples"] = np.isfinite(shift.reshape(n, -1)).sum(0)
    return frame


def ranks_table(run: ModelRun, *, seed: int = 0, n_resamples: int = _RANK_RESAMPLES) -> pd.DataFrame:
    """Return the rows of `interp.tables.shifts.RANKS` for one model."""
    values = run.values.values
    drawn = _ranks(_resampled(values, seed, n_resamples), values.shape[1:])
    frame = _heads_index(run.values)
    frame.insert(0, "model", run.name)
    frame["rank"] = _ranks(_mean_of(values)[None], values.shape[1:])[0].ravel()
    frame["rank_low"], frame["rank_high"] = np.quantile(drawn.reshape(n_resamples, -1), [0.025, 0.975], axis=0)
    return frame


def agreement_table(runs: Sequence[ModelRun], *, seed: int = 0, n_resamples: int = _RANK_RESAMPLES) -> pd.DataFrame:
    """Return the rows of `interp.tables.shifts.AGREEMENT` for every pair of models; both use the same resamples of the examples."""
    shape = runs[0].values.values.shape[1:]
    complete = [_centered(_ranks(_mean_of(r.values.values)[None], shape)) for r in runs]
    drawn = [_centered(_ranks(_resampled(r.values.values, seed, n_resamples), shape)) for r in runs]
    rows = []
    for at, one in enumerate(runs):
        for to in range(at + 1, len(runs)):
            rho = _correlation(complete[at], complete[to])[0]
            low, high = np.quantile(_correlation(drawn[at], drawn[to]), [0.025, 0.975], axis=0)
            index = pd.MultiIndex.from_product([one.values.measures, REGIONS], names=["measure", "region"])
            frame = index.to_frame(index=False)
            frame.insert(0, "other", runs[to].name)
            frame.insert(0, "model", one.name)
            several = len(one.values.examples) > 1
            frame["spearman"] = rho.ravel()
            frame["ci_low"] = low.ravel() if several else np.nan
            frame["ci_high"] = high.ravel() if several else np.nan
            frame["n_heads"] = shape[0] * shape[1]
            frame["n_examples"] = len(one.values.examples)
            rows.append(frame)
    return pd.concat(rows, ignore_index=True)


def accuracy_slopes_table(base: HeadValues, students: Sequence[HeadValues], accuracy: Sequence[float], *, seed: int = 0) -> pd.DataFrame:
    """Return the rows of `interp.tables.shifts.ACCURACY_SLOPES`: correlation of a head's shift with accuracy, over students.

    p is from a two-sided permutation test: over all orders of up to 7 students, or 10,000 random orders of more; the observed order is
    counted. Students of one condition are similar, so p is too small if most students are seeds of a few conditions.

    Args:
        base: the baseline, aligned with every student.
        students: at least two, without the baseline.
        accuracy: accuracy of each student.
        seed: seed of the permutations.

    Raises:
        InputError: fewer than two students.
    """
    n = len(students)
    if n < 2:
        raise InputError(f"{n} student with a known accuracy; a correlation needs at least two")
    shifts = np.stack([_mean_of(example_differences(base, s)) for s in students])
    flat = shifts.reshape(n, -1)
    x = _unit(stats.rankdata(flat, axis=0))
    y = _unit(stats.rankdata(np.asarray(accuracy, float))[:, None])[:, 0]
    rho = np.where(np.isfinite(flat).all(0), y @ x, np.nan)
    p = np.full(flat.shape[1], np.nan)
    if n >= FEWEST_STUDENTS:
        orders = _orders(n, seed)
        for at in range(0, flat.shape[1], 4096):
            block = slice(at, at + 4096)
            p[block] = (np.abs(y[orders] @ x[:, block]) >= np.abs(rho[block]) - 1e-12).mean(0)
        p = np.where(np.isfinite(rho), p, np.nan)
    frame = _heads_index(base)
    frame["spearman"], frame["p"], frame["q"] = rho, p, _q_over_heads(p, shifts.shape[1:])
    frame["n_students"] = n
    return frame


def divergences_table(examples: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Return the rows of `interp.tables.shifts.MAP_DIVERGENCES`: mean over examples with a bootstrap interval.

    Args:
        examples: model, baseline, example, layer, head, measure, region, value: as `interp.recording.divergence` gives it.
        seed: of the bootstrap.
    """
    keys = ["model", "baseline", "layer", "head", "measure", "region"]
    wide = examples.set_index([*keys, "example"])["value"].unstack("example", sort=False)
    values = wide.to_numpy(float).T
    mean, low, high = bootstrap_interval(values, seed)
    frame = wide.index.to_frame(index=False)
    frame["mean"], frame["ci_low"], frame["ci_high"] = mean, low, high
    frame["n_examples"] = np.isfinite(values).sum(0)
    return frame


# --- arrays ---------------------------------------------------------------------------------------------------------


def _heads_index(values: HeadValues) -> pd.DataFrame:
    axes = [values.layers, range(values.n_heads), values.measures, REGIONS]
    return pd.MultiIndex.from_product(axes, names=list(HEAD_KEY)).to_frame(index=False)


def _q_over_heads(p: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return q by Benjamini-Hochberg over all layers and heads of each measure and region."""
    by_family = p.reshape(shape[0] * shape[1], -1)
    return np.stack([benjamini_hochberg(family) for family in by_family.T], 1).reshape(p.shape)


def _mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(counted, values, 0.0).sum(0) / counted.sum(0)


def _mean_of(values: np.ndarray) -> np.ndarray:
    return _mean(values, np.isfinite(values))


def _nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    counted = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(counted, values, 0.0).sum(axis) / counted.sum(axis)


def _standard_error(values: np.ndarray) -> np.ndarray:
    counted = np.isfinite(values)
    n = counted.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = np.where(counted, (values - _mean(values, counted)) ** 2, 0.0).sum(0) / (n - 1)
        return np.where(n > 1, np.sqrt(variance / n), np.nan)


def _resampled(values: np.ndarray, seed: int, n_resamples: int) -> np.ndarray:
    """Return means of bootstrap resamples of the examples, [resample, ...]; the resamples are the same for every model."""
    n = len(values)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples).astype(float)
    flat = values.reshape(n, -1)
    counted = np.isfinite(flat)
    totals = weights @ np.where(counted, flat, 0.0)
    with np.errstate(invalid="ignore"):
        return (totals / (n if counted.all() else weights @ counted)).reshape(n_resamples, *values.shape[1:])


def _ranks(means: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return ranks over all heads of each measure and region, [resample, layer, head, measure, region]: 1 the largest, NaN undefined."""
    flat = means.reshape(len(means), shape[0] * shape[1], -1)
    return stats.rankdata(-flat, axis=1, nan_policy="omit").reshape(len(means), *shape)


def _centered(ranks: np.ndarray) -> np.ndarray:
    """Return ranks with mean 0 and length 1 over heads, [resample, head, measure, region]; NaN if a head is undefined or all are equal."""
    flat = ranks.reshape(len(ranks), ranks.shape[1] * ranks.shape[2], *ranks.shape[3:])
    centered = flat - flat.mean(1, keepdims=True)
    length = np.sqrt((centered**2).sum(1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(length > 0, centered / length, np.nan)


def _correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1)


def _unit(values: np.ndarray) -> np.ndarray:
    centered = values - values.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return centered / np.sqrt((centered**2).sum(0))


def _orders(n: int, seed: int) -> np.ndarray:
    """Return orders of n items, [order, n], with the given order first."""
    if factorial(n) <= factorial(7):
        return np.array(list(permutations(range(n))))
    random = np.random.default_rng(seed)
    return np.concatenate([np.arange(n)[None], random.permuted(np.tile(np.arange(n), (9_999, 1)), axis=1)])


def by_condition(runs: Sequence[ModelRun]) -> Mapping[str, list[ModelRun]]:
    """Return the runs of each condition, in order."""
    groups: dict[str, list[ModelRun]] = {}
    for run in runs:
        groups.setdefault(run.condition, []).append(run)
    return groups
