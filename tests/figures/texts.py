"""Checks of the texts in a figure, shared by the tests of every figure."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from figures.drawing.style import active_style, paper_style

LONG = "An-Organisation/a-model-with-quite-a-long-name-135M-Instruct-v2 · generated text · n = 1319 examples"
"""A subtitle that is long enough to be wrapped."""


def texts_of(figure: Figure) -> str:
    """The figure's title and subtitle in one line."""
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def assert_texts_inside_and_apart(figure: Figure, overlap: float = 1.0) -> None:
    """No text leaves the figure, and none overlaps another by more than `overlap` pixels, at printed resolution."""
    drawn: list[Text] = []
    draw = Text.draw

    def record(self: Text, *arguments, **settings) -> None:
        drawn.append(self)
        draw(self, *arguments, **settings)

    figure.set_dpi(active_style().dpi)
    with paper_style(), patch.object(Text, "draw", record):
        figure.draw_without_rendering()
        boxes = [(text, text.get_window_extent()) for text in drawn if text.get_visible() and text.get_text().strip()]
    assert boxes
    for text, box in boxes:
        assert float(text.get_fontsize()) >= active_style().small, text
        assert not text.get_parse_math()
        assert -1 <= box.x0 <= box.x1 <= figure.bbox.width + 1, text
        assert -1 <= box.y0 <= box.y1 <= figure.bbox.height + 1, text
    low, high = (np.array([getattr(box, corner) for _, box in boxes]) for corner in ("min", "max"))
    within = np.sort([low + overlap, high - overlap], axis=0)
    apart = (within[0][:, None] > high[None]) | (low[None] > within[1][:, None])
    over = [(boxes[one][0].get_text(), boxes[other][0].get_text()) for one, other in np.argwhere(~apart.any(-1)) if one < other]
    assert not over
