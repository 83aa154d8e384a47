"""figures.drawing.style: styles with readable fonts and colors, and files with the same bytes."""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from figures.drawing.layout import set_titles
from figures.drawing.style import ONE_COLUMN, SERIES_LINES, STYLES, active_style, new_figure, paper_style, save_figure, use_style
from interp.tables.errors import InputError


def _figure(title: str = "Attention on numbers (probability)"):
    with paper_style():
        figure = new_figure(ONE_COLUMN, 2.0)
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1])
        set_titles(figure, title, "tiny/model")
    return figure


def test_saving_later_writes_the_same_bytes(tmp_path: Path):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = save_figure(_figure(), tmp_path / "first", "figure")
    time.sleep(1.1)  # a date in the file would now differ
    second = save_figure(_figure(), tmp_path / "second", "figure")
    assert [path.name for path in first] == ["figure.png", "figure.pdf"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_dollar_sign_in_a_title_is_not_math(tmp_path: Path):
    save_figure(_figure("cost $x^2 and more$ \\frac{"), tmp_path, "figure")


def test_the_users_matplotlib_settings_do_not_change(tmp_path: Path):
    before = dict(matplotlib.rcParams)
    save_figure(_figure(), tmp_path, "figure")
    assert dict(matplotlib.rcParams) == before


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colors, 1 to 21, as the Web Content Accessibility Guidelines 2.2 define it."""

    def luminance(color: str) -> float:
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_ratios_match_known_values():
    assert contrast("white", "black") == pytest.approx(21)
    assert contrast("#767676", "white") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("name", STYLES)
def test_no_font_is_below_6_5_points(name):
    keys = ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize")
    with use_style(name), paper_style():
        assert min(matplotlib.rcParams[key] for key in keys) >= 6.5


@pytest.mark.parametrize("name", STYLES)
def test_colors_have_enough_contrast_to_the_background(name):
    at = STYLES[name]
    assert contrast(at.ink, at.background) >= 7
    assert contrast(at.gray, at.background) >= 4.5
    for color in (at.blue, at.vermillion, *at.series[:6], at.quiet[1], at.undefined_hatch):
        assert contrast(color, at.background) >= 3, color
    assert len(set(at.series)) == len(set(map(str, SERIES_LINES))) == 8


def test_slides_have_larger_letters_relative_to_their_width():
    slides, paper = STYLES["slides"], STYLES["paper"]
    assert slides.small / slides.two > 1.3 * paper.small / paper.two
    assert slides.two < 160 / 25.4
    assert slides.tallest is not None
    assert slides.tallest < 90 / 25.4


def test_a_style_applies_only_inside_its_block():
    assert active_style() == STYLES["paper"]
    with use_style("dark", "one") as at:
        assert active_style() is at
        assert (at.name, at.column("two")) == ("dark", at.one)
        with use_style("slides"):
            assert active_style().name == "slides"
        assert active_style() is at
    assert active_style() == STYLES["paper"]


def test_a_style_is_reset_after_an_error():
    with pytest.raises(ZeroDivisionError), use_style("dark"):
        raise ZeroDivisionError
    assert active_style().name == "paper"


def test_unknown_styles_and_widths_raise():
    with pytest.raises(InputError, match="unknown style 'poster'; known: paper, slides, dark"), use_style("poster"):
        pass
    with pytest.raises(InputError, match="unknown width 'three'; known: one, two"), use_style("paper", "three"):  # pyright: ignore[reportArgumentType]
        pass


def test_without_a_requested_width_a_figure_has_its_own():
    at = STYLES["paper"]
    assert (at.column("one"), at.column("two")) == (3.35, 6.9)


@pytest.mark.parametrize("name", STYLES)
def test_images_have_the_styles_size_and_background(name, tmp_path: Path):
    with use_style(name) as at:
        with paper_style():
            figure = new_figure(at.two, 1.0)
            set_titles(figure, "title", "subtitle")
        png, _ = save_figure(figure, tmp_path, "figure")
    with Image.open(png) as image:
        assert image.width == int(at.two * at.dpi)
        assert image.convert("RGB").getpixel((5, image.height - 5)) == tuple(round(255 * part) for part in to_rgb(at.background))
