"""What a recording leaves unchanged, what it must not depend on, what it refuses; generation; TransformerLens as a second opinion."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
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
from transformers import AutoTokenizer, BertConfig, BertLMHeadModel, BertModel, FalconConfig, FalconForCausalLM, PreTrainedTokenizerFast

from interp import recorder
from interp.attention import NonFiniteAttentionError
from interp.measures import MEASURES, Measure, MeasureError
from interp.recorder import Recording, RecordingError, attention_layers, choose_way, record
from interp.tokens import Tokens, annotate

Make = Callable[..., Any]
FLASH = [name for name, m in MEASURES.items() if not m.thresholds and "max_prob" not in m.statistics]
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
    assert not recorder._SWITCHED
    assert recorder._ACTIVE.get() == ()
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
    for way in ("blocked",) if family == "gemma2" else ("blocked", "flash"):
        with record(model, tokens, FLASH, way=way):
            logits = forward(model, tokens)
        assert float((logits - expected)[real].abs().max()) <= 1e-5 * float(expected[real].abs().max())
        assert_restored(model, implementation, state)
    torch.testing.assert_close(forward(model, tokens), expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3", "gpt_neox", "olmo2"])
def test_the_flash_way_gives_logits_bit_for_bit(family: str, tiny_model: Make, tiny_tokens: Make) -> None:
    settings = {"sliding_window": None} if family == "phi3" else {}
    model, tokens = tiny_model(family, **settings), tiny_tokens((40,))
    expected = forward(model, tokens)
    with record(model, tokens, FLASH, way="flash"):
        logits = forward(model, tokens)
    assert torch.equal(logits, expected)


def test_the_model_is_restored_after_an_exception(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens(LENGTHS)
    state = state_of(model)
    with pytest.raises(ZeroDivisionError), record(model, tokens):  # noqa: PT012 the second statement raises
        forward(model, tokens)
        _ = 1 / 0
    assert_restored(model, "sdpa", state)
    heads = record(model, tokens)
    with pytest.raises(RecordingError, match="other tokens"), heads:
        model(input_ids=torch.ones(1, 5, dtype=torch.long))
    assert_restored(model, "sdpa", state)
    with pytest.raises(RecordingError, match="not complete"):
        heads.table()


def test_another_implementation_is_restored_too(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama", attention="eager"), tiny_tokens((20,))
    recorded(model, tokens)
    assert model.config._attn_implementation == "eager"


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


# --- nesting and threads ----------------------------------------------------------------------------------------------


def test_recordings_of_two_models_nest(tiny_model: Make, tiny_tokens: Make) -> None:
    outer, inner, tokens = tiny_model("llama"), tiny_model("mistral", seed=1), tiny_tokens(LENGTHS)
    expected = recorded(outer, tokens).examples(), recorded(inner, tokens).examples()
    with record(outer, tokens) as first, record(inner, tokens) as second:
        forward(outer, tokens)
        forward(inner, tokens)
    assert_same(first.examples(), expected[0], 0)
    assert_same(second.examples(), expected[1], 0)
    assert outer.config._attn_implementation == inner.config._attn_implementation == "sdpa"


def test_recordings_of_one_model_nest(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens, others = tiny_model("llama"), tiny_tokens(LENGTHS), tiny_tokens((25, 31))
    state = state_of(model)
    with torch.no_grad(), record(model, tokens, ["entropy_nats"]) as outer:
        with record(model, others, ["max_prob"]) as inner:
            model(**others.inputs)
        assert model.config._attn_implementation == recorder.NAME
        model(**tokens.inputs)
    assert_restored(model, "sdpa", state)
    assert_same(outer.examples(), recorded(model, tokens, ["entropy_nats"]).examples(), 0)
    assert_same(inner.examples(), recorded(model, others, ["max_prob"]).examples(), 0)


def run_all(*works: Callable[[], None]) -> None:
    """Run in threads that start together; the first exception is raised here."""
    start, failed = threading.Barrier(len(works)), []

    def guarded(work: Callable[[], None]) -> None:
        try:
            start.wait(30)
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if failed:
        raise failed[0]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_threads_record_one_model_at_once(family: str, tiny_model: Make, tiny_tokens: Make) -> None:
    model, mine, theirs, plain = tiny_model(family), tiny_tokens(LENGTHS), tiny_tokens((50, 26), "left"), tiny_tokens((33, 28))
    state, implementation = state_of(model), model.config._attn_implementation
    expected = [recorded(model, tokens).examples() for tokens in (mine, theirs)]
    logits = forward(model, plain)
    outputs, tables = [], []
    inside = threading.Barrier(3)

    def take(tokens: Tokens, table: pd.DataFrame) -> None:
        for _ in range(5):
            with record(model, tokens) as heads:
                inside.wait(30)
                forward(model, tokens)
                inside.wait(30)
            tables.append((heads.examples(), table))

    def run_plain() -> None:
        for _ in range(5):
            inside.wait(30)
            outputs.extend(forward(model, plain) for _ in range(3))
            inside.wait(30)

    run_all(lambda: take(mine, expected[0]), lambda: take(theirs, expected[1]), run_plain)
    assert len(tables) == 10
    for found, table in tables:
        assert_same(found, table)
    for output in outputs:
        torch.testing.assert_close(output, logits, rtol=1e-5, atol=1e-5)
    assert_restored(model, implementation, state)


# --- invariance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["blocked", "flash"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss"])
def test_batch_order_padding_and_split_change_nothing(family: str, way: str, tiny_model: Make, tiny_tokens: Make) -> None:
    # float32 sums differ in their last bits between batch shapes and the model carries that on: soft attention keeps it below 1e-6
    model, tokens = tiny_model(family, peak=1.0), tiny_tokens((40, 23, 61, 34, 52))
    measures = list(MEASURES) if way == "blocked" else FLASH
    expected = recorded(model, tokens, measures, way=way).examples()
    for side in ("right", "left"):
        for order in ([4, 2, 0, 1, 3], [3, 4, 1, 0, 2]):
            assert_same(recorded(model, tokens.select(order, side), measures, way=way).examples(), expected)
        for parts in ([[0], [1], [2], [3], [4]], [[3, 1], [0, 4, 2]]):
            totals = [recorded(model, tokens.select(part, side), measures, way=way).totals for part in parts]
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
                patch.setattr("interp.attention.MIN_ROWS", rows)
                patch.setattr("interp.attention.MAX_ROWS", rows)
                patch.setattr("interp.attention.CPU_BLOCK_ELEMENTS", elements)
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
            patch.setattr("interp.attention._block_sizes", lambda device, batch, kv_heads, groups, keys: (batch, kv_heads, 16))
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


def test_ways_agree_and_are_chosen_by_rule(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens(LENGTHS)
    assert recorded(model, tokens).way == "blocked"
    assert_same(recorded(model, tokens, FLASH, way="flash").examples(), recorded(model, tokens, FLASH, way="blocked").examples(), 5e-6)
    linear, every = [MEASURES[name] for name in FLASH], list(MEASURES.values())
    assert choose_way(model, linear, device="cuda") == "flash"
    assert choose_way(model, linear, maps=True, device="cuda") == "blocked"
    assert choose_way(model, every, device="cuda") == "blocked"
    assert choose_way(model, linear) == "blocked"
    assert choose_way(tiny_model("gemma2"), linear, device="cuda") == "blocked"  # its scores are capped


def test_the_kernel_is_a_way_by_name(tiny_model: Make, tiny_tokens: Make) -> None:
    """In Triton's interpreter here (tests/conftest.py); on a GPU the same kernel is compiled."""
    pytest.importorskip("triton")
    model, tokens = tiny_model("llama"), tiny_tokens((30, 17), "left")
    found = recorded(model, tokens, way="triton")
    assert found.way == "triton"
    assert found.ways == {0: "triton", 1: "triton"}
    with pytest.raises(RecordingError, match="triton way cannot be taken: maps"):
        record(model, tokens, way="triton", maps=[(0, 0)])


# --- every way gives the same tables, and takes what it can express ---------------------------------------------------

BLOCKS = {
    "an example, a key head, 16 rows": (1, 1, 16),
    "groups of two examples": (2, 2, 32),
    "the whole batch": (99, 99, 16),
}


def assert_tables_agree(found: pd.DataFrame, expected: pd.DataFrame, near: pd.DataFrame | None = None) -> None:
    """Within 1e-6, relative above 1; numeric_z, a small difference divided by a smaller spread, within 2e-5.

    Args:
        found: `heads` table of one way.
        expected: of another.
        near: layer and head of maps in which some probability lies so near to the threshold that one key may count or not.
    """
    keys = ["layer", "head", "measure", "region"]
    joined = found.merge(expected, on=keys, suffixes=("", "_expected"), validate="one_to_one")
    assert len(joined) == len(found) == len(expected)
    assert joined["n_queries"].equals(joined["n_queries_expected"])
    assert joined["n_examples"].equals(joined["n_examples_expected"])
    if near is not None:
        counts = joined["measure"].str.startswith("sparsity")
        joined = joined[~(counts & joined.merge(near, how="left", on=["layer", "head"], indicator=True)["_merge"].eq("both"))]
    assert (joined["value"].isna() == joined["value_expected"].isna()).all()
    error = (joined["value"] - joined["value_expected"]).abs() / joined["value_expected"].abs().clip(lower=1)
    limit = np.where(joined["measure"] == "numeric_z", 2e-5, 1e-6)
    assert not (error > limit).any(), joined.assign(error=error).sort_values("error", ascending=False).head(10).to_string()


def near_the_threshold(model: Any, tokens: Tokens) -> pd.DataFrame:
    """Heads with a probability within 1e-6 of 0.1, from whole maps."""
    heads = [(layer, head) for layer in attention_layers(model.config) for head in range(model.config.num_attention_heads)]
    maps = recorded(model, tokens, ["entropy_nats"], maps=heads).maps
    found = [place for place, of in maps.items() if bool(((of - 0.1).abs() < 1e-6).any())]
    return pd.DataFrame(found, columns=["layer", "head"], dtype=np.int64)


@pytest.mark.parametrize(("family", "padding_side"), [("llama", "right"), ("mistral", "left"), ("gemma2", "right"), ("gpt_oss", "left")])
def test_tables_are_the_same_whatever_way_and_blocks(
    family: str, padding_side: str, tiny_model: Make, tiny_tokens: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of several lengths, windows (mistral, gemma2, gpt_oss), soft caps (gemma2) and sinks (gpt_oss), in float32."""
    model, tokens = tiny_model(family), tiny_tokens(LENGTHS, padding_side)
    blocked = recorded(model, tokens, way="blocked")
    expected, near = blocked.table(), near_the_threshold(model, tokens)
    assert len(near) <= 1
    assert set(blocked.ways.values()) == {"blocked"}
    for sizes in BLOCKS.values():
        with monkeypatch.context() as patch:
            patch.setattr("interp.attention.MAX_PADDING", 1.0)
            patch.setattr(
                "interp.attention._block_sizes",
                lambda device, batch, kv_heads, groups, keys, sizes=sizes: (min(batch, sizes[0]), min(kv_heads, sizes[1]), sizes[2]),
            )
            assert_tables_agree(recorded(model, tokens, way="blocked").table(), expected, near)
    if family == "gemma2":
        with pytest.raises(RecordingError, match="flash way cannot be taken: the model caps its scores"):
            record(model, tokens, FLASH, way="flash")
    else:
        flash = recorded(model, tokens, FLASH, way="flash")
        assert set(flash.ways.values()) == {"flash"}
        assert_tables_agree(flash.table(), expected[expected["measure"].isin(FLASH)])
    pytest.importorskip("triton")
    triton = recorded(model, tokens, way="triton")
    assert set(triton.ways.values()) == {"triton"}
    assert_tables_agree(triton.table(), expected, near)


def test_layers_whose_mask_is_too_large_for_flash_are_blocked(tiny_model: Make, tiny_tokens: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One text: the layer with a window would need a mask of all its queries and keys, the other needs none."""
    model, tokens = tiny_model("gpt_oss"), tiny_tokens((61,))
    expected = recorded(model, tokens, FLASH, way="blocked").table()
    monkeypatch.setattr("interp.attention.MAX_MASK_ELEMENTS", 61 * 61 - 1)
    found = recorded(model, tokens, FLASH, way="flash")
    assert found.way == "flash"
    assert found.ways == {0: "blocked", 1: "flash"}
    assert_tables_agree(found.table(), expected)
    padded = tiny_tokens((40, 23), "left")  # a causal layer needs a mask too
    expected = recorded(model, padded, FLASH, way="blocked").table()
    monkeypatch.setattr("interp.attention.MAX_MASK_ELEMENTS", 2 * 40 * 40 - 1)
    found = recorded(model, padded, FLASH, way="flash")
    assert found.ways == {0: "blocked", 1: "blocked"}
    assert_tables_agree(found.table(), expected)
    monkeypatch.setattr("interp.attention.MAX_MASK_ELEMENTS", 2 * 40 * 40)
    assert recorded(model, padded, FLASH, way="flash").ways == {0: "flash", 1: "flash"}


@pytest.mark.parametrize(("peak", "taken"), [(8.0, "flash"), (64.0, "blocked")])
def test_layers_with_large_scores_are_blocked(peak: float, taken: str, tiny_model: Make, tiny_tokens: Make) -> None:
    """One layer: a second one would carry on what the first one's output differs by, and such peaks magnify it."""
    model, tokens = tiny_model("llama", peak=peak, num_hidden_layers=1), tiny_tokens(LENGTHS)
    found = recorded(model, tokens, FLASH, way="flash")
    assert found.ways == {0: taken}
    assert_tables_agree(found.table(), recorded(model, tokens, FLASH, way="blocked").table())


def test_capped_layers_of_any_model_are_blocked(tiny_model: Make, tiny_tokens: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a model's config does not say that its scores are capped, its layers do."""
    model, tokens = tiny_model("gemma2"), tiny_tokens(LENGTHS)
    expected = recorded(model, tokens, FLASH, way="blocked").table()
    monkeypatch.setattr(recorder, "_obstacles", lambda *args, **kwargs: [])
    found = recorded(model, tokens, FLASH, way="flash")
    assert found.ways == {0: "blocked", 1: "blocked"}
    assert_tables_agree(found.table(), expected)


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_DIM", 7), ("MAX_COLUMNS", 3), ("MAX_BATCH_HEADS", 7), ("DTYPES", (torch.float16,))], ids=lambda v: str(v)
)
def test_layers_beyond_the_kernels_limits_are_blocked(
    limit: str, value: Any, tiny_model: Make, tiny_tokens: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    model, tokens = tiny_model("llama"), tiny_tokens((30, 17))
    expected = recorded(model, tokens, way="blocked").table()
    monkeypatch.setattr(f"interp.triton_pass.{limit}", value)
    found = recorded(model, tokens, way="triton")
    assert found.way == "triton"
    assert found.ways == {0: "blocked", 1: "blocked"}
    assert_tables_agree(found.table(), expected)


def test_thresholds_that_the_kernel_has_no_place_for_are_counted_by_the_blocked_way(tiny_model: Make, tiny_tokens: Make) -> None:
    pytest.importorskip("triton")
    model, tokens = tiny_model("mistral"), tiny_tokens((30, 17))
    info = MEASURES["sparsity_010"].info
    every = Measure(
        replace(info, name="keys"), lambda rows: rows.statistics.above[0.0] / rows.statistics.n_allowed[:, None], thresholds=(0.0,)
    )
    found = recorded(model, tokens, {"keys": every}, way="triton")
    assert found.ways == {0: "blocked", 1: "blocked"}
    values = found.table()["value"].dropna()
    np.testing.assert_allclose(values, 1)  # every key that may be seen has some probability


def test_layers_of_other_masks_are_blocked(tiny_model: Make, tiny_tokens: Make) -> None:
    """A mask that the user made: the kernel does not know it, a fused call takes it."""
    model, tokens = tiny_model("llama"), tiny_tokens((40,))
    at = torch.arange(40)
    odd = ((at <= at[:, None]) & ((at[:, None] - at) % 3 != 1))[None, None]
    with torch.no_grad(), record(model, tokens, FLASH, way="blocked") as expected:
        model(tokens.inputs["input_ids"], attention_mask=odd)
    for way, taken in (("flash", "flash"), ("triton", "blocked")):
        if way == "triton":
            pytest.importorskip("triton")
        with torch.no_grad(), record(model, tokens, FLASH, way=way) as found:
            model(tokens.inputs["input_ids"], attention_mask=odd)
        assert found.ways == {0: taken, 1: taken}
        assert_tables_agree(found.table(), expected.table())
    blind = odd & (at[:, None] > 4)[None, None]  # the first queries see nothing
    with torch.no_grad(), record(model, tokens, FLASH, way="flash") as found:
        model(tokens.inputs["input_ids"], attention_mask=blind)
    assert found.ways == {0: "blocked", 1: "blocked"}


def test_a_text_that_the_model_writes_begins_the_way_that_was_asked_for(tiny_model: Make) -> None:
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    prompt = annotate(toy_tokenizer(), QUESTIONS[:2], chat=False, padding_side="left")
    with torch.no_grad(), record(model, prompt, FLASH, way="flash") as heads:
        model.generate(**prompt.inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert heads.ways == {0: "flash", 1: "flash"}


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


def test_models_that_bypass_the_seam_are_refused(tiny_tokens: Make) -> None:
    falcon = FalconForCausalLM(FalconConfig(vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)).eval()
    with pytest.raises(RecordingError, match=r"FalconForCausalLM does not use .*AttentionInterface.* llama, mistral"):
        recorded(falcon, tiny_tokens((20,)))


def test_encoders_are_refused(tiny_tokens: Make) -> None:
    config = BertConfig(vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
    with pytest.raises(RecordingError, match="not causal"):
        recorded(BertModel(config).eval(), tiny_tokens((20,)))
    with pytest.raises(RecordingError, match="not causal"):
        recorded(BertLMHeadModel(config).eval(), tiny_tokens((20,)))


def test_gpt2_with_upcast_attention_is_refused(tiny_model: Make, tiny_tokens: Make) -> None:
    with pytest.raises(RecordingError, match="reorder_and_upcast_attn"):
        recorded(tiny_model("gpt2", reorder_and_upcast_attn=True), tiny_tokens((20,)))


def test_what_is_no_transformers_model_is_refused(tiny_tokens: Make) -> None:
    with pytest.raises(RecordingError, match="Linear holds no transformers model"):
        record(torch.nn.Linear(2, 2), tiny_tokens((20,)))


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


def test_a_bool_mask_of_four_dimensions_is_honoured(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens((30,))
    i, j = np.indices((30, 30))
    mask = torch.from_numpy((j <= i) & ((i - j < 6) | (j == 0)))[None, None]
    with torch.no_grad(), record(model, tokens, maps=[(0, 0)]) as heads:
        logits = model(tokens.inputs["input_ids"], attention_mask=mask).logits
    with torch.no_grad():
        expected = model(tokens.inputs["input_ids"], attention_mask=mask).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert float(heads.maps[0, 0][0][~mask[0, 0]].abs().max()) == 0


def test_nan_weights_are_found(tiny_model: Make, tiny_tokens: Make) -> None:
    for way in ("blocked", "flash"):
        model = tiny_model("llama")
        model.model.layers[1].self_attn.q_proj.weight.data[9, 3] = float("nan")
        with pytest.raises(NonFiniteAttentionError, match=r"layer 1: attention is not finite: head 1, .*checkpoint damaged"):
            recorded(model, tiny_tokens((20, 30)), FLASH, way=way)
        assert model.config._attn_implementation == "sdpa"


def test_wrong_requests_are_refused_before_the_pass(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens((20,))
    with pytest.raises(MeasureError, match="unknown measures entropy; known: entropy_nats"):
        record(model, tokens, ["entropy"])
    with pytest.raises(RecordingError, match="flash way cannot be taken: max_prob, sparsity_010, sparsity_010_published cannot"):
        record(model, tokens, way="flash")
    with pytest.raises(RecordingError, match="flash way cannot be taken: maps"):
        record(model, tokens, FLASH, way="flash", maps=[(0, 0)])
    with pytest.raises(RecordingError, match="way is 'fast'; allowed: blocked, flash, triton"):
        record(model, tokens, way="fast")
    for head in ((2, 0), (0, 4), (0, -1)):
        with pytest.raises(RecordingError, match=rf"no head {head[0]}.{head[1]}: the model has layers 0 to 1 with heads 0 to 3"):
            record(model, tokens, maps=[head])
    with pytest.raises(RecordingError, match="example numbers repeat"):
        record(model, Tokens((tokens.texts[0], tokens.texts[0])))


def test_dropout_in_training_is_refused(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama", attention_dropout=0.1).train(), tiny_tokens((20,))
    with pytest.raises(RecordingError, match=r"call model.eval\(\)"):
        recorded(model, tokens)
    assert len(recorded(model.eval(), tokens).table())


def test_the_flash_way_refuses_capped_scores(tiny_model: Make, tiny_tokens: Make) -> None:
    with pytest.raises(RecordingError, match="flash way cannot be taken: the model caps its scores"):
        recorded(tiny_model("gemma2"), tiny_tokens((20,)), FLASH, way="flash")


def test_hybrid_models_name_their_attention_layers(tiny_model: Make) -> None:
    config = tiny_model("gemma3_text").config
    assert attention_layers(config) == (0, 1)
    config.layer_types = ["linear_attention", "full_attention"]
    assert attention_layers(config) == (1,)


def test_a_model_split_over_devices_is_recorded_as_it_is(tiny_model: Make, tiny_tokens: Make, tmp_path: Path) -> None:
    """Accelerate's hooks move every layer's arguments, the mask among them; here one layer is kept on disk."""
    from transformers import LlamaForCausalLM

    model, tokens = tiny_model("llama"), tiny_tokens((30, 17), "left")
    model.save_pretrained(tmp_path / "model")
    places = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    split = LlamaForCausalLM.from_pretrained(
        tmp_path / "model", device_map={**places, "model.layers.1": "disk"}, offload_folder=tmp_path / "offload"
    ).eval()
    assert hasattr(split.model.layers[1], "_hf_hook")
    assert_same(recorded(split, tokens).examples(), recorded(model, tokens).examples(), 0)
