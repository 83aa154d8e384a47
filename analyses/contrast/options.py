"""Options of a contrast. The module imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analyses.options import ReadingOptions, Region, own_options_first, require_at_least


@own_options_first
@dataclass(frozen=True, kw_only=True)
class ContrastConfig(ReadingOptions):
    """Compare the attention heads of models on their right and wrong answers.

    Attributes:
        models: hub ids, folders, adapters, .gguf files, smollm2, or finished runs of `analyses.heads --text generated`.
        problems: shipped, gsm8k, or a JSONL file; default those of the first finished run among the models, or else shipped.
        out: folder for the results.
        grader: name of the grader, a key of `distill.problems.grading.GRADERS`.
        max_new_tokens: generated answers are truncated at this number of tokens; default that of the first finished run, or else 256.
        measures: names of the measures to take; default those of the first finished run, or else all.
        region: region of the queries in printed tables and figures.
        force: replace a finished contrast, and restart unfinished head runs; finished head runs with the same settings are kept.
    """

    models: tuple[str, ...] = ("smollm2",)
    out: Path = Path("runs/contrast")
    grader: str = "first_final"
    max_new_tokens: int | None = None
    region: Region = "response"

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            OptionError: a number is out of range.
        """
        super().__post_init__()
        require_at_least(self, max_new_tokens=1)
