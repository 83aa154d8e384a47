"""figures.run.distributions: every defined head is a dot."""

# A figure may be None by its type; where it were, the test fails as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import numpy as np

from figures.run.distributions import distribution, distributions


def test_every_head_is_a_dot_and_undefined_heads_are_counted(infos, small_heads):
    figure = distribution(small_heads, infos["numeric_enrichment"])
    offsets = np.ma.filled(np.ma.asarray(figure.axes[0].collections[0].get_offsets()), np.nan)
    assert np.isfinite(offsets[:, 1]).sum() == 9
    assert any("3 undefined heads" in text.get_text().replace("\n", " ") for text in figure.texts)


def test_one_panel_a_measure(infos, small_heads):
    assert len(distributions(small_heads, infos).axes) == len(infos)


def test_a_measure_that_was_not_run_has_no_distribution(infos, small_heads):
    rest = small_heads[small_heads["measure"] != "max_prob"]
    assert distribution(rest, infos["max_prob"]) is None
    assert distributions(rest, {"max_prob": infos["max_prob"]}) is None
