"""figures.example.standing: maps of t and of values match the table."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from figures.drawing.significance import FALSE_DISCOVERY_RATE
from figures.drawing.style import save_figure
from figures.example.probabilities import number_probabilities
from figures.example.read import Example, read_example
from figures.example.standing import standing_map
from figures.example.steps import step_bars
from interp.tables.errors import InputError


def texts(figure) -> list[str]:
    return [text.get_text().replace("\n", " ") for part in (figure, *figure.axes) for text in part.texts]


def standing_grid(example: Example, model: str, column: str) -> np.ndarray:
    rows = example.standing
    rows = rows[(rows["model"] == model) & (rows["measure"] == "numeric_mass") & (rows["region"] == "response")]
    return rows.pivot(index="head", columns="layer", values=column).to_numpy(float)


# --- standing -----------------------------------------------------------------------------------------------------------


def test_t_has_one_symmetric_scale_and_low_q_is_marked(example_folder):
    example = read_example(example_folder(answers=("3*12=36",) * 3, layers=4, heads=5))
    figure = standing_map(example)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in panels] == example.models
    low, high = panels[0].images[0].get_clim()
    assert low == -high
    dotted = []
    for axes, model in zip(panels, example.models, strict=True):
        assert axes.images[0].get_clim() == (low, high)
        t = standing_grid(example, model, "t")
        np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), np.clip(t, low, high))
        (dots,) = [line for line in axes.lines if line.get_gid() == "significant"]
        marked = np.zeros(t.shape, bool)
        marked[np.asarray(dots.get_ydata(), int), np.asarray(dots.get_xdata(), int)] = True
        np.testing.assert_array_equal(marked, standing_grid(example, model, "q") <= FALSE_DISCOVERY_RATE)
        dotted.append(marked.mean())
    assert 0 < sum(dotted) < len(dotted)
    every = np.abs(np.stack([standing_grid(example, model, "t") for model in example.models]))
    assert (every <= high).mean() >= 0.99
    assert high <= every.max()
    assert any("compared with 20 other problems" in text for text in texts(figure))


def test_the_bar_has_round_ticks_and_the_subtitle_explains_dots_only_if_present(example_folder):
    example = read_example(example_folder())
    standing = example.standing.assign(t=example.standing["t"] / example.standing["t"].abs().max() * 1.51)
    for q, said in ((0.9, "no head has q ≤ 0.05"), (FALSE_DISCOVERY_RATE, "dot: q ≤ 0.05 over all heads")):
        figure = standing_map(dataclasses.replace(example, standing=standing.assign(q=q)))
        assert [said in text for text in texts(figure) if "q ≤" in text] == [True]
        assert ("no head" in said) == (not any(len(np.asarray(line.get_xdata())) for line in figure.axes[0].lines))
        ticks = figure.axes[-1].get_xticks()
        low, high = figure.axes[0].images[0].get_clim()
        assert len(ticks) >= 3
        assert 0.0 in ticks
        assert all(low <= tick <= high for tick in ticks)
        assert np.diff(ticks) == pytest.approx(float(f"{ticks[1] - ticks[0]:.1g}"))  # a step of one digit


def test_without_a_comparison_values_are_drawn(example_folder):
    example = read_example(example_folder(compared=False))
    figure = standing_map(example)
    for axes, model in zip([axes for axes in figure.axes if axes.images], example.models, strict=True):
        np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), standing_grid(example, model, "value"))
        assert not [line for line in axes.lines if line.get_gid() == "significant" and len(np.asarray(line.get_xdata()))]
    assert any("no run to compare with" in text for text in texts(figure))


def test_a_model_without_a_comparison_is_hatched_next_to_others(example_folder):
    example = read_example(example_folder())
    standing = example.standing.copy()
    standing.loc[standing["model"] == "model-1", ["mean", "sd", "t", "p", "q"]] = np.nan
    standing.loc[standing["model"] == "model-1", "n_examples"] = 0
    figure = standing_map(dataclasses.replace(example, standing=standing))
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.images]
    assert titles == ["model-0", "model-1 · not compared"]
    assert np.ma.getmaskarray(np.ma.asarray(figure.axes[1].images[0].get_array())).all()
    assert any("hatched: undefined" in text for text in texts(figure))


def test_ticks_show_the_measured_layers(example_folder):
    example = read_example(example_folder())
    numbers = [4, 11, 20]
    standing = example.standing.assign(layer=[numbers[layer] for layer in example.standing["layer"]])
    run = {**example.run, "layers": numbers}
    axes = standing_map(dataclasses.replace(example, standing=standing, run=run)).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "11", "20"]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()).shape, (4, 3))


def test_another_measure_can_be_drawn_and_an_unknown_one_raises(example_folder):
    example = read_example(example_folder())
    assert any("Attention on the first token" in text for text in texts(standing_map(example, "bos_mass", "question")))
    with pytest.raises(InputError, match="no row of 'absent' at 'response' queries; measures: entropy_nats"):
        standing_map(example, "absent")


# --- steps --------------------------------------------------------------------------------------------------------------


# --- numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [standing_map, number_probabilities, lambda example: step_bars(example, [(0, 0), (1, 1)])])
def test_drawing_twice_gives_the_same_bytes(example_folder, tmp_path, draw):
    example = read_example(example_folder())
    one, two = ([path.read_bytes() for path in save_figure(draw(example), tmp_path, "figure")] for _ in range(2))
    assert one == two
