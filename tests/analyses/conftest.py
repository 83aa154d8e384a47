"""The command that measures heads, run in this process. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Ran(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def heads(checkpoint: Path, problems: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`(*arguments)` runs the command in this process: the tiny model, the short problems and no figures unless given otherwise."""
    from analyses.heads.__main__ import main

    def run(*arguments: Any) -> Ran:
        given = [str(argument) for argument in arguments]
        for option, default in (("--model", checkpoint), ("--problems", problems), ("--device", "cpu")):
            if option not in given:
                given += [option, str(default)]
        if "--figures" not in given:
            given.append("--no-figures")
        capfd.readouterr()
        code = main(given)
        said = capfd.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def tables() -> Callable[[Path], dict[str, Any]]:
    """`(folder)` reads and validates the three tables of a run."""
    from interp.tables.heads import HEAD_TABLES
    from interp.tables.schema import read

    return lambda folder: {name: read(folder / f"{name}.parquet", schema) for name, schema in HEAD_TABLES.items()}
