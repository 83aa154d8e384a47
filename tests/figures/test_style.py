"""figures.style: text that fits, files that are the same bytes."""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib
import pytest

from figures import style
from interp.table import MeasureInfo


def _figure(title: str = "Attention on numbers (probability)"):
    with style.paper_style():
        figure = style.new_figure(style.ONE_COLUMN, 2.0)
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1])
        style.set_titles(figure, title, "tiny/model")
    return figure


@pytest.mark.parametrize("text", ["short", "many words " * 30, "W" * 200, "WWWW iiii " * 20])
def test_wrapped_text_fits_its_width_and_its_lines(text: str):
    lines = style.wrapped(text, 2.0, 3).split("\n")
    assert len(lines) <= 3
    assert all(style.text_inches(line, style.SMALL) <= 2.0 for line in lines)
    assert lines[-1].endswith("…") == (len(text) > 40)


def test_wrapped_keeps_every_word_that_fits():
    assert style.wrapped("a line\tof\nfive words", 5.0, 1) == "a line of five words"


def test_letters_that_the_font_lacks_become_boxes():
    assert style.printable("模型-7B") == "□□-7B"


def test_heading_cuts_the_title_before_the_unit():
    info = MeasureInfo("long_name", "A very long title of a measure that a user has added " * 3, "nats", 0, 1, "")
    text = style.heading(info, 1.5, 2)
    assert text.replace("\n", " ").endswith("… (nats)")
    assert text.count("\n") <= 1


def test_heading_calls_a_pure_number_a_ratio():
    assert style.heading(MeasureInfo("m", "Title", "1", 0, 1, ""), 3.0, 1) == "Title (ratio)"


def test_count_ticks_are_whole_and_inside():
    for count in (1, 2, 9, 30, 32, 64, 80, 126):
        ticks = style.count_ticks(2.6, count)
        assert ticks
        assert ticks[0] == 0
        assert ticks[-1] < count
        assert len(ticks) <= 13


def test_save_writes_the_same_bytes_at_another_time(tmp_path: Path):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = style.save(_figure(), tmp_path / "first", "figure")
    time.sleep(1.1)  # a date in the file would now differ
    second = style.save(_figure(), tmp_path / "second", "figure")
    assert [path.name for path in first] == ["figure.png", "figure.pdf"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_dollar_in_a_title_is_a_dollar(tmp_path: Path):
    style.save(_figure("cost $x^2 and more$ \\frac{"), tmp_path, "figure")


def test_nothing_of_the_user_changes(tmp_path: Path):
    before = dict(matplotlib.rcParams)
    style.save(_figure(), tmp_path, "figure")
    assert dict(matplotlib.rcParams) == before


def test_fonts_are_large_enough():
    sizes = [value for key, value in style.SETTINGS.items() if key == "font.size" or "labelsize" in key]
    assert len(sizes) >= 4
    assert min(sizes) >= 6.5
