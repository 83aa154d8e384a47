"""Recordings: the model's output stays the same, batches and blocks do not matter, generation, TransformerLens as an oracle, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from interp.measures.catalog import MEASURES
from interp.recording.recorder import record
from interp.tables.errors import InputError, NonFiniteError, RecordingError
from interp.tokens import Tokens, annotate
from tests.interp.recording.cases import (
    FLASH,
    LENGTHS,
    QUESTIONS,
    assert_restored,
    assert_same,
    forward,
    recorded,
    state_of,
    toy_tokenizer,
)

Make = Callable[..., Any]


# --- the model's output and state -------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gpt_oss", "deepseek_v3"])
def test_recording_does_not_change_the_logits(family: str, padding_side: str, tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model(family), tiny_tokens(LENGTHS, padding_side)
    implementation, state = model.config._attn_implementation, state_of(model)
    expected = forward(model, tokens)
    real = tokens.inputs["attention_mask"].bool()
    for backend in ("blocked",) if family == "gemma2" else ("blocked", "flash"):
        with record(model, tokens, FLASH, backend=backend):
            logits = forward(model, tokens)
        assert float((logits - expected)[real].abs().max()) <= 1e-5 * float(expected[real].abs().max())
        assert_restored(model, implementation, state)
    torch.testing.assert_close(forward(model, tokens), expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3", "gpt_neox", "olmo2"])
def test_the_flash_backend_gives_the_same_logits_bit_for_bit(family: str, tiny_model: Make, tiny_tokens: Make) -> None:
    settings = {"sliding_window": None} if family == "phi3" else {}
    model, tokens = tiny_model(family, **settings), tiny_tokens((40,))
    expected = forward(model, tokens)
    with record(model, tokens, FLASH, backend="flash"):
        logits = forward(model, tokens)
    assert torch.equal(logits, expected)


def test_gradients_flow_through_a_recorded_forward(tiny_model: Make, tiny_tokens: Make) -> None:
    for family in ("llama", "gemma2", "gpt_oss", "mistral"):
        model = tiny_model(family)
        for side in ("right", "left"):
            tokens = tiny_tokens(LENGTHS, side)
            labels = tokens.inputs["input_ids"].masked_fill(tokens.inputs["attention_mask"] == 0, -100)
            labels[range(len(tokens)), tokens.starts] = -100  # predicted from padding
            model(**tokens.inputs, labels=labels).loss.backward()
            expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            model.zero_grad()
            with record(model, tokens) as heads:
                model(**tokens.inputs, labels=labels).loss.backward()
            found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            assert found.keys() == expected.keys()
            for name, gradient in found.items():
                scale = float(expected[name].abs().max())
                assert float((gradient - expected[name]).abs().max()) <= 1e-4 * max(scale, 1e-6), (family, side, name)
            assert_same(heads.examples(), recorded(model, tokens).examples())
            model.zero_grad()


# --- invariance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["blocked", "flash"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss"])
def test_batch_order_padding_and_splitting_do_not_change_values(family: str, backend: str, tiny_model: Make, tiny_tokens: Make) -> None:
    # float32 sums differ in their last bits between batch shapes; with soft attention the model keeps the difference below 1e-6
    model, tokens = tiny_model(family, peak=1.0), tiny_tokens((40, 23, 61, 34, 52))
    measures = list(MEASURES) if backend == "blocked" else FLASH
    expected = recorded(model, tokens, measures, backend=backend).examples()
    for side in ("right", "left"):
        for order in ([4, 2, 0, 1, 3], [3, 4, 1, 0, 2]):
            assert_same(recorded(model, tokens.select(order, side), measures, backend=backend).examples(), expected)
        for parts in ([[0], [1], [2], [3], [4]], [[3, 1], [0, 4, 2]]):
            totals = [recorded(model, tokens.select(part, side), measures, backend=backend).totals for part in parts]
            merged = totals[0]
            for other in totals[1:]:
                merged = merged.merge(other)
            assert_same(merged.examples_table("model"), expected)


def test_block_sizes_do_not_change_values(tiny_model: Make, tiny_tokens: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("llama", "mistral", "gemma2", "gpt_oss"):
        model, tokens = tiny_model(family, peak=1.0), tiny_tokens(LENGTHS, "left")
        expected = recorded(model, tokens).examples()
        for rows, elements in ((1, 1), (16, 512), (48, 1 << 16)):
            with monkeypatch.context() as patch:
                patch.setattr("interp.attention.blocked.MIN_ROWS", rows)
                patch.setattr("interp.attention.blocked.MAX_ROWS", rows)
                patch.setattr("interp.attention.blocked.CPU_BLOCK_ELEMENTS", elements)
                found = recorded(model, tokens).examples()
            assert_same(found, expected)


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_blocks_of_the_complete_batch_as_on_a_gpu(
    padding_side: str, tiny_model: Make, tiny_tokens: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for family in ("llama", "mistral", "gpt_oss"):
        model, tokens = tiny_model(family, peak=1.0), tiny_tokens(LENGTHS, padding_side)
        expected, logits = recorded(model, tokens).examples(), forward(model, tokens)
        real = tokens.inputs["attention_mask"].bool()
        with monkeypatch.context() as patch:
            patch.setattr("interp.attention.blocked._block_sizes", lambda device, batch, kv_heads, groups, keys: (batch, kv_heads, 16))
            with record(model, tokens) as heads:
                found = forward(model, tokens)
        assert_same(heads.examples(), expected)
        torch.testing.assert_close(found[real], logits[real], rtol=1e-4, atol=1e-5)
        assert bool(found.isfinite().all())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft uses the old name
def test_models_with_adapters_are_checked_and_can_generate(tiny_model: Make, tiny_tokens: Make) -> None:
    base = tiny_model("llama")
    base.generation_config.eos_token_id = None
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    with pytest.raises(RecordingError, match="other tokens"), record(model, tiny_tokens((20,))):
        model(**tiny_tokens((30,)).inputs)
    prompt = annotate(toy_tokenizer(), QUESTIONS[:2], chat=False, padding_side="left")
    with record(model, prompt) as heads:
        model.generate(**prompt.inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert [len(t) for t in heads.tokens.texts] == [len(t) + 5 for t in prompt.texts]
    assert_same(heads.examples(), recorded(model, Tokens(heads.tokens.texts)).examples(), 2e-6)


def test_the_padding_token_does_not_change_values(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens(LENGTHS, "left")
    other = Tokens(tokens.texts, "left", pad_id=17)
    assert_same(recorded(model, other).examples(), recorded(model, tokens).examples(), 0)


def test_the_seed_changes_only_the_shuffles(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens(LENGTHS)
    first, second = (recorded(model, tokens, seed=seed).examples().set_index("measure")["value"] for seed in (0, 1))
    assert (first["numeric_z"] != second["numeric_z"]).any()
    pd.testing.assert_series_equal(first.drop("numeric_z"), second.drop("numeric_z"))


def test_recording_in_inference_mode(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens(LENGTHS)
    expected = recorded(model, tokens).examples()
    with torch.inference_mode(), record(model, tokens) as heads:
        model(**tokens.inputs)
    assert_same(heads.examples(), expected, 0)


# --- complete maps, TransformerLens, scipy -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox"])
def test_maps_and_entropy_agree_with_transformer_lens(family: str, tiny_model: Make, tiny_tokens: Make, tmp_path: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    model, tokens = tiny_model(family), tiny_tokens((37,))
    named = [(layer, head) for layer in range(2) for head in range(4)]
    heads = recorded(model, tokens, maps=named)
    toy_tokenizer().save_pretrained(tmp_path)  # TransformerLens opens it again by name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    eager = tiny_model(family, attention="eager")
    bridge = TransformerBridge.boot_transformers("tiny", hf_model=eager, tokenizer=tokenizer, device="cpu")
    with torch.no_grad():
        _, cache = bridge.run_with_cache(tokens.inputs["input_ids"])
    table = heads.examples().set_index(["layer", "head", "measure", "region"])["value"]
    for layer, head in named:
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head]
        torch.testing.assert_close(heads.maps[layer, head][0], pattern, rtol=1e-4, atol=1e-5)
        entropy = np.asarray(scipy.stats.entropy(pattern.double().numpy(), axis=-1))[tokens.texts[0].is_query].mean()
        assert table[layer, head, "entropy_nats", "all"] == pytest.approx(entropy, abs=2e-5)


def test_maps_of_a_padded_batch(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("mistral"), tiny_tokens(LENGTHS, "left")
    heads = recorded(model, tokens, ["bos_mass"], maps=[(1, 3), (0, 0)])
    assert set(heads.maps) == {(1, 3), (0, 0)}
    for example, (start, text) in enumerate(zip(tokens.starts, tokens.texts, strict=True)):
        alone = recorded(model, tokens.select([example]), ["bos_mass"], maps=[(1, 3)]).maps[1, 3][0]
        assert alone.shape == (len(text), len(text))
        torch.testing.assert_close(heads.maps[1, 3][example, start:, start:], alone, rtol=1e-4, atol=1e-5)
        assert float(heads.maps[1, 3][example, start:, :start].abs().sum()) == 0
        assert float(heads.maps[1, 3][example, :start].abs().sum()) == 0


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_texts", [1, 3])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text", "gpt_oss", "gpt_neox", "deepseek_v3"])
def test_generation_gives_the_values_of_a_forward_over_the_complete_text(family: str, n_texts: int, tiny_model: Make) -> None:
    model = tiny_model(family)
    prompt = annotate(toy_tokenizer(), QUESTIONS[:n_texts], chat=False, padding_side="left")
    greedy = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    model.generation_config.eos_token_id = None
    written = model.generate(**prompt.inputs, **greedy)
    for stop in (None, int(written[-1, -7])):  # with a stop id, one text ends early
        model.generation_config.eos_token_id = stop
        plain = model.generate(**prompt.inputs, **greedy)
        with record(model, prompt) as heads:
            found = model.generate(**prompt.inputs, **greedy)
        assert torch.equal(found, plain)
        whole = heads.tokens
        for row, text, start in zip(plain, whole.texts, prompt.starts, strict=True):
            new = row[prompt.width :].tolist()
            if stop in new:
                new = new[: new.index(stop) + 1]
            read = [*row[start : prompt.width].tolist(), *new]
            read = read[: -1 if len(new) == 12 or (len(new) == plain.shape[1] - prompt.width) else None]
            assert text.ids.tolist() == read  # the last token is generated but never read
        for example in range(n_texts):
            alone = Tokens((whole.texts[example],))
            expected = recorded(model, alone).examples()
            got = heads.examples()
            assert_same(got[got["example"] == example].drop(columns="model"), expected.drop(columns="model"), 2e-6)


def test_generation_keeps_the_maps_of_the_complete_text(tiny_model: Make) -> None:
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    prompt = annotate(toy_tokenizer(), QUESTIONS[0], chat=False)
    with record(model, prompt, maps=[(1, 2)]) as heads:
        model.generate(**prompt.inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)
    expected = recorded(model, Tokens(heads.tokens.texts), maps=[(1, 2)])
    torch.testing.assert_close(heads.maps[1, 2], expected.maps[1, 2], rtol=1e-4, atol=1e-5)


def test_the_model_is_restored_after_generation(tiny_model: Make) -> None:
    model = tiny_model("llama")
    state = state_of(model)
    prompt = annotate(toy_tokenizer(), QUESTIONS[0], chat=False)
    with record(model, prompt):
        model.generate(**prompt.inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert_restored(model, "sdpa", state)


def test_beam_search_static_caches_and_right_padding_are_rejected(tiny_model: Make) -> None:
    model = tiny_model("llama")
    prompt = annotate(toy_tokenizer(), QUESTIONS[:2], chat=False, padding_side="left")
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with pytest.raises(RecordingError, match="beam search and several samples"), record(model, prompt):
        model.generate(**prompt.inputs, **settings, num_beams=2)
    with pytest.raises(RecordingError, match="static"), record(model, prompt):
        model.generate(**prompt.inputs, **settings, cache_implementation="static")
    right = annotate(toy_tokenizer(), QUESTIONS[:2], chat=False)
    with pytest.raises(ValueError, match='padded on the right; generation needs padding_side="left"'), record(model, right):
        model.generate(**right.inputs, **settings)
    assert model.config._attn_implementation == "sdpa"


# --- errors -----------------------------------------------------------------------------------------------------------


def test_passes_that_differ_from_the_tokens_are_rejected(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens((20, 30), "left")
    state = state_of(model)
    ids = tokens.inputs["input_ids"]
    with pytest.raises(RecordingError, match=r"reads other tokens, \(1, 30\), .*\(2, 30\)"), record(model, tokens):
        model(ids[:1])
    with pytest.raises(RecordingError, match="reads other tokens"), record(model, tokens):
        model(ids.flip(0))
    with pytest.raises(RecordingError, match="attention_mask differs from that of the tokens"), record(model, tokens):
        model(ids)
    with pytest.raises(RecordingError, match="attention_mask differs from that of the tokens"), record(model, tokens):
        model(ids, attention_mask=tokens.inputs["attention_mask"].flip(1))
    with pytest.raises(RecordingError, match="no input_ids"), record(model, tokens):
        model(inputs_embeds=model.get_input_embeddings()(ids))
    with pytest.raises(RecordingError, match="layer 0 was called twice"), record(model, tokens):  # noqa: PT012
        model(**tokens.inputs)
        model(**tokens.inputs)
    with pytest.raises(RecordingError, match="nothing was recorded: LlamaForCausalLM was not called"), record(model, tokens):
        pass
    with pytest.raises(RecordingError, match=r"has dtype torch\.float32; pass a bool mask"), record(model, tokens):
        model(ids, attention_mask=torch.zeros(2, 1, 30, 30))
    assert_restored(model, "sdpa", state)


def test_a_layer_that_was_not_run_is_reported(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens((20,))
    kept = model.model.layers
    with pytest.raises(RecordingError, match=r"1 of 2 attention layers were recorded, missing \[1\]"), record(model, tokens):  # noqa: PT012
        model.model.layers = kept[:1]
        model(**tokens.inputs)


def test_nan_weights_are_reported_with_layer_and_head(tiny_model: Make, tiny_tokens: Make) -> None:
    for backend in ("blocked", "flash"):
        model = tiny_model("llama")
        model.model.layers[1].self_attn.q_proj.weight.data[9, 3] = float("nan")
        with pytest.raises(NonFiniteError, match=r"layer 1: attention is not finite: head 1, .*checkpoint damaged"):
            recorded(model, tiny_tokens((20, 30)), FLASH, backend=backend)
        assert model.config._attn_implementation == "sdpa"


def test_invalid_arguments_are_rejected_before_the_pass(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens((20,))
    with pytest.raises(InputError, match=r"measures: 'entropy' is not known .*; known: entropy_nats"):
        record(model, tokens, ["entropy"])
    with pytest.raises(
        RecordingError, match=r"flash backend cannot be used: it does not support max_prob, mean_distance, sparsity_010, .* which need"
    ):
        record(model, tokens, backend="flash")
    with pytest.raises(RecordingError, match=r"flash backend cannot be used: .* maps"):
        record(model, tokens, FLASH, backend="flash", maps=[(0, 0)])
    with pytest.raises(RecordingError, match="backend is 'fast'; allowed: blocked, flash, triton"):
        record(model, tokens, backend="fast")
    for head in ((2, 0), (0, 4), (0, -1)):
        with pytest.raises(RecordingError, match=rf"no head {head[0]}.{head[1]}: the model has layers 0 to 1 with heads 0 to 3"):
            record(model, tokens, maps=[head])
    with pytest.raises(RecordingError, match=r"examples of the batch have the numbers \[0, 0\]"):
        record(model, Tokens((tokens.texts[0], tokens.texts[0])))
