"""Texts of the published objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from distill.objectives.published import published_texts
from distill.sources.texts import Text
from tests.distill.sources.cases import record


@pytest.fixture
def tokenizer(tiny_tokenizer: Callable[..., Any]) -> Any:
    return tiny_tokenizer()


def test_published_texts_pair_tokens_by_index(tokenizer: Any) -> None:
    """Worked by hand from the published code: question, solution and teacher cut to the shortest, all from index 0, unshifted."""
    records = [record(0, "What is 2+3? And then?", prompt_ids=tuple(range(9)))]
    text = published_texts(records, tokenizer, max_tokens=256, signals=True).texts[0]
    asked, answer = tokenizer("What is 2+3? And then?")["input_ids"], tokenizer("#### 5")["input_ids"]
    rows = min(len(asked), len(answer), 9)
    assert text == Text(tuple(asked[:rows]), 0, tuple(answer[:rows]), records[0], 0, tuple(range(rows)))
    assert len(published_texts(records, tokenizer, max_tokens=2, signals=True).texts[0].ids) == 2


def test_lexicographic_order_sorts_keys_as_text(tokenizer: Any) -> None:
    records = [record(i, prompt_ids=(i, i)) for i in range(12)]
    texts = published_texts(records, tokenizer, max_tokens=256, signals=True, lexicographic=True).texts
    assert [t.record.index for t in texts if t.record] == [0, 9, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8]  # Question 1, 10, 11, 12, 2, 3, ...
    assert [t.ids for t in texts] == [t.ids for t in published_texts(records, tokenizer, max_tokens=256, signals=True).texts]
