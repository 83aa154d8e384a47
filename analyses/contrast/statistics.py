# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Statistical tests of right against wrong answers for many heads at once: arrays and tables in, tables out. Needs no torch.

One model: the mean over its right answers minus the mean over its wrong ones. The two kinds are answers to different problems, so a head
that differs may reflect how hard or how long a problem is, and not the model. Several models on the same problems: a two-way model with an
effect for every model and every problem, so that neither a better model nor an easier problem is mistaken for the difference. Neither test
removes the effect of an answer's length.

Attention is causal, so values of the region "question" do not depend on the answer: within one model they differ by problem alone.

The false-discovery rate is controlled over families of all heads (of every layer) for one measure and region, separately for each model
and for all models together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from scipy import stats

from interp.inference import N_RESAMPLES, benjamini_hochberg
from interp.tables.contrast import PAIRED
from interp.tables.errors import InputError
from interp.tables.heads import HeadValues
from interp.tables.schema import REGIONS

FEWEST_ANSWERS = 3
"""Smallest number of right answers, of wrong answers, and (for several models) of problems with both, that a test needs."""

_RESOLUTION = 1e-6
"""Values that differ by less than this times max(1, the largest) count as equal: float32 resolves no smaller differences."""

_LEVEL = 0.95
"""Level of the intervals."""

_TAILS = ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2)
"""Quantiles at the ends of an interval."""

_AT_ONCE = 512
"""Quantities resampled at a time: 8 MB for a table of 2,000 resamples."""


@dataclass(frozen=True)
class GroupDifferences:
    """Right minus wrong answers for many quantities; each array is [quantity].

    Attributes:
        right_mean: mean over right answers; for several models, over problems with both kinds, where each problem counts once.
        wrong_mean: the same over wrong answers.
        difference: right minus wrong, as the model of the test estimates it.
        ci_low: lower end of its 95 % interval.
        ci_high: upper end of its 95 % interval.
        effect: difference divided by a standard deviation.
        p: two-sided p value.
        n_right: number of right answers with a value.
        n_wrong: number of wrong answers with a value.
        n_problems: number of problems behind the difference.
    """

    right_mean: np.ndarray
    wrong_mean: np.ndarray
    difference: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray
    effect: np.ndarray
    p: np.ndarray
    n_right: np.ndarray
    n_wrong: np.ndarray
    n_problems: np.ndarray


def contrast_table(runs: Sequence[HeadValues], right: np.ndarray, *, seed: int = 0) -> pd.DataFrame:
    """Return the `CONTRAST` table: rows for each model, and for all together if there are several with the same grid of heads.

    Args:
        runs: the values of each model, on the same examples and measures.
        right: whether each model's answer to each example is right, [model, example].
        seed: seed of the bootstrap.

    Raises:
        InputError: the models have different examples or measures, the shapes do not match, or nothing has `FEWEST_ANSWERS` right and
            wrong answers.
    """
    right = np.asarray(right, bool)
    first = runs[0]
    for run in runs[1:]:
        for what in ("examples", "measures"):
            if getattr(run, what) != getattr(first, what):
                raise InputError(
                    f"{run.model} and {first.model} have different {what}; measure both on the same problems with the same --measures"
                )
    if right.shape != (len(runs), len(first.examples)):
        raise InputError(f"verdicts have shape {right.shape}, expected ({len(runs)}, {len(first.examples)}): models by examples")
    enough = [min(one.sum(), (~one).sum()) >= FEWEST_ANSWERS for one in right]
    both = np.asarray(right.any(0) & ~right.all(0))
    several = same_heads(runs) and len(runs) > 1
    if not any(enough) and not (several and _enough(right, both)):
        counts = "; ".join(f"{run.model}: {one.sum()} right, {(~one).sum()} wrong" for run, one in zip(runs, right, strict=True))
        shared = f"; problems that some solve and some do not: {both.sum()}" if several else ""
        raise InputError(
            f"too few answers of one kind ({counts}{shared}): at least {FEWEST_ANSWERS} right and {FEWEST_ANSWERS} wrong ones are needed"
        )
    frames = [
        _rows(run.model, run, two_groups(run.values.reshape(len(run.examples), -1), one, seed))
        for run, one in zip(runs, right, strict=True)
    ]
    if several:
        stacked = np.stack([run.values.reshape(len(run.examples), -1) for run in runs])
        frames.append(_rows(PAIRED, first, two_way(stacked, right, seed)))
    return pd.concat(frames, ignore_index=True)


def same_heads(runs: Sequence[HeadValues]) -> bool:
    """Return whether all models have the same layers and numbers of heads."""
    return len({(run.layers, run.n_heads) for run in runs}) == 1


def lengths_table(names: Sequence[str], lengths: np.ndarray, right: np.ndarray, *, seed: int = 0) -> pd.DataFrame:
    """Return the lengths of right and wrong answers under the same tests: one row per model, and one for all if there are several.

    Args:
        names: names of the models.
        lengths: number of tokens of each answer, [model, example].
        right: whether each answer is right, [model, example].
        seed: seed of the bootstrap.

    Returns:
        Columns: model, and the fields of `GroupDifferences`.
    """
    lengths, right = np.asarray(lengths, float), np.asarray(right, bool)
    done = [(name, two_groups(one[:, None], verdicts, seed)) for name, one, verdicts in zip(names, lengths, right, strict=True)]
    if len(names) > 1:
        done.append((PAIRED, two_way(lengths[:, :, None], right, seed)))
    return pd.DataFrame([{"model": name, **{f.name: getattr(each, f.name)[0] for f in fields(each)}} for name, each in done])


def top_rows(contrast: pd.DataFrame, model: str, region: str, count: int = 10) -> pd.DataFrame:
    """Return the heads of a model with the smallest q, then p, over all measures of a region; heads without a test are left out."""
    rows = contrast[(contrast["model"] == model) & (contrast["region"] == region) & contrast["p"].notna()]
    return rows.sort_values(["q", "p", "measure", "layer", "head"], kind="stable").head(count).reset_index(drop=True)


def _rows(name: str, values: HeadValues, done: GroupDifferences) -> pd.DataFrame:
    axes = [values.layers, range(values.n_heads), values.measures, REGIONS]
    frame = pd.MultiIndex.from_product(axes, names=["layer", "head", "measure", "region"]).to_frame(index=False)
    frame.insert(0, "model", name)
    for field in fields(done):
        frame[field.name] = getattr(done, field.name)
    families = done.p.reshape(len(values.layers) * values.n_heads, -1)
    frame["q"] = np.stack([benjamini_hochberg(family) for family in families.T], 1).ravel()
    return frame


def _enough(right: np.ndarray, both: np.ndarray) -> bool:
    return bool(both.sum() >= FEWEST_ANSWERS and right[:, both].sum() >= FEWEST_ANSWERS and (~right[:, both]).sum() >= FEWEST_ANSWERS)


def two_groups(values: np.ndarray, right: np.ndarray, seed: int, n_resamples: int = N_RESAMPLES) -> GroupDifferences:
    """Return right minus wrong answers of one model for many quantities: Welch's t test (1947; scipy) and Hedges' g (1981).

    g = (right - wrong mean) / pooled standard deviation * (1 - 3 / (4 (n_right + n_wrong - 2) - 1)).

    The interval is the wider one at each end: the percentile bootstrap's (right answers are resampled among the right ones, wrong ones
    among the wrong ones) or Welch's. The bootstrap alone is too narrow if there are few answers of a kind: in 4,000 draws of normal values
    its interval contained 0 in 79 % (3 right, 20 wrong) to 94 % (30 and 36).

    With no true difference, p < 0.05 in 4 to 6 % of normal values (3 and 3: 3 %; 3 and 20: 7.5 %). For skewed values (exponential, beta),
    p < 0.05 in 2 to 4 % with equal numbers of both kinds, in 8 to 9 % with 10 and 56, and in 12 to 14 % with 3 and 20 or 5 and 60. With
    fewer than ten answers of one kind among many of the other, treat p as exploratory.

    Args:
        values: [answer, quantity]; an answer without a value (NaN) is left out of that quantity alone.
        right: whether an answer is right, [answer].
        seed: seed of the bootstrap.
        n_resamples: number of bootstrap resamples.

    Returns:
        As `GroupDifferences`. With fewer than `FEWEST_ANSWERS` right or wrong answers, everything but the counts and means is NaN. If
        neither kind varies, the interval is NaN, and p is 1 and the effect 0 for a difference of 0, else NaN.
    """
    right = np.asarray(right, bool)
    values = _without_rounding_noise(values)
    groups = (values[right], values[~right])
    (n1, m1, s1), (n0, m0, s0) = (_moments(group) for group in groups)
    enough = np.minimum(n1, n0) >= FEWEST_ANSWERS
    difference = np.where(enough, m1 - m0, np.nan)
    size = np.maximum(np.abs(m1), np.abs(m0))
    constant = (np.maximum(s1, s0) <= 1e-12 * size) | ((s1 == 0) & (s0 == 0))  # a sum of equal numbers leaves a rounding error
    tested = enough & ~constant
    p, effect, reach = _welch((n1, m1, s1), (n0, m0, s0), tested)
    equal = enough & constant & (np.abs(difference) <= 1e-12 * size)
    p, effect = np.where(equal, 1.0, p), np.where(equal, 0.0, effect)
    low, high = _resampled_interval(groups, tested, seed, n_resamples)
    low, high = np.fmin(low, difference - reach), np.fmax(high, difference + reach)
    return GroupDifferences(m1, m0, difference, low, high, effect, p, n1, n0, n1 + n0)


_Moments = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Number, mean and standard deviation (ddof 1), each [quantity]."""


def _welch(right: _Moments, wrong: _Moments, tested: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return Welch's p, Hedges' g and half the width of Welch's interval, each [quantity]; NaN where `tested` is False."""
    (n1, m1, s1), (n0, m0, s0) = right, wrong
    p = np.full(len(n1), np.nan)
    if tested.any():
        found = stats.ttest_ind_from_stats(m1[tested], s1[tested], n1[tested], m0[tested], s0[tested], n0[tested], equal_var=False)
        p[tested] = found.pvalue
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(s1**2 / n1 + s0**2 / n0)
        df = error**4 / ((s1**2 / n1) ** 2 / (n1 - 1) + (s0**2 / n0) ** 2 / (n0 - 1))
        pooled = np.sqrt(((n1 - 1) * s1**2 + (n0 - 1) * s0**2) / (n1 + n0 - 2))
        effect = np.where(tested, (m1 - m0) / pooled * (1 - 3 / (4 * (n1 + n0 - 2) - 1)), np.nan)
        reach = np.where(tested, stats.t.ppf(_TAILS[1], df) * error, np.nan)
    return p, effect, reach


def _resampled_interval(
    groups: tuple[np.ndarray, np.ndarray], tested: np.ndarray, seed: int, n_resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile bootstrap interval of the difference of two groups' means, each end [quantity]; NaN where not tested."""
    low, high = np.full(len(tested), np.nan), np.full(len(tested), np.nan)
    random = np.random.default_rng(seed)
    draws = [random.multinomial(len(g), np.full(len(g), 1 / len(g)), n_resamples).astype(float) for g in groups if len(g)]
    for chosen in _pieces(np.flatnonzero(tested)):
        means = [_means(weights, group[:, chosen]) for weights, group in zip(draws, groups, strict=True)]
        low[chosen], high[chosen] = _quantiles(means[0] - means[1])
    return low, high


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return number, mean and standard deviation (ddof 1) of the answers that have a value."""
    defined = np.isfinite(values)
    n = defined.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(defined, values, 0.0).sum(0) / n
        sd = np.sqrt(np.where(defined, (values - mean) ** 2, 0.0).sum(0) / (n - 1))
    return n, mean, np.where(n > 1, sd, np.nan)


def _without_rounding_noise(values: np.ndarray) -> np.ndarray:
    """Return the values, with a constant for each quantity whose values differ by less than `_RESOLUTION`."""
    flat = values.reshape(-1, values.shape[-1])
    defined = np.isfinite(flat)
    high, low = np.where(defined, flat, -np.inf).max(0), np.where(defined, flat, np.inf).min(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        constant = high - low < _RESOLUTION * np.maximum(1.0, np.maximum(np.abs(high), np.abs(low)))
        middle = (high + low) / 2
    return np.where(np.isfinite(values) & constant, middle, values) if constant.any() else values


def _means(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the means of resamples, [resample, quantity]; NaN if a resample has no value."""
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return (weights @ np.where(defined, values, 0.0)) / (weights @ defined if not defined.all() else weights.sum(1)[:, None])


def _pieces(chosen: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the chosen quantities, `_AT_ONCE` at a time."""
    for at in range(0, len(chosen), _AT_ONCE):
        yield chosen[at : at + _AT_ONCE]


def _quantiles(drawn: np.ndarray) -> np.ndarray:
    """Return the ends of the percentile interval over resamples, [2, quantity]; undefined resamples (NaN) are left out."""
    return (np.nanquantile if np.isnan(drawn).any() else np.quantile)(drawn, _TAILS, axis=0)


def two_way(values: np.ndarray, right: np.ndarray, seed: int, n_resamples: int = N_RESAMPLES) -> GroupDifferences:
    """Return right minus wrong answers of several models on the same problems, for many quantities.

    value[m, i] = model_m + problem_i + difference * right[m, i] + residual[m, i], by least squares over all answers that have a value.

    The effect of a problem absorbs what all answers to it have in common, and the effect of a model what all of its answers have in common.
    So the difference is estimated from problems that some models solve and others do not. Problems that all models solve, or none, are
    kept: they show how the models differ when correctness does not. Without them, two models of which one is always the right one could
    not be separated from their answers. The model assumes that two models differ by as much on easy problems as on hard ones.

    The variance is clustered by problem with a bias correction (CR2), and t has Bell and McCaffrey's degrees of freedom (2002; Imbens and
    Kolesar 2016), which are few if few problems, or a few of them, determine the result. With no true difference beyond models and problems
    (2, 3 and 5 models, 10, 20 and 66 problems, accuracies of 0.1 to 0.6; normal, skewed and unequal spreads), p < 0.05 in 2.8 to 5.3 %. The
    uncorrected form (CR1, problems minus one) gave 4.4 to 14.3 % with 10 and 20 problems, of which 4 to 15 had both kinds; with every
    problem's effect counted as a parameter, as in a regression on dummies, it gave 0.5 to 6.5 %.

    The interval is the wider one at each end: the percentile bootstrap's over problems, or the t test's.

    Args:
        values: [model, problem, quantity]; an answer without a value (NaN) is left out of that quantity alone.
        right: whether an answer is right, [model, problem].
        seed: seed of the bootstrap.
        n_resamples: number of bootstrap resamples.

    Returns:
        As `GroupDifferences`. effect is the difference divided by the standard deviation of the residuals, and n_problems the number of
        problems with both right and wrong answers. Everything but the counts and means is NaN if there are fewer than `FEWEST_ANSWERS`
        such problems, or right or wrong answers to them; if being right cannot be separated from the models' own effects; or if a single
        problem determines the result. If the residuals do not vary, the interval is NaN, and p is 1 and the effect 0 for a difference of
        0, else NaN.
    """
    right = np.asarray(right, bool)
    values = _without_rounding_noise(values)
    n_models, n_problems, n_quantities = values.shape
    numbers = {field.name: np.full(n_quantities, np.nan) for field in fields(GroupDifferences)}
    draws = np.random.default_rng(seed).multinomial(n_problems, np.full(n_problems, 1 / n_problems), n_resamples).astype(float)
    packed = np.packbits(np.isfinite(values).reshape(n_models * n_problems, -1), axis=0)
    _, kinds = np.unique(packed, axis=1, return_inverse=True)
    order = np.argsort(kinds, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1)  # quantities that are defined for the same answers
    for members in groups:
        defined = np.isfinite(values[:, :, members[0]])
        design = _Design.of(defined, right)
        for chosen in _pieces(members):
            for name, found in _fit(design, values[:, :, chosen], draws).items():
                numbers[name][chosen] = found
    counts = {name: numbers[name].astype(int) for name in ("n_right", "n_wrong", "n_problems")}
    return GroupDifferences(**{**numbers, **counts})


@dataclass(frozen=True)
class _Design:
    """The regressors of `two_way` for quantities that are defined for the same answers.

    Attributes:
        defined: whether an answer has a value, [model, problem].
        right: whether an answer is right, [model, problem].
        both: whether a problem has right and wrong answers, [problem].
        x: right, and all but one model, each minus its mean over the problem's answers: [problem, model, column].
        inverse: (pseudo-)inverse of x'x, [column, column].
        freedom: degrees of freedom of the residuals.
        adjusted: CR2's weights of the residuals, [problem, model]; None if the difference cannot be estimated, or if a single problem
            determines it.
        df: degrees of freedom of t.
    """

    defined: np.ndarray
    right: np.ndarray
    both: np.ndarray
    x: np.ndarray
    inverse: np.ndarray
    freedom: int
    adjusted: np.ndarray | None
    df: float

    @classmethod
    def of(cls, defined: np.ndarray, right: np.ndarray) -> _Design:
        """Return the design for one pattern of defined values."""
        both = np.asarray((right & defined).any(0) & (~right & defined).any(0))
        present = np.flatnonzero(defined.any(1))
        columns = [right.astype(float), *((np.arange(len(defined)) == m)[:, None] * np.ones(defined.shape[1]) for m in present[1:])]
        answers = np.maximum(defined.sum(0), 1)
        x = np.stack([np.where(defined, c - (c * defined).sum(0) / answers, 0.0) for c in columns], -1).transpose(1, 0, 2)
        square = np.einsum("imk,iml->kl", x, x)
        inverse = np.linalg.pinv(square, rcond=1e-10, hermitian=True)
        rank = int(np.linalg.matrix_rank(square, hermitian=True, tol=1e-10 * max(1.0, float(np.abs(square).max()))))
        freedom = int(defined.sum() - defined.any(0).sum()) - rank
        untested = _Design(defined, right, both, x, inverse, freedom, None, float("nan"))
        with_values = right & defined
        few = not _enough_counts(int(with_values[:, both].sum()), int((defined & ~right)[:, both].sum()), int(both.sum()))
        if few or freedom < 1 or _partialled_out(square[None])[0][0] <= 1e-9 * square[0, 0]:
            return untested
        weights = x @ inverse[:, 0]  # the difference is the values, weighted by these
        residual_maker = np.eye(len(defined)) - np.einsum("imk,kl,inl->imn", x, inverse, x)
        size, axes = np.linalg.eigh(residual_maker)
        if size.min() < 1e-8:
            return untested
        adjusted = np.einsum("ima,ia,ina,in->im", axes, size**-0.5, axes, weights)
        # Bell and McCaffrey: with equal, independent residuals, the variance sum_i (adjusted_i' residual_i)^2 has the moments of a chi^2
        own, shared = (adjusted**2).sum(1), np.einsum("im,imk->ik", adjusted, x)
        crossed = shared @ inverse
        trace = own.sum() - (crossed * shared).sum()
        mixed = crossed.T @ shared
        squares = (own**2).sum() - 2 * (own * (crossed * shared).sum(1)).sum() + np.trace(mixed @ mixed)
        return _Design(defined, right, both, x, inverse, freedom, adjusted, float(trace**2 / squares))


def _enough_counts(n_right: int, n_wrong: int, n_problems: int) -> bool:
    return min(n_right, n_wrong, n_problems) >= FEWEST_ANSWERS


def _partialled_out(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of squares of the first column after regressing it on the others, and the weights of all columns in that residual.

    Args:
        square: x'x, [..., column, column].
    """
    others = np.linalg.pinv(square[:, 1:, 1:], rcond=1e-10, hermitian=True)
    slopes = np.einsum("bk,bkl->bl", square[:, 0, 1:], others)
    left = square[:, 0, 0] - np.einsum("bk,bk->b", slopes, square[:, 1:, 0])
    return left, np.concatenate([np.ones((len(square), 1)), -slopes], 1)


def _fit(design: _Design, values: np.ndarray, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Return the fields of `GroupDifferences` for quantities of one design.

    Args:
        design: the regressors.
        values: [model, problem, quantity].
        draws: how often each resample draws each problem, [resample, problem].
    """
    defined, both, x = design.defined, design.both, design.x
    y = np.where(defined[:, :, None], values, 0.0).transpose(1, 0, 2)
    found: dict[str, np.ndarray] = {}
    for name, kind in (("right", design.right & defined), ("wrong", ~design.right & defined)):
        on_both = kind[:, both].T
        found[f"n_{name}"] = np.full(y.shape[2], on_both.sum())
        of_problem = np.einsum("im,imq->iq", on_both, y[both]) / np.maximum(on_both.sum(1), 1)[:, None]
        found[f"{name}_mean"] = of_problem.mean(0) if both.any() else np.full(y.shape[2], np.nan)
    found["n_problems"] = np.full(y.shape[2], both.sum())
    if design.adjusted is None:
        return found
    per_problem = np.einsum("imk,imq->ikq", x, y)
    slopes = design.inverse @ per_problem.sum(0)
    centered = np.where(defined.T[:, :, None], y - y.sum(1, keepdims=True) / np.maximum(defined.sum(0), 1)[:, None, None], 0.0)
    residual = centered - x @ slopes
    difference = slopes[0]
    size = _RESOLUTION * np.maximum(1.0, np.abs(y).max((0, 1)))
    sd = np.sqrt((residual**2).sum((0, 1)) / design.freedom)
    constant = sd < size
    error = np.sqrt((np.einsum("im,imq->iq", design.adjusted, residual) ** 2).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = 2 * stats.t.sf(np.abs(difference) / error, design.df)
        effect = difference / sd
    equal = np.abs(difference) < size
    found["difference"] = np.where(constant & equal, 0.0, difference)
    found["p"] = np.where(constant, np.where(equal, 1.0, np.nan), p)
    found["effect"] = np.where(constant, np.where(equal, 0.0, np.nan), effect)
    reach = stats.t.ppf(_TAILS[1], design.df) * error
    left, weights = _partialled_out(np.tensordot(draws, np.einsum("imk,iml->ikl", x, x), 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = np.where((left > 1e-9 * x.shape[0])[:, None], weights / left[:, None], np.nan)
    drawn = sum(weights[:, k, None] * (draws @ per_problem[:, k]) for k in range(x.shape[2]))
    low, high = _quantiles(np.asarray(drawn))
    found["ci_low"] = np.where(constant, np.nan, np.fmin(low, difference - reach))
    found["ci_high"] = np.where(constant, np.nan, np.fmax(high, difference + reach))
    return found
