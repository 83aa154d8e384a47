"""Draw the folder of one problem under the lens: its figures for a paper, and its page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from figures.drawing import style
from figures.example import token_labels
from figures.example.attention_arcs import attention_arcs
from figures.example.probabilities import number_probabilities
from figures.example.read import Example, read_example
from figures.example.standing import standing_map
from figures.example.steps import step_bars
from figures.example.token_maps import token_map
from interp.tables.errors import InputError

MOST_HEADS = 4
"""Heads that are drawn where none is asked for."""


def head_of(text: str) -> tuple[int, int]:
    """(layer, head) of "layer.head".

    Raises:
        InputError: the text is something else.
    """
    found = re.fullmatch(r"([0-9]+)\.([0-9]+)", text.strip())
    if not found:
        raise InputError(f"{text!r} is no head; heads are written layer.head, such as 12.3")
    return int(found[1]), int(found[2])


def draw_example(folder: Path, out: Path | None = None, heads: Sequence[tuple[int, int]] | None = None) -> list[Path]:
    """Draw every figure of the folder, and its page, from its tables.

    Writes `figures/*.png`, `figures/*.pdf` and `example.html`, over those of an earlier drawing.

    Args:
        folder: as `analyses.examples` writes it.
        out: where to write; created if needed. None: the folder itself.
        heads: (layer, head) with maps and arcs of their own; None: the first four that the folder chose.

    Returns:
        The written files, the page last.

    Raises:
        InputError: the folder is no example folder.
        InputError: a table is missing, torn or breaks its schema.
        InputError: a head was not watched.
        OSError: `out` cannot be written to.
    """
    example = read_example(folder)
    out = folder if out is None else out
    return [*draw_figures(example, out, heads), write_page(example, out)]


def write_page(example: Example, out: Path) -> Path:
    """Write `example.html` into a folder.

    Raises:
        OSError: the folder cannot be written to.
    """
    from figures.example.page import example_page

    return style.write_text(out / "example.html", example_page(example).encode("utf-8"))


def draw_figures(example: Example, out: Path, heads: Sequence[tuple[int, int]] | None = None) -> list[Path]:
    """The figures of `draw_example` alone, into `out`/figures.

    For each head `map_L_H` (token by token), `numbers_L_H` (number by number) and `arcs_L_H`; then `standing`, `steps` and
    `number_probabilities`.

    Raises:
        InputError: an empty list of heads.
        InputError: a head was not watched; nothing is written.
        OSError: the folder cannot be written to.
    """
    chosen = list(dict.fromkeys((int(layer), int(head)) for layer, head in (example.chosen[:MOST_HEADS] if heads is None else heads)))
    if not chosen:
        raise InputError(f"no head to draw; watched: {token_labels.heads_text(example.watched)}")
    for head in chosen:
        token_labels.need_watched(example, head)
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for layer, head in chosen:
        written += style.save(token_map(example, (layer, head)), folder, f"map_{layer}_{head}")
        written += style.save(token_map(example, (layer, head), "numbers", "numbers"), folder, f"numbers_{layer}_{head}")
        written += style.save(attention_arcs(example, (layer, head)), folder, f"arcs_{layer}_{head}")
    written += style.save(standing_map(example), folder, "standing")
    written += style.save(step_bars(example, chosen), folder, "steps")
    written += style.save(number_probabilities(example), folder, "number_probabilities")
    return written
