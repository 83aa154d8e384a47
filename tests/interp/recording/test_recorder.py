"""What a recording leaves unchanged, what it must not depend on, what it refuses; generation; TransformerLens as a second opinion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from interp.attention import seam
from interp.attention.flash import FLASH_STATISTICS
from interp.measures.catalog import MEASURES
from interp.measures.measure import Measure
from interp.recording.recorder import Recording, record
from interp.tables.errors import InputError, NonFiniteError, RecordingError
from interp.tokens import Tokens, annotate

Make = Callable[..., Any]
FLASH = [name for name, m in MEASURES.items() if not m.thresholds and m.statistics <= FLASH_STATISTICS]
LENGTHS = (40, 23, 61, 34)


def forward(model: Any, tokens: Tokens, **settings: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokens.inputs, **settings).logits


def recorded(model: Any, tokens: Tokens, measures: Sequence[str] | dict[str, Measure] | None = None, **settings: Any) -> Recording:
    with torch.no_grad(), record(model, tokens, measures, **settings) as heads:
        model(**tokens.inputs)
    return heads


def assert_same(found: pd.DataFrame, expected: pd.DataFrame, tolerance: float = 1e-6) -> None:
    keys = ["example", "layer", "head", "measure", "region"]
    joined = found.merge(expected, on=keys, suffixes=("", "_expected"), validate="one_to_one")
    assert len(joined) == len(found) == len(expected)
    pd.testing.assert_series_equal(joined["n_queries"], joined["n_queries_expected"], check_names=False)
    error = (joined["value"] - joined["value_expected"]).abs() / joined["value_expected"].abs().clip(lower=1)
    assert (joined["value"].isna() == joined["value_expected"].isna()).all()
    limit = np.where(joined["measure"] == "numeric_z", 200, 1) * tolerance  # a small difference divided by a smaller spread
    assert not (error > limit).any(), joined.assign(error=error).sort_values("error", ascending=False).head(10).to_string()


def assert_restored(model: Any, implementation: str, state: dict[str, torch.Tensor]) -> None:
    assert model.config._attn_implementation == implementation
    assert not seam._SWITCHED
    assert seam._ACTIVE.get() == ()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# --- the model's output and state -------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gpt_oss", "deepseek_v3"])
def test_logits_are_the_models_own(family: str, padding_side: str, tiny_model: Make, tiny_tokens: Make) -> None:
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
def test_the_flash_way_gives_logits_bit_for_bit(family: str, tiny_model: Make, tiny_tokens: Make) -> None:
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
            labels[range(len(tokens)), tokens.starts] = -100  # what stands before is padding: its row means nothing
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
def test_batch_order_padding_and_split_change_nothing(family: str, backend: str, tiny_model: Make, tiny_tokens: Make) -> None:
    # float32 sums differ in their last bits between batch shapes and the model carries that on: soft attention keeps it below 1e-6
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


def test_block_sizes_change_nothing(tiny_model: Make, tiny_tokens: Make, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_blocks_of_the_whole_batch_as_on_a_gpu(
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


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks by the old name
def test_adapted_models_are_checked_and_may_write(tiny_model: Make, tiny_tokens: Make) -> None:
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


def test_what_stands_in_the_padding_changes_nothing(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens(LENGTHS, "left")
    other = Tokens(tokens.texts, "left", pad_id=17)
    assert_same(recorded(model, other).examples(), recorded(model, tokens).examples(), 0)


def test_the_seed_moves_the_shuffles_alone(tiny_model: Make, tiny_tokens: Make) -> None:
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


# --- whole maps, TransformerLens, scipy -------------------------------------------------------------------------------


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = {c: i for i, c in enumerate(["<pad>", "<s>", "</s>", *" abcdefghijklmnopqrstuvwxyzQA:\n.0123456789+="])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox"])
def test_maps_and_entropy_agree_with_transformer_lens(family: str, tiny_model: Make, tiny_tokens: Make, tmp_path: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    model, tokens = tiny_model(family), tiny_tokens((37,))
    named = [(layer, head) for layer in range(2) for head in range(4)]
    heads = recorded(model, tokens, maps=named)
    toy_tokenizer().save_pretrained(tmp_path)  # TransformerLens opens it once more, by its name
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


QUESTIONS = ("what is 2 + 33 = ab", "a b c 12 + 1 = 13 and so on 44 + 44 = 88", "12")


@pytest.mark.parametrize("n_texts", [1, 3])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text", "gpt_oss", "gpt_neox", "deepseek_v3"])
def test_generate_is_measured_like_a_forward_over_the_whole_text(family: str, n_texts: int, tiny_model: Make) -> None:
    model = tiny_model(family)
    prompt = annotate(toy_tokenizer(), QUESTIONS[:n_texts], chat=False, padding_side="left")
    greedy = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    model.generation_config.eos_token_id = None
    written = model.generate(**prompt.inputs, **greedy)
    for stop in (None, int(written[-1, -7])):  # then one text ends early
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
            assert text.ids.tolist() == read  # the last token is written, never read
        for example in range(n_texts):
            alone = Tokens((whole.texts[example],))
            expected = recorded(model, alone).examples()
            got = heads.examples()
            assert_same(got[got["example"] == example].drop(columns="model"), expected.drop(columns="model"), 2e-6)


def test_generate_keeps_the_maps_of_the_whole_text(tiny_model: Make) -> None:
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    prompt = annotate(toy_tokenizer(), QUESTIONS[0], chat=False)
    with record(model, prompt, maps=[(1, 2)]) as heads:
        model.generate(**prompt.inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)
    expected = recorded(model, Tokens(heads.tokens.texts), maps=[(1, 2)])
    torch.testing.assert_close(heads.maps[1, 2], expected.maps[1, 2], rtol=1e-4, atol=1e-5)


def test_generate_leaves_no_trace(tiny_model: Make) -> None:
    model = tiny_model("llama")
    state = state_of(model)
    prompt = annotate(toy_tokenizer(), QUESTIONS[0], chat=False)
    with record(model, prompt):
        model.generate(**prompt.inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert_restored(model, "sdpa", state)


def test_beams_static_caches_and_cut_caches_are_refused(tiny_model: Make) -> None:
    model = tiny_model("llama")
    prompt = annotate(toy_tokenizer(), QUESTIONS[:2], chat=False, padding_side="left")
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with pytest.raises(RecordingError, match="beams and several samples"), record(model, prompt):
        model.generate(**prompt.inputs, **settings, num_beams=2)
    with pytest.raises(RecordingError, match="static"), record(model, prompt):
        model.generate(**prompt.inputs, **settings, cache_implementation="static")
    right = annotate(toy_tokenizer(), QUESTIONS[:2], chat=False)
    with pytest.raises(ValueError, match="must be padded on the left"), record(model, right):
        model.generate(**right.inputs, **settings)
    assert model.config._attn_implementation == "sdpa"


# --- errors -----------------------------------------------------------------------------------------------------------


def test_passes_that_do_not_fit_are_refused(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens((20, 30), "left")
    state = state_of(model)
    ids = tokens.inputs["input_ids"]
    with pytest.raises(RecordingError, match=r"reads other tokens \(\(1, 30\)\).*\(\(2, 30\)\)"), record(model, tokens):
        model(ids[:1])
    with pytest.raises(RecordingError, match="reads other tokens"), record(model, tokens):
        model(ids.flip(0))
    with pytest.raises(RecordingError, match="attention_mask does not fit"), record(model, tokens):
        model(ids)
    with pytest.raises(RecordingError, match="attention_mask does not fit"), record(model, tokens):
        model(ids, attention_mask=tokens.inputs["attention_mask"].flip(1))
    with pytest.raises(RecordingError, match="no input_ids"), record(model, tokens):
        model(inputs_embeds=model.get_input_embeddings()(ids))
    with pytest.raises(RecordingError, match="layer 0 was recorded twice"), record(model, tokens):  # noqa: PT012
        model(**tokens.inputs)
        model(**tokens.inputs)
    with pytest.raises(RecordingError, match="nothing was recorded: LlamaForCausalLM was not called"), record(model, tokens):
        pass
    with pytest.raises(RecordingError, match="of numbers cannot be recorded"), record(model, tokens):
        model(ids, attention_mask=torch.zeros(2, 1, 30, 30))
    assert_restored(model, "sdpa", state)


def test_a_layer_that_was_not_run_is_reported(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens((20,))
    kept = model.model.layers
    with pytest.raises(RecordingError, match=r"1 of 2 attention layers were recorded, missing \[1\]"), record(model, tokens):  # noqa: PT012
        model.model.layers = kept[:1]
        model(**tokens.inputs)


def test_nan_weights_are_found(tiny_model: Make, tiny_tokens: Make) -> None:
    for backend in ("blocked", "flash"):
        model = tiny_model("llama")
        model.model.layers[1].self_attn.q_proj.weight.data[9, 3] = float("nan")
        with pytest.raises(NonFiniteError, match=r"layer 1: attention is not finite: head 1, .*checkpoint damaged"):
            recorded(model, tiny_tokens((20, 30)), FLASH, backend=backend)
        assert model.config._attn_implementation == "sdpa"


def test_wrong_requests_are_refused_before_the_pass(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens((20,))
    with pytest.raises(InputError, match="unknown measures entropy; known: entropy_nats"):
        record(model, tokens, ["entropy"])
    with pytest.raises(RecordingError, match=r"flash way cannot be taken: max_prob, mean_distance, sparsity_010, .* cannot"):
        record(model, tokens, backend="flash")
    with pytest.raises(RecordingError, match="flash way cannot be taken: maps"):
        record(model, tokens, FLASH, backend="flash", maps=[(0, 0)])
    with pytest.raises(RecordingError, match="way is 'fast'; allowed: blocked, flash, triton"):
        record(model, tokens, backend="fast")
    for head in ((2, 0), (0, 4), (0, -1)):
        with pytest.raises(RecordingError, match=rf"no head {head[0]}.{head[1]}: the model has layers 0 to 1 with heads 0 to 3"):
            record(model, tokens, maps=[head])
    with pytest.raises(RecordingError, match="example numbers repeat"):
        record(model, Tokens((tokens.texts[0], tokens.texts[0])))
