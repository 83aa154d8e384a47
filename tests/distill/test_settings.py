from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from distill.settings import as_tables, changed_settings
from distill.study.config import study_from

TREES = st.recursive(st.integers(0, 2), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8)


@given(st.dictionaries(st.sampled_from("abc"), TREES), st.dictionaries(st.sampled_from("abc"), TREES))
def test_no_changed_settings_means_equal_trees(before: dict[str, Any], now: dict[str, Any]) -> None:
    assert (changed_settings(before, now) == []) == (before == now or _no_values(before, now))


def _no_values(before: Any, now: Any) -> bool:
    """An absent table and an empty one differ, but not in a key below them."""
    return all(not changed_settings({"k": before.get(k)}, {"k": now.get(k)}) for k in {*before, *now})


def test_changed_settings_name_the_key() -> None:
    before, now = as_tables(study_from({"name": "s"})), as_tables(study_from({"name": "s", "train": {"epochs": 5}}))
    assert changed_settings(before, now) == ["train.epochs: was 2.0, is 5.0"]
