"""What `inspect` shows of a store."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distill.records.inspect import sample_rows, summarize_store
from distill.records.store import RecordStore
from interp.tables.errors import DamagedError, StudyError
from tests.distill.records.cases import PROBLEMS, WHO, answer, files


def test_a_description_of_another_group_is_refused(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    group = store.group(WHO)
    group.collect(PROBLEMS, answer(), 4)
    place = group.folder / "group.json"
    place.write_text(place.read_text("utf-8").replace("Be clear.", "Be brief."), "utf-8")  # edited by hand
    with pytest.raises(DamagedError, match=rf"{re.escape(str(place))} is damaged .*another folder.*run collect again"):
        summarize_store(store, lambda *_: True)


def test_summary_has_counts_lengths_and_accuracy(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    group = store.group(WHO)
    group.collect(PROBLEMS, answer("hidden"), 4)
    (row,) = summarize_store(store, lambda text, reference: text == "It is 4." and reference == "#### 4").to_dict("records")
    lengths = [3 + i % 4 for i in range(10)]
    assert (row["records"], row["tokens_mean"], row["tokens_max"]) == (10, sum(lengths) / 10, 6)
    assert (row["truncated"], row["accuracy"], row["empty"], row["damaged"], row["signal"]) == (0.1, 0.1, 0, 0, "hidden")
    assert row["megabytes"] == pytest.approx(sum(map(len, files(group.folder).values())) / 1e6)
    assert "It is 0." in sample_rows(group, 2)[0]
    shard = next(group.folder.glob("000000-*.parquet"))
    shard.write_bytes(b"PAR1")
    assert summarize_store(store, lambda *_: True)[["records", "damaged"]].to_numpy().tolist() == [[6, 1]]
    assert [line.partition("]")[0] for line in sample_rows(group, 2)] == [f"\n[{group.key}, problem {i}" for i in (4, 5)]
    with pytest.raises(StudyError, match="not a folder of records"):
        summarize_store(RecordStore(tmp_path / "none"), lambda *_: True)
