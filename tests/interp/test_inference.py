"""Intervals and tests against scipy, statsmodels and simulations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from interp.inference import benjamini_hochberg, bootstrap_interval, crossed_test, new_observation, paired_t

# --- bootstrap --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_examples", [15, 40])
def test_the_interval_equals_scipys_percentile_interval(n_examples: int) -> None:
    values = np.random.default_rng(0).gamma(2.0, size=(n_examples, 3))
    mean, low, high = bootstrap_interval(values, 1, n_resamples=20_000)
    np.testing.assert_allclose(mean, values.mean(0))
    for at in range(3):
        found = scipy.stats.bootstrap((values[:, at],), np.mean, n_resamples=20_000, method="percentile", rng=2)
        error = 0.12 * float(found.standard_error)
        assert low[at] == pytest.approx(found.confidence_interval.low, abs=error)
        assert high[at] == pytest.approx(found.confidence_interval.high, abs=error)


def test_the_interval_leaves_undefined_examples_out() -> None:
    values = np.random.default_rng(3).normal(size=(30, 2))
    values[10:, 1] = np.nan
    mean, low, high = bootstrap_interval(values, 0, n_resamples=20_000)
    assert mean[1] == pytest.approx(values[:10, 1].mean())
    found = scipy.stats.bootstrap((values[:10, 1],), np.mean, n_resamples=20_000, method="percentile", rng=4).confidence_interval
    # slightly wider, because the number of defined examples varies between resamples
    assert low[1] == pytest.approx(found.low, abs=0.1)
    assert high[1] == pytest.approx(found.high, abs=0.1)
    both = bootstrap_interval(values, 0, n_resamples=20_000)
    alone = bootstrap_interval(values[:, :1], 0, n_resamples=20_000)
    assert [part[0] for part in both] == pytest.approx([part[0] for part in alone])


def test_the_interval_needs_two_examples_and_repeats_with_its_seed() -> None:
    mean, low, high = bootstrap_interval(np.array([[1.0, np.nan, np.nan]]), 0)
    assert mean[0] == 1
    assert np.isnan(mean[1:]).all()
    assert np.isnan([low, high]).all()
    mean, low, high = bootstrap_interval(np.array([[1.0, np.nan], [np.nan, np.nan], [3.0, 2.0]]), 0)
    assert mean.tolist() == [2, 2]
    assert (low[0], high[0]) == (1, 3)
    assert np.isnan([low[1], high[1]]).all()
    values = np.random.default_rng(0).normal(size=(20, 1500))
    np.testing.assert_array_equal(bootstrap_interval(values, 5), bootstrap_interval(values, 5))
    assert (bootstrap_interval(values, 5)[1] != bootstrap_interval(values, 6)[1]).any()


def test_constant_values_have_an_interval_of_zero_width() -> None:
    mean, low, high = bootstrap_interval(np.full((12, 2), 0.3), 0)
    np.testing.assert_allclose([mean, low, high], 0.3, rtol=1e-12)


# --- crossed seeds and examples ---


def test_crossed_test_of_one_source_of_variance_is_a_t_test() -> None:
    """If only problems vary, or only seeds, it is scipy's t test over those."""
    random = np.random.default_rng(0)
    for axis, drawn in ((1, random.normal(0.3, 1, (1, 30)) * np.ones((4, 1))), (0, random.normal(0.3, 1, (4, 1)) * np.ones((1, 30)))):
        whole: Any = stats.ttest_1samp(drawn.mean(1 - axis), 0)
        low, high, p = crossed_test(drawn)
        assert p == pytest.approx(whole.pvalue)
        assert (low, high) == pytest.approx(tuple(whole.confidence_interval(0.95)))
    assert crossed_test(np.zeros((2, 5)))[2] == 1.0


def test_crossed_test_against_statsmodels_and_scipy() -> None:
    """The largest p of three tests: quasi-F with Satterthwaite's degrees of freedom from statsmodels' table, and scipy's t tests."""
    import statsmodels.api as sm
    from statsmodels.formula.api import ols

    random, widest = np.random.default_rng(1), []
    for spread in (0.01, 0.3, 1.0, 2.0):
        d = 0.5 + random.normal(0, spread, (3, 1)) + random.normal(0, 0.4, (1, 20)) + random.normal(0, 0.5, (3, 20))
        frame = pd.DataFrame({"d": d.ravel(), "seed": np.repeat(range(3), 20), "problem": np.tile(range(20), 3)})
        table = sm.stats.anova_lm(ols("d ~ C(seed) + C(problem)", frame).fit())
        square = (table["sum_sq"] / table["df"]).to_numpy()
        f = 60 * d.mean() ** 2 / (square[0] + square[1] - square[2])
        df = (square[0] + square[1] - square[2]) ** 2 / (square**2 / table["df"].to_numpy()).sum()
        alone: list[Any] = [stats.ttest_1samp(d.mean(axis), 0) for axis in (1, 0)]
        every = [stats.f.sf(f, 1, df) if square[2] <= square[:2].min() else 0.0, *(one.pvalue for one in alone)]
        low, high, p = crossed_test(d)
        assert p == pytest.approx(max(every))
        widest.append(int(np.argmax(every)))
        ends = [one.confidence_interval(0.95) for one in alone]
        assert low <= min(end.low for end in ends) + 1e-12
        assert high >= max(end.high for end in ends) - 1e-12
    assert len(set(widest)) > 1


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.05, 0.3])
def test_differences_between_seeds_are_not_taken_for_an_effect(n_seeds: int, spread: float) -> None:
    """Simulation without an effect, in which seeds, problems and the rest vary: at most 5% may be rejected."""
    random = np.random.default_rng(0)
    d = random.normal(0, 1, (n_seeds, 60, 3000)) + random.normal(0, spread, (n_seeds, 1, 3000)) + random.normal(0, 0.5, (1, 60, 3000))
    rejected = (crossed_test(d)[2] < 0.05).mean()
    assert rejected <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 3000)


def test_crossed_test_of_many_quantities_equals_that_of_each() -> None:
    d = np.random.default_rng(3).normal(0.1, 1, (3, 8, 2, 5))
    together = crossed_test(d)
    for at in np.ndindex(2, 5):
        alone = crossed_test(d[:, :, at[0], at[1]])
        assert [values[at] for values in together] == pytest.approx([float(value) for value in alone])


# --- paired t, false-discovery rates ---


def test_paired_t_equals_scipys() -> None:
    d = np.random.default_rng(0).normal(0.2, 1, (20, 50))
    d[3, 5] = d[7, 5] = np.nan
    p, effect = paired_t(d)
    theirs: Any = stats.ttest_1samp(d, 0, nan_policy="omit")
    np.testing.assert_allclose(p, theirs.pvalue, rtol=1e-10)
    np.testing.assert_allclose(effect, np.nanmean(d, 0) / np.nanstd(d, 0, ddof=1))
    p, effect = paired_t(np.array([[0.0, 0.1, np.nan, 2.0], [0.0, 0.1, 1.0, np.nan], [0.0, 0.1, np.nan, 3.0]]))
    np.testing.assert_array_equal(p[:3], [1.0, 0.0, np.nan])
    np.testing.assert_array_equal(effect[:3], [0.0, np.inf, np.nan])


def test_q_values_worked_by_hand() -> None:
    """q is p(i) m / i with a running minimum from above; NaN is outside the family."""
    np.testing.assert_allclose(benjamini_hochberg(np.array([0.01, 0.04, np.nan, 0.03, 0.5])), [0.04, 0.16 / 3, np.nan, 0.16 / 3, 0.5])
    assert np.isnan(benjamini_hochberg(np.full(3, np.nan))).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-12, 1), min_size=1, max_size=30))
def test_q_is_at_least_p_and_keeps_the_order(p: list[float]) -> None:
    q = benjamini_hochberg(np.array(p))
    assert (q >= np.array(p) - 1e-15).all()
    order = np.argsort(p)
    assert (np.diff(q[order]) >= -1e-15).all()


# --- a new observation ---------------------------------------------------------------------------------------------


def test_new_observation_equals_a_pooled_t_test_of_one_against_the_others() -> None:
    random = np.random.default_rng(3)
    value, others = random.normal(size=40), random.normal(size=(9, 40))
    found = new_observation(value, others)
    for at in range(40):
        wanted: Any = stats.ttest_ind([value[at]], others[:, at], equal_var=True)
        assert found["t"][at] == pytest.approx(wanted.statistic, rel=1e-12)
        assert found["p"][at] == pytest.approx(wanted.pvalue, rel=1e-12)
    assert (found["n_examples"] == 9).all()


def test_new_observation_keeps_its_level() -> None:
    random = np.random.default_rng(4)
    p = new_observation(random.normal(size=20_000), random.normal(size=(5, 20_000)))["p"]
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.006)  # four standard errors of 20,000 draws


def test_examples_without_a_value_are_left_out_of_the_comparison() -> None:
    others = np.array([[1.0, np.nan, np.nan], [2.0, 5.0, np.nan], [4.0, np.nan, np.nan]])
    found = new_observation(np.array([3.0, 3.0, 3.0]), others)
    assert found["n_examples"].tolist() == [3, 1, 0]
    assert found["mean"][0] == pytest.approx(7 / 3)
    assert np.isnan(found["t"][1:]).all()
    assert np.isnan(found["p"][1:]).all()


def test_if_all_observations_are_equal_p_is_one_or_zero() -> None:
    found = new_observation(np.array([0.1, 0.2, np.nan]), np.full((6, 3), 0.1))
    assert found["p"][:2].tolist() == [1.0, 0.0]
    assert found["t"][0] == 0
    assert np.isposinf(found["t"][1])
    assert np.isnan(found["p"][2])
