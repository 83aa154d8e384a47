"""Which errors a command prints as one line, and how."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from interp.tables import errors
from interp.tables.errors import DamagedError, InputError, NonFiniteError, OptionError, PrimedHeadsError, draw_again, error_line

CLASSES = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, PrimedHeadsError)]


class OutOfMemoryError(RuntimeError):
    """Named like the one of torch, which the printer does not import."""


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_of_the_project_is_printed_with_its_message(kind: type[Exception]) -> None:
    assert error_line(kind("--limit is 0"), out=Path("out"), kept="run again") == "error: --limit is 0"


@pytest.mark.parametrize("error", [ValueError("bug"), KeyError("bug"), RuntimeError("bug"), AssertionError(), KeyboardInterrupt()])
def test_a_defect_has_no_line(error: Exception) -> None:
    assert error_line(error) is None


def test_an_error_of_the_operating_system_names_its_file() -> None:
    error = PermissionError(13, "Permission denied", "/results/run.json")
    assert error_line(error, out=Path("out")) == "error: Permission denied (/results/run.json)"
    assert error_line(error, kept="--resume continues it") == "error: Permission denied (/results/run.json); --resume continues it"


def test_an_error_without_a_file_names_the_results_folder() -> None:
    assert error_line(OSError(28, "No space left on device"), out=Path("out")) == "error: No space left on device (results go to out)"
    assert error_line(OSError("no device")) == "error: no device (no file named)"


@pytest.mark.parametrize("kind", [MemoryError, OutOfMemoryError])
def test_a_lack_of_memory_names_the_option_that_needs_less(kind: type[Exception]) -> None:
    assert error_line(kind("tried to allocate 9 GiB\nmore"), smaller="--batch-tokens 512") == (
        "error: out of memory (tried to allocate 9 GiB); try --batch-tokens 512"
    )
    assert error_line(kind()) == "error: out of memory (no details)"


def test_option_errors_are_not_value_errors() -> None:
    """The argument parser prints ValueErrors in a box of several lines."""
    assert not issubclass(OptionError, ValueError)
    assert issubclass(InputError, ValueError)
    assert issubclass(DamagedError, InputError)
    assert issubclass(NonFiniteError, InputError)


def test_the_command_that_draws_again_quotes_the_folder() -> None:
    assert draw_again(Path("my runs/one")) == "python -m figures 'my runs/one'"
