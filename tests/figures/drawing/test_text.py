"""figures.drawing.text: text that fits, and how numbers and units are written."""

from __future__ import annotations

import pytest

from figures.drawing.style import STYLES
from figures.drawing.text import heading, printable, text_inches, tick_text, wrapped
from interp.tables.schema import MeasureInfo


@pytest.mark.parametrize("text", ["short", "many words " * 30, "W" * 200, "WWWW iiii " * 20])
def test_wrapped_text_fits_its_width_and_number_of_lines(text: str):
    lines = wrapped(text, 2.0, 3).split("\n")
    assert len(lines) <= 3
    assert all(text_inches(line, STYLES["paper"].small) <= 2.0 for line in lines)
    assert lines[-1].endswith("…") == (len(text) > 40)


def test_text_that_fits_is_not_shortened():
    assert wrapped("a line\tof\nfive words", 5.0, 1) == "a line of five words"


def test_letters_missing_in_the_font_become_boxes():
    assert printable("模型-7B") == "□□-7B"


def test_a_heading_shortens_the_title_and_keeps_the_unit():
    info = MeasureInfo("long_name", "A very long title of a measure that a user has added " * 3, "nats", 0, 1, "")
    text = heading(info, 1.5, 2)
    assert text.replace("\n", " ").endswith("… (nats)")
    assert text.count("\n") <= 1


def test_a_heading_calls_a_pure_number_a_ratio():
    assert heading(MeasureInfo("m", "Title", "1", 0, 1, ""), 3.0, 1) == "Title (ratio)"


@pytest.mark.parametrize(("value", "text"), [(0.123456, "0.123"), (999.4, "999"), (1234, "1234"), (-4000, "−4000"), (12345, "12.3k")])
def test_tick_labels_are_short(value, text):
    assert tick_text(value) == text
