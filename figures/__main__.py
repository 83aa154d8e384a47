"""`python -m figures FOLDER`: draw the figures, and the page, of a results folder again from its tables."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from interp.tables.errors import OptionError, error_line


@dataclass(frozen=True)
class DrawConfig:
    """Draw every figure, and the page, of a head run, a comparison, a contrast or one problem, from its tables.

    Attributes:
        folder: a results folder: a head run of analyses.heads, a comparison of analyses.shifts, or one problem or a contrast of
            analyses.examples.
        out: where to write figures/ and report.html (example.html for one problem); the folder itself if not given.
        region: where the queries of maps, rankings and distributions are; response, or the comparison's own, if not given.
        measures: for a comparison or a contrast: names of the measures to draw; entropy and the most common targets of attention (all for
            a contrast) if none is given.
        models: for a comparison or a contrast: models or conditions with figures of their own; the first few if none is given.
        heads: for one problem: heads with figures of their own, written as layer.head, such as 12.3 3.1; the first four that were chosen
            if none is given.
        style: paper (for the columns of a paper), slides (16:9, larger letters), or dark (on a dark background).
        width: one or two columns for figures of one panel; each figure's own if not given.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None
    region: Literal["question", "response", "all"] | None = None
    measures: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    style: Literal["paper", "slides", "dark"] = "paper"
    width: Literal["one", "two"] | None = None


def _head_run(config: DrawConfig) -> list[Path]:
    from figures.run.draw import draw_run

    return draw_run(config.folder, config.out, config.region or "response")


def _comparison(config: DrawConfig) -> list[Path]:
    from figures.comparison.draw import draw_comparison

    return draw_comparison(config.folder, config.out, config.region, config.measures, config.models)


def _contrast(config: DrawConfig) -> list[Path]:
    from figures.contrast.draw import draw_contrast

    return draw_contrast(config.folder, config.out, config.region, config.measures, config.models)


def _example(config: DrawConfig) -> list[Path]:
    from figures.example.draw import draw_example, parse_head

    return draw_example(config.folder, config.out, [parse_head(head) for head in config.heads] or None)


@dataclass(frozen=True)
class _Kind:
    """A kind of results folder.

    Attributes:
        noun: what messages call it.
        draw: writes the figures and then the page; returns the written files.
        options: those that apply to some kinds only, and to this one.
    """

    noun: str
    draw: Callable[[DrawConfig], list[Path]]
    options: tuple[str, ...]


_COMPARISON = _Kind("a comparison", _comparison, ("region", "measures", "models"))

_KINDS: dict[str | None, _Kind] = {
    None: _Kind("a head run", _head_run, ("region",)),
    **dict.fromkeys(("shifts", "match", "published", "trajectory"), _COMPARISON),
    "contrast": _Kind("a contrast", _contrast, ("region", "measures", "models")),
    "example": _Kind("one problem", _example, ("heads",)),
}
"""`kind` in run.json to what is drawn."""


def draw_folder(config: DrawConfig) -> list[Path]:
    """Draw a results folder, and return the written files.

    Raises:
        InputError: the folder or one of its tables cannot be used.
        OptionError: an option does not apply to this kind of folder.
        OSError: the files cannot be written.
    """
    # Imported here so that --help needs no matplotlib.
    from figures.drawing.style import use_style
    from figures.folder import folder_kind
    from interp.tables.errors import InputError

    if config.out is not None and config.out.exists() and not config.out.is_dir():
        raise OptionError(f"--out {config.out} is a file; name a folder")
    name = folder_kind(config.folder)
    if name not in _KINDS:
        raise InputError(
            f"{config.folder / 'run.json'}: kind is {name!r}; figures are drawn for {', '.join(filter(None, _KINDS))} and head runs"
        )
    kind = _KINDS[name]
    for option in ("region", "measures", "models", "heads"):
        if getattr(config, option) and option not in kind.options:
            *first, last = dict.fromkeys(other.noun for other in _KINDS.values() if option in other.options)
            nouns = f"{', '.join(first)} or {last}" if first else last
            raise OptionError(f"--{option} applies to {nouns}; {config.folder} holds {kind.noun}")
    with use_style(config.style, config.width):
        return kind.draw(config)


def main() -> int:
    """Run the command; return the exit code: 0, 2 after an error in the input, or 130 after an interruption."""
    try:
        config = tyro.cli(DrawConfig, prog="python -m figures")
        written = draw_folder(config)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command draws everything again", file=sys.stderr)
        return 130
    except Exception as error:
        line = error_line(error)
        if line is None:
            raise
        print(" ".join(line.split()), file=sys.stderr)
        return 2
    pages = [path for path in written if path.suffix == ".html"]
    print(f"{len(written) - len(pages)} figure files in {(config.out or config.folder) / 'figures'}")
    for page in pages:
        print(f"report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
