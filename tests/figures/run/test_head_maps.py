"""figures.run.head_maps: maps and their undefined cells."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import numpy as np

from figures.drawing.colors import color_scale
from figures.drawing.style import save_figure
from figures.run.head_maps import head_map, overview


def test_limits_that_follow_the_data_are_reported(infos):
    scale = color_scale(infos["entropy_nats"], np.array([[0.5, 3.0]]))
    assert (scale.norm.vmin, scale.norm.vmax) == (0.0, 3.0)
    assert scale.note() == "limits from the data: 0 to 3"


def test_undefined_cells_are_hatched_and_explained(infos, small_heads):
    figure = head_map(small_heads, infos["numeric_enrichment"])
    axes = figure.axes[0]
    assert np.ma.getmaskarray(np.ma.asarray(axes.images[0].get_array())).sum() == 3
    assert axes.patch.get_hatch()
    assert "undefined" in figure.legends[0].get_texts()[0].get_text()


def test_a_map_without_undefined_cells_has_no_legend(infos, small_heads):
    assert not head_map(small_heads, infos["entropy_nats"]).legends


def test_a_map_of_undefined_cells_can_be_drawn(infos, small_heads, tmp_path):
    save_figure(head_map(small_heads, infos["numeric_mass_final"], region="question"), tmp_path, "map")


def test_layers_are_along_x(infos, head_table):
    array = head_map(head_table(5, 3), infos["max_prob"]).axes[0].images[0].get_array()
    assert array.shape == (3, 5)


def test_a_measure_that_was_not_taken_has_no_figure(infos, small_heads):
    rest = small_heads[small_heads["measure"] != "max_prob"]
    assert head_map(rest, infos["max_prob"]) is None
    assert overview(rest, {"max_prob": infos["max_prob"]}) is None


def test_titles_have_units(infos, small_heads):
    figure = head_map(small_heads, infos["mean_distance"])
    assert any("(tokens)" in text.get_text() for text in figure.texts)
    for axes, info in zip(overview(small_heads, infos).axes, infos.values(), strict=False):
        unit = "ratio" if info.unit == "1" else info.unit
        assert unit in axes.get_title(loc="left").replace("\n", " ")
