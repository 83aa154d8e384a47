"""figures.drawing.style: text that fits, files that are the same bytes."""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from figures.drawing import style
from interp.tables.schema import MeasureInfo


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


def contrast(one: str, other: str) -> float:
    """Of two colours, 1 to 21, as the Web Content Accessibility Guidelines 2.2 define it."""

    def luminance(colour: str) -> float:
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_by_hand():
    assert contrast("white", "black") == pytest.approx(21)
    assert contrast("#767676", "white") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("name", style.STYLES)
def test_fonts_are_large_enough(name):
    sizes = [value for key, value in style.settings(style.STYLES[name]).items() if key == "font.size" or "labelsize" in key]
    assert len(sizes) >= 4
    assert min(sizes) >= 6.5


@pytest.mark.parametrize("name", style.STYLES)
def test_what_is_drawn_stands_out_from_the_ground(name):
    at = style.STYLES[name]
    assert contrast(at.ink, at.background) >= 7
    assert contrast(at.grey, at.background) >= 4.5
    for colour in (at.blue, at.vermillion, *at.series[:6], at.quiet[1], at.undefined_hatch):
        assert contrast(colour, at.background) >= 3, colour
    assert len(set(at.series)) == len(set(map(str, style.SERIES_LINES))) == 8


def test_slides_have_larger_letters_for_their_width_than_a_paper():
    slides, paper = style.STYLES["slides"], style.STYLES["paper"]
    assert slides.small / slides.two > 1.3 * paper.small / paper.two
    assert slides.two < 160 / 25.4
    assert slides.tallest is not None
    assert slides.tallest < 90 / 25.4


def test_a_style_holds_inside_its_block_only():
    assert style.look() == style.STYLES["paper"]
    with style.use("dark", "one") as at:
        assert style.look() is at
        assert (at.name, at.column("two")) == ("dark", at.one)
        with style.use("slides"):
            assert style.look().name == "slides"
        assert style.look() is at
    assert style.look() == style.STYLES["paper"]


def test_a_style_ends_after_an_error():
    with pytest.raises(ZeroDivisionError), style.use("dark"):
        raise ZeroDivisionError
    assert style.look().name == "paper"


def test_unknown_styles_and_widths():
    with pytest.raises(style.StyleError, match="unknown style 'poster'; known: paper, slides, dark"), style.use("poster"):
        pass
    with pytest.raises(style.StyleError, match="unknown width 'three'; known: one, two"), style.use("paper", "three"):  # pyright: ignore[reportArgumentType]
        pass


def test_a_figures_own_width_where_none_is_asked():
    at = style.STYLES["paper"]
    assert (at.column("one"), at.column("two")) == (3.35, 6.9)


@pytest.mark.parametrize("name", style.STYLES)
def test_pictures_have_the_styles_size_and_ground(name, tmp_path: Path):
    with style.use(name) as at:
        with style.paper_style():
            figure = style.new_figure(at.two, 1.0)
            style.set_titles(figure, "title", "subtitle")
        png, _ = style.save(figure, tmp_path, "figure")
    with Image.open(png) as image:
        assert image.width == int(at.two * at.dpi)
        assert image.convert("RGB").getpixel((5, image.height - 5)) == tuple(round(255 * part) for part in to_rgb(at.background))


def test_panels_share_a_row_only_where_they_fit():
    margins = (0.27, 0.4, 0.32, 0.2)
    for name, columns in (("paper", 4), ("slides", 3)):
        with style.use(name) as at, style.paper_style():
            _, every = style.panels("title", "subtitle", 8, 4, panel=(1.04, 0.66), margins=margins)
            assert len({round(axes.get_position().x0, 6) for axes in every}) == columns
            assert max(axes.get_position().x1 for axes in every) * at.two <= at.two - 0.4 * at.zoom + 0.01


@pytest.mark.parametrize(("value", "text"), [(0.123456, "0.123"), (999.4, "999"), (1234, "1234"), (-4000, "−4000"), (12345, "12.3k")])
def test_ticks_are_short_numbers(value, text):
    assert style.tick_text(value) == text
