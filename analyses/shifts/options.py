"""Options of `python -m analyses.shifts`. The module imports nothing heavy, so that --help is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from analyses.options import ReadingOptions, Region, own_options_first
from interp.tables.errors import OptionError


@own_options_first
@dataclass(frozen=True, kw_only=True)
class ShiftsConfig(ReadingOptions):
    """Compare the heads of several models on the same texts.

    Attributes:
        runs: head runs (folders of analyses.heads) or models (as --model of analyses.heads takes them), the baseline first.
        baseline: model or condition that the others are compared with; default the first, or a study's untouched student.
        study: results folder of a study of distill: all its students, with their accuracy.
        published: folder of attention maps in the published layout, or of archives: the published curves and ranking.
        trajectory: students whose heads were recorded while they learned, or folders of checkpoints.
        match: for models with different architectures or tokenizers: pair heads by what they do instead of by their position.
        maps: compare the attention maps themselves: auto does so if all models are available; yes, or no.
        accuracy: CSV file with the columns model and accuracy, for models that do not belong to a study.
        out: folder for the results; default runs/shifts, or STUDY/shifts.
        region: region of the queries in figures and printed tables: question, response or all.
        problems: for models: shipped (this project's own set), gsm8k, or a JSONL file; the default is shipped, or a study's test
            problems.
        limit: read the first N problems only; default 100 of a study.
        base: base model of adapters, if their config does not name one or names another place.
        measures: for models: names of the measures to take; all if none is given.
        seed: seed of the bootstrap and of the permutations.
        force: replace a finished comparison; head runs of the same models and problems are kept.
    """

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    baseline: str | None = None
    study: Path | None = None
    published: Path | None = None
    trajectory: tuple[Path, ...] = ()
    match: bool = False
    maps: Literal["auto", "yes", "no"] = "auto"
    accuracy: Path | None = None
    out: Path | None = None
    region: Region = "response"

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            OptionError: nothing to compare, two kinds of comparison at once, or a number out of range.
        """
        kinds = [name for name in ("study", "published", "trajectory") if getattr(self, name)]
        if len(kinds) > 1 or (self.runs and kinds and kinds != ["study"]):
            raise OptionError(f"{' and '.join(['RUN…'] * bool(self.runs) + [f'--{k}' for k in kinds])} are different comparisons: give one")
        if not kinds and not self.runs:
            raise OptionError("nothing to compare: name head runs or models, or --study, --published or --trajectory (see --help)")
        super().__post_init__()
        if self.match and len(self.runs) != 2:
            raise OptionError(f"--match compares two models, but {len(self.runs)} are named")

    def folder(self) -> Path:
        """Return the folder of the results."""
        if self.out is not None:
            return self.out
        if self.study is not None:
            return self.study / "shifts"
        return Path("runs") / ("published" if self.published else "trajectory" if self.trajectory else "shifts")
