"""figures.comparison.published: four curves with bands, and heads sorted by variance."""

# A drawing function may return None, and matplotlib's artists have broad types; if they differ from what is expected, the test fails.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses.shifts.published.curves import variance_ranking
from analyses.shifts.published.stored_maps import open_published
from figures.comparison.published import curves_by_layer, variance_heads, variance_map
from figures.drawing.style import save_figure
from interp.tables.errors import InputError
from interp.tables.published import CURVES
from tests.figures.texts import assert_texts_inside_and_apart

DATA = os.environ.get("PRIMED_HEADS_DATA")
LONG = "An-Organisation/maps-of-quite-a-long-name · stored attention of a text of 65 tokens"


def tables(models: list[str], layers: int, heads: int, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    random = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([models, range(layers), range(heads), list(CURVES)], names=["model", "layer", "head", "curve"])
    every = index.to_frame(index=False).assign(value=random.beta(1, 3, len(index)))
    every = every[(every["curve"] != "layer_cosine") | (every["layer"] > 0)]
    groups = every.groupby(["model", "layer", "curve"], sort=False)["value"]
    curves = pd.DataFrame({"value": groups.mean(), "sd": groups.std(ddof=0), "n_heads": groups.size()}).reset_index()
    return curves, every


def ranking(layers: int, heads: int) -> pd.DataFrame:
    index = pd.MultiIndex.from_product([range(layers), range(heads)], names=["layer", "head"]).to_frame(index=False)
    random = np.random.default_rng(1)
    return index.assign(variance=random.gamma(0.5, 1e-5, len(index)), n_models=3).sort_values("variance", ascending=False, kind="stable")


def texts(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_panels_name_their_units_and_lines_are_the_curves():
    curves, heads = tables(["base", "tuned"], 5, 4)
    figure = curves_by_layer(curves, heads)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert ["(nats)" in t or "(probability)" in t or "(share)" in t or "(ratio)" in t for t in titles] == [True] * 4
    assert all(axes.get_xlabel() == "layer" for axes in figure.axes)
    of_base = curves[(curves["model"] == "base") & (curves["curve"] == "entropy")]["value"]
    drawn = [np.asarray(line.get_ydata(), float) for line in figure.axes[0].lines]
    assert any(len(y) == 5 and np.array_equal(y, of_base) for y in drawn)
    cosine = curves[(curves["model"] == "base") & (curves["curve"] == "layer_cosine")]
    lines = [line for line in figure.axes[3].lines if np.array_equal(line.get_ydata(), cosine["value"])]
    assert lines[0].get_xdata().tolist() == [1, 2, 3, 4]


def test_the_band_is_described_as_a_spread():
    curves, heads = tables(["base"], 3, 7)
    figure = curves_by_layer(curves, heads)
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    values = heads[(heads["curve"] == "entropy") & (heads["layer"] == 2)]["value"]
    at_last = np.unique(band[band[:, 0] == 2, 1].round(12))
    np.testing.assert_allclose(at_last, np.percentile(values, [5, 95]), rtol=1e-9)
    assert "n = 7" in texts(figure)
    assert "a spread, not an interval" in texts(figure)
    assert "no test" in texts(figure)


def test_many_models_have_no_bands():
    curves, heads = tables([f"m{i}" for i in range(8)], 3, 4)
    figure = curves_by_layer(curves, heads)
    assert not figure.axes[0].collections
    assert "no intervals" in texts(figure)


@pytest.mark.parametrize(
    "names", [["one"], ["base", "tuned"], [f"student-{i}" for i in range(8)], [f"a model of a long name {i}" for i in range(8)]]
)
@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (80, 64)])
def test_texts_are_inside_and_do_not_overlap(names, shape):
    assert_texts_inside_and_apart(curves_by_layer(*tables(names, *shape), LONG))
    assert_texts_inside_and_apart(variance_heads(ranking(*shape), LONG))
    assert_texts_inside_and_apart(variance_map(ranking(*shape), LONG))


def test_heads_are_sorted_by_variance():
    variance = ranking(6, 5)
    figure = variance_heads(variance.sample(frac=1, random_state=0), count=10)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [f"{layer}.{head}" for layer, head in zip(variance["layer"][:10], variance["head"][:10], strict=True)]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths[0] / widths[9] == pytest.approx(variance["variance"].iloc[0] / variance["variance"].iloc[9])
    assert "largest 10 of 30 heads" in texts(figure)
    assert "n = 3 models" in texts(figure)


def test_the_unit_matches_the_bars():
    variance = pd.DataFrame({"layer": [0, 1], "head": [0, 0], "variance": [2.5e-4, 1e-4], "n_models": 2})
    figure = variance_heads(variance)
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([250, 100])
    assert figure.axes[0].get_xlabel() == "10⁻⁶ probability²"


def test_a_head_without_variance_is_hatched_and_not_ranked():
    variance = ranking(3, 3)
    variance.loc[0, "variance"] = np.nan
    assert len(variance_heads(variance).axes[0].patches) == 8
    figure = variance_map(variance)
    assert np.ma.getmaskarray(np.ma.asarray(figure.axes[0].images[0].get_array())).sum() == 1
    assert "hatched" in texts(figure)
    assert variance_heads(variance.assign(variance=np.nan)) is None
    assert variance_map(variance.assign(variance=np.nan)) is None


def test_equal_models_can_be_drawn(tmp_path):
    variance = ranking(3, 3).assign(variance=0.0)
    save_figure(variance_heads(variance), tmp_path, "heads")
    save_figure(variance_map(variance), tmp_path, "map")


def test_missing_columns_are_named():
    curves, heads = tables(["base"], 3, 4)
    with pytest.raises(InputError, match="curves lacks the column value"):
        curves_by_layer(curves.drop(columns="value"), heads)
    with pytest.raises(InputError, match="variance lacks the column head"):
        variance_heads(ranking(2, 2).drop(columns="head"))
    assert "n = ?" in texts(curves_by_layer(curves.drop(columns="n_heads"), heads))
    assert curves_by_layer(curves[curves["curve"] == "other"], heads) is None


def test_drawing_twice_gives_the_same_bytes(tmp_path):
    curves, heads = tables(["base", "tuned"], 4, 3)
    draws = {
        "curves": lambda: curves_by_layer(curves, heads, "run"),
        "heads": lambda: variance_heads(ranking(4, 3), "run"),
        "map": lambda: variance_map(ranking(4, 3), "run"),
    }
    for name, draw in draws.items():
        first = [path.read_bytes() for path in save_figure(draw(), tmp_path, name)]
        assert first == [path.read_bytes() for path in save_figure(draw(), tmp_path, name)]


@pytest.mark.skipif(DATA is None, reason="PRIMED_HEADS_DATA names no folder of the published maps")
def test_heads_of_published_maps_are_ranked():
    maps = open_published(Path(str(DATA)) / "published" / "attention")
    variance = variance_ranking(maps)
    first = [label.get_text() for label in variance_heads(variance).axes[0].get_yticklabels()]
    assert first[0] == f"{variance['layer'][0]}.{variance['head'][0]}"
    assert len(first) == 20
