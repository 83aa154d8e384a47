"""figures.comparison.rank_plots: ranks of the baseline's top heads, and agreement of models."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyses.shifts.differences import agreement_table, ranks_table
from figures.comparison.rank_plots import agreement_map, column_names, rank_plot, top_heads
from figures.drawing.style import STYLES, save_figure, use_style
from interp.tables.errors import InputError
from interp.tables.heads import HeadValues, ModelRun
from interp.tables.schema import REGIONS, MeasureInfo
from tests.figures.texts import assert_texts_inside_and_apart

INFO = MeasureInfo("numeric_mass", "Attention on numbers", "probability", 0.0, 1.0, "Σ p")
LONG = "An-Organisation/a-model-with-quite-a-long-name-135M"


def runs(layers: int, heads: int, names: tuple[str, ...], *, noise: float = 0.1, seed: int = 0) -> list[ModelRun]:
    """Models whose heads have mostly the same values."""
    random = np.random.default_rng(seed)
    common = random.beta(0.6, 5.0, (1, layers, heads, 1, len(REGIONS)))
    shape = (6, layers, heads, 1, len(REGIONS))
    values = [common + random.normal(0, noise, shape[1:]) + random.normal(0, 0.01, shape) for _ in names]
    return [
        ModelRun(HeadValues(name, tuple(range(6)), tuple(range(layers)), heads, (INFO.name,), one), pd.DataFrame(), name)
        for name, one in zip(names, values, strict=True)
    ]


@cache
def tables(layers: int, heads: int, models: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Ranks and agreement of several models."""
    every = runs(layers, heads, ("base", LONG, *(f"condition-{at}" for at in range(models)))[:models])
    ranks = pd.concat([ranks_table(run, n_resamples=20) for run in every], ignore_index=True)
    return ranks, agreement_table(every, n_resamples=20)


def subtitle_of(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_the_baselines_top_heads_have_their_ranks():
    ranks = tables(5, 4, 3)[0]
    figure = rank_plot(ranks, INFO, "n = 6 examples", top=6)
    of = ranks[ranks["region"] == "response"].set_index(["model", "layer", "head"])["rank"]
    first = of["base"].sort_values(kind="stable").index[:6]
    assert top_heads(ranks, INFO.name, "response", "base", 6) == list(first)
    lines = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    expected = [[of[model, layer, head] for model in ("base", LONG, "condition-0")] for layer, head in first]
    np.testing.assert_array_equal([line.get_ydata() for line in lines], expected)
    named = [text.get_text() for text in figure.axes[0].texts]
    assert named == [f"{layer}.{head}" for layer, head in first] * 2
    said = subtitle_of(figure)
    for text in ("top 6 heads", "baseline: base", "rank 1: the largest of 5 × 4 heads", "95 % bootstrap interval", "n = 6 examples"):
        assert text in said, text


def test_whiskers_are_the_intervals():
    ranks = tables(5, 4, 2)[0]
    ranks = ranks.assign(rank_low=ranks["rank"] - 0.5, rank_high=ranks["rank"] + 2)
    figure = rank_plot(ranks, INFO, top=3)
    for at, whiskers in enumerate(figure.axes[0].collections):
        ends = np.array([segment[:, 1] for segment in whiskers.get_segments()])  # pyright: ignore[reportAttributeAccessIssue]
        np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2.5)
        assert ends[0, 0] == at + 0.5


def test_the_baseline_is_in_the_first_column():
    figure = rank_plot(tables(5, 4, 3)[0], INFO, baseline="condition-0")
    assert figure.axes[0].get_xticklabels()[0].get_text() == "condition-0"
    assert "baseline: condition-0" in subtitle_of(figure)


def test_an_unknown_baseline_raises():
    with pytest.raises(InputError, match="no model 'none'; it has base, "):
        rank_plot(tables(2, 2, 2)[0], INFO, baseline="none")


def test_large_ranks_have_a_logarithmic_axis():
    ranks = tables(30, 9, 2)[0]
    ranks = ranks.assign(rank_high=np.where(ranks["rank"] <= 5, 150.0, ranks["rank_high"]))
    figure = rank_plot(ranks, INFO, top=5)
    assert figure.axes[0].get_yscale() == "log"
    assert "logarithmic ranks" in subtitle_of(figure)
    assert_texts_inside_and_apart(figure)


def test_a_head_without_a_rank_is_left_out():
    ranks = tables(2, 2, 2)[0]
    nothing = ranks.assign(rank=np.nan, rank_low=np.nan, rank_high=np.nan)
    assert rank_plot(nothing, INFO) is None
    one = ranks.copy()
    one.loc[(one["model"] == LONG), ["rank", "rank_low", "rank_high"]] = np.nan
    assert len(rank_plot(one, INFO).axes[0].texts) == 4  # named on the side where they have a rank


def test_one_model_can_be_drawn():
    assert_texts_inside_and_apart(rank_plot(tables(5, 4, 2)[0].query("model == 'base'"), INFO))


def test_agreement_matches_the_table_and_is_symmetric():
    every = runs(5, 4, ("a", "b", "c"))
    figure = agreement_map(agreement_table(every, n_resamples=20), INFO)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    means = [run.values.values.mean(0)[:, :, 0, REGIONS.index("response")].ravel() for run in every]
    expected = [[stats.spearmanr(one, other)[0] for other in means] for one in means]
    np.testing.assert_allclose(shown, np.array(expected, float), atol=1e-12)
    numbers = [text.get_text().split("\n")[0] for text in figure.axes[0].texts]
    assert numbers == ["1" if i == j else f"{shown[i, j]:.2f}" for i in range(3) for j in range(3)]
    said = subtitle_of(figure)
    for text in ("20 heads", "n = 6 examples", "Spearman", "95 % bootstrap interval"):
        assert text in said, text


def test_an_undefined_agreement_is_hatched_without_a_number():
    agreement = tables(2, 2, 2)[1].assign(spearman=np.nan, ci_low=np.nan, ci_high=np.nan)
    figure = agreement_map(agreement, INFO)
    assert figure.axes[0].patch.get_hatch()
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "1"]


def test_a_measure_that_was_not_taken_has_no_figure():
    other = MeasureInfo("entropy_nats", "Entropy", "nats", 0.0, None, "")
    ranks, agreement = tables(2, 2, 2)
    assert rank_plot(ranks, other) is None
    assert agreement_map(agreement, other) is None


def test_names_under_columns_fit():
    assert column_names(["one", "two words"], 1.0, 1.0)[:2] == (["one", "two words"], False)
    assert column_names(["a-name-that-is-long"], 0.5, 2.0)[:2] == (["a-name-that-is-long"], True)
    shown, upright, _, said = column_names(["a", "b", "c", "d", "e"], 0.05, 2.0)
    assert upright
    assert shown == ["a", "", "", "d", ""]
    assert said == "one model in 3 is named"


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("width", ["one", "two"])
@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 2, 2), (30, 9, 4), (30, 9, 17), (32, 32, 6), (80, 64, 3)])
def test_texts_are_inside_and_do_not_overlap(shape, width, name):
    ranks, agreement = tables(*shape)
    with use_style(name, width) as at:
        for figure in (rank_plot(ranks, INFO, "reference text · n = 6 examples"), agreement_map(agreement, INFO, "reference text")):
            assert figure.get_figwidth() == {"one": at.one, "two": at.two}[width]
            assert_texts_inside_and_apart(figure)


def test_drawing_twice_gives_the_same_bytes(tmp_path):
    for draw, table in ((rank_plot, tables(5, 4, 3)[0]), (agreement_map, tables(5, 4, 3)[1])):
        first, second = (tmp_path / f"{draw.__name__}{at}" for at in "12")
        for folder in (first, second):
            folder.mkdir()
            save_figure(draw(table, INFO), folder, "figure")
        for ending in ("png", "pdf"):
            assert (first / f"figure.{ending}").read_bytes() == (second / f"figure.{ending}").read_bytes()
