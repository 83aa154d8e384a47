from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.config import SearchConfig, StudyError, study_from
from distill.search import SearchError, search

CONFIG = SearchConfig(trials=8, rank=(4, 8))


def bowl(given: dict[str, Any]) -> float:
    """Best at temperature 3 and alpha 0.5."""
    return (given["temperature"] - 3) ** 2 + (given["alpha"] - 0.5) ** 2


def watched(calls: list[dict[str, Any]], stop_at: int | None = None) -> Callable[[dict[str, Any]], float]:
    def objective(given: dict[str, Any]) -> float:
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(given)
        return bowl(given)

    return objective


def test_the_best_comes_first_and_can_be_pasted(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []
    table = search(CONFIG, tmp_path, watched(calls))
    assert len(table) == len(calls) == 8
    assert table["value"].is_monotonic_increasing
    best = min(calls, key=bowl)
    pasted = tomllib.loads((tmp_path / "best.toml").read_text())
    assert pasted["objective"] == pytest.approx({"temperature": best["temperature"], "alpha": best["alpha"]})
    assert pasted["student"] == {"rank": best["rank"]}
    study_from({"name": "s", **pasted})
    for call in calls:
        assert 1 <= call["temperature"] <= 8
        assert 1e-5 <= call["learning_rate"] <= 1e-3
        assert call["rank"] in (4, 8)
    assert [call["trial"] for call in calls] == list(range(8))


def test_an_interrupted_search_goes_as_an_undisturbed_one(tmp_path: Path) -> None:
    whole: list[dict[str, Any]] = []
    search(CONFIG, tmp_path / "whole", watched(whole))
    parts: list[dict[str, Any]] = []
    with pytest.raises(KeyboardInterrupt):
        search(CONFIG, tmp_path / "parts", watched(parts, stop_at=3))
    table = search(CONFIG, tmp_path / "parts", watched(parts))
    assert len(table) == 8
    assert parts == whole
    more = search(SearchConfig(trials=10, rank=(4, 8)), tmp_path / "parts", watched(parts))
    assert len(more) == len(parts) == 10


def test_accuracy_is_maximised(tmp_path: Path) -> None:
    table = search(SearchConfig(trials=5, metric="heldout_accuracy"), tmp_path, lambda given: given["alpha"])
    assert table["value"].is_monotonic_decreasing


def test_one_value_is_fixed(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []
    search(SearchConfig(trials=3, temperature=(2.0,), alpha=(0.5,)), tmp_path, watched(calls))
    assert {(call["temperature"], call["alpha"]) for call in calls} == {(2.0, 0.5)}


def test_other_ranges_are_named(tmp_path: Path) -> None:
    search(SearchConfig(trials=1), tmp_path, bowl)
    with pytest.raises(SearchError, match=r"alpha: was \[0.0, 1.0\], is \[0.2, 0.4\]"):
        search(SearchConfig(trials=1, alpha=(0.2, 0.4)), tmp_path, bowl)


def test_the_test_split_is_refused() -> None:
    with pytest.raises(StudyError, match="leak"):
        SearchConfig(split="test")
