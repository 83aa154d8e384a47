"""figures.example.steps: bars and texts of steps are those of the tables."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from figures.example.read import read_example
from figures.example.steps import step_bars
from interp.tables.errors import InputError


def texts(figure) -> list[str]:
    return [text.get_text().replace("\n", " ") for part in (figure, *figure.axes) for text in part.texts]


def test_bars_match_the_table(example_folder):
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


def test_wrong_sums_are_marked_with_the_exact_value(example_folder):
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


def test_step_texts_are_numbered_and_truncated(example_folder):
    example = read_example(example_folder(answers=("a long step " * 30 + "\n#### 5",)))
    written = texts(step_bars(example, [(0, 0)]))
    assert any(text.startswith("1  a long step") and text.endswith("…") for text in written)
    assert "2  #### 5" in written


def test_a_response_without_steps_has_empty_panels(example_folder):
    example = read_example(example_folder())
    run = {**example.run, "models": [{**example.run["models"][0], "steps": []}, example.run["models"][1]]}
    steps = example.steps[example.steps["model"] != "model-0"]
    figure = step_bars(dataclasses.replace(example, run=run, steps=steps), [(0, 0)])
    assert sum(text == "no step" for text in texts(figure)) == 2


def test_unknown_heads_raise(example_folder):
    example = read_example(example_folder(layers=1, heads=2))
    with pytest.raises(InputError, match=r"head 7\.7 is not in the table of steps; it has 0\.0, 0\.1"):
        step_bars(example, [(0, 0), (7, 7)])
    with pytest.raises(InputError, match="no head to draw"):
        step_bars(example, [])
