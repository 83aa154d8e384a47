"""Synthetic head runs: tables with plausible values, made from a seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interp.table import HEADS, INPUTS, REGIONS, MeasureInfo, write

INFOS = [
    MeasureInfo("entropy_nats", "Entropy of attention", "nats", 0.0, None, "−Σ p log p"),
    MeasureInfo("entropy_normalized", "Entropy by log of allowed keys", "1", 0.0, 1.0, "entropy / log n"),
    MeasureInfo("renyi2_nats", "Rényi-2 entropy", "nats", 0.0, None, "−log Σ p²"),
    MeasureInfo("max_prob", "Largest attention weight", "probability", 0.0, 1.0, "max p"),
    MeasureInfo("self_mass", "Attention on the token itself", "probability", 0.0, 1.0, "p[q]"),
    MeasureInfo("previous_mass", "Attention on the token before", "probability", 0.0, 1.0, "p[q−1]"),
    MeasureInfo("bos_mass", "Attention on the first token", "probability", 0.0, 1.0, "p[0]"),
    MeasureInfo("mean_distance", "Mean distance looked back", "tokens", 0.0, None, "Σ p (q − k)"),
    MeasureInfo("numeric_mass", "Attention on numbers", "probability", 0.0, 1.0, "Σ p over numeric keys"),
    MeasureInfo("numeric_mass_question", "Attention on the question's numbers", "probability", 0.0, 1.0, "Σ p"),
    MeasureInfo("numeric_mass_operand", "Attention on operands in the response", "probability", 0.0, 1.0, "Σ p"),
    MeasureInfo("numeric_mass_intermediate", "Attention on intermediate results", "probability", 0.0, 1.0, "Σ p"),
    MeasureInfo("numeric_mass_final", "Attention on the final answer", "probability", 0.0, 1.0, "Σ p"),
    MeasureInfo("operator_mass", "Attention on operators", "probability", 0.0, 1.0, "Σ p over operators"),
    MeasureInfo("numeric_mass_without_bos", "Attention on numbers, BOS left out", "probability", 0.0, 1.0, "Σ p / (1−p0)"),
    MeasureInfo("numeric_enrichment", "Attention on numbers over uniform", "1", 0.0, None, "mass / uniform mass"),
    MeasureInfo("numeric_z", "Attention on numbers against shuffles", "standard deviations", None, None, "(x−μ)/σ"),
    MeasureInfo("duplicate_token_mass", "Attention on earlier copies of the token", "probability", 0.0, 1.0, "Σ p"),
    MeasureInfo("induction_mass", "Attention on what followed earlier copies", "probability", 0.0, 1.0, "Σ p"),
    MeasureInfo("sparsity_010", "Keys with weight above 0.1", "share", 0.0, 1.0, "share of allowed keys"),
    MeasureInfo("sparsity_010_published", "Entries above 0.1, published variant", "share", 0.0, 1.0, "share of T × T"),
]


def make_heads(layers: int, heads: int, *, seed: int = 0, infos: list[MeasureInfo] = INFOS, model: str = "tiny/model-135M") -> pd.DataFrame:
    """A heads table; the final answer's mass is undefined in the question, and a few enrichments everywhere."""
    random = np.random.default_rng(seed)
    frames = []
    layer, head = np.divmod(np.arange(layers * heads), heads)
    for info in infos:
        base = random.beta(0.6, 5.0, layers * heads) * (0.4 + layer / layers)
        for region in REGIONS:
            shift = {"question": 0.7, "response": 1.0, "all": 0.9}[region]
            value = shift * base * random.normal(1.0, 0.1, layers * heads).clip(0.5, 1.5)
            if info.unit == "nats":
                value = 4.5 * (1 - value).clip(0.05)
            elif info.unit == "tokens":
                value = 90 * value
            elif info.name == "numeric_enrichment":
                value = 12 * value**1.5
            elif info.name == "numeric_z":
                value = 20 * (value - 0.12)
            undefined = np.zeros(layers * heads, bool)
            if info.name == "numeric_mass_final" and region == "question":
                undefined[:] = True
            if info.name == "numeric_enrichment":
                undefined[[0, layers * heads // 2, -1]] = True
            value = np.where(undefined, np.nan, value)
            width = 0.05 * np.nan_to_num(value).std() + 0.02 * np.abs(value)
            frames.append(
                pd.DataFrame(
                    {
                        "model": model,
                        "layer": layer,
                        "head": head,
                        "measure": info.name,
                        "region": region,
                        "value": value,
                        "ci_low": value - width,
                        "ci_high": value + width,
                        "n_examples": np.where(undefined, 0, 40),
                        "n_queries": np.where(undefined, 0, {"question": 2100, "response": 3120, "all": 6480}[region]),
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def make_inputs(texts: list[tuple[str, str, str]]) -> pd.DataFrame:
    """An inputs table of one example from (token, region, role)."""
    return pd.DataFrame(
        {
            "example": 0,
            "position": np.arange(len(texts)),
            "token_id": np.arange(len(texts)) + 100,
            "token": [token for token, _, _ in texts],
            "region": [region for _, region, _ in texts],
            "role": [role for _, _, role in texts],
            "is_query": True,
        }
    )


TOKENS = [
    ("<|im_start|>", "template", "special"),
    *[(t, "template", "none") for t in ("user", "\n")],
    *[(t, "question", "none") for t in ("Mina", " buys")],
    (" ", "question", "none"),
    ("3", "question", "question_number"),
    *[(t, "question", "none") for t in (" boxes", " of")],
    (" ", "question", "none"),
    ("1", "question", "question_number"),
    ("2", "question", "question_number"),
    *[(t, "question", "none") for t in (" pencils", ".", " How", " many", " pencils", " is", " that", "?")],
    ("<|im_end|>", "template", "special"),
    ("\n", "template", "none"),
    ("<|im_start|>", "template", "special"),
    *[(t, "template", "none") for t in ("assistant", "\n")],
    *[(t, "response", "none") for t in ("She", " has")],
    (" ", "response", "none"),
    ("3", "response", "operand"),
    (" *", "response", "operator"),
    (" ", "response", "none"),
    ("1", "response", "operand"),
    ("2", "response", "operand"),
    (" =", "response", "operator"),
    (" ", "response", "none"),
    ("3", "response", "intermediate_result"),
    ("6", "response", "intermediate_result"),
    *[(t, "response", "none") for t in (" pencils", ".", "\n", "####", " ")],
    ("3", "response", "final_answer"),
    ("6", "response", "final_answer"),
    ("<|im_end|>", "template", "special"),
]


def make_run(layers: int, heads: int, infos: list[MeasureInfo] = INFOS) -> dict:
    """The contents of a run.json."""
    return {
        "command": "python -m analyses.heads --model tiny/model-135M --out runs/tiny",
        "model": {
            "name": "tiny/model-135M",
            "kind": "hub",
            "id": "tiny/model-135M",
            "revision": "0123456789abcdef0123456789abcdef01234567",
            "weights_sha256": "ab" * 32,
            "adapter": None,
        },
        "versions": {"torch": "2.13.0", "transformers": "5.23.0", "primed-heads": "0.1.0"},
        "dtype": "bfloat16",
        "device": "cpu",
        "seed": 0,
        "text": "gold",
        "chat": True,
        "problems": {"source": "shipped", "split": "test", "n": 40, "sha256": "cd" * 32},
        "measures": [
            {
                "name": info.name,
                "title": info.title,
                "unit": info.unit,
                "low": info.low,
                "high": info.high,
                "formula": info.formula,
                "way": "blocked",
            }
            for info in infos
        ],
        "timings": {"load": 1.72, "record": 41.3, "bootstrap": 2.25},
        "memory": {"peak_mb": 1210.5},
        "warnings": ["2 of 42 problems were longer than the model's positions and were left out."],
        "n_layers": layers,
        "n_heads": heads,
    }


def make_run_folder(folder: Path, layers: int, heads: int, *, seed: int = 0) -> Path:
    """Write a run folder without figures."""
    folder.mkdir(parents=True, exist_ok=True)
    write(make_heads(layers, heads, seed=seed), HEADS, folder / "heads.parquet")
    write(make_inputs(TOKENS), INPUTS, folder / "inputs.parquet")
    (folder / "run.json").write_text(json.dumps(make_run(layers, heads)), encoding="utf-8")
    return folder


@pytest.fixture
def infos() -> dict[str, MeasureInfo]:
    """The built-in measures, by name."""
    return {info.name: info for info in INFOS}


@pytest.fixture
def head_table() -> Callable[..., pd.DataFrame]:
    """`make_heads`."""
    return make_heads


@pytest.fixture
def small_heads() -> pd.DataFrame:
    """Three layers of four heads, all measures."""
    return make_heads(3, 4)


@pytest.fixture
def sample_inputs() -> pd.DataFrame:
    """One example's tokens, every role at least once."""
    return make_inputs(TOKENS)


@pytest.fixture
def sample_run() -> dict:
    """The contents of a run.json of three layers with four heads."""
    return make_run(3, 4)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run folder of three layers with four heads, without figures."""
    return make_run_folder(tmp_path / "run", 3, 4)
