"""figures.comparison.circuits: both circuits of every student on one scale."""

# A drawing function may return None, and matplotlib's artists have broad types; if they differ from what is expected, the test fails.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from figures.comparison.circuits import adapter_layers, adapter_map
from figures.drawing.style import save_figure
from interp.tables.errors import InputError
from tests.figures.texts import assert_texts_inside_and_apart

LONG = "runs/a-study-with-quite-a-long-name · adapters of rank 16 on queries, keys, values and outputs"


def geometry(layers: int, heads: int, conditions: int = 2, seeds: int = 1, name: str = "condition") -> pd.DataFrame:
    random = np.random.default_rng(0)
    frames = []
    for at in range(conditions):
        for seed in range(seeds):
            index = pd.MultiIndex.from_product([range(layers), range(heads), ["qk", "ov"]], names=["layer", "head", "circuit"])
            frame = index.to_frame(index=False).assign(relative=random.gamma(2, 0.02, len(index)))
            frames.append(frame.assign(model=f"{name}-{at}-s{seed}", condition=f"{name}-{at}"))
    return pd.concat(frames, ignore_index=True)


def texts(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_each_student_has_two_maps_on_one_scale():
    lora = geometry(5, 3)
    figure = adapter_map(lora)
    maps = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in maps] == [
        "QK · condition-0-s0", "OV · condition-0-s0", "QK · condition-1-s0", "OV · condition-1-s0"
    ]  # fmt: skip
    limits = {axes.images[0].get_clim() for axes in maps}
    assert limits == {(0.0, lora["relative"].max())}
    ov = lora[(lora["model"] == "condition-1-s0") & (lora["circuit"] == "ov")]
    np.testing.assert_array_equal(maps[3].images[0].get_array(), ov["relative"].to_numpy().reshape(5, 3).T)
    said = texts(figure)
    assert "n = 2 students of 15 heads" in said
    assert "(ratio)" in said
    assert "limits from the data" in said


def test_layers_without_attention_are_hatched_and_leave_a_gap():
    lora = geometry(5, 3, 1)
    lora = lora[lora["layer"] != 2]
    figure = adapter_map(lora)
    assert np.ma.getmaskarray(np.ma.asarray(figure.axes[0].images[0].get_array())).sum() == 3
    assert "hatched" in texts(figure)
    line = next(line for line in adapter_layers(lora).axes[0].lines if len(line.get_xdata()) == 5)
    assert np.isnan(np.asarray(line.get_ydata(), float)).tolist() == [False, False, True, False, False]


def test_lines_are_means_over_heads():
    lora = geometry(4, 6, 1)
    lora.loc[(lora["layer"] == 1) & (lora["head"] == 0), "relative"] = np.nan
    axes = adapter_layers(lora).axes[0]
    expected = lora[lora["circuit"] == "qk"].groupby("layer")["relative"].mean()
    np.testing.assert_allclose(axes.lines[0].get_ydata(), expected)
    assert "(ratio)" in axes.get_ylabel()
    assert axes.get_xlabel() == "layer"


def test_seeds_are_thin_and_their_mean_is_thick():
    figure = adapter_layers(geometry(4, 3, 2, 3))
    widths = [line.get_linewidth() for line in figure.axes[0].lines if len(line.get_xdata()) == 4]
    assert sorted(widths) == [0.5] * 6 + [1.3] * 2
    assert "n = 6 students, 3 heads per layer" in texts(figure)
    assert "no interval, no test" in texts(figure)


def test_a_missing_column_raises_and_an_empty_table_has_no_figure():
    lora = geometry(2, 2)
    with pytest.raises(InputError, match="lora lacks the column relative"):
        adapter_map(lora.drop(columns="relative"))
    assert adapter_map(lora[:0]) is None
    assert adapter_layers(lora[:0]) is None
    assert adapter_layers(lora.drop(columns="condition")) is not None


def test_adapters_that_change_nothing_can_be_drawn(tmp_path):
    lora = geometry(3, 2).assign(relative=0.0)
    save_figure(adapter_map(lora), tmp_path, "map")
    save_figure(adapter_layers(lora), tmp_path, "layers")
    assert adapter_layers(lora.assign(relative=np.nan)) is not None


@pytest.mark.parametrize("shape", [(1, 1), (30, 9), (32, 32), (80, 64)])
@pytest.mark.parametrize(("conditions", "seeds", "name"), [(1, 1, "c"), (4, 3, "c"), (8, 1, "a condition with a long name")])
def test_texts_are_inside_and_do_not_overlap(shape, conditions, seeds, name):
    lora = geometry(*shape, conditions, seeds, name)
    assert_texts_inside_and_apart(adapter_map(lora, LONG))
    assert_texts_inside_and_apart(adapter_layers(lora, LONG))


def test_drawing_twice_gives_the_same_bytes(tmp_path):
    for name, draw in {"map": adapter_map, "layers": adapter_layers}.items():
        first = [path.read_bytes() for path in save_figure(draw(geometry(4, 3)), tmp_path, name)]
        assert first == [path.read_bytes() for path in save_figure(draw(geometry(4, 3)), tmp_path, name)]
