"""A head run that is killed at random moments, again and again, ends with the tables of an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[3]
KILLS = 12
"""Kills of one run, at most; then it is left to finish."""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_at_random_moments_ends_with_the_tables_of_an_uninterrupted_one(
    tmp_path: Path, checkpoint: Path, problems: Path, seed: int
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = ["--model", str(checkpoint), "--problems", str(problems), "--device", "cpu", "--batch-tokens", "60", "--no-figures"]
    command = [sys.executable, "-m", "analyses.heads", *arguments]
    started = time.monotonic()
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, env=environment, cwd=tmp_path, capture_output=True)
    duration = time.monotonic() - started
    moments, out, partial = random.Random(seed), tmp_path / "run", tmp_path / "run.partial"
    for _ in range(KILLS):
        resume = ["--resume"] if partial.exists() else []
        process = subprocess.Popen([*command, "--out", str(out), *resume], env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=duration * (0.4 + 0.6 * moments.random()))  # most of the first part is spent on imports
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if out.exists():
            break
    else:
        subprocess.run([*command, "--out", str(out), "--resume"], check=True, env=environment, cwd=tmp_path, capture_output=True)
    for name in ("heads", "examples", "inputs"):
        one, other = (pd.read_parquet(folder / f"{name}.parquet") for folder in (tmp_path / "whole", out))
        pd.testing.assert_frame_equal(one.drop(columns="model", errors="ignore"), other.drop(columns="model", errors="ignore"))
    assert {path.name for path in tmp_path.iterdir()} >= {"whole", "run"}
    assert not partial.exists()
