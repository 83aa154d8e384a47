"""Map divergence against float64 maps and scipy, in lockstep and one student at a time, with switched and loaded adapters."""

from __future__ import annotations

import copy
import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from scipy.spatial.distance import jensenshannon

from interp.attention import seam
from interp.checkpoints.adapters import open_adapters
from interp.checkpoints.opening import open_checkpoint
from interp.recording.divergence import ALL, BASE, Student, map_divergence
from interp.recording.recorder import MapBlock, record
from interp.tables.errors import CheckpointError, InputError, NonFiniteError, RecordingError
from interp.tables.schema import REGIONS
from interp.tokens import Tokens, annotate

Make = Callable[..., Any]
LENGTHS = (40, 23, 61)
KEYS = ["example", "layer", "head", "model", "baseline", "region", "measure"]
PROBLEM = ("A cup costs $2. What do 15 cups cost?", "15 x 2 = $30.\n#### 30")
FAMILIES = ("llama", "mistral", "gemma2", "gpt_oss", "gpt2", "deepseek_v3")


def from_complete_maps(maps: dict[str, list[np.ndarray]], tokens: Tokens, baseline: str, *, sink: bool = False) -> pd.DataFrame:
    """Return the table by the formulas, from each model's maps: for each text, [layer, head, query, key] of its own tokens."""
    rows = []
    for at, text in enumerate(tokens.texts):
        for region in REGIONS:
            chosen = np.flatnonzero(text.in_region(region) & text.is_query)
            here = {name: per_text[at].astype(np.float64)[:, :, chosen] for name, per_text in maps.items()}
            spread = np.var(list(here.values()), axis=0)
            allowed = np.any(list(here.values()), axis=0)
            for layer, head in np.ndindex(*spread.shape[:2]):
                place = {"example": text.example, "layer": layer, "head": head, "baseline": baseline, "region": region}
                p = here[baseline][layer, head]
                for name in maps.keys() - {baseline}:
                    q = here[name][layer, head]
                    outcomes = [np.column_stack([m, (1 - m.sum(-1)).clip(0)]) if sink else m for m in (p, q)]
                    # if rounding makes the divergence negative, scipy's root is NaN
                    js = np.mean(np.nan_to_num(jensenshannon(outcomes[0].T, outcomes[1].T) ** 2)) if len(chosen) else np.nan
                    cosine = (p * q).sum() / np.sqrt((p**2).sum() * (q**2).sum()) if len(chosen) else np.nan
                    rows += [{**place, "model": name, "measure": m, "value": v} for m, v in (("js", js), ("cosine", cosine))]
                variance = spread[layer, head][allowed[layer, head]].mean() if len(chosen) else np.nan
                rows.append({**place, "model": ALL, "measure": "variance", "value": variance})
    return pd.DataFrame(rows)


def assert_same(found: pd.DataFrame, expected: pd.DataFrame, tolerance: float) -> None:
    joined = found.merge(expected, on=KEYS, suffixes=("", "_expected"), validate="one_to_one")
    assert len(joined) == len(found) == len(expected)
    np.testing.assert_allclose(joined["value"], joined["value_expected"], rtol=tolerance, atol=tolerance)


def eager_maps(model: Any, tokens: Tokens) -> list[np.ndarray]:
    """Return the float64 maps of transformers for each text alone, because its rows of padding are NaN and would spread."""
    inputs = [tokens.select([at]).inputs for at in range(len(tokens))]
    with torch.no_grad():
        return [torch.cat(model(**each, output_attentions=True).attentions).numpy() for each in inputs]


def without_padding(maps: np.ndarray, tokens: Tokens) -> list[np.ndarray]:
    spans = [slice(start, start + len(t)) for start, t in zip(tokens.starts, tokens.texts, strict=True)]
    return [of_text[:, :, span, span] for of_text, span in zip(maps, spans, strict=True)]


def students_of(models: Sequence[Any]) -> list[Student]:
    return [Student("abcdef"[at], model) for at, model in enumerate(models)]


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_equal_those_of_float64_maps(
    family: str, padding_side: str, tiny_model: Make, tiny_tokens: Make, small_blocks: None
) -> None:
    tokens = tiny_tokens(LENGTHS, padding_side)
    found = map_divergence(students_of([tiny_model(family, seed=s) for s in range(3)]), tokens, baseline="b")
    maps = {name: eager_maps(tiny_model(family, seed=s, dtype="float64", attention="eager"), tokens) for s, name in enumerate("abc")}
    assert_same(found, from_complete_maps(maps, tokens, "b", sink=family == "gpt_oss"), 2e-5)
    values = found.set_index("measure")["value"]
    assert values["js"].between(1e-3, np.log(2)).all()
    assert values["cosine"].between(0, 0.9999).all()
    assert values["variance"].between(1e-6, 0.25).all()


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_lockstep_gives_the_values_of_separate_passes(family: str, tiny_model: Make, tiny_tokens: Make, small_blocks: None) -> None:
    models, tokens = [tiny_model(family, seed=s) for s in range(2)], tiny_tokens(LENGTHS)
    maps = {}
    for name, model in zip("ab", models, strict=True):
        with torch.no_grad(), record(model, tokens, ["entropy_nats"], maps=[(la, h) for la in range(2) for h in range(4)]) as heads:
            model(**tokens.inputs)
        whole = torch.stack([torch.stack([heads.maps[la, h] for h in range(4)], 1) for la in range(2)], 1)
        maps[name] = without_padding(whole.numpy(), tokens)
    expected = from_complete_maps(maps, tokens, "a", sink=family == "gpt_oss")
    # float32 rows sum to 1 within 1e-7, and scipy divides by their sum
    assert_same(map_divergence(students_of(models), tokens, baseline="a"), expected, 1e-7)


def test_copies_of_a_model_have_no_divergence(tiny_model: Make, tiny_tokens: Make) -> None:
    model = tiny_model("gpt_oss")
    students = [Student("one", model), Student("copy", copy.deepcopy(model)), Student("itself", model)]
    values = map_divergence(students, tiny_tokens(LENGTHS), baseline="one").set_index("measure")["value"]
    assert (values["js"] == 0).all()
    np.testing.assert_allclose(values["cosine"], 1, rtol=0, atol=1e-14)
    np.testing.assert_allclose(values["variance"], 0, rtol=0, atol=1e-30)


@pytest.mark.parametrize("whole_batch", [False, True])
@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("family", ["mistral", "gpt_oss"])
def test_a_batch_gives_the_values_of_its_texts_alone(
    family: str, padding_side: str, whole_batch: bool, tiny_model: Make, tiny_tokens: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    students, tokens = students_of([tiny_model(family, seed=s) for s in range(2)]), tiny_tokens(LENGTHS, padding_side)
    alone = [map_divergence(students, tokens.select([at]), baseline="a") for at in range(len(tokens))]
    if whole_batch:  # as on a GPU, where a block holds all texts, including padding
        monkeypatch.setattr("interp.attention.blocked._block_sizes", lambda _, batch, kv_heads, *__: (batch, kv_heads, 16))
    assert_same(map_divergence(students, tokens, baseline="a"), pd.concat(alone), 1e-5)


def test_order_and_number_of_students_do_not_change_values(tiny_model: Make, tiny_tokens: Make) -> None:
    a, b, c = students_of([tiny_model("llama", seed=s) for s in range(3)])
    tokens = tiny_tokens(LENGTHS)
    found = map_divergence([a, b, c], tokens, baseline="a")
    assert_same(map_divergence([c, b, a], tokens, baseline="a"), found, 1e-12)
    pair = map_divergence([b, a], tokens, baseline="b")
    swapped = pair[pair["model"] != ALL].assign(model="b", baseline="a")
    expected = found[(found["model"] == "b")]
    assert_same(swapped, expected, 1e-12)


def test_rows_columns_and_query_counts(tiny_model: Make, tiny_tokens: Make, tiny_tokenizer: Make) -> None:
    students, tokens = students_of([tiny_model("llama", seed=s) for s in range(3)]), tiny_tokens((30, 20))
    found = map_divergence(students, tokens, baseline="b")
    assert list(found.columns) == ["example", "layer", "head", "model", "baseline", "region", "measure", "value", "n_queries"]
    assert len(found) == 2 * 2 * 4 * 3 * (2 + 2 + 1)
    assert found[KEYS[:3]].apply(tuple, axis=1).is_monotonic_increasing
    for (example, region), rows in found.groupby(["example", "region"]):
        text = tokens.texts[int(str(example))]
        assert (rows["n_queries"] == (text.in_region(str(region)) & text.is_query).sum()).all()
    prompt = annotate(tiny_tokenizer(), PROBLEM[0])
    big = students_of([tiny_model("llama", seed=s, vocab_size=400) for s in range(2)])
    table = map_divergence(big, prompt, baseline="a")
    empty = table["region"] == "response"
    assert table.loc[empty, "value"].isna().all()
    assert (table.loc[empty, "n_queries"] == 0).all()
    assert table.loc[~empty, "value"].notna().all()


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapters(tmp_path: Path, checkpoint: Path, adapter: Path, save_adapter: Make) -> tuple[Path, Path]:
    return adapter, save_adapter(tmp_path / "weak", checkpoint, scale=0.1)


def state_of(model: Any) -> tuple[object, ...]:
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    adapters = [(list(m.active_adapters), m.disable_adapters) for m in layers]
    return adapters, [p.requires_grad for p in model.parameters()], model.active_adapter


def test_switching_adapters_equals_loading_each_student(checkpoint: Path, adapters: tuple[Path, Path]) -> None:
    opened = open_adapters(adapters, device="cpu")
    tokens = annotate(opened[0].tokenizer, [PROBLEM[0], "Half of 48?"], [PROBLEM[1], "24"])
    model = opened[0].model
    assert [c.name for c in opened] == ["lora", "weak"]
    assert all(c.model is model for c in opened)
    before = state_of(model)
    shared = [Student("base", model, BASE), *(Student(c.name, model, c.adapter) for c in opened)]
    found = map_divergence(shared, tokens, baseline="base")
    assert state_of(model) == before
    sources = {"base": checkpoint, "lora": adapters[0], "weak": adapters[1]}
    loaded = [Student(name, open_checkpoint(source, device="cpu").model) for name, source in sources.items()]
    assert_same(found, map_divergence(loaded, tokens, baseline="base"), 0)
    assert (found.groupby("model")["value"].max() > 1e-4).all()  # each adapter has an effect
    assert {c.identity["adapter"]["source"] for c in opened} == {str(path) for path in adapters}


def test_requires_grad_and_active_adapters_are_restored(tiny_model: Make, tiny_tokens: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model: Any = get_peft_model(tiny_model("llama"), config).eval()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False))
    model.eval()
    before, parameters = state_of(model), {n: p.clone() for n, p in model.named_parameters()}
    assert any(p.requires_grad for p in model.parameters())
    students = [Student("base", model, BASE), Student("one", model, "default"), Student("two", model, "other")]
    found = map_divergence(students, tiny_tokens(LENGTHS), baseline="base")
    assert (found.loc[found["measure"] == "js", "value"] > 0).any()
    assert state_of(model) == before
    assert all(torch.equal(p, parameters[n]) for n, p in model.named_parameters())
    with model.disable_adapter():
        disabled = state_of(model)
        again = map_divergence(students, tiny_tokens(LENGTHS), baseline="base")
        assert state_of(model)[0] == disabled[0]
    pd.testing.assert_frame_equal(again, found)
    monkeypatch.setattr("interp.recording.divergence._Sums.add", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        map_divergence(students, tiny_tokens(LENGTHS), baseline="base")
    assert state_of(model) == before


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_adapters_that_cannot_be_switched_are_rejected(
    tmp_path: Path, checkpoint: Path, adapters: tuple[Path, Path], save_adapter: Make, save_checkpoint: Make
) -> None:
    def changed(name: str, **changes: Any) -> Path:
        folder = Path(shutil.copytree(adapters[0], tmp_path / name))
        change_json(folder / "adapter_config.json", **changes)
        return folder

    def refused(match: str, *sources: Path, **settings: Any) -> None:
        with pytest.raises(CheckpointError, match=match):
            open_adapters(sources, device="cpu", **settings)

    refused("at least one")
    refused("dtype", adapters[0], dtype="int8")
    refused("is not an adapter", adapters[0], checkpoint)
    refused(r"modules_to_save=\['lm_head'\]; open it by itself", adapters[0], changed("head", modules_to_save=["lm_head"]))
    refused("bias=all", adapters[0], changed("bias", bias="all"))
    other = save_checkpoint(tmp_path / "other", seed=1)
    refused("need one base", adapters[0], save_adapter(tmp_path / "foreign", other))
    refused("changes nothing", adapters[0], save_adapter(tmp_path / "untrained", checkpoint, scale=0))
    refused("changes nothing", save_adapter(tmp_path / "first", checkpoint, scale=0), adapters[0])
    refused("incomplete", adapters[0], changed("more", target_modules=["q_proj", "v_proj", "k_proj"]))
    refused("does not fit", adapters[0], changed("rank", r=8))
    moved = Path(shutil.copytree(checkpoint, tmp_path / "moved"))
    same = changed("same", base_model_name_or_path=str(moved))
    assert len(open_adapters([adapters[0], same], device="cpu")) == 2  # the same base in two folders
    assert len(open_adapters([tmp_path / "foreign", adapters[0]], base=str(checkpoint), device="cpu")) == 2


# --- errors, and that nothing is left behind -------------------------------------------------------------------------


def assert_nothing_is_left(models: Sequence[Any]) -> None:
    assert not [t for t in threading.enumerate() if t.name.startswith("forward of")]
    assert not seam._SWITCHED
    assert all(m.config._attn_implementation == "sdpa" for m in models)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for model in models for m in model.modules())


@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_of_one_student_ends_all_forwards(broken: int, tiny_model: Make, tiny_tokens: Make) -> None:
    models = [tiny_model("llama", seed=s) for s in range(2)]
    with torch.no_grad():
        models[broken].model.layers[1].self_attn.q_proj.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="layer 1") as caught:
        map_divergence(students_of(models), tiny_tokens(LENGTHS), baseline="a")
    assert caught.value.__notes__ == [f"(student {'ab'[broken]})"]
    assert_nothing_is_left(models)


def test_an_error_of_the_comparison_ends_all_forwards(tiny_model: Make, tiny_tokens: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [tiny_model("llama", seed=s) for s in range(2)]
    monkeypatch.setattr("interp.recording.divergence._Sums.add", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        map_divergence(students_of(models), tiny_tokens(LENGTHS), baseline="a")
    assert_nothing_is_left(models)


def test_students_that_cannot_be_compared_are_rejected(tiny_model: Make, tiny_tokens: Make) -> None:
    tokens, llama = tiny_tokens([20, 12]), tiny_model("llama")  # short enough for one block
    adapted: Any = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))

    def refused(match: str, *students: Student, baseline: str = "a") -> None:
        with pytest.raises(InputError, match=match):
            map_divergence(students, tokens, baseline=baseline)
        assert_nothing_is_left([llama])

    one = Student("a", llama)
    refused("needs two or more", one)
    refused("student names a occur twice", one, one)
    refused("is reserved", one, Student(ALL, llama))
    refused("'z' is not one of the students: a, b", one, Student("b", llama), baseline="z")
    refused("4 heads on cpu, but b has 2 attention layers with 2 heads", one, Student("b", tiny_model("llama", num_attention_heads=2)))
    refused("but b has 3 attention layers", one, Student("b", tiny_model("llama", num_hidden_layers=3)))
    refused("use the tokenizer of this model", one, Student("b", tiny_model("llama", vocab_size=20)))
    refused("holds no transformers model", one, Student("b", torch.nn.Linear(2, 2)))
    refused("layer 0: b and a differ in the keys", one, Student("b", tiny_model("mistral", sliding_window=4)))
    refused("the model has no adapter 'z'; it has default", one, Student("b", adapted, "z"))
    refused("not a PeftModel", one, Student("b", tiny_model("llama"), "default"))
    refused("c names no adapter, but shares its model", Student("a", adapted, BASE), Student("c", adapted))
    adapted.merge_adapter()
    refused("merged", one, Student("b", adapted, "default"))


@pytest.mark.parametrize("other", [("mistral", {"sliding_window": 4}), ("llama", {"num_key_value_heads": 4})])
def test_students_with_different_masks_or_key_heads_are_rejected(
    other: tuple[str, Any], tiny_model: Make, tiny_tokens: Make, small_blocks: None
) -> None:
    models = [tiny_model("llama"), tiny_model(other[0], **other[1])]
    with pytest.raises(InputError, match="b and a differ in their masks or in the number of key-value heads"):
        map_divergence(students_of(models), tiny_tokens(LENGTHS), baseline="a")
    assert_nothing_is_left(models)


# --- the recorder's reader --------------------------------------------------------------------------------------------


class Collector:
    """Assembles maps from their blocks."""

    def __init__(self, n_texts: int, width: int) -> None:
        self.maps = torch.zeros(2, n_texts, 4, width, width)
        self.ends: list[tuple[int, torch.Tensor]] = []

    def read(self, block: MapBlock) -> None:
        self.maps[block.layer, block.examples, block.heads, block.queries, block.keys] = block.probabilities

    def end_layer(self, layer: int, n_keys: torch.Tensor) -> None:
        self.ends.append((layer, n_keys))


@pytest.mark.parametrize("family", ["mistral", "gpt_oss"])
def test_a_reader_gets_every_map(family: str, tiny_model: Make, tiny_tokens: Make, small_blocks: None) -> None:
    model, tokens = tiny_model(family), tiny_tokens(LENGTHS, "left")
    seen = Collector(len(tokens), tokens.width)
    with (
        torch.no_grad(),
        record(model, tokens, ["entropy_nats"], maps=[(la, h) for la in range(2) for h in range(4)], reader=seen) as heads,
    ):
        model(**tokens.inputs)
    for (layer, head), kept in heads.maps.items():
        assert torch.equal(seen.maps[layer, :, head], kept)
    assert [layer for layer, _ in seen.ends] == [0, 1]
    for layer, n_keys in seen.ends:
        assert torch.equal((seen.maps[layer] > 0).sum(-1).amax(1), n_keys.long())
    with torch.no_grad(), record(model, tokens, ["entropy_nats"]) as plain:
        model(**tokens.inputs)
    pd.testing.assert_frame_equal(heads.examples(), plain.examples())


def test_a_reader_rejects_generation_and_the_flash_backend(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens((20,))
    seen = Collector(1, 20)
    with pytest.raises(RecordingError, match="cannot follow a model while it generates"), record(model, tokens, {}, reader=seen):
        model.generate(**tokens.inputs, max_new_tokens=2)
    with pytest.raises(RecordingError, match="the flash backend cannot"):
        record(model, tokens, {}, backend="flash", reader=seen)
