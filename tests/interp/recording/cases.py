"""Recordings, comparisons of tables and a tokenizer that the tests of recordings share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from interp.attention import seam
from interp.attention.flash import FLASH_STATISTICS
from interp.measures.catalog import MEASURES
from interp.measures.measure import Measure
from interp.recording.recorder import Recording, record
from interp.tokens import Tokens

FLASH = [name for name, m in MEASURES.items() if not m.thresholds and m.statistics <= FLASH_STATISTICS]
LENGTHS = (40, 23, 61, 34)
QUESTIONS = ("what is 2 + 33 = ab", "a b c 12 + 1 = 13 and so on 44 + 44 = 88", "12")


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


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character."""
    vocabulary = {c: i for i, c in enumerate(["<pad>", "<s>", "</s>", *" abcdefghijklmnopqrstuvwxyzQA:\n.0123456789+="])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
