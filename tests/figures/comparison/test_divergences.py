"""figures.comparison.divergences: limits, means and bands."""

# A drawing function may return None, and matplotlib's artists have broad types; if they differ from what is expected, the test fails.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from figures.comparison.divergences import divergence_curves, divergence_map
from figures.drawing.style import save_figure
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo
from tests.figures.texts import assert_texts_inside_and_apart

LONG = "runs/a-study-with-quite-a-long-name · reference text · chat template"


def divergences(models: list[str], layers: int, heads: int) -> pd.DataFrame:
    index = pd.MultiIndex.from_product(
        [models, range(layers), range(heads), ["js", "cosine"], ["response", "all"]], names=["model", "layer", "head", "measure", "region"]
    )
    frame = index.to_frame(index=False)
    mean = np.random.default_rng(0).gamma(1, 0.02, len(frame))
    frame = frame.assign(mean=mean, ci_low=mean * 0.9, ci_high=mean * 1.2, n_examples=40, baseline="untouched")
    return frame.astype({"measure": "category", "region": "category", "model": "category"})


def texts(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_one_model_has_one_map_with_its_limits():
    frame = divergences(["tuned"], 4, 3)
    figure = divergence_map(frame)
    rows = frame[(frame["measure"] == "js") & (frame["region"] == "response")]
    image = figure.axes[0].images[0]
    np.testing.assert_array_equal(image.get_array(), rows["mean"].to_numpy().reshape(4, 3).T)
    assert image.get_clim() == (0.0, rows["mean"].max())
    said = texts(figure)
    for part in (
        "(nats)",
        "tuned",
        "compared with untouched",
        "n = 40 examples",
        "response queries",
        "limits from the data",
        "ln 2",
        "no test",
    ):
        assert part in said


def test_several_models_share_a_scale():
    frame = divergences(["one", "two", "three"], 4, 3)
    figure = divergence_map(frame, region="all")
    maps = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in maps] == ["one", "two", "three"]
    assert len({axes.images[0].get_clim() for axes in maps}) == 1
    assert "all queries" in texts(figure)


def test_another_divergence_can_be_drawn():
    info = MeasureInfo("cosine", "Cosine of the maps", "1", 0.0, 1.0, "")
    figure = divergence_map(divergences(["tuned"], 4, 3), info=info)
    assert figure.axes[0].images[0].get_clim() == (0.0, 1.0)
    assert "ln 2" not in texts(figure)


def test_undefined_heads_are_hatched_and_left_out_of_the_mean():
    frame = divergences(["tuned"], 4, 3)
    chosen = (frame["measure"] == "js") & (frame["region"] == "response")
    frame.loc[chosen & (frame["layer"] == 1) & (frame["head"] == 0), ["mean", "ci_low", "ci_high"]] = np.nan
    assert "undefined" in divergence_map(frame).legends[0].get_texts()[0].get_text()
    axes = divergence_curves(frame).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), frame[chosen].groupby("layer")["mean"].mean())


def test_the_band_is_the_mean_of_the_heads_intervals():
    frame = divergences(["tuned"], 4, 3)
    figure = divergence_curves(frame)
    rows = frame[(frame["measure"] == "js") & (frame["region"] == "response") & (frame["layer"] == 3)]
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    at_last = np.unique(band[band[:, 0] == 3, 1].round(12))
    np.testing.assert_allclose(at_last, [rows["ci_low"].mean(), rows["ci_high"].mean()], rtol=1e-9)
    assert "95 % bootstrap interval over examples, at most this wide" in texts(figure)
    assert figure.axes[0].get_ylabel() == "nats"


def test_models_of_one_condition_share_a_color():
    frame = divergences(["a-s0", "a-s1", "b-s0"], 4, 3)
    frame["condition"] = frame["model"].astype(str).str[0]
    figure = divergence_curves(frame)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 4]
    assert len(lines) == 4
    assert len({line.get_color() for line in lines}) == 2
    assert not figure.axes[0].collections
    assert "no intervals drawn" in texts(figure)


def test_a_missing_column_raises_and_an_empty_table_has_no_figure():
    frame = divergences(["tuned"], 2, 2)
    with pytest.raises(InputError, match="divergences lacks the column baseline"):
        divergence_map(frame.drop(columns="baseline"))
    assert divergence_map(frame, region="question") is None
    assert divergence_curves(frame, region="question") is None


@pytest.mark.parametrize("shape", [(1, 1), (30, 9), (32, 32), (80, 64)])
@pytest.mark.parametrize("names", [["one"], ["a", "b", "c"], [f"a model of a long name {i}" for i in range(9)]])
def test_texts_are_inside_and_do_not_overlap(shape, names):
    frame = divergences(names, *shape)
    assert_texts_inside_and_apart(divergence_map(frame, LONG))
    assert_texts_inside_and_apart(divergence_curves(frame, LONG))


def test_drawing_twice_gives_the_same_bytes(tmp_path):
    frame = divergences(["one", "two"], 4, 3)
    for name, draw in {"map": divergence_map, "curves": divergence_curves}.items():
        first = [path.read_bytes() for path in save_figure(draw(frame), tmp_path, name)]
        assert first == [path.read_bytes() for path in save_figure(draw(frame), tmp_path, name)]
