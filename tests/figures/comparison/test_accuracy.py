"""figures.comparison.accuracy: points and intervals, n and test, no p value for few students."""

# A drawing function may return None, and matplotlib's artists have broad types; if they differ from what is expected, the test fails.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from figures.comparison.accuracy import accuracy_against_shift, accuracy_bars, accuracy_heads, rank_correlation
from figures.drawing.style import save_figure
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo
from tests.figures.texts import assert_texts_inside_and_apart

INFO = MeasureInfo("entropy_nats", "Entropy of attention", "nats", 0.0, None, "")
INFOS = {f"m{i}": MeasureInfo(f"m{i}", f"Attention on things of kind {i}", "1", 0.0, 1.0, "") for i in range(20)}
LONG = "runs/a-study-with-quite-a-long-name · against untouched · reference text · n = 1319 examples"


def students(conditions: int = 4, seeds: int = 3, name: str = "condition") -> pd.DataFrame:
    random = np.random.default_rng(0)
    rows: list[dict[str, object]] = [{"model": "untouched", "condition": "untouched", "seed": pd.NA, "accuracy": 0.1, "shift": 0.0}]
    for at in range(conditions):
        for seed in range(seeds):
            value = 0.15 + 0.05 * at + random.normal(0, 0.01)
            shift = 0.1 + 0.06 * at + random.normal(0, 0.02)
            rows.append({"model": f"{name}-{at}-s{seed}", "condition": f"{name}-{at}", "seed": seed, "accuracy": value, "shift": shift})
    frame = pd.DataFrame(rows).astype({"seed": "Int64"})
    return frame.assign(accuracy_low=frame["accuracy"] - 0.04, accuracy_high=frame["accuracy"] + 0.05, n_problems=250)


def correlations(layers: int, heads: int, n_students: int = 12, measures: tuple[str, ...] = (INFO.name,)) -> pd.DataFrame:
    index = pd.MultiIndex.from_product([range(layers), range(heads), measures, ["response"]], names=["layer", "head", "measure", "region"])
    random = np.random.default_rng(0)
    p = random.uniform(size=len(index)) if n_students >= 5 else np.full(len(index), np.nan)
    frame = index.to_frame(index=False)
    return frame.assign(spearman=random.uniform(-1, 1, len(index)), p=p, q=p, n_students=n_students)


def texts(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_every_student_has_a_point_and_an_interval():
    models = students(2, 2)
    axes = accuracy_bars(models).axes[0]
    points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    whiskers = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() != "o"]
    assert points == models["accuracy"].tolist()
    assert whiskers == models[["accuracy_low", "accuracy_high"]].to_numpy().tolist()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["untouched", "condition-0", "condition-1"]
    assert "seed 1" in " ".join(text.get_text() for text in axes.texts)
    assert "accuracy (share of problems)" in axes.get_xlabel()


def test_the_subtitle_states_n_and_interval():
    said = texts(accuracy_bars(students()))
    assert "n = 250 problems" in said
    assert "95 % Wilson interval" in said
    assert "no test" in said


def test_accuracies_without_intervals_have_no_whiskers():
    figure = accuracy_bars(students()[["model", "accuracy"]])
    assert all(line.get_marker() == "o" for line in figure.axes[0].lines)
    assert "number of problems unknown" in texts(figure)
    assert "no whiskers: interval unknown" in texts(figure)


def test_students_without_accuracy_are_left_out_and_counted():
    models = students(2, 2)
    models.loc[1, "accuracy"] = np.nan
    assert "1 without a known accuracy left out" in texts(accuracy_bars(models))
    assert accuracy_bars(models.assign(accuracy=np.nan)) is None
    assert accuracy_bars(models.drop(columns="accuracy")) is None
    assert accuracy_against_shift(models.drop(columns="shift"), None, {}) is None
    with pytest.raises(InputError, match="models lacks the column model"):
        accuracy_bars(models.drop(columns="model"))


def test_the_p_value_matches_all_permutations():
    x, y = np.array([1.0, 3.0, 2.0, 5.0, 4.0, 6.0]), np.array([0.1, 0.2, 0.25, 0.3, 0.32, 0.31])
    rho, p = rank_correlation(x, y)
    assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
    every = [abs(stats.spearmanr(x, order).statistic) >= abs(rho) - 1e-12 for order in permutations(y)]
    assert p == pytest.approx(np.mean(every))


def test_fewer_than_five_students_have_no_p_value():
    rho, p = rank_correlation(np.arange(4.0), np.arange(4.0))
    assert rho == pytest.approx(1.0)
    assert np.isnan(p)
    said = texts(accuracy_against_shift(students(2, 2), None, {}))
    assert "n = 4 students" in said
    assert "no p value below 5 students" in said
    assert "p = " not in said
    assert np.isnan(rank_correlation(np.ones(6), np.arange(6.0))[0])


def test_the_baseline_is_not_counted():
    figure = accuracy_against_shift(students(), None, {})
    assert "n = 12 students" in texts(figure)
    assert "permutations" in texts(figure)
    hollow = [line for line in figure.axes[0].lines if line.get_marker() == "o" and line.get_markerfacecolor() == "none"]
    assert [line.get_xdata()[0] for line in hollow] == [0.0]
    names = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(names) == sorted(students()["model"])


def test_significant_heads_are_counted_by_measure():
    accuracy = correlations(4, 5, measures=("m0", "m1"))
    figure = accuracy_against_shift(students(), accuracy, INFOS)
    assert len(figure.axes) == 2
    clear = accuracy[accuracy["q"] <= 0.05].groupby("measure").size().reindex(["m0", "m1"], fill_value=0)
    assert [text.get_text() for text in figure.axes[1].texts] == [f"{n} of 20" for n in clear]
    assert "Benjamini-Hochberg" in texts(figure)
    assert len(accuracy_against_shift(students(), correlations(2, 2, 3, ("m0",)), INFOS).axes) == 1


def test_heads_that_are_not_significant_are_dimmed():
    accuracy = correlations(3, 4)
    accuracy.loc[2, ["spearman", "p", "q"]] = np.nan
    accuracy.loc[[0, 5], "q"] = 0.01
    figure = accuracy_heads(accuracy, INFO)
    alpha = figure.axes[0].images[0].get_alpha()
    clear = (accuracy["q"] <= 0.05).to_numpy().reshape(3, 4).T
    np.testing.assert_array_equal(alpha == 1.0, clear)
    said = texts(figure)
    assert "n = 12 students" in said
    assert "permutation test" in said
    assert "Benjamini-Hochberg over 11 heads" in said
    assert "Entropy of attention" in said


def test_with_few_students_no_map_is_drawn():
    figure = accuracy_heads(correlations(3, 4, 3), INFO)
    assert not figure.axes
    assert "n = 3 students" in texts(figure)
    assert "No test was made, and no map is drawn" in texts(figure)
    assert_texts_inside_and_apart(figure)
    assert accuracy_heads(correlations(3, 4), INFO, region="question") is None


@pytest.mark.parametrize("models", [students(), students(8, 5, "a condition with a long name"), students(1, 1)])
def test_texts_are_inside_and_do_not_overlap(models):
    assert_texts_inside_and_apart(accuracy_bars(models, LONG))
    assert_texts_inside_and_apart(accuracy_against_shift(models, None, {}, LONG))
    assert_texts_inside_and_apart(accuracy_against_shift(models, correlations(2, 3, measures=tuple(INFOS)), INFOS, LONG))


@pytest.mark.parametrize("shape", [(1, 1), (30, 9), (32, 32), (80, 64)])
def test_texts_of_maps_are_inside_and_do_not_overlap(shape):
    assert_texts_inside_and_apart(accuracy_heads(correlations(*shape), INFO, LONG))


def test_drawing_twice_gives_the_same_bytes(tmp_path):
    draws = {
        "bars": lambda: accuracy_bars(students()),
        "shift": lambda: accuracy_against_shift(students(), correlations(2, 3, measures=("m0",)), INFOS),
        "heads": lambda: accuracy_heads(correlations(3, 4), INFO),
    }
    for name, draw in draws.items():
        first = [path.read_bytes() for path in save_figure(draw(), tmp_path, name)]
        assert first == [path.read_bytes() for path in save_figure(draw(), tmp_path, name)]
