"""figures.comparison.matches: depths and similarity of matched heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from figures.comparison.matches import match_depths
from figures.drawing.style import save_figure
from interp.tables.errors import InputError


def matches(n: int) -> pd.DataFrame:
    random = np.random.default_rng(0)
    table = pd.DataFrame({name: random.random(n) for name in ("depth_one", "depth_other", "similarity")})
    return table.assign(margin=random.normal(size=n))


def test_the_subtitle_states_what_is_drawn(tmp_path: Path) -> None:
    table = matches(40)
    figure = match_depths(table, "one", "other", "n = 9 examples")
    assert figure is not None
    texts = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    share = f"{(table['margin'] > 0).mean():.0%}"
    for words in ("Matched heads", "n = 9 examples", "40 matched heads", share, "no test"):
        assert words in texts
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("depth in one", "depth in other")
    drawn = np.concatenate([np.asarray(part.get_offsets()) for part in axes.collections])
    np.testing.assert_allclose(np.sort(drawn[:, 0]), np.sort(table["depth_one"]))
    again = match_depths(table, "one", "other", "n = 9 examples")
    assert again is not None
    one, two = (save_figure(each, tmp_path, "m")[0].read_bytes() for each in (figure, again))
    assert one == two


def test_a_missing_column_raises_and_an_empty_table_has_no_figure() -> None:
    assert match_depths(matches(0), "one", "other") is None
    with pytest.raises(InputError, match="similarity"):
        match_depths(matches(3).drop(columns="similarity"), "one", "other")
