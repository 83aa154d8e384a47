"""The tests of right against wrong answers match scipy, statsmodels and dense algebra, keep their level, and handle missing values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyses.contrast.statistics import GroupDifferences, _Design, contrast_table, lengths_table, top_rows, two_groups, two_way
from interp.inference import benjamini_hochberg
from interp.tables.contrast import CONTRAST, PAIRED
from interp.tables.errors import InputError
from interp.tables.heads import HeadValues
from interp.tables.schema import REGIONS, validate


def rounded(done: GroupDifferences) -> dict[str, np.ndarray]:
    return {name: getattr(done, name) for name in ("right_mean", "wrong_mean", "difference", "ci_low", "ci_high", "effect", "p")}


def test_one_model_matches_scipys_welch_test_and_hedges_g():
    random = np.random.default_rng(0)
    right = random.random(40) < 0.3
    values = random.gamma(2.0, size=(40, 7)) + 0.5 * right[:, None]
    values[random.random(values.shape) < 0.1] = np.nan
    done = two_groups(values, right, 0)
    expected: Any = stats.ttest_ind(values[right], values[~right], equal_var=False, nan_policy="omit")
    np.testing.assert_allclose(done.p, expected.pvalue, rtol=1e-12)
    interval = expected.confidence_interval(0.95)
    for q in range(7):
        a, b = (values[kind, q][np.isfinite(values[kind, q])] for kind in (right, ~right))
        pooled = np.sqrt((a.var(ddof=1) * (len(a) - 1) + b.var(ddof=1) * (len(b) - 1)) / (len(a) + len(b) - 2))
        correction = 1 - 3 / (4 * (len(a) + len(b)) - 9)
        assert done.effect[q] == pytest.approx((a.mean() - b.mean()) / pooled * correction)
        assert (done.n_right[q], done.n_wrong[q], done.n_problems[q]) == (len(a), len(b), len(a) + len(b))
        draws: Any = stats.bootstrap((a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), method="percentile", n_resamples=20_000, rng=1)
        reach = 0.1 * draws.standard_error
        assert done.ci_low[q] == pytest.approx(min(draws.confidence_interval.low, interval.low[q]), abs=reach)
        assert done.ci_high[q] == pytest.approx(max(draws.confidence_interval.high, interval.high[q]), abs=reach)
    assert (done.ci_low <= interval.low + 1e-12).all()
    assert (done.ci_high >= interval.high - 1e-12).all()


def test_a_missing_value_affects_its_quantity_alone():
    random = np.random.default_rng(1)
    right = np.arange(20) < 8
    values = random.normal(size=(20, 3))
    values[[0, 12], 1] = np.nan
    done = two_groups(values, right, 0)
    without = two_groups(np.delete(values[:, 1:2], [0, 12], axis=0), np.delete(right, [0, 12]), 0)
    complete = two_groups(values[:, [0, 2]], right, 0)
    for name in ("right_mean", "wrong_mean", "difference", "effect", "p", "n_right", "n_wrong"):
        assert getattr(done, name)[1] == pytest.approx(getattr(without, name)[0], rel=1e-12)
        np.testing.assert_allclose(getattr(done, name)[[0, 2]], getattr(complete, name), rtol=1e-12)


def test_a_test_needs_three_answers_of_each_kind_with_a_value():
    values = np.random.default_rng(2).normal(size=(10, 2))
    values[0, 1] = np.nan
    done = two_groups(values, np.arange(10) < 3, 0)
    assert np.isfinite(done.p[0])
    for name in ("difference", "ci_low", "ci_high", "effect", "p"):
        assert np.isnan(getattr(done, name)[1]), name
    assert done.n_right.tolist() == [3, 2]
    assert done.right_mean[1] == pytest.approx(values[1:3, 1].mean())
    none = two_groups(values, np.zeros(10, bool), 0)
    assert np.isnan(none.p).all()
    assert none.n_right.tolist() == [0, 0]


def test_constant_values_have_p_one_if_equal_and_nan_otherwise():
    right = np.arange(12) < 5
    noise = 1e-8 * np.random.default_rng(3).normal(size=12)
    values = np.stack([np.full(12, 0.3), 0.3 + noise, np.where(right, 0.1, 0.2), np.full(12, np.nan)], 1)
    done = two_groups(values, right, 0)
    assert done.p[:2].tolist() == [1.0, 1.0]
    assert done.effect[:2].tolist() == [0.0, 0.0]
    assert np.isnan(done.p[2:]).all()
    assert done.difference[2] == pytest.approx(-0.1)
    assert np.isnan(done.ci_low).all()


@pytest.mark.parametrize(("n_right", "n_wrong", "least", "most"), [(3, 3, 0.01, 0.05), (10, 56, 0.03, 0.065), (30, 36, 0.035, 0.065)])
def test_one_model_rejects_a_true_null_as_often_as_documented(n_right, n_wrong, least, most):
    values = np.random.default_rng(4).normal(size=(n_right + n_wrong, 4000))
    done = two_groups(values, np.arange(n_right + n_wrong) < n_right, 0, n_resamples=300)
    assert least < (done.p < 0.05).mean() < most
    outside = (done.ci_low > 0) | (done.ci_high < 0)
    assert outside.mean() < most
    assert (done.p[outside] < 0.05).all()


def students(n_models: int, n_problems: int, n_quantities: int, *, seed: int, missing: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return values with effects of models and problems, and who is right; values depend on how hard a problem and how good a model is."""
    random = np.random.default_rng(seed)
    hard = random.normal(0, 1.5, n_problems)
    right = random.random((n_models, n_problems)) < 1 / (1 + np.exp(-(np.linspace(-0.7, 0.7, n_models)[:, None] - hard)))
    values = random.normal(size=(n_models, n_problems, n_quantities)) + random.normal(size=(n_models, 1, n_quantities))
    values += 2 * hard[None, :, None] + random.normal(size=(1, n_problems, n_quantities)) + np.arange(n_models)[:, None, None]
    values[random.random((n_models, n_problems)) < missing] = np.nan
    return values, right


def pseudo_root(square: np.ndarray) -> np.ndarray:
    """Return the pseudo-inverse root of a symmetric matrix, which is singular along the problem's own dummy."""
    size, axes = np.linalg.eigh(square)
    return axes @ np.diag([1 / np.sqrt(s) if s > 1e-9 else 0.0 for s in size]) @ axes.T


def dense(values: np.ndarray, right: np.ndarray) -> tuple[float, float, float]:
    """Return difference, CR2 standard error and Bell and McCaffrey's df from full matrices with a dummy for every problem and model."""
    defined = np.isfinite(values)
    m, i = np.nonzero(defined)
    columns = [right[defined], *(i == problem for problem in np.unique(i)), *(m == model for model in np.unique(m)[1:])]
    x, y = np.stack(columns, 1).astype(float), values[defined]
    inverse = np.linalg.pinv(x.T @ x)
    hat = x @ inverse @ x.T
    left = np.eye(len(y)) - hat
    weights = inverse[0] @ x.T
    parts = []
    for problem in np.unique(i):
        own = np.flatnonzero(i == problem)
        root = pseudo_root(left[np.ix_(own, own)])
        parts.append(left[:, own] @ root @ weights[own])
    p = np.stack(parts, 1)
    gram = p.T @ p
    return weights @ y, float(np.sqrt(((p.T @ y) ** 2).sum())), float(np.trace(gram) ** 2 / (gram**2).sum())


@pytest.mark.parametrize(("n_models", "missing"), [(2, 0.0), (2, 0.1), (4, 0.0), (4, 0.15)])
def test_several_models_match_dense_matrices(n_models, missing):
    values, right = students(n_models, 25, 3, seed=5, missing=missing)
    values[0, 3, 1] = np.nan  # one quantity lacks a value that the others have
    done = two_way(values, right, 0)
    for q in range(3):
        difference, error, df = dense(values[:, :, q], right)
        assert done.difference[q] == pytest.approx(difference, rel=1e-9)
        assert done.p[q] == pytest.approx(2 * stats.t.sf(abs(difference) / error, df), rel=1e-6)
        reach = stats.t.ppf(0.975, df) * error
        assert done.ci_low[q] <= difference - reach + 1e-9
        assert done.ci_high[q] >= difference + reach - 1e-9


@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_difference_effect_and_uncorrected_cluster_variance_match_statsmodels(missing):
    import statsmodels.api as sm

    values, right = students(3, 30, 1, seed=6, missing=missing)
    y = values[:, :, 0]
    defined = np.isfinite(y)
    m, i = np.nonzero(defined)
    dummies = [pd.get_dummies(m, drop_first=True), pd.get_dummies(i)]
    x = np.column_stack([right[defined], *(frame.to_numpy() for frame in dummies)]).astype(float)
    fitted = sm.OLS(y[defined], x).fit(cov_type="cluster", cov_kwds={"groups": i, "use_correction": False})
    done = two_way(values, right, 0)
    assert done.difference[0] == pytest.approx(fitted.params[0])
    assert done.effect[0] == pytest.approx(fitted.params[0] / np.sqrt(fitted.scale))
    design = _Design.of(defined, right)
    weights = design.x @ design.inverse[:, 0]
    rest = np.zeros_like(y)
    rest[defined] = fitted.resid
    assert np.sqrt(((weights * rest.T).sum(1) ** 2).sum()) == pytest.approx(fitted.bse[0])  # the same sandwich without the correction


def test_two_models_match_a_regression_of_differences():
    """With two models, CR2 is HC2 of a regression of the differences on which of the two is right."""
    import statsmodels.api as sm

    values, right = students(2, 40, 4, seed=7)
    sign = right[1].astype(float) - right[0]
    done = two_way(values, right, 0)
    for q in range(4):
        fitted = sm.OLS(values[1, :, q] - values[0, :, q], sm.add_constant(sign)).fit(cov_type="HC2")
        design = _Design.of(np.ones(right.shape, bool), right)
        assert done.difference[q] == pytest.approx(fitted.params[1])
        assert done.p[q] == pytest.approx(2 * stats.t.sf(abs(fitted.params[1] / fitted.bse[1]), design.df))


def test_easy_problems_and_better_models_are_not_mistaken_for_a_difference():
    values, right = students(3, 60, 300, seed=8)
    alone = [two_groups(one, verdicts, 0, 200) for one, verdicts in zip(values, right, strict=True)]
    together = two_groups(values.reshape(-1, 300), right.ravel(), 0, 200)
    paired = two_way(values, right, 0, 200)
    assert all((one.p < 0.05).mean() > 0.9 for one in alone)  # hard problems have higher values
    assert (together.p < 0.05).mean() > 0.9
    assert 0.01 < (paired.p < 0.05).mean() < 0.1
    planted = two_way(values + 1.0 * right[:, :, None], right, 0, 200)
    np.testing.assert_allclose(planted.difference, paired.difference + 1, atol=1e-9)
    assert (planted.p < 0.05).mean() > 0.9
    np.testing.assert_allclose(planted.ci_low, paired.ci_low + 1, atol=1e-8)


@pytest.mark.parametrize(("n_models", "n_problems"), [(2, 10), (2, 20), (3, 10), (5, 20), (3, 66)])
def test_the_paired_test_keeps_its_level_under_the_null(n_models, n_problems):
    rates, covered, low = [], [], []
    for seed in range(12):
        values, right = students(n_models, n_problems, 500, seed=100 + seed)
        done = two_way(values, right, seed, n_resamples=200)
        if np.isfinite(done.p).all():
            rates.append((done.p < 0.05).mean())
            low.append((done.p < 0.5).mean())
            covered.append(((done.ci_low < 0) & (done.ci_high > 0)).mean())
    assert len(rates) >= 8
    assert 0.025 < np.mean(rates) < 0.06
    assert max(rates) < 0.09
    assert np.mean(covered) > 0.94
    assert np.mean(low) == pytest.approx(0.5, abs=0.05)


def test_problems_that_all_models_solve_separate_models_from_correctness():
    """Model b is right wherever they disagree, so only the other problems separate its own effect from that of being right."""
    right = np.array([[True] * 10 + [False] * 10, [True] * 20])
    random = np.random.default_rng(9)
    values = random.normal(0, 0.01, (2, 20, 1)) + np.array([0.0, 3.0])[:, None, None] + 1.0 * right[:, :, None]
    assert two_way(values, right, 0).difference[0] == pytest.approx(1.0, abs=0.05)
    disagreed = two_way(values[:, 10:], right[:, 10:], 0)
    assert np.isnan(disagreed.p[0])
    assert disagreed.n_problems[0] == 10
    assert disagreed.right_mean[0] - disagreed.wrong_mean[0] == pytest.approx(4.0, abs=0.05)


def test_a_single_problem_never_determines_the_result():
    right = np.array([[True, True, True] + [True] + [False] * 4, [False, False, False] + [True] + [False] * 4])
    values = np.random.default_rng(10).normal(size=(2, 8, 1))
    assert np.isfinite(two_way(values, right, 0).p[0])
    values[0, 3:] = np.nan  # without problems on which they agree, the models' own difference is unknown
    done = two_way(values, right, 0)
    assert np.isnan(done.p[0])
    assert (done.n_right[0], done.n_wrong[0], done.n_problems[0]) == (3, 3, 3)


def test_a_quantity_does_not_depend_on_others_and_their_missing_values():
    values, right = students(3, 20, 6, seed=11)
    values[1, 4, 2] = values[0, 9, 5] = np.nan
    complete = two_way(values, right, 0)
    for q in range(6):
        alone = two_way(values[:, :, q : q + 1], right, 0)
        for name, found in rounded(complete).items():
            assert found[q] == pytest.approx(getattr(alone, name)[0], rel=1e-9), name


def test_the_paired_bootstrap_resamples_problems():
    values, right = students(3, 40, 2, seed=12)
    values += np.where(np.arange(40) == 7, 30.0, 0.0)[None, :, None] * right[:, :, None]  # an outlier makes the interval asymmetric
    done = two_way(values, right, 0)
    random, drawn = np.random.default_rng(1), []
    for _ in range(1500):
        chosen = random.integers(0, 40, 40)
        y, verdicts = values[:, chosen, 0], right[:, chosen].astype(float)
        x = np.stack([verdicts, *(np.broadcast_to((np.arange(3) == m)[:, None], y.shape).astype(float) for m in (1, 2))], -1)
        x -= x.mean(0)
        drawn.append(np.linalg.lstsq(x.reshape(-1, 3), (y - y.mean(0)).ravel(), rcond=None)[0][0])
    low, high = np.quantile(drawn, [0.025, 0.975])
    difference, error, df = dense(values[:, :, 0], right)
    reach = stats.t.ppf(0.975, df) * error
    assert done.ci_low[0] == pytest.approx(min(low, difference - reach), abs=0.1 * error)
    assert done.ci_high[0] == pytest.approx(max(high, difference + reach), abs=0.1 * error)


def test_constant_residuals_have_p_one_if_equal_and_nan_otherwise():
    _, right = students(3, 20, 1, seed=13)
    problem = np.random.default_rng(13).normal(size=20)
    values = np.stack([np.full((3, 20), 0.2), np.tile(problem, (3, 1)), np.full((3, 20), np.nan), problem + 0.5 * right], -1)
    done = two_way(values, right, 0)
    assert done.p[:2].tolist() == [1.0, 1.0]
    assert done.effect[:2].tolist() == [0.0, 0.0]
    assert np.isnan(done.p[2:]).all()
    assert done.n_problems[2] == 0
    assert done.difference[3] == pytest.approx(0.5)


def heads(name: str, values: np.ndarray) -> HeadValues:
    n, layers, count, measures, _ = values.shape
    return HeadValues(name, tuple(range(n)), tuple(range(layers)), count, tuple("abcdef"[:measures]), values)


def planted(n: int = 50, *, layers: int = 2) -> tuple[list[HeadValues], np.ndarray]:
    """Return two models; the response values of head 1.2 for measure b are 0.3 higher for right answers."""
    random = np.random.default_rng(14)
    right = random.random((2, n)) < np.array([[0.35], [0.6]])
    runs = []
    for name, verdicts in zip(("x", "y"), right, strict=True):
        values = random.normal(0.5, 0.1, (n, layers, 3, 2, len(REGIONS)))
        values[verdicts, 1, 2, 1, REGIONS.index("response")] += 0.3
        runs.append(heads(name, values))
    return runs, right


def test_a_planted_head_is_found_alone_and_paired():
    runs, right = planted()
    table = contrast_table(runs, right)
    validate(table, CONTRAST)
    assert list(dict.fromkeys(table["model"])) == ["x", "y", PAIRED]
    for model in ("x", "y", PAIRED):
        rows = table[table["model"] == model]
        clear = rows[rows["q"] <= 0.05]
        first = top_rows(table, model, "response", 3).iloc[0]
        assert (first["layer"], first["head"], first["measure"]) == (1, 2, "b")
        assert first["ci_low"] < 0.3 < first["ci_high"]
        assert len(clear) <= 2
        for _, family in rows.groupby(["measure", "region"]):
            np.testing.assert_allclose(family["q"], benjamini_hochberg(family["p"].to_numpy()))


def test_the_row_of_a_head_is_the_test_of_its_values():
    runs, right = planted()
    table = contrast_table(runs, right).set_index(["model", "layer", "head", "measure", "region"])
    own = two_groups(runs[1].values[:, 1, 0, 0, 2:3], right[1], 0)
    assert table.loc[("y", 1, 0, "a", REGIONS[2]), "p"] == pytest.approx(own.p[0])
    both = two_way(np.stack([run.values[:, 1, 0, 0, 2:3] for run in runs]), right, 0)
    assert table.loc[(PAIRED, 1, 0, "a", REGIONS[2]), "p"] == pytest.approx(both.p[0])


def test_models_with_different_grids_of_heads_are_not_paired():
    runs, right = planted()
    others, _ = planted(layers=3)
    table = contrast_table([runs[0], others[1]], right)
    assert list(dict.fromkeys(table["model"])) == ["x", "y"]


def test_too_few_right_answers_are_named():
    runs, _ = planted()
    with pytest.raises(InputError, match=r"x: 0 right, 50 wrong.*at least 3 right and 3 wrong"):
        contrast_table(runs[:1], np.zeros((1, 50), bool))
    few = np.zeros((2, 50), bool)
    few[0, :2] = True
    with pytest.raises(InputError, match="some solve and some do not: 2"):
        contrast_table(runs, few)
    few[0, :3] = True
    table = contrast_table(runs, few)
    assert table.loc[table["model"] == "y", "p"].isna().all()
    assert table.loc[table["model"] == "y", "n_wrong"].eq(50).all()
    assert table.loc[table["model"] == "x", "p"].notna().all()


def test_pairing_can_test_what_no_single_model_can():
    runs, _ = planted(12)
    right = np.zeros((2, 12), bool)
    right[0, :2], right[1, 2:4] = True, True
    table = contrast_table(runs, right)
    assert table.loc[table["model"] != PAIRED, "p"].isna().all()
    assert table.loc[table["model"] == PAIRED, "p"].notna().all()


def test_different_examples_and_measures_are_refused():
    runs, right = planted()
    with pytest.raises(InputError, match="different examples"):
        contrast_table([runs[0], heads("y", runs[1].values[:40])], right)
    with pytest.raises(InputError, match="different measures"):
        contrast_table([runs[0], heads("y", runs[1].values[:, :, :, :1])], right)
    with pytest.raises(InputError, match=r"shape \(1, 50\), expected \(2, 50\)"):
        contrast_table(runs, right[:1])


def test_lengths_have_the_same_tests():
    random = np.random.default_rng(15)
    right = random.random((2, 40)) < 0.4
    lengths = random.integers(50, 200, (2, 40)) - 30 * right
    table = lengths_table(["x", "y"], lengths, right).set_index("model")
    assert list(table.index) == ["x", "y", PAIRED]
    expected: Any = stats.ttest_ind(lengths[1][right[1]], lengths[1][~right[1]], equal_var=False)
    assert table.loc["y", "p"] == pytest.approx(expected.pvalue)
    assert table.loc["y", "difference"] == pytest.approx(lengths[1][right[1]].mean() - lengths[1][~right[1]].mean())
    assert table.loc[PAIRED, "p"] == pytest.approx(two_way(lengths[:, :, None].astype(float), right, 0).p[0])
