"""The entry that a catalog has for each figure, and the function that draws the figures of a catalog into files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from matplotlib.figure import Figure

from figures.drawing.style import save_figure
from interp.tables.plugins import members

Choice = Literal["head", "model", "tested", "measure"]


@dataclass(frozen=True)
class FigureEntry:
    """One figure of a catalog; its key there is the name of its files.

    Attributes:
        draw: takes what was read from the folder (such as `figures.run.read.HeadRun`), then one argument for each name in `each`. Returns
            None where the figure has nothing to show, and is then left out.
        caption: what a reader must know about the figure, for the page. Fields in braces are those of the folder's `caption_fields`.
        each: draw one figure for each measure, model or head; each adds a part to the file name, in this order.
        needs: tables of the folder without which the figure is left out.
        section: key of the section of the page, where the page has several.
        files: beginning of the file names, where it is not the key.
    """

    draw: Callable[..., Figure | None]
    caption: str
    each: tuple[Choice, ...] = ()
    needs: tuple[str, ...] = ()
    section: str = ""
    files: str = ""


class Drawable(Protocol):
    """What was read from a results folder, as figures are drawn from it."""

    def table_names(self) -> Collection[str]:
        """Return the names of the tables that the folder has."""
        ...

    def choices(self, of: Choice) -> Mapping[str, Any]:
        """Return the measures, models or heads to draw: part of the file name to argument of the drawing function."""
        ...

    def caption_fields(self, chosen: Mapping[Choice, Any]) -> dict[str, str]:
        """Return the fields of captions, such as the number of examples, for the chosen measure, model or head."""
        ...


@dataclass(frozen=True)
class DrawnFigure:
    """A figure that was written.

    Attributes:
        name: of its files, without extension.
        caption: for the page.
        section: of the page.
        files: the PNG and the PDF.
    """

    name: str
    caption: str
    section: str
    files: tuple[Path, ...]


def draw_figures(family: str, own: Mapping[str, FigureEntry], content: Drawable, folder: Path) -> list[DrawnFigure]:
    """Draw every figure of a catalog, and those of installed packages, into PNG and PDF files.

    Args:
        family: of the entry points, such as "run_figures" in `primed_heads.run_figures`.
        own: the catalog.
        content: what was read from the results folder.
        folder: where the files go; created if needed.

    Raises:
        InputError: an entry point cannot be used.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, entry, chosen in _calls(members(family, own, FigureEntry), content):
        figure = entry.draw(content, *(chosen[choice] for choice in entry.each))
        if figure is not None:
            caption = entry.caption.format(**content.caption_fields(chosen))
            drawn.append(DrawnFigure(name, caption, entry.section, tuple(save_figure(figure, folder, name))))
    return drawn


_LOOPS: tuple[Choice, ...] = ("head", "model", "tested", "measure")
"""The order of loops over choices, the outermost first."""


def _calls(entries: Mapping[str, FigureEntry], content: Drawable) -> Iterator[tuple[str, FigureEntry, dict[Choice, Any]]]:
    """Yield file name, entry and arguments by choice; neighbors of a catalog with the same choices are drawn together for each of them."""
    possible = {key: entry for key, entry in entries.items() if set(entry.needs) <= set(content.table_names())}
    for each, group in itertools.groupby(possible.items(), key=lambda item: frozenset(item[1].each)):
        together = list(group)
        loops: list[Choice] = [choice for choice in _LOOPS if choice in each]
        for picked in itertools.product(*(content.choices(choice).items() for choice in loops)):
            by_choice = dict(zip(loops, picked, strict=True))
            for key, entry in together:
                parts = [by_choice[choice][0] for choice in entry.each]
                yield (
                    "_".join([entry.files or key, *filter(None, parts)]),
                    entry,
                    {choice: argument for choice, (_, argument) in by_choice.items()},
                )
