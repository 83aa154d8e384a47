"""The benchmark of several processes: its comparison of tables and its launchers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest


def test_one_and_two_processes_give_the_same_table(bench: Callable[..., str], tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two processes are started by accelerate launch (other tests use torchrun). The run with one process runs in this one."""
    from analyses.heads.__main__ import main

    start = subprocess.run

    def run(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        if command[1:3] == ["-m", "analyses.heads"]:
            return subprocess.CompletedProcess(command, main(command[3:]), "", "")
        return start(command, **settings)

    monkeypatch.setattr(subprocess, "run", run)
    printed = bench("processes", "--smoke", "--launcher", "accelerate", "--model", tiny)
    assert "2 tables of 1 and 2 processes: keys equal, 0 values undefined in only one, the others differ by at most 0.0e+00" in printed
    assert "complete command: 1 process" in printed


def test_differences_between_tables_are_counted() -> None:
    from benchmarks.processes import difference

    nan = float("nan")
    table = pd.DataFrame({"head": [0, 1, 2], "value": [1.0, nan, 3.0], "n_queries": [1, 0, 1]})
    assert difference(table, table.copy()) == (True, 0, 0.0)
    assert difference(table, table.assign(value=[1.5, nan, 3.25])) == (True, 0, 0.5)
    assert difference(table, table.assign(value=[nan, 2.0, 3.25])) == (True, 2, 0.25)
    assert not difference(table, table.assign(head=[0, 2, 1]))[0]
    assert not difference(table, table.assign(n_queries=[1, 0, 2]))[0]
    assert not difference(table, table[:2])[0]


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_launchers_accept_their_arguments(launcher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher's own parser reads them, because only one launcher is started above."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed import run as torchrun

    from benchmarks.processes import ProcessesConfig, measure

    commands: list[list[str]] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        assert env["OMP_NUM_THREADS"] == "1"
        timings = {"record_seconds": 1.5, "total_seconds": 2.5}
        (tmp_path / "run.json").write_text(json.dumps({"n_processes": ran, "timings": timings}), "utf-8")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    config = ProcessesConfig(launcher=launcher, model="some")
    for ran in (1, 3):
        assert measure(ran, tmp_path, config, 4) == (1.5, 2.5)
    ran = 1
    with pytest.raises(SystemExit, match=r"ran 1 process\(es\) instead of 3"):
        measure(3, tmp_path, config, 4)
    alone, several, _ = commands
    ours = ["--model", "some", "--device", "cpu", "--out", str(tmp_path), "--no-figures", "--limit", "4"]
    assert alone == [sys.executable, "-m", "analyses.heads", *ours]
    if launcher == "torchrun":
        assert several[:3] == [sys.executable, "-m", torchrun.__name__]
        read = torchrun.parse_args(several[3:])
        assert (read.standalone, read.nproc_per_node, read.nnodes) == (True, "3", "1:1")
    else:
        assert several[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
        read = launch_command_parser().parse_args(several[3:])
        assert (read.multi_gpu, read.num_processes, read.num_machines, read.main_process_port) == (True, 3, 1, 0)
        assert (read.cpu, read.mixed_precision) == (False, "no")
    assert (read.module, read.training_script, read.training_script_args) == (True, "analyses.heads", ours)
