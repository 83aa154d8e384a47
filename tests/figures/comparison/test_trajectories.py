"""figures.comparison.trajectories: differences from the first recorded step."""

# A drawing function may return None, and matplotlib's artists have broad types; if they differ from what is expected, the test fails.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from figures.comparison.trajectories import trajectory_curves, trajectory_heads
from figures.drawing.style import save_figure
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo
from tests.figures.texts import assert_texts_inside_and_apart

INFO = MeasureInfo("numeric_mass", "Attention on numbers", "probability", 0.0, 1.0, "")
LONG = "runs/a-study-with-quite-a-long-name · reference text · n = 40 examples · chat template"
STEPS = (0, 10, 20, 50, 100)


def recorded(layers: int, heads: int, conditions: int = 2, seeds: int = 2, steps=STEPS, name: str = "condition") -> pd.DataFrame:
    random = np.random.default_rng(0)
    frames = []
    for at in range(conditions):
        for seed in range(seeds):
            index = pd.MultiIndex.from_product([steps, range(layers), range(heads)], names=["step", "layer", "head"])
            frame = index.to_frame(index=False).assign(mean=random.uniform(size=len(index)))
            frames.append(frame.assign(model=f"{name}-{at}-s{seed}", condition=f"{name}-{at}", seed=seed))
    return pd.concat(frames, ignore_index=True).assign(measure=INFO.name, region="response")


def losses(conditions: int = 2, seeds: int = 2, name: str = "condition") -> pd.DataFrame:
    rows = [
        (f"{name}-{at}-s{s}", f"{name}-{at}", s, step, 3 / (1 + step))
        for at in range(conditions)
        for s in range(seeds)
        for step in range(1, 9)
    ]
    return pd.DataFrame(rows, columns=["model", "condition", "seed", "step", "loss"])


def graded(conditions: int = 2, seeds: int = 2, name: str = "condition") -> pd.DataFrame:
    rows = [(f"{name}-{at}-s{s}", f"{name}-{at}", s, 0.2 + 0.05 * at, 0.15, 0.5, 250) for at in range(conditions) for s in range(seeds)]
    columns = ["model", "condition", "seed", "accuracy", "accuracy_low", "accuracy_high", "n_problems"]
    return pd.DataFrame(rows, columns=columns)


def texts(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def expected(frame: pd.DataFrame, model: str) -> np.ndarray:
    """[step, head] differences from the first step."""
    values = frame[frame["model"] == model].sort_values(["step", "layer", "head"])["mean"].to_numpy()
    values = values.reshape(frame["step"].nunique(), -1)
    return values - values[0]


def test_lines_are_mean_absolute_differences():
    frame = recorded(3, 4)
    figure = trajectory_curves(frame, losses(), graded(), INFO)
    moved = figure.axes[0].lines
    one, two = (np.abs(expected(frame, f"condition-0-s{seed}")).mean(1) for seed in (0, 1))
    drawn = [np.asarray(line.get_ydata(), float) for line in moved]
    assert len(drawn) == 6
    for wanted in (one, two, (one + two) / 2):
        assert any(np.allclose(y, wanted) for y in drawn)
    assert [line.get_linewidth() for line in moved] == [0.5, 0.5, 1.3] * 2
    assert moved[0].get_xdata().tolist() == list(STEPS)


def test_panels_state_units_and_n():
    figure = trajectory_curves(recorded(3, 4), losses(), graded(), INFO)
    assert [axes.get_xlabel() for axes in figure.axes] == ["training step", "training step", "share of problems"]
    titles = " ".join(axes.get_title(loc="left") for axes in figure.axes).replace("\n", " ")
    assert "mean |difference from step 0| (probability)" in titles
    assert "training loss (nats per token)" in titles
    said = texts(figure)
    for part in ("n = 4 students, 12 heads", "Wilson interval over n = 250 problems", "no test", "response queries"):
        assert part in said


def test_a_first_recorded_step_other_than_0_is_stated():
    frame = recorded(2, 2, 1, 1, (5, 10))
    assert "step 5" in trajectory_curves(frame, None, None, INFO).axes[0].get_title(loc="left")
    later = pd.concat([frame, recorded(2, 2, 1, 1, (0, 10), "other")])
    assert "first recorded step" in trajectory_curves(later, None, None, INFO).axes[0].get_title(loc="left").replace("\n", " ")


def test_panels_without_data_are_left_out():
    frame = recorded(3, 4)
    assert len(trajectory_curves(frame, None, None, INFO).axes) == 1
    assert len(trajectory_curves(frame, losses()[:0], graded().drop(columns="accuracy"), INFO).axes) == 1
    assert len(trajectory_curves(frame, losses(), None, INFO).axes) == 2
    assert trajectory_curves(frame, None, None, INFO, region="question") is None
    assert trajectory_heads(frame, INFO, region="question") is None
    with pytest.raises(InputError, match="trajectory lacks the column step"):
        trajectory_curves(frame.drop(columns="step"), None, None, INFO)
    with pytest.raises(InputError, match="training lacks the column loss"):
        trajectory_curves(frame, losses().drop(columns="loss"), None, INFO)


def test_the_mean_is_over_steps_that_all_students_have():
    frame = recorded(2, 2, 1)
    frame = frame[(frame["model"] != "condition-0-s1") | (frame["step"] != 50)]
    thick = trajectory_curves(frame, None, None, INFO).axes[0].lines[-1]
    assert thick.get_xdata().tolist() == [0, 10, 20, 100]
    image = trajectory_heads(frame, INFO).axes[0].images[0]
    assert image.get_array().shape == (4, 4)


def test_heads_that_moved_most_come_first():
    frame = recorded(3, 4, 1)
    figure = trajectory_heads(frame, INFO, count=5)
    mean = (expected(frame, "condition-0-s0") + expected(frame, "condition-0-s1")) / 2
    order = np.argsort(-np.abs(mean).max(0), kind="stable")[:5]
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{at // 4}.{at % 4}" for at in order]
    np.testing.assert_allclose(axes.images[0].get_array(), mean[:, order].T)
    low, high = axes.images[0].get_clim()
    assert -low == high == pytest.approx(np.abs(mean).max())
    said = texts(figure)
    for part in ("the 5 of 12 heads", "n = 2 students", "difference from step 0 (probability)", "no test", "limits from the data"):
        assert part in said


def test_undefined_heads_are_not_shown_as_zero():
    frame = recorded(2, 2, 2, 1)
    frame.loc[(frame["condition"] == "condition-1") & (frame["head"] == 0), "mean"] = np.nan
    figure = trajectory_heads(frame, INFO)
    assert "hatched: undefined" in texts(figure)
    assert np.ma.getmaskarray(np.ma.asarray(figure.axes[1].images[0].get_array())).sum() == 2 * len(STEPS)
    assert trajectory_heads(frame.assign(mean=np.nan), INFO) is None
    assert trajectory_curves(frame.assign(mean=np.nan), None, None, INFO) is None


def test_heads_that_do_not_move_can_be_drawn(tmp_path):
    frame = recorded(2, 2).assign(mean=0.5)
    save_figure(trajectory_heads(frame, INFO), tmp_path, "heads")
    save_figure(trajectory_curves(frame, None, None, INFO), tmp_path, "curves")


@pytest.mark.parametrize("shape", [(1, 1), (32, 32)])
@pytest.mark.parametrize(("conditions", "seeds", "name"), [(1, 1, "c"), (4, 3, "c"), (8, 2, "a condition with a long name")])
def test_texts_are_inside_and_do_not_overlap(shape, conditions, seeds, name):
    frame = recorded(*shape, conditions, seeds, name=name)
    both = losses(conditions, seeds, name), graded(conditions, seeds, name)
    assert_texts_inside_and_apart(trajectory_curves(frame, *both, INFO, LONG))
    assert_texts_inside_and_apart(trajectory_curves(frame, None, None, INFO, LONG))
    assert_texts_inside_and_apart(trajectory_heads(frame, INFO, LONG))


def test_texts_of_many_heads_and_steps_do_not_overlap():
    frame = recorded(80, 64, 2, 1, (0, 1000, 20000, 300000))
    assert_texts_inside_and_apart(trajectory_curves(frame, None, None, INFO, LONG))
    assert_texts_inside_and_apart(trajectory_heads(frame, INFO, LONG))
    assert_texts_inside_and_apart(trajectory_heads(recorded(2, 2, 3, 1, range(0, 60000, 500)), INFO, LONG))


def test_drawing_twice_gives_the_same_bytes(tmp_path):
    frame = recorded(3, 4)
    draws = {"curves": lambda: trajectory_curves(frame, losses(), graded(), INFO), "heads": lambda: trajectory_heads(frame, INFO)}
    for name, draw in draws.items():
        first = [path.read_bytes() for path in save_figure(draw(), tmp_path, name)]
        assert first == [path.read_bytes() for path in save_figure(draw(), tmp_path, name)]
