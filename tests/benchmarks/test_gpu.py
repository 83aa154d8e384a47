"""The GPU benchmark without a GPU: its parts, its limits of errors, its rounds. The kernel runs in Triton's interpreter."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import GpuConfig, run_parts
from interp.attention.triton import available, triton_pass

CAN, WHY = available(torch.device("cpu"))
needs_interpreter = pytest.mark.skipif(not CAN or os.environ["TRITON_INTERPRET"] != "1", reason=WHY or "the interpreter is off")
TINY = GpuConfig(lengths=(40,), head_dims=(16,), heads=4, kv_heads=2, batch_tokens=40, rounds=1, model_rounds=2, tokens=40, layers=2)


def tiny(*parts: Any, **changes: Any) -> GpuConfig:
    return GpuConfig(**{**vars(TINY), "parts": parts, **changes})


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


@needs_interpreter
def test_errors_are_within_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_parts(tiny("errors", lengths=(24, 150)), "cpu") == 0
    printed = capsys.readouterr()
    rows = [line for line in printed.out.splitlines() if " 1 x " in line]
    assert len(rows) == 2 * len(gpu.INPUT_KINDS)
    assert all("entropy" in row and "key before" in row and "counts 0.0e+00" in row for row in rows)
    assert "sdpa" not in printed.out
    assert printed.err == ""


@needs_interpreter
@pytest.mark.parametrize(
    ("name", "change", "reported"),
    [
        ("collision", lambda t: t * 1.002, "sum p^2 2.0e-03"),
        ("entropy", lambda t: t + 2e-6, "entropy 2.0e-03"),  # in rows with almost no entropy
        ("pair_masses", lambda t: t.flip(0), "key before"),
        ("distance", lambda t: t * torch.nan, "distance inf"),
    ],
)
def test_an_error_above_the_limit_gives_exit_code_1(
    name: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    reported: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def worse(*args: Any) -> Any:
        output, rows = triton_pass(*args)
        setattr(rows, name, change(getattr(rows, name)))
        return output, rows

    monkeypatch.setattr("interp.attention.triton.triton_pass", worse)
    assert run_parts(tiny("errors"), "cpu") == 1
    assert reported in capsys.readouterr().err


@needs_interpreter
def test_a_different_count_gives_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def worse(*args: Any) -> Any:
        output, rows = triton_pass(*args)
        rows.above[0.1][0, 0, 7] += 1
        return output, rows

    monkeypatch.setattr("interp.attention.triton.triton_pass", worse)
    assert run_parts(tiny("errors"), "cpu") == 1
    assert "counts" in capsys.readouterr().err


@pytest.mark.parametrize(("cost", "verdict"), [(1.25, "40 met (1.25), 80 met (1.25)"), (1.3, "40 missed (1.30), 80 missed (1.30)")])
def test_the_table_shows_the_lengths_at_which_the_target_is_met(
    cost: float, verdict: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = iter(("sdpa", *gpu.VARIANTS) * 2 * 3)  # alternating variants at two lengths, two warm-up rounds and one that counts
    monkeypatch.setattr(gpu, "milliseconds", lambda run, device: cost if next(names) == "triton" else 1.0)
    assert run_parts(tiny("table", lengths=(40, 80)), "cpu") == 0
    assert f"  16 target 1.25 x sdpa: {verdict}" in capsys.readouterr().out
    assert next(names, None) is None


def test_the_long_text_runs_plain_and_recorded_alternately(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    timed, times = [], iter((1000.0, 2000.0, 3000.0, 3000.0))

    def milliseconds(run: Callable[[], Any], device: str) -> float:
        run()
        timed.append(run.__name__)
        return next(times)

    monkeypatch.setattr(gpu, "milliseconds", milliseconds)
    gpu.long_text(tiny("model", backend="blocked"), "cpu", tiny=True)
    printed = capsys.readouterr().out
    assert timed == ["plain", "recorded"] * 2
    assert "plain forward    2.000 s (1.000 to 3.000, 2 rounds)" in printed
    assert "recorded    2.500 s (2.000 to 3.000, 2 rounds)" in printed
    assert "recorded / plain 1.500, median of the rounds (1.000 to 2.000)" in printed
    assert "layers by backend: blocked 2" in printed
    assert "entropy_nats" in printed


def test_all_parts_run_unless_some_are_chosen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[str] = []
    monkeypatch.setattr(gpu, "print_table", lambda *_: ran.append("table"))
    monkeypatch.setattr(gpu, "print_errors", lambda *_: ran.append("errors") or [])
    monkeypatch.setattr(gpu, "long_text", lambda *_, tiny: ran.append("model"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    assert "no CUDA device was found" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    for chosen, expected in (([], ["table", "errors", "model"]), (["--parts", "model", "errors"], ["errors", "model"])):
        ran.clear()
        monkeypatch.setattr(sys, "argv", ["gpu", *chosen])
        assert gpu.main() == 0
        assert ran == expected
    with pytest.raises(ValueError, match="at least one"):
        tiny("table", model_rounds=0)


@needs_interpreter
def test_the_smallest_run_covers_the_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.smoke(GpuConfig(parts=("model",))) == 0
    assert "layers by backend: triton 1" in capsys.readouterr().out
    monkeypatch.setattr("interp.attention.triton.available", lambda device: (False, "no kernel"))
    assert gpu.smoke(GpuConfig(parts=("model", "table"))) == 0
    printed = capsys.readouterr().out
    assert "the kernel was left out: no kernel" in printed
    assert "layers by backend: blocked 1" in printed
