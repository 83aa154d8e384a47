"""One look for every figure: widths of a paper's columns, fonts, palettes, and a byte-stable `save`.

Figures are plain `matplotlib.figure.Figure` objects on the Agg canvas. pyplot's figure list and the user's backend stay
untouched; settings hold only inside `paper_style`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from interp.table import MeasureInfo

ONE_COLUMN = 3.35
"""Width of one column, inches."""
TWO_COLUMNS = 6.9
"""Width of two columns, inches."""
SMALL = 6.5
"""Smallest font, points at printed size."""
TITLE = 7.5
"""Font of a figure's title, points."""
PNG_DPI = 300

MAP_COLOURS = "viridis"
DIVERGING_COLOURS = "RdBu_r"
INK = "#1a1a1a"
GREY = "#555555"
UNDEFINED_FACE = "#e6e6e6"
UNDEFINED_HATCH = "#8c8c8c"
BLUE, VERMILLION = "#0072B2", "#D55E00"
"""Two of Okabe and Ito's colours, which people with any colour vision tell apart."""
REGION_COLOURS = {"question": BLUE, "response": VERMILLION, "all": INK}
REGION_LINES: dict[str, Literal["-", "--", ":"]] = {"question": "--", "response": "-", "all": ":"}

SETTINGS: dict[Any, Any] = {
    **seaborn.axes_style("ticks"),
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib, so every machine draws the same bytes
    "font.size": SMALL,
    "axes.titlesize": SMALL,
    "axes.labelsize": SMALL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": PNG_DPI,
    "savefig.bbox": None,  # the printed width is the asked width
    "axes.linewidth": 0.5,
    "axes.titlepad": 3.0,
    "axes.labelpad": 2.0,
    "lines.linewidth": 1.0,
    "hatch.linewidth": 0.4,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.major.pad": 1.5,
    "ytick.major.pad": 1.5,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a model's name is a dollar sign
    "pdf.fonttype": 42,
}


@contextmanager
def paper_style() -> Iterator[None]:
    """The figures' settings, for the length of a `with` block or of a decorated function."""
    with matplotlib.rc_context(SETTINGS):
        yield


def new_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """An empty figure on the Agg canvas, unknown to pyplot.

    Args:
        width: inches, `ONE_COLUMN` or `TWO_COLUMNS`.
        height: inches.
        constrained: let matplotlib place axes and titles without overlap; False where the caller places all in inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    return figure


def printable(text: str) -> str:
    """Text as the figures' font can draw it: line breaks become spaces, and letters it lacks become boxes."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join("□" if ord(letter) not in known else letter for letter in " ".join(text.split()))


def text_inches(text: str, size: float) -> float:
    """Printed width of one line of text at a font size in points, inches."""
    font = FontProperties(family="DejaVu Sans", size=size)
    return RendererAgg(1, 1, PNG_DPI).get_text_width_height_descent(text, font, False)[0] / PNG_DPI


def wrapped(text: str, inches: float, lines: int, size: float = SMALL) -> str:
    """Text on at most `lines` lines of that printed width; what does not fit ends in "…"."""
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
    """The unit as shown to readers: a pure number is called a ratio."""
    return "ratio" if info.unit in ("1", "") else printable(info.unit)


def joined(*parts: str) -> str:
    """The parts that are not empty, with a dot between."""
    return " · ".join(part for part in parts if part)


def heading(info: MeasureInfo, inches: float, lines: int, mark: str = "", size: float = SMALL) -> str:
    """The measure's title with its unit, on at most `lines` lines; the title is cut before the unit is."""
    unit = f"({unit_label(info)}{mark})"
    whole = wrapped(f"{info.title} {unit}", inches, lines, size)
    title = printable(info.title)
    while whole.endswith("…") and title:
        title = title[:-4]
        whole = wrapped(f"{title.rstrip()}… {unit}", inches, lines, size)
    return whole


def set_titles(figure: Figure, title: str, subtitle: str) -> None:
    """Write title and grey subtitle at the figure's upper left, and keep a constrained layout below them.

    Args:
        figure: its width decides where the texts wrap: the title after two lines, the subtitle after four.
        title: with the unit.
        subtitle: what was run, and what a reader must know of the drawing.
    """
    width, height = figure.get_size_inches()
    title, subtitle, title_room, room = _title_block(title, subtitle, width)
    figure.text(0.05 / width, 1 - 0.05 / height, title, va="top", fontsize=TITLE)
    figure.text(0.05 / width, 1 - title_room / height, subtitle, va="top", color=GREY)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, 0, 1, 1 - room / height))


def _title_block(title: str, subtitle: str, width: float) -> tuple[str, str, float, float]:
    """The wrapped texts, and the inches from the figure's top to the subtitle and to its end."""
    title = wrapped(title, width - 0.1, 2, TITLE)
    subtitle = wrapped(subtitle, width - 0.1, 4)
    title_room = 0.06 + (title.count("\n") + 1) * TITLE * 1.25 / 72 + 0.03
    return title, subtitle, title_room, title_room + (subtitle.count("\n") + 1) * SMALL * 1.25 / 72 + 0.04


def titles_inches(figure_width: float, title: str, subtitle: str) -> float:
    """Room that `set_titles` takes at the top of a figure of that width, inches."""
    return _title_block(title, subtitle, figure_width)[3]


def panels(
    title: str,
    subtitle: str,
    count: int,
    columns: int,
    *,
    panel: tuple[float, float],
    margins: tuple[float, float, float, float],
    legend_room: float = 0.0,
) -> tuple[Figure, list[Axes]]:
    """A two-column figure of equal panels, placed in inches so that nothing moves from model to model.

    Args:
        title: of the whole figure.
        subtitle: of the whole figure.
        count: number of panels, at least 1.
        columns: panels side by side.
        panel: width and height of one panel's axes, inches.
        margins: left, right, top, bottom room of each panel for its labels, inches.
        legend_room: inches left free between the subtitle and the panels.
    """
    left, right, top, bottom = margins
    rows = -(-count // columns)
    pitch_x, pitch_y = left + panel[0] + right, top + panel[1] + bottom
    header = titles_inches(TWO_COLUMNS, title, subtitle) + legend_room
    height = header + rows * pitch_y
    figure = new_figure(TWO_COLUMNS, height, constrained=False)
    set_titles(figure, title, subtitle)
    every = []
    for index in range(count):
        row, column = divmod(index, columns)
        x = column * pitch_x + left
        y = height - header - row * pitch_y - top - panel[1]
        every.append(figure.add_axes((x / TWO_COLUMNS, y / height, panel[0] / TWO_COLUMNS, panel[1] / height)))
    return figure, every


def tick_text(value: float) -> str:
    """A number in three digits; thousands from 10,000 on as k."""
    text = f"{value / 1000:.3g}k" if abs(value) >= 10_000 else f"{value:.3g}"
    return text.replace("-", "−")


def few_y_ticks(axes: Axes) -> None:
    """At most four short numbers along y, which fit a panel's margin."""
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: tick_text(value))


def open_axes(axes: Axes) -> None:
    """Take away the upper and right edge."""
    axes.spines[["top", "right"]].set_visible(False)


def axes_inches(axes: Axes) -> tuple[float, float]:
    """Width and height of axes as placed so far, inches."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    box = axes.get_position()
    return figure.get_figwidth() * box.width, figure.get_figheight() * box.height


def count_ticks(axis_length: float, count: int, inches_per_label: float = 0.22) -> list[int]:
    """Whole numbers 0 … count-1 that fit as labels along an axis of that many inches."""
    most = max(2, int(axis_length / inches_per_label))
    locator = MaxNLocator(nbins=most, integer=True, steps=[1, 2, 4, 5, 8, 10])
    return [int(tick) for tick in locator.tick_values(0, max(count - 1, 1)) if 0 <= tick < count]


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG (300 dpi) and PDF, and empty it.

    The same figure gives the same bytes with the same matplotlib: no date is written, and no random identifier.

    Args:
        figure: made within `paper_style`.
        folder: exists.
        name: file name without ending.

    Returns:
        The PNG's and the PDF's path.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
    with paper_style():
        figure.savefig(png, dpi=PNG_DPI, metadata={"Software": None})
        figure.set_layout_engine("none")  # the layout is found; the PDF takes the same
        figure.savefig(pdf, dpi=PNG_DPI, metadata={"CreationDate": None, "Creator": None, "Producer": None})
    figure.clear()
    return [png, pdf]
