"""Every measure of the catalog against float64 attention maps and by hand; measures of installed packages."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model

from interp.attention.blocked import blocked_pass
from interp.attention.flash import FLASH_STATISTICS
from interp.attention.masks import lazy_mask
from interp.attention.statistics import Scores, Wanted
from interp.measures.catalog import MEASURES, load_measures
from interp.measures.measure import Rows, key_sets
from interp.measures.token_sets import numeric_shuffles
from interp.recording import recorder
from interp.recording.recorder import record
from interp.tables.errors import InputError
from interp.tables.schema import REGIONS
from interp.tokens import NUMBER_ROLES, AnnotatedText, Tokens
from tests.interp.measures.cases import TOP_TWO, attention_maps, random_annotated, top_two

LENGTHS = (41, 20, 70, 33, 57, 26, 64, 48)
SEED = 3
Expected = dict[int, dict[tuple[int, int, str, str], tuple[float, int]]]
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}
FLASH = [name for name, m in MEASURES.items() if not m.thresholds and m.statistics <= FLASH_STATISTICS]
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
"""Families with capped scores, which only the blocked backend supports."""


# --- the reference ----------------------------------------------------------------------------------------------------


def windows(config: Any) -> list[float]:
    """Return how many keys a query of each layer may attend to at most, including itself."""
    config = config.get_text_config(decoder=True)
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) or np.inf
    if types is None:
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else np.inf for kind in types]


def query_values(p: np.ndarray, text: AnnotatedText, window: float, *, sink: bool) -> dict[str, np.ndarray]:
    """Return every measure of every query, [head, query], NaN where undefined, from complete maps [head, query, key]."""
    length = len(text)
    i, j = np.indices((length, length))
    allowed = (j <= i) & (i - j < window)
    assert np.all(p[:, ~allowed] == 0)
    assert np.all(np.abs(p[:, allowed] - 0.1) > 1e-6), "too close to the threshold to test a count: use another seed"
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


def reference_of_maps(
    maps: Sequence[np.ndarray], windows: Sequence[float], text: AnnotatedText, *, sink: bool, seed: int = SEED
) -> dict[tuple[int, int, str, str], tuple[float, int]]:
    """Return value and number of queries of one example by layer, head, measure and region, from the maps of each layer."""
    found = {}
    shuffles = numeric_shuffles(text, seed)
    for layer, (p, window) in enumerate(zip(maps, windows, strict=True)):
        rows = query_values(p, text, window, sink=sink)
        for region in REGIONS:
            queries = text.in_region(region) & text.is_query
            for name, values in rows.items():
                for head in range(len(p)):
                    defined = values[head, queries][~np.isnan(values[head, queries])]
                    found[layer, head, name, region] = (defined.mean() if len(defined) else np.nan, len(defined))
            real = rows["numeric_mass"][:, queries].mean(-1)
            null = np.stack([p[..., chosen].sum(-1)[:, queries].mean(-1) for chosen in shuffles])
            spread = null.std(0, ddof=1)
            for head in range(len(p)):
                defined = spread[head] > 1e-9
                z = (real[head] - null[:, head].mean()) / spread[head] if defined else np.nan
                found[layer, head, "numeric_z", region] = (z, int(queries.sum()) if defined else 0)
    return found


def reference(model: Any, text: AnnotatedText) -> dict[tuple[int, int, str, str], tuple[float, int]]:
    """Return `reference_of_maps` of the eager maps of a float64 model."""
    sink = model.config.model_type == "gpt_oss"
    return reference_of_maps(attention_maps(model, text.ids), windows(model.config), text, sink=sink)


def assert_agrees(table: pd.DataFrame, expected: Expected, tolerance: float, exempt: Sequence[str] = ()) -> None:
    keys = ["layer", "head", "measure", "region"]
    rows = [(example, *key, *value) for example, found in expected.items() for key, value in found.items()]
    wanted = pd.DataFrame(rows, columns=["example", *keys, "expected", "expected_n"])
    joined = table.merge(wanted, on=["example", *keys], validate="one_to_one")
    assert len(joined) == len(table)
    wrong_n = joined[joined["n_queries"] != joined["expected_n"]]
    assert wrong_n.empty, wrong_n.head(20).to_string()
    assert (joined["value"].isna() == joined["expected"].isna()).all()
    error = (joined["value"] - joined["expected"]).abs() / joined["expected"].abs().clip(lower=1)
    error = error.where(~joined["measure"].isin(exempt), 0.0)
    worst = joined.assign(error=error).sort_values("error", ascending=False)
    assert not (error > tolerance).any(), worst.head(20).to_string()


def assert_means_agree(table: pd.DataFrame, expected: Expected, tolerance: float) -> None:
    keys = ["layer", "head", "measure", "region"]
    rows = [(*key, value) for found in expected.values() for key, (value, _) in found.items()]
    means = pd.DataFrame(rows, columns=[*keys, "expected"]).groupby(keys, as_index=False)["expected"].mean()
    joined = table.merge(means, on=keys, validate="one_to_one")
    assert len(joined) == len(table)
    error = (joined["value"] - joined["expected"]).abs() / joined["expected"].abs().clip(lower=1)
    assert not (error > tolerance).any(), joined.assign(error=error).sort_values("error", ascending=False).head(20).to_string()


@pytest.fixture(scope="module")
def oracle(tiny_model: Callable[..., Any], tiny_tokens: Callable[..., Any]) -> Callable[[str, str], Any]:
    """`(family, dtype)` returns a model, texts and their float64 values, and makes them once."""

    @functools.cache
    def make(family: str, dtype: str) -> SimpleNamespace:
        model = tiny_model(family, dtype=dtype)
        precise = tiny_model(family, dtype=dtype, attention="eager").double()
        texts = tiny_tokens(LENGTHS).texts
        return SimpleNamespace(model=model, texts=texts, expected={t.example: reference(precise, t) for t in texts})

    return make


def backends(family: str) -> tuple[str, ...]:
    return ("blocked",) if family in BLOCKED_ONLY else ("blocked", "flash")


NOISY = ("numeric_z", "sparsity_010")
"""Measures that the rounding of a bfloat16 model changes by more than the tolerance in one short example: a difference of masses divided by
a small spread, and a count of few keys. Their means over examples agree, and so do single values for the model's own queries and keys."""


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize(("family", "backend"), [(family, backend) for family in FAMILIES for backend in backends(family)])
def test_every_measure_agrees_with_float64_maps(
    family: str, backend: str, padding_side: str, dtype: str, oracle: Callable[[str, str], Any]
) -> None:
    case = oracle(family, dtype)
    chosen = list(MEASURES) if backend == "blocked" else FLASH
    exempt = NOISY if dtype == "bfloat16" else ()
    for texts in (case.texts, case.texts[2:3]):
        tokens = Tokens(texts, padding_side)
        with torch.no_grad(), record(case.model, tokens, chosen, backend=backend, seed=SEED) as heads:
            case.model(**tokens.inputs)
        expected = {t.example: {key: v for key, v in case.expected[t.example].items() if key[2] in chosen} for t in texts}
        assert_agrees(heads.examples(), expected, TOLERANCES[dtype], exempt)
        if exempt and len(texts) > 1:
            assert_means_agree(heads.table(), expected, TOLERANCES[dtype])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("family", "backend"), [("llama", "blocked"), ("llama", "flash"), ("mistral", "flash"), ("gpt_oss", "blocked")])
def test_bfloat16_statistics_are_exact_for_the_models_own_queries_and_keys(
    family: str, backend: str, oracle: Callable[[str, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, captured = oracle(family, "bfloat16"), []

    def spy(name: str) -> None:
        original = getattr(recorder, name)

        def call(query: torch.Tensor, key: torch.Tensor, value: Any, mask: Any, scores: Scores, *rest: Any) -> Any:
            captured.append((query, key, scores))
            return original(query, key, value, mask, scores, *rest)

        monkeypatch.setattr(recorder, name, call)

    spy("blocked_pass")
    spy("flash_pass")
    text = case.texts[2]
    tokens = Tokens((text,))
    chosen = list(MEASURES) if backend == "blocked" else FLASH
    with torch.no_grad(), record(case.model, tokens, chosen, backend=backend, seed=SEED) as heads:
        case.model(**tokens.inputs)
    maps, spans = [], windows(case.model.config)
    for (query, key, scores), window in zip(captured, spans, strict=True):
        assert query.dtype == key.dtype == torch.bfloat16
        groups = query.shape[1] // key.shape[1]
        score = scores.scaling * query[0].double() @ key[0].double().repeat_interleave(groups, 0).transpose(1, 2)
        i, j = np.indices((len(text), len(text)))
        score = score.masked_fill(torch.from_numpy(~((j <= i) & (i - j < window))), -torch.inf)
        sinks = [] if scores.sinks is None else [scores.sinks.detach().double()[:, None, None].expand(-1, len(text), 1)]
        maps.append(torch.cat([score, *sinks], -1).softmax(-1)[..., : len(text)].numpy())
    expected = reference_of_maps(maps, spans, text, sink=family == "gpt_oss")
    assert_agrees(heads.examples(), {text.example: {k: v for k, v in expected.items() if k[2] in chosen}}, 1e-5)


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft uses the old name
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("backend", ["blocked", "flash"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_oss", "gpt2"])
def test_values_with_an_adapter_on_off_and_merged(
    family: str, backend: str, tiny_model: Callable[..., Any], tiny_tokens: Callable[..., Any]
) -> None:
    targets = ["c_attn"] if family == "gpt2" else ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, fan_in_fan_out=family == "gpt2")
    chosen = list(MEASURES) if backend == "blocked" else FLASH
    tokens = tiny_tokens((31, 44), "left")

    def adapted(**settings: Any) -> Any:
        model = get_peft_model(tiny_model(family, **settings), config).eval()
        random = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.copy_(0.25 * torch.randn(parameter.shape, generator=random))
        return model

    def expected(model: Any) -> Expected:
        found = {t.example: reference(model, t) for t in tokens.texts}
        return {example: {key: v for key, v in values.items() if key[2] in chosen} for example, values in found.items()}

    def recorded(model: Any) -> pd.DataFrame:
        with torch.no_grad(), record(model, tokens, chosen, backend=backend, seed=SEED) as heads:
            model(**tokens.inputs)
        return heads.examples()

    model = adapted()
    precise = expected(adapted(attention="eager").double())
    on = recorded(model)
    assert_agrees(on, precise, 1e-5)
    with model.disable_adapter():
        off = recorded(model)
    assert_agrees(off, expected(tiny_model(family, attention="eager").double()), 1e-5)
    assert (on["value"] - off["value"]).abs().max() > 0.1, "the adapter changes nothing, so the test is empty"
    assert_agrees(recorded(model.merge_and_unload()), precise, 1e-5)


# --- measures by hand, and measures of installed packages --------------------------------------------------------------------------


def test_measures_of_a_map_worked_by_hand(tiny_model: Callable[..., Any], tiny_tokens: Callable[..., Any]) -> None:
    """Three tokens, of which the last equals the first; its row is (1/2, 1/4, 1/4)."""
    text = random_annotated([5, 7, 5], roles=["special", "question_number", "operator"])
    p = np.array([[[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.25, 0.25]]])
    values = {name: rows[0, 2] for name, rows in query_values(p, text, np.inf, sink=False).items()}
    entropy = 1.5 * np.log(2)
    expected = {
        "entropy_nats": entropy,
        "entropy_normalized": entropy / np.log(3),
        "renyi2_nats": -np.log(0.375),
        "max_prob": 0.5,
        "self_mass": 0.25,
        "previous_mass": 0.25,
        "bos_mass": 0.5,
        "mean_distance": 1.25,
        "numeric_mass": 0.25,
        "operator_mass": 0.25,
        "numeric_mass_without_bos": 0.5,
        "numeric_enrichment": 0.75,
        "duplicate_token_mass": 0.5,
        "induction_mass": 0.25,
        "sparsity_010": 1.0,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    query = torch.tensor(np.log(p[0, 2]), dtype=torch.float32).view(1, 1, 1, 3).expand(1, 1, 3, 3)
    sets, columns, pairs = key_sets(Tokens((text,)), list(MEASURES.values()), 0)
    mask = lazy_mask(1, 3, 3)
    wanted = Wanted(thresholds=(0.1,))
    _, statistics = blocked_pass(query, torch.eye(3).view(1, 1, 3, 3), None, mask, Scores(1.0), sets, wanted)
    rows = Rows(statistics, columns, pairs, torch.arange(3)[None], torch.tensor([3]))
    found = {name: float(MEASURES[name].compute(rows)[0, 0, 2]) for name in expected}
    assert found == pytest.approx(expected, abs=1e-6)


def test_measures_are_listed_in_table_order_under_their_names() -> None:
    assert all(measure.info.name == name for name, measure in MEASURES.items())
    assert [*MEASURES][:5] == ["entropy_nats", "entropy_normalized", "renyi2_nats", "max_prob", "self_mass"]
    assert len(MEASURES) == 21


def test_an_unknown_measure_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(
        InputError,
        match=r"measures: 'entropie' is not known \(did you mean entropy_normalized\?\); known: entropy_nats, .*sparsity_010_published",
    ):
        load_measures(["entropy_nats", "entropie"])
    with pytest.raises(InputError, match="known:"):
        load_measures([])
    assert list(load_measures(["max_prob", "entropy_nats", "max_prob"])) == ["max_prob", "entropy_nats"]


@dataclass
class EntryPoint:
    name: str
    found: object
    value: str = "somewhere:found"

    def load(self) -> object:
        return self.found


def test_installed_packages_can_offer_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = [EntryPoint("top_two", TOP_TWO)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: offered if group == "primed_heads.measures" else [])
    assert list(load_measures()) == [*MEASURES, "top_two"]
    assert load_measures(["top_two"]) == {"top_two": TOP_TWO}
    for wrong in (EntryPoint("max_prob", TOP_TWO), EntryPoint("another_name", TOP_TWO), EntryPoint("top_two", top_two)):
        offered[:] = [wrong]
        with pytest.raises(InputError, match=wrong.name):
            load_measures()
