"""Shared by the tests of head runs: a finished run, and what is compared and changed in runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

SEVERAL_BATCHES = ("--batch-tokens", "130")
"""At most two of the short problems fit in a batch, which makes four batches."""

TABLES = ("heads.parquet", "examples.parquet", "inputs.parquet")


def error_of(ran: Any) -> str:
    """Return the message of a refused run, after checking that it is one or two lines that follow only progress."""
    assert ran.code == 2, ran
    assert "Traceback" not in ran.err
    lines = ran.err.rstrip("\n").split("\n")
    at = next((n for n, line in enumerate(lines) if line.startswith("error: ")), None)
    assert at is not None, ran.err
    assert len(lines) - at <= 2, ran.err
    assert all(re.match(r"opening |resuming|making tables|note: |\r?recording: |^$", line) for line in lines[:at]), ran.err
    return "\n".join(lines[at:])


def nothing_at(out: Path) -> bool:
    """Return whether there is neither a run nor a draft of one."""
    return not list(out.parent.glob(out.name + "*"))


def same_tables(one: Path, other: Path) -> None:
    """Check that the tables of two runs are equal byte for byte."""
    for name in TABLES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def close_tables(one: dict[str, pd.DataFrame], other: dict[str, pd.DataFrame], tolerance: float = 1e-6) -> None:
    """Check for equal rows in the same order, and values within the tolerance times max(1, |value|)."""
    for name, frame in one.items():
        values = [column for column in ("value", "ci_low", "ci_high") if column in frame]
        pd.testing.assert_frame_equal(frame.drop(columns=values), other[name].drop(columns=values))
        for column in values:
            expected, got = frame[column].to_numpy(), other[name][column].to_numpy()
            np.testing.assert_allclose(got / np.maximum(1, abs(expected)), expected / np.maximum(1, abs(expected)), rtol=0, atol=tolerance)


def run_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def change_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes a key."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, problems: Path) -> Path:
    """Return a finished run without figures. Read only."""
    from analyses.heads.__main__ import main

    out = tmp_path_factory.mktemp("good") / "run"
    arguments = ["--model", checkpoint, "--problems", problems, "--out", out, "--device", "cpu", *SEVERAL_BATCHES, "--no-figures"]
    assert main([str(argument) for argument in arguments]) == 0
    return out
