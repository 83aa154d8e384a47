"""What every command here does around its work: one line for an error of input or machine, and the exit codes 0, 2 and 130."""

from __future__ import annotations

import sys
from collections.abc import Callable

OURS = ("interp", "distill", "analyses", "figures")


def guarded(work: Callable[[], int], *, debug: bool, interrupted: str = "the same command begins again") -> int:
    """Runs a command's work: 0 done, 2 after an error in the input, 130 when interrupted.

    An error that is neither ours nor the machine's is a fault of ours, and shows its traceback.

    Args:
        work: all of it.
        debug: show the traceback of every error.
        interrupted: what to do after an interruption.
    """
    try:
        return work()
    except KeyboardInterrupt:
        print(f"\ninterrupted; {interrupted}", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        ours = type(error).__module__.split(".")[0] in OURS
        memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if debug or not (ours or memory or isinstance(error, OSError)):
            raise
        print(f"error: {_message(error, memory=memory)}", file=sys.stderr)
        return 2


def _message(error: BaseException, *, memory: bool) -> str:
    first = str(error).splitlines()[0] if str(error) else "no details"
    if memory:
        return f"out of memory ({first}); try a smaller --batch-tokens, or fewer models at a time"
    if isinstance(error, OSError):
        return f"{error.strerror or error} ({error.filename or 'no file named'})"
    return str(error)
