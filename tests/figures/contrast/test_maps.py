"""figures.contrast.maps: colors by significance, and what the subtitle states."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from figures.contrast.forest import forest
from figures.contrast.maps import contrast_map
from interp.tables.contrast import PAIRED
from interp.tables.errors import InputError
from tests.figures.contrast.cases import INFOS, PLANTED, make_table, of


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_table()


def said_by(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_significant_heads_are_colored_by_sign_and_the_others_gray(table):
    figure = contrast_map(of(table, PAIRED), INFOS[1])
    colors, grays = figure.axes[0].images
    drawn = np.ma.asarray(colors.get_array())
    shown = {(layer, head) for head, layer in zip(*np.nonzero(~np.ma.getmaskarray(drawn)), strict=True)}
    assert shown == set(PLANTED)
    assert {place: bool(drawn[place[::-1]] > 0) for place in shown} == {place: size > 0 for place, size in PLANTED.items()}
    assert not np.ma.getmaskarray(np.ma.asarray(grays.get_array()))[0, 0]


def test_the_subtitle_states_what_is_compared_and_how(table):
    rows = of(table, PAIRED)
    n_right, n_wrong, n = (int(rows[name].max()) for name in ("n_right", "n_wrong", "n_problems"))
    paired = f"{n_right} right, {n_wrong} wrong answers on {n} problems that have both · response queries · models paired by problem"
    for figure in (contrast_map(rows, INFOS[1], "greedy"), forest(rows, {i.name: i for i in INFOS}, "greedy")):
        said = said_by(figure)
        assert paired in said
        assert "Benjamini-Hochberg over 3 × 4 heads" in said
        assert "greedy" in said
        assert "right minus wrong" in said.lower()
    rows = of(table, "two")
    assert f"two · {rows['n_right'].max()} right, {rows['n_wrong'].max()} wrong answers" in said_by(contrast_map(rows, INFOS[1]))
    assert "Welch's t test" in said_by(contrast_map(rows, INFOS[1]))
    assert "2 of 12 heads have q ≤ 0.05" in said_by(contrast_map(of(table, PAIRED), INFOS[0]))
    assert "of 11 heads" in said_by(contrast_map(rows, INFOS[2]))


def test_a_table_with_several_models_raises(table):
    with pytest.raises(InputError, match="3 models"):
        contrast_map(table, INFOS[1])
