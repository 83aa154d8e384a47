"""figures.example.token_maps: cells match the table, share one scale, and have a difference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.colors import PowerNorm

from figures.drawing.style import save_figure
from figures.example.read import Example, read_example
from figures.example.token_maps import _thinned, token_map
from interp.tables.errors import InputError

HEAD = (1, 2)


def dense(example: Example, model: str) -> np.ndarray:
    """The head's table as a complete map."""
    edges = example.edges
    rows = edges[(edges["model"] == model) & (edges["layer"] == HEAD[0]) & (edges["head"] == HEAD[1])]
    n = int((example.tokens["model"] == model).sum())
    whole = np.zeros((n, n))
    for query, key, probability in zip(rows["query"], rows["key"], rows["probability"], strict=True):
        whole[query, key] = probability
    return whole


def images(figure) -> list[np.ma.MaskedArray]:
    return [np.ma.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def tokens(example: Example, model: str):
    return example.tokens[example.tokens["model"] == model].reset_index(drop=True)


def texts(figure) -> list[str]:
    return [text.get_text().replace("\n", " ") for part in (figure, *figure.axes) for text in part.texts]


def test_cells_match_the_table(example_folder):
    example = read_example(example_folder())
    figure = token_map(example, HEAD)
    shown = images(figure)
    assert len(shown) == 2
    for image, model in zip(shown, example.models, strict=True):
        frame = tokens(example, model)
        rows = np.flatnonzero(frame["region"] == "response")
        columns = np.flatnonzero(frame["region"].isin(["question", "response"]))
        part = dense(example, model)[np.ix_(rows, columns)]
        later = rows[:, None] < columns[None, :]
        np.testing.assert_array_equal(np.ma.getmaskarray(image), later)
        np.testing.assert_allclose(image.filled(0), part, atol=1e-12)
        share = 1 - part.sum(1).mean()
        assert any(f"{model} · {share:.0%} elsewhere" in text for text in texts(figure))


def test_numbers_are_summed_over_keys_and_averaged_over_queries(example_folder):
    example = read_example(example_folder())
    shown = images(token_map(example, HEAD, "numbers", "numbers"))
    for image, model in zip(shown, example.models, strict=True):
        whole, frame = dense(example, model), tokens(example, model)
        groups = [np.flatnonzero(frame["number"] == number) for number in sorted(set(frame["number"]) - {-1})]
        expected = np.array([[whole[np.ix_(a, b)].sum(1).mean() for b in groups] for a in groups])
        np.testing.assert_allclose(image.filled(0), expected, atol=1e-12)
        np.testing.assert_array_equal(np.ma.getmaskarray(image), np.triu(np.ones_like(expected, bool), 1))


def test_tokens_that_are_not_queries_have_no_row(example_folder):
    example = read_example(example_folder())
    frame = example.tokens.assign(is_query=example.tokens["position"] % 2 == 0)
    image = images(token_map(dataclasses.replace(example, tokens=frame), HEAD))[0]
    part = tokens(example, example.models[0])
    assert image.shape[0] == ((part["region"] == "response") & (part["position"] % 2 == 0)).sum()


def test_a_range_of_positions_selects_rows_and_columns(example_folder):
    example = read_example(example_folder())
    image = images(token_map(example, HEAD, (30, 40), (0, 25)))[0]
    np.testing.assert_allclose(image.filled(0), dense(example, "model-0")[30:40, :25], atol=1e-12)
    assert any("rows: tokens 30 to 39" in text for text in texts(token_map(example, HEAD, (30, 40))))


def test_panels_share_a_scale_up_to_the_highest_value(example_folder):
    example = read_example(example_folder())
    figure = token_map(example, HEAD)
    norms = [axes.images[0].norm for axes in figure.axes if axes.images]
    highest = max(image.max() for image in images(figure))
    assert all(isinstance(norm, PowerNorm) and norm.gamma == 0.5 for norm in norms)
    assert {(norm.vmin, norm.vmax) for norm in norms} == {(0.0, highest)}
    assert "attention (probability, square-root color scale)" in texts(figure)


def test_two_models_on_one_text_have_a_difference(example_folder):
    example = read_example(example_folder(answers=("3*12=36\n#### 36",) * 2))
    figure = token_map(example, HEAD)
    first, second, difference = images(figure)
    np.testing.assert_allclose(difference.filled(0), (second - first).filled(0))
    low, high = [axes for axes in figure.axes if axes.images][2].images[0].get_clim()
    assert low == -high
    assert high == pytest.approx(np.abs(second - first).max())
    assert "difference (probability)" in texts(figure)
    assert any(text == "model-1 − model-0" for text in texts(figure))


def test_models_with_different_texts_have_no_difference(example_folder):
    assert len(images(token_map(read_example(example_folder()), HEAD))) == 2


@pytest.mark.parametrize("count", [1, 3])
def test_only_two_models_have_a_difference(example_folder, count):
    example = read_example(example_folder(answers=("3*12=36",) * count))
    assert len(images(token_map(example, HEAD))) == count


def test_an_empty_panel_is_reported(example_folder):
    example = read_example(example_folder(question="What?", answers=("none", "at all")))
    figure = token_map(example, HEAD, "numbers", "numbers")
    assert not images(figure)
    assert sum("no such tokens" in text for text in texts(figure)) == 2


def test_labels_are_all_tokens_or_only_numbers(example_folder):
    figure = token_map(read_example(example_folder(answers=("x=12 $",), question="a 5")), HEAD)
    assert {"x", "=", "1", "2", "$", "5"} <= set(texts(figure))
    long = read_example(example_folder(answers=("word " * 60 + "7*6=42",), question="a 5"))
    shown = texts(token_map(long, HEAD))
    assert "word" not in shown
    assert {"5", "7", "6", "42"} <= set(shown)


@pytest.mark.parametrize("span", ["numbers", "response"])
def test_labels_without_room_are_counted(example_folder, span):
    sums = " ".join(f"{one}+{one}={2 * one}" for one in range(10, 70))
    example = read_example(example_folder(question="a 5", answers=(sums,), layers=2, heads=3))
    figure = token_map(example, HEAD, span, span)
    (axes,) = [axes for axes in figure.axes if axes.images]
    unit = "number" if span == "numbers" else "token"
    assert {f"query {unit}", f"key {unit}"} <= set(texts(figure))
    drawn = sum(text.get_text().isdigit() and text.get_position()[0] < 1 for text in axes.texts)  # the step's number stands right
    shown = tokens(example, "model-0")
    shown = shown if span == "numbers" else shown[shown["region"] == "response"]
    count = shown.loc[shown["number"] >= 0, "number"].nunique()
    assert drawn < 2 * count
    assert any(f"{2 * count - drawn} labels left out for lack of room" in text for text in texts(figure))


def test_there_is_no_note_if_every_number_has_a_label(example_folder):
    example = read_example(example_folder(question="a 5", answers=("3*12=36",)))
    assert not any("left out" in text for text in texts(token_map(example, HEAD, "numbers", "numbers")))


def test_no_value_is_lost_between_pixels():
    values = np.zeros((5, 7))
    values[4, 6], values[0, 1], values[0, 0], values[2, 2] = -0.9, 0.5, -0.1, np.nan
    blocks, (down, across) = _thinned(values, (3, 4))
    assert (down, across) == (2, 2)
    assert blocks.shape == (3, 4)
    assert blocks[2, 3] == -0.9
    assert blocks[0, 0] == 0.5
    assert np.isfinite(blocks).all()
    whole = np.full((4, 4), np.nan)
    assert np.isnan(_thinned(whole, (2, 2))[0]).all()
    assert _thinned(values, (5, 7))[0] is values


def test_unknown_spans_and_heads_raise(example_folder):
    example = read_example(example_folder(watched=[HEAD]))
    with pytest.raises(InputError, match=r"watched: 1\.2"):
        token_map(example, (0, 0))
    with pytest.raises(InputError, match="unknown queries 'answer'; known: question, response"):
        token_map(example, HEAD, "answer")
    with pytest.raises(InputError, match="keys 900 to 950 have no token; positions are 0 to"):
        token_map(example, HEAD, keys=(900, 950))


def test_drawing_twice_gives_the_same_bytes(example_folder, tmp_path):
    example = read_example(example_folder(answers=("3*12=36",) * 2))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_figure(token_map(example, HEAD), tmp_path / name, "map")
    for ending in ("png", "pdf"):
        assert (tmp_path / "a" / f"map.{ending}").read_bytes() == (tmp_path / "b" / f"map.{ending}").read_bytes()
