"""figures.example.attention_arcs: arcs match the table and connect their tokens; lines that are drawn."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import PathPatch

from figures.drawing.style import save_figure
from figures.example.attention_arcs import (
    ALL_LINES_UP_TO,
    LEGEND_PROBABILITIES,
    MOST_LINES,
    SMALLEST_ARC,
    attention_arcs,
    opacity_of,
    place_tokens,
    width_of,
)
from figures.example.read import Example, read_example
from figures.example.tokens import MARKED_ROLES, ROLES_OF_NUMBERS, role_color, tokens_of
from interp.tables.errors import InputError

HEAD = (2, 1)


def wanted(example: Example, model: str):
    """The arcs according to the tables, the weakest first."""
    frame = example.tokens[example.tokens["model"] == model].set_index("position")
    number = frame["role"].isin(["operand", "intermediate_result", "final_answer"]) & (frame["region"] == "response")
    text = frame["region"].isin(["question", "response"])
    edges = example.edges[example.edges["model"] == model]
    edges = edges[(edges["layer"] == HEAD[0]) & (edges["head"] == HEAD[1]) & (edges["probability"] >= 0.05)]
    edges = edges[edges["query"].map(number) & edges["key"].map(text)]
    return edges.sort_values(["probability", "query", "key"]), frame


def arcs_of(figure) -> list[PathPatch]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, PathPatch)]


def set_texts(figure) -> list:
    """Texts of the blocks in the order of drawing; those above and in the legend have other layers."""
    return [text for text in figure.axes[0].texts if text.get_zorder() == 4]


def test_arcs_match_the_table_and_connect_their_tokens(example_folder):
    example = read_example(example_folder())
    figure = attention_arcs(example, HEAD)
    figure.draw_without_rendering()
    arcs, texts = arcs_of(figure), set_texts(figure)
    inverse = figure.axes[0].transData.inverted()
    roles = len(MARKED_ROLES)
    assert [text.get_text() for text in texts[:roles]] == [role.replace("_", " ") for role in MARKED_ROLES]
    at_arc, at_text = 0, roles
    for model in example.models:
        edges, frame = wanted(example, model)
        shown = frame[frame["region"].isin(["question", "response"])]
        boxes = {}
        for position, row in shown.iterrows():
            if row["shown"].strip(" "):
                text = texts[at_text]
                assert text.get_text() == row["shown"].lstrip(" ").replace("\n", "⏎")
                boxes[position] = inverse.transform_bbox(text.get_window_extent())
                at_text += 1
        assert len(edges) > 20
        for query, key, probability in zip(edges["query"], edges["key"], edges["probability"], strict=True):
            arc = arcs[at_arc]
            at_arc += 1
            assert arc.get_linewidth() == pytest.approx(width_of(probability))
            role = frame["role"][key]
            shade = role_color(role if role in ROLES_OF_NUMBERS else "none")
            assert arc.get_edgecolor() == to_rgba(shade, opacity_of(probability))
            vertices = np.asarray(arc.get_path().vertices)
            for (x, y), position, side in ((vertices[0], query, "query"), (vertices[-1], key, "key")):
                box = boxes[position]
                assert box.x0 - 0.02 <= x <= box.x1 + 0.02
                assert abs(y - (box.y1 if side == "query" else (box.y0 + box.y1) / 2)) < 0.13
            assert vertices[:, 0].min() >= 0
            assert vertices[:, 0].max() <= figure.get_figwidth()
    assert at_arc == len(arcs)
    assert at_text == len(texts)


def test_small_probabilities_have_no_arc(example_folder):
    example = read_example(example_folder())
    least = min(arc.get_linewidth() for arc in arcs_of(attention_arcs(example, HEAD)))
    assert width_of(SMALLEST_ARC) <= least < width_of(2 * SMALLEST_ARC)
    assert (example.edges["probability"] < SMALLEST_ARC).any()
    assert min(LEGEND_PROBABILITIES) == SMALLEST_ARC


def test_the_share_on_other_keys_is_reported(example_folder):
    example = read_example(example_folder())
    figure = attention_arcs(example, HEAD)
    written = [text.get_text() for text in figure.axes[0].texts]
    for model in example.models:
        frame = example.tokens[example.tokens["model"] == model].set_index("position")
        queries = frame.index[frame["role"].isin(["operand", "intermediate_result", "final_answer"])]
        edges = example.edges[(example.edges["model"] == model) & (example.edges["layer"] == 2) & (example.edges["head"] == 1)]
        inside = edges[edges["query"].isin(queries) & edges["key"].map(frame["region"]).isin(["question", "response"])]
        share = 1 - inside.groupby("query")["probability"].sum().mean()
        assert f"{model} · {share:.0%} elsewhere" in written


def test_words_stay_on_one_line_and_line_breaks_are_kept(example_folder):
    text = "some quite ordinary words\n\nand a " + "w" * 300 + " end" + " " * 40 + "far"
    example = read_example(example_folder(question="What?", answers=(text,)))
    tokens = tokens_of(example, "model-0")
    tokens = tokens[tokens["region"] == "response"]
    places = place_tokens(tokens, 1.0)
    assert all(0 <= place.left <= place.right <= 1.0 + 1e-9 for place in places)
    by_line: dict[int, list] = {}
    for place in places:
        by_line.setdefault(place.line, []).append(place)
    for line in by_line.values():
        ends = [(place.left, place.right) for place in line]
        assert all(before[1] <= after[0] + 1e-9 for before, after in itertools.pairwise(ends))
        assert line[0].left == 0.0
    assert sum(place.text == "⏎" for place in places) == 2
    assert any(place.text.endswith("w…") for place in places)


def test_a_further_part_of_a_character_has_the_same_place(example_folder):
    example = read_example(example_folder(question="🙂 5", answers=("5+5=10",)))
    tokens = tokens_of(example, "model-0")
    tokens = tokens[tokens["region"] == "question"]
    places = place_tokens(tokens, 2.0)
    first = list(tokens["shown"]).index("🙂")
    assert (places[first].text, places[first + 1].text) == ("▯", "")
    assert (places[first + 1].left, places[first + 1].line) == (places[first].left, places[first].line)


def test_a_text_without_numbers_is_reported(example_folder):
    figure = attention_arcs(read_example(example_folder(question="What?", answers=("none here",))), HEAD)
    assert not arcs_of(figure)
    assert any("no token of a number" in text.get_text() for text in figure.axes[0].texts)


def with_arcs(example: Example, pairs: list[tuple[int, int, float]]) -> Example:
    """The first model's head with only these arcs."""
    table = example.edges[(example.edges["layer"] == HEAD[0]) & (example.edges["head"] == HEAD[1])]
    table = table.iloc[: len(pairs)].assign(**dict(zip(("query", "key", "probability"), zip(*pairs, strict=True), strict=True)))
    return dataclasses.replace(example, edges=table)


def test_in_a_long_text_only_lines_with_arcs_are_drawn(example_folder):
    words = " ".join(f"word{at}" for at in range(500))
    example = read_example(example_folder(question=f"5 {words} 7 {words} end", answers=("5+7=12",), layers=3, heads=2))
    tokens = tokens_of(example, "model-0")
    seven = tokens.index[(tokens["shown"].str.strip() == "7") & (tokens["region"] == "question")][0]
    query = tokens.index[(tokens["role"] == "operand") & (tokens["region"] == "response")][0]
    figure = attention_arcs(with_arcs(example, [(query, seven, 0.5)]), HEAD)
    assert len(arcs_of(figure)) == 1
    bases = {round(text.get_position()[1], 6) for text in set_texts(figure)}
    assert len(bases) == 1 + 3  # the key's line, question's first, the number's, the response's
    drawn = {text.get_text() for text in set_texts(figure)}
    assert "7" in drawn
    assert "end" not in drawn
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written.count("…") == 2  # before the number's line, and after it
    subtitle = figure.texts[1].get_text().replace("\n", " ")
    without, lines = map(int, re.findall(r"(\d+) of (\d+) lines of text left out, which hold no end of an arc", subtitle)[0])
    assert lines - without == 3
    assert lines > ALL_LINES_UP_TO


def test_in_a_text_with_arcs_everywhere_the_strongest_are_drawn(example_folder):
    words = " ".join(f"word{at}" for at in range(1500))
    example = read_example(example_folder(question=f"{words} 7", answers=("5+7=12",), layers=3, heads=2))
    tokens = tokens_of(example, "model-0")
    keys = tokens.index[(tokens["region"] == "question") & (tokens["shown"].str.strip() != "")][::8]
    query = tokens.index[(tokens["role"] == "operand") & (tokens["region"] == "response")][0]
    strengths = np.linspace(0.06, 0.9, len(keys))
    figure = attention_arcs(with_arcs(example, [(query, int(key), float(p)) for key, p in zip(keys, strengths, strict=True)]), HEAD)
    bases = {round(text.get_position()[1], 6) for text in set_texts(figure)}
    assert len(bases) == 1 + MOST_LINES
    subtitle = figure.texts[1].get_text().replace("\n", " ")
    hidden, count = map(int, re.findall(r"and (\d+) of (\d+) arcs left out for lack of room", subtitle)[0])
    assert count == len(keys)
    assert len(arcs_of(figure)) == count - hidden > 0
    assert max(arc.get_linewidth() for arc in arcs_of(figure)) == pytest.approx(width_of(0.9))


def test_a_short_text_is_drawn_completely(example_folder):
    figure = attention_arcs(read_example(example_folder()), HEAD)
    assert "left out" not in figure.texts[1].get_text()
    assert "…" not in {text.get_text() for text in figure.axes[0].texts}


def test_right_to_left_text_is_noted(example_folder):
    figure = attention_arcs(read_example(example_folder(question="כמה הם 5?", answers=("5+5=10",))), HEAD)
    said = figure.texts[1].get_text().replace("\n", " ")
    assert "right-to-left text is drawn letter by letter; the page shows it correctly" in said


def test_a_head_that_was_not_watched_raises(example_folder):
    with pytest.raises(InputError, match=r"watched: 0\.0"):
        attention_arcs(read_example(example_folder(watched=[(0, 0)])), HEAD)


def test_drawing_twice_gives_the_same_bytes(example_folder, tmp_path):
    example = read_example(example_folder())
    one, two = ([path.read_bytes() for path in save_figure(attention_arcs(example, HEAD), tmp_path, "arcs")] for _ in range(2))
    assert one == two
