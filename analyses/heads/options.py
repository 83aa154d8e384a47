"""Options of `python -m analyses.heads`. The module imports nothing heavy, so that --help is fast."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from analyses.options import ReadingOptions, TextKind, own_options_first, require_at_least, shared_options
from interp.tables.errors import OptionError


@own_options_first
@dataclass(frozen=True, kw_only=True)
class HeadsConfig(ReadingOptions):
    """Measure every attention head of a causal language model on worked math problems.

    Attributes:
        model: hub id, local folder, PEFT adapter folder, .gguf file, or smollm2 (the embedded default).
        text: reference reads the question and the reference solution, which is the same for every model; generated reads the question
            and the model's own greedy answer.
        out: folder for the results; default runs/MODEL, or runs/MODEL-generated.
        name: name of the model in tables and figures; default from --model.
        revision: revision of a hub id.
        backend: how statistics are recorded: auto; blocked, an exact pass over blocks; flash, from the log-sum-exp of a fused kernel;
            or triton, one GPU kernel whose arithmetic is tested but which has not been run on a GPU yet. Layers that the chosen
            backend cannot express are recorded by blocked, and run.json lists them.
        max_new_tokens: generated answers are truncated at this number of tokens.
        resume: continue an interrupted run.
        force: replace a finished run, and discard an unfinished one.
        seed: seed of the bootstrap and of the shuffled token sets.
    """

    model: str = "smollm2"
    problems: str = "shipped"
    text: TextKind = "reference"
    out: Path | None = None
    name: str | None = None
    revision: str | None = None
    backend: Literal["auto", "blocked", "flash", "triton"] = "auto"
    max_new_tokens: int = 256
    resume: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            OptionError: a number is out of range, or two options exclude each other.
        """
        super().__post_init__()
        require_at_least(self, max_new_tokens=1)
        if self.resume and self.force:
            raise OptionError("--resume continues a run and --force starts again: give one of them")

    def folder(self) -> Path:
        """Return the folder of the results."""
        if self.out is not None:
            return self.out if self.out.name not in ("", "..") and not self.out.is_symlink() else self.out.resolve()
        short = re.sub(r"[^\w.\-]+", "-", self.name or Path(self.model).name.removesuffix(".gguf")) or "model"
        return Path("runs") / (short if self.text == "reference" else f"{short}-generated")


def heads_config(options: ReadingOptions, **settings: Any) -> HeadsConfig:
    """Return the options of a head run that another command needs, without figures.

    Args:
        options: the other command's options: problems, measures, device and so on are taken from them.
        settings: fields of `HeadsConfig` that differ from them.
    """
    shared = shared_options(options, ReadingOptions)
    shared["problems"] = shared["problems"] or "shipped"
    return HeadsConfig(**{**shared, "force": False, "figures": False, **settings})
