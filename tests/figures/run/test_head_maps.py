"""figures.run.head_maps: scales that compare, and cells that are undefined."""

# A figure may be None by its type; where it were, the test fails as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import numpy as np
import pytest

from figures.drawing import style
from figures.drawing.colors import colour_scale
from figures.run.head_maps import head_map, overview
from interp.tables.schema import MeasureInfo


def test_two_models_share_the_scale_of_a_measure_with_limits(infos, head_table):
    for name in ("numeric_mass", "entropy_normalized", "sparsity_010"):
        images = []
        for shape, seed in (((3, 4), 0), ((5, 2), 7)):
            figure = head_map(head_table(*shape, seed=seed), infos[name])
            images.append(figure.axes[0].images[0])
        assert images[0].get_clim() == images[1].get_clim() == (infos[name].low, infos[name].high)
        probe = np.linspace(0, 1, 7)
        np.testing.assert_array_equal(images[0].to_rgba(probe), images[1].to_rgba(probe))


def test_limits_that_follow_the_data_are_printed(infos):
    scale = colour_scale(infos["entropy_nats"], np.array([[0.5, 3.0]]))
    assert (scale.norm.vmin, scale.norm.vmax) == (0.0, 3.0)
    assert scale.note() == "limits from the data: 0 to 3"


def test_z_is_symmetric_about_zero(infos):
    scale = colour_scale(infos["numeric_z"], np.array([-2.0, 5.0, np.nan]))
    assert (scale.norm.vmin, scale.norm.vmax) == (-5.0, 5.0)
    assert scale.colours == style.DIVERGING_COLOURS


def test_enrichment_has_one_in_the_middle(infos):
    scale = colour_scale(infos["numeric_enrichment"], np.array([0.0, 0.5, 6.0]))
    assert (scale.norm.vmin, scale.norm.vmax) == (1 / 8, 8.0)
    assert scale.norm(1.0) == pytest.approx(0.5)
    assert scale.tick_labels == ("1/8", "1/2", "1", "2", "8")
    assert scale.extend == "min"


def test_enrichment_with_a_limit_is_fixed():
    info = MeasureInfo("numeric_enrichment", "t", "1", 0.0, 16.0, "")
    scale = colour_scale(info, np.array([0.2, 40.0]))
    assert (scale.norm.vmin, scale.norm.vmax) == (1 / 16, 16.0)
    assert scale.extend == "max"
    assert not scale.from_data


def test_a_users_measure_with_negative_values_is_symmetric():
    scale = colour_scale(MeasureInfo("mine", "t", "1", -1.0, 0.5, ""), np.array([0.1]))
    assert (scale.norm.vmin, scale.norm.vmax) == (-1.0, 1.0)


@pytest.mark.parametrize("values", [np.full((2, 2), np.nan), np.zeros((2, 2)), np.full((2, 2), 3.0)])
@pytest.mark.parametrize("name", ["entropy_nats", "numeric_mass", "numeric_enrichment", "numeric_z", "mean_distance"])
def test_degenerate_values_have_a_scale(infos, name, values):
    scale = colour_scale(infos[name], values)
    assert scale.norm.scaled()
    assert scale.ticks[0] < scale.ticks[-1]
    assert list(scale.ticks) == sorted(scale.ticks)


def test_undefined_cells_are_masked_over_hatches_and_named(infos, small_heads):
    figure = head_map(small_heads, infos["numeric_enrichment"])
    axes = figure.axes[0]
    assert np.ma.getmaskarray(np.ma.asarray(axes.images[0].get_array())).sum() == 3
    assert axes.patch.get_hatch()
    assert "undefined" in figure.legends[0].get_texts()[0].get_text()


def test_a_map_without_undefined_cells_has_no_legend(infos, small_heads):
    assert not head_map(small_heads, infos["entropy_nats"]).legends


def test_a_map_of_undefined_cells_only(infos, small_heads, tmp_path):
    style.save(head_map(small_heads, infos["numeric_mass_final"], region="question"), tmp_path, "map")


def test_layers_run_along_x(infos, head_table):
    array = head_map(head_table(5, 3), infos["max_prob"]).axes[0].images[0].get_array()
    assert array.shape == (3, 5)


def test_a_measure_that_was_not_run_has_no_map(infos, small_heads):
    rest = small_heads[small_heads["measure"] != "max_prob"]
    assert head_map(rest, infos["max_prob"]) is None
    assert overview(rest, {"max_prob": infos["max_prob"]}) is None


def test_titles_carry_units(infos, small_heads):
    figure = head_map(small_heads, infos["mean_distance"])
    assert any("(tokens)" in text.get_text() for text in figure.texts)
    for axes, info in zip(overview(small_heads, infos).axes, infos.values(), strict=False):
        unit = "ratio" if info.unit == "1" else info.unit
        assert unit in axes.get_title(loc="left").replace("\n", " ")
