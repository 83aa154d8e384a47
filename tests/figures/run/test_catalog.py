"""figures.run.catalog: every figure at every shape keeps its texts inside and apart."""

# A figure may be None by its type; where it were, the test fails as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import subprocess
import sys
from unittest.mock import patch

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from figures.drawing import style
from figures.run.catalog import FIGURES, MEASURE_FIGURES
from figures.run.distributions import distribution
from figures.run.layer_curves import layer_curve
from figures.run.page import CAPTIONS

LONG = "An-Organisation/a-model-with-quite-a-long-name-135M-Instruct-v2 · generated text · n = 1319 examples"
ONE_MEASURE = {**MEASURE_FIGURES, "layer_curve": layer_curve, "distribution": distribution}


def assert_texts_inside_and_apart(figure: Figure) -> None:
    """No text leaves the figure, and none lies over another, by the renderer's bounding boxes at printed resolution."""
    drawn: list[Text] = []
    draw = Text.draw

    def record(self: Text, *arguments, **settings) -> None:
        drawn.append(self)
        draw(self, *arguments, **settings)

    figure.set_dpi(style.PNG_DPI)
    with style.paper_style(), patch.object(Text, "draw", record):
        figure.draw_without_rendering()
        boxes = [(text, text.get_window_extent()) for text in drawn if text.get_visible() and text.get_text().strip()]
    assert boxes
    for index, (text, box) in enumerate(boxes):
        assert float(text.get_fontsize()) >= 6.5, text
        assert -1 <= box.x0 <= box.x1 <= figure.bbox.width + 1, text
        assert -1 <= box.y0 <= box.y1 <= figure.bbox.height + 1, text
        for other, other_box in boxes[index + 1 :]:
            apart = not box.padded(-1).overlaps(other_box)
            assert apart, f"{text.get_text()!r} lies over {other.get_text()!r}"


@pytest.mark.parametrize("shape", [(30, 9), (32, 32), (80, 64), (1, 1)])
@pytest.mark.parametrize("name", FIGURES)
def test_run_figures_keep_their_texts_inside(name, shape, infos, head_table):
    figure = FIGURES[name](head_table(*shape), infos, LONG, "response")
    assert figure.get_figwidth() in (style.ONE_COLUMN, style.TWO_COLUMNS)
    assert_texts_inside_and_apart(figure)


@pytest.mark.parametrize("shape", [(30, 9), (32, 32), (80, 64), (1, 1)])
@pytest.mark.parametrize("measure", ["entropy_nats", "numeric_mass", "numeric_enrichment", "numeric_z"])
@pytest.mark.parametrize("name", ONE_MEASURE)
def test_measure_figures_keep_their_texts_inside(name, measure, shape, infos, head_table):
    figure = ONE_MEASURE[name](head_table(*shape), infos[measure], LONG, "response")
    assert figure.get_figwidth() == style.ONE_COLUMN
    assert_texts_inside_and_apart(figure)


def test_every_figure_has_a_caption():
    assert set(CAPTIONS) == {*FIGURES, *MEASURE_FIGURES}
    assert all("{n}" in caption and "{region}" in caption for caption in CAPTIONS.values())


def test_figures_need_no_torch_and_no_backend():
    code = (
        "import sys; import figures, figures.__main__, figures.run.draw\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
        "import matplotlib; print(matplotlib.rcParams._get_backend_or_none())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["[]", "None"]
