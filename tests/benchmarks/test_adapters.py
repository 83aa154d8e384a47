"""The benchmark of many adapters: loads, comparison of tables, options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def test_shared_adapters_load_their_base_once(bench: Callable[..., str], tiny: Path) -> None:
    lines = bench("adapters", "--smoke", "--model", tiny).splitlines()
    rows = {line.split()[0]: [int(n) for n in line.split()[-4:-1]] for line in lines[2:4]}
    assert rows == {"separate": [2, 2, 4], "shared": [1, 2, 4]}  # loads, forwards, trials
    assert lines[-1] == "tables: equal to the last bit"


def test_adapters_with_different_tables_are_named(tmp_path: Path) -> None:
    from benchmarks.adapters import differing

    nan = float("nan")
    for method, last in (("separate", 4.0), ("shared", 4.5)):
        for number, values in enumerate(([1.0, nan], [2.0, last])):
            np.savez(tmp_path / f"{method}-adapter-{number}.npz", examples=[0, 1], values=values, counts=[1, 1])
    assert differing(tmp_path, 2) == ["adapter-1"]
    np.savez(tmp_path / "shared-adapter-1.npz", examples=[0, 1], values=[2.0, 4.0], counts=[1, 1])
    assert differing(tmp_path, 2) == []
    for method in ("separate", "shared"):
        np.savez(tmp_path / f"{method}-adapter-1.npz", examples=[0, 1], values=[1.0, nan], counts=[1, 1])
    assert differing(tmp_path, 2) == ["two adapters have the same table"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--threads", 0), "--threads is 0"),
        (("--adapters", 1), "--adapters must be 2 or more"),
    ],
)
def test_wrong_numbers_are_refused(refusal: Callable[..., str], options: tuple[Any, ...], message: str) -> None:
    assert message in refusal("adapters", *options)
