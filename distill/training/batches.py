"""TODO_DOC distill/training/batches.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distill.sources.texts import Text

BLANK = Text((0,), 0, (), None, -1)
"""A text without scored rows: it fills the last batch, so that every rank has one, and changes no gradient."""


def collate(
    texts: Sequence[Text], pad_id: int, *, signals: Sequence[str] = (), live: bool = False, padding_side: str = "right"
) -> dict[str, Any]:
    """One batch.

    Args:
        texts: at least one.
        pad_id: fills up; never scored, never attended to.
        signals: names of the teacher's stored signals to take along.
        live: take along what a live teacher reads.
        padding_side: right or left.

    Returns:
        input_ids and attention_mask [batch, token]; scored [row], positions in the flattened batch; targets [row]; the signals
        [row, ...]; for a live teacher teacher_ids, teacher_mask [batch, token] and teacher_scored [row].
    """
    ids, mask, starts = _pad([t.ids for t in texts], pad_id, padding_side)
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    batch["scored"] = _rows(texts, ids.shape[1], [start + t.first for start, t in zip(starts, texts, strict=True)])
    batch["targets"] = torch.tensor([target for t in texts for target in t.targets], dtype=torch.long)
    for name in signals:
        rows = [t.record.signals[name][: len(t.targets)] for t in texts if t.record is not None and t.targets]
        batch[name] = torch.cat(rows) if rows else None
    if live:
        asked, seen, begins = _pad([t.teacher_ids or (pad_id,) for t in texts], pad_id, padding_side)
        batch["teacher_ids"], batch["teacher_mask"] = asked, seen
        batch["teacher_scored"] = _rows(texts, asked.shape[1], [begin + t.teacher_first for begin, t in zip(begins, texts, strict=True)])
    return batch


def _pad(rows: Sequence[Sequence[int]], pad_id: int, side: str) -> tuple[Tensor, Tensor, list[int]]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    starts = [width - len(row) if side == "left" else 0 for row in rows]
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[number, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
        mask[number, start : start + len(row)] = 1
    return ids, mask, starts


def _rows(texts: Sequence[Text], width: int, firsts: Sequence[int]) -> Tensor:
    """Positions in the flattened batch of every scored hidden state."""
    flat = [number * width + first + j for number, (t, first) in enumerate(zip(texts, firsts, strict=True)) for j in range(len(t.targets))]
    return torch.tensor(flat, dtype=torch.long)
