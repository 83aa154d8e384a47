"""figures.example.probabilities: points, and labels of unexpected tokens, are those of the tables."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from figures.drawing.style import use_style
from figures.example.probabilities import number_probabilities
from figures.example.read import read_example
from figures.example.tokens import role_color


def texts(figure) -> list[str]:
    return [text.get_text().replace("\n", " ") for part in (figure, *figure.axes) for text in part.texts]


def outlined(axes) -> list[tuple[float, ...]]:
    """Place and probability of the outlined points."""
    return sorted(tuple(line.get_xydata()[0]) for line in axes.lines if line.get_gid() == "outlined")


def points(axes) -> dict[int, tuple[float, tuple]]:
    """Place to probability and color."""
    found = {}
    for part in axes.collections:
        for x, y in np.asarray(part.get_offsets()):
            found[int(x)] = float(y), tuple(part.get_facecolor()[0])
    return found


def test_points_match_the_table_in_text_order(example_folder):
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
            assert drawn[place][1] == to_rgba(role_color(roles[position]))


@pytest.mark.parametrize(
    ("least", "scale", "floor", "drawn"),
    [(1.0, "log", 0.1, 1.0), (0.3, "log", 0.1, 0.3), (3e-4, "log", 1e-4, 3e-4), (1e-30, "log", 1e-12, 1e-12), (0.0, "linear", 0.0, 0.0)],
)
def test_the_axis_is_logarithmic_unless_a_probability_is_0(example_folder, least, scale, floor, drawn):
    example = read_example(example_folder(answers=("3*12=36",)))
    table = example.next.copy()
    table["probability"] = np.maximum(table["probability"], least if least == 1.0 else 0.4)
    first = np.flatnonzero(table["is_read"])[0]
    table.loc[table.index[first], "probability"] = least
    figure = number_probabilities(dataclasses.replace(example, next=table))
    axes = figure.axes[0]
    assert any(("logarithmic axis" if scale == "log" else "linear axis, because a probability is 0") in text for text in texts(figure))
    assert axes.get_yscale() == scale
    assert axes.get_ylim() == (floor, 1.0)
    assert points(axes)[0][0] == pytest.approx(drawn)


def test_unexpected_tokens_are_labeled_with_the_most_likely_token(example_folder):
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
    assert [text.get_text() for text in axes.texts if text.get_gid() == "most_likely"] == ["“$9⏎” 0.70"]


CROWDED = "3*12=36, 36*2=72, 72+4=76\n#### 76"


@pytest.mark.parametrize("look", ["paper", "slides"])
@pytest.mark.parametrize(("answer", "models", "crowded"), [(CROWDED, 2, True), (CROWDED, 1, True), ("no", 1, False)])
def test_every_unexpected_token_is_outlined_and_missing_labels_are_counted(example_folder, answer, models, crowded, look):
    example = read_example(example_folder(question="Is it 5?", answers=(answer,) * models))
    read = example.next[example.next["is_read"]].assign(rank=2, probability=0.4)
    likelier = read.assign(rank=1, probability=0.5, is_read=False, token="anything")
    with use_style(look):
        figure = number_probabilities(dataclasses.replace(example, next=pd.concat([read, likelier], ignore_index=True)))
    for axes, model in zip(figure.axes, example.models, strict=True):
        assert outlined(axes) == [(place, pytest.approx(0.4)) for place in range((read["model"] == model).sum())]
    names = sum(text.get_gid() == "most_likely" for axes in figure.axes for text in axes.texts)
    without = len(read) - names
    assert names > 0
    assert (without > 0) == crowded
    told = re.findall(r"(\d+) names? left out for lack of room", " ".join(texts(figure)))
    assert told == ([str(without)] if crowded else [])


def test_a_label_is_next_to_its_point(example_folder):
    figure = number_probabilities(read_example(example_folder()))
    figure.canvas.draw()
    seen = 0
    for axes in figure.axes:
        spots = axes.transData.transform(outlined(axes))
        for text in (text for text in axes.texts if text.get_gid() == "most_likely"):
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


def test_every_model_has_a_panel(example_folder):
    for count in (1, 2):
        figure = number_probabilities(read_example(example_folder(answers=("7",) * count)))
        assert len(figure.axes) == count
        assert texts(figure)[0] == "Probability of each token of a number that was read"


def test_a_text_without_numbers_is_reported(example_folder):
    figure = number_probabilities(read_example(example_folder(question="What?", answers=("none", "at all"))))
    assert texts(figure).count("no number was read") == 2
