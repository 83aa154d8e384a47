"""Heads compared: only planted shifts are found; numbers agree with scipy or a plain loop; the false discovery rate holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyses.shifts.differences import (
    accuracy_slopes_table,
    agreement_table,
    by_condition,
    condition_shifts_table,
    divergences_table,
    layers_table,
    ranks_table,
    shifts_table,
)
from interp.inference import crossed_test
from interp.tables.errors import InputError
from interp.tables.heads import HeadValues, ModelRun
from interp.tables.schema import REGIONS, validate
from interp.tables.shifts import ACCURACY_SLOPES, AGREEMENT, CONDITIONS, LAYERS, MAP_DIVERGENCES, RANKS, SHIFTS

MEASURES = ("entropy_nats", "numeric_mass")
SHAPE = (3, 4, len(MEASURES), len(REGIONS))


def inputs(examples: int, offset: int = 0) -> pd.DataFrame:
    rows = [(e, p, 10 + p + offset, f"t{p}", "question" if p < 2 else "response", "none", p > 0) for e in range(examples) for p in range(4)]
    return pd.DataFrame(rows, columns=["example", "position", "token_id", "token", "region", "role", "is_query"])


def run(name: str, values: np.ndarray, condition: str | None = None, seed: int | None = None) -> ModelRun:
    held = HeadValues(name, tuple(range(len(values))), (0, 1, 2), 4, MEASURES, values)
    return ModelRun(held, inputs(len(values)), condition or name, seed)


def texts(n: int = 20, seed: int = 0) -> np.ndarray:
    """Return values with a part that heads share on a text, and a part of each head."""
    random = np.random.default_rng(seed)
    return 2 + random.normal(0, 1, (n, 1, 1, 1, 1)) + random.normal(0, 0.3, (n, *SHAPE))


def at(frame: pd.DataFrame, layer: int, head: int, measure: str = "entropy_nats", region: str = "all") -> pd.Series:
    rows = frame[(frame["layer"] == layer) & (frame["head"] == head) & (frame["measure"] == measure) & (frame["region"] == region)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_two_copies_do_not_differ() -> None:
    one = run("a", texts())
    table = shifts_table(one, replace(one, values=replace(one.values, model="b")))
    validate(table, SHIFTS)
    assert (table[["difference", "ci_low", "ci_high", "effect"]] == 0).all(axis=None)
    assert (table["q"] == 1).all()
    layers = layers_table(one, one)
    validate(layers, LAYERS)
    assert (layers[["difference", "ci_low", "ci_high", "magnitude"]] == 0).all(axis=None)


def test_rounding_is_not_a_shift() -> None:
    values = texts()
    noisy = values * (1 + np.random.default_rng(1).uniform(0, 2e-7, values.shape))
    assert (shifts_table(run("a", values), run("b", noisy))["q"] == 1).all()


def test_only_the_planted_shift_is_found() -> None:
    values = texts()
    moved = values.copy()
    moved[:, 1, 2, 0, 2] += 0.5 + np.random.default_rng(2).normal(0, 0.1, len(values))
    table = shifts_table(run("a", values), run("b", moved))
    assert table.loc[table["q"] < 0.05, ["layer", "head", "measure", "region"]].to_numpy().tolist() == [[1, 2, "entropy_nats", "all"]]
    row = at(table, 1, 2)
    paired = (moved - values)[:, 1, 2, 0, 2]
    theirs: Any = stats.ttest_1samp(paired, 0)
    assert row["p"] == pytest.approx(theirs.pvalue)
    assert row["difference"] == pytest.approx(paired.mean())
    assert row["effect"] == pytest.approx(paired.mean() / paired.std(ddof=1))
    assert row["mean"] - row["base_mean"] == pytest.approx(row["difference"])
    boot = stats.bootstrap((paired,), np.mean, method="percentile", rng=0).confidence_interval
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((boot.low, boot.high), abs=0.02)
    assert row["q"] == pytest.approx(row["p"] * 12)  # the smallest of twelve heads
    rows = table[(table["region"] == "all") & (table["measure"] == "entropy_nats")]
    first = rows.iloc[int(rows["effect"].abs().to_numpy().argmax())]
    assert (first["layer"], first["head"]) == (1, 2)


def test_undefined_values_are_left_out() -> None:
    values = texts()
    other = values + 0.1
    other[3, 0, 0, 0, 2] = np.nan
    values[:, 0, 1, 0, 2] = np.nan
    table = shifts_table(run("a", values), run("b", other))
    validate(table, SHIFTS)
    assert at(table, 0, 0)["n_examples"] == 19
    assert at(table, 0, 0)["difference"] == pytest.approx(0.1)
    gone = at(table, 0, 1)
    assert gone["n_examples"] == 0
    assert gone[["difference", "ci_low", "p", "q", "effect"]].isna().all()


def test_shuffled_labels_keep_the_false_discovery_rate() -> None:
    """With base and other swapped at random on each text nothing is true: any discovery is false, and few families may have one."""
    random = np.random.default_rng(0)
    false = []
    for repeat in range(150):
        values, other = texts(16, repeat), texts(16, 1000 + repeat)
        swap = random.random((16, 1, 1, 1, 1)) < 0.5
        one, two = np.where(swap, other, values), np.where(swap, values, other)
        q = shifts_table(run("a", one), run("b", two))["q"].to_numpy().reshape(12, -1)
        false += (q < 0.05).any(0).tolist()
    assert len(false) == 900
    assert np.mean(false) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)  # families of one repeat go together


def test_true_shifts_among_many_keep_the_false_discovery_rate() -> None:
    proportions, power = [], []
    for repeat in range(100):
        random = np.random.default_rng(repeat)
        d = random.normal(0, 1, (20, *SHAPE))
        d[:, 0] += 1.0  # the four heads of layer 0 move
        q = shifts_table(run("a", np.zeros_like(d)), run("b", d))["q"].to_numpy().reshape(3, 4, -1)
        found = q < 0.05
        proportions += (found[1:].sum((0, 1)) / np.maximum(1, found.sum((0, 1)))).tolist()
        power.append(found[0].mean())
    assert np.mean(proportions) <= 0.05
    assert np.mean(power) > 0.8


# --- seeds ----------------------------------------------------------------------------------------------------------


def test_seeds_are_a_second_level_of_variation() -> None:
    base = texts(12)
    random = np.random.default_rng(4)
    shifts = random.normal(0.2, 0.3, (3, *SHAPE))
    students = [run(f"s{k}", base + shifts[k] + random.normal(0, 0.1, base.shape), "taught", k) for k in range(3)]
    table = condition_shifts_table([run("base", base)], students)
    validate(table, CONDITIONS)
    row = at(table, 2, 1, "numeric_mass", "question")
    d = np.stack([(s.values.values - base)[:, 2, 1, 1, 0] for s in students])
    assert row["difference"] == pytest.approx(d.mean())
    assert row["sd_seeds"] == pytest.approx(d.mean(1).std(ddof=1))
    assert row["se_examples"] == pytest.approx(np.mean([stats.sem(one) for one in d]))
    low, high, p = crossed_test(d)
    assert (row["ci_low"], row["ci_high"], row["p"]) == pytest.approx((float(low), float(high), float(p)))
    assert (row["n_seeds"], row["n_examples"]) == (3, 12)
    pooled: Any = stats.ttest_1samp(d.ravel(), 0)
    assert row["p"] > pooled.pvalue  # three seeds of twelve texts are not 36 texts


def test_students_are_paired_with_the_baseline_of_their_seed() -> None:
    random = np.random.default_rng(5)
    bases = [run(f"b{k}", texts(8, k), "none", k) for k in range(3)]
    others = [run(f"o{k}", bases[k].values.values + 0.3 + random.normal(0, 0.01, (8, *SHAPE)), "told", k) for k in (1, 0, 2)]
    table = condition_shifts_table(bases, others)
    np.testing.assert_allclose(table["difference"], 0.3, atol=0.02)
    assert (table["q"] < 0.05).all()
    with pytest.raises(InputError, match=r"none has the seeds \[0, 1, 2\] and told \[4, 5, 6\], with none in common"):
        condition_shifts_table(bases, [replace(o, seed=4 + k) for k, o in enumerate(others)])
    assert [len(group) for group in by_condition([*bases, *others]).values()] == [3, 3]


def test_one_seed_gives_the_test_over_examples() -> None:
    base, other = run("a", texts(10)), run("b", texts(10) + 0.2, "told", 0)
    table = condition_shifts_table([base], [other])
    assert table["sd_seeds"].isna().all()
    assert (table["n_seeds"] == 1).all()
    np.testing.assert_array_equal(table["p"], shifts_table(base, other)["p"])


# --- layers, ranks, accuracy ----------------------------------------------------------------------------------------


def test_layers_are_means_over_heads() -> None:
    base, other = texts(9), texts(9, 7)
    table = layers_table(run("a", base), run("b", other))
    validate(table, LAYERS)
    row = table[(table["layer"] == 1) & (table["measure"] == "numeric_mass") & (table["region"] == "response")].iloc[0]
    d = (other - base)[:, 1, :, 1, 1]
    assert row["difference"] == pytest.approx(d.mean())
    assert row["mean"] == pytest.approx(other[:, 1, :, 1, 1].mean())
    assert row["magnitude"] == pytest.approx(np.abs(d.mean(0)).mean())
    assert row["mean_low"] < row["mean"] < row["mean_high"]


def test_ranks_and_agreement_equal_scipy() -> None:
    one, other = run("a", texts(15)), run("b", texts(15) + np.random.default_rng(1).normal(0, 0.2, (15, *SHAPE)))
    ranks = ranks_table(one)
    validate(ranks, RANKS)
    means = one.values.values.mean(0)[:, :, 0, 2].ravel()
    family = ranks[(ranks["measure"] == "entropy_nats") & (ranks["region"] == "all")]
    np.testing.assert_array_equal(family["rank"], stats.rankdata(-means))
    assert ((family["rank_low"] <= family["rank"]) & (family["rank"] <= family["rank_high"])).mean() > 0.9
    table = agreement_table([one, other])
    validate(table, AGREEMENT)
    row = table[(table["measure"] == "entropy_nats") & (table["region"] == "all")].iloc[0]
    theirs: Any = stats.spearmanr(means, other.values.values.mean(0)[:, :, 0, 2].ravel())
    assert row["spearman"] == pytest.approx(theirs.statistic)
    assert row["ci_low"] <= row["ci_high"]
    np.testing.assert_allclose(agreement_table([one, replace(one, values=replace(one.values, model="c"))])["spearman"], 1)


def test_accuracy_permutation_test_equals_scipy() -> None:
    base = texts(6)
    random = np.random.default_rng(8)
    students = [run(f"s{k}", base + random.normal(0, 1, (1, *SHAPE))).values for k in range(6)]
    accuracy = [0.1, 0.25, 0.2, 0.4, 0.35, 0.5]
    table = accuracy_slopes_table(run("base", base).values, students, accuracy)
    validate(table, ACCURACY_SLOPES)
    row = at(table, 0, 3)
    x = [(s.values - base)[:, 0, 3, 0, 2].mean() for s in students]
    theirs: Any = stats.spearmanr(x, accuracy)
    assert row["spearman"] == pytest.approx(theirs.statistic)
    exact = stats.permutation_test(
        (x,), lambda x: np.asarray(stats.spearmanr(x, accuracy))[0], permutation_type="pairings", n_resamples=10_000, vectorized=False
    )
    assert row["p"] == pytest.approx(exact.pvalue)
    assert row["n_students"] == 6
    few = accuracy_slopes_table(run("base", base).values, students[:4], accuracy[:4])
    assert few["p"].isna().all()
    assert few["q"].isna().all()
    assert few["spearman"].notna().all()
    with pytest.raises(InputError, match="at least two"):
        accuracy_slopes_table(run("base", base).values, students[:1], accuracy[:1])


def test_accuracy_of_many_students_uses_random_orders() -> None:
    base = texts(3)
    random = np.random.default_rng(9)
    students = [run(f"s{k}", base + random.normal(0, 1, (1, *SHAPE))).values for k in range(12)]
    accuracy = random.random(12)
    p = accuracy_slopes_table(run("base", base).values, students, list(accuracy))["p"]
    assert stats.kstest(p, "uniform").pvalue > 0.001  # nothing goes with it
    accuracy = [float((s.values - base)[:, 1, 1, 0, 0].mean()) for s in students]
    assert at(accuracy_slopes_table(run("base", base).values, students, accuracy), 1, 1, region="question")["p"] == pytest.approx(1e-4)


def test_divergences_are_means_over_examples() -> None:
    random = np.random.default_rng(3)
    rows = [
        {"model": "b", "baseline": "a", "example": e, "layer": la, "head": h, "measure": m, "region": r, "value": random.random()}
        for e in range(5)
        for la in range(2)
        for h in range(2)
        for m in ("js", "cosine")
        for r in REGIONS
    ]
    frame = pd.DataFrame(rows)
    table = divergences_table(frame)
    validate(table, MAP_DIVERGENCES)
    wanted = frame.groupby(["layer", "head", "measure", "region"])["value"].mean()
    found = table.set_index(["layer", "head", "measure", "region"])["mean"]
    pd.testing.assert_series_equal(found.sort_index(), wanted.sort_index(), check_names=False)
    assert (table["n_examples"] == 5).all()
