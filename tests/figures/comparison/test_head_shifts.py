"""figures.comparison.head_shifts: significant, other and undefined heads."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from analyses.shifts.differences import condition_shifts_table, shifts_table
from figures.comparison.head_shifts import difference_map
from figures.comparison.volcano import volcano
from figures.drawing.significance import difference_scale
from figures.drawing.style import STYLES, save_figure, use_style
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo
from tests.figures.comparison.cases import INFO, MOVED, long_table, runs, where
from tests.figures.texts import assert_texts_inside_and_apart


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Three layers of four heads; three moved far, the others not at all."""
    return shifts_table(*runs(3, 4, moved=MOVED))


def subtitle_of(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_only_significant_heads_have_a_color(table):
    figure = difference_map(table, INFO)
    colors, grays = figure.axes[0].images
    clear = np.array([[(layer, head) in MOVED for layer in range(3)] for head in range(4)])
    np.testing.assert_array_equal(np.ma.getmaskarray(np.ma.asarray(colors.get_array())), ~clear)
    np.testing.assert_array_equal(np.ma.getmaskarray(np.ma.asarray(grays.get_array())), clear)
    shades = grays.to_rgba(grays.get_array())[~clear]
    np.testing.assert_allclose(shades[:, 0], shades[:, 1], atol=0.02)  # gray: as much red as green
    red, _, blue, _ = colors.to_rgba(0.1)
    assert red > blue  # red is higher than the baseline


def test_colors_are_symmetric_and_use_a_given_limit(table):
    figure = difference_map(table, INFO)
    low, high = figure.axes[0].images[0].get_clim()
    rows = table[table["region"] == "response"]
    assert high == -low == pytest.approx(rows["difference"].abs().max())
    assert difference_map(table, INFO, limit=0.5).axes[0].images[0].get_clim() == (-0.5, 0.5)
    assert difference_scale(np.array([0.2, -0.9]), 0.5).extend == "both"


def test_the_subtitle_states_models_n_test_and_correction(table):
    for draw, unit in ((difference_map, "(probability)"), (volcano, "(d_z)")):
        said = subtitle_of(draw(table, INFO, "reference text"))
        for text in ("student minus base", "n = 30 examples", "response queries", "paired t test", "Benjamini-Hochberg over 3 × 4 heads"):
            assert text in said, text
        assert "reference text" in said
        assert unit in said
    assert "gray: q > 0.05 · 3 of 12 heads have q ≤ 0.05" in subtitle_of(difference_map(table, INFO))


def test_a_condition_states_its_number_of_seeds():
    base, one = runs(3, 4, moved=MOVED)
    two = runs(3, 4, moved=MOVED, seed=0)[1]
    table = condition_shifts_table([base], [one, two]).rename(columns={"condition": "model"})
    table["effect"] = shifts_table(base, one)["effect"]
    for draw in (difference_map, volcano):
        said = subtitle_of(draw(table, INFO, crossed=True))
        assert "n = 30 examples, 2 seeds" in said
        assert "t test with seeds and examples crossed" in said
        assert "paired" not in said
    assert "seeds' effect sizes" in volcano(table, INFO, crossed=True).axes[0].get_xlabel()


def test_undefined_heads_are_hatched_and_explained(table):
    broken = table.copy()
    broken.loc[where(table, 2, 2), ["difference", "p", "q", "effect"]] = np.nan
    figure = difference_map(broken, INFO)
    assert figure.axes[0].patch.get_hatch()
    masks = [np.ma.getmaskarray(np.ma.asarray(image.get_array()))[2, 2] for image in figure.axes[0].images]
    assert masks == [True, True]
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "undefined: nothing to measure"


def test_one_example_has_no_test():
    table = shifts_table(*runs(2, 2, moved={}, n=1))
    assert "no test: fewer than two examples" in subtitle_of(difference_map(table, INFO))
    assert volcano(table, INFO) is None


def test_a_head_without_a_test_is_gray():
    table = shifts_table(*runs(2, 2, moved={}, n=1))
    grays = difference_map(table, INFO).axes[0].images[1]
    assert not np.ma.getmaskarray(np.ma.asarray(grays.get_array())).any()


def test_without_a_significant_head_the_subtitle_states_it(table):
    calm = table.assign(q=1.0)
    assert np.ma.getmaskarray(np.ma.asarray(difference_map(calm, INFO).axes[0].images[0].get_array())).all()
    figure = volcano(calm, INFO)
    assert "no head has q ≤ 0.05" in subtitle_of(figure)
    assert not figure.axes[0].texts
    assert not any("largest p" in text.get_text() for text in figure.legends[0].get_texts())


def test_undefined_values_can_be_drawn(table, tmp_path):
    numbers = ["base_mean", "mean", "difference", "ci_low", "ci_high", "effect", "p", "q"]
    empty = table.assign(**dict.fromkeys(numbers, np.nan), n_examples=0)
    save_figure(difference_map(empty, INFO), tmp_path, "map")
    assert volcano(empty, INFO) is None


def test_a_measure_that_was_not_taken_has_no_figure(table):
    other = MeasureInfo("entropy_nats", "Entropy", "nats", 0.0, None, "")
    assert difference_map(table, other) is None
    assert volcano(table, other) is None


def test_a_table_with_several_models_raises(table):
    both = pd.concat([table, table.assign(model="another")])
    for draw in (difference_map, volcano):
        with pytest.raises(InputError, match=r"2 names in model \(another, student\)"):
            draw(both, INFO)


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("width", ["one", "two"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (30, 9), (32, 32), (80, 64)])
def test_texts_are_inside_and_do_not_overlap(shape, width, name):
    table = long_table(*shape)
    with use_style(name, width) as at:
        for draw in (difference_map, volcano):
            figure = draw(table, INFO, "reference text")
            assert figure.get_figwidth() == {"one": at.one, "two": at.two}[width]
            assert figure.get_facecolor() == pytest.approx(to_rgba(at.background))
            assert_texts_inside_and_apart(figure)


def test_drawing_twice_gives_the_same_bytes(table, tmp_path):
    for draw in (difference_map, volcano):
        first, second = (tmp_path / f"{draw.__name__}{at}" for at in "12")
        for folder in (first, second):
            folder.mkdir()
            save_figure(draw(table, INFO), folder, "figure")
        for ending in ("png", "pdf"):
            assert (first / f"figure.{ending}").read_bytes() == (second / f"figure.{ending}").read_bytes()
