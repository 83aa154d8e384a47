# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Heads compared across models that read the same texts: arrays and tables in, tables out. Knows no torch.

Everything is paired by example: a difference is taken on one text, and averaged over texts. Families for the false-discovery rate are all
heads (every layer) under one measure and region of one comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import factorial

import numpy as np
import pandas as pd
from scipy import stats

from interp.inference import benjamini_hochberg, bootstrap_interval, crossed_test, paired_t
from interp.tables.errors import InputError
from interp.tables.heads import HeadValues, Run
from interp.tables.schema import REGIONS
from interp.tables.shifts import FEWEST_STUDENTS, HEAD_KEY

RESOLUTION = 1e-6
"""A difference on one text of less than this times max(1, |a|, |b|) is none: two runs in float32 tell no finer apart."""


RANK_RESAMPLES = 200


def align(runs: Sequence[Run]) -> list[Run]:
    """The runs on the measures that all of them have.

    Raises:
        InputError: fewer than two runs, names that repeat, no common measure, another grid of heads, other examples, or an example
            whose tokens differ; the message says where.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} model to compare ({', '.join(r.name for r in runs) or 'none'}); name at least two")
    first = runs[0]
    names = [r.name for r in runs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"two runs are of a model called {repeated[0]!r}; measure one of them again with --name")
    for run in runs[1:]:
        mine, theirs = (first.values.layers, first.values.n_heads), (run.values.layers, run.values.n_heads)
        if mine != theirs:
            raise InputError(
                f"{run.name} has {len(theirs[0])} layers of {theirs[1]} heads, {first.name} {len(mine[0])} of {mine[1]}: their heads are "
                "not the same; --match finds heads that do alike"
            )
    examples = [e for e in first.values.examples if all(e in set(r.values.examples) for r in runs)]
    for run in runs[1:]:
        alone = sorted(set(run.values.examples) ^ set(first.values.examples))
        if examples and alone:
            has, lacks = (run, first) if alone[0] in run.values.examples else (first, run)
            raise InputError(
                f"{first.name} has {len(first.values.examples)} examples, {run.name} {len(run.values.examples)}: example {alone[0]} is in "
                f"{has.name} and not in {lacks.name}; measure both on the same problems (--problems, --limit)"
            )
    measures = [m for m in first.values.measures if all(m in r.values.measures for r in runs)]
    if not examples:
        raise InputError(f"no example is common to {', '.join(names)}: they were measured on other problems")
    if not measures:
        raise InputError(f"no measure is common to {', '.join(names)}; measure them again with the same --measures")
    reference = _tokens(first, examples)
    for run in runs[1:]:
        _same_tokens(first.name, reference, run.name, _tokens(run, examples))
    return [replace(r, values=_restricted(r.values, examples, measures)) for r in runs]


def _tokens(run: Run, examples: Sequence[int]) -> pd.DataFrame:
    rows = run.inputs[run.inputs["example"].isin(list(examples))]
    rows = rows.sort_values(["example", "position"], kind="stable").reset_index(drop=True)
    return rows.assign(region=rows["region"].astype(str))


def _same_tokens(name: str, one: pd.DataFrame, other_name: str, other: pd.DataFrame) -> None:
    n = min(len(one), len(other))
    columns = ["example", "position", "token_id", "region", "is_query"]
    differs = (one.loc[: n - 1, columns].to_numpy() != other.loc[: n - 1, columns].to_numpy()).any(1)
    if not differs.any() and len(one) == len(other):
        return
    at = int(differs.argmax()) if differs.any() else n
    seen = [frame.iloc[at] if at < len(frame) else None for frame in (one, other)]
    place = next(row for row in seen if row is not None)
    said = [f"{row['token']!r} ({row['region']})" if row is not None else "nothing more" for row in seen]
    raise InputError(
        f"{name} and {other_name} did not read the same tokens: example {place['example']}, position {place['position']}: {said[0]} "
        f"against {said[1]}. Measure both on the same problems with --text gold and the same chat template; --match compares models of "
        "different tokenizers"
    )


def _restricted(values: HeadValues, examples: Sequence[int], measures: Sequence[str]) -> HeadValues:
    if tuple(examples) == values.examples and tuple(measures) == values.measures:
        return values
    rows, columns = [values.examples.index(e) for e in examples], [values.measures.index(m) for m in measures]
    return replace(values, examples=tuple(examples), measures=tuple(measures), values=values.values[rows][:, :, :, columns])


def differences(base: HeadValues, other: HeadValues) -> np.ndarray:
    """Other less base on each text, [example, layer, head, measure, region]; what is below `RESOLUTION` is 0."""
    difference = other.values - base.values
    size = np.maximum(1.0, np.maximum(np.abs(base.values), np.abs(other.values)))
    return np.where(np.abs(difference) < RESOLUTION * size, 0.0, difference)


def shifts_table(base: Run, other: Run, *, seed: int = 0) -> pd.DataFrame:
    """Rows of `SHIFTS` for one model against its baseline.

    Args:
        base: aligned with `other`.
        other: the model.
        seed: of the bootstrap.
    """
    d = differences(base.values, other.values)
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


def conditions_table(bases: Sequence[Run], others: Sequence[Run], *, seed: int = 0) -> pd.DataFrame:
    """Rows of `CONDITIONS` for the students of one condition against the baseline's.

    Students are paired by seed where both conditions have the same seeds; a baseline of one student, such as the untouched one, is
    compared with every seed. Seeds are never pooled as if they were more examples: with two or more, interval and p come from
    `interp.inference.crossed_test`; with one, from the bootstrap and the t test over examples, and speak of this student alone.

    Args:
        bases: runs of the baseline's students, aligned with `others`.
        others: runs of the condition's.
        seed: of the bootstrap.

    Raises:
        InputError: both have several seeds, and none in common.
    """
    pairs = _pairs(bases, others)
    d = np.stack([differences(one.values, two.values) for one, two in pairs])
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


def _pairs(bases: Sequence[Run], others: Sequence[Run]) -> list[tuple[Run, Run]]:
    if len(bases) == 1:
        return [(bases[0], other) for other in others]
    known = {base.seed: base for base in bases}
    pairs = [(known[other.seed], other) for other in others if other.seed in known]
    if not pairs:
        if len(others) == 1:
            return [(base, others[0]) for base in bases]
        raise InputError(
            f"{bases[0].condition} has the seeds {[b.seed for b in bases]}, {others[0].condition} {[o.seed for o in others]}: "
            "they share none"
        )
    return pairs


def _crossed(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`crossed_test` for each quantity on the examples where it is defined for every seed."""
    defined = np.asarray(np.isfinite(flat).all(0))
    low, high, p = (np.full(flat.shape[2], np.nan) for _ in range(3))
    whole = defined.all(0)
    low[whole], high[whole], p[whole] = crossed_test(flat[:, :, whole])
    for at in np.flatnonzero(~whole & (defined.sum(0) > 1)):
        low[at], high[at], p[at] = crossed_test(flat[:, defined[:, at], at])
    return low, high, p


def layers_table(base: Run, other: Run, *, seed: int = 0) -> pd.DataFrame:
    """Rows of `LAYERS` for one model against its baseline (itself: all differences are 0)."""
    d = differences(base.values, other.values)
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


def ranks_table(run: Run, *, seed: int = 0, n_resamples: int = RANK_RESAMPLES) -> pd.DataFrame:
    """Rows of `RANKS` for one model."""
    values = run.values.values
    drawn = _ranks(_resampled(values, seed, n_resamples), values.shape[1:])
    frame = _heads_index(run.values)
    frame.insert(0, "model", run.name)
    frame["rank"] = _ranks(_mean_of(values)[None], values.shape[1:])[0].ravel()
    frame["rank_low"], frame["rank_high"] = np.quantile(drawn.reshape(n_resamples, -1), [0.025, 0.975], axis=0)
    return frame


def agreement_table(runs: Sequence[Run], *, seed: int = 0, n_resamples: int = RANK_RESAMPLES) -> pd.DataFrame:
    """Rows of `AGREEMENT` for every pair of models. The interval resamples the examples, the same for both."""
    shape = runs[0].values.values.shape[1:]
    wholes = [_centred(_ranks(_mean_of(r.values.values)[None], shape)) for r in runs]
    drawn = [_centred(_ranks(_resampled(r.values.values, seed, n_resamples), shape)) for r in runs]
    rows = []
    for at, one in enumerate(runs):
        for to in range(at + 1, len(runs)):
            rho = _correlation(wholes[at], wholes[to])[0]
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


def accuracy_table(base: HeadValues, students: Sequence[HeadValues], accuracy: Sequence[float], *, seed: int = 0) -> pd.DataFrame:
    """Rows of `ACCURACY`: does a head's shift go with accuracy, over students?

    p is a permutation test's, two-sided, over all orders of up to 7 students and 10,000 random ones of more; the observed order counts.
    Students of one condition resemble each other, so p is too small where seeds of few conditions make the number.

    Args:
        base: aligned with every student.
        students: at least two, the baseline not among them.
        accuracy: of each.
        seed: of the permutations.

    Raises:
        InputError: fewer than two students.
    """
    n = len(students)
    if n < 2:
        raise InputError(f"{n} student with a known accuracy; at least two are needed to go with it")
    shifts = np.stack([_mean_of(differences(base, s)) for s in students])
    flat = shifts.reshape(n, -1)
    x = _unit(stats.rankdata(flat, axis=0))
    y = _unit(stats.rankdata(np.asarray(accuracy, float))[:, None])[:, 0]
    rho = np.where(np.isfinite(flat).all(0), y @ x, np.nan)
    p = np.full(flat.shape[1], np.nan)
    if n >= FEWEST_STUDENTS:
        orders = _orders(n, seed)
        for at in range(0, flat.shape[1], 4096):
            cut = slice(at, at + 4096)
            p[cut] = (np.abs(y[orders] @ x[:, cut]) >= np.abs(rho[cut]) - 1e-12).mean(0)
        p = np.where(np.isfinite(rho), p, np.nan)
    frame = _heads_index(base)
    frame["spearman"], frame["p"], frame["q"] = rho, p, _q_over_heads(p, shifts.shape[1:])
    frame["n_students"] = n
    return frame


def divergences_table(examples: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Rows of `DIVERGENCES`: mean over examples with a bootstrap interval.

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


def top_heads(shifts: pd.DataFrame, count: int = 10, region: str = "response") -> pd.DataFrame:
    """The heads that moved most of each model and measure: by the size of the effect, among those with the smallest q first."""
    rows = shifts[(shifts["region"] == region) & shifts["effect"].notna()]
    rows = rows.assign(size=-rows["effect"].abs()).sort_values(["model", "measure", "size", "layer", "head"], kind="stable")
    return rows.groupby(["model", "measure"], observed=True, sort=False).head(count).drop(columns="size").reset_index(drop=True)


# --- arrays ---------------------------------------------------------------------------------------------------------


def _heads_index(values: HeadValues) -> pd.DataFrame:
    axes = [values.layers, range(values.n_heads), values.measures, REGIONS]
    return pd.MultiIndex.from_product(axes, names=list(HEAD_KEY)).to_frame(index=False)


def _q_over_heads(p: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Benjamini-Hochberg over all layers and heads of each measure and region."""
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
    """Means of bootstrap resamples of the examples, [resample, ...]; the same resamples for every model."""
    n = len(values)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples).astype(float)
    flat = values.reshape(n, -1)
    counted = np.isfinite(flat)
    totals = weights @ np.where(counted, flat, 0.0)
    with np.errstate(invalid="ignore"):
        return (totals / (n if counted.all() else weights @ counted)).reshape(n_resamples, *values.shape[1:])


def _ranks(means: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Ranks over all heads of each measure and region, 1 the largest, NaN where undefined: [resample, layer, head, measure, region]."""
    flat = means.reshape(len(means), shape[0] * shape[1], -1)
    return stats.rankdata(-flat, axis=1, nan_policy="omit").reshape(len(means), *shape)


def _centred(ranks: np.ndarray) -> np.ndarray:
    """[resample, head, measure, region] of mean 0 and length 1 over heads; NaN where a head is undefined or all are equal."""
    flat = ranks.reshape(len(ranks), ranks.shape[1] * ranks.shape[2], *ranks.shape[3:])
    centred = flat - flat.mean(1, keepdims=True)
    length = np.sqrt((centred**2).sum(1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(length > 0, centred / length, np.nan)


def _correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1)


def _unit(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return centred / np.sqrt((centred**2).sum(0))


def _orders(n: int, seed: int) -> np.ndarray:
    """Orders of n things, [order, n], the given one first."""
    from itertools import permutations

    if factorial(n) <= factorial(7):
        return np.array(list(permutations(range(n))))
    random = np.random.default_rng(seed)
    return np.concatenate([np.arange(n)[None], random.permuted(np.tile(np.arange(n), (9_999, 1)), axis=1)])


def by_condition(runs: Sequence[Run]) -> Mapping[str, list[Run]]:
    """The runs of each condition, in order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.condition, []).append(run)
    return groups
