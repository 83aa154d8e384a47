"""`python -m analyses.examples`: one problem; what a model wrote, where it went wrong, and which heads looked at which numbers."""

from __future__ import annotations

import re
import shlex
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from analyses.command import guarded, say

if TYPE_CHECKING:
    from analyses.example_wish import Wish
    from analyses.head_runs import Named
    from distill.problems import Problem

PROG = "python -m analyses.examples"
EXAMPLES = """
Examples:

  python -m analyses.examples                                          the embedded model on the first shipped problem
  python -m analyses.examples --model runs/smollm2-generated --problem 7   a run of analyses.heads: its model, compared with that run
  python -m analyses.examples --model smollm2 runs/demo/students/teacher-seed0 --text gold   two models on the same text
  python -m analyses.examples --question "Ana has 3 bags of 12 nuts. How many nuts?" --answer 36 --open
  python -m analyses.examples --heads 12.3,auto --problems gsm8k --problem 100
  python -m analyses.examples --watch 3.1,7 --problem 4                maps of head 3.1 and of layer 7 alone are kept
  python -m analyses.examples --contrast --model A B --problems gsm8k --limit 200    heads of right and of wrong answers
"""


class OptionError(Exception):
    """An option out of range, or two that exclude each other. No ValueError: tyro prints those in a box of many lines."""


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
    text: Literal["generated", "gold"] | None = None
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
            if self.text == "gold" and not (self.answer or "").strip():
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
        if self.contrast and self.text == "gold":
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 after an error in the input, 130 when interrupted."""
    try:
        config = tyro.cli(
            ExamplesConfig, prog=PROG, description=(ExamplesConfig.__doc__ or "").split("\n")[0] + "\n" + EXAMPLES, args=arguments
        )
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = shlex.join(["python", "-m", "analyses.examples", *(sys.argv[1:] if arguments is None else arguments)])
    heads = config.folder() / "heads"

    def kept() -> str:
        return f"head runs that were finished are kept in {heads}: the same command goes on" if heads.is_dir() else "nothing was finished"

    return guarded(
        lambda: (contrast if config.contrast else look_at)(config, command),
        debug=config.debug,
        interrupted=kept,
        out=config.folder(),
        kept=kept,
        smaller="a smaller --max-new-tokens, or --watch with few heads",
    )


def look_at(config: ExamplesConfig, command: str) -> int:
    """One problem: tables, text, figures, page."""
    from analyses.example_folder import check_folder
    from analyses.example_wish import ExampleError, Wish
    from analyses.head_runs import all_named

    models = all_named(config.model, config.base)
    config = settled(config, models)
    problem, pool, about = the_problem(config)
    unlike = [m.name for m in models if m.source is None]
    if unlike:
        raise ExampleError(f"the run of {unlike[0]} does not say where its model is; name the model itself")
    repeated = next((m.name for at, m in enumerate(models) if m.name in [o.name for o in models[:at]]), None)
    if repeated is not None:
        raise ExampleError(f"two models are called {repeated!r}; measure one by python -m analyses.heads --name OTHER, and name its run")
    out = config.folder()
    check_folder(out)
    wish = Wish(
        text=config.text or "generated",
        heads=config.heads,
        watch=config.watch,
        by=config.by,
        region=config.region,
        grader=config.grader,
        chat=config.chat,
        max_new_tokens=config.max_new_tokens or 256,
        others=config.others if config.others is not None else 12 if config.text == "gold" else 0,
        seed=config.seed,
    )
    _look(config, wish, models, problem, pool, {"command": command, "problem": about}, out)
    from analyses.example_heads import parse_heads
    from analyses.example_text import describe
    from figures.example_figures import draw_example, write_page
    from figures.example_folder import read_example

    example = read_example(out)
    print(describe(example))
    named_first = parse_heads(config.heads, example.run["layers"], example.run["n_heads"], "--heads")
    files = draw_example(out, heads=named_first or example.chosen[:1]) if config.figures else [write_page(example, out)]
    print(f"tables:  {out}")
    if config.figures:
        print(f"figures: {len(files) - 1} files in {out / 'figures'}")
    print(f"page:    {files[-1]}")
    if config.open:
        webbrowser.open(files[-1].resolve().as_uri())
    return 0


def _look(
    config: ExamplesConfig, wish: Wish, models: Sequence[Named], problem: Problem, pool: Sequence[Problem], about: dict[str, Any], out: Path
) -> None:
    from analyses.one_problem import look
    from analyses.open_models import Opening, OpenModels

    say(f"opening {', '.join(str(m.source) for m in models)}")
    look(models, OpenModels(models, Opening(config.device, config.dtype, config.trust_remote_code)), problem, wish, out, about, pool)


def settled(config: ExamplesConfig, models: Sequence[Named]) -> ExamplesConfig:
    """What was not asked for, taken from the first head run named."""
    from dataclasses import replace

    from analyses.head_runs import read_run_json

    folder = next((m.folder for m in models if m.folder is not None), None)
    run = read_run_json(folder) if folder is not None else {}
    config = replace(
        config,
        text=config.text or ("generated" if config.question is not None else run.get("text", "generated")),
        max_new_tokens=config.max_new_tokens or (run.get("generated") or {}).get("max_new_tokens") or 256,
        chat=config.chat and bool(run.get("config", {}).get("chat", True)),
    )
    if run and config.problems is None and config.question is None:
        config = replace(config, problems=run["problems"]["source"], split=run["problems"]["split"])
    return config


def the_problem(config: ExamplesConfig) -> tuple[Problem, list[Problem], dict[str, Any]]:
    """The problem, all of its set (or the shipped ones, for one typed by hand), and where it is from.

    Raises:
        ExampleError: a number out of the set's range, or an answer without a number.
    """
    from analyses.example_wish import ExampleError
    from distill.grading import GradingError, is_correct
    from distill.problems import Problem, load_problems

    if config.question is not None:
        answer = (config.answer or "").strip()
        if answer and "####" not in answer and config.text == "generated":
            answer = f"#### {answer}"
        if answer:
            try:
                is_correct(None, answer)
            except GradingError as error:
                raise ExampleError(f"--answer: {error}") from error
        return Problem(0, config.question, answer), load_problems(), {"source": "--question", "index": None, "n": None}
    source = config.problems or "shipped"
    pool = load_problems(source, config.split)
    index = config.problem or 0
    if index >= len(pool):
        raise ExampleError(f"--problem is {index}; {source} has {len(pool)} problems: 0 to {len(pool) - 1} are allowed")
    return pool[index], pool, {"source": source, "index": index, "n": len(pool)}


def contrast(config: ExamplesConfig, command: str) -> int:
    """Many problems: heads of right and of wrong answers."""
    from dataclasses import asdict, fields

    from analyses.contrast import contrast as over_problems
    from analyses.contrast_options import ContrastConfig

    known = {name: value for name, value in asdict(config).items() if name in {f.name for f in fields(ContrastConfig)}}
    return over_problems(ContrastConfig(**{**known, "models": config.model, "out": config.folder()}), command)


if __name__ == "__main__":
    sys.exit(main())
