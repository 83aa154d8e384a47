"""Which heads are kept and shown first."""

from __future__ import annotations

from collections.abc import Callable

from tests.analyses.examples.conftest import SHORT, Ran, run_json, table


def test_only_watched_heads_are_kept(inspect: Callable[..., Ran]) -> None:
    assert inspect("--text", "reference", "--watch", "1.2,0", "--others", 0).code == 0
    edges = table("edges")
    kept = {(int(layer), int(head)) for layer, head in edges[["layer", "head"]].drop_duplicates().itertuples(index=False)}
    assert kept == {(1, 2), (0, 0), (0, 1), (0, 2), (0, 3)}
    assert {tuple(head) for head in run_json()["chosen"]} <= kept
    assert len(table("standing")["head"].unique()) == 4


def test_heads_are_reported_as_arbitrary_without_numbers(inspect: Callable[..., Ran]) -> None:
    ran = inspect("--question", "How do you do?", "--heads", "auto", "--region", "question", *SHORT, "--others", 0)
    assert ran.code == 0, ran.err
    assert "choose by another measure (--by)" in ran.words


def test_significant_heads_are_foremost_then_the_most_different(inspect: Callable[..., Ran]) -> None:
    assert inspect("--text", "reference", "--others", 5).code == 0
    found = table("standing")
    found = found[(found["measure"] == "numeric_mass") & (found["region"] == "response")]
    rows = {(int(r["layer"]), int(r["head"])): r for r in found.to_dict("records")}
    foremost = [rows[tuple(head)] for head in run_json()["foremost"]]
    keys = [(bool(r["p"] <= 0.05), abs(r["value"] - r["mean"])) for r in foremost]
    assert keys == sorted(keys, reverse=True)
    assert run_json()["chosen"] == run_json()["foremost"][: len(run_json()["chosen"])]
