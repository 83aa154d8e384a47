"""figures.run.distributions: every defined head is a dot."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import numpy as np

from figures.run.distributions import distributions


def test_every_defined_head_is_a_dot(infos, small_heads):
    figure = distributions(small_heads, {"numeric_enrichment": infos["numeric_enrichment"]})
    offsets = np.ma.filled(np.ma.asarray(figure.axes[0].collections[0].get_offsets()), np.nan)
    assert np.isfinite(offsets[:, 1]).sum() == 9
    assert offsets.shape[0] == 12


def test_every_measure_has_a_panel(infos, small_heads):
    assert len(distributions(small_heads, infos).axes) == len(infos)


def test_a_measure_that_was_not_taken_has_no_figure(infos, small_heads):
    rest = small_heads[small_heads["measure"] != "max_prob"]
    assert distributions(rest, {"max_prob": infos["max_prob"]}) is None
