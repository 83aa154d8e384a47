"""Heads are compared with a fitting head run, or with a small one that is made and kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from interp.tables.heads import EXAMPLE_VALUES
from interp.tables.schema import read
from tests.analyses.examples.conftest import SHORT, Ran, run_json, table


def test_t_and_q_compare_a_problem_with_the_others_of_the_run(inspect: Callable[..., Ran], heads: Callable[..., Any]) -> None:
    assert heads("--text", "reference", "--out", "run", "--name", "measured").code == 0
    ran = inspect("--model", "run", "--problem", 4)  # with the text and the problems of the run
    assert ran.code == 0, ran.err
    assert run_json()["models"][0]["compared_with"] == {"source": "run", "text": "reference", "n_examples": 6}
    assert not Path("out/heads").exists()
    values = read(Path("run/examples.parquet"), EXAMPLE_VALUES)
    rows = values[(values["measure"] == "numeric_mass") & (values["region"] == "response")]
    found = table("standing")
    found = found[(found["measure"] == "numeric_mass") & (found["region"] == "response")]
    t: dict[Any, float] = {(row.layer, row.head): float(str(row.t)) for row in found.itertuples()}
    p = []
    for (layer, head), group in rows.groupby(["layer", "head"]):
        here, others = group.loc[group["example"] == 4, "value"], group.loc[group["example"] != 4, "value"]
        wanted: Any = stats.ttest_ind(here, others, equal_var=True)
        assert t[layer, head] == pytest.approx(wanted.statistic, rel=1e-3)
        p.append(wanted.pvalue)
    np.testing.assert_allclose(found["q"].to_numpy(), stats.false_discovery_control(p), rtol=1e-3)


def test_without_a_run_a_small_one_is_made_and_used_again(inspect: Callable[..., Ran], checkpoint: Path) -> None:
    ran = inspect("--text", "reference", "--others", 4)
    assert ran.code == 0, ran.err
    part = Path("out/heads") / checkpoint.name / "examples.parquet"
    made = part.stat().st_mtime_ns
    assert run_json()["models"][0]["compared_with"]["n_examples"] == 4
    assert any("only 4 other problems" in warning for warning in run_json()["warnings"])
    assert inspect("--text", "reference", "--others", 4).code == 0
    assert part.stat().st_mtime_ns == made


def test_an_unfinished_small_run_of_a_killed_call_is_restarted(inspect: Callable[..., Ran], checkpoint: Path) -> None:
    assert inspect("--text", "reference", "--others", 3).code == 0
    shutil.move(Path("out/heads") / checkpoint.name, Path("out/heads") / f"{checkpoint.name}.partial")
    ran = inspect("--text", "reference", "--others", 4)
    assert ran.code == 0, ran.err
    assert run_json()["models"][0]["compared_with"]["n_examples"] == 4


def test_a_typed_question_is_answered_if_the_named_run_read_reference_text(inspect: Callable[..., Ran], heads: Callable[..., Any]) -> None:
    assert heads("--text", "reference", "--out", "run", "--limit", 4).code == 0
    ran = inspect("--model", "run", "--question", "How much is 3 times 4?", *SHORT)
    assert ran.code == 0, ran.err
    assert run_json()["text"] == "generated"
    assert "it read reference text" in ran.words


def test_a_run_fits_under_any_path_of_its_adapter(
    inspect: Callable[..., Ran], heads: Callable[..., Any], adapter: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapter, tmp_path / "lora")
    assert heads("--model", tmp_path / "lora", "--out", "runs/lora").code == 0
    ran = inspect("--model", "lora", "--text", "reference")
    assert ran.code == 0, ran.err
    assert run_json()["models"][0]["compared_with"]["source"] == "runs/lora"


def test_a_run_with_another_dtype_or_seed_is_not_used(inspect: Callable[..., Ran], heads: Callable[..., Any], checkpoint: Path) -> None:
    assert heads("--out", f"runs/{checkpoint.name}", "--seed", 3).code == 0
    ran = inspect("--text", "reference", "--dtype", "bfloat16", "--others", 0)
    assert ran.code == 0, ran.err
    assert "dtype float32, here bfloat16 and seed 3, here 0" in ran.words
    (Path("runs") / checkpoint.name / "run.json").write_text("{")
    ran = inspect("--text", "reference", "--others", 0)
    assert ran.code == 0, ran.err  # a damaged run that was not named is skipped
    assert "run.json cannot be read" in ran.words
