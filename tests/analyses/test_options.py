"""Shared options are listed after a command's own, and checked wherever they are inherited."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, dataclass, fields

import pytest

from analyses.options import (
    ModelOptions,
    ReadingOptions,
    own_options_first,
    require_at_least,
    shared_options,
)
from interp.tables.errors import OptionError


@own_options_first
@dataclass(frozen=True, kw_only=True)
class Own(ReadingOptions):
    """Options of a command."""

    model: str = "m"
    problems: str = "shipped"


def test_own_options_are_listed_first_and_the_most_general_last() -> None:
    names = [field.name for field in fields(Own)]
    assert names[:2] == ["model", "problems"]
    assert names.index("limit") < names.index("device") < names.index("figures") < names.index("seed")
    assert set(names) == {"model", *(field.name for field in fields(ReadingOptions))}
    assert asdict(Own(seed=3, model="x")) == {**asdict(ReadingOptions(problems="shipped", seed=3)), "model": "x"}


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"limit": 0}, {"batch_tokens": 0}])
def test_inherited_options_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(OptionError, match=f"--{next(iter(wrong)).replace('_', '-')} is"):
        Own(**wrong)  # pyright: ignore[reportArgumentType]


def test_an_option_that_is_not_given_is_not_checked() -> None:
    require_at_least(Own(limit=None), limit=1)


def test_shared_options_are_those_of_the_named_class() -> None:
    assert shared_options(Own(device="cpu", seed=2), ModelOptions) == asdict(ModelOptions(device="cpu", seed=2))


@pytest.mark.parametrize("command", ["heads", "shifts", "examples", "grades"])
def test_help_lists_every_option_without_heavy_imports(command: str) -> None:
    code = (
        f"import sys, contextlib, io; from analyses.{command}.__main__ import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "--debug" in ran.stdout
    assert "show the traceback of an error" in ran.stdout
    assert "--way" not in ran.stdout
