"""What the tests of texts share: records, and the aligned texts that are made from them."""

from __future__ import annotations

from typing import Any

from distill.objectives.aligned import aligned_texts
from distill.records.record import Record
from distill.sources.texts import Texts
from distill.strategies import Strategy

END = 2
"""The end-of-text token of the tiny tokenizer."""


def record(index: int, question: str = "What is 2+3?", text: str = "2+3 = 5.", **fields: Any) -> Record:
    return Record(
        **{
            "index": index,
            "question": question,
            "reference": "#### 5",
            "prompt_ids": (),
            "response_ids": (),
            "text": text,
            "finish": "eos",
            **fields,
        }
    )


def aligned(records: list[Record], tokenizer: Any, **settings: Any) -> Texts:
    context, chat = Strategy("student"), settings.pop("chat", True)
    return aligned_texts(records, tokenizer, context, chat, **{"max_tokens": 500, "same_tokenizer": True, **settings})
