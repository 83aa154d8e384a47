"""Run a benchmark in this process, or check that it refuses its options. Times are never tested: they need an idle machine."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Return a function `(name, *options)` that runs a benchmark in this process and returns its output. Its children stay processes."""
    threads = torch.get_num_threads()
    used: list[ModuleType] = []

    def run(name: str, *options: Any) -> str:
        used.append(importlib.import_module(f"benchmarks.{name}"))
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        code = used[-1].main()
        printed = capsys.readouterr()
        assert code == 0, printed.out + printed.err
        return printed.out

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in a separate process
        yield run
    torch.set_num_threads(threads)
    for kept in (each for module in used for each in vars(module).values() if hasattr(each, "cache_clear")):
        kept.cache_clear()  # frees models


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., Path]) -> Path:
    """Return the folder of a tiny Llama whose context fits the shipped problems, which its short tokens make long."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=4096)


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function `(name, *options)` that runs a benchmark in this process and returns the one error line, its only output."""

    def run(name: str, *options: Any) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        code = importlib.import_module(f"benchmarks.{name}").main()
        printed = capsys.readouterr()
        assert (code, printed.out) == (2, "")
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return run
