# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Intervals and tests for many quantities at once: bootstrap, paired t, crossed seeds and examples, false-discovery rates.

The module uses numpy and scipy without torch, because comparisons read tables only.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

N_RESAMPLES = 2000
"""Number of bootstrap samples of an interval."""


def bootstrap_interval(
    values: np.ndarray, seed: int, n_resamples: int = N_RESAMPLES, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return means over examples with percentile bootstrap intervals (Efron 1979).

    All quantities share the resamples, so the difference of two quantities can be resampled in the same way.

    Args:
        values: [example, quantity]; NaN if an example has no value. Such examples are left out of the mean and of the resamples.
        seed: seed of the resamples.
        n_resamples: number of resamples.
        level: coverage of the interval.

    Returns:
        Mean, low and high, each [quantity]. The interval is NaN with fewer than two examples.
    """
    n_examples, n_quantities = values.shape
    defined = np.isfinite(values)
    filled = np.where(defined, values, 0.0)
    n_defined = defined.sum(0)
    with np.errstate(invalid="ignore"):
        mean = filled.sum(0) / n_defined
    draws = np.random.default_rng(seed).multinomial(n_examples, np.full(n_examples, 1 / n_examples), n_resamples)
    weights = draws.astype(np.float64)
    low, high = np.full(n_quantities, np.nan), np.full(n_quantities, np.nan)
    tails = [(1 - level) / 2, (1 + level) / 2]
    for at in range(0, n_quantities, 1024):
        chosen = np.flatnonzero(n_defined[at : at + 1024] > 1) + at
        if len(chosen) == 0:
            continue
        totals = weights @ filled[:, chosen]
        if defined[:, chosen].all():
            means = totals / n_examples
        else:
            sizes = weights @ defined[:, chosen]
            with np.errstate(invalid="ignore"):
                means = totals / sizes  # NaN for a resample without any defined example, left out below
        if np.isnan(means).any():
            low[chosen], high[chosen] = np.nanquantile(means, tails, axis=0)
        else:
            low[chosen], high[chosen] = np.quantile(means, tails, axis=0)
    return mean, low, high


def paired_t(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two-sided p values of paired t tests, and effect sizes d_z = mean / standard deviation (ddof 1; Cohen 1988).

    Args:
        differences: [example, quantity], NaN if an example has no value.

    Returns:
        p and effect, each [quantity]. If all differences are 0, p is 1 and the effect 0. If all are equal to another number, p is 0 and the
        effect infinite. With fewer than two examples both are NaN.
    """
    defined = np.isfinite(differences)
    n = defined.sum(0)
    filled = np.where(defined, differences, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(0) / n
        sd = np.sqrt((np.where(defined, differences - mean, 0.0) ** 2).sum(0) / (n - 1))
        sd = np.where(sd <= 1e-12 * np.abs(mean), 0.0, sd)  # equal numbers, up to rounding
        effect = np.where(mean == 0, 0.0, mean / sd)
        p = np.where(mean == 0, 1.0, 2 * stats.t.sf(np.abs(effect) * np.sqrt(n), n - 1))
    few = n < 2
    return np.where(few, np.nan, p), np.where(few, np.nan, effect)


def new_observation(value: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
    """Test whether a new observation comes from the same normal distribution as earlier ones.

    t = (value - mean) / (sd sqrt(1 + 1 / n)) with n - 1 degrees of freedom. This is the test behind the prediction interval of a normal
    sample (Hahn and Meeker 1991); with few observations it depends on normality.

    Args:
        value: [quantity], NaN if there is none.
        others: earlier observations, [example, quantity], NaN if an example has no value.

    Returns:
        mean, sd (ddof 1), n_examples, t and two-sided p, each [quantity]. With fewer than two observations sd, t and p are NaN. If all
        observations are equal, an equal value has t = 0 and p = 1, and any other value has infinite t and p = 0.
    """
    defined = np.isfinite(others)
    n = defined.sum(0)
    filled = np.where(defined, others, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(n > 0, filled.sum(0) / n, np.nan)
        sd = np.sqrt(np.where(n > 1, (np.where(defined, others - mean, 0.0) ** 2).sum(0) / (n - 1), np.nan))
        sd = np.where(sd <= 1e-12 * np.abs(mean), 0.0, sd)  # equal numbers, up to rounding
        off = np.where(np.abs(value - mean) <= 1e-12 * np.abs(mean), 0.0, value - mean)
        t = np.where(off == 0, 0.0, off / (sd * np.sqrt(1 + 1 / n)))
        t = np.where(np.isnan(sd), np.nan, t)
        p = 2 * stats.t.sf(np.abs(t), n - 1)
    return {"mean": mean, "sd": sd, "n_examples": n, "t": t, "p": p}


def crossed_test(differences: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return interval and two-sided p of a mean over seeds and examples, both random: a t test for a crossed design.

    With mean squares of seeds, examples and the rest, the variance of the mean is (MS_seed + MS_example - MS_rest) / (seeds * examples),
    with Satterthwaite's degrees of freedom (the quasi-F of Winer 1971; Clark 1973, "The language-as-fixed-effect fallacy"). With few seeds,
    MS_seed may be small by chance, and the quasi-F then rejects too often (LOG.md has the simulation). Therefore the plain t tests over the
    means of seeds and over the means of examples are computed too, and the widest of the three intervals and the largest p are returned.
    Two seeds are rarely enough for a significant result; three or more can be.

    Args:
        differences: [seed, example, ...], at least two of each.
        level: coverage of the interval.

    Returns:
        Low, high and p, each [...]. If nothing varies, the interval is NaN, and p is 1 for a mean of 0 and otherwise NaN. NaN stays NaN.
    """
    d = np.asarray(differences, float)
    seeds, examples = d.shape[:2]
    mean, by_seed, by_example = d.mean((0, 1)), d.mean(1), d.mean(0)
    rest = d - by_seed[:, None] - by_example[None] + mean
    squares = np.stack(
        [examples * by_seed.var(0, ddof=1), seeds * by_example.var(0, ddof=1), (rest**2).sum((0, 1)) / ((seeds - 1) * (examples - 1))]
    )
    freedom = np.array([seeds - 1, examples - 1, (seeds - 1) * (examples - 1)]).reshape(3, *[1] * (d.ndim - 2))
    crossed = squares[0] + squares[1] - squares[2]
    crossed = np.where(crossed >= squares[:2].max(0), crossed, 0.0)  # below that, one of the two plain tests is wider
    with np.errstate(invalid="ignore", divide="ignore"):
        satterthwaite = np.where(crossed > 0, crossed**2 / (squares**2 / freedom).sum(0), 1.0)
        df = np.stack([satterthwaite, *(np.broadcast_to(freedom[at], mean.shape) for at in (0, 1))])
        variance = np.stack([crossed, squares[0], squares[1]])
        variance = np.where(variance <= 1e-24 * mean**2 * seeds * examples, 0.0, variance)  # rounding
        error = np.sqrt(variance / (seeds * examples))
        margin = (stats.t.ppf((1 + level) / 2, df) * error).max(0)
        p = np.where(error > 0, 2 * stats.t.sf(np.abs(mean) / error, df), 0.0).max(0)
    constant = (variance == 0).all(0)
    p = np.where(constant, np.where(mean == 0, 1.0, np.nan), np.where(np.isnan(mean), np.nan, p))
    return np.where(constant, np.nan, mean - margin), np.where(constant, np.nan, mean + margin), p


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Return q values: the smallest false-discovery rate at which each test is significant (Benjamini and Hochberg 1995).

    Args:
        p: p values of one family of tests, any shape; NaN is not counted and stays NaN.
    """
    q = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known], method="bh")
    return q
