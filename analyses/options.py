"""Options that several commands share, declared once: a command's own dataclass inherits them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from interp.tables.errors import OptionError

DType = Literal["auto", "float32", "bfloat16", "float16"]
Region = Literal["question", "response", "all"]
TextKind = Literal["reference", "generated"]


@dataclass(frozen=True)
class CommandOptions:
    """What every command has.

    Attributes:
        seed: of the bootstrap, of permutations and of shuffled token sets.
        force: replace finished results.
        figures: draw figures and the page.
        debug: show the traceback of an error.
    """

    seed: int = 0
    force: bool = False
    figures: bool = True
    debug: bool = False


@dataclass(frozen=True)
class ModelOptions(CommandOptions):
    """How models are opened.

    Attributes:
        base: base model of an adapter, if its config does not name one or names another place.
        device: auto, cpu, cuda, cuda:N, mps, or balanced (layers over all CUDA devices).
        dtype: auto is the checkpoint's own, but float32 on a CPU.
        trust_remote_code: run the checkpoint's own model code.
    """

    base: str | None = None
    device: str = "auto"
    dtype: DType = "auto"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class ReadingOptions(ModelOptions):
    """Which problems models read, how, and what is measured.

    Attributes:
        problems: shipped (this project's own set), gsm8k (the hub's openai/gsm8k), or a JSONL file in GSM8K's format.
        split: of gsm8k, train or test.
        limit: first N problems only.
        chat: use the chat template if the tokenizer has one.
        measures: names of measures; all if none is given. An unknown name lists the known ones.
        batch_tokens: padded tokens per batch, at most (a single text may be longer).
    """

    problems: str | None = None
    split: str = "test"
    limit: int | None = None
    chat: bool = True
    measures: tuple[str, ...] = ()
    batch_tokens: int = 2048


def require_at_least(options: object, **least: int) -> None:
    """Raise if an option is below its smallest allowed value; an option that is None is not checked.

    Args:
        options: the options.
        least: the smallest allowed value of each option, by name.

    Raises:
        OptionError: the first option that is too small.
    """
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise OptionError(f"--{name.replace('_', '-')} is {value}; at least {smallest} is needed")
