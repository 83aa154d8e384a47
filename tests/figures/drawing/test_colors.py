"""figures.drawing.colors: limits, curves and ticks of color scales."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import numpy as np
import pytest

from figures.drawing.colors import color_scale
from figures.drawing.style import STYLES
from figures.run.head_maps import head_map
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


def test_z_has_a_scale_symmetric_about_zero(infos):
    scale = color_scale(infos["numeric_z"], np.array([-2.0, 5.0, np.nan]))
    assert (scale.norm.vmin, scale.norm.vmax) == (-5.0, 5.0)
    assert scale.colors == STYLES["paper"].diverging_colors


def test_enrichment_has_a_logarithmic_scale_around_one(infos):
    scale = color_scale(infos["numeric_enrichment"], np.array([0.0, 0.5, 6.0]))
    assert (scale.norm.vmin, scale.norm.vmax) == (1 / 8, 8.0)
    assert scale.norm(1.0) == pytest.approx(0.5)
    assert scale.tick_labels == ("1/8", "1/2", "1", "2", "8")
    assert scale.extend == "min"


def test_enrichment_with_a_limit_has_a_fixed_scale():
    info = MeasureInfo("numeric_enrichment", "t", "1", 0.0, 16.0, "")
    scale = color_scale(info, np.array([0.2, 40.0]))
    assert (scale.norm.vmin, scale.norm.vmax) == (1 / 16, 16.0)
    assert scale.extend == "max"
    assert not scale.from_data


def test_a_measure_with_negative_values_has_a_symmetric_scale():
    scale = color_scale(MeasureInfo("mine", "t", "1", -1.0, 0.5, ""), np.array([0.1]))
    assert (scale.norm.vmin, scale.norm.vmax) == (-1.0, 1.0)


@pytest.mark.parametrize("values", [np.full((2, 2), np.nan), np.zeros((2, 2)), np.full((2, 2), 3.0)])
@pytest.mark.parametrize("name", ["entropy_nats", "numeric_mass", "numeric_enrichment", "numeric_z", "mean_distance"])
def test_degenerate_values_have_a_scale(infos, name, values):
    scale = color_scale(infos[name], values)
    assert scale.norm.scaled()
    assert scale.ticks[0] < scale.ticks[-1]
    assert list(scale.ticks) == sorted(scale.ticks)
