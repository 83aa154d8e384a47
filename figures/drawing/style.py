"""The styles of figures (for a paper, for slides, on a dark background): widths, fonts and palettes; and a byte-stable `save_figure`.

A drawing function takes its sizes and colors from `active_style`, so the same function draws in every style. `use_style` chooses one.

Figures are plain `matplotlib.figure.Figure` objects on the Agg canvas. pyplot's list of figures and the user's backend stay untouched, and
settings hold only inside `paper_style`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
import seaborn
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from interp.tables.errors import InputError
from interp.tables.files import write_file

ONE_COLUMN = 3.35
"""Width of one column of a paper, in inches."""

TWO_COLUMNS = 6.9
"""Width of two columns of a paper, in inches."""

PNG_DPI = 300
"""Resolution of a paper's PNG, and of what a PDF holds as pixels."""

_SMALL = 6.5
"""Smallest font of a paper's figures, in points at printed size. Lengths in inches that make room for text are written for this size."""

_TITLE = 7.5
"""Font of the title of a paper's figure, in points."""

_BLUE, _VERMILLION = "#0072B2", "#D55E00"
"""Two of Okabe and Ito's colors, which people with any color vision can tell apart."""

_GREEN, _PURPLE, _ORANGE, _SKY, _YELLOW = "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442"
"""Five more of Okabe and Ito's colors."""

REGION_LINES: dict[str, Literal["-", "--", ":"]] = {"question": "--", "response": "-", "all": ":"}
"""Line style of each region of queries."""

SERIES_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 1)), (0, (1, 2.5)))
"""Line styles of a figure's series, so that color is never the only difference."""

Column = Literal["one", "two"]


@dataclass(frozen=True)
class Style:
    """Sizes and colors of a style. Lengths are in inches, fonts in points.

    Attributes:
        name: key in `STYLES`.
        one: width of one column.
        two: width of two columns.
        tallest: largest height of a figure of one panel; None: as tall as it needs to be.
        small: the smallest font.
        title: font of a figure's title.
        subtitle_lines: number of lines after which a subtitle is truncated.
        dpi: resolution of the PNG.
        background: of figure and axes.
        ink: text, ticks and edges.
        gray: secondary text, and reference lines.
        faint: grid lines.
        blue: first color of data; in diverging maps blue is below 0.
        vermillion: second color of data; red is above 0.
        undefined_face: background of a cell without a value.
        undefined_hatch: hatching of a cell without a value.
        quiet: grays of what is not significant, from no difference to the largest.
        map_colors: color map of values from low to high.
        diverging_colors: color map of values below and above 0; its middle is close to the background.
        series: eight colors, Okabe and Ito's or similar ones; those with the most contrast to the background come first.
        width: width of figures of one panel; None: each figure's own.
    """

    name: str
    one: float = ONE_COLUMN
    two: float = TWO_COLUMNS
    tallest: float | None = None
    small: float = _SMALL
    title: float = _TITLE
    subtitle_lines: int = 4
    dpi: int = PNG_DPI
    background: str = "white"
    ink: str = "#1a1a1a"
    gray: str = "#555555"
    faint: str = "#dddddd"
    blue: str = _BLUE
    vermillion: str = _VERMILLION
    undefined_face: str = "#e6e6e6"
    undefined_hatch: str = "#8c8c8c"
    quiet: tuple[str, str] = ("#dadada", "#8f8f8f")
    map_colors: str = "viridis"
    diverging_colors: str = "RdBu_r"
    series: tuple[str, ...] = (_BLUE, _VERMILLION, _GREEN, _PURPLE, "#8a6d00", "#7f7f7f", _ORANGE, _SKY)
    width: Column | None = None

    @property
    def zoom(self) -> float:
        """Ratio of this style's smallest font to a paper's; lengths that make room for text are multiplied by it."""
        return self.small / _SMALL

    @property
    def region_colors(self) -> dict[str, str]:
        """Colors of the regions of queries."""
        return {"question": self.blue, "response": self.vermillion, "all": self.ink}

    def column(self, usual: Column) -> float:
        """Return the width of a figure of one panel, in inches: the requested width, or else the figure's usual one."""
        return {"one": self.one, "two": self.two}[self.width or usual]

    def height(self, panel: float, room: float, least: float = 1.0) -> float:
        """Return the height of a panel, in inches: the wanted height, reduced where panel and `room` exceed what the style allows."""
        return panel if self.tallest is None else max(least, min(panel, self.tallest - room))


STYLES = {
    "paper": Style("paper"),
    # A slide of 160 x 90 mm (LaTeX beamer's 16:9): two columns fill its width, and a PNG of them is as wide as a screen.
    "slides": Style("slides", one=2.95, two=6.0, tallest=3.3, small=8.0, title=9.5, subtitle_lines=5, dpi=320),
    "dark": Style(
        "dark",
        background="#14171c",
        ink="#eeeeee",
        gray="#b8bcc2",
        faint="#3a3f47",
        blue=_SKY,
        vermillion=_ORANGE,
        undefined_face="#2a2e35",
        undefined_hatch="#767c86",
        quiet=("#33373e", "#80858d"),
        diverging_colors="berlin",
        series=(_SKY, _ORANGE, "#2fc299", "#e39bc3", _YELLOW, "#ff8a4d", "#a9adb3", "#6fa0ff"),
    ),
}
"""The styles of `--style`. On a dark background some of Okabe and Ito's colors are lightened for contrast."""

_ACTIVE: ContextVar[Style] = ContextVar("style", default=STYLES["paper"])


def active_style() -> Style:
    """Return the style in which figures are drawn now."""
    return _ACTIVE.get()


@contextmanager
def use_style(name: str = "paper", width: Column | None = None) -> Iterator[Style]:
    """Draw and save in a style inside a `with` block.

    Args:
        name: a key of `STYLES`.
        width: "one" or "two" columns for figures of one panel; None: each figure's own. Figures of several panels keep two.

    Raises:
        InputError: the style or the width is unknown.
    """
    if name not in STYLES:
        raise InputError(f"unknown style {name!r}; known: {', '.join(STYLES)}")
    if width not in (None, "one", "two"):
        raise InputError(f"unknown width {width!r}; known: one, two")
    token = _ACTIVE.set(replace(STYLES[name], width=width))
    try:
        yield _ACTIVE.get()
    finally:
        _ACTIVE.reset(token)


def _matplotlib_settings(style: Style) -> dict[Any, Any]:
    thin, tick = 0.5 * style.zoom, 2.0 * style.zoom
    return {
        **seaborn.axes_style("ticks"),
        **({} if style.background == "white" else _background_settings(style)),
        "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib, so every machine draws the same bytes
        "font.size": style.small,
        "axes.titlesize": style.small,
        "axes.labelsize": style.small,
        "xtick.labelsize": style.small,
        "ytick.labelsize": style.small,
        "legend.fontsize": style.small,
        "legend.frameon": False,
        "figure.dpi": 100,
        "savefig.dpi": style.dpi,
        "savefig.bbox": None,  # keeps the requested printed width
        "axes.linewidth": thin,
        "axes.titlepad": 3.0,
        "axes.labelpad": 2.0,
        "lines.linewidth": style.zoom,
        "hatch.linewidth": 0.4,
        "xtick.major.width": thin,
        "ytick.major.width": thin,
        "xtick.major.size": tick,
        "ytick.major.size": tick,
        "xtick.major.pad": 1.5,
        "ytick.major.pad": 1.5,
        "xtick.minor.visible": False,
        "ytick.minor.visible": False,
        "text.color": style.ink,
        "text.parse_math": False,  # a "$" in a model's name is a dollar sign
        "pdf.fonttype": 42,
    }


def _background_settings(style: Style) -> dict[str, Any]:
    """Return the settings that differ from seaborn's on a background that is not white."""
    inked = ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "patch.edgecolor")
    backgrounds = dict.fromkeys(("figure.facecolor", "axes.facecolor"), style.background)
    return dict.fromkeys(inked, style.ink) | backgrounds | {"grid.color": style.faint}


@contextmanager
def paper_style() -> Iterator[None]:
    """Apply the active style's settings (a paper's by default) inside a `with` block or a decorated function."""
    with matplotlib.rc_context(_matplotlib_settings(active_style())):
        yield


def new_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """Return an empty figure on the Agg canvas, unknown to pyplot.

    Args:
        width: in inches; one or two columns of the active style.
        height: in inches.
        constrained: let matplotlib place axes and titles without overlap; False where the caller places everything in inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG (300 dpi for a paper) and PDF, and clear it.

    With the same matplotlib the same figure gives the same bytes: the files contain no date and no random identifier.

    Args:
        figure: made within `paper_style`, in the active style.
        folder: an existing folder.
        name: file name without extension.

    Returns:
        The paths of the PNG and of the PDF.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    png, pdf = io.BytesIO(), io.BytesIO()  # in memory, because matplotlib does not report a full disk in the middle of a PDF as OSError
    with paper_style():
        figure.savefig(png, format="png", dpi=active_style().dpi, metadata={"Software": None})
        figure.set_layout_engine("none")  # the PDF uses the layout that was computed for the PNG
        figure.savefig(pdf, format="pdf", dpi=PNG_DPI, metadata={"CreationDate": None, "Creator": None, "Producer": None})
    figure.clear()
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    for path, content in zip(paths, (png.getvalue(), pdf.getvalue()), strict=True):
        write_file(path, lambda draft, content=content: draft.write_bytes(content))
    return paths
