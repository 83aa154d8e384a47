# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Heads under right and wrong answers: arrays and tables in, tables out. Knows no torch.

One model: its right answers less its wrong ones. They are answers to different problems, so a head that differs may show how hard or how
long a problem is, and nothing of the model. Several models on the same problems: a two-way model with an effect of every model and every
problem, so that neither a better model nor an easier problem passes for the difference. Neither takes away the length of an answer.

Attention is causal, so values of the region "question" do not know the answer: within one model they differ by problem alone.

Families for the false-discovery rate are all heads (every layer) under one measure and region, of one model or of all models together.
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

FEWEST = 3
"""Right answers, wrong answers, and (of several models) problems with both, that a test needs at least."""


RESOLUTION = 1e-6
"""Values that differ by less than this times max(1, the largest) are all one: float32 tells no finer apart."""


LEVEL = 0.95


_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


_AT_ONCE = 512
"""Quantities resampled at a time: 8 MB a table of 2,000 resamples."""


@dataclass(frozen=True)
class Contrasted:
    """Right less wrong answers for many quantities, each array [quantity].

    Attributes:
        right_mean: mean over right answers; of several models, over problems with both, where each counts once.
        wrong_mean: likewise over wrong ones.
        difference: right less wrong, as the test's model estimates it.
        ci_low: lower end of its 95 % interval.
        ci_high: upper end.
        effect: difference by a standard deviation.
        p: two-sided.
        n_right: right answers with a value.
        n_wrong: wrong ones.
        n_problems: problems behind the difference.
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
    """Rows of `CONTRAST`: of each model, and of all together where there are several with the same grid of heads.

    Args:
        runs: one model's values each, on the same examples and measures.
        right: whether each model's answer to each example is right, [model, example].
        seed: of the bootstrap.

    Raises:
        InputError: other examples or measures, shapes that do not fit, or nothing with `FEWEST` right and wrong answers.
    """
    right = np.asarray(right, bool)
    first = runs[0]
    for run in runs[1:]:
        for what in ("examples", "measures"):
            if getattr(run, what) != getattr(first, what):
                raise InputError(f"{run.model} and {first.model} have other {what}: measure both on the same problems, with one --measures")
    if right.shape != (len(runs), len(first.examples)):
        raise InputError(f"verdicts of shape {right.shape} for {len(runs)} models on {len(first.examples)} examples")
    enough = [min(one.sum(), (~one).sum()) >= FEWEST for one in right]
    both = np.asarray(right.any(0) & ~right.all(0))
    several = same_heads(runs) and len(runs) > 1
    if not any(enough) and not (several and _enough(right, both)):
        counts = "; ".join(f"{run.model}: {one.sum()} right, {(~one).sum()} wrong" for run, one in zip(runs, right, strict=True))
        shared = f"; problems that some solve and some do not: {both.sum()}" if several else ""
        raise InputError(f"too few answers of one kind ({counts}{shared}): at least {FEWEST} right and {FEWEST} wrong ones are needed")
    frames = [
        _rows(run.model, run, two_groups(run.values.reshape(len(run.examples), -1), one, seed))
        for run, one in zip(runs, right, strict=True)
    ]
    if several:
        stacked = np.stack([run.values.reshape(len(run.examples), -1) for run in runs])
        frames.append(_rows(PAIRED, first, two_way(stacked, right, seed)))
    return pd.concat(frames, ignore_index=True)


def same_heads(runs: Sequence[HeadValues]) -> bool:
    """All models have the same layers and heads."""
    return len({(run.layers, run.n_heads) for run in runs}) == 1


def lengths_table(names: Sequence[str], lengths: np.ndarray, right: np.ndarray, *, seed: int = 0) -> pd.DataFrame:
    """Lengths of right and wrong answers under the same tests, a row a model, and one of all together where there are several.

    Args:
        names: of the models.
        lengths: of each answer, [model, example], in tokens.
        right: [model, example].
        seed: of the bootstrap.

    Returns:
        model and the columns of `Contrasted`.
    """
    lengths, right = np.asarray(lengths, float), np.asarray(right, bool)
    done = [(name, two_groups(one[:, None], verdicts, seed)) for name, one, verdicts in zip(names, lengths, right, strict=True)]
    if len(names) > 1:
        done.append((PAIRED, two_way(lengths[:, :, None], right, seed)))
    return pd.DataFrame([{"model": name, **{f.name: getattr(each, f.name)[0] for f in fields(each)}} for name, each in done])


def top_rows(contrast: pd.DataFrame, model: str, region: str, count: int = 10) -> pd.DataFrame:
    """The heads of a model with the smallest q, then p, over all measures of a region; those without a test are left out."""
    rows = contrast[(contrast["model"] == model) & (contrast["region"] == region) & contrast["p"].notna()]
    return rows.sort_values(["q", "p", "measure", "layer", "head"], kind="stable").head(count).reset_index(drop=True)


def _rows(name: str, values: HeadValues, done: Contrasted) -> pd.DataFrame:
    axes = [values.layers, range(values.n_heads), values.measures, REGIONS]
    frame = pd.MultiIndex.from_product(axes, names=["layer", "head", "measure", "region"]).to_frame(index=False)
    frame.insert(0, "model", name)
    for field in fields(done):
        frame[field.name] = getattr(done, field.name)
    families = done.p.reshape(len(values.layers) * values.n_heads, -1)
    frame["q"] = np.stack([benjamini_hochberg(family) for family in families.T], 1).ravel()
    return frame


def _enough(right: np.ndarray, both: np.ndarray) -> bool:
    return bool(both.sum() >= FEWEST and right[:, both].sum() >= FEWEST and (~right[:, both]).sum() >= FEWEST)


# --- one model ------------------------------------------------------------------------------------------------------


def two_groups(values: np.ndarray, right: np.ndarray, seed: int, n_resamples: int = N_RESAMPLES) -> Contrasted:
    """Right less wrong answers of one model, for many quantities: Welch's t test (1947; scipy) and Hedges' g (1981).

    g = (right - wrong mean) / pooled standard deviation * (1 - 3 / (4 (n_right + n_wrong - 2) - 1)).

    The interval reaches from the lower to the higher end of two: the percentile bootstrap's (right answers are drawn anew among the right,
    wrong ones among the wrong) and Welch's. The bootstrap alone is too narrow where answers of a kind are few: in 4,000 draws of normal
    values it held 0 in 79 % (3 right, 20 wrong) to 94 % (30 and 36).

    Where nothing differed, p < 0.05 came in 4 to 6 % of normal values (3 and 3: 3 %; 3 and 20: 7.5 %). Of skewed ones (exponential, beta)
    it came in 2 to 4 % with equal numbers of both kinds, in 8 to 9 % with 10 and 56, and in 12 to 14 % with 3 and 20 or 5 and 60: from
    fewer than ten answers of a kind among many of the other, take p for a hint.

    Args:
        values: [answer, quantity]; an answer without a value (NaN) is left out of that quantity alone.
        right: [answer].
        seed: of the bootstrap.
        n_resamples: of the bootstrap.

    Returns:
        As `Contrasted`. All but counts and means is NaN with fewer than `FEWEST` right or wrong answers. Where neither kind varies, the
        interval is NaN, and p is 1 and the effect 0 for a difference of 0, else NaN.
    """
    right = np.asarray(right, bool)
    values = _levelled(values)
    groups = [values[right], values[~right]]
    (n1, m1, s1), (n0, m0, s0) = (_moments(group) for group in groups)
    enough = np.minimum(n1, n0) >= FEWEST
    difference = np.where(enough, m1 - m0, np.nan)
    size = np.maximum(np.abs(m1), np.abs(m0))
    with np.errstate(invalid="ignore", divide="ignore"):
        flat = (np.maximum(s1, s0) <= 1e-12 * size) | ((s1 == 0) & (s0 == 0))  # what is left of equal numbers after rounding
        error = np.sqrt(s1**2 / n1 + s0**2 / n0)
        df = error**4 / ((s1**2 / n1) ** 2 / (n1 - 1) + (s0**2 / n0) ** 2 / (n0 - 1))
        known = enough & ~flat
        p = np.full(len(n1), np.nan)
        if known.any():
            tested = stats.ttest_ind_from_stats(m1[known], s1[known], n1[known], m0[known], s0[known], n0[known], equal_var=False)
            p[known] = tested.pvalue
        pooled = np.sqrt(((n1 - 1) * s1**2 + (n0 - 1) * s0**2) / (n1 + n0 - 2))
        effect = np.where(known, difference / pooled * (1 - 3 / (4 * (n1 + n0 - 2) - 1)), np.nan)
        reach = np.where(known, stats.t.ppf(_TAILS[1], df) * error, np.nan)
    none = enough & flat & (np.abs(difference) <= 1e-12 * size)
    p, effect = np.where(none, 1.0, p), np.where(none, 0.0, effect)
    low, high = np.full(len(n1), np.nan), np.full(len(n1), np.nan)
    random = np.random.default_rng(seed)
    draws = [random.multinomial(len(g), np.full(len(g), 1 / len(g)), n_resamples).astype(float) for g in groups if len(g)]
    for cut in _pieces(np.flatnonzero(known)):
        means = [_means(weights, group[:, cut]) for weights, group in zip(draws, groups, strict=True)]
        low[cut], high[cut] = _quantiles(means[0] - means[1])
    low, high = np.fmin(low, difference - reach), np.fmax(high, difference + reach)
    return Contrasted(m1, m0, difference, low, high, effect, p, n1, n0, n1 + n0)


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number, mean and standard deviation (ddof 1) of the answers that have a value."""
    defined = np.isfinite(values)
    n = defined.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(defined, values, 0.0).sum(0) / n
        sd = np.sqrt(np.where(defined, (values - mean) ** 2, 0.0).sum(0) / (n - 1))
    return n, mean, np.where(n > 1, sd, np.nan)


def _levelled(values: np.ndarray) -> np.ndarray:
    """The values, but for quantities whose answers differ by less than `RESOLUTION`: those are their mean everywhere."""
    flat = values.reshape(-1, values.shape[-1])
    defined = np.isfinite(flat)
    high, low = np.where(defined, flat, -np.inf).max(0), np.where(defined, flat, np.inf).min(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        still = high - low < RESOLUTION * np.maximum(1.0, np.maximum(np.abs(high), np.abs(low)))
        middle = (high + low) / 2
    return np.where(np.isfinite(values) & still, middle, values) if still.any() else values


def _means(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means of resamples, [resample, quantity]; NaN where a resample has no value."""
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return (weights @ np.where(defined, values, 0.0)) / (weights @ defined if not defined.all() else weights.sum(1)[:, None])


def _pieces(chosen: np.ndarray) -> Iterator[np.ndarray]:
    for at in range(0, len(chosen), _AT_ONCE):
        yield chosen[at : at + _AT_ONCE]


def _quantiles(drawn: np.ndarray) -> np.ndarray:
    """Ends of the percentile interval over resamples, [2, quantity]; resamples that say nothing (NaN) are left out."""
    return (np.nanquantile if np.isnan(drawn).any() else np.quantile)(drawn, _TAILS, axis=0)


# --- several models -------------------------------------------------------------------------------------------------


def two_way(values: np.ndarray, right: np.ndarray, seed: int, n_resamples: int = N_RESAMPLES) -> Contrasted:
    """Right less wrong answers of several models on the same problems, for many quantities.

    value[m, i] = model_m + problem_i + difference * right[m, i] + rest[m, i], by least squares over all answers that have a value.

    The effect of a problem takes away whatever is common to all answers to it, that of a model whatever is common to all of its answers.
    So the difference comes from problems that some models solve and others do not. Problems that all solve, or none, stay in: they say how
    the models differ where correctness does not, without which two models of which one is always the right one could not be told from
    their answers. That takes for granted that two models differ by as much on easy problems as on hard ones.

    The variance is clustered by problem, in the form whose bias is corrected (CR2), and t has Bell and McCaffrey's degrees of freedom
    (2002; Imbens and Kolesar 2016), which are few where few problems, or a few of them, decide. Where nothing differed but models and
    problems (2, 3 and 5 models, 10, 20 and 66 problems, accuracies of 0.1 to 0.6; normal, skewed and unequal spreads), p < 0.05 came in
    2.8 to 5.3 %. The plain form (CR1, problems less one) gave 4.4 to 14.3 % with 10 and 20 problems, of which 4 to 15 had both kinds; with
    every problem's effect counted as a parameter, as in a regression on dummies, 0.5 to 6.5 %.

    The interval reaches from the lower to the higher end of two: the percentile bootstrap's over problems and the t test's.

    Args:
        values: [model, problem, quantity]; an answer without a value (NaN) is left out of that quantity alone.
        right: [model, problem].
        seed: of the bootstrap.
        n_resamples: of the bootstrap.

    Returns:
        As `Contrasted`; effect is the difference by the standard deviation of the rest, and n_problems those with both right and wrong
        answers. All but counts and means is NaN with fewer than `FEWEST` of those, of right or of wrong answers on them; where right and
        wrong cannot be told from the models' own effects; and where a single problem decides. Where the rest does not vary, the interval
        is NaN, and p is 1 and the effect 0 for a difference of 0, else NaN.
    """
    right = np.asarray(right, bool)
    values = _levelled(values)
    n_models, n_problems, n_quantities = values.shape
    numbers = {field.name: np.full(n_quantities, np.nan) for field in fields(Contrasted)}
    draws = np.random.default_rng(seed).multinomial(n_problems, np.full(n_problems, 1 / n_problems), n_resamples).astype(float)
    packed = np.packbits(np.isfinite(values).reshape(n_models * n_problems, -1), axis=0)
    _, kinds = np.unique(packed, axis=1, return_inverse=True)
    order = np.argsort(kinds, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1):  # quantities that are defined for the same answers
        defined = np.isfinite(values[:, :, members[0]])
        design = _Design.of(defined, right)
        for chosen in _pieces(members):
            for name, found in _fit(design, values[:, :, chosen], draws).items():
                numbers[name][chosen] = found
    counts = {name: numbers[name].astype(int) for name in ("n_right", "n_wrong", "n_problems")}
    return Contrasted(**{**numbers, **counts})


@dataclass(frozen=True)
class _Design:
    """What least squares need to know of who was right where, for one pattern of defined values.

    Attributes:
        defined: [model, problem].
        right: [model, problem].
        both: problems with right and wrong answers.
        x: right, and all but one model, each less its mean over the problem's answers: [problem, model, column].
        inverse: (pseudo-)inverse of x'x, [column, column].
        freedom: of the rest.
        adjusted: CR2's weights of the residuals, [problem, model]; None where the difference cannot be told, or a single problem decides.
        df: of t.
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
        both = np.asarray((right & defined).any(0) & (~right & defined).any(0))
        present = np.flatnonzero(defined.any(1))
        columns = [right.astype(float), *((np.arange(len(defined)) == m)[:, None] * np.ones(defined.shape[1]) for m in present[1:])]
        answers = np.maximum(defined.sum(0), 1)
        x = np.stack([np.where(defined, c - (c * defined).sum(0) / answers, 0.0) for c in columns], -1).transpose(1, 0, 2)
        square = np.einsum("imk,iml->kl", x, x)
        inverse = np.linalg.pinv(square, rcond=1e-10, hermitian=True)
        rank = int(np.linalg.matrix_rank(square, hermitian=True, tol=1e-10 * max(1.0, float(np.abs(square).max()))))
        freedom = int(defined.sum() - defined.any(0).sum()) - rank
        told = _Design(defined, right, both, x, inverse, freedom, None, float("nan"))
        with_values = right & defined
        few = not _enough_counts(int(with_values[:, both].sum()), int((defined & ~right)[:, both].sum()), int(both.sum()))
        if few or freedom < 1 or _alone(square[None])[0][0] <= 1e-9 * square[0, 0]:
            return told
        weights = x @ inverse[:, 0]  # the difference is their sum with the values
        left = np.eye(len(defined)) - np.einsum("imk,kl,inl->imn", x, inverse, x)
        size, axes = np.linalg.eigh(left)
        if size.min() < 1e-8:
            return told
        adjusted = np.einsum("ima,ia,ina,in->im", axes, size**-0.5, axes, weights)
        # Bell and McCaffrey: the variance of equal, independent rests is sum_i (adjusted_i' rest_i)^2, whose moments are those of chi^2
        own, shared = (adjusted**2).sum(1), np.einsum("im,imk->ik", adjusted, x)
        crossed = shared @ inverse
        trace = own.sum() - (crossed * shared).sum()
        mixed = crossed.T @ shared
        squares = (own**2).sum() - 2 * (own * (crossed * shared).sum(1)).sum() + np.trace(mixed @ mixed)
        return _Design(defined, right, both, x, inverse, freedom, adjusted, float(trace**2 / squares))


def _enough_counts(n_right: int, n_wrong: int, n_problems: int) -> bool:
    return min(n_right, n_wrong, n_problems) >= FEWEST


def _alone(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of x'x [..., column, column]: the sum of squares of the first column after the others, and the weights of all in it."""
    others = np.linalg.pinv(square[:, 1:, 1:], rcond=1e-10, hermitian=True)
    slopes = np.einsum("bk,bkl->bl", square[:, 0, 1:], others)
    left = square[:, 0, 0] - np.einsum("bk,bk->b", slopes, square[:, 1:, 0])
    return left, np.concatenate([np.ones((len(square), 1)), -slopes], 1)


def _fit(design: _Design, values: np.ndarray, draws: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of `Contrasted` for quantities of one design, values [model, problem, quantity]."""
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
    centred = np.where(defined.T[:, :, None], y - y.sum(1, keepdims=True) / np.maximum(defined.sum(0), 1)[:, None, None], 0.0)
    rest = centred - x @ slopes
    difference = slopes[0]
    size = RESOLUTION * np.maximum(1.0, np.abs(y).max((0, 1)))
    sd = np.sqrt((rest**2).sum((0, 1)) / design.freedom)
    still = sd < size
    error = np.sqrt((np.einsum("im,imq->iq", design.adjusted, rest) ** 2).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = 2 * stats.t.sf(np.abs(difference) / error, design.df)
        effect = difference / sd
    nothing = np.abs(difference) < size
    found["difference"] = np.where(still & nothing, 0.0, difference)
    found["p"] = np.where(still, np.where(nothing, 1.0, np.nan), p)
    found["effect"] = np.where(still, np.where(nothing, 0.0, np.nan), effect)
    reach = stats.t.ppf(_TAILS[1], design.df) * error
    left, weights = _alone(np.tensordot(draws, np.einsum("imk,iml->ikl", x, x), 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = np.where((left > 1e-9 * x.shape[0])[:, None], weights / left[:, None], np.nan)
    drawn = sum(weights[:, k, None] * (draws @ per_problem[:, k]) for k in range(x.shape[2]))
    low, high = _quantiles(np.asarray(drawn))
    found["ci_low"] = np.where(still, np.nan, np.fmin(low, difference - reach))
    found["ci_high"] = np.where(still, np.nan, np.fmax(high, difference + reach))
    return found
