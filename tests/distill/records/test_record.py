"""Records come back from a store as they were written."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.problems.sets import Problem
from distill.records.record import Record
from distill.records.store import RecordStore
from interp.tables.errors import DamagedError
from tests.distill.records.cases import PROBLEMS, WHO, answer


@pytest.mark.parametrize(
    ("tier", "dtype"), [("text", None), ("topk", None), ("hidden", torch.float32), ("hidden", torch.bfloat16), ("dense", None)]
)
def test_records_are_read_bit_for_bit(tmp_path: Path, tier: str, dtype: torch.dtype | None) -> None:
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
def test_any_text_survives_a_round_trip(tmp_path: Path, question: str, said: str) -> None:
    problem = Problem(0, question, "#### 1")
    group = RecordStore(tmp_path / str(time.monotonic_ns())).group(WHO)
    group.collect([problem], lambda ps: [Record(0, question, "#### 1", (), (), said, "eos")], 4)
    (record,) = group.read([problem])
    assert (record.question, record.text) == (question, said)


@pytest.mark.parametrize("damage", ["gone", "empty"])
def test_tensors_that_are_lost_after_reading_are_an_error(tmp_path: Path, damage: str) -> None:
    group = RecordStore(tmp_path).group(WHO)
    group.collect(PROBLEMS, answer("hidden"), 10)
    records = group.read(PROBLEMS)
    (file,) = group.folder.glob("*.safetensors")
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"")
    for use in (lambda r: len(r.signals), lambda r: list(r.signals), lambda r: r.signals["hidden"], lambda r: dict(r.signals)):
        with pytest.raises(DamagedError, match=rf"{re.escape(str(file))}.*run collect again"):
            use(records[3])
