"""The tables of a run: valid, and recomputable from the tokens and the model alone."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.tables.schema import REGIONS
from interp.tokens import NUMBER_ROLES
from tests.analyses.heads.conftest import SEVERAL_BATCHES, TABLES, close_tables, run_of

Heads = Callable[..., Any]
"""The fixture that runs the command: `(*arguments)` -> code, out, err."""
Tables = Callable[[Path], dict[str, pd.DataFrame]]
Save = Callable[..., Path]


def test_a_finished_run_has_valid_tables_and_nothing_else(good: Path, tables: Tables) -> None:
    from interp.measures.catalog import MEASURES

    assert sorted(path.name for path in good.iterdir()) == sorted([*TABLES, "run.json"])
    assert [path.name for path in good.parent.iterdir()] == ["run"]
    found = tables(good)
    assert len(found["heads"]) == 2 * 4 * len(MEASURES) * len(REGIONS)
    assert len(found["examples"]) == 7 * len(found["heads"])
    assert found["heads"]["measure"].unique().tolist() == list(MEASURES)
    assert found["inputs"]["example"].unique().tolist() == list(range(7))
    assert (found["inputs"].groupby("example")["position"].diff().dropna() == 1).all()


def test_values_can_be_recomputed_from_inputs_and_the_model(good: Path, checkpoint: Path, tables: Tables) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager", dtype=torch.float64).eval()
    found = tables(good)
    measured: Any = found["examples"].set_index(["measure", "example", "region"]).sort_index()
    for example, rows in found["inputs"].groupby("example"):
        with torch.no_grad():
            maps = model(torch.tensor(rows["token_id"].to_numpy())[None], output_attentions=True).attentions
        attention = np.stack([layer[0].numpy() for layer in maps]).astype(np.float64)  # [layer, head, query, key]
        numbers = rows["role"].isin(NUMBER_ROLES).to_numpy()
        position = np.arange(len(rows))
        logarithms = np.log(attention, out=np.zeros_like(attention), where=attention > 0)
        expected = {
            "entropy_nats": -(attention * logarithms).sum(-1),
            "max_prob": attention.max(-1),
            "self_mass": np.diagonal(attention, axis1=-2, axis2=-1),
            "bos_mass": attention[..., 0],
            "numeric_mass": attention[..., numbers].sum(-1),
            "mean_distance": (attention * (position[:, None] - position)).sum(-1),
            "sparsity_010": (attention > 0.1).sum(-1) / (position + 1),
        }
        for region in REGIONS:
            queries = rows["is_query"].to_numpy() & ((rows["region"] == region).to_numpy() | (region == "all"))
            assert queries.any()
            for measure, values in expected.items():
                part = measured.loc[(measure, example, region)].sort_values(["layer", "head"])
                assert (part["n_queries"] == queries.sum()).all()
                np.testing.assert_allclose(part["value"].to_numpy(), values[..., queries].mean(-1).ravel(), rtol=1e-5, atol=1e-5)


def test_heads_table_holds_means_over_examples_with_intervals(good: Path, tables: Tables) -> None:
    found = tables(good)
    key = ["layer", "head", "measure", "region"]
    groups = found["examples"].groupby(key, observed=True)
    heads = found["heads"].set_index(key).sort_index()
    expected = groups.agg(value=("value", "mean"), n_examples=("value", "count"), n_queries=("n_queries", "sum")).sort_index()
    np.testing.assert_allclose(heads["value"], expected["value"], rtol=1e-12, atol=1e-12)
    assert (heads["n_examples"] == expected["n_examples"]).all()
    assert (heads["n_queries"] == expected["n_queries"]).all()
    several = heads[heads["n_examples"] > 1]
    lowest, highest = groups["value"].min().sort_index(), groups["value"].max().sort_index()
    assert (several["ci_low"] >= lowest[several.index] - 1e-12).all()
    assert (several["ci_high"] <= highest[several.index] + 1e-12).all()
    assert (several["ci_low"] <= several["value"] + 1e-12).all()
    assert (several["value"] <= several["ci_high"] + 1e-12).all()
    entropy = several.xs("entropy_nats", level="measure")
    assert (entropy["ci_high"] > entropy["ci_low"]).all()


def test_run_json_describes_the_run(good: Path, checkpoint: Path, problems: Path, tables: Tables) -> None:
    from distill.problems.sets import load_problems, problems_digest

    run = run_of(good)
    assert run["command"].startswith("python -m analyses.heads --model ")
    assert "--batch-tokens 130" in run["command"]
    assert {"python", "primed-heads", "torch", "transformers", "peft"} <= set(run["versions"])
    assert run["versions"]["python"] == sys.version.split()[0]
    model = run["model"]
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert model == {**model, "name": "tiny", "kind": "folder", "source": str(checkpoint), "weights_sha256": digest, "adapter": None}
    assert (model["n_layers"], model["n_heads"], model["architecture"]) == (2, 4, "LlamaForCausalLM")
    assert (run["dtype"], run["device"], run["seed"], run["text"], run["chat"]) == ("float32", "cpu", 0, "reference", True)
    assert run["generated"] is None
    assert run["problems"] == {"source": str(problems), "split": "test", "n": 7, "sha256": problems_digest(load_problems(str(problems)))}
    assert run["n_tokens"] == len(tables(good)["inputs"])
    assert {measure["backend"] for measure in run["measures"]} == {"blocked"}
    assert all(seconds >= 0 for seconds in run["timings"].values())
    assert {"open_seconds", "record_seconds", "tables_seconds", "total_seconds"} <= set(run["timings"])
    assert run["memory"]["process_peak_bytes"] > 1e7
    assert any("7 examples" in warning for warning in run["warnings"])


def test_layers_recorded_by_another_backend_are_listed_in_a_warning(
    heads: Heads, tmp_path: Path, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    names = ("--measures", "entropy_nats", "sparsity_010", *SEVERAL_BATCHES)
    assert heads("--out", tmp_path / "blocked", "--backend", "blocked", *names).code == 0
    assert not any("cannot express" in warning for warning in run_of(tmp_path / "blocked")["warnings"])
    monkeypatch.setattr("interp.attention.triton.MAX_DIM", 1)
    ran = heads("--out", tmp_path / "run", "--backend", "triton", *names)
    assert ran.code == 0
    (warning,) = (w for w in run_of(tmp_path / "run")["warnings"] if "cannot express" in w)
    assert re.fullmatch(
        r"the triton backend cannot express layers 0, 1 \(in (\d+) of \1 batches\); the blocked backend recorded them", warning
    )
    assert f"warning: {warning}" in ran.out
    close_tables(tables(tmp_path / "blocked"), tables(tmp_path / "run"), 0)
