"""Every error that the project raises on purpose, by who can act on it, and the one line in which a command prints it.

A command prints these as one line and exits with code 2. Any other exception is a defect of the project and shows its traceback.
"""

from __future__ import annotations

import shlex
from pathlib import Path


class PrimedHeadsError(Exception):
    """Base class of every error that the project raises on purpose."""


class InputError(PrimedHeadsError, ValueError):
    """A file, a table, a text or an argument cannot be used as it is."""


class DamagedError(InputError):
    """A result that this project wrote is incomplete or was changed afterwards; it can be made again."""


class NonFiniteError(InputError):
    """A tensor that must be finite holds NaN or infinity."""


class OptionError(PrimedHeadsError):
    """A command-line option is out of range, or two options exclude each other.

    Not a `ValueError`: the argument parser prints those in a box of several lines.
    """


class CheckpointError(PrimedHeadsError, ValueError):
    """A checkpoint cannot be found, opened or used for what was asked."""


class RecordingError(PrimedHeadsError, RuntimeError):
    """A model's attention cannot be recorded exactly."""


class StudyError(PrimedHeadsError, ValueError):
    """A study cannot be run as it is written, or one of its steps failed."""


def error_line(error: Exception, *, out: Path | None = None, kept: str = "", smaller: str = "") -> str | None:
    """Return the line that a command prints for an error, or None for an error that is a defect of the project.

    Args:
        error: what was raised.
        out: the folder that the results go to, named where the operating system reports no file.
        kept: what is left on disk, and how to continue.
        smaller: which option needs less memory.
    """
    left = f"; {kept}" if kept else ""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        first = str(error).splitlines()[0] if str(error) else "no details"
        return f"error: out of memory ({first})" + (f"; try {smaller}" if smaller else "")
    if isinstance(error, PrimedHeadsError):
        return f"error: {error}"
    if isinstance(error, OSError):
        place = error.filename or (f"results go to {out}" if out is not None else "no file named")
        return f"error: {error.strerror or error} ({place}){left}"
    return None


def draw_again(folder: Path) -> str:
    """Return the command that draws the figures of a results folder."""
    return f"python -m figures {shlex.quote(str(folder))}"
