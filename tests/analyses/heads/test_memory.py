"""Peak memory is in bytes, and left out where Python cannot tell."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from analyses.heads.memory import peak_memory_bytes


def test_peak_memory_is_in_bytes() -> None:
    block = np.ones(4 << 20)
    assert peak_memory_bytes()["process"] > block.nbytes


def test_peak_memory_of_the_process_is_left_out_without_the_resource_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python on Windows has no module `resource`."""
    monkeypatch.setitem(sys.modules, "resource", None)
    assert "process" not in peak_memory_bytes()
