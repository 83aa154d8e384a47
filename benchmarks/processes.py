"""Measure the speedup by a second process: `python -m benchmarks.processes`.

The shipped problems are recorded with one process and with two, one thread each. The benchmark prints the speedup of recording and of the
complete command. The exit code is 1 if the tables of any round differ. Two processes need two idle cores.

Examples:

  python -m benchmarks.processes                          torchrun starts the processes
  python -m benchmarks.processes --launcher accelerate    accelerate launch starts them
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
"""Largest allowed difference between the values of two tables."""

LAUNCHERS = {
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node"),
    # --cpu would start one process unless MPI is installed. --multi_gpu only delegates to torchrun; --device chooses the device.
    "accelerate": (
        *("-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", "0", "--multi_gpu", "--num_processes"),
    ),
}
"""Python arguments that precede the number of processes."""


@dataclass(frozen=True)
class ProcessesConfig:
    """Throughput of several processes.

    Attributes:
        processes: number of processes, compared with one.
        rounds: number of timed runs of each; they alternate.
        limit: first N shipped problems; all if not given.
        launcher: program that starts several processes.
        model: accepts what --model of analyses.heads accepts.
        smoke: four problems and one round; times mean nothing.
    """

    processes: int = 2
    rounds: int = 3
    limit: int | None = None
    launcher: Literal["torchrun", "accelerate"] = "torchrun"
    model: str = "smollm2"
    smoke: bool = False


def measure(processes: int, out: Path, config: ProcessesConfig, limit: int | None) -> tuple[float, float]:
    """Return the seconds of recording and of the complete command of one head run."""
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
    """Compare two tables.

    Returns:
        Whether keys and counts are equal, the number of values that are undefined in only one table, and the largest difference of the
        others.
    """
    if not one.drop(columns="value").equals(other.drop(columns="value")):
        return False, 0, 0.0
    only_one = one["value"].isna() != other["value"].isna()
    return True, int(only_one.sum()), float((one["value"] - other["value"]).abs().fillna(0).max())


def median_and_range(values: list[float], unit: str) -> str:
    """Return the text of the median with the smallest and the largest value."""
    return f"{statistics.median(values):.2f}{unit} ({min(values):.2f}-{max(values):.2f})"


def main() -> int:
    """Print the comparison; return exit code 1 if the tables differ."""
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
    same, (only_one, largest) = all(each[0] for each in found), (max(each[at] for each in found) for at in (1, 2))
    print(
        f"{len(found)} tables of 1 and {config.processes} processes: keys {'equal' if same else 'DIFFERENT'}, "
        f"{only_one} values undefined in only one, the others differ by at most {largest:.1e}"
    )
    print(f"{config.launcher}, n = {rounds}, alternating; median (smallest-largest)")
    for at, what in enumerate(("recording", "complete command")):
        one, several = ([times[at] for times in taken[n]] for n in taken)
        ratios = [a / b for a, b in zip(one, several, strict=True)]
        one_process, several_processes = median_and_range(one, " s"), median_and_range(several, " s")
        print(f"{what}: 1 process {one_process}, {config.processes} processes {several_processes}, {median_and_range(ratios, ' x')}")
    return 0 if same and not only_one and largest <= LARGEST else 1


if __name__ == "__main__":
    sys.exit(main())
