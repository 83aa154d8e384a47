from __future__ import annotations

import errno
import hashlib
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distill.records.store
from distill.problems.sets import Problem
from distill.records.inspect import sample_rows, summary
from distill.records.record import Record
from distill.records.store import RecordStore
from interp.checkpoints.unembedding import OutputHead
from interp.tables.errors import StudyError

WHO: dict[str, Any] = {
    "strategy": {"place": "before", "text": "Be clear."},
    "teacher": {"name": "tiny", "weights_sha256": "abc"},
    "signal": {"tier": "hidden", "top_k": None},
}
PROBLEMS = [Problem(i, f"How many are {i}?", f"#### {i}") for i in range(10)]


def answer(tier: str = "text", dtype: torch.dtype = torch.float32) -> Callable[[Sequence[Problem]], list[Record]]:
    """A teacher whose answers depend on the problem alone."""

    def one(p: Problem) -> Record:
        random = torch.Generator().manual_seed(p.index)
        rows = 3 + p.index % 4
        signals = {
            "text": {},
            "topk": {
                "topk_ids": torch.randint(0, 99, (rows, 5), generator=random, dtype=torch.int32),
                "topk_log_probs": -torch.rand(rows, 5, generator=random),
            },
            "hidden": {"hidden": torch.randn(rows, 8, generator=random).to(dtype)},
            "dense": {"dense_log_probs": -torch.rand(rows, 11, generator=random)},
        }[tier]
        return Record(
            p.index,
            p.question,
            p.answer,
            (1, 2, p.index),
            tuple(range(rows)),
            f"It is {p.index}.",
            "length" if p.index == 3 else "eos",
            signals,
        )

    return lambda problems: [one(p) for p in problems]


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("tier", "dtype"), [("text", None), ("topk", None), ("hidden", torch.float32), ("hidden", torch.bfloat16), ("dense", None)]
)
def test_what_is_written_is_read_to_the_bit(tmp_path: Path, tier: str, dtype: torch.dtype | None) -> None:
    teacher = answer(tier, dtype or torch.float32)
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS, teacher, 4)
    for record, expected in zip(group.read(PROBLEMS[::-1]), teacher(PROBLEMS[::-1]), strict=True):
        for name in ("index", "question", "reference", "prompt_ids", "response_ids", "text", "finish"):
            assert getattr(record, name) == getattr(expected, name)
        assert set(record.signals) == set(expected.signals)
        for name, rows in expected.signals.items():
            assert record.signals[name].dtype == rows.dtype
            assert torch.equal(record.signals[name], rows)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text("aé中🙂\u202e\n\x00", max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_any_text_comes_back(tmp_path: Path, question: str, said: str) -> None:
    problem = Problem(0, question, "#### 1")
    group = RecordStore(tmp_path / str(time.monotonic_ns())).group(WHO)
    group.collect([problem], lambda ps: [Record(0, question, "#### 1", (), (), said, "eos")], 4)
    (record,) = group.read([problem])
    assert (record.question, record.text) == (question, said)


def test_names_of_strategies_play_no_part_and_texts_do(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    assert store.group(WHO).key == store.group(dict(reversed(WHO.items()))).key
    assert store.group(WHO).key != store.group({**WHO, "strategy": {"place": "before", "text": "Be brief."}}).key


def test_what_is_there_is_not_asked_again(tmp_path: Path) -> None:
    asked: list[int] = []
    teacher = answer("hidden")

    def watched(problems: Sequence[Problem]) -> list[Record]:
        asked.extend(p.index for p in problems)
        return teacher(problems)

    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:6], watched, 4)
    group.collect(PROBLEMS, watched, 4)
    group.collect(PROBLEMS[2:5], watched, 4)
    assert asked == list(range(10))
    assert [r.index for r in group.read(PROBLEMS)] == list(range(10))
    assert [r.index for r in group.read([Problem(77, PROBLEMS[4].question, PROBLEMS[4].answer)])] == [
        77
    ]  # its number where it is asked for


@pytest.mark.parametrize("shard_rows", [1, 4])
def test_a_problem_that_stands_twice_is_asked_once(tmp_path: Path, shard_rows: int) -> None:
    again = Problem(1, PROBLEMS[0].question, PROBLEMS[0].answer)
    said = iter(["one", "two", "three"])  # a sampling teacher, which says something else each time

    def sampled(problems: Sequence[Problem]) -> list[Record]:
        return [Record(p.index, p.question, p.answer, (), (), next(said), "eos") for p in problems]

    group = RecordStore(tmp_path).group(WHO)
    group.collect([PROBLEMS[0], again, PROBLEMS[2]], sampled, shard_rows)
    assert [(r.index, r.text) for r in group.read([PROBLEMS[0], again, PROBLEMS[2]])] == [(0, "one"), (1, "one"), (2, "two")]


def test_who_may_read_the_folder_may_read_its_files(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    before = os.umask(0o027)
    try:
        store.group(WHO).collect(PROBLEMS, answer("hidden"), 4)
        store.write_head(OutputHead(torch.randn(7, 4)), WHO["teacher"])
    finally:
        os.umask(before)
    modes = {file.suffix: file.stat().st_mode & 0o777 for file in tmp_path.rglob("*.*")}
    assert modes == {".json": 0o640, ".parquet": 0o640, ".safetensors": 0o640}


def test_missing_answers_are_named(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:4], answer(), 4)
    with pytest.raises(StudyError, match=r"lacks 6 of 10 answers, the first to problem 4 .*run collect"):
        group.read(PROBLEMS)


def test_a_store_of_another_study_says_what_it_holds(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    with pytest.raises(StudyError, match="holds no records"):
        store.group(WHO).read(PROBLEMS)
    store.group(WHO).collect(PROBLEMS, answer(), 4)
    other = {**WHO, "teacher": {"name": "wide", "weights_sha256": "def"}}
    with pytest.raises(StudyError) as raised:
        store.group(other).read(PROBLEMS)
    for words in ("tiny, hidden: 'Be clear.'", "teacher.name: was 'tiny', is 'wide'", "run collect"):
        assert words in str(raised.value)


def test_answers_to_other_problems_are_refused(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    with pytest.raises(StudyError, match="not those"):
        group.collect(PROBLEMS, lambda problems: answer()(problems)[::-1], 4)
    with pytest.raises(StudyError, match=r"3 answers .* 4 problems"):
        group.collect(PROBLEMS, lambda problems: answer()(problems)[:3], 4)
    assert not list(group.folder.glob("*.parquet"))


# --- damage ---------------------------------------------------------------------------------------------------------


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :]


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "short", "empty", "flipped early", "flipped late", "gone", "foreign"])
def test_damage_is_found_named_and_redone(tmp_path: Path, suffix: str, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    if (suffix, damage) == (".parquet", "gone"):
        return  # then nothing is there: its answers are missing
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
        os.utime(hurt, ns=(1, 1))  # later than the clock of the file system can tell
    with pytest.raises(StudyError, match=rf"{re.escape(hurt.name)}.*run collect again") as raised:
        [r.signals["hidden"] for r in group.read(PROBLEMS)]
    assert str(group.folder) in str(raised.value)
    group.collect(PROBLEMS, answer("hidden"), 4)
    assert hurt.name in capsys.readouterr().err
    assert {name: data for name, data in files(group.folder).items() if not name.endswith(".damaged")} == whole
    assert [
        torch.equal(r.signals["hidden"], e.signals["hidden"]) for r, e in zip(group.read(PROBLEMS), answer("hidden")(PROBLEMS), strict=True)
    ] == [True] * 10


def test_other_versions_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS, answer(), 4)
    monkeypatch.setattr(distill.records.store, "FORMAT", 2)
    with pytest.raises(StudyError, match="another version"):
        group.read(PROBLEMS)


def test_shards_that_contradict_each_other(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:4], answer(), 4)
    other = RecordStore(tmp_path / "b").group(WHO)
    other.collect(PROBLEMS[:2], lambda ps: [Record(p.index, p.question, p.answer, (), (), "else", "eos") for p in ps], 4)
    (shard,) = other.folder.glob("*.parquet")
    shard.rename(group.folder / shard.name)
    with pytest.raises(StudyError, match="otherwise"):
        group.read(PROBLEMS[:4])


@pytest.mark.parametrize("where", ["parquet", "safetensors", "fsync", "replace"])
@pytest.mark.parametrize("why", [errno.ENOSPC, errno.EACCES])
def test_a_full_or_locked_disk_tears_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, why: int) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:4], answer("hidden"), 4)
    before = files(group.folder)

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(why, os.strerror(why))

    with monkeypatch.context() as patch:
        if where == "parquet":
            patch.setattr(distill.records.store.pq, "write_table", refused)
        elif where == "safetensors":
            patch.setattr(distill.records.store, "save_file", refused)
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
def test_writers_that_the_system_stops_half_way(tmp_path: Path, tier: str) -> None:
    """A limit on the size of files: the system itself refuses what pyarrow (topk) and safetensors (hidden) write."""
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


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file"):
        RecordStore(tmp_path / "file").group(WHO).collect(PROBLEMS, answer(), 4)


def test_damage_that_keeps_size_and_time_of_change(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS, answer("hidden"), 10)
    group.read(PROBLEMS)  # so its hash is known in this process
    (file,) = group.folder.glob("*.safetensors")
    was = file.stat()
    time.sleep(0.05)  # the file system's clock ticks
    content = file.read_bytes()
    with file.open("r+b") as same:
        same.write(flip(content, len(content) - 1))
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (was.st_mtime_ns, was.st_ino)
    with pytest.raises(StudyError, match=re.escape(file.name)):
        group.read(PROBLEMS)


@pytest.mark.parametrize("damage", ["gone", "empty"])
def test_states_that_are_lost_after_reading(tmp_path: Path, damage: str) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS, answer("hidden"), 10)
    records = group.read(PROBLEMS)
    (file,) = group.folder.glob("*.safetensors")
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"")
    for use in (lambda r: len(r.signals), lambda r: list(r.signals), lambda r: r.signals["hidden"], lambda r: dict(r.signals)):
        with pytest.raises(StudyError, match=rf"{re.escape(str(file))}.*run collect again"):
            use(records[3])


def test_order_of_shards_and_rows_plays_no_part(tmp_path: Path) -> None:
    hidden, topk = RecordStore(tmp_path / "a").group(WHO), RecordStore(tmp_path / "b").group(WHO)
    hidden.collect(PROBLEMS, answer("hidden"), 4)
    topk.collect(PROBLEMS, answer("topk"), 4)
    for file in sorted(hidden.folder.glob("*-*")):  # shards in another order
        file.rename(file.with_name(f"{900 - int(file.name[:6]):06d}{file.name[6:]}"))
    for file in sorted(topk.folder.glob("*.parquet")):  # rows in another order
        table = pq.read_table(file)
        pq.write_table(table.take(list(range(len(table)))[::-1]), file)
        file.rename(file.with_name(f"{file.stem.rpartition('-')[0]}-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}.parquet"))
    for group, tier in ((hidden, "hidden"), (topk, "topk")):
        for record, expected in zip(group.read(PROBLEMS), answer(tier)(PROBLEMS), strict=True):
            assert (record.index, record.text, record.response_ids) == (expected.index, expected.text, expected.response_ids)
            assert all(torch.equal(record.signals[name], rows) for name, rows in expected.signals.items())


def test_half_of_a_surrogate_pair(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    with pytest.raises(StudyError, match="surrogate"):
        group.collect(PROBLEMS[:1], lambda ps: [Record(0, ps[0].question, ps[0].answer, (), (), "\ud83d", "eos")], 4)
    assert not list(group.folder.glob("0*"))


def test_a_damaged_description_is_written_anew(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    group = store.group(WHO)
    group.collect(PROBLEMS, answer(), 4)
    whole = files(group.folder)
    (group.folder / "group.json").write_bytes(b'{"format": 1')
    with pytest.raises(StudyError, match=r"group\.json is damaged .*run collect again.*keeps the answers"):
        store.groups()
    store.group(dict(reversed(WHO.items()))).collect(PROBLEMS, lambda _: pytest.fail("all answers are there"), 4)
    assert files(group.folder) == whole
    assert [g.identity for g in store.groups()] == [WHO]


def test_a_description_of_another_folder(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    group = store.group(WHO)
    group.collect(PROBLEMS, answer(), 4)
    place = group.folder / "group.json"
    place.write_text(place.read_text("utf-8").replace("Be clear.", "Be brief."), "utf-8")  # edited by hand
    with pytest.raises(StudyError, match=rf"{re.escape(str(place))} is damaged .*another folder.*run collect again"):
        summary(store, lambda *_: True)


def test_no_problems_leave_nothing(tmp_path: Path) -> None:
    RecordStore(tmp_path).group(WHO).collect([], answer(), 4)
    assert not list(tmp_path.iterdir())


# --- processes ------------------------------------------------------------------------------------------------------

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
    return records.Record(p.index, p.question, p.answer, (1,), (2,) * 30, "said", "eos", {{"hidden": rows}})


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
    # kill -9 at the n-th write (half of it done), fsync or rename
    left = [moment]

    def watched(owner, name, writes):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0 and writes:
                real(*args, **kwargs)
                os.truncate(args[1], 100)
                args[1].with_name(".tmpZq3x").write_bytes(b"half")  # safetensors' own draft
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, name, call)

    watched(os, "fsync", False)
    watched(Path, "replace", False)
    watched(records, "save_file", True)
    watched(records.pq, "write_table", True)
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
    said = subprocess.run(
        [sys.executable, str(file), what, str(folder)], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    return said.stdout.strip()


def test_killed_at_every_moment_and_gone_on_with(tmp_path: Path) -> None:
    """Each write (half done), fsync and rename of a collection: group.json (3 moments), and two shards with states (2 x 4 each)."""
    assert int(run_script(tmp_path, "kill")) == 3 + 2 * 2 * 4


def test_writers_share_the_work(tmp_path: Path) -> None:
    assert run_script(tmp_path, "two") == "done"


def test_locks_of_others_stay_and_leftovers_go(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:4], answer(), 4)
    dead = [
        group.folder / name for name in (".000004.lock", ".000004-0123.parquet.draft-1", ".000096.lock", ".000096-4.safetensors.draft-1")
    ]
    for file in dead:
        if ".draft-" in file.name:
            file.mkdir()
            (file / ".tmpZq3x").write_text("half")
        else:
            file.write_text("")
    held = group.folder / ".000008.lock"
    with FileLock(held):  # another process has a chunk at work that is not ours
        group.collect(PROBLEMS[:8], answer(), 4)
        assert held.exists()
    assert not [file for file in dead if file.exists()]
    group.collect(PROBLEMS, answer(), 4)
    assert not list(group.folder.glob(".*"))


@pytest.mark.parametrize(("shard_rows", "locks"), [(8, False), (10, True)])
def test_states_whose_rows_never_came_go(tmp_path: Path, shard_rows: int, locks: bool) -> None:
    """A process is killed between a shard's two files; the next one cuts shards otherwise."""
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:1], answer("hidden"), 1)
    kept = files(group.folder)
    left = group.folder / ("000004-0123456789ab.safetensors" if locks else "000000-0123456789ab.safetensors")
    left.write_bytes(b"states")
    if locks:  # a kill leaves the lock file, too
        (group.folder / ".000004.lock").write_text("")
    group.collect(PROBLEMS, answer("hidden"), shard_rows)
    assert not left.exists()
    assert not list(group.folder.glob(".*"))
    after = files(group.folder)
    assert {name: after[name] for name in kept} == kept
    assert len(group.read(PROBLEMS)) == 10


def test_a_damaged_shard_that_another_process_redoes_is_left_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS, answer("hidden"), 4)
    next(group.folder.glob("000004-*.parquet")).write_bytes(b"")
    before = files(group.folder)
    with FileLock(group.folder / ".000004.lock"):
        group.collect(PROBLEMS[:4], answer("hidden"), 4)
    assert {name: data for name, data in files(group.folder).items() if not name.endswith(".lock")} == before
    assert capsys.readouterr().err == ""


def test_a_chunk_that_another_process_has_at_work_is_waited_for(tmp_path: Path) -> None:
    """The others are done first; then its owner lets go without having answered."""
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


# --- head, summary --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head", [OutputHead(torch.randn(7, 4)), OutputHead(torch.randn(7, 4).bfloat16(), torch.randn(7).bfloat16(), 0.5, 30.0)]
)
def test_the_head_comes_back(tmp_path: Path, head: OutputHead) -> None:
    store = RecordStore(tmp_path)
    store.write_head(head, WHO["teacher"])
    read = store.read_head(WHO["teacher"])
    assert torch.equal(read.weight, head.weight)
    assert (read.bias is None) == (head.bias is None)
    assert head.bias is None or (read.bias is not None and torch.equal(read.bias, head.bias))
    assert (read.scale, read.softcap) == (head.scale, head.softcap)


def test_a_head_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"missing.*collect"):
        RecordStore(tmp_path).read_head({"name": "x"})


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped weight", "flipped scale"])
def test_a_damaged_head_is_found_and_redone(tmp_path: Path, damage: str) -> None:
    store, head = RecordStore(tmp_path), OutputHead(torch.randn(7, 4), None, 0.25, 30.0)
    store.write_head(head, {"name": "x"})
    (file,) = (tmp_path / "heads").iterdir()
    content = file.read_bytes()
    at = content.index(b"0.25") + 2 if damage == "flipped scale" else len(content) - 3
    file.write_bytes({"truncated": content[:40], "empty": b""}.get(damage, flip(content, at)))
    with pytest.raises(StudyError, match=rf"{re.escape(str(file))} is damaged.*collect"):
        store.read_head({"name": "x"})
    (file.parent / f".{file.name.partition('-')[0]}.safetensors.draft-1").mkdir()  # of a killed process
    store.write_head(head, {"name": "x"})
    assert files(file.parent) == {file.name: content}
    assert torch.equal(store.read_head({"name": "x"}).weight, head.weight)
    with pytest.raises(StudyError, match="missing"):
        store.read_head({"name": "y"})


def test_summary_tells_counts_lengths_and_accuracy(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    group = store.group(WHO)
    group.collect(PROBLEMS, answer("hidden"), 4)
    (row,) = summary(store, lambda text, reference: text == "It is 4." and reference == "#### 4").to_dict("records")
    lengths = [3 + i % 4 for i in range(10)]
    assert (row["records"], row["tokens_mean"], row["tokens_max"]) == (10, sum(lengths) / 10, 6)
    assert (row["cut"], row["accuracy"], row["empty"], row["damaged"], row["signal"]) == (0.1, 0.1, 0, 0, "hidden")
    assert row["megabytes"] == pytest.approx(sum(map(len, files(group.folder).values())) / 1e6)
    assert "It is 0." in sample_rows(group, 2)[0]
    shard = next(group.folder.glob("000000-*.parquet"))
    shard.write_bytes(b"PAR1")
    assert summary(store, lambda *_: True)[["records", "damaged"]].to_numpy().tolist() == [[6, 1]]
    assert [line.partition("]")[0] for line in sample_rows(group, 2)] == [f"\n[{group.key}, problem {i}" for i in (4, 5)]
    with pytest.raises(StudyError, match="no folder of records"):
        summary(RecordStore(tmp_path / "none"), lambda *_: True)


def test_files_are_plain_parquet(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS, answer("topk"), 100)
    (file,) = group.folder.glob("*.parquet")
    assert pq.read_table(file).column("text").to_pylist() == [f"It is {i}." for i in range(10)]
