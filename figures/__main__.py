"""`python -m figures FOLDER`: draw the figures (and page) of a head run, a comparison, a contrast or one problem again, from its tables."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from interp.tables.errors import InputError, error_line


@dataclass(frozen=True)
class DrawConfig:
    """Draw every figure and the page of a head run, of a comparison, or of one problem under the lens, from its tables.

    Attributes:
        folder: a run folder, as analyses.heads writes it, a comparison's, as analyses.shifts does, or that of a problem or a contrast, of
            analyses.examples.
        out: where to write figures/ and report.html (example.html of a problem); the folder itself if not given.
        region: where the queries of maps, rankings and distributions stand; response, or as the comparison says, if not given.
        measures: of a comparison or contrast: which to draw, by name; entropy and the places that most heads look at if none is given.
        models: of a comparison: models or conditions with maps of their own; the first few if none is given.
        heads: of a problem: those with maps of their own, written layer.head, such as 12.3 3.1; the first four chosen if none is given.
        style: for a paper's columns, for slides (16:9, larger letters), or on a dark ground.
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


def main() -> int:
    """Run the command; return the exit code: 0, or 2 after an error in the input."""
    try:
        config = tyro.cli(DrawConfig, prog="python -m figures")
        # Imported here so that --help needs no matplotlib.
        from figures.comparison.contrast import draw_contrast, is_contrast
        from figures.comparison.draw import draw_comparison, is_comparison
        from figures.drawing import style
        from figures.example.draw import draw_example, head_of
        from figures.example.read import is_example
        from figures.run.draw import draw_run

        with style.use(config.style, config.width):
            if is_example(config.folder):
                if config.region or config.measures or config.models:
                    raise InputError(f"--region, --measures and --models are not for one problem, which {config.folder} holds")
                written = draw_example(config.folder, config.out, [head_of(head) for head in config.heads] or None)
            elif config.heads:
                raise InputError(f"--heads is for a problem of analyses.examples; {config.folder} holds none")
            elif is_contrast(config.folder):
                written = draw_contrast(config.folder, config.out, config.region, config.measures, config.models)
                print(f"{len(written)} figure files in {(config.out or config.folder) / 'figures'}")  # it has no page
                return 0
            elif is_comparison(config.folder):
                written = draw_comparison(config.folder, config.out, config.region, config.measures, config.models)
            elif config.measures or config.models:
                raise InputError(f"--measures and --models are for a comparison or a contrast; {config.folder} is none")
            else:
                written = draw_run(config.folder, config.out, config.region or "response")
    except Exception as error:
        line = error_line(error)
        if line is None:
            raise
        print(" ".join(line.split()), file=sys.stderr)
        return 2
    print(f"{len(written) - 1} figure files in {written[0].parent}")
    print(f"report: {written[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
