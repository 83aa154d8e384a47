"""figures.run.scatter: one point per head."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import numpy as np

from figures.run.scatter import entropy_against_numeric_mass


def test_every_head_is_a_point_colored_by_layer(infos, small_heads):
    points = entropy_against_numeric_mass(small_heads, infos).axes[0].collections[0]
    assert len(np.asarray(points.get_offsets())) == 12
    np.testing.assert_array_equal(points.get_array(), np.repeat([0, 1, 2], 4))


def test_without_its_measures_there_is_no_figure(infos, small_heads):
    heads = small_heads[small_heads["measure"] == "entropy_nats"]
    assert entropy_against_numeric_mass(heads, infos) is None
