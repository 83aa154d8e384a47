"""Options that several commands share, declared once: a command's own dataclass inherits them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from interp.tables.errors import OptionError

DType = Literal["auto", "float32", "bfloat16", "float16"]
Region = Literal["question", "response", "all"]
TextKind = Literal["reference", "generated"]

_T = TypeVar("_T")


def own_options_first(options: type[_T]) -> type[_T]:
    """Return a dataclass whose --help lists the command's own options first, then the inherited ones from the most specific class on.

    A decorator above `@dataclass(frozen=True, kw_only=True)`. A dataclass itself lists inherited fields first.
    """
    known = {field.name: field for field in fields(options)}  # pyright: ignore[reportArgumentType]
    order = [name for parent in options.__mro__ for name in inspect.get_annotations(parent) if name in known]
    options.__dataclass_fields__ = {name: known[name] for name in order}  # pyright: ignore[reportAttributeAccessIssue]
    return options


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """What every command has.

    Attributes:
        seed: seed of every random number: the bootstrap, permutations and shuffled token sets.
        force: replace finished results.
        debug: show the traceback of an error.
    """

    seed: int = 0
    force: bool = False
    debug: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            OptionError: the seed is negative.
        """
        require_at_least(self, seed=0)


@dataclass(frozen=True, kw_only=True)
class DrawingOptions(CommandOptions):
    """What commands have that draw their results.

    Attributes:
        figures: draw figures and the page.
    """

    figures: bool = True


@dataclass(frozen=True, kw_only=True)
class ModelOptions(DrawingOptions):
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


@dataclass(frozen=True, kw_only=True)
class ReadingOptions(ModelOptions):
    """Which problems models read, how, and what is measured.

    Attributes:
        problems: shipped (this project's own set), gsm8k (the hub's openai/gsm8k), or a JSONL file in GSM8K's format.
        split: split of gsm8k: train or test.
        limit: read the first N problems only.
        chat: use the chat template if the tokenizer has one.
        measures: names of the measures to take; all if none is given. An unknown name lists the known ones.
        batch_tokens: largest number of padded tokens in a batch; a single text may be longer.
    """

    problems: str | None = None
    split: str = "test"
    limit: int | None = None
    chat: bool = True
    measures: tuple[str, ...] = ()
    batch_tokens: int = 2048

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            OptionError: a number is out of range.
        """
        super().__post_init__()
        require_at_least(self, limit=1, batch_tokens=1)


def shared_options(options: CommandOptions, kind: type[CommandOptions]) -> dict[str, Any]:
    """Return the values of a command's options that `kind` declares, by name; for another command's options of the same kind.

    Args:
        options: options of a command; may be of another class that has the same fields.
        kind: one of the classes of this module.
    """
    return {field.name: getattr(options, field.name) for field in fields(kind)}


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
