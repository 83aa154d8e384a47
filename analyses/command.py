"""What every command does around its work: parse options, report progress, print an error as one line, return the exit code."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from interp.tables.errors import OptionError, draw_again, error_line
from interp.tables.versions import current_options


class Options(Protocol):
    """What a command's options have in common."""

    @property
    def debug(self) -> bool:
        """Show the traceback of an error."""
        ...

    def folder(self) -> Path:
        """Return the folder of the results."""
        ...


_T = TypeVar("_T")
_Chosen = TypeVar("_Chosen", bound=Options)


def say(text: str) -> None:
    """Print a line of progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def run_command(
    module: str,
    options: type[_Chosen],
    examples: str,
    work: Callable[[_Chosen, str], None],
    *,
    left: Callable[[_Chosen], str],
    smaller: str = "",
    figures: bool = True,
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse a command's arguments and do its work; return the exit code: 0 done, 2 after an error, 130 after an interruption.

    Args:
        module: what `python -m` names.
        options: dataclass of the options; the first line of its docstring describes the command in --help.
        examples: command lines for --help.
        work: does everything and prints the results, given the options and the command line to record.
        left: returns what an unfinished call left on disk, and how to continue.
        smaller: which option needs less memory.
        figures: `python -m figures` draws what is in the results folder.
        arguments: those of the command line; None takes them from `sys.argv`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = parse(options, f"python -m {module}", examples, given)
    if isinstance(chosen, int):
        return chosen
    command = shlex.join(["python", "-m", module, *given])

    def do_work() -> int:
        work(chosen, command)
        return 0

    def kept() -> str:
        return left(chosen)

    return guarded(do_work, debug=chosen.debug, interrupted=kept, out=chosen.folder(), kept=kept, smaller=smaller, figures=figures)


def parse(options: type[_T], prog: str, examples: str, arguments: Sequence[str] | None) -> _T | int:
    """Return a command's options, or exit code 2 after printing why the arguments cannot be used.

    Options of earlier versions (`interp.tables.versions.OLD_OPTIONS`) are accepted.

    Args:
        options: dataclass of the options.
        prog: the command, for --help.
        examples: command lines for --help.
        arguments: those of the command line; None takes them from `sys.argv`.
    """
    import tyro

    given = current_options(list(sys.argv[1:] if arguments is None else arguments))
    try:
        return tyro.cli(options, prog=prog, description=(options.__doc__ or "").split("\n")[0] + "\n" + examples, args=given)
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def guarded(
    work: Callable[[], int],
    *,
    debug: bool,
    interrupted: Callable[[], str],
    out: Path,
    kept: str | Callable[[], str],
    smaller: str = "",
    figures: bool = True,
) -> int:
    """Do a command's work; return its exit code, 2 after printing an error, or 130 after an interruption.

    An error that is neither the input's nor the machine's is a defect of the project, and its traceback is shown. If the work wrote
    `run.json` in `out` before it failed, the tables are complete, and the message says so instead of `kept`.

    Args:
        work: everything that the command does.
        debug: show the traceback of every error.
        interrupted: returns what an interruption left; called afterwards.
        out: the results folder.
        kept: what an error of the machine left, and how to continue; a callable is called afterwards.
        smaller: which option needs less memory.
        figures: `python -m figures` draws what is in `out`.
    """
    before = _run_file(out)

    def left(otherwise: str | Callable[[], str]) -> str:
        if _run_file(out) in (None, before):
            return otherwise if isinstance(otherwise, str) else otherwise()
        return f"the tables are in {out}" + (f"; {draw_again(out)} draws the rest" if figures else "")

    try:
        return work()
    except KeyboardInterrupt:
        print(f"\ninterrupted; {left(interrupted)}", file=sys.stderr)
        return 130
    except Exception as error:
        line = error_line(error, out=out, kept=left(kept) if isinstance(error, OSError) else "", smaller=smaller)
        if debug or line is None:
            raise
        print(line, file=sys.stderr)
        return 2


def _run_file(out: Path) -> tuple[int, int] | None:
    """Return what tells one `run.json` from another; None if there is none."""
    try:
        found = (out / "run.json").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
