"""figures.comparison.volcano: effect sizes and p values, infinite ones at the edge, labels that do not overlap."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analyses.shifts.differences import shifts_table
from figures.comparison.volcano import place_labels, volcano, volcano_points
from interp.tables.schema import MeasureInfo
from tests.figures.comparison.cases import MOVED, runs
from tests.figures.texts import assert_texts_inside_and_apart

INFO = MeasureInfo("numeric_mass", "Attention on numbers", "probability", 0.0, 1.0, "Σ p")


RESPONSE = ["numeric_mass", "response"]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Three layers of four heads; three moved far, the others not at all."""
    return shifts_table(*runs(3, 4, moved=MOVED))


def where(table: pd.DataFrame, layer: int, head: int) -> pd.Series:
    return (table["layer"] == layer) & (table["head"] == head)


def test_volcano_points_are_effect_and_log_p(table):
    points = volcano_points(table, *RESPONSE)
    rows = table[table["region"] == "response"].sort_values(["layer", "head"])
    np.testing.assert_allclose(points.x, rows["effect"])
    np.testing.assert_allclose(points.y, -np.log10(rows["p"]))
    np.testing.assert_array_equal(points.significant, rows["q"] <= 0.05)
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


def test_infinite_effects_and_a_p_of_zero_are_at_the_edge(table):
    broken = table.copy()
    broken.loc[where(table, 0, 0), ["effect", "p", "q"]] = [-np.inf, 0.0, 0.0]
    broken.loc[where(table, 0, 2), ["effect", "p", "q"]] = [1.0, 0.0, 0.0]
    points = volcano_points(broken, *RESPONSE)
    assert np.isfinite([*points.x, *points.y]).all()
    assert points.x[0] == -points.edge_x < points.x[1:].min()
    assert points.y[0] == points.y[2] == points.edge_y > np.delete(points.y, [0, 2]).max()
    np.testing.assert_array_equal(np.flatnonzero(points.capped), [0, 2])
    figure = volcano(broken, INFO)
    assert "p of 0 or infinite effect, drawn at the edge" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert_texts_inside_and_apart(figure)


def test_only_infinite_effects_can_be_drawn(table):
    broken = table.assign(effect=np.inf, p=0.0, q=0.0)
    points = volcano_points(broken, *RESPONSE)
    assert points.line is None
    assert_texts_inside_and_apart(volcano(broken, INFO))


def test_labels_do_not_overlap_and_are_inside():
    random = np.random.default_rng(0)
    points = np.concatenate([np.full((5, 2), [1.9, 1.4]), random.uniform(0.1, 1.3, (40, 2))])  # five at the same place, near a corner
    sizes = np.full((5, 2), [0.3, 0.09])
    centers = place_labels(points, [0, 1, 2, 3, 4], sizes, (2.0, 1.5))
    assert (centers - sizes / 2 >= 0).all()
    assert (centers + sizes / 2 <= (2.0, 1.5)).all()
    for at in range(5):
        for to in range(at):
            assert (np.abs(centers[at] - centers[to]) >= sizes[0]).any()
