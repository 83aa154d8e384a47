"""What a second process gives: `python -m benchmarks.processes` records the shipped problems with one process and with two, a thread each.

The tables must be equal; printed is how much sooner two processes are through with recording, and with the whole command.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class ProcessesConfig:
    """Throughput of several processes.

    Attributes:
        processes: how many, beside one.
        rounds: how often each is timed, in turn.
        limit: first N shipped problems; all if not given.
        smoke: four problems, one round, without times worth reading.
    """

    processes: int = 2
    rounds: int = 3
    limit: int | None = None
    smoke: bool = False


def measure(processes: int, out: Path, limit: int | None) -> tuple[float, float]:
    """Seconds of recording and of the whole command of one head run."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "analyses.heads", "--device", "cpu", "--out", str(out), "--no-figures"]
    command += ["--limit", str(limit)] if limit else []
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    timings = json.loads((out / "run.json").read_text("utf-8"))["timings"]
    return float(timings["record_seconds"]), float(timings["total_seconds"])


def main() -> int:
    """Print the ratios."""
    import pandas as pd

    config = tyro.cli(ProcessesConfig, prog="python -m benchmarks.processes", description=__doc__)
    rounds, limit = (1, 4) if config.smoke else (config.rounds, config.limit)
    taken: dict[int, list[tuple[float, float]]] = {1: [], config.processes: []}
    with tempfile.TemporaryDirectory() as place:
        for number in range(rounds):
            for processes, times in taken.items():
                times.append(measure(processes, Path(place) / f"{processes}-{number}", limit))
        tables = [pd.read_parquet(Path(place) / f"{processes}-0" / "examples.parquet") for processes in taken]
    off = (tables[0]["value"] - tables[1]["value"]).abs().max()
    same = tables[0].drop(columns="value").equals(tables[1].drop(columns="value"))
    print(f"tables of 1 and {config.processes} processes: keys {'equal' if same else 'DIFFERENT'}, values differ by at most {off:.1e}")
    for at, what in enumerate(("recording", "whole command")):
        one, several = (statistics.median(times[at] for times in taken[n]) for n in taken)
        print(f"{what}: 1 process {one:.1f} s, {config.processes} processes {several:.1f} s, {one / several:.2f} x (median of {rounds})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
