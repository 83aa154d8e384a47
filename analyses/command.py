"""What every command does around its work: lines of progress, one line for an error of input or machine, the exit codes 0, 2 and 130."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from interp.tables.errors import OptionError, draw_again, error_line
from interp.tables.versions import current_options

T = TypeVar("T")


def say(text: str) -> None:
    """A line of progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def parse(options: type[T], prog: str, examples: str, arguments: Sequence[str] | None) -> T | int:
    """Return a command's options from its arguments, or, after printing why they cannot be used, exit code 2.

    Options of earlier versions (`interp.tables.versions.OLD_OPTIONS`) are accepted.
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
    """Runs a command's work: 0 done, 2 after an error in the input, 130 when interrupted.

    An error that is neither ours nor the machine's is a fault of ours, and shows its traceback. What is left is asked when the work has
    ended: where it wrote `run.json`, which every command writes after its tables, these are whole, and that is said.

    Args:
        work: all of it.
        debug: show the traceback of every error.
        interrupted: says what an interruption left, before the tables were whole.
        out: where results go.
        kept: what an error of the machine leaves by then, and how to go on.
        smaller: what needs less memory.
        figures: `python -m figures` draws what is in `out`.
    """
    before = _written(out)

    def left(otherwise: str | Callable[[], str]) -> str:
        if _written(out) in (None, before):
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


def _written(out: Path) -> tuple[int, int] | None:
    """Tells the `run.json` of one work from that of another; None where there is none."""
    try:
        found = (out / "run.json").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
