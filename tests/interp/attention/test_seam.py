"""Recordings restore the model, nest and run in threads; models that bypass `AttentionInterface` are rejected."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, BertModel, FalconConfig, FalconForCausalLM

from interp.attention import seam
from interp.attention.seam import attention_layers
from interp.recording.recorder import record
from interp.tables.errors import RecordingError
from interp.tokens import Tokens
from tests.interp.recording.cases import LENGTHS, assert_restored, assert_same, forward, recorded, state_of

Make = Callable[..., Any]


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


def test_an_eager_model_is_restored_to_eager(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama", attention="eager"), tiny_tokens((20,))
    recorded(model, tokens)
    assert model.config._attn_implementation == "eager"


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
        assert model.config._attn_implementation == seam._NAME
        model(**tokens.inputs)
    assert_restored(model, "sdpa", state)
    assert_same(outer.examples(), recorded(model, tokens, ["entropy_nats"]).examples(), 0)
    assert_same(inner.examples(), recorded(model, others, ["max_prob"]).examples(), 0)


def run_all(*works: Callable[[], None]) -> None:
    """Run functions in threads that start together, and raise the first exception of any of them."""
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
def test_threads_can_record_one_model_at_the_same_time(family: str, tiny_model: Make, tiny_tokens: Make) -> None:
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


# --- masks, devices, layers -------------------------------------------------------------------------------------------


def test_a_four_dimensional_bool_mask_is_applied(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens((30,))
    i, j = np.indices((30, 30))
    mask = torch.from_numpy((j <= i) & ((i - j < 6) | (j == 0)))[None, None]
    with torch.no_grad(), record(model, tokens, maps=[(0, 0)]) as heads:
        logits = model(tokens.inputs["input_ids"], attention_mask=mask).logits
    with torch.no_grad():
        expected = model(tokens.inputs["input_ids"], attention_mask=mask).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert float(heads.maps[0, 0][0][~mask[0, 0]].abs().max()) == 0


def test_a_model_split_over_devices_gives_the_same_tables(tiny_model: Make, tiny_tokens: Make, tmp_path: Path) -> None:
    """Accelerate's hooks move the arguments of every layer, including the mask; here one layer is on disk."""
    from transformers import LlamaForCausalLM

    model, tokens = tiny_model("llama"), tiny_tokens((30, 17), "left")
    model.save_pretrained(tmp_path / "model")
    places = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    split = LlamaForCausalLM.from_pretrained(
        tmp_path / "model", device_map={**places, "model.layers.1": "disk"}, offload_folder=tmp_path / "offload"
    ).eval()
    assert hasattr(split.model.layers[1], "_hf_hook")
    assert_same(recorded(split, tokens).examples(), recorded(model, tokens).examples(), 0)


def test_attention_layers_of_a_hybrid_model(tiny_model: Make) -> None:
    config = tiny_model("gemma3_text").config
    assert attention_layers(config) == (0, 1)
    config.layer_types = ["linear_attention", "full_attention"]
    assert attention_layers(config) == (1,)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_models_without_attention_interface_are_rejected(tiny_tokens: Make) -> None:
    falcon = FalconForCausalLM(FalconConfig(vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)).eval()
    with pytest.raises(RecordingError, match=r"FalconForCausalLM does not use .*AttentionInterface.* llama, mistral"):
        recorded(falcon, tiny_tokens((20,)))


def test_encoders_are_rejected(tiny_tokens: Make) -> None:
    config = BertConfig(vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
    with pytest.raises(RecordingError, match="not causal"):
        recorded(BertModel(config).eval(), tiny_tokens((20,)))
    with pytest.raises(RecordingError, match="not causal"):
        recorded(BertLMHeadModel(config).eval(), tiny_tokens((20,)))


def test_gpt2_with_upcast_attention_is_rejected(tiny_model: Make, tiny_tokens: Make) -> None:
    with pytest.raises(RecordingError, match="reorder_and_upcast_attn"):
        recorded(tiny_model("gpt2", reorder_and_upcast_attn=True), tiny_tokens((20,)))


def test_a_module_without_a_transformers_model_is_rejected(tiny_tokens: Make) -> None:
    with pytest.raises(RecordingError, match="Linear holds no transformers model"):
        record(torch.nn.Linear(2, 2), tiny_tokens((20,)))


def test_attention_dropout_is_rejected(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama", attention_dropout=0.1).train(), tiny_tokens((20,))
    with pytest.raises(RecordingError, match=r"call model.eval\(\)"):
        recorded(model, tokens)
    assert len(recorded(model.eval(), tokens).table())
