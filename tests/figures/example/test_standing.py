"""figures.example.standing: how heads stand, where they look by step, and what was expected of numbers, as the tables have it."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from figures.drawing import style
from figures.example import token_labels
from figures.example.probabilities import number_probabilities
from figures.example.read import Example, read_example
from figures.example.standing import LEVEL, standing_map
from figures.example.steps import step_bars
from interp.tables.errors import InputError


def texts(figure) -> list[str]:
    return [text.get_text().replace("\n", " ") for part in (figure, *figure.axes) for text in part.texts]


def outlined(axes) -> list[tuple[float, ...]]:
    """Place and probability of the outlined points."""
    return sorted(tuple(line.get_xydata()[0]) for line in axes.lines if line.get_gid() == "outlined")


def standing_grid(example: Example, model: str, column: str) -> np.ndarray:
    rows = example.standing
    rows = rows[(rows["model"] == model) & (rows["measure"] == "numeric_mass") & (rows["region"] == "response")]
    return rows.pivot(index="head", columns="layer", values=column).to_numpy(float)


# --- standing -----------------------------------------------------------------------------------------------------------


def test_t_is_drawn_on_one_symmetric_scale_and_low_q_marked(example_folder):
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
        np.testing.assert_array_equal(marked, standing_grid(example, model, "q") <= LEVEL)
        dotted.append(marked.mean())
    assert 0 < sum(dotted) < len(dotted)
    every = np.abs(np.stack([standing_grid(example, model, "t") for model in example.models]))
    assert (every <= high).mean() >= 0.99
    assert high <= every.max()
    assert any("against 20 other problems" in text for text in texts(figure))


def test_the_bar_has_round_ticks_and_the_caption_names_dots_that_are_there(example_folder):
    example = read_example(example_folder())
    standing = example.standing.assign(t=example.standing["t"] / example.standing["t"].abs().max() * 1.51)
    for q, said in ((0.9, "no head has q ≤ 0.05"), (LEVEL, "dot: q ≤ 0.05 over all heads")):
        figure = standing_map(dataclasses.replace(example, standing=standing.assign(q=q)))
        assert [said in text for text in texts(figure) if "q ≤" in text] == [True]
        assert ("no head" in said) == (not any(len(np.asarray(line.get_xdata())) for line in figure.axes[0].lines))
        ticks = figure.axes[-1].get_xticks()
        low, high = figure.axes[0].images[0].get_clim()
        assert len(ticks) >= 3
        assert 0.0 in ticks
        assert all(low <= tick <= high for tick in ticks)
        assert np.diff(ticks) == pytest.approx(float(f"{ticks[1] - ticks[0]:.1g}"))  # a step of one digit


def test_values_where_nothing_was_compared(example_folder):
    example = read_example(example_folder(compared=False))
    figure = standing_map(example)
    for axes, model in zip([axes for axes in figure.axes if axes.images], example.models, strict=True):
        np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), standing_grid(example, model, "value"))
        assert not [line for line in axes.lines if line.get_gid() == "significant" and len(np.asarray(line.get_xdata()))]
    assert any("compared with no run" in text for text in texts(figure))


def test_a_model_that_alone_was_not_compared_is_hatched(example_folder):
    example = read_example(example_folder())
    standing = example.standing.copy()
    standing.loc[standing["model"] == "model-1", ["mean", "sd", "t", "p", "q"]] = np.nan
    standing.loc[standing["model"] == "model-1", "n_examples"] = 0
    figure = standing_map(dataclasses.replace(example, standing=standing))
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.images]
    assert titles == ["model-0", "model-1 · not compared"]
    assert np.ma.getmaskarray(np.ma.asarray(figure.axes[1].images[0].get_array())).all()
    assert any("hatched: undefined" in text for text in texts(figure))


def test_layers_have_their_own_numbers(example_folder):
    example = read_example(example_folder())
    numbers = [4, 11, 20]
    standing = example.standing.assign(layer=[numbers[layer] for layer in example.standing["layer"]])
    run = {**example.run, "layers": numbers}
    axes = standing_map(dataclasses.replace(example, standing=standing, run=run)).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "11", "20"]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()).shape, (4, 3))


def test_another_measure_or_none(example_folder):
    example = read_example(example_folder())
    assert any("Attention on the first token" in text for text in texts(standing_map(example, "bos_mass", "question")))
    with pytest.raises(InputError, match="no row of 'absent' at 'response' queries; measures: entropy_nats"):
        standing_map(example, "absent")


# --- steps --------------------------------------------------------------------------------------------------------------


def test_bars_are_the_tables(example_folder):
    example = read_example(example_folder(watched=[(0, 0)]))
    heads = [(2, 3), (0, 1)]  # not watched
    figure = step_bars(example, heads)
    panels = [axes for axes in figure.axes if axes.containers]
    assert len(panels) == 4
    steps = example.steps
    for axes, (model, quantity) in zip(
        panels, [(model, quantity) for model in example.models for quantity in ("question_numbers", "earlier_results")], strict=True
    ):
        assert axes.get_title(loc="left").startswith(f"{model}: ")
        assert [bars.get_label() for bars in axes.containers] == ["2.3", "0.1"]
        for bars, (layer, head) in zip(axes.containers, heads, strict=True):
            rows = steps[(steps["model"] == model) & (steps["quantity"] == quantity) & (steps["layer"] == layer) & (steps["head"] == head)]
            known = rows[rows["value"].notna()].sort_values("step")
            np.testing.assert_allclose([bar.get_width() for bar in bars], known["value"])
            assert [round(bar.get_y() + bar.get_height() / 2) for bar in bars] == list(known["step"])
        assert sum(text.get_text() == "none before" for text in axes.texts) == (quantity == "earlier_results")
        assert axes.get_xlim() == panels[0].get_xlim()
    assert {"head 2.3", "head 0.1"} <= set(texts(figure))


def test_wrong_sums_have_a_cross_and_a_text(example_folder):
    example = read_example(example_folder())
    example.run["models"][1]["steps"][1]["sums"] = [
        {"written": "35+1250", "result": "1,285", "value": "1285", "right": True},
        {"written": "7/0", "result": "$3", "value": None, "right": False},
        {"written": "2+2", "result": "5", "value": None, "right": None},
    ]
    written = [text for text in texts(step_bars(example, [(0, 0)])) if text.startswith("✗")]
    assert written == ["✗ 3*12 = 36 (exact: 36)", "✗ 7/0 = $3"]  # the first is the fixture's
    right = read_example(example_folder(answers=("3*12=36",)))
    assert not any("✗" in text for text in texts(step_bars(right, [(0, 0)])))


def test_steps_are_numbered_and_shortened(example_folder):
    example = read_example(example_folder(answers=("a long step " * 30 + "\n#### 5",)))
    written = texts(step_bars(example, [(0, 0)]))
    assert any(text.startswith("1  a long step") and text.endswith("…") for text in written)
    assert "2  #### 5" in written


def test_a_response_without_steps(example_folder):
    example = read_example(example_folder())
    run = {**example.run, "models": [{**example.run["models"][0], "steps": []}, example.run["models"][1]]}
    steps = example.steps[example.steps["model"] != "model-0"]
    figure = step_bars(dataclasses.replace(example, run=run, steps=steps), [(0, 0)])
    assert sum(text == "no step" for text in texts(figure)) == 2


def test_heads_that_are_not_there(example_folder):
    example = read_example(example_folder(layers=1, heads=2))
    with pytest.raises(InputError, match=r"head 7\.7 is not in the table of steps; it has 0\.0, 0\.1"):
        step_bars(example, [(0, 0), (7, 7)])
    with pytest.raises(InputError, match="no head to draw"):
        step_bars(example, [])


# --- numbers ------------------------------------------------------------------------------------------------------------


def points(axes) -> dict[int, tuple[float, tuple]]:
    """Place to probability and colour."""
    found = {}
    for part in axes.collections:
        for x, y in np.asarray(part.get_offsets()):
            found[int(x)] = float(y), tuple(part.get_facecolor()[0])
    return found


def test_points_are_the_tables_in_the_order_of_the_text(example_folder):
    example = read_example(example_folder())
    figure = number_probabilities(example)
    assert len(figure.axes) == 2
    for axes, model in zip(figure.axes, example.models, strict=True):
        read = example.next[(example.next["model"] == model) & example.next["is_read"]].sort_values("position")
        roles = example.tokens[example.tokens["model"] == model].set_index("position")["role"]
        drawn = points(axes)
        assert sorted(drawn) == list(range(len(read)))
        for place, (position, probability) in enumerate(zip(read["position"], read["probability"], strict=True)):
            assert drawn[place][0] == pytest.approx(probability)
            assert drawn[place][1] == to_rgba(token_labels.colour(roles[position]))


@pytest.mark.parametrize(
    ("least", "scale", "floor", "drawn"),
    [(1.0, "log", 0.1, 1.0), (0.3, "log", 0.1, 0.3), (3e-4, "log", 1e-4, 3e-4), (1e-30, "log", 1e-12, 1e-12), (0.0, "linear", 0.0, 0.0)],
)
def test_the_axis_fits(example_folder, least, scale, floor, drawn):
    example = read_example(example_folder(answers=("3*12=36",)))
    table = example.next.copy()
    table["probability"] = np.maximum(table["probability"], least if least == 1.0 else 0.4)
    first = np.flatnonzero(table["is_read"])[0]
    table.loc[table.index[first], "probability"] = least
    figure = number_probabilities(dataclasses.replace(example, next=table))
    axes = figure.axes[0]
    assert any(("logarithmic axis" if scale == "log" else "linear axis, as a probability is 0") in text for text in texts(figure))
    assert axes.get_yscale() == scale
    assert axes.get_ylim() == (floor, 1.0)
    assert points(axes)[0][0] == pytest.approx(drawn)


def test_low_ones_are_named_with_the_likeliest(example_folder):
    example = read_example(example_folder(question="Is it 5?", answers=("7",)))
    table = example.next.copy()
    position = table["position"].min()
    table = table[(table["position"] != position) | table["rank"].isin([1])]
    first = table["position"] == position
    table.loc[first, ["rank", "probability", "is_read", "token"]] = [1, 0.2, True, "5"]
    more = table[first].assign(rank=1, probability=0.7, is_read=False, token=" $9\n")
    table.loc[first, "rank"] = 3
    table.loc[~first, "probability"] = 0.9
    example = dataclasses.replace(example, next=pd.concat([table, more], ignore_index=True))
    axes = number_probabilities(example).axes[0]
    assert [text.get_text() for text in axes.texts if text.get_gid() == "likeliest"] == ["“$9⏎” 0.70"]


CROWDED = "3*12=36, 36*2=72, 72+4=76\n#### 76"


@pytest.mark.parametrize("look", ["paper", "slides"])
@pytest.mark.parametrize(("answer", "models", "crowded"), [(CROWDED, 2, True), (CROWDED, 1, True), ("no", 1, False)])
def test_every_low_one_is_outlined_and_names_left_out_are_counted(example_folder, answer, models, crowded, look):
    example = read_example(example_folder(question="Is it 5?", answers=(answer,) * models))
    read = example.next[example.next["is_read"]].assign(rank=2, probability=0.4)
    likelier = read.assign(rank=1, probability=0.5, is_read=False, token="anything")
    with style.use(look):
        figure = number_probabilities(dataclasses.replace(example, next=pd.concat([read, likelier], ignore_index=True)))
    for axes, model in zip(figure.axes, example.models, strict=True):
        assert outlined(axes) == [(place, pytest.approx(0.4)) for place in range((read["model"] == model).sum())]
    names = sum(text.get_gid() == "likeliest" for axes in figure.axes for text in axes.texts)
    without = len(read) - names
    assert names > 0
    assert (without > 0) == crowded
    told = re.findall(r"(\d+) names? left out for room", " ".join(texts(figure)))
    assert told == ([str(without)] if crowded else [])


def test_a_name_stands_beside_its_point(example_folder):
    figure = number_probabilities(read_example(example_folder()))
    figure.canvas.draw()
    seen = 0
    for axes in figure.axes:
        spots = axes.transData.transform(outlined(axes))
        for text in (text for text in axes.texts if text.get_gid() == "likeliest"):
            box = text.get_window_extent()
            beside = [
                spot
                for spot in spots
                if box.x0 - 0.1 * figure.dpi < spot[0] < box.x1 + 0.1 * figure.dpi
                and box.y0 - 0.15 * figure.dpi < spot[1] < box.y1 + 0.15 * figure.dpi
            ]
            seen += 1
            assert beside, text.get_text()
    assert seen > 0


def test_the_title_counts_models(example_folder):
    one, two = (number_probabilities(read_example(example_folder(answers=("7",) * count))) for count in (1, 2))
    assert any(text.startswith("How the model expected") for text in texts(one))
    assert any(text.startswith("How models expected") for text in texts(two))


def test_no_number_is_said(example_folder):
    figure = number_probabilities(read_example(example_folder(question="What?", answers=("none", "at all"))))
    assert texts(figure).count("no number was read") == 2


@pytest.mark.parametrize("draw", [standing_map, number_probabilities, lambda example: step_bars(example, [(0, 0), (1, 1)])])
def test_files_are_the_same_bytes(example_folder, tmp_path, draw):
    example = read_example(example_folder())
    one, two = ([path.read_bytes() for path in style.save(draw(example), tmp_path, "figure")] for _ in range(2))
    assert one == two
