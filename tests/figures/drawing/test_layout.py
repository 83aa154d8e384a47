"""figures.drawing.layout: ticks and panels that fit."""

from __future__ import annotations

from figures.drawing.layout import count_ticks, equal_panels
from figures.drawing.style import paper_style, use_style


def test_count_ticks_are_whole_numbers_within_range():
    for count in (1, 2, 9, 30, 32, 64, 80, 126):
        ticks = count_ticks(2.6, count)
        assert ticks
        assert ticks[0] == 0
        assert ticks[-1] < count
        assert len(ticks) <= 13


def test_panels_that_do_not_fit_side_by_side_start_a_new_row():
    margins = (0.27, 0.4, 0.32, 0.2)
    for name, columns in (("paper", 4), ("slides", 3)):
        with use_style(name) as at, paper_style():
            _, every = equal_panels("title", "subtitle", 8, 4, panel=(1.04, 0.66), margins=margins)
            assert len({round(axes.get_position().x0, 6) for axes in every}) == columns
            assert max(axes.get_position().x1 for axes in every) * at.two <= at.two - 0.4 * at.zoom + 0.01
