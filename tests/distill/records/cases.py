"""What the tests of records share: problems, a teacher, and the content of a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from distill.problems.sets import Problem
from distill.records.record import Record

WHO: dict[str, Any] = {
    "strategy": {"place": "before", "text": "Be clear."},
    "teacher": {"name": "tiny", "weights_sha256": "abc"},
    "signal": {"tier": "hidden", "top_k": None},
}


PROBLEMS = [Problem(i, f"How many are {i}?", f"#### {i}") for i in range(10)]


def answer(tier: str = "text", dtype: torch.dtype = torch.float32) -> Callable[[Sequence[Problem]], list[Record]]:
    """Return a teacher whose answers depend only on the problem."""

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


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :]
