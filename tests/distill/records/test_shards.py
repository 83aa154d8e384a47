"""Shards: damage is found and repaired, writes are atomic, and processes share the work."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock

import distill.records.shards
import distill.records.store
from distill.problems.sets import Problem
from distill.records.record import Record
from distill.records.store import RecordStore
from interp.checkpoints.unembedding import OutputHead
from interp.tables.errors import DamagedError
from tests.distill.records.cases import PROBLEMS, WHO, answer, files, flip


def test_file_permissions_follow_the_umask(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    before = os.umask(0o027)
    try:
        store.group(WHO).collect(PROBLEMS, answer("hidden"), 4)
        store.write_head(OutputHead(torch.randn(7, 4)), WHO["teacher"])
    finally:
        os.umask(before)
    modes = {file.suffix: file.stat().st_mode & 0o777 for file in tmp_path.rglob("*.*")}
    assert modes == {".json": 0o640, ".parquet": 0o640, ".safetensors": 0o640}


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "short", "empty", "flipped early", "flipped late", "gone", "foreign"])
def test_damage_is_found_named_and_repaired(tmp_path: Path, suffix: str, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    if (suffix, damage) == (".parquet", "gone"):
        return  # its answers are missing, which is not damage
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS, answer("hidden"), 4)
    whole = files(group.folder)
    (hurt,) = group.folder.glob(f"000004-*{suffix}")
    content = hurt.read_bytes()
    made = {
        "truncated": content[: len(content) // 2],
        "short": content[:-1],
        "empty": b"",
        "flipped early": flip(content, len(content) // 5),
        "flipped late": flip(content, len(content) - 30),
        "foreign": (group.folder / next(n for n in whole if n.startswith("000000") and n.endswith(suffix))).read_bytes() + b" ",
    }
    if damage == "gone":
        hurt.unlink()
    else:
        hurt.write_bytes(made[damage])
        os.utime(hurt, ns=(1, 1))  # the modification time does not show the change
    with pytest.raises(DamagedError, match=rf"{re.escape(hurt.name)}.*run collect again") as raised:
        [r.signals["hidden"] for r in group.read(PROBLEMS)]
    assert str(group.folder) in str(raised.value)
    group.collect(PROBLEMS, answer("hidden"), 4)
    assert hurt.name in capsys.readouterr().err
    assert {name: data for name, data in files(group.folder).items() if not name.endswith(".damaged")} == whole
    assert [
        torch.equal(r.signals["hidden"], e.signals["hidden"]) for r, e in zip(group.read(PROBLEMS), answer("hidden")(PROBLEMS), strict=True)
    ] == [True] * 10


def test_shards_of_another_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS, answer(), 4)
    monkeypatch.setattr(distill.records.shards, "RECORD_FORMAT", 2)
    with pytest.raises(DamagedError, match="another version"):
        group.read(PROBLEMS)


@pytest.mark.parametrize("where", ["parquet", "safetensors", "fsync", "replace"])
@pytest.mark.parametrize("why", [errno.ENOSPC, errno.EACCES])
def test_a_full_or_read_only_disk_leaves_complete_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, why: int) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:4], answer("hidden"), 4)
    before = files(group.folder)

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(why, os.strerror(why))

    with monkeypatch.context() as patch:
        if where in ("parquet", "safetensors"):
            write = Path.write_bytes
            patch.setattr(Path, "write_bytes", lambda file, data: refused() if f".{where}." in file.name else write(file, data))
        elif where == "fsync":
            patch.setattr(os, "fsync", refused)
        else:
            patch.setattr(Path, "replace", refused)
        with pytest.raises(OSError, match=re.escape(os.strerror(why))) as raised:
            group.collect(PROBLEMS, answer("hidden"), 4)
    assert (raised.value.errno, Path(raised.value.filename).parent) == (why, group.folder)
    after = files(group.folder)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.startswith(".")]
    group.collect(PROBLEMS, answer("hidden"), 4)
    assert len(group.read(PROBLEMS)) == 10


@pytest.mark.parametrize("tier", ["topk", "hidden"])
def test_a_write_that_the_system_stops_leaves_no_file(tmp_path: Path, tier: str) -> None:
    """With a limit on the size of files, the system refuses the Parquet file (topk) or the safetensors file (hidden)."""
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX only")
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:4], answer(tier), 4)
    before = files(group.folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as raised:
            group.collect(PROBLEMS, answer(tier), 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.errno == errno.EFBIG
    assert Path(raised.value.filename).parent == group.folder
    assert files(group.folder) == before
    group.collect(PROBLEMS, answer(tier), 4)
    assert len(group.read(PROBLEMS)) == 10


def test_damage_that_keeps_size_and_modification_time_is_found(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS, answer("hidden"), 10)
    group.read(PROBLEMS)  # its hash is now cached
    (file,) = group.folder.glob("*.safetensors")
    was = file.stat()
    time.sleep(0.05)  # a tick of the file system's clock
    content = file.read_bytes()
    with file.open("r+b") as same:
        same.write(flip(content, len(content) - 1))
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (was.st_mtime_ns, was.st_ino)
    with pytest.raises(DamagedError, match=re.escape(file.name)):
        group.read(PROBLEMS)


SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
import torch
torch.set_num_threads(1)
import distill.records.store as records
from distill.problems.sets import Problem

PROBLEMS = [Problem(i, f"How many are {{i}}?", "#### 1") for i in range(12)]


def one(p, rows):
    return records.Record(p.index, p.question, p.answer, (1,), (2,) * 30, "text", "eos", {{"hidden": rows}})


def collect(store, shard_rows, asked=None):
    def answer(problems):
        if asked:
            with asked.open("a") as file:
                file.write("".join(f"{{p.index}} " for p in problems))
        time.sleep(0.05 if asked else 0)
        return [one(p, torch.randn(30, 8, generator=torch.Generator().manual_seed(p.index))) for p in problems]

    group = records.RecordStore(store).group({{"teacher": {{"name": "slow"}}}})
    group.collect(PROBLEMS, answer, shard_rows)
    return group


def in_process(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return pid


def status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def files(store):
    (group,) = (p.parent for p in store.glob("*/group.json"))
    return {{p.name: p.read_bytes() for p in group.iterdir() if not p.name.endswith(".damaged")}}


def killed(store, moment):
    # kill -9 during the n-th write, fsync or rename
    remaining = [moment]

    def watched(owner, name, writes):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            remaining[0] -= 1
            if remaining[0] == 0 and writes:
                real(*args, **kwargs)
                os.truncate(args[0], 100)
            if remaining[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, name, call)

    watched(os, "fsync", False)
    watched(Path, "replace", False)
    watched(Path, "write_bytes", True)
    collect(store, 6)


def kill(folder):
    collect(folder / "whole", 6)
    whole = files(folder / "whole")
    for moment in range(1, 100):
        store = folder / str(moment)
        code = status(in_process(lambda: killed(store, moment)))
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        again = status(in_process(lambda: killed(store, 5)))  # a second time
        assert again in (0, -signal.SIGKILL), again
        assert status(in_process(lambda: collect(store, 6))) == 0
        assert files(store) == whole, (moment, sorted(files(store)), sorted(whole))
    print(moment - 1)


def two(folder):
    whole = files(collect(folder / "whole", 3).store)
    asked = folder / "asked"
    both = [in_process(lambda: collect(folder / "new", 3, asked)) for _ in range(3)]
    assert [status(pid) for pid in both] == [0, 0, 0]
    assert files(folder / "new") == whole
    assert sorted(map(int, asked.read_text().split())) == list(range(12))  # each problem once
    hurt = collect(folder / "hurt", 3).folder
    next(hurt.glob("000003-*.safetensors")).unlink()
    os.truncate(next(hurt.glob("000006-*.parquet")), 50)
    asked.unlink()
    both = [in_process(lambda: collect(folder / "hurt", 3, asked)) for _ in range(3)]
    assert [status(pid) for pid in both] == [0, 0, 0]
    assert files(folder / "hurt") == whole
    assert sorted(map(int, asked.read_text().split())) == list(range(3, 9))
    print("done")


{{"kill": kill, "two": two}}[sys.argv[1]](Path(sys.argv[2]))
"""


def run_script(folder: Path, what: str) -> str:
    file = folder / "processes.py"
    file.write_text(SCRIPT.format(root=str(Path(__file__).parents[3])))
    done = subprocess.run(
        [sys.executable, str(file), what, str(folder)], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_collection_killed_at_any_step_resumes_to_the_same_files(tmp_path: Path) -> None:
    """Each write (half done), fsync and rename of a collection: group.json, and two shards of two files, with four steps each."""
    assert int(run_script(tmp_path, "kill")) == (1 + 2 * 2) * 4


def test_concurrent_processes_share_the_work(tmp_path: Path) -> None:
    assert run_script(tmp_path, "two") == "done"


def test_held_locks_stay_and_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:4], answer(), 4)
    names = (
        ".000004.lock",
        ".000004-0123.parquet.draft-1",
        ".000004-0123.parquet.draft-1-ab",
        ".000096.lock",
        ".000096-4.safetensors.draft-1",
    )
    dead = [group.folder / name for name in names]
    for file in dead:
        if file.name.endswith(".draft-1"):  # version 0.1 made a folder for each draft
            file.mkdir()
            (file / ".tmpZq3x").write_text("half")
        else:
            file.write_text("")
    held = group.folder / ".000008.lock"
    with FileLock(held):  # another process works on this chunk
        group.collect(PROBLEMS[:8], answer(), 4)
        assert held.exists()
    assert not [file for file in dead if file.exists()]
    group.collect(PROBLEMS, answer(), 4)
    assert not list(group.folder.glob(".*"))


@pytest.mark.parametrize(("shard_rows", "locks"), [(8, False), (10, True)])
def test_tensors_without_rows_are_removed(tmp_path: Path, shard_rows: int, locks: bool) -> None:
    """A process was killed between a shard's two files, and the next one uses shards of another size."""
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:1], answer("hidden"), 1)
    kept = files(group.folder)
    left = group.folder / ("000004-0123456789ab.safetensors" if locks else "000000-0123456789ab.safetensors")
    left.write_bytes(b"states")
    if locks:  # the killed process left its lock file
        (group.folder / ".000004.lock").write_text("")
    group.collect(PROBLEMS, answer("hidden"), shard_rows)
    assert not left.exists()
    assert not list(group.folder.glob(".*"))
    after = files(group.folder)
    assert {name: after[name] for name in kept} == kept
    assert len(group.read(PROBLEMS)) == 10


def test_a_damaged_shard_is_left_to_the_process_that_repairs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS, answer("hidden"), 4)
    next(group.folder.glob("000004-*.parquet")).write_bytes(b"")
    before = files(group.folder)
    with FileLock(group.folder / ".000004.lock"):
        group.collect(PROBLEMS[:4], answer("hidden"), 4)
    assert {name: data for name, data in files(group.folder).items() if not name.endswith(".lock")} == before
    assert capsys.readouterr().err == ""


def test_a_chunk_of_another_process_is_waited_for(tmp_path: Path) -> None:
    """Other chunks are collected first; then the owner of the lock releases it without having answered."""
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:1], answer(), 1)
    lock = FileLock(group.folder / ".000000.lock", thread_local=False)
    asked: list[int] = []

    def watched(problems: Sequence[Problem]) -> list[Record]:
        asked.append(problems[0].index)
        if problems[0].index == 8:
            lock.release()
        return answer()(problems)

    with lock:
        group.collect(PROBLEMS, watched, 4)
    assert asked == [4, 8, 1]
    assert len(group.read(PROBLEMS)) == 10


def test_shards_are_plain_parquet(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS, answer("topk"), 100)
    (file,) = group.folder.glob("*.parquet")
    assert pq.read_table(file).column("text").to_pylist() == [f"It is {i}." for i in range(10)]
