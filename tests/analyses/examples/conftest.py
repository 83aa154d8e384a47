"""Shared by the tests of one inspected problem: the command run in this process, and its results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from analyses.examples.__main__ import main
from interp.tables.example import EXAMPLE_TABLES
from interp.tables.schema import read

SHORT = ("--max-new-tokens", "12")


class Ran(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """The output as one line: where it wraps depends on the length of folder names."""
        return " ".join(self.out.split())


@pytest.fixture
def inspect(
    checkpoint: Path, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """`(*arguments)` runs the command: the tiny model, the short problems, no figures and results in `out` unless given otherwise."""
    monkeypatch.chdir(tmp_path)  # the runs/ of the repository must not be found

    def run(*arguments: Any) -> Ran:
        given = [str(argument) for argument in arguments]
        for option, default in (("--model", checkpoint), ("--problems", problems), ("--device", "cpu"), ("--out", "out")):
            if option not in given:
                given += [option, str(default)]
        if "--figures" not in given:
            given.append("--no-figures")
        capfd.readouterr()
        code = main(given)
        printed = capfd.readouterr()
        return Ran(code, printed.out, printed.err)

    return run


def table(name: str, folder: Path | str = "out") -> pd.DataFrame:
    return read(Path(folder) / f"{name}.parquet", EXAMPLE_TABLES[name])


def run_json(folder: Path | str = "out") -> dict[str, Any]:
    return json.loads((Path(folder) / "run.json").read_text("utf-8"))


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt
