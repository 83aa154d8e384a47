"""figures.drawing.significance: the color scale of differences."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import numpy as np
import pytest

from figures.drawing.significance import difference_scale


@pytest.mark.parametrize("values", [np.full((2, 2), np.nan), np.zeros((2, 2))])
def test_values_without_a_difference_have_a_scale(values):
    assert (difference_scale(values).norm.vmin, difference_scale(values).norm.vmax) == (-1.0, 1.0)
