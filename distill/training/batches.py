"""Batches of texts, and the order in which a training reads them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from distill.sources.texts import Text, Texts

BLANK = Text((0,), 0, (), None, -1)
"""A text without scored rows. Blank texts fill the last step, so that every rank has a batch, and contribute no gradient."""


class TextStream(Dataset[Text]):
    """Every text for all epochs in reading order, padded with blank texts to a full final step.

    The shuffled order of an epoch sorts the problems by a hash of seed, epoch and problem, so it is the same for every condition, even
    if one of them has dropped a record. The given order is that of the problems.

    Args:
        texts: texts of one student.
        epochs: passes over the texts; a fraction ends in the middle of the last epoch.
        seed: seed of the order.
        step: texts of one step, over all ranks and accumulated batches.
        shuffled: shuffle the texts; otherwise keep the given order.
    """

    def __init__(self, texts: Texts, epochs: float, seed: int, step: int, *, shuffled: bool = True) -> None:
        def ordered(epoch: int) -> Sequence[Text]:
            if not shuffled:
                return texts.texts
            return sorted(texts.texts, key=lambda t: hashlib.sha256(f"{seed}:{epoch}:{t.index}".encode()).digest())

        stream = [text for epoch in range(math.ceil(epochs)) for text in ordered(epoch)]
        stream = stream[: max(1, round(epochs * len(texts.texts)))]
        self.stream = stream + [BLANK] * (-len(stream) % step)

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, at: int) -> Text:
        return self.stream[at]


def collate(
    texts: Sequence[Text], pad_id: int, *, signals: Sequence[str] = (), live: bool = False, padding_side: str = "right"
) -> dict[str, Any]:
    """Return one batch.

    Args:
        texts: at least one text.
        pad_id: id of the padding, which is never scored and never attended to.
        signals: names of the stored teacher signals to include.
        live: include what a live teacher reads.
        padding_side: right or left.

    Returns:
        input_ids and attention_mask [batch, token]; scored [row], positions in the flattened batch; targets [row]; the signals
        [row, ...]; for a live teacher, teacher_ids and teacher_mask [batch, token], and teacher_scored [row].
    """
    ids, mask, starts = _pad([t.ids for t in texts], pad_id, padding_side)
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    batch["scored"] = _scored_positions(texts, ids.shape[1], [start + t.first for start, t in zip(starts, texts, strict=True)])
    batch["targets"] = torch.tensor([target for t in texts for target in t.targets], dtype=torch.long)
    for name in signals:
        rows = [t.record.signals[name][: len(t.targets)] for t in texts if t.record is not None and t.targets]
        batch[name] = torch.cat(rows) if rows else None
    if live:
        ids, mask, starts = _pad([t.teacher_ids or (pad_id,) for t in texts], pad_id, padding_side)
        batch["teacher_ids"], batch["teacher_mask"] = ids, mask
        firsts = [start + t.teacher_first for start, t in zip(starts, texts, strict=True)]
        batch["teacher_scored"] = _scored_positions(texts, ids.shape[1], firsts)
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


def _scored_positions(texts: Sequence[Text], width: int, firsts: Sequence[int]) -> Tensor:
    """Return the position of every scored hidden state in the flattened batch."""
    flat = [number * width + first + j for number, (t, first) in enumerate(zip(texts, firsts, strict=True)) for j in range(len(t.targets))]
    return torch.tensor(flat, dtype=torch.long)
