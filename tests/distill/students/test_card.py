"""A student's card is read, under today's names, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.students.card import CARD_FILE, read_card
from interp.tables.errors import DamagedError


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "so it is not a student"), ("{", "cannot be read"), ('{"format": 99}', "format 99"), ("[]", "format None")],
)
def test_unreadable_cards_are_refused(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / CARD_FILE).write_text(content)
    with pytest.raises(DamagedError, match=words):
        read_card(tmp_path)


def test_settings_and_counts_of_version_0_1_are_read_under_todays_names(tmp_path: Path) -> None:
    objective = {"name": "aligned", "cut": "drop", "max_tokens": 9}
    old = {"format": 1, "settings": {"objective": objective, "train": {"epochs": 2}}, "counts": {"kept": 3, "cut": 2, "dropped_cut": 1}}
    (tmp_path / CARD_FILE).write_text(json.dumps({**old, "seed": 4}))
    card = read_card(tmp_path)
    assert card["settings"] == {"objective": {"name": "aligned", "truncated": "drop", "max_tokens": 9}, "train": {"epochs": 2}}
    assert card["counts"] == {"kept": 3, "truncated": 2, "dropped_truncated": 1}
    assert card["seed"] == 4
