"""figures.comparison.head_shifts: grayed, undefined and significant heads; infinite effects; texts inside and apart."""

# A figure may be None by its type; where it were, the test fails as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from tests.figures.test_catalog import LONG, assert_texts_inside_and_apart

from analyses.shifts.differences import condition_shifts_table, shifts_table
from figures.comparison.head_shifts import difference_map, difference_scale, place_labels, volcano, volcano_points
from figures.drawing import style
from interp.tables.errors import InputError
from interp.tables.heads import HeadValues, ModelRun
from interp.tables.schema import REGIONS, MeasureInfo

INFO = MeasureInfo("numeric_mass", "Attention on numbers", "probability", 0.0, 1.0, "Σ p")
RESPONSE = ["numeric_mass", "response"]


def runs(layers: int, heads: int, *, moved: dict[tuple[int, int], float], n: int = 30, seed: int = 0) -> tuple[ModelRun, ModelRun]:
    """A baseline and a student whose heads in `moved` are shifted by so much on every text, with noise."""
    random = np.random.default_rng(seed)
    base = random.beta(0.6, 5.0, (1, layers, heads, 1, len(REGIONS))) + random.normal(0, 0.02, (n, layers, heads, 1, len(REGIONS)))
    other = base + random.normal(0, 0.02, base.shape)
    for (layer, head), shift in moved.items():
        other[:, layer, head] += shift

    def run(name: str, values: np.ndarray) -> ModelRun:
        return ModelRun(HeadValues(name, tuple(range(n)), tuple(range(layers)), heads, (INFO.name,), values), pd.DataFrame(), name)

    return run("base", base), run("student", other)


MOVED = {(0, 1): 0.1, (2, 3): -0.1, (1, 0): 0.04}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Three layers of four heads; three moved far, the others not at all."""
    return shifts_table(*runs(3, 4, moved=MOVED))


@cache
def long_table(layers: int, heads: int) -> pd.DataFrame:
    """Every sixth head moved; a student with a long name."""
    moved = {(layer, head): 0.05 * (-1) ** head for layer in range(0, layers, 3) for head in range(0, heads, 2)}
    table = shifts_table(*runs(layers, heads, moved=moved, n=6)).replace({"student": LONG[:40]})
    return table[table["region"] == "response"]


def where(table: pd.DataFrame, layer: int, head: int) -> pd.Series:
    return (table["layer"] == layer) & (table["head"] == head)


def subtitle_of(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_heads_without_significance_are_gray_and_the_others_are_not(table):
    figure = difference_map(table, INFO)
    colors, grays = figure.axes[0].images
    clear = np.array([[(layer, head) in MOVED for layer in range(3)] for head in range(4)])
    np.testing.assert_array_equal(np.ma.getmaskarray(np.ma.asarray(colors.get_array())), ~clear)
    np.testing.assert_array_equal(np.ma.getmaskarray(np.ma.asarray(grays.get_array())), clear)
    shades = grays.to_rgba(grays.get_array())[~clear]
    np.testing.assert_allclose(shades[:, 0], shades[:, 1], atol=0.02)  # gray: as much red as green
    red, _, blue, _ = colors.to_rgba(0.1)
    assert red > blue  # red is higher than the baseline


def test_the_colors_are_symmetric_and_follow_a_given_limit(table):
    figure = difference_map(table, INFO)
    low, high = figure.axes[0].images[0].get_clim()
    rows = table[table["region"] == "response"]
    assert high == -low == pytest.approx(rows["difference"].abs().max())
    assert difference_map(table, INFO, limit=0.5).axes[0].images[0].get_clim() == (-0.5, 0.5)
    assert difference_scale(np.array([0.2, -0.9]), 0.5).extend == "both"


@pytest.mark.parametrize("values", [np.full((2, 2), np.nan), np.zeros((2, 2))])
def test_nothing_to_scale_has_a_scale(values):
    assert (difference_scale(values).norm.vmin, difference_scale(values).norm.vmax) == (-1.0, 1.0)


def test_the_figures_name_models_n_test_and_correction(table):
    for draw in (difference_map, volcano):
        said = subtitle_of(draw(table, INFO, "gold text"))
        for text in ("student less base", "n = 30 examples", "response queries", "paired t test", "Benjamini-Hochberg over 3 × 4 heads"):
            assert text in said, text
        assert "gold text" in said
        assert "(probability)" in said
    assert "gray: q > 0.05 · 3 of 12 heads have q ≤ 0.05" in subtitle_of(difference_map(table, INFO))


def test_a_condition_names_its_seeds():
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


def test_undefined_heads_are_hatched_and_named(table):
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


def test_a_head_without_a_p_is_grayed():
    table = shifts_table(*runs(2, 2, moved={}, n=1))
    grays = difference_map(table, INFO).axes[0].images[1]
    assert not np.ma.getmaskarray(np.ma.asarray(grays.get_array())).any()


def test_volcano_points_are_effect_and_log_p(table):
    points = volcano_points(table, *RESPONSE)
    rows = table[table["region"] == "response"].sort_values(["layer", "head"])
    np.testing.assert_allclose(points.x, rows["effect"])
    np.testing.assert_allclose(points.y, -np.log10(rows["p"]))
    np.testing.assert_array_equal(points.clear, rows["q"] <= 0.05)
    assert points.line == pytest.approx(-np.log10(rows.loc[rows["q"] <= 0.05, "p"].max()))
    assert not points.capped.any()


def test_volcano_names_the_significant_heads(table):
    figure = volcano(table, INFO)
    assert {text.get_text() for text in figure.axes[0].texts} == {"0.1", "2.3", "1.0"}
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "lower than the baseline, q ≤ 0.05: 1 head" in key
    assert "higher than the baseline, q ≤ 0.05: 2 heads" in key
    assert "q > 0.05: 9 heads" in key
    assert "largest p with q ≤ 0.05" in key


def test_volcano_names_at_most_five():
    moved = {(layer, head): 0.1 for layer in range(3) for head in range(4)}
    assert len(volcano(shifts_table(*runs(3, 4, moved=moved)), INFO).axes[0].texts) == 5


def test_infinite_effects_and_a_p_of_zero_lie_at_the_edge(table):
    broken = table.copy()
    broken.loc[where(table, 0, 0), ["effect", "p", "q"]] = [-np.inf, 0.0, 0.0]
    broken.loc[where(table, 0, 2), ["effect", "p", "q"]] = [1.0, 0.0, 0.0]
    points = volcano_points(broken, *RESPONSE)
    assert np.isfinite([*points.x, *points.y]).all()
    assert points.x[0] == -points.edge_x < points.x[1:].min()
    assert points.y[0] == points.y[2] == points.edge_y > np.delete(points.y, [0, 2]).max()
    np.testing.assert_array_equal(np.flatnonzero(points.capped), [0, 2])
    figure = volcano(broken, INFO)
    assert "p of 0 or infinite effect, put at the edge" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert_texts_inside_and_apart(figure)


def test_only_infinite_effects(table):
    broken = table.assign(effect=np.inf, p=0.0, q=0.0)
    points = volcano_points(broken, *RESPONSE)
    assert points.line is None
    assert_texts_inside_and_apart(volcano(broken, INFO))


def test_nothing_significant_is_said(table):
    calm = table.assign(q=1.0)
    assert np.ma.getmaskarray(np.ma.asarray(difference_map(calm, INFO).axes[0].images[0].get_array())).all()
    figure = volcano(calm, INFO)
    assert "no head has q ≤ 0.05" in subtitle_of(figure)
    assert not figure.axes[0].texts
    assert not any("largest p" in text.get_text() for text in figure.legends[0].get_texts())


def test_all_undefined(table, tmp_path):
    numbers = ["base_mean", "mean", "difference", "ci_low", "ci_high", "effect", "p", "q"]
    empty = table.assign(**dict.fromkeys(numbers, np.nan), n_examples=0)
    style.save(difference_map(empty, INFO), tmp_path, "map")
    assert volcano(empty, INFO) is None


def test_a_measure_that_was_not_run_has_no_figure(table):
    other = MeasureInfo("entropy_nats", "Entropy", "nats", 0.0, None, "")
    assert difference_map(table, other) is None
    assert volcano(table, other) is None


def test_two_models_in_one_table_are_an_error(table):
    both = pd.concat([table, table.assign(model="another")])
    for draw in (difference_map, volcano):
        with pytest.raises(InputError, match=r"2 names in model \(another, student\)"):
            draw(both, INFO)


def test_labels_keep_apart_and_inside():
    random = np.random.default_rng(0)
    points = np.concatenate([np.full((5, 2), [1.9, 1.4]), random.uniform(0.1, 1.3, (40, 2))])  # five at the same place, near a corner
    sizes = np.full((5, 2), [0.3, 0.09])
    centers = place_labels(points, [0, 1, 2, 3, 4], sizes, (2.0, 1.5))
    assert (centers - sizes / 2 >= 0).all()
    assert (centers + sizes / 2 <= (2.0, 1.5)).all()
    for at in range(5):
        for to in range(at):
            assert (np.abs(centers[at] - centers[to]) >= sizes[0]).any()


@pytest.mark.parametrize("name", style.STYLES)
@pytest.mark.parametrize("width", ["one", "two"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (30, 9), (32, 32), (80, 64)])
def test_texts_stay_inside_and_apart(shape, width, name):
    table = long_table(*shape)
    with style.use(name, width) as at:
        for draw in (difference_map, volcano):
            figure = draw(table, INFO, "gold text")
            assert figure.get_figwidth() == {"one": at.one, "two": at.two}[width]
            assert figure.get_facecolor() == pytest.approx(to_rgba(at.background))
            assert_texts_inside_and_apart(figure)


def test_the_same_bytes_twice(table, tmp_path):
    for draw in (difference_map, volcano):
        first, second = (tmp_path / f"{draw.__name__}{at}" for at in "12")
        for folder in (first, second):
            folder.mkdir()
            style.save(draw(table, INFO), folder, "figure")
        for ending in ("png", "pdf"):
            assert (first / f"figure.{ending}").read_bytes() == (second / f"figure.{ending}").read_bytes()
