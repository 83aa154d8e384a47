"""One answer of a teacher with its signals, and its row in a shard."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.tables.errors import DamagedError

RECORD_FORMAT = 1
"""Version of the files of a store; part of a group's key."""

TENSOR_SIGNALS = ("hidden", "dense_log_probs")
"""Signals that are stored in safetensors files; the others are columns."""

RECORD_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("index", pa.int64()),
        ("question", pa.string()),
        ("reference", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("finish", pa.string()),
        ("topk_ids", pa.list_(pa.int32())),
        ("topk_log_probs", pa.list_(pa.float32())),
        ("k", pa.int32()),
    ]
)
"""Columns of a shard's Parquet file."""


@dataclass(frozen=True)
class Record:
    """One answer of a teacher to one problem, with its signals.

    Attributes:
        index: the problem's position in its source.
        question: the problem's text.
        reference: the reference solution.
        prompt_ids: the teacher's prompt, in its tokenizer; empty if the teacher does not report it.
        response_ids: the response's tokens, including the end-of-text token if the teacher ended it; empty if only text is known.
        text: the response, without end-of-text token.
        finish: "eos" (the teacher ended it) or "length" (truncated).
        signals: by name, with one row for each scored token: {} for text; topk_ids int32 and topk_log_probs float32 [token, k]; hidden
            [token, hidden] in the teacher's dtype; dense_log_probs float32 [token, vocab]. For the aligned objective, the response's
            tokens are scored: row j is the distribution from which response_ids[j] was drawn. For the published objective, the prompt's
            tokens are scored, and the response is empty: row i is the distribution after prompt_ids[: i + 1].
    """

    index: int
    question: str
    reference: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    text: str
    finish: Literal["eos", "length"]
    signals: Mapping[str, Tensor] = field(default_factory=dict)


def record_key(question: str, reference: str) -> str:
    """Return the SHA-256 of a problem's texts: the key of its record, independent of the problem's position."""
    return hashlib.sha256(json.dumps([question, reference]).encode()).hexdigest()


def record_to_row(key: str, record: Record) -> dict[str, Any]:
    """Return a record as a row of `RECORD_SCHEMA`, without the signals of `TENSOR_SIGNALS`."""
    ids, log_probs = record.signals.get("topk_ids"), record.signals.get("topk_log_probs")
    return {
        "key": key,
        "index": record.index,
        "question": record.question,
        "reference": record.reference,
        "prompt_ids": list(record.prompt_ids),
        "response_ids": list(record.response_ids),
        "text": record.text,
        "finish": record.finish,
        "topk_ids": None if ids is None else ids.flatten().numpy(),
        "topk_log_probs": None if log_probs is None else log_probs.flatten().numpy(),
        "k": None if ids is None else ids.shape[1],
    }


def row_to_record(row: Mapping[str, Any], tensors: Path, at: int) -> Record:
    """Return the record of a row.

    Args:
        row: of `RECORD_SCHEMA`.
        tensors: the shard's safetensors file; its tensors are read when they are first used.
        at: position of the row in its shard.
    """
    signals: Mapping[str, Tensor] = {}
    if row["k"] is not None:
        shape = (-1, row["k"])
        signals = {
            "topk_ids": torch.from_numpy(np.asarray(row["topk_ids"], np.int32)).reshape(shape),
            "topk_log_probs": torch.from_numpy(np.asarray(row["topk_log_probs"], np.float32)).reshape(shape),
        }
    elif tensors.exists():
        signals = _StoredSignals(tensors, at)
    return Record(
        row["index"],
        row["question"],
        row["reference"],
        tuple(row["prompt_ids"]),
        tuple(row["response_ids"]),
        row["text"],
        row["finish"],
        signals,
    )


class _StoredSignals(Mapping[str, Tensor]):
    """A record's tensors in a safetensors file, read when they are used."""

    def __init__(self, file: Path, at: int) -> None:
        self.file, self.at = file, at

    @cached_property
    def _names(self) -> tuple[str, ...]:
        with self._opened() as file:
            stored = set(file.keys())
        return tuple(name for name in TENSOR_SIGNALS if f"{name}.{self.at}" in stored)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with self._opened() as file:
            return file.get_tensor(f"{name}.{self.at}")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """Open the file, which was intact when its records were read."""
        try:
            with safe_open(self.file, "pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise DamagedError(f"{self.file} was lost or damaged after it was read ({error}); run collect again") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
