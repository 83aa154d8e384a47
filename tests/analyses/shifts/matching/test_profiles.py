"""Matching: known permutations are recovered, also for a real model; numbers agree with brute force."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from analyses.shifts.matching.profiles import PROFILE_MEASURES, HeadProfiles, match_heads, match_layers, profiles
from analyses.shifts.matching.words import same_words
from interp.measures.catalog import MEASURES
from interp.recording.recorder import record
from interp.tables.errors import InputError
from interp.tables.heads import EXAMPLE_VALUES
from interp.tables.schema import REGIONS, validate
from interp.tokens import annotate
from tests.analyses.shifts.matching.test_words import ANSWERS, QUESTIONS, make_bytes

Make = Callable[..., Any]
NAMES = ("bos_mass", "operator_mass", "mean_distance")
ROUNDS = 20


def table(values: np.ndarray, model: str = "m", measures: tuple[str, ...] = NAMES, examples: list[int] | None = None) -> pd.DataFrame:
    """Return an `examples` table of values [example, layer, head, measure, region]."""
    n_examples, n_layers, n_heads = values.shape[:3]
    keys = [examples or range(n_examples), range(n_layers), range(n_heads), measures, REGIONS]
    frame = pd.MultiIndex.from_product(keys, names=["example", "layer", "head", "measure", "region"]).to_frame(index=False)
    frame.insert(0, "model", model)
    frame["value"] = values.ravel()
    frame["n_queries"] = np.isfinite(values).ravel().astype(int)
    return frame


def random_values(n_examples: int, n_layers: int, n_heads: int, seed: int) -> np.ndarray:
    """Return values with a mean per head and as much variation between examples."""
    random = np.random.default_rng(seed)
    shape = (n_layers, n_heads, len(NAMES), len(REGIONS))
    return random.normal(size=shape) + random.normal(size=(n_examples, *shape))


def profiles_of(values: np.ndarray, model: str = "m", **settings: Any) -> HeadProfiles:
    return profiles(table(values, model), examples_in_common=range(len(values)), **{"measures": NAMES, **settings})


def partners(matched: pd.DataFrame) -> dict[tuple[int, int], tuple[int, int]]:
    columns = (matched[name].tolist() for name in ("layer_one", "head_one", "layer_other", "head_other"))
    return {(a, b): (c, d) for a, b, c, d in zip(*columns, strict=True)}


# --- a known permutation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_known_permutation_is_recovered(noise: float, seed: int) -> None:
    values = random_values(12, 3, 5, seed)
    random = np.random.default_rng(seed + 10)
    order = random.permutation(15)
    moved = values.reshape(12, 15, len(NAMES), len(REGIONS))[:, order].reshape(values.shape)
    # another scale and offset for every measure, region and example: what all heads of a model share must not matter
    moved = moved * random.uniform(0.1, 9, (12, 1, 1, 3, 3)) + random.normal(size=(12, 1, 1, 3, 3))
    moved = moved + noise * moved.std((1, 2), keepdims=True) * random.normal(size=moved.shape)
    matched = match_heads(profiles_of(values), profiles_of(moved), depth_weight=0, n_resamples=ROUNDS)
    assert partners(matched) == {divmod(int(old), 5): divmod(new, 5) for new, old in enumerate(order)}
    assert (matched["margin"] > 0).all()
    assert (matched["stability"] > 0.9).all()
    assert matched["similarity"].min() > (0.999999 if noise == 0 else 0.5)


@pytest.mark.parametrize("swap", [False, True])
def test_all_heads_of_the_smaller_model_find_their_partner(swap: bool) -> None:
    large = random_values(10, 5, 4, 3)
    chosen = np.random.default_rng(4).permutation(20)[:6]  # 3 layers of 2 heads
    small = large.reshape(10, 20, 3, 3)[:, chosen].reshape(10, 3, 2, 3, 3)
    small = small + 0.3 * np.random.default_rng(5).normal(size=small.shape)
    pair = [profiles_of(large, "large"), profiles_of(small, "small")]
    matched = match_heads(*(pair[::-1] if swap else pair), depth_weight=0, n_resamples=ROUNDS)
    expected = {divmod(int(old), 4): divmod(new, 2) for new, old in enumerate(chosen)}
    found = partners(matched)
    assert ({b: a for a, b in found.items()} if swap else found) == expected
    assert len(matched) == 6
    assert matched[["layer_one", "head_one"]].to_numpy().tolist() == sorted(map(list, found))
    ends = ("one", "other") if not swap else ("other", "one")
    np.testing.assert_allclose(matched[f"depth_{ends[0]}"], matched[f"layer_{ends[0]}"] / 4)
    np.testing.assert_allclose(matched[f"depth_{ends[1]}"], matched[f"layer_{ends[1]}"] / 2)
    np.testing.assert_allclose(matched["depth_difference"], abs(matched["depth_one"] - matched["depth_other"]))


def test_depth_weight_moves_partners_to_the_same_depth() -> None:
    values = random_values(10, 4, 2, 6)
    upside_down = values[:, ::-1]
    found = [match_heads(profiles_of(values), profiles_of(upside_down), depth_weight=w, n_resamples=0) for w in (0, 0.25, 5)]
    assert partners(found[0]) == {(a, b): (3 - a, b) for a in range(4) for b in range(2)}
    assert found[0]["similarity"].min() > 0.999999
    differences = [f["depth_difference"].sum() for f in found]
    assert differences[0] >= differences[1] > differences[2] == 0
    assert (found[2]["layer_one"] == found[2]["layer_other"]).all()
    assert (found[2]["margin"] < 0).all()
    assert found[2]["stability"].isna().all()


def test_depth_decides_between_equal_partners() -> None:
    values = random_values(6, 5, 1, 7)
    values[:, 3] = values[:, 0]
    late = np.concatenate([random_values(6, 4, 1, 8), values[:, :1]], axis=1)
    matched = partners(match_heads(profiles_of(values), profiles_of(late), n_resamples=0))
    assert matched[3, 0] == (4, 0)


# --- the numbers against brute force ----------------------------------------------------------------------------------


def brute_force(one: np.ndarray, other: np.ndarray, far: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Correlations by scipy, and the cheapest of all assignments of the fewer rows of `one` to rows of `other`."""
    similarity = np.asarray([[scipy.stats.pearsonr(a, b)[0] for b in other] for a in one])
    cost = 1 - similarity + far
    best = min(itertools.permutations(range(len(other)), len(one)), key=lambda p: sum(cost[i, j] for i, j in enumerate(p)))
    return similarity, best


def standardized(values: np.ndarray) -> np.ndarray:
    """Values [example, layer, head, measure, region] as profiles over question and response, [head, measure, region, example]."""
    heads = values.reshape(len(values), -1, *values.shape[3:]).transpose(1, 2, 3, 0)[:, :, :2]
    return (heads - heads.mean(0)) / heads.std(0)


def test_similarity_margin_and_stability_equal_brute_force() -> None:
    values = [random_values(5, 2, 2, 11), random_values(5, 3, 2, 12)]
    one, other = (standardized(v) for v in values)
    far = 0.4 * abs(np.asarray([0, 0, 1, 1])[:, None] - np.asarray([0, 0, 0.5, 0.5, 1, 1]))
    similarity, best = brute_force(one.reshape(4, -1), other.reshape(6, -1), far)
    matched = match_heads(*(profiles_of(v) for v in values), depth_weight=0.4, n_resamples=ROUNDS, seed=3)
    assert list(partners(matched).values()) == [divmod(j, 2) for j in best]
    np.testing.assert_allclose(matched["similarity"], similarity[range(4), best], atol=1e-12)
    rivals = [max([*np.delete(similarity[i], j), *np.delete(similarity[:, j], i)]) for i, j in enumerate(best)]
    np.testing.assert_allclose(matched["margin"], matched["similarity"] - rivals, atol=1e-12)

    same = np.zeros(4)
    for draw in np.random.default_rng(3).multinomial(5, np.full(5, 0.2), ROUNDS):
        picked = np.repeat(range(5), draw)  # every drawn example as often as it was drawn
        same += np.equal(brute_force(one[..., picked].reshape(4, -1), other[..., picked].reshape(6, -1), far)[1], best)
    np.testing.assert_allclose(matched["stability"], same / ROUNDS)
    assert 0 < matched["stability"].mean() < 1


def test_layers_are_compared_by_linear_cka() -> None:
    values = [random_values(4, 2, 3, 13), random_values(4, 3, 2, 14)]
    values[1][:, 1, :, :] = values[0][:, 0, :2, :]
    found = match_layers(*(profiles_of(v) for v in values))
    one, other = (standardized(v).reshape(v.shape[1], v.shape[2], -1) for v in values)
    centre = np.eye(one.shape[-1]) - 1 / one.shape[-1]

    def hsic(a: np.ndarray, b: np.ndarray) -> float:  # Gretton et al. 2005, kernels over features
        return np.trace(a.T @ a @ centre @ b.T @ b @ centre)

    expected = [hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b)) for a in one for b in other]
    np.testing.assert_allclose(found["similarity"], expected, atol=1e-12)
    assert found["layer_one"].tolist() == [0, 0, 0, 1, 1, 1]
    assert found["layer_other"].tolist() == [0, 1, 2, 0, 1, 2]
    assert found["depth_one"].tolist() == [0, 0, 0, 1, 1, 1]
    assert found["depth_other"].tolist() == [0, 0.5, 1] * 2
    assert found["similarity"].idxmax() == 1
    assert found["similarity"].between(0, 1).all()


def test_layer_similarity_does_not_depend_on_the_order_of_heads() -> None:
    values = random_values(6, 3, 4, 15)
    found = match_layers(profiles_of(values), profiles_of(values[:, :, ::-1])).pivot(
        index="layer_one", columns="layer_other", values="similarity"
    )
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-12)
    assert found.to_numpy()[~np.eye(3, dtype=bool)].max() < 0.9


# --- profiles ---------------------------------------------------------------------------------------------------------


def test_default_measures_exist_and_do_not_depend_on_the_number_of_tokens() -> None:
    assert set(PROFILE_MEASURES) <= set(MEASURES)
    assert {MEASURES[name].info.unit for name in PROFILE_MEASURES} == {"probability", "1"}
    left_out = {name for name, m in MEASURES.items() if m.info.unit not in ("probability", "1")}
    assert left_out == {
        "entropy_nats",
        "renyi2_nats",
        "mean_distance",
        "numeric_enrichment",
        "numeric_z",
        "sparsity_010",
        "sparsity_010_published",
    }


def test_a_profile_is_standardized_over_heads_in_any_order_of_rows() -> None:
    values = random_values(4, 2, 3, 20)
    frame = table(values, examples=[9, 2, 5, 7])
    found = profiles(frame, examples_in_common=[7, 2, 9], measures=NAMES)
    assert found.features.tolist() == list(itertools.product(NAMES, ("question", "response"), (2, 7, 9)))
    expected = standardized(values)[..., [1, 3, 0]].reshape(6, -1)
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    assert found.layers.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.heads.tolist() == [0, 1, 2] * 2
    stored = validate(frame.sample(frac=1, random_state=1), EXAMPLE_VALUES).to_pandas()  # shuffled, with the types of a file
    assert isinstance(stored["measure"].dtype, pd.CategoricalDtype)
    again = profiles(stored, examples_in_common=[7, 2, 9], measures=NAMES)
    np.testing.assert_array_equal(again.values, found.values)
    assert again.features.equals(found.features)
    for some in (frame, stored):
        assert set(profiles(some, examples_in_common=[2]).features.get_level_values("measure")) == {"bos_mass", "operator_mass"}


def test_features_undefined_or_equal_for_all_heads_are_left_out() -> None:
    values = random_values(3, 2, 2, 21)
    values[1, 0, 1, 0, 0] = np.nan  # of one head alone
    values[2, :, :, 1, 1] = 0
    values[0, :, :, 2, 0] = 0.3 * (1 + 1e-8 * values[0, :, :, 2, 0])  # rounding
    found = profiles_of(values)
    gone = {("bos_mass", "question", 1), ("operator_mass", "response", 2), ("mean_distance", "question", 0)}
    assert set(itertools.product(NAMES, ("question", "response"), range(3))) - set(found.features) == gone
    whole = profiles_of(random_values(3, 2, 2, 22))
    kept = [f not in gone for f in whole.features]
    expected = np.corrcoef(found.values, whole.values[:, kept])[:4, 4:]
    matched = match_heads(found, whole, depth_weight=0, n_resamples=0)
    for (a, b), (c, d) in partners(matched).items():
        assert matched["similarity"][2 * a + b] == pytest.approx(expected[2 * a + b, 2 * c + d], abs=1e-12)


def test_depth_of_one_layer_and_of_layers_without_attention() -> None:
    assert profiles_of(random_values(3, 1, 3, 0)).depths.tolist() == [0.5] * 3
    sparse = table(random_values(3, 2, 2, 0)).replace({"layer": {1: 3}})
    ends = [profiles(sparse, examples_in_common=range(3), measures=NAMES, n_layers=n).depths.tolist() for n in (None, 7)]
    assert ends == [[0, 0, 1, 1], [0, 0, 0.5, 0.5]]
    with pytest.raises(InputError, match="n_layers is 3, but the table has layer 3"):
        profiles(sparse, examples_in_common=range(3), measures=NAMES, n_layers=3)


# --- a real model -----------------------------------------------------------------------------------------------------


def permute_heads(model: Any, order: np.ndarray) -> None:
    """Renumber the heads of a Llama without groups in every layer: head i becomes what head order[layer, i] was."""
    for layer, new in zip(model.model.layers, order, strict=True):
        attention = layer.self_attn
        rows = np.arange(attention.q_proj.out_features).reshape(len(new), -1)[new].ravel()
        with torch.no_grad():
            for name in ("q_proj", "k_proj", "v_proj"):
                weight = getattr(attention, name).weight
                weight.copy_(weight[rows].clone())
            attention.o_proj.weight.copy_(attention.o_proj.weight[:, rows].clone())


def recorded(model: Any, tokens: Any, name: str) -> pd.DataFrame:
    with torch.no_grad(), record(model, tokens, PROFILE_MEASURES) as heads:
        model(**tokens.inputs)
    return heads.examples(name)


@pytest.mark.parametrize("depth_weight", [0.0, 0.25])
def test_heads_of_a_permuted_model_are_recovered(depth_weight: float, tiny_model: Make, tiny_tokens: Make) -> None:
    tokens = tiny_tokens((40, 23, 61, 34))
    settings = {"num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 64, "seed": 2}
    original, moved = (tiny_model("llama", **settings) for _ in range(2))
    order = np.stack([np.random.default_rng(layer).permutation(8) for layer in range(3)])
    permute_heads(moved, order)
    with torch.no_grad():  # the same function with heads numbered differently
        torch.testing.assert_close(moved(**tokens.inputs).logits, original(**tokens.inputs).logits, rtol=1e-4, atol=1e-4)
        for parameter in moved.parameters():
            parameter.mul_(1 + 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    pair = [profiles(recorded(model, tokens, "m"), examples_in_common=range(4)) for model in (original, moved)]
    matched = match_heads(*pair, depth_weight=depth_weight, n_resamples=ROUNDS)
    assert partners(matched) == {(layer, int(old)): (layer, new) for layer, olds in enumerate(order) for new, old in enumerate(olds)}
    assert matched["similarity"].min() > 0.9
    assert matched["margin"].min() > 0


def test_models_with_different_architectures_and_tokenizers_are_matched(tiny_model: Make) -> None:
    tables = []
    for family, tokenizer, heads in (("llama", make_bytes(400, True), 4), ("gpt2", make_bytes(0, False), 2)):
        model = tiny_model(family, vocab_size=700, num_attention_heads=heads, num_hidden_layers=heads - 1)
        tokens = annotate(tokenizer, QUESTIONS, ANSWERS)
        tables.append((tokens.to_frame(), recorded(model, tokens, family)))
    words = same_words(tables[0][0], tables[1][0])
    assert (words["n_tokens_one"] < words["n_tokens_other"]).all()
    teacher, student = (profiles(examples, examples_in_common=words["example"]) for _, examples in tables)
    matched = match_heads(teacher, student, n_resamples=ROUNDS)
    assert sorted(partners(matched).values()) == [(0, 0), (0, 1)]
    assert len(partners(matched)) == 2
    assert matched["similarity"].between(-1, 1).all()
    layers = match_layers(teacher, student)
    assert layers[["layer_one", "layer_other"]].to_numpy().tolist() == [[0, 0], [1, 0], [2, 0]]
    assert layers["similarity"].between(0, 1).all()


# --- refused ----------------------------------------------------------------------------------------------------------


def test_profiles_refuse_unusable_tables() -> None:
    values = random_values(3, 2, 2, 30)
    frame = table(values)
    common = range(3)
    for wrong, settings, message in (
        (frame, {"examples_in_common": [0, 8, 9]}, "m: examples 8, 9 asked for; the table has 0, 1, 2"),
        (frame, {"examples_in_common": []}, r"m: examples \(none\) asked for"),
        (frame, {"measures": ["bos_mass", "glow"]}, "m: measures glow asked for; the table has bos_mass, operator_mass, mean_distance"),
        (frame, {"regions": ["answer"]}, "m: regions answer asked for; the table has question, response, all"),
        (
            frame[frame["measure"] == "mean_distance"],
            {},
            "the table has measures mean_distance, but none that is comparable across models: entropy_norm",
        ),
        (frame.drop(columns="value"), {}, r"table examples: missing columns \['value'\]"),
        (frame[:0], {}, r"models \(none\)"),
        (pd.concat([frame, frame.assign(model="n")]), {}, "the table has models m, n; give the rows of one model"),
        (pd.concat([frame, frame[:1]]), {}, "m: 1 rows repeat"),
        (table(values[:, :1, :1]), {}, "m has one head"),
        (table(np.full_like(values, np.nan)), {}, "m: no measure has a value for every head in any of the 3 examples"),
        (frame.where(frame["head"] > 0, frame.assign(value=np.nan)), {}, "m: no measure has a value for every head"),
        (table(np.full_like(values, 0.5)), {}, "m: all 4 heads are the same in each of 12 values"),
    ):
        with pytest.raises(InputError, match=message):
            profiles(wrong, **{"examples_in_common": common, **settings})


def test_matching_refuses_profiles_without_common_features() -> None:
    values = random_values(3, 2, 2, 31)
    one = profiles_of(values)
    for wrong, message in (
        (
            profiles(table(values, "n", examples=[7, 8, 9]), examples_in_common=[7, 8], measures=NAMES),
            "no example in common: m has 0, 1, 2, n 7, 8",
        ),
        (profiles_of(values, "n", regions=["all"]), "no region in common: m has question, response, n all"),
        (
            profiles(table(values, "n", ("a", "b", "c")), examples_in_common=range(3), measures=["a"]),
            "no measure in common: m has bos_mass",
        ),
        (
            profiles(table(values), examples_in_common=[0], measures=NAMES[:1], regions=["question"]),
            "1 features .* in common; a correlation",
        ),
    ):
        for match in (match_heads, match_layers):
            with pytest.raises(InputError, match=message):
                match(one, wrong)
    wrong_settings: list[tuple[dict[str, Any], str]] = [
        ({"depth_weight": -1}, "depth_weight is -1; it must be 0 or more"),
        ({"depth_weight": np.nan}, "depth_weight is nan"),
        ({"n_resamples": -1}, "n_resamples is -1"),
    ]
    for settings, message in wrong_settings:
        with pytest.raises(InputError, match=message):
            match_heads(one, one, **settings)


def test_a_head_without_variation_is_named() -> None:
    values = random_values(3, 1, 2, 32)  # of two heads, one is always above their mean: z is 1 or -1
    values[:, 0, 0], values[:, 0, 1] = abs(values[:, 0, 0]), -abs(values[:, 0, 1])
    other = profiles_of(random_values(3, 2, 2, 33))
    with pytest.raises(InputError, match="m: head 0 of layer 0 is the same in all 18 features in common; take more"):
        match_heads(profiles_of(values), other)
    with pytest.raises(InputError, match="m: layer 0 is the same in all 18 features"):
        match_layers(profiles_of(values), other)


def test_one_example_has_no_stability_and_seeds_are_reproducible() -> None:
    values = [random_values(8, 2, 3, 34), random_values(8, 2, 3, 35)]
    alone = match_heads(*(profiles_of(v[:1]) for v in values))
    assert alone["stability"].isna().all()
    runs = [match_heads(*(profiles_of(v) for v in values), n_resamples=ROUNDS, seed=s) for s in (0, 0, 1)]
    pd.testing.assert_frame_equal(runs[0], runs[1])
    assert (runs[0]["stability"] != runs[2]["stability"]).any()


def test_the_module_needs_no_torch() -> None:
    code = "import sys, analyses.shifts.matching.profiles; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
