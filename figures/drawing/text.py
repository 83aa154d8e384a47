"""Text in figures: what the font can draw, how wide it is, and how it is wrapped to fit."""

from __future__ import annotations

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties, findfont, get_font

from figures.drawing.style import active_style
from interp.tables.schema import MeasureInfo


def printable(text: str) -> str:
    """Return text as the figures' font can draw it: line breaks become spaces, and missing letters become boxes."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join("□" if ord(letter) not in known else letter for letter in " ".join(text.split()))


def text_inches(text: str, size: float) -> float:
    """Return the printed width in inches of one line of text at a font size in points."""
    font = FontProperties(family="DejaVu Sans", size=size)
    dpi = active_style().dpi  # letters are fitted to pixels, so the width of a line depends on them
    return RendererAgg(1, 1, dpi).get_text_width_height_descent(text, font, False)[0] / dpi


def line_inches() -> float:
    """Return the height of a line of text in the active style, in inches."""
    return active_style().small * 1.25 / 72


def wrapped(text: str, inches: float, lines: int, size: float | None = None) -> str:
    """Return text wrapped to a printed width; what does not fit on `lines` lines ends in "…".

    Args:
        text: any text.
        inches: width of a line.
        lines: largest number of lines.
        size: font in points; None: the smallest font of the active style.
    """
    size = active_style().small if size is None else size
    done, line = [], ""
    words = printable(text).split(" ")
    while words:
        word = words.pop(0)
        candidate = f"{line} {word}" if line else word
        if text_inches(candidate, size) <= inches:
            line = candidate
        elif line:
            done.append(line)
            line, words = "", [word, *words]
        else:  # a word wider than the line is broken
            fits = max(1, sum(text_inches(word[: end + 1], size) <= inches for end in range(len(word))))
            line, words = word[:fits], [word[fits:], *words]
    done.append(line)
    if len(done) > lines:
        last = done[lines - 1]
        while last and text_inches(f"{last} …", size) > inches:
            last = last[:-1]
        done = [*done[: lines - 1], f"{last.rstrip()} …"]
    return "\n".join(done)


def unit_label(info: MeasureInfo) -> str:
    """Return the unit as readers see it: a pure number is called a ratio."""
    return "ratio" if info.unit in ("1", "") else printable(info.unit)


def joined(*parts: str) -> str:
    """Return the parts that are not empty, separated by dots."""
    return " · ".join(part for part in parts if part)


def heading(info: MeasureInfo, inches: float, lines: int, mark: str = "", size: float | None = None) -> str:
    """Return a measure's title with its unit, wrapped; where there is no room the title is shortened, never the unit.

    Args:
        info: the measure.
        inches: width of a line.
        lines: largest number of lines.
        mark: added to the unit.
        size: font in points; None: the smallest font of the active style.
    """
    unit = f"({unit_label(info)}{mark})"
    whole = wrapped(f"{info.title} {unit}", inches, lines, size)
    title = printable(info.title)
    while whole.endswith("…") and title:
        title = title[:-4]
        whole = wrapped(f"{title.rstrip()}… {unit}", inches, lines, size)
    return whole


def tick_text(value: float) -> str:
    """Return a number in three digits; four-digit numbers in full, and thousands from 10,000 on as k."""
    text = f"{value / 1000:.3g}k" if abs(value) >= 9_999.5 else f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
    return text.replace("-", "−")


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, such as "1 student" or "3 students"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
