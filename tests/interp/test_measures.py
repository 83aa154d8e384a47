"""Every measure against float64 attention maps, with arithmetic of this file's own; the laws of entropies and masses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from interp import measures as measures_module
from interp.measures import ENTRY_POINTS, MEASURES, N_SHUFFLES, Measure, MeasureError, load_measures, numeric_shuffles
from interp.recorder import record
from interp.table import REGIONS, MeasureInfo
from interp.tokens import NUMBER_ROLES, AnnotatedText, Tokens

LENGTHS = (41, 20, 70, 33, 57, 26, 64, 48)
SEED = 3
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}
FLASH = [name for name, m in MEASURES.items() if not m.thresholds and "max_prob" not in m.statistics]
FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "phi3",
    "olmo2",
    "gpt_oss",
    "deepseek_v3",
)
BLOCKED_ONLY = ("gemma2",)
"""Families with capped scores."""


# --- the reference ----------------------------------------------------------------------------------------------------


@contextmanager
def softmax_in_its_own_dtype() -> Iterator[None]:
    """Transformers' eager attention computes softmax in float32 even where the model is float64."""
    original = torch.nn.functional.softmax
    torch.nn.functional.softmax = lambda x, dim=None, dtype=None: original(x, dim=dim)
    try:
        yield
    finally:
        torch.nn.functional.softmax = original


def attention_maps(model: Any, ids: np.ndarray) -> list[np.ndarray]:
    """Eager attention of a float64 model over one text that is not padded, [head, query, key] a layer."""
    with torch.no_grad(), softmax_in_its_own_dtype():
        maps = model(torch.from_numpy(ids)[None], output_attentions=True).attentions
    assert all(m.dtype == torch.float64 for m in maps)
    return [m[0].numpy() for m in maps]


def windows(config: Any) -> list[float]:
    """Keys that a query of each layer may look back over, itself included."""
    config = config.get_text_config(decoder=True)
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) or np.inf
    if types is None:
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else np.inf for kind in types]


def query_values(p: np.ndarray, text: AnnotatedText, window: float, *, sink: bool) -> dict[str, np.ndarray]:
    """Every measure of every query from whole maps [head, query, key]: [head, query] each, NaN where undefined."""
    length = len(text)
    i, j = np.indices((length, length))
    allowed = (j <= i) & (i - j < window)
    assert np.all(p[:, ~allowed] == 0)
    assert np.all(np.abs(p[:, allowed] - 0.1) > 1e-6), "too near to the threshold to test a count: take another seed"
    sinks = 1 - p.sum(-1, keepdims=True)
    if not sink:
        assert np.abs(sinks).max() < 1e-12
        sinks[:] = 0
    outcomes = np.concatenate([p, sinks], -1)
    n = allowed.sum(-1) + sink
    logs = np.log(outcomes, where=outcomes > 0, out=np.zeros_like(outcomes))
    entropy = -(outcomes * logs).sum(-1)
    above = ((p > 0.1) & allowed).sum(-1)
    numeric = text.in_role(*NUMBER_ROLES)
    n_numeric = (allowed & numeric).sum(-1)
    others = p[..., 1:].sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        without_first = p[..., 1:][..., numeric[1:]].sum(-1) / others
        normalized = entropy / np.log(n)
        enrichment = p[..., numeric].sum(-1) / (n_numeric / n)

    def over(pairs: np.ndarray) -> np.ndarray:
        pairs = pairs & allowed
        return np.where(pairs.any(-1), (p * pairs).sum(-1), np.nan)

    same = (text.ids[:, None] == text.ids[None]) & (j < i)
    followed = np.zeros_like(same)
    followed[:, 1:] = same[:, :-1]
    found = {
        "entropy_nats": entropy,
        "entropy_normalized": np.where(n > 1, normalized, np.nan),
        "renyi2_nats": -np.log((outcomes**2).sum(-1)),
        "max_prob": p.max(-1),
        "self_mass": np.stack([p[:, q, q] for q in range(length)], -1),
        "previous_mass": np.stack([p[:, q, q - 1] if q else np.full(len(p), np.nan) for q in range(length)], -1),
        "bos_mass": p[..., 0],
        "mean_distance": (p * (i - j)).sum(-1) / p.sum(-1),
        "numeric_mass": p[..., numeric].sum(-1),
        "numeric_mass_question": p[..., text.in_role("question_number")].sum(-1),
        "numeric_mass_operand": p[..., text.in_role("operand")].sum(-1),
        "numeric_mass_intermediate": p[..., text.in_role("intermediate_result")].sum(-1),
        "numeric_mass_final": p[..., text.in_role("final_answer")].sum(-1),
        "operator_mass": p[..., text.in_role("operator")].sum(-1),
        "numeric_mass_without_bos": np.where(others > 0, without_first, np.nan),
        "numeric_enrichment": np.where(n_numeric > 0, enrichment, np.nan),
        "duplicate_token_mass": over(same),
        "induction_mass": over(followed),
        "sparsity_010": above / n,
        "sparsity_010_published": above / length,
    }
    assert set(found) | {"numeric_z"} == set(MEASURES)
    return found


def reference(model: Any, text: AnnotatedText, seed: int = SEED) -> dict[tuple[int, int, str, str], tuple[float, int]]:
    """Value and number of queries of one example, by layer, head, measure and region."""
    found = {}
    sink = model.config.model_type == "gpt_oss"
    shuffles = numeric_shuffles(text, seed)
    for layer, (maps, window) in enumerate(zip(attention_maps(model, text.ids), windows(model.config), strict=True)):
        rows = query_values(maps, text, window, sink=sink)
        for region in REGIONS:
            queries = text.in_region(region) & text.is_query
            for name, values in rows.items():
                for head in range(len(maps)):
                    defined = values[head, queries][~np.isnan(values[head, queries])]
                    found[layer, head, name, region] = (defined.mean() if len(defined) else np.nan, len(defined))
            real = rows["numeric_mass"][:, queries].mean(-1)
            null = np.stack([maps[..., chosen].sum(-1)[:, queries].mean(-1) for chosen in shuffles])
            spread = null.std(0, ddof=1)
            for head in range(len(maps)):
                defined = spread[head] > 1e-9
                z = (real[head] - null[:, head].mean()) / spread[head] if defined else np.nan
                found[layer, head, "numeric_z", region] = (z, int(queries.sum()) if defined else 0)
    return found


def assert_agrees(table: pd.DataFrame, expected: dict[int, dict[tuple[int, int, str, str], tuple[float, int]]], tolerance: float) -> None:
    keys = ["layer", "head", "measure", "region"]
    rows = [(example, *key, *value) for example, found in expected.items() for key, value in found.items()]
    wanted = pd.DataFrame(rows, columns=["example", *keys, "expected", "expected_n"])
    joined = table.merge(wanted, on=["example", *keys], validate="one_to_one")
    assert len(joined) == len(table)
    wrong_n = joined[joined["n_queries"] != joined["expected_n"]]
    assert wrong_n.empty, wrong_n.head(20).to_string()
    assert (joined["value"].isna() == joined["expected"].isna()).all()
    error = (joined["value"] - joined["expected"]).abs() / joined["expected"].abs().clip(lower=1)
    worst = joined.assign(error=error).sort_values("error", ascending=False)
    assert not (error > tolerance).any(), worst.head(20).to_string()


@pytest.fixture(scope="module")
def oracle(tiny_model: Callable[..., Any], tiny_tokens: Callable[..., Any]) -> Callable[[str, str], Any]:
    """Model in a dtype, texts and what float64 says of them, made once a family."""

    @functools.cache
    def make(family: str, dtype: str) -> SimpleNamespace:
        model = tiny_model(family, dtype=dtype)
        precise = tiny_model(family, dtype=dtype, attention="eager").double()
        texts = tiny_tokens(LENGTHS).texts
        return SimpleNamespace(model=model, texts=texts, expected={t.example: reference(precise, t) for t in texts})

    return make


def ways(family: str) -> tuple[str, ...]:
    return ("blocked",) if family in BLOCKED_ONLY else ("blocked", "flash")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize(("family", "way"), [(family, way) for family in FAMILIES for way in ways(family)])
def test_every_measure_agrees_with_float64_maps(
    family: str, way: str, padding_side: str, dtype: str, oracle: Callable[[str, str], Any]
) -> None:
    case = oracle(family, dtype)
    chosen = list(MEASURES) if way == "blocked" else FLASH
    for texts in (case.texts, case.texts[2:3]):
        tokens = Tokens(texts, padding_side)
        with torch.no_grad(), record(case.model, tokens, chosen, way=way, seed=SEED) as heads:
            case.model(**tokens.inputs)
        expected = {t.example: {key: v for key, v in case.expected[t.example].items() if key[2] in chosen} for t in texts}
        assert_agrees(heads.examples(), expected, TOLERANCES[dtype])
