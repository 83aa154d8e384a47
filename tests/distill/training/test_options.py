"""Options of the training."""

from __future__ import annotations

from typing import Any

import pytest

from distill.study.config import study_from
from interp.tables.errors import StudyError


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ({"records": 1}, "heads.records is 1"),
        ({"records": -2}, "heads.records is -2"),
        ({"texts": 0}, "heads.texts is 0"),
        ({"measures": []}, "at least one"),
        ({"measures": ["max_prob", "max_prob"]}, "each once"),
        ({"steps": 3}, "unknown key heads.steps"),
    ],
)
def test_impossible_settings_are_refused(heads: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        study_from({"name": "s", "heads": heads})
