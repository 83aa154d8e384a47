"""Accuracies with intervals, and comparisons of students on the same problems, with tests from statsmodels and scipy.

The tables are made from one frame with one row per answer: condition, seed (<NA> for a student that is not trained), problem, sample,
correct, tokens, finish, confidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from interp.inference import crossed_test
from interp.tables.errors import InputError

_RESAMPLED_AT_ONCE = 1 << 18
"""Number of values to resample at a time: 2 MB, which stay in the cache (2^23 takes twice the time and half a gigabyte)."""


def wilson_interval(right: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (statsmodels).

    For a mean of n values in [0, 1], `right` is their sum, and the interval is conservative.
    """
    low, high = map(float, np.asarray(proportion_confint(right, n, alpha=1 - level, method="wilson")))
    return max(0.0, low) if right > 0 else 0.0, high


def mcnemar_exact(one: np.ndarray, other: np.ndarray) -> tuple[int, int, float]:
    """Return McNemar's exact test on paired verdicts (statsmodels).

    Returns:
        Number of pairs where only `one` is right, number where only `other` is right, and the two-sided p-value (binomial on these pairs).
    """
    one, other = np.asarray(one, bool), np.asarray(other, bool)
    only_one, only_other = int((one & ~other).sum()), int((~one & other).sum())
    table = [[int((one & other).sum()), only_one], [only_other, int((~one & ~other).sum())]]
    return only_one, only_other, float(np.asarray(vars(mcnemar(table, exact=True))["pvalue"]))


def mean_interval(values: np.ndarray, level: float, resamples: int, seed: int) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean over problems (scipy); NaN if all values are equal."""
    values = np.asarray(values, float)
    if len(values) < 2 or np.ptp(values) == 0:
        return float("nan"), float("nan")
    done = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _RESAMPLED_AT_ONCE // len(values)),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(done.confidence_interval.low), float(done.confidence_interval.high)


def sign_flip_test(differences: np.ndarray, resamples: int, seed: int) -> float:
    """Return the two-sided p-value of a mean paired difference when the sign of each problem is flipped at random (scipy).

    Problems without a difference are left out, because flipping them changes nothing; few others are then enumerated completely. The
    p-value is 1 if fewer than two problems differ.
    """
    differences = np.asarray(differences, float)
    differences = differences[differences != 0]
    if len(differences) < 2:
        return 1.0
    done = stats.permutation_test(
        (differences, np.zeros_like(differences)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _RESAMPLED_AT_ONCE // len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(done.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm-corrected p-values (statsmodels); NaN stays NaN and is not counted."""
    p = np.asarray(p_values, float)
    known = ~np.isnan(p)
    if known.any():
        p[known] = multipletests(p[known], method="holm")[1]
    return p.tolist()


def calibration(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> dict[str, float]:
    """Return how well confidences separate right from wrong answers; answers without a confidence are left out.

    - ece: expected calibration error, sum_b n_b / n |mean confidence - accuracy|, 0 to 1 (Guo et al. 2017, arXiv 1706.04599). Bins have
      equal counts of at least ten answers, and equal confidences share a bin.
    - brier: mean (confidence - correct)^2, 0 to 1.
    - auroc: probability that a right answer has a higher confidence than a wrong one, with ties counted half (Mann-Whitney's U divided by
      the number of pairs, scipy); NaN if all answers are right or all are wrong.

    Returns:
        ece, brier, auroc, and n_confident: the number of answers with a confidence.
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, bool)
    known = ~np.isnan(confidence)
    confidence, correct = confidence[known], correct[known]
    if not len(confidence):
        return {"ece": float("nan"), "brier": float("nan"), "auroc": float("nan"), "n_confident": 0}
    bins = max(1, min(bins, len(confidence) // 10))
    of_bin = pd.qcut(confidence, bins, labels=False, duplicates="drop") if np.ptp(confidence) else np.zeros(len(confidence))
    parts = [of_bin == number for number in np.unique(of_bin)]
    ece = sum(part.sum() * abs(confidence[part].mean() - correct[part].mean()) for part in parts) / len(confidence)
    right, wrong = confidence[correct], confidence[~correct]
    auroc = float("nan")
    if len(right) and len(wrong):
        auroc = float(stats.mannwhitneyu(right, wrong).statistic) / (len(right) * len(wrong))
    return {"ece": float(ece), "brier": float(np.mean((confidence - correct) ** 2)), "auroc": auroc, "n_confident": len(confidence)}


def accuracy_by_student(answers: pd.DataFrame, baseline: str, *, level: float = 0.95) -> pd.DataFrame:
    """Return one row per student: accuracy with its interval, lengths, calibration, and McNemar's exact test against the baseline.

    The interval is Wilson's at the number of problems. With several samples per problem, the accuracy is the mean over problems of the
    share of right samples, and there is no McNemar's test, which needs one verdict per problem.

    A student is tested against the baseline of its seed, one without a seed against the baseline's first seed, and one whose seed the
    baseline lacks is not tested. Holm's correction is over the conditions of a seed.

    Raises:
        InputError: the baseline has no answers, or students answered different problems.
    """
    grid = _by_students(answers)
    _check(grid, baseline)
    seeds = [s for c, s in grid if c == baseline]
    rows = []
    for (condition, number), given in grid.items():
        correct = given["correct"].to_numpy(float)
        share = given.groupby("problem")["correct"].mean().to_numpy(float)
        samples = len(given) // len(share)
        right = int(correct.sum())
        low, high = wilson_interval(float(share.sum()), len(share), level)
        row: dict[str, object] = {
            "condition": condition,
            "seed": number,
            "problems": len(share),
            "samples": samples,
            "right": right,
            "accuracy": share.mean(),
            "low": low,
            "high": high,
            "tokens_mean": given["tokens"].mean(),
            "truncated": (given["finish"] == "length").mean(),
            **calibration(given["confidence"].to_numpy(float), correct.astype(bool)),
        }
        seedless = number is None or seeds[0] is None
        partner = (baseline, number) if (baseline, number) in grid else (baseline, seeds[0]) if seedless else None
        if partner is not None and condition != baseline and samples == 1:
            only_one, only_other, p = mcnemar_exact(correct, grid[partner]["correct"].to_numpy())
            row |= {"only_this": only_one, "only_baseline": only_other, "p_mcnemar": p}
        rows.append(row)
    table = pd.DataFrame(rows)
    for name in ("only_this", "only_baseline", "p_mcnemar"):
        table[name] = table[name] if name in table else float("nan")
    table["p_holm"] = float("nan")
    of_seed = table["seed"].fillna(-1 if not seeds or seeds[0] is None else seeds[0])
    for _, part in table.groupby(of_seed):
        table.loc[part.index, "p_holm"] = holm(part["p_mcnemar"].astype(float).tolist())
    table["seed"] = table["seed"].astype("Int64")
    return table


def accuracy_by_condition(
    answers: pd.DataFrame, baseline: str, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Return one row per condition, pooled over seeds: a problem's verdict is its mean over seeds and samples.

    The interval is Wilson's at the number of problems; a mean over seeds does not vary more than a single verdict. `sd_seeds`, the standard
    deviation of the accuracies of seeds (NaN for one), shows the spread between seeds, which no interval over problems can show.

    The difference from the baseline is paired by problem, and by seed if both have seeds. With two or more seeds, interval and p come from
    `crossed_test` and refer to new seeds and new problems. With one seed, they come from a bootstrap over problems (NaN if none differs)
    and a sign-flip permutation test, and refer to these two students only: another seed may reverse the result. p is Holm-corrected over
    the conditions. `seeds_paired` is the number of seeds that both conditions have.

    Raises:
        InputError: as `accuracy_by_student`.
    """
    grid = _by_students(answers)
    _check(grid, baseline)
    order = list(dict.fromkeys(condition for condition, _ in grid))
    share = {c: pd.concat([g for (name, _), g in grid.items() if name == c]).groupby("problem")["correct"].mean() for c in order}
    rows = []
    for condition in order:
        seeds = [g["correct"].mean() for (name, _), g in grid.items() if name == condition]
        low, high = wilson_interval(float(share[condition].sum()), len(share[condition]), level)
        row: dict[str, object] = {
            "condition": condition,
            "seeds": len(seeds),
            "problems": len(share[condition]),
            "accuracy": share[condition].mean(),
            "low": low,
            "high": high,
            "sd_seeds": float(np.std(seeds, ddof=1)) if len(seeds) > 1 else float("nan"),
        }
        if condition != baseline:
            paired = _by_seed(grid, condition, baseline)
            low, high, p = map(float, crossed_test(paired, level)) if min(paired.shape) > 1 else (float("nan"),) * 3
            if np.isnan(p):  # one seed, or nothing varies
                low, high = mean_interval(paired.mean(0), level, resamples, seed)
                p = sign_flip_test(paired.mean(0), resamples, seed)
            row |= {
                "seeds_paired": len(paired),
                "difference": paired.mean(),
                "difference_low": low,
                "difference_high": high,
                "p": p,
            }
        rows.append(row)
    table = pd.DataFrame(rows)
    for name in ("seeds_paired", "difference", "difference_low", "difference_high", "p"):
        table[name] = table[name] if name in table else float("nan")
    table["p_holm"] = holm(table["p"].tolist())
    table["seeds_paired"] = table["seeds_paired"].astype("Int64")
    return table


def _by_seed(grid: Mapping[tuple[str, int | None], pd.DataFrame], condition: str, baseline: str) -> np.ndarray:
    """Return a condition's verdicts minus the baseline's, [seed, problem], paired by the seeds that both have."""
    share = {
        who: {number: g.groupby("problem")["correct"].mean().to_numpy(float) for (name, number), g in grid.items() if name == who}
        for who in (condition, baseline)
    }
    own, other = share[condition], share[baseline]
    both = [number for number in own if number in other]
    if both:
        return np.stack([own[number] - other[number] for number in both])
    if len(other) == 1:
        return np.stack([values - next(iter(other.values())) for values in own.values()])
    if len(own) == 1:
        return np.stack([next(iter(own.values())) - values for values in other.values()])
    return (np.mean(list(own.values()), axis=0) - np.mean(list(other.values()), axis=0))[None]


def _by_students(answers: pd.DataFrame) -> dict[tuple[str, int | None], pd.DataFrame]:
    """Return the answers of each student, by condition and seed, sorted by problem and sample."""
    grid: dict[tuple[str, int | None], pd.DataFrame] = {}
    seeds = answers["seed"].astype("Int64").fillna(-1).astype(int)
    for name in answers["condition"].unique():
        for number in seeds[answers["condition"] == name].unique():
            given = answers[(answers["condition"] == name) & (seeds == number)]
            grid[str(name), None if number == -1 else int(number)] = given.sort_values(["problem", "sample"])
    return grid


def _check(grid: dict[tuple[str, int | None], pd.DataFrame], baseline: str) -> None:
    names = list(dict.fromkeys(condition for condition, _ in grid))
    if baseline not in names:
        raise InputError(f"the baseline {baseline!r} has no answers; these conditions have: {', '.join(names) or 'none'}")
    asked = {student: tuple(zip(given["problem"], given["sample"], strict=True)) for student, given in grid.items()}
    first, wanted = next(iter(asked.items()))
    for student, these in asked.items():
        if these != wanted:
            raise InputError(
                f"{student} and {first} answered different problems ({len(these)} and {len(wanted)}), so they cannot be paired"
            )
        if len(set(these)) != len(these):
            raise InputError(f"{student} has several answers to the same problem and sample")


def table_text(table: pd.DataFrame) -> str:
    """Return a table as text for terminals: four decimals, and blanks for missing values."""
    return table.to_string(
        index=False, na_rep="", float_format=lambda value: f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"
    )
