"""The texts of a student: their digest, and what happens if none is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from interp.tables.errors import StudyError
from tests.distill.sources.cases import aligned, record


@pytest.fixture
def tokenizer(tiny_tokenizer: Callable[..., Any]) -> Any:
    return tiny_tokenizer()


def test_an_empty_set_of_texts_is_refused_with_what_was_dropped(tokenizer: Any) -> None:
    with pytest.raises(StudyError, match=r"records 2, wrong 2.*objective\.keep"):
        aligned([record(0), record(1)], tokenizer, keep=lambda _: False)


def test_digest_depends_on_every_token(tokenizer: Any) -> None:
    one, two = (aligned([record(0, text=text)], tokenizer).digest() for text in ("5", "6"))
    assert one != two
    assert one == aligned([record(3, text="5", prompt_ids=(1, 2))], tokenizer).digest()
