"""What `analyses.shifts` compares, and how: the options that every kind of comparison reads. Heavy imports have no place here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from interp.tables.errors import OptionError


@dataclass(frozen=True)
class ShiftsConfig:
    """Compare the heads of several models on the same texts.

    Attributes:
        runs: head runs (folders of analyses.heads) or models (as --model of analyses.heads takes them), the baseline first.
        baseline: model or condition that the others are compared with; default the first, or a study's untouched student.
        study: results folder of a study of distill: all its students, with their accuracy.
        published: folder of attention maps in the published layout, or of archives: the published curves and ranking.
        trajectory: students whose heads were recorded while they learnt, or folders of checkpoints.
        match: models of other architectures or tokenizers: match heads by what they do instead of by their place.
        maps: compare the attention maps themselves: auto does where all models are at hand, yes, or no.
        accuracy: CSV file with the columns model and accuracy, for models that are no study's.
        out: folder for the results; default runs/shifts, or STUDY/shifts.
        region: where the queries of figures and printed tables stand: question, response or all.
        problems: for models: shipped (our own set), gsm8k, or a JSONL file; a study's students read its test problems.
        split: of gsm8k, train or test.
        limit: first N problems only; 100 of a study.
        base: base model of adapters, where their config names none or another place.
        measures: for models: names; all where none is given.
        device: auto, cpu, cuda, cuda:N, mps, or balanced.
        dtype: auto is the checkpoint's own, but float32 on a CPU.
        batch_tokens: padded tokens of a batch, at most.
        seed: of the bootstrap and of the permutations.
        force: replace a finished comparison; head runs of the same models and problems are kept.
        figures: draw figures and page.
        trust_remote_code: run the checkpoints' own model code.
        debug: show the traceback of an error.
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
    region: Literal["question", "response", "all"] = "response"
    problems: str | None = None
    split: str = "test"
    limit: int | None = None
    base: str | None = None
    measures: tuple[str, ...] = ()
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_tokens: int = 2048
    seed: int = 0
    force: bool = False
    figures: bool = True
    trust_remote_code: bool = False
    debug: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            OptionError: nothing to compare, or two kinds of comparison at once.
        """
        kinds = [name for name in ("study", "published", "trajectory") if getattr(self, name)]
        if len(kinds) > 1 or (self.runs and kinds and kinds != ["study"]):
            raise OptionError(f"{' and '.join(['RUN…'] * bool(self.runs) + [f'--{k}' for k in kinds])} are different comparisons: give one")
        if not kinds and not self.runs:
            raise OptionError("nothing to compare: name head runs or models, or --study, --published or --trajectory (see --help)")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"--limit is {self.limit}; at least 1 is needed")
        if self.seed < 0 or self.batch_tokens < 1:
            raise OptionError("--seed must be 0 or more, and --batch-tokens at least 1")
        if self.match and len(self.runs) != 2:
            raise OptionError(f"--match compares two models, {len(self.runs)} are named")

    def folder(self) -> Path:
        """Where the results go."""
        if self.out is not None:
            return self.out
        if self.study is not None:
            return self.study / "shifts"
        return Path("runs") / ("published" if self.published else "trajectory" if self.trajectory else "shifts")
