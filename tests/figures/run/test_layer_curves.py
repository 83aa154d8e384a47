"""figures.run.layer_curves: means and bands by hand."""

# A figure may be None by its type; where it were, the test fails as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from figures.run.layer_curves import layer_curve, layer_curves, layer_summary


def test_summary_by_hand():
    rows = [(0, head, "m", "all", head, head - 1.0, head + 2.0) for head in range(3)]
    rows += [(1, head, "m", "all", np.nan, np.nan, np.nan) for head in range(3)]
    heads = pd.DataFrame(rows, columns=["layer", "head", "measure", "region", "value", "ci_low", "ci_high"])
    summary = layer_summary(heads, "m", "all")
    assert summary.loc[0].to_dict() == pytest.approx({"mean": 1.0, "mean_low": 0.0, "mean_high": 3.0, "p05": 0.1, "p95": 1.9})
    assert np.isnan(summary.loc[1].to_numpy(float)).all()


def test_the_interval_is_at_least_as_wide_as_the_means_own():
    random = np.random.default_rng(0)
    examples = random.normal(size=(400, 6)) + random.normal(size=(400, 1))  # six heads that vary together in part
    errors = 1.96 * examples.std(axis=0) / 20
    own = 1.96 * examples.mean(axis=1).std() / 20
    assert errors.mean() >= own


def test_every_region_has_a_line(infos, small_heads):
    figure = layer_curve(small_heads, infos["numeric_mass"])
    assert len(figure.axes[0].lines) == 3
    assert len(layer_curves(small_heads, infos).axes) == len(infos)


def test_the_legend_says_what_the_bands_are(infos, small_heads):
    texts = " ".join(text.get_text() for text in layer_curves(small_heads, infos).legends[0].get_texts())
    assert "at most this wide" in texts
    assert "5th to 95th percentile of heads" in texts


def test_a_measure_that_was_not_run_has_no_curve(infos, small_heads):
    rest = small_heads[small_heads["measure"] != "max_prob"]
    assert layer_curve(rest, infos["max_prob"]) is None
    assert layer_curves(rest, {"max_prob": infos["max_prob"]}) is None
