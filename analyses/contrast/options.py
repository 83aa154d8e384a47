"""What is contrasted, and how: the options of right against wrong answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EMBEDDED = "smollm2"


@dataclass(frozen=True)
class ContrastConfig:
    """Which heads differ between right and wrong answers.

    Attributes:
        models: hub ids, folders, adapters, .gguf files, smollm2, or finished runs of `analyses.heads --text generated`.
        problems: shipped, gsm8k, or a JSONL file; None: those of the first finished run among the models, else shipped.
        split: of gsm8k.
        limit: first N problems only.
        out: folder for the results.
        grader: one of `distill.problems.grading.GRADERS`.
        max_new_tokens: cut of generated answers; None: that of the first finished run, else 256.
        chat: use the chat template where the tokenizer has one.
        base: base model of adapters, where their config names none.
        measures: names; none: those of the first finished run, else all.
        region: where the queries of printed tables and figures stand.
        device: as `analyses.heads` takes it.
        dtype: likewise.
        batch_tokens: likewise.
        seed: of the bootstrap.
        force: replace a finished contrast, and begin unfinished head runs anew; finished ones of the same settings are kept.
        figures: draw them.
        trust_remote_code: run the checkpoints' own model code.
    """

    models: tuple[str, ...] = (EMBEDDED,)
    problems: str | None = None
    split: str = "test"
    limit: int | None = None
    out: Path = Path("runs/contrast")
    grader: str = "first_final"
    max_new_tokens: int | None = None
    chat: bool = True
    base: str | None = None
    measures: tuple[str, ...] = ()
    region: Literal["question", "response", "all"] = "response"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_tokens: int = 2048
    seed: int = 0
    force: bool = False
    figures: bool = True
    trust_remote_code: bool = False
