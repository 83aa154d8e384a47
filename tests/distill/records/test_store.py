"""A store of records: its groups, what is asked and read, and output heads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from distill.problems.sets import Problem
from distill.records.record import Record
from distill.records.store import RecordStore
from interp.checkpoints.unembedding import OutputHead
from interp.tables.errors import DamagedError, StudyError
from tests.distill.records.cases import PROBLEMS, WHO, answer, files, flip


def test_key_depends_on_the_text_of_a_strategy_and_not_on_its_name(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    assert store.group(WHO).key == store.group(dict(reversed(WHO.items()))).key
    assert store.group(WHO).key != store.group({**WHO, "strategy": {"place": "before", "text": "Be brief."}}).key


def test_stored_answers_are_not_asked_again(tmp_path: Path) -> None:
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
    moved = Problem(77, PROBLEMS[4].question, PROBLEMS[4].answer)
    assert [r.index for r in group.read([moved])] == [77]  # the position in the set that is read


@pytest.mark.parametrize("shard_rows", [1, 4])
def test_a_repeated_problem_is_asked_once(tmp_path: Path, shard_rows: int) -> None:
    again = Problem(1, PROBLEMS[0].question, PROBLEMS[0].answer)
    said = iter(["one", "two", "three"])  # a sampling teacher, which answers differently each time

    def sampled(problems: Sequence[Problem]) -> list[Record]:
        return [Record(p.index, p.question, p.answer, (), (), next(said), "eos") for p in problems]

    group = RecordStore(tmp_path).group(WHO)
    group.collect([PROBLEMS[0], again, PROBLEMS[2]], sampled, shard_rows)
    assert [(r.index, r.text) for r in group.read([PROBLEMS[0], again, PROBLEMS[2]])] == [(0, "one"), (1, "one"), (2, "two")]


def test_missing_answers_are_named(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:4], answer(), 4)
    with pytest.raises(StudyError, match=r"lacks 6 of 10 answers, the first to problem 4 .*run collect"):
        group.read(PROBLEMS)


def test_a_missing_group_is_explained_by_the_most_similar_one(tmp_path: Path) -> None:
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
    with pytest.raises(StudyError, match="do not match"):
        group.collect(PROBLEMS, lambda problems: answer()(problems)[::-1], 4)
    with pytest.raises(StudyError, match=r"3 answers .* 4 problems"):
        group.collect(PROBLEMS, lambda problems: answer()(problems)[:3], 4)
    assert not list(group.folder.glob("*.parquet"))


def test_contradicting_shards_are_refused(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS[:4], answer(), 4)
    other = RecordStore(tmp_path / "b").group(WHO)
    other.collect(PROBLEMS[:2], lambda ps: [Record(p.index, p.question, p.answer, (), (), "else", "eos") for p in ps], 4)
    (shard,) = other.folder.glob("*.parquet")
    shard.rename(group.folder / shard.name)
    with pytest.raises(StudyError, match="another answer to problem 0 than another shard"):
        group.read(PROBLEMS[:4])


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file"):
        RecordStore(tmp_path / "file").group(WHO).collect(PROBLEMS, answer(), 4)


def test_order_of_shards_and_rows_does_not_matter(tmp_path: Path) -> None:
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


def test_half_of_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    group = RecordStore(tmp_path).group(WHO)
    with pytest.raises(StudyError, match="surrogate"):
        group.collect(PROBLEMS[:1], lambda ps: [Record(0, ps[0].question, ps[0].answer, (), (), "\ud83d", "eos")], 4)
    assert not list(group.folder.glob("0*"))


def test_a_damaged_description_is_rewritten(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    group = store.group(WHO)
    group.collect(PROBLEMS, answer(), 4)
    whole = files(group.folder)
    (group.folder / "group.json").write_bytes(b'{"format": 1')
    with pytest.raises(DamagedError, match=r"group\.json is damaged .*run collect again.*keeps the answers"):
        store.groups()
    store.group(dict(reversed(WHO.items()))).collect(PROBLEMS, lambda _: pytest.fail("all answers are there"), 4)
    assert files(group.folder) == whole
    assert [g.identity for g in store.groups()] == [WHO]


def test_no_problems_write_nothing(tmp_path: Path) -> None:
    RecordStore(tmp_path).group(WHO).collect([], answer(), 4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "head", [OutputHead(torch.randn(7, 4)), OutputHead(torch.randn(7, 4).bfloat16(), torch.randn(7).bfloat16(), 0.5, 30.0)]
)
def test_head_is_read_as_it_was_written(tmp_path: Path, head: OutputHead) -> None:
    store = RecordStore(tmp_path)
    store.write_head(head, WHO["teacher"])
    read = store.read_head(WHO["teacher"])
    assert torch.equal(read.weight, head.weight)
    assert (read.bias is None) == (head.bias is None)
    assert head.bias is None or (read.bias is not None and torch.equal(read.bias, head.bias))
    assert (read.scale, read.softcap) == (head.scale, head.softcap)


def test_a_missing_head_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"missing.*collect"):
        RecordStore(tmp_path).read_head({"name": "x"})


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped weight", "flipped scale"])
def test_a_damaged_head_is_found_and_repaired(tmp_path: Path, damage: str) -> None:
    store, head = RecordStore(tmp_path), OutputHead(torch.randn(7, 4), None, 0.25, 30.0)
    store.write_head(head, {"name": "x"})
    (file,) = (tmp_path / "heads").iterdir()
    content = file.read_bytes()
    at = content.index(b"0.25") + 2 if damage == "flipped scale" else len(content) - 3
    file.write_bytes({"truncated": content[:40], "empty": b""}.get(damage, flip(content, at)))
    with pytest.raises(DamagedError, match=rf"{re.escape(str(file))} is damaged.*collect"):
        store.read_head({"name": "x"})
    (file.parent / f".{file.name.partition('-')[0]}.safetensors.draft-1").mkdir()  # left by a killed process of version 0.1
    store.write_head(head, {"name": "x"})
    assert files(file.parent) == {file.name: content}
    assert torch.equal(store.read_head({"name": "x"}).weight, head.weight)
    with pytest.raises(DamagedError, match="missing"):
        store.read_head({"name": "y"})
