"""TODO_DOC analyses/examples/options.py."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from interp.tables.errors import OptionError

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class ExamplesConfig:
    """Look at one problem: answer, steps, heads that stand out, and a page to explore every token's attention.

    Attributes:
        model: hub ids, folders, PEFT adapters, .gguf files, smollm2, or head runs of analyses.heads (their model, compared with that run).
        problem: its number in --problems, counted from 0; default 0.
        question: a problem typed by hand, instead.
        answer: its reference: a number, or a whole solution that ends in "#### 36".
        problems: shipped (our own set), gsm8k (the hub's openai/gsm8k), or a JSONL file in GSM8K's format; default those of the first
            head run named, or else shipped.
        split: of gsm8k, train or test.
        text: generated reads the model's own greedy answer; gold reads the reference solution, the same for every model. Default: as the
            first head run named, or else generated.
        heads: shown first: 12.3 (layer 12, head 3), 12 (the layer), or auto (those that stand out); several by comma or blank.
        watch: keep the maps of these heads alone, and statistics of all others: for long texts and large models.
        by: measure by which heads stand out.
        region: where its queries stand.
        out: folder for the results; default runs/example-MODEL-N.
        open: open the page in the browser.
        contrast: instead of one problem: heads that differ between right and wrong answers, over --limit problems.
        limit: with --contrast: first N problems.
        measures: with --contrast: names; all where none is given.
        others: problems measured to compare with, where the model has no run, at least 3; default 12 of gold text, and none of answers,
            which take long to write.
        grader: whose verdict is shown (docs/study.md).
        base: base model of adapters, where their config names none or another place.
        device: auto, cpu, cuda, cuda:N, mps, or balanced.
        dtype: auto is the checkpoint's own, but float32 on a CPU.
        batch_tokens: with --contrast: padded tokens of a batch, at most.
        chat: use the chat template where the tokenizer has one.
        max_new_tokens: cut of an answer, in tokens; default that of the first head run named, or else 256.
        seed: of the shuffled token sets, and of the bootstrap of --contrast.
        force: with --contrast: replace a finished one.
        figures: draw PNG and PDF, for a paper: the heads named with --heads, or the first that auto takes.
        trust_remote_code: run the checkpoints' own model code.
        debug: show the traceback of an error.
    """

    model: tuple[str, ...] = ("smollm2",)
    problem: int | None = None
    question: str | None = None
    answer: str | None = None
    problems: str | None = None
    split: str = "test"
    text: Literal["generated", "reference"] | None = None
    heads: tuple[str, ...] = ("auto",)
    watch: tuple[str, ...] = ()
    by: str = "numeric_mass"
    region: Literal["question", "response", "all"] = "response"
    out: Path | None = None
    open: bool = False
    contrast: bool = False
    limit: int | None = None
    measures: tuple[str, ...] = ()
    others: int | None = None
    grader: str = "first_final"
    base: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_tokens: int = 2048
    chat: bool = True
    max_new_tokens: int | None = None
    seed: int = 0
    force: bool = False
    figures: bool = True
    trust_remote_code: bool = False
    debug: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            OptionError: a number out of range, an empty question, options that exclude each other.
        """
        for option, least in (("max_new_tokens", 1), ("batch_tokens", 1), ("seed", 0), ("others", 0), ("problem", 0), ("limit", 1)):
            value = getattr(self, option)
            if value is not None and value < least:
                raise OptionError(f"--{option.replace('_', '-')} is {value}; at least {least} is needed")
        if not self.model:
            raise OptionError("--model names no model")
        if not all(model.strip() for model in self.model):
            raise OptionError("--model is empty; give a hub id, a folder, an adapter, a .gguf file, smollm2, or a head run")
        if self.question is not None:
            if self.problem is not None:
                raise OptionError("--problem and --question both name a problem: give one of them")
            if not self.question.strip():
                raise OptionError("--question is empty; type the problem's text")
            if self.text == "reference" and not (self.answer or "").strip():
                raise OptionError("--text gold reads a reference solution: give it with --answer")
        elif self.answer is not None:
            raise OptionError("--answer goes with --question; the problems of a set have their own")
        for option in ("question", "answer"):
            try:
                (getattr(self, option) or "").encode()
            except UnicodeEncodeError:
                raise OptionError(f"--{option} is not valid Unicode") from None
        if self.contrast and (self.problem is not None or self.question is not None or self.watch or self.heads != ("auto",)):
            raise OptionError("--contrast looks at many problems and all heads: leave out --problem, --question, --heads and --watch")
        if self.contrast and (self.others is not None or self.by != "numeric_mass" or self.answer is not None):
            raise OptionError("--contrast tests every head under every measure: leave out --others, --by and --answer")
        if self.contrast and self.open:
            raise OptionError("--contrast makes figures and no page: leave out --open")
        if self.contrast and self.text == "reference":
            raise OptionError("--contrast needs the models' own answers: leave out --text gold")
        if not self.contrast and (self.limit is not None or self.measures or self.force):
            raise OptionError("--limit, --measures and --force go with --contrast")

    def folder(self) -> Path:
        """Where the results go."""
        if self.out is not None:
            return self.out
        short = "-".join(re.sub(r"[^\w.\-]+", "-", Path(name).name.removesuffix(".gguf")) or "model" for name in self.model)[:80]
        if self.contrast:
            return Path("runs") / f"contrast-{short}"
        return Path("runs") / f"example-{short}-{'question' if self.question is not None else self.problem or 0}"
