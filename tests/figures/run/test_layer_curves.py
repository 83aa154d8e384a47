"""figures.run.layer_curves: means and bands."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from figures.run.layer_curves import layer_curves, layer_summary


def test_layer_summaries_match_known_values():
    rows = [(0, head, "m", "all", head, head - 1.0, head + 2.0) for head in range(3)]
    rows += [(1, head, "m", "all", np.nan, np.nan, np.nan) for head in range(3)]
    heads = pd.DataFrame(rows, columns=["layer", "head", "measure", "region", "value", "ci_low", "ci_high"])
    summary = layer_summary(heads, "m", "all")
    assert summary.loc[0].to_dict() == pytest.approx({"mean": 1.0, "mean_low": 0.0, "mean_high": 3.0, "p05": 0.1, "p95": 1.9})
    assert np.isnan(summary.loc[1].to_numpy(float)).all()


def test_the_interval_is_an_upper_bound():
    random = np.random.default_rng(0)
    examples = random.normal(size=(400, 6)) + random.normal(size=(400, 1))  # six heads that vary together in part
    errors = 1.96 * examples.std(axis=0) / 20
    own = 1.96 * examples.mean(axis=1).std() / 20
    assert errors.mean() >= own


def test_every_measure_has_a_panel_with_a_line_for_each_region(infos, small_heads):
    every = layer_curves(small_heads, infos).axes
    assert [len(axes.lines) for axes in every] == [3] * len(infos)


def test_the_legend_explains_the_bands(infos, small_heads):
    texts = " ".join(text.get_text() for text in layer_curves(small_heads, infos).legends[0].get_texts())
    assert "at most this wide" in texts
    assert "5th to 95th percentile of heads" in texts


def test_a_measure_that_was_not_taken_has_no_figure(infos, small_heads):
    rest = small_heads[small_heads["measure"] != "max_prob"]
    assert layer_curves(rest, {"max_prob": infos["max_prob"]}) is None
