"""Options of `python -m analyses.grades`. The module imports nothing heavy, so that --help is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from analyses.options import CommandOptions, own_options_first, require_at_least
from interp.tables.errors import OptionError


@own_options_first
@dataclass(frozen=True, kw_only=True)
class GradesConfig(CommandOptions):
    """Grade stored responses with every grader, and compare the models on the same problems.

    Attributes:
        paths: folders of CSV files in the published layout, JSONL files with question, answer and response, or evaluations of distill.
        graders: names of graders; all if none is given. An unknown name lists the known ones.
        baseline: model that the others are compared with; default the first by name.
        out: folder for the results; those of an earlier call are replaced.
        level: level of the intervals.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
        force: write into a folder that has other content; files with the same names are replaced.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]] = ()
    graders: tuple[str, ...] = ()
    baseline: str | None = None
    out: Path = Path("runs/grades")
    level: float = 0.95
    resamples: int = 10_000

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            OptionError: there is nothing to grade, or a number is out of range.
        """
        if not self.paths:
            raise OptionError("nothing to grade: name folders of CSV files, JSONL files or evaluations (see --help)")
        super().__post_init__()
        require_at_least(self, resamples=1)
        if not 0 < self.level < 1:
            raise OptionError(f"--level is {self.level}; it must be between 0 and 1, such as 0.95")

    def folder(self) -> Path:
        """Return the folder of the results."""
        return self.out
