"""What a second process gives: `python -m benchmarks.processes` records the shipped problems with one process and with two, a thread each.

The tables of every round must be equal, or the exit status is 1; printed is how much sooner two processes are through with recording, and
with the whole command. Two processes want two free cores.

Examples:

  python -m benchmarks.processes                          torchrun starts the processes
  python -m benchmarks.processes --launcher accelerate    accelerate launch does
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
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    import pandas as pd

LARGEST = 1e-6
"""Values of two tables may differ by so much."""

LAUNCHERS = {
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node"),
    # --cpu starts one process, unless MPI is there. --multi_gpu only hands over to torchrun; what the processes compute on is --device.
    "accelerate": (
        *("-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", "0", "--multi_gpu", "--num_processes"),
    ),
}
"""Arguments of Python before the number of processes."""


@dataclass(frozen=True)
class ProcessesConfig:
    """Throughput of several processes.

    Attributes:
        processes: how many, beside one.
        rounds: how often each is timed, in turn.
        limit: first N shipped problems; all if not given.
        launcher: what starts several processes.
        model: as --model of analyses.heads takes it.
        smoke: four problems, one round, without times worth reading.
    """

    processes: int = 2
    rounds: int = 3
    limit: int | None = None
    launcher: Literal["torchrun", "accelerate"] = "torchrun"
    model: str = "smollm2"
    smoke: bool = False


def measure(processes: int, out: Path, config: ProcessesConfig, limit: int | None) -> tuple[float, float]:
    """Seconds of recording and of the whole command of one head run."""
    launcher = [*LAUNCHERS[config.launcher], str(processes)] if processes > 1 else []
    command = [
        sys.executable,
        *launcher,
        "-m",
        "analyses.heads",
        "--model",
        config.model,
        "--device",
        "cpu",
        "--out",
        str(out),
        "--no-figures",
    ]
    command += ["--limit", str(limit)] if limit else []
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-2000:], f"error: {' '.join(command)} failed", sep="\n", file=sys.stderr)
        raise SystemExit(2)
    run = json.loads((out / "run.json").read_text("utf-8"))
    if run["n_processes"] != processes:
        raise SystemExit(f"{' '.join(command)} ran {run['n_processes']} process(es) instead of {processes}")
    return float(run["timings"]["record_seconds"]), float(run["timings"]["total_seconds"])


def difference(one: pd.DataFrame, other: pd.DataFrame) -> tuple[bool, int, float]:
    """Of two tables: whether keys and counts are equal, how many values are undefined in one alone, how much the others differ at most."""
    if not one.drop(columns="value").equals(other.drop(columns="value")):
        return False, 0, 0.0
    alone = one["value"].isna() != other["value"].isna()
    return True, int(alone.sum()), float((one["value"] - other["value"]).abs().fillna(0).max())


def spread(values: list[float], unit: str) -> str:
    """Median, least and largest."""
    return f"{statistics.median(values):.2f}{unit} ({min(values):.2f}-{max(values):.2f})"


def main() -> int:
    """Print the comparison; 1 where the tables differ."""
    import pandas as pd

    config = tyro.cli(ProcessesConfig, prog="python -m benchmarks.processes", description=__doc__)
    if config.processes < 2 or config.rounds < 1 or (config.limit is not None and config.limit < 1):
        print("error: --processes must be 2 or more, --rounds and --limit at least 1", file=sys.stderr)
        return 2
    rounds, limit = (1, 4) if config.smoke else (config.rounds, config.limit)
    taken: dict[int, list[tuple[float, float]]] = {1: [], config.processes: []}
    found: list[tuple[bool, int, float]] = []
    with tempfile.TemporaryDirectory() as place:
        first = None
        for number in range(rounds):
            for processes, times in taken.items():
                out = Path(place) / f"{processes}-{number}"
                times.append(measure(processes, out, config, limit))
                table = pd.read_parquet(out / "examples.parquet")
                first = table if first is None else first
                found.append(difference(first, table))
    same, (alone, off) = all(each[0] for each in found), (max(each[at] for each in found) for at in (1, 2))
    print(
        f"{len(found)} tables of 1 and {config.processes} processes: keys {'equal' if same else 'DIFFERENT'}, "
        f"{alone} values undefined in one alone, the others differ by at most {off:.1e}"
    )
    print(f"{config.launcher}, n = {rounds} in turn; median (least-largest)")
    for at, what in enumerate(("recording", "whole command")):
        one, several = ([times[at] for times in taken[n]] for n in taken)
        ratios = [a / b for a, b in zip(one, several, strict=True)]
        print(f"{what}: 1 process {spread(one, ' s')}, {config.processes} processes {spread(several, ' s')}, {spread(ratios, ' x')}")
    return 0 if same and not alone and off <= LARGEST else 1


if __name__ == "__main__":
    sys.exit(main())
