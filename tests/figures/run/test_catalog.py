"""figures.run.catalog: every figure at every shape keeps its texts inside and apart."""

from __future__ import annotations

import subprocess
import sys

import pytest

from figures.drawing.style import ONE_COLUMN, TWO_COLUMNS
from figures.run.catalog import RUN_FIGURES
from figures.run.read import HeadRun
from tests.figures.texts import LONG, assert_texts_inside_and_apart

OF_THE_RUN = [name for name, entry in RUN_FIGURES.items() if not entry.each]
OF_A_MEASURE = [name for name, entry in RUN_FIGURES.items() if entry.each]


@pytest.fixture
def content(infos, head_table, sample_run, sample_inputs):
    """A head run of any shape, with a subtitle that must be wrapped."""
    sample_run["model"]["name"] = LONG
    return lambda shape: HeadRun(sample_run, head_table(*shape), sample_inputs, infos)


@pytest.mark.parametrize("shape", [(30, 9), (32, 32), (80, 64), (1, 1)])
@pytest.mark.parametrize("name", OF_THE_RUN)
def test_texts_of_run_figures_are_inside_and_do_not_overlap(name, shape, content):
    figure = RUN_FIGURES[name].draw(content(shape))
    assert figure is not None
    assert figure.get_figwidth() in (ONE_COLUMN, TWO_COLUMNS)
    assert_texts_inside_and_apart(figure)


@pytest.mark.parametrize("shape", [(30, 9), (32, 32), (80, 64), (1, 1)])
@pytest.mark.parametrize("measure", ["entropy_nats", "numeric_mass", "numeric_enrichment", "numeric_z"])
@pytest.mark.parametrize("name", OF_A_MEASURE)
def test_texts_of_measure_figures_are_inside_and_do_not_overlap(name, measure, shape, infos, content):
    figure = RUN_FIGURES[name].draw(content(shape), infos[measure])
    assert figure is not None
    assert figure.get_figwidth() == ONE_COLUMN
    assert_texts_inside_and_apart(figure)


def test_every_caption_states_sample_size_and_region():
    assert all("{n}" in entry.caption and "{region}" in entry.caption for entry in RUN_FIGURES.values())


def test_figures_need_no_torch_and_no_backend():
    code = (
        "import sys, figures.__main__\n"
        "import figures.run.draw, figures.comparison.draw, figures.contrast.draw, figures.example.draw\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
        "import matplotlib; print(matplotlib.rcParams._get_backend_or_none())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["[]", "None"]
