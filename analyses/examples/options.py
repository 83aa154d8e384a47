"""Options of `python -m analyses.examples`. The module imports nothing heavy, so that --help is fast."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from analyses.contrast.options import ContrastConfig
from analyses.options import ReadingOptions, Region, TextKind, own_options_first, require_at_least, shared_options
from interp.tables.errors import OptionError


@own_options_first
@dataclass(frozen=True, kw_only=True)
class ExamplesConfig(ReadingOptions):
    """Inspect one problem: the answer, its steps, unusual heads, and a page to explore every token's attention.

    Attributes:
        model: hub ids, folders, PEFT adapters, .gguf files, smollm2, or head runs of analyses.heads (their model, compared with that run).
        problem: number of the problem in --problems, counted from 0; default 0.
        question: a problem typed by hand, instead of a number.
        answer: the reference of --question: a number, or a complete solution that ends in "#### 36".
        problems: shipped (this project's own set), gsm8k (the hub's openai/gsm8k), or a JSONL file in GSM8K's format; default those of
            the first head run named, or else shipped.
        text: generated reads the model's own greedy answer; reference reads the reference solution, which is the same for every model.
            The default is that of the first head run named, or else generated.
        heads: heads to show first: 12.3 (layer 12, head 3), 12 (the complete layer), or auto (the most unusual ones); several are
            separated by commas or blanks.
        watch: keep the maps of these heads only, and statistics of all others: for long texts and large models.
        by: measure by which auto chooses heads.
        region: region of the queries of that measure: question, response or all.
        out: folder for the results; default runs/example-MODEL-N.
        open: open the page in the browser.
        contrast: find the heads that differ between right and wrong answers to many problems, instead of inspecting one problem.
        limit: with --contrast, read the first N problems only.
        measures: with --contrast, names of the measures to take; all if none is given.
        others: number of problems to measure for comparison if the model has no run, at least 3; default 12 of reference text, and none
            of generated answers, which take long.
        grader: grader whose verdict is shown (docs/study.md).
        base: base model of adapters, if their config does not name one or names another place.
        batch_tokens: with --contrast, largest number of padded tokens in a batch.
        max_new_tokens: answers are truncated at this number of tokens; default that of the first head run named, or else 256.
        seed: seed of the shuffled token sets, and of the bootstrap of --contrast.
        force: with --contrast, replace a finished one.
        figures: draw figures as PNG and PDF, of the heads named with --heads or of the first one that auto takes.
    """

    model: tuple[str, ...] = ("smollm2",)
    problem: int | None = None
    question: str | None = None
    answer: str | None = None
    text: TextKind | None = None
    heads: tuple[str, ...] = ("auto",)
    watch: tuple[str, ...] = ()
    by: str = "numeric_mass"
    region: Region = "response"
    out: Path | None = None
    open: bool = False
    contrast: bool = False
    others: int | None = None
    grader: str = "first_final"
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            OptionError: a number is out of range, a text is empty or not valid Unicode, or two options exclude each other.
        """
        super().__post_init__()
        require_at_least(self, max_new_tokens=1, others=0, problem=0)
        if not self.model:
            raise OptionError("--model names no model; give at least one")
        if not all(model.strip() for model in self.model):
            raise OptionError("--model is empty; give a hub id, a folder, an adapter, a .gguf file, smollm2, or a head run")
        self._check_problem()
        if self.contrast:
            self._check_contrast()
        elif self.limit is not None or self.measures or self.force:
            raise OptionError("--limit, --measures and --force need --contrast")

    def _check_problem(self) -> None:
        if self.question is not None:
            if self.problem is not None:
                raise OptionError("--problem and --question both name a problem; give one of them")
            if not self.question.strip():
                raise OptionError("--question is empty; type the problem's text")
            if self.text == "reference" and not (self.answer or "").strip():
                raise OptionError("--text reference reads a reference solution; give it with --answer")
        elif self.answer is not None:
            raise OptionError("--answer needs --question; the problems of a set have their own answers")
        for option in ("question", "answer"):
            try:
                (getattr(self, option) or "").encode()
            except UnicodeEncodeError:
                raise OptionError(f"--{option} is not valid Unicode") from None

    def _check_contrast(self) -> None:
        if self.problem is not None or self.question is not None or self.watch or self.heads != ("auto",):
            raise OptionError("--contrast reads many problems and tests all heads; leave out --problem, --question, --heads and --watch")
        if self.others is not None or self.by != "numeric_mass" or self.answer is not None:
            raise OptionError("--contrast tests every head for every measure; leave out --others, --by and --answer")
        if self.open:
            raise OptionError("--contrast draws figures and no page; leave out --open")
        if self.text == "reference":
            raise OptionError("--contrast needs the models' own answers; leave out --text reference")

    def folder(self) -> Path:
        """Return the folder of the results."""
        if self.out is not None:
            return self.out
        short = "-".join(re.sub(r"[^\w.\-]+", "-", Path(name).name.removesuffix(".gguf")) or "model" for name in self.model)[:80]
        if self.contrast:
            return Path("runs") / f"contrast-{short}"
        return Path("runs") / f"example-{short}-{'question' if self.question is not None else self.problem or 0}"


def contrast_config(options: ExamplesConfig) -> ContrastConfig:
    """Return the options of the contrast that --contrast asks for."""
    return ContrastConfig(
        **shared_options(options, ReadingOptions),
        models=options.model,
        out=options.folder(),
        grader=options.grader,
        max_new_tokens=options.max_new_tokens,
        region=options.region,
    )
