from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distill.records
from distill.losses import Head
from distill.problems import Problem
from distill.records import Record, RecordError, RecordStore, sample_rows, summary

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


def test_missing_answers_are_named(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:4], answer(), 4)
    with pytest.raises(RecordError, match=r"lacks 6 of 10 answers, the first to problem 4 .*run collect"):
        group.read(PROBLEMS)


def test_a_store_of_another_study_says_what_it_holds(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    with pytest.raises(RecordError, match="holds no records"):
        store.group(WHO).read(PROBLEMS)
    store.group(WHO).collect(PROBLEMS, answer(), 4)
    other = {**WHO, "teacher": {"name": "wide", "weights_sha256": "def"}}
    with pytest.raises(RecordError) as raised:
        store.group(other).read(PROBLEMS)
    for words in ("tiny, hidden: 'Be clear.'", "teacher.name: was 'tiny', is 'wide'", "run collect"):
        assert words in str(raised.value)


def test_answers_to_other_problems_are_refused(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    with pytest.raises(RecordError, match="not those"):
        group.collect(PROBLEMS, lambda problems: answer()(problems)[::-1], 4)
    with pytest.raises(RecordError, match=r"3 answers .* 4 problems"):
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
    with pytest.raises(RecordError, match=rf"{re.escape(hurt.name)}.*run collect again") as raised:
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
    monkeypatch.setattr(distill.records, "FORMAT", 2)
    with pytest.raises(RecordError, match="another version"):
        group.read(PROBLEMS)


def test_shards_that_contradict_each_other(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:4], answer(), 4)
    other = RecordStore(tmp_path / "b").group(WHO)
    other.collect(PROBLEMS[:2], lambda ps: [Record(p.index, p.question, p.answer, (), (), "else", "eos") for p in ps], 4)
    (shard,) = other.folder.glob("*.parquet")
    shard.rename(group.folder / shard.name)
    with pytest.raises(RecordError, match="otherwise"):
        group.read(PROBLEMS[:4])


@pytest.mark.parametrize("where", ["parquet", "safetensors", "fsync", "group"])
def test_a_full_disk_tears_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:4], answer("hidden"), 4)
    before = files(group.folder)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "parquet":
            patch.setattr(distill.records.pq, "write_table", full)
        elif where == "safetensors":
            patch.setattr(distill.records, "save_file", full)
        elif where == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            group.collect(PROBLEMS, answer("hidden"), 4)
    after = files(group.folder)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if "draft" in name]
    group.collect(PROBLEMS, answer("hidden"), 4)
    assert len(group.read(PROBLEMS)) == 10


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file"):
        RecordStore(tmp_path / "file").group(WHO).collect(PROBLEMS, answer(), 4)


# --- processes ------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from distill.problems import Problem
from distill.records import Record, RecordStore

def answer(problems):
    time.sleep(0.15)
    made = []
    for p in problems:
        rows = torch.randn(300, 64, generator=torch.Generator().manual_seed(p.index))
        made.append(Record(p.index, p.question, p.answer, (1,), tuple(range(300)), "said", "eos", {{"hidden": rows}}))
    return made

problems = [Problem(i, f"How many are {{i}}?", "#### 1") for i in range(18)]
print("ready", flush=True)
RecordStore(sys.argv[1]).group({{"teacher": {{"name": "slow"}}}}).collect(problems, answer, 3)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "collect.py"
    file.write_text(SCRIPT.format(root=str(Path(__file__).parents[2])))
    return file


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def group_files(store: Path) -> dict[str, bytes]:
    (group,) = (p.parent for p in store.glob("*/group.json"))
    return files(group)


def test_killed_at_any_moment_and_gone_on_with(tmp_path: Path, script: Path) -> None:
    subprocess.run([sys.executable, str(script), str(tmp_path / "whole")], check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    store = tmp_path / "killed"
    for delay in (0.16, 0.3, 0.01):
        process = subprocess.Popen([sys.executable, str(script), str(store)], env=ENVIRONMENT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    left = list(store.glob("*/.*draft*"))
    for group in store.glob("*/group.json"):  # as if killed while it wrote
        left.append(group.parent / ".000000-feed.parquet.draft-1")
    subprocess.run([sys.executable, str(script), str(store)], check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    assert group_files(store) == group_files(tmp_path / "whole")


def test_two_writers_share_the_work(tmp_path: Path, script: Path) -> None:
    subprocess.run([sys.executable, str(script), str(tmp_path / "one")], check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    both = [
        subprocess.Popen([sys.executable, str(script), str(tmp_path / "two")], env=ENVIRONMENT, stdout=subprocess.DEVNULL) for _ in range(2)
    ]
    assert [process.wait() for process in both] == [0, 0]
    assert group_files(tmp_path / "two") == group_files(tmp_path / "one")


# --- head, summary --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [Head(torch.randn(7, 4)), Head(torch.randn(7, 4).bfloat16(), torch.randn(7).bfloat16(), 0.5, 30.0)])
def test_the_head_comes_back(tmp_path: Path, head: Head) -> None:
    store = RecordStore(tmp_path)
    store.write_head(head, WHO["teacher"])
    read = store.read_head(WHO["teacher"])
    assert torch.equal(read.weight, head.weight)
    assert (read.bias is None) == (head.bias is None)
    assert head.bias is None or (read.bias is not None and torch.equal(read.bias, head.bias))
    assert (read.scale, read.softcap) == (head.scale, head.softcap)


def test_a_head_that_is_missing_or_damaged(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    with pytest.raises(RecordError, match=r"missing.*collect"):
        store.read_head({"name": "x"})
    store.write_head(Head(torch.randn(7, 4)), {"name": "x"})
    (file,) = (tmp_path / "heads").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(RecordError, match=r"damaged.*collect"):
        store.read_head({"name": "x"})


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
    shard = next(group.folder.glob("*.parquet"))
    shard.write_bytes(b"PAR1")
    assert summary(store, lambda *_: True)["damaged"].tolist() == [1]
    with pytest.raises(RecordError, match="no folder of records"):
        summary(RecordStore(tmp_path / "none"), lambda *_: True)


def test_files_are_plain_parquet(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS, answer("topk"), 100)
    (file,) = group.folder.glob("*.parquet")
    assert pq.read_table(file).column("text").to_pylist() == [f"It is {i}." for i in range(10)]
