"""What is contrasted, and how: the options of right against wrong answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analyses.options import ReadingOptions, Region, own_options_first

EMBEDDED = "smollm2"


@own_options_first
@dataclass(frozen=True, kw_only=True)
class ContrastConfig(ReadingOptions):
    """Which heads differ between right and wrong answers.

    Attributes:
        models: hub ids, folders, adapters, .gguf files, smollm2, or finished runs of `analyses.heads --text generated`.
        problems: shipped, gsm8k, or a JSONL file; None: those of the first finished run among the models, else shipped.
        out: folder for the results.
        grader: one of `distill.problems.grading.GRADERS`.
        max_new_tokens: cut of generated answers; None: that of the first finished run, else 256.
        measures: names; none: those of the first finished run, else all.
        region: where the queries of printed tables and figures stand.
        force: replace a finished contrast, and begin unfinished head runs anew; finished ones of the same settings are kept.
    """

    models: tuple[str, ...] = (EMBEDDED,)
    out: Path = Path("runs/contrast")
    grader: str = "first_final"
    max_new_tokens: int | None = None
    region: Region = "response"
