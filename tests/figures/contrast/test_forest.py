"""figures.contrast.forest: heads sorted by q, with their intervals."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from figures.contrast.forest import forest, forest_rows
from figures.contrast.maps import contrast_map
from figures.drawing.style import use_style
from interp.tables.contrast import PAIRED
from interp.tables.schema import MeasureInfo
from tests.figures.contrast.cases import INFOS, make_table, of
from tests.figures.texts import LONG, assert_texts_inside_and_apart


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_table()


def test_forest_rows_are_sorted_by_q_with_their_intervals(table):
    rows = of(table, PAIRED)
    chosen = forest_rows(rows, "response")
    figure = forest(rows, {info.name: info for info in INFOS})
    assert len(figure.axes) == len(chosen) == 3
    for axes, (name, heads) in zip(figure.axes, chosen.items(), strict=True):
        info = next(info for info in INFOS if info.name == name)
        assert info.title in axes.get_title(loc="left")
        assert list(heads["q"]) == sorted(heads["q"])
        labels = [text.get_text() for text in axes.get_yticklabels()]
        assert labels == [f"{layer}.{head}" for layer, head in zip(heads["layer"], heads["head"], strict=True)]
        assert set(labels[:2]) == {"0.1", "2.3"}
        segments = np.concatenate([lines.get_segments() for lines in axes.collections if isinstance(lines, LineCollection)])
        drawn = {round(y): (low, high) for (low, y), (high, _) in segments}
        for at, (low, high) in enumerate(zip(heads["ci_low"], heads["ci_high"], strict=True)):
            assert drawn[at] == pytest.approx((low, high))
        assert sum(text.get_text().startswith("q ") for text in axes.texts) == len(heads)


def test_without_a_test_there_is_no_figure(table):
    empty = of(table, "one").assign(difference=np.nan, p=np.nan, q=np.nan, ci_low=np.nan, ci_high=np.nan)
    assert contrast_map(empty, INFOS[1]) is None
    assert forest(empty, {info.name: info for info in INFOS}) is None
    assert contrast_map(of(table, "one"), MeasureInfo("self_mass", "Self", "probability", 0, 1, "p")) is None


@pytest.mark.parametrize("name", ["paper", "slides", "dark"])
@pytest.mark.parametrize(("layers", "heads"), [(3, 4), (32, 32)])
def test_texts_are_inside_and_do_not_overlap_in_any_style(name, layers, heads):
    with use_style(name):
        table = make_table(layers, heads, n=20, names=(LONG[:30], "two"))
        for model in (LONG[:30], PAIRED):
            assert_texts_inside_and_apart(forest(of(table, model), {info.name: info for info in INFOS}, "own answers"))
            assert_texts_inside_and_apart(contrast_map(of(table, model), INFOS[2], "own answers"))
