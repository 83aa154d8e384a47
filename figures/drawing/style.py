"""The looks of figures (for a paper, for slides, on a dark ground): widths, fonts, palettes; and a byte-stable `save`.

A figure asks `look` for its sizes and colours, so that the same function draws it in every style; `use` chooses one.

Figures are plain `matplotlib.figure.Figure` objects on the Agg canvas. pyplot's figure list and the user's backend stay
untouched; settings hold only inside `paper_style`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
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

from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo

ONE_COLUMN = 3.35
"""Width of one column of a paper, inches."""


TWO_COLUMNS = 6.9
"""Width of two columns of a paper, inches."""


SMALL = 6.5
"""Smallest font of a paper's figures, points at printed size. Room for texts, in inches, is written for this size."""


TITLE = 7.5
"""Font of the title of a paper's figure, points."""


PNG_DPI = 300


MAP_COLOURS = "viridis"


DIVERGING_COLOURS = "RdBu_r"


INK = "#1a1a1a"


GREY = "#555555"


UNDEFINED_FACE = "#e6e6e6"


UNDEFINED_HATCH = "#8c8c8c"


BLUE, VERMILLION = "#0072B2", "#D55E00"
"""Two of Okabe and Ito's colours, which people with any colour vision tell apart."""


GREEN, PURPLE, ORANGE, SKY, YELLOW = "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442"
"""Five more of them."""


REGION_LINES: dict[str, Literal["-", "--", ":"]] = {"question": "--", "response": "-", "all": ":"}


SERIES_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 1)), (0, (1, 2.5)))
"""Line styles of a figure's series, so that colour alone never tells them apart."""


Column = Literal["one", "two"]


@dataclass(frozen=True)
class Style:
    """Sizes and colours of a style. Lengths are inches, fonts points.

    Attributes:
        name: of the style.
        one: width of one column.
        two: width of two columns.
        tallest: height that a figure of one panel keeps to; None: as tall as it needs.
        small: the smallest font.
        title: font of a figure's title.
        subtitle_lines: lines after which a subtitle is cut.
        dpi: of the PNG.
        background: of figure and axes.
        ink: text, ticks and edges.
        grey: texts of second rank, and lines that stand for a reference.
        faint: grid lines.
        blue: first colour of data; in diverging maps blue is below 0.
        vermillion: second colour of data; red is above 0.
        undefined_face: ground of a cell without a value.
        undefined_hatch: its hatching.
        quiet: greys of what is not significant, from no difference to the largest.
        map_colours: colour map of values from low to high.
        diverging_colours: colour map of values below and above 0; its middle is near the background.
        series: eight colours, Okabe and Ito's or near them; those that stand out most from the background first.
        width: width of figures of one panel; None: each figure's own.
    """

    name: str
    one: float = ONE_COLUMN
    two: float = TWO_COLUMNS
    tallest: float | None = None
    small: float = SMALL
    title: float = TITLE
    subtitle_lines: int = 4
    dpi: int = PNG_DPI
    background: str = "white"
    ink: str = INK
    grey: str = GREY
    faint: str = "#dddddd"
    blue: str = BLUE
    vermillion: str = VERMILLION
    undefined_face: str = UNDEFINED_FACE
    undefined_hatch: str = UNDEFINED_HATCH
    quiet: tuple[str, str] = ("#dadada", "#8f8f8f")
    map_colours: str = MAP_COLOURS
    diverging_colours: str = DIVERGING_COLOURS
    series: tuple[str, ...] = (BLUE, VERMILLION, GREEN, PURPLE, "#8a6d00", "#7f7f7f", ORANGE, SKY)
    width: Column | None = None

    @property
    def zoom(self) -> float:
        """This style's smallest font over a paper's: room for texts grows by it."""
        return self.small / SMALL

    @property
    def region_colours(self) -> dict[str, str]:
        """Colours of the regions of queries."""
        return {"question": self.blue, "response": self.vermillion, "all": self.ink}

    def column(self, usual: Column) -> float:
        """Width of a figure of one panel, inches: the asked width, or else the figure's usual one."""
        return {"one": self.one, "two": self.two}[self.width or usual]

    def height(self, panel: float, room: float, least: float = 1.0) -> float:
        """Height of a panel, inches: what it would like, less where with `room` it would be taller than the style allows."""
        return panel if self.tallest is None else max(least, min(panel, self.tallest - room))


STYLES = {
    "paper": Style("paper"),
    # A slide of 160 x 90 mm (LaTeX beamer's 16:9): two columns fill its width, and a PNG of them is as wide as a screen.
    "slides": Style("slides", one=2.95, two=6.0, tallest=3.3, small=8.0, title=9.5, subtitle_lines=5, dpi=320),
    "dark": Style(
        "dark",
        background="#14171c",
        ink="#eeeeee",
        grey="#b8bcc2",
        faint="#3a3f47",
        blue=SKY,
        vermillion=ORANGE,
        undefined_face="#2a2e35",
        undefined_hatch="#767c86",
        quiet=("#33373e", "#80858d"),
        diverging_colours="berlin",
        series=(SKY, ORANGE, "#2fc299", "#e39bc3", YELLOW, "#ff8a4d", "#a9adb3", "#6fa0ff"),
    ),
}
"""The styles of `--style`. On a dark ground some of Okabe and Ito's colours are lightened until they stand out from it."""


_LOOK: ContextVar[Style] = ContextVar("look", default=STYLES["paper"])


def look() -> Style:
    """The look that figures are drawn in now."""
    return _LOOK.get()


@contextmanager
def use(name: str = "paper", width: Column | None = None) -> Iterator[Style]:
    """Draw and save in a style, for the length of a `with` block.

    Args:
        name: one of `STYLES`.
        width: "one" or "two" columns for figures of one panel; None: each figure's own. Figures of several panels keep two.

    Raises:
        InputError: an unknown style or width.
    """
    if name not in STYLES:
        raise InputError(f"unknown style {name!r}; known: {', '.join(STYLES)}")
    if width not in (None, "one", "two"):
        raise InputError(f"unknown width {width!r}; known: one, two")
    token = _LOOK.set(replace(STYLES[name], width=width))
    try:
        yield _LOOK.get()
    finally:
        _LOOK.reset(token)


def settings(at: Style) -> dict[Any, Any]:
    """A look as matplotlib's settings."""
    thin, tick = 0.5 * at.zoom, 2.0 * at.zoom
    return {
        **seaborn.axes_style("ticks"),
        **({} if at.background == "white" else _coloured(at)),
        "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib, so every machine draws the same bytes
        "font.size": at.small,
        "axes.titlesize": at.small,
        "axes.labelsize": at.small,
        "xtick.labelsize": at.small,
        "ytick.labelsize": at.small,
        "legend.fontsize": at.small,
        "legend.frameon": False,
        "figure.dpi": 100,
        "savefig.dpi": at.dpi,
        "savefig.bbox": None,  # the printed width is the asked width
        "axes.linewidth": thin,
        "axes.titlepad": 3.0,
        "axes.labelpad": 2.0,
        "lines.linewidth": at.zoom,
        "hatch.linewidth": 0.4,
        "xtick.major.width": thin,
        "ytick.major.width": thin,
        "xtick.major.size": tick,
        "ytick.major.size": tick,
        "xtick.major.pad": 1.5,
        "ytick.major.pad": 1.5,
        "xtick.minor.visible": False,
        "ytick.minor.visible": False,
        "text.color": at.ink,
        "text.parse_math": False,  # a "$" in a model's name is a dollar sign
        "pdf.fonttype": 42,
    }


def _coloured(at: Style) -> dict[str, Any]:
    """Ground and edges where they are not seaborn's."""
    inked = ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "patch.edgecolor")
    return dict.fromkeys(inked, at.ink) | dict.fromkeys(("figure.facecolor", "axes.facecolor"), at.background) | {"grid.color": at.faint}


@contextmanager
def paper_style() -> Iterator[None]:
    """The settings of the style in use, a paper's unless `use` says another, for a `with` block or a decorated function."""
    with matplotlib.rc_context(settings(look())):
        yield


def new_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """An empty figure on the Agg canvas, unknown to pyplot.

    Args:
        width: inches, of one or two columns of the `look`.
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
    dpi = look().dpi  # letters are fitted to pixels, so a line's width in inches follows them
    return RendererAgg(1, 1, dpi).get_text_width_height_descent(text, font, False)[0] / dpi


def wrapped(text: str, inches: float, lines: int, size: float | None = None) -> str:
    """Text on at most `lines` lines of that printed width; what does not fit ends in "…". The font is the smallest if not given."""
    size = look().small if size is None else size
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


def heading(info: MeasureInfo, inches: float, lines: int, mark: str = "", size: float | None = None) -> str:
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
        figure: its width decides where the texts wrap: the title after two lines, the subtitle after the look's.
        title: with the unit.
        subtitle: what was run, and what a reader must know of the drawing.
    """
    width, height = figure.get_size_inches()
    title, subtitle, title_room, room = _title_block(title, subtitle, width)
    figure.text(0.05 / width, 1 - 0.05 / height, title, va="top", fontsize=look().title)
    figure.text(0.05 / width, 1 - title_room / height, subtitle, va="top", color=look().grey)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, 0, 1, 1 - room / height))


def _title_block(title: str, subtitle: str, width: float) -> tuple[str, str, float, float]:
    """The wrapped texts, and the inches from the figure's top to the subtitle and to its end."""
    at = look()
    title = wrapped(title, width - 0.1, 2, at.title)
    subtitle = wrapped(subtitle, width - 0.1, at.subtitle_lines)
    title_room = 0.06 + (title.count("\n") + 1) * at.title * 1.25 / 72 + 0.03
    return title, subtitle, title_room, title_room + (subtitle.count("\n") + 1) * at.small * 1.25 / 72 + 0.04


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
    width: float | None = None,
) -> tuple[Figure, list[Axes]]:
    """A figure of equal panels, placed in inches so that nothing moves from model to model.

    Lengths are a paper's. Where the style's font is larger, margins and heights grow with it; where the panels then do not fit side
    by side, a row has fewer, and they share its width.

    Args:
        title: of the whole figure.
        subtitle: of the whole figure.
        count: number of panels, at least 1.
        columns: panels side by side.
        panel: width and height of one panel's axes, inches.
        margins: left, right, top, bottom room of each panel for its labels, inches.
        legend_room: inches left free between the subtitle and the panels.
        width: of the figure, inches; two columns if not given.
    """
    width = look().two if width is None else width
    zoom = look().zoom
    left, right, top, bottom = (room * zoom for room in margins)
    across, down = panel[0], panel[1] * zoom
    fitting = max(1, int(width / (left + across + right) + 1e-9))
    if fitting < columns:
        columns = fitting
        across = width / columns - left - right
    rows = -(-count // columns)
    pitch_x, pitch_y = left + across + right, top + down + bottom
    header = titles_inches(width, title, subtitle) + legend_room * zoom
    height = header + rows * pitch_y
    figure = new_figure(width, height, constrained=False)
    set_titles(figure, title, subtitle)
    every = []
    for index in range(count):
        row, column = divmod(index, columns)
        x = column * pitch_x + left
        y = height - header - row * pitch_y - top - down
        every.append(figure.add_axes((x / width, y / height, across / width, down / height)))
    return figure, every


def tick_text(value: float) -> str:
    """A number in three digits; four-digit ones whole, thousands from 10,000 on as k."""
    text = f"{value / 1000:.3g}k" if abs(value) >= 9_999.5 else f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
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
    most = max(2, int(axis_length / (inches_per_label * look().zoom)))
    locator = MaxNLocator(nbins=most, integer=True, steps=[1, 2, 4, 5, 8, 10])
    return [int(tick) for tick in locator.tick_values(0, max(count - 1, 1)) if 0 <= tick < count]


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG (a paper's has 300 dpi) and PDF, and empty it.

    The same figure gives the same bytes with the same matplotlib: no date is written, and no random identifier.

    Args:
        figure: made within `paper_style`, in the style in use now.
        folder: exists.
        name: file name without ending.

    Returns:
        The PNG's and the PDF's path.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    png, pdf = io.BytesIO(), io.BytesIO()  # a full disk in the middle of a PDF is no OSError of matplotlib's
    with paper_style():
        figure.savefig(png, format="png", dpi=look().dpi, metadata={"Software": None})
        figure.set_layout_engine("none")  # the layout is found; the PDF takes the same
        figure.savefig(pdf, format="pdf", dpi=PNG_DPI, metadata={"CreationDate": None, "Creator": None, "Producer": None})
    figure.clear()
    return [write_text(folder / f"{name}.{ending}", made.getvalue()) for ending, made in (("png", png), ("pdf", pdf))]


def write_text(place: Path, content: bytes) -> Path:
    """Write a file under another name beside its place, and rename it: it is there whole or not at all.

    Raises:
        OSError: the folder is missing or full, or cannot be written to.
    """
    draft = place.with_name(f".{place.name}.draft-{os.getpid()}")
    try:
        draft.write_bytes(content)
        draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)
    return place
