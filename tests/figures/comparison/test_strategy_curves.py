"""figures.comparison.strategy_curves: means over seeds, differences and bands."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

from analyses.shifts.differences import layers_table
from figures.comparison.strategy_curves import by_layer, strategy_curves
from figures.drawing.style import STYLES, save_figure, use_style
from interp.tables.errors import InputError
from interp.tables.heads import HeadValues, ModelRun
from interp.tables.schema import REGIONS, MeasureInfo
from tests.figures.texts import assert_texts_inside_and_apart

INFO = MeasureInfo("numeric_mass", "Attention on numbers", "probability", 0.0, 1.0, "Σ p")
NUMBERS = ["mean", "mean_low", "mean_high", "difference", "ci_low", "ci_high"]


@cache
def table(layers: int, heads: int, conditions: int, seeds: int) -> tuple[pd.DataFrame, dict[str, str]]:
    """A baseline and conditions with several seeds, whose last layer rises; and each model's condition."""
    random = np.random.default_rng(0)
    common = random.beta(0.6, 5.0, (1, layers, heads, 1, len(REGIONS)))
    shape = (6, layers, heads, 1, len(REGIONS))
    every = []
    for condition in range(conditions + 1):
        for seed in range(seeds if condition else 1):
            name = f"condition number {condition}, seed {seed}" if condition else "untouched"
            values = common + random.normal(0, 0.02, shape)
            values[:, -1] += 0.1 * condition
            held = HeadValues(name, tuple(range(6)), tuple(range(layers)), heads, (INFO.name,), values)
            every.append(ModelRun(held, pd.DataFrame(), name.split(",")[0], seed))
    frame = pd.concat([layers_table(every[0], run) for run in every], ignore_index=True)
    return frame, {run.name: run.condition for run in every}


def subtitle_of(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def key_of(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_condition_is_the_mean_of_its_seeds():
    frame, conditions = table(3, 4, 2, 3)
    curves = by_layer(frame, INFO.name, "response", conditions)
    assert list(curves) == ["untouched", "condition number 1", "condition number 2"]
    rows = frame[(frame["region"] == "response") & frame["model"].str.startswith("condition number 2")]
    for column in NUMBERS:
        by_hand = [rows.loc[rows["layer"] == layer, column].mean() for layer in range(3)]
        np.testing.assert_allclose(curves["condition number 2"][column], by_hand)


def test_lines_and_bands_match_the_table():
    frame, conditions = table(3, 4, 2, 2)
    curves = by_layer(frame, INFO.name, "response", conditions)
    value, difference = strategy_curves(frame, INFO, conditions).axes
    assert len(value.collections) == 3
    assert len(difference.collections) == 2
    np.testing.assert_array_equal(value.lines[1].get_ydata(), curves["condition number 1"]["mean"])
    np.testing.assert_array_equal(difference.lines[1].get_ydata(), curves["condition number 2"]["difference"])
    band = np.asarray(difference.collections[1].get_paths()[0].vertices)[:, 1]
    assert band.max() == curves["condition number 2"]["ci_high"].max()
    assert band.min() == curves["condition number 2"]["ci_low"].min()
    assert list(difference.lines[-1].get_ydata()) == [0.0, 0.0]


def test_subtitle_and_legend_state_what_is_drawn():
    frame, conditions = table(3, 4, 2, 2)
    figure = strategy_curves(frame, INFO, conditions, "reference text")
    said = subtitle_of(figure)
    for text in (
        "n = 6 examples",
        "4 heads per layer",
        "response queries",
        "95 % bootstrap interval",
        "mean of the seeds'",
        "reference text",
    ):
        assert text in said, text
    assert key_of(figure) == ["untouched (baseline)", "condition number 1 (2 seeds)", "condition number 2 (2 seeds)", "95 % interval"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["value (probability)", "difference from the baseline (probability)"]


def test_one_seed_is_not_described_as_a_mean():
    frame, conditions = table(3, 4, 1, 1)
    figure = strategy_curves(frame, INFO, conditions)
    assert "seeds" not in subtitle_of(figure) + " ".join(key_of(figure))


def test_of_more_than_eight_conditions_eight_are_drawn():
    frame, conditions = table(4, 3, 10, 1)
    figure = strategy_curves(frame, INFO, conditions)
    assert "8 of 10 conditions are drawn" in subtitle_of(figure)
    assert len(figure.axes[1].lines) == 8 + 1
    lines = figure.axes[0].lines
    assert len({line.get_color() for line in lines}) == 9


def test_the_baseline_alone_can_be_drawn():
    frame, conditions = table(3, 4, 1, 1)
    figure = strategy_curves(frame[frame["model"] == "untouched"], INFO, conditions)
    assert [text.get_text() for text in figure.axes[1].texts] == ["no other condition"]


def test_undefined_values_can_be_drawn(tmp_path):
    frame, conditions = table(3, 4, 1, 1)
    figure = strategy_curves(frame.assign(**dict.fromkeys(NUMBERS, np.nan)), INFO, conditions)
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["undefined", "undefined"]
    save_figure(figure, tmp_path, "figure")


def test_a_model_without_a_condition_raises():
    with pytest.raises(InputError, match="no condition is known for condition number 1, seed 0"):
        strategy_curves(table(3, 4, 1, 1)[0], INFO, {"untouched": "untouched"})


def test_a_measure_that_was_not_taken_has_no_figure():
    frame, conditions = table(3, 4, 1, 1)
    assert strategy_curves(frame, MeasureInfo("entropy_nats", "Entropy", "nats", 0.0, None, ""), conditions) is None


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("width", ["one", "two"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 2, 2, 1), (30, 9, 4, 2), (32, 32, 8, 1), (80, 64, 3, 1)])
def test_texts_are_inside_and_do_not_overlap(shape, width, name):
    frame, conditions = table(*shape)
    with use_style(name, width) as at:
        figure = strategy_curves(frame, INFO, conditions, "reference text")
        assert figure.get_figwidth() == {"one": at.one, "two": at.two}[width]
        assert_texts_inside_and_apart(figure)


def test_drawing_twice_gives_the_same_bytes(tmp_path):
    for at in ("first", "second"):
        (tmp_path / at).mkdir()
        frame, conditions = table(3, 4, 2, 2)
        save_figure(strategy_curves(frame, INFO, conditions), tmp_path / at, "figure")
    for ending in ("png", "pdf"):
        assert (tmp_path / f"first/figure.{ending}").read_bytes() == (tmp_path / f"second/figure.{ending}").read_bytes()
