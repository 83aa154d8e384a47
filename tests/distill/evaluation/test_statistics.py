from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distill.evaluation.statistics import (
    accuracy_by_condition,
    accuracy_by_student,
    calibration,
    holm,
    mcnemar_exact,
    mean_interval,
    sign_flip_test,
    wilson_interval,
)
from interp.tables.errors import InputError


def answers(verdicts: Mapping[Any, list[int]], samples: int = 1) -> pd.DataFrame:
    """Return answers of students to problems 0, 1, ..., with verdicts in the order of problem and sample."""
    rows: list[dict[str, Any]] = []
    for (condition, seed), given_ in verdicts.items():
        for at, right in enumerate(given_):
            problem, sample = divmod(at, samples)
            rows.append({"condition": condition, "seed": seed, "problem": problem, "sample": sample, "correct": bool(right)})
    frame = pd.DataFrame(rows).assign(tokens=10, finish="eos", confidence=0.5)
    return frame.assign(seed=frame["seed"].astype("Int64"))


@given(st.integers(0, 200), st.integers(1, 200), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_interval_matches_scipy(right: int, n: int, level: float) -> None:
    right = min(right, n)
    expected = stats.binomtest(right, n).proportion_ci(level, method="wilson")
    assert wilson_interval(right, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_has_its_coverage() -> None:
    """In a simulation, 95 % intervals contain the true value in about 95 of 100 cases, also near 0."""
    random = np.random.default_rng(0)
    for truth in (0.02, 0.3):
        held = [low <= truth <= high for low, high in (wilson_interval(int(r), 100) for r in random.binomial(100, truth, 1000))]
        assert 0.92 <= np.mean(held) <= 0.98


def test_mcnemar_hand_worked_case() -> None:
    """8 pairs one way and 1 the other: 2 * P(X <= 1 | 9, 1/2) = 2 * 10 / 512."""
    one = np.array([1] * 8 + [0] + [1] * 5)
    other = np.array([0] * 8 + [1] + [1] * 5)
    only_one, only_other, p = mcnemar_exact(one, other)
    assert (only_one, only_other) == (8, 1)
    assert p == pytest.approx(20 / 512)
    assert mcnemar_exact(one, one) == (0, 0, 1.0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_equals_a_binomial_test(pairs: list[tuple[bool, bool]]) -> None:
    one, other = (np.array(side) for side in zip(*pairs, strict=True))
    only_one, only_other, p = mcnemar_exact(one, other)
    discordant = only_one + only_other
    assert p == pytest.approx(stats.binomtest(only_one, discordant).pvalue if discordant else 1.0)


def test_sign_flips_of_few_problems_are_enumerated() -> None:
    """Four differences of 1 and one of 0: in 4 of the 32 flips all four signs are equal, so p = 4 / 32."""
    assert sign_flip_test(np.array([1.0, 1, 1, 1, 0]), 10_000, 0) == pytest.approx(4 / 32)
    assert sign_flip_test(np.zeros(5), 100, 0) == 1.0


def test_sign_flip_p_is_uniform_under_the_null() -> None:
    random = np.random.default_rng(1)
    p = [sign_flip_test(random.normal(size=40), 400, i) for i in range(200)]
    assert np.mean(np.array(p) <= 0.05) <= 0.1
    assert stats.kstest(p, "uniform").statistic < 0.15


def test_bootstrap_interval_is_near_the_normal_one_and_reproducible() -> None:
    values = np.random.default_rng(2).normal(size=400)
    low, high = mean_interval(values, 0.95, 4000, 0)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert (low, high) == mean_interval(values, 0.95, 4000, 0)
    assert all(map(math.isnan, mean_interval(np.ones(5), 0.95, 100, 0)))
    assert all(map(math.isnan, mean_interval(np.array([0.3]), 0.95, 100, 0)))


def test_holm_hand_worked_case() -> None:
    """Three tests: 0.01 * 3, 0.03 * 2, then at least the value before; NaN is not counted."""
    assert holm([0.03, 0.01, float("nan"), 0.04]) == pytest.approx([0.06, 0.03, float("nan"), 0.06], nan_ok=True)
    assert holm([float("nan")]) == pytest.approx([float("nan")], nan_ok=True)


def test_calibration_hand_worked_case() -> None:
    confidence = np.array([0.9, 0.9, 0.1, 0.1, np.nan])
    found = calibration(confidence, np.array([1, 0, 0, 0, 1]), bins=2)
    assert found == pytest.approx({"ece": (0.1 + 0.4) / 2, "brier": (0.01 + 0.81 + 0.01 + 0.01) / 4, "auroc": 2.5 / 3, "n_confident": 4})
    assert math.isnan(calibration(confidence, np.ones(5))["auroc"])
    assert calibration(np.array([np.nan]), np.array([1]))["n_confident"] == 0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
@settings(deadline=None)
def test_calibration_stays_in_range(pairs: list[tuple[float, bool]]) -> None:
    found = calibration(np.array([c for c, _ in pairs]), np.array([r for _, r in pairs]))
    for name in ("ece", "brier"):
        assert 0 <= found[name] <= 1
    assert math.isnan(found["auroc"]) or 0 <= found["auroc"] <= 1


def test_students_are_tested_against_the_baseline_of_their_seed() -> None:
    given_ = {
        ("untouched", None): [0, 0, 0, 0],
        ("none", 0): [1, 0, 0, 0],
        ("none", 1): [1, 1, 1, 0],
        ("teacher", 0): [1, 1, 1, 0],
        ("teacher", 1): [1, 1, 1, 1],
    }
    table = accuracy_by_student(answers(given_), "none")
    row = {name: dict(zip(given_, table[name].tolist(), strict=True)) for name in table}
    assert list(row["right"].values()) == [0, 1, 3, 3, 4]
    assert row["only_this"]["teacher", 0] == 2
    assert row["only_this"]["teacher", 1] == 1
    assert math.isnan(row["p_mcnemar"]["none", 0])
    assert row["p_mcnemar"]["teacher", 0] == pytest.approx(0.5)  # two discordant pairs, both in one direction
    assert row["p_holm"]["teacher", 0] == pytest.approx(1.0)  # two conditions of this seed
    assert row["p_holm"]["teacher", 1] == pytest.approx(1.0)


def test_students_of_different_seeds_are_not_compared() -> None:
    """The baseline's second seed is not evaluated yet, so there is nothing to compare with or to correct for."""
    table = accuracy_by_student(answers({("none", 0): [1, 0, 0], ("teacher", 0): [1, 1, 1], ("teacher", 1): [1, 1, 1]}), "none")
    assert table["only_this"].tolist() == pytest.approx([math.nan, 2, math.nan], nan_ok=True)
    assert table["p_holm"].tolist() == pytest.approx([math.nan, 0.5, math.nan], nan_ok=True)


def test_baseline_without_a_seed_is_compared_with_every_seed() -> None:
    given_ = {("untouched", None): [0, 0, 0], ("none", 0): [1, 0, 0], ("none", 1): [1, 1, 1]}
    table = accuracy_by_student(answers(given_), "untouched")
    assert table["only_this"].tolist() == pytest.approx([math.nan, 1, 3], nan_ok=True)
    assert table["p_holm"].tolist() == pytest.approx([math.nan, 1.0, 0.25], nan_ok=True)


def test_one_problem_gives_no_evidence() -> None:
    assert sign_flip_test(np.array([1.0]), 100, 0) == 1.0
    table = accuracy_by_condition(answers({("none", 0): [0], ("teacher", 0): [1]}), "none").set_index("condition")
    assert [float(table[name]["teacher"]) for name in ("difference", "p", "p_holm")] == [1.0, 1.0, 1.0]
    assert math.isnan(float(table["difference_low"]["teacher"]))


def test_conditions_are_pooled_over_seeds_with_their_spread() -> None:
    given_ = {("none", 0): [0, 0, 1, 0], ("none", 1): [0, 0, 1, 1], ("teacher", 0): [1, 1, 1, 0], ("teacher", 1): [1, 1, 1, 1]}
    table = accuracy_by_condition(answers(given_), "none", resamples=500).set_index("condition")
    assert table["accuracy"].to_dict() == {"none": 3 / 8, "teacher": 7 / 8}
    assert table["sd_seeds"].tolist() == pytest.approx([np.std([0.25, 0.5], ddof=1), np.std([0.75, 1], ddof=1)])
    assert table.loc["teacher", "difference"] == pytest.approx(0.5)
    # both seeds give 1, 1, 0, 0 by problem: no variance between seeds, so a t test over problems
    assert table.loc["teacher", "p"] == pytest.approx(np.asarray(stats.ttest_1samp([1, 1, 0, 0], 0))[1])
    assert math.isnan(float(table["difference"]["none"]))


def test_one_seed_uses_a_permutation_test_over_problems() -> None:
    table = accuracy_by_condition(answers({("none", 0): [0, 0, 1, 0], ("teacher", 0): [1, 1, 1, 0]}), "none").set_index("condition")
    assert table.loc["teacher", "p"] == pytest.approx(0.5)  # two problems differ: 2 of 4 flips are as extreme


def test_several_samples_have_no_mcnemar_test() -> None:
    given_ = {("none", 0): [1, 0, 1, 1], ("teacher", 0): [1, 1, 1, 1]}
    table = accuracy_by_student(answers(given_, samples=2), "none")
    assert table["samples"].tolist() == [2, 2]
    assert table["problems"].tolist() == [2, 2]
    assert table["accuracy"].tolist() == [0.75, 1.0]
    assert table["p_mcnemar"].isna().all()


def test_students_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(InputError, match="baseline 'none' has no answers; these conditions have: teacher"):
        accuracy_by_student(answers({("teacher", 0): [1]}), "none")
    uneven = answers({("none", 0): [1, 0], ("teacher", 0): [1]})
    for table in (accuracy_by_student, accuracy_by_condition):
        with pytest.raises(InputError, match="cannot be paired"):
            table(uneven, "none")
    twice = pd.concat([answers({("none", 0): [1, 0]})] * 2)
    with pytest.raises(InputError, match="several answers"):
        accuracy_by_student(twice, "none")


@pytest.mark.parametrize("right", [0, 1])
def test_all_right_or_all_wrong(right: int) -> None:
    given_ = answers({("none", 0): [right] * 5, ("teacher", 0): [right] * 5})
    table = accuracy_by_condition(given_, "none").set_index("condition")
    assert table.loc["teacher", "p"] == 1.0
    assert math.isnan(float(table["difference_low"]["teacher"]))
    assert float(table["high"]["none"]) - float(table["low"]["none"]) > 0.3  # five problems give a wide interval
