"""Draw the figures and the page of one problem from its folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from figures.drawing.entry import draw_figures
from figures.example.catalog import EXAMPLE_FIGURES
from figures.example.page import example_page
from figures.example.read import Example, ExampleHeads, read_example
from figures.example.tokens import heads_text, require_watched
from interp.tables.errors import InputError, OptionError
from interp.tables.files import write_text

_MOST_HEADS = 4
"""Heads that are drawn by default."""


def parse_head(text: str) -> tuple[int, int]:
    """Return (layer, head) of a text such as "12.3".

    Raises:
        OptionError: the text is not a head.
    """
    found = re.fullmatch(r"([0-9]+)\.([0-9]+)", text.strip())
    if not found:
        raise OptionError(f"--heads: {text!r} is not a head; heads are written layer.head, such as 12.3")
    return int(found[1]), int(found[2])


def draw_example(folder: Path, out: Path | None = None, heads: Sequence[tuple[int, int]] | None = None) -> list[Path]:
    """Draw every figure of one problem, and its page, from its tables.

    Writes `figures/*.png`, `figures/*.pdf` and `example.html`, replacing those of an earlier call.

    Args:
        folder: as `analyses.examples` writes it.
        out: where to write; created if needed. None: the folder itself.
        heads: (layer, head) of the heads with maps and arcs of their own; None: the first four that the folder names.

    Returns:
        The written files, the page last.

    Raises:
        InputError: see `figures.example.read.read_example`; or a head was not watched.
        OSError: `out` cannot be written to.
    """
    example = read_example(folder)
    out = folder if out is None else out
    return [*draw_example_figures(example, out, heads), write_page(example, out)]


def write_page(example: Example, out: Path) -> Path:
    """Write `example.html` into a folder, and return its path.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = out / "example.html"
    write_text(path, example_page(example))
    return path


def draw_example_figures(example: Example, out: Path, heads: Sequence[tuple[int, int]] | None = None) -> list[Path]:
    """Draw the figures of `draw_example` without the page, into `out`/figures, and return the written files.

    Raises:
        InputError: the list of heads is empty, or a head was not watched; nothing is written.
        OSError: the folder cannot be written to.
    """
    chosen = list(dict.fromkeys((int(layer), int(head)) for layer, head in (example.chosen[:_MOST_HEADS] if heads is None else heads)))
    if not chosen:
        raise InputError(f"no head to draw; watched: {heads_text(example.watched)}")
    for head in chosen:
        require_watched(example, head)
    drawn = draw_figures("example_figures", EXAMPLE_FIGURES, ExampleHeads(example, tuple(chosen)), out / "figures")
    return [path for figure in drawn for path in figure.files]
