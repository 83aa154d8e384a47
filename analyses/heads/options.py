"""TODO_DOC analyses/heads/options.py."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from interp.tables.errors import OptionError

if TYPE_CHECKING:
    pass


PROG = "python -m analyses.heads"


EXAMPLES = """
Examples:

  python -m analyses.heads                                     the embedded model on the shipped problems
  python -m analyses.heads --model Qwen/Qwen3-0.6B --problems gsm8k --limit 100
  python -m analyses.heads --model students/teacher --base meta-llama/Llama-3.1-8B-Instruct
  python -m analyses.heads --model model.gguf --problems my.jsonl --text generated
  accelerate launch -m analyses.heads --model DIR --out runs/dir          examples split over GPUs
  torchrun --nproc-per-node 2 -m analyses.heads --device cpu              examples split over processes of a CPU
"""


@dataclass(frozen=True)
class HeadsConfig:
    """Measure every attention head of a causal language model on worked maths problems.

    Attributes:
        model: hub id, local folder, PEFT adapter folder, .gguf file, or smollm2 (the embedded default).
        problems: shipped (our own set), gsm8k (the hub's openai/gsm8k), or a JSONL file in GSM8K's format.
        split: of gsm8k, train or test.
        limit: first N problems only.
        text: gold reads question and reference solution (the same for every model); generated reads the model's own greedy answer.
        out: folder for the results; default runs/MODEL, or runs/MODEL-generated.
        base: base model of an adapter, where its config names none or another place.
        revision: of a hub id.
        device: auto, cpu, cuda, cuda:N, mps, or balanced (layers over all CUDA devices).
        dtype: auto is the checkpoint's own, but float32 on a CPU.
        batch_tokens: padded tokens of a batch, at most (one text may be longer).
        measures: names; all where none is given. An unknown name lists the known.
        backend: how statistics are taken: auto, blocked (exact pass over blocks), flash (log-sum-exp of a fused kernel), or triton (one
            GPU kernel; its arithmetic is tested, but it has not been run on a GPU yet). The blocked backend takes layers that the others
            cannot express; run.json then says which.
        chat: use the chat template where the tokenizer has one.
        max_new_tokens: cut of generated answers, in tokens.
        seed: of the bootstrap and of the shuffled token sets.
        name: of the model in tables and figures; default from --model.
        resume: go on with an interrupted run.
        force: replace a finished run, or begin an unfinished one anew.
        figures: draw figures and page.
        trust_remote_code: run the checkpoint's own model code.
        debug: show the traceback of an error.
    """

    model: str = "smollm2"
    problems: str = "shipped"
    split: str = "test"
    limit: int | None = None
    text: Literal["reference", "generated"] = "reference"
    out: Path | None = None
    base: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_tokens: int = 2048
    measures: tuple[str, ...] = ()
    backend: Literal["auto", "blocked", "flash", "triton"] = "auto"
    chat: bool = True
    max_new_tokens: int = 256
    seed: int = 0
    name: str | None = None
    resume: bool = False
    force: bool = False
    figures: bool = True
    trust_remote_code: bool = False
    debug: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            OptionError: a number below 1, a negative seed, or two options that exclude each other.
        """
        for option in ("batch_tokens", "max_new_tokens"):
            if getattr(self, option) < 1:
                raise OptionError(f"--{option.replace('_', '-')} is {getattr(self, option)}; at least 1 is needed")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"--limit is {self.limit}; at least 1 is needed")
        if self.seed < 0:
            raise OptionError(f"--seed is {self.seed}; 0 or more is needed")
        if self.resume and self.force:
            raise OptionError("--resume goes on with a run and --force begins anew: give one of them")

    def folder(self) -> Path:
        """Where the results go."""
        if self.out is not None:
            return self.out if self.out.name not in ("", "..") and not self.out.is_symlink() else self.out.resolve()
        short = re.sub(r"[^\w.\-]+", "-", self.name or Path(self.model).name.removesuffix(".gguf")) or "model"
        return Path("runs") / (short if self.text == "reference" else f"{short}-generated")
