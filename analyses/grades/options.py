"""TODO_DOC analyses/grades/options.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from interp.tables.errors import OptionError

if TYPE_CHECKING:
    pass


PUBLISHED_CODE = "published_code"
"""The grader for the published layout alone: what the paper's code extracts, which depends on the order of the responses."""


LOGGED = "logged"
"""Stands in the tables as a grader: the verdicts that came with the responses."""


@dataclass(frozen=True)
class GradesConfig:
    """Grade stored responses with every grader, and compare the models on the same problems.

    Attributes:
        paths: folders of CSV files in the published layout, JSONL files with question, answer and response, or evaluations of distill.
        graders: names; all where none is given. An unknown name lists the known.
        baseline: model that the others are compared with; default the first by name.
        out: folder for the results.
        level: of the intervals.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        force: write into a folder that holds other things; files of the same names are replaced.
        debug: show the traceback of an error.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]] = ()
    graders: tuple[str, ...] = ()
    baseline: str | None = None
    out: Path = Path("runs/grades")
    level: float = 0.95
    seed: int = 0
    resamples: int = 10_000
    force: bool = False
    debug: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            OptionError: nothing to grade, or a number out of range.
        """
        if not self.paths:
            raise OptionError("nothing to grade: name folders of CSV files, JSONL files or evaluations (see --help)")
        if not 0 < self.level < 1:
            raise OptionError(f"--level is {self.level}; it must lie between 0 and 1, as 0.95 does")
        if self.seed < 0 or self.resamples < 1:
            raise OptionError(f"--seed is {self.seed} and --resamples {self.resamples}; at least 0 and 1 are needed")
