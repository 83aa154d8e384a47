"""`python -m figures RUN_FOLDER [--out DIR]`: draw the figures and the page of a run again, from its tables."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class DrawConfig:
    """Draw every figure and the page of a head run from its tables.

    Attributes:
        folder: a run folder, as analyses.heads writes it.
        out: where to write figures/ and report.html; the run folder if not given.
        region: where the queries of maps, rankings and distributions stand.
        style: for a paper's columns, for slides (16:9, larger letters), or on a dark ground.
        width: one or two columns for figures of one panel; each figure's own if not given.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None
    region: Literal["question", "response", "all"] = "response"
    style: Literal["paper", "slides", "dark"] = "paper"
    width: Literal["one", "two"] | None = None


def main() -> int:
    """Run the command; return the exit code: 0, or 2 after an error in the input."""
    try:
        config = tyro.cli(DrawConfig, prog="python -m figures")
        # Imported here so that --help needs no matplotlib.
        from figures import style
        from figures.run_folder import draw_run

        with style.use(config.style, config.width):
            written = draw_run(config.folder, config.out, config.region)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{len(written) - 1} figure files in {written[0].parent}")
    print(f"report: {written[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
