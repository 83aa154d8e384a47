"""The choice of the backend for each layer, and that every backend gives the same tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from interp.attention.seam import attention_layers
from interp.measures.catalog import MEASURES
from interp.measures.measure import Measure
from interp.recording import backends
from interp.recording.backends import choose_backend
from interp.recording.recorder import record
from interp.tables.errors import RecordingError
from interp.tokens import Tokens, annotate
from tests.interp.recording.cases import FLASH, LENGTHS, QUESTIONS, assert_same, recorded, toy_tokenizer

Make = Callable[..., Any]


BLOCKS = {
    "one example, one key head, 16 rows": (1, 1, 16),
    "groups of two examples": (2, 2, 32),
    "the complete batch": (99, 99, 16),
}


def assert_tables_agree(found: pd.DataFrame, expected: pd.DataFrame, near: pd.DataFrame | None = None) -> None:
    """Check that tables agree within 1e-6, relative above 1; numeric_z, a difference divided by a small spread, within 2e-5.

    Args:
        found: `heads` table of one backend.
        expected: `heads` table of another backend.
        near: layer and head of maps with a probability so close to the threshold that its key may count or not.
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
    """Return the heads with a probability within 1e-6 of 0.1, from complete maps."""
    heads = [(layer, head) for layer in attention_layers(model.config) for head in range(model.config.num_attention_heads)]
    maps = recorded(model, tokens, ["entropy_nats"], maps=heads).maps
    found = [place for place, of in maps.items() if bool(((of - 0.1).abs() < 1e-6).any())]
    return pd.DataFrame(found, columns=["layer", "head"], dtype=np.int64)


def test_backends_agree_and_the_default_depends_on_device_and_measures(tiny_model: Make, tiny_tokens: Make) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens(LENGTHS)
    assert recorded(model, tokens).backend == "blocked"
    assert_same(
        recorded(model, tokens, FLASH, backend="flash").examples(), recorded(model, tokens, FLASH, backend="blocked").examples(), 5e-6
    )
    linear, every = [MEASURES[name] for name in FLASH], list(MEASURES.values())
    assert choose_backend(model, linear, device="cuda") == "flash"
    assert choose_backend(model, linear, maps=True, device="cuda") == "blocked"
    assert choose_backend(model, every, device="cuda") == "blocked"
    assert choose_backend(model, linear) == "blocked"
    assert choose_backend(tiny_model("gemma2"), linear, device="cuda") == "blocked"  # its scores are capped


def test_the_triton_backend_is_used_if_requested(tiny_model: Make, tiny_tokens: Make) -> None:
    """The kernel runs in Triton's interpreter (tests/conftest.py); on a GPU it is compiled."""
    pytest.importorskip("triton")
    model, tokens = tiny_model("llama"), tiny_tokens((30, 17), "left")
    found = recorded(model, tokens, backend="triton")
    assert found.backend == "triton"
    assert found.backends == {0: "triton", 1: "triton"}
    with pytest.raises(RecordingError, match=r"triton backend cannot be used: .* maps"):
        record(model, tokens, backend="triton", maps=[(0, 0)])


def test_the_flash_backend_rejects_capped_scores(tiny_model: Make, tiny_tokens: Make) -> None:
    with pytest.raises(RecordingError, match="flash backend cannot be used: the model has a soft cap on its scores"):
        recorded(tiny_model("gemma2"), tiny_tokens((20,)), FLASH, backend="flash")


# --- every backend gives the same tables, and takes the layers that it supports ---------------------------------------


@pytest.mark.parametrize(("family", "padding_side"), [("llama", "right"), ("mistral", "left"), ("gemma2", "right"), ("gpt_oss", "left")])
def test_backends_and_block_sizes_do_not_change_tables(
    family: str, padding_side: str, tiny_model: Make, tiny_tokens: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of several lengths, windows (mistral, gemma2, gpt_oss), soft caps (gemma2) and sinks (gpt_oss), in float32."""
    model, tokens = tiny_model(family), tiny_tokens(LENGTHS, padding_side)
    blocked = recorded(model, tokens, backend="blocked")
    expected, near = blocked.table(), near_the_threshold(model, tokens)
    assert len(near) <= 1
    assert set(blocked.backends.values()) == {"blocked"}
    for sizes in BLOCKS.values():
        with monkeypatch.context() as patch:
            patch.setattr("interp.attention.blocked.MAX_PADDING", 1.0)
            patch.setattr(
                "interp.attention.blocked._block_sizes",
                lambda device, batch, kv_heads, groups, keys, sizes=sizes: (min(batch, sizes[0]), min(kv_heads, sizes[1]), sizes[2]),
            )
            assert_tables_agree(recorded(model, tokens, backend="blocked").table(), expected, near)
    if family == "gemma2":
        with pytest.raises(RecordingError, match="flash backend cannot be used: the model has a soft cap on its scores"):
            record(model, tokens, FLASH, backend="flash")
    else:
        flash = recorded(model, tokens, FLASH, backend="flash")
        assert set(flash.backends.values()) == {"flash"}
        assert_tables_agree(flash.table(), expected[expected["measure"].isin(FLASH)])
    pytest.importorskip("triton")
    triton = recorded(model, tokens, backend="triton")
    assert set(triton.backends.values()) == {"triton"}
    assert_tables_agree(triton.table(), expected, near)


def test_layers_with_a_mask_too_large_for_flash_are_blocked(tiny_model: Make, tiny_tokens: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one text, the layer with a window needs a mask of all queries and keys; the other layer needs none."""
    model, tokens = tiny_model("gpt_oss"), tiny_tokens((61,))
    expected = recorded(model, tokens, FLASH, backend="blocked").table()
    monkeypatch.setattr("interp.attention.flash.MAX_MASK_ELEMENTS", 61 * 61 - 1)
    found = recorded(model, tokens, FLASH, backend="flash")
    assert found.backend == "flash"
    assert found.backends == {0: "blocked", 1: "flash"}
    assert_tables_agree(found.table(), expected)
    padded = tiny_tokens((40, 23), "left")  # a causal layer needs a mask too
    expected = recorded(model, padded, FLASH, backend="blocked").table()
    monkeypatch.setattr("interp.attention.flash.MAX_MASK_ELEMENTS", 2 * 40 * 40 - 1)
    found = recorded(model, padded, FLASH, backend="flash")
    assert found.backends == {0: "blocked", 1: "blocked"}
    assert_tables_agree(found.table(), expected)
    monkeypatch.setattr("interp.attention.flash.MAX_MASK_ELEMENTS", 2 * 40 * 40)
    assert recorded(model, padded, FLASH, backend="flash").backends == {0: "flash", 1: "flash"}


@pytest.mark.parametrize(("peak", "taken"), [(2.0, "flash"), (4.0, "blocked")])
def test_layers_with_large_scores_are_blocked(peak: float, taken: str, tiny_model: Make, tiny_tokens: Make) -> None:
    """Use one layer: a second one would magnify the rounding differences of the first one's output."""
    model, tokens = tiny_model("llama", peak=peak, num_hidden_layers=1), tiny_tokens(LENGTHS)
    found = recorded(model, tokens, FLASH, backend="flash")
    assert found.backends == {0: taken}
    assert_tables_agree(found.table(), recorded(model, tokens, FLASH, backend="blocked").table())


def test_a_long_text_in_the_batch_does_not_change_a_short_one(tiny_model: Make, tiny_tokens: Make) -> None:
    """A difference of numbers as large as the batch is wide would show in the short text."""
    model, tokens = tiny_model("llama", peak=2.0, max_position_embeddings=2048), tiny_tokens((1500, 9), "left")
    flash = recorded(model, tokens, FLASH, backend="flash")
    assert flash.backends == {0: "flash", 1: "flash"}
    assert_same(flash.examples(), recorded(model, tokens, FLASH, backend="blocked").examples(), 1e-6)
    with pytest.raises(RecordingError, match="flash backend cannot be used: it does not support mean_distance"):
        record(model, tokens, ["mean_distance"], backend="flash")


def test_layers_with_capped_scores_are_blocked(tiny_model: Make, tiny_tokens: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are checked too, because a model's config may not tell that its scores are capped."""
    model, tokens = tiny_model("gemma2"), tiny_tokens(LENGTHS)
    expected = recorded(model, tokens, FLASH, backend="blocked").table()
    monkeypatch.setattr(backends, "_obstacles", lambda *args, **kwargs: [])
    found = recorded(model, tokens, FLASH, backend="flash")
    assert found.backends == {0: "blocked", 1: "blocked"}
    assert_tables_agree(found.table(), expected)


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_DIM", 7), ("MAX_COLUMNS", 3), ("MAX_BATCH_HEADS", 7), ("_DTYPES", (torch.float16,))], ids=lambda v: str(v)
)
def test_layers_above_the_limits_of_the_kernel_are_blocked(
    limit: str, value: Any, tiny_model: Make, tiny_tokens: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    model, tokens = tiny_model("llama"), tiny_tokens((30, 17))
    expected = recorded(model, tokens, backend="blocked").table()
    monkeypatch.setattr(f"interp.attention.triton.{limit}", value)
    found = recorded(model, tokens, backend="triton")
    assert found.backend == "triton"
    assert found.backends == {0: "blocked", 1: "blocked"}
    assert_tables_agree(found.table(), expected)


def test_thresholds_that_the_kernel_does_not_support_use_the_blocked_backend(tiny_model: Make, tiny_tokens: Make) -> None:
    pytest.importorskip("triton")
    model, tokens = tiny_model("mistral"), tiny_tokens((30, 17))
    info = MEASURES["sparsity_010"].info
    every = Measure(
        replace(info, name="keys"), lambda rows: rows.statistics.above[0.0] / rows.statistics.n_allowed[:, None], thresholds=(0.0,)
    )
    found = recorded(model, tokens, {"keys": every}, backend="triton")
    assert found.backends == {0: "blocked", 1: "blocked"}
    values = found.table()["value"].dropna()
    np.testing.assert_allclose(values, 1)  # every allowed key has a positive probability


def test_layers_with_custom_masks_use_a_backend_that_supports_them(tiny_model: Make, tiny_tokens: Make) -> None:
    """The kernel does not support a mask that the user passes; the flash backend does, unless a query has no key."""
    model, tokens = tiny_model("llama"), tiny_tokens((40,))
    at = torch.arange(40)
    odd = ((at <= at[:, None]) & ((at[:, None] - at) % 3 != 1))[None, None]
    with torch.no_grad(), record(model, tokens, FLASH, backend="blocked") as expected:
        model(tokens.inputs["input_ids"], attention_mask=odd)
    for backend, taken in (("flash", "flash"), ("triton", "blocked")):
        if backend == "triton":
            pytest.importorskip("triton")
        with torch.no_grad(), record(model, tokens, FLASH, backend=backend) as found:
            model(tokens.inputs["input_ids"], attention_mask=odd)
        assert found.backends == {0: taken, 1: taken}
        assert_tables_agree(found.table(), expected.table())
    blind = odd & (at[:, None] > 4)[None, None]  # the first queries have no key
    with torch.no_grad(), record(model, tokens, FLASH, backend="flash") as found:
        model(tokens.inputs["input_ids"], attention_mask=blind)
    assert found.backends == {0: "blocked", 1: "blocked"}


def test_the_prompt_of_a_generated_text_uses_the_requested_backend(tiny_model: Make) -> None:
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    prompt = annotate(toy_tokenizer(), QUESTIONS[:2], chat=False, padding_side="left")
    with torch.no_grad(), record(model, prompt, FLASH, backend="flash") as heads:
        model.generate(**prompt.inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert heads.backends == {0: "flash", 1: "flash"}
