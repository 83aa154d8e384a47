"""What a measure may declare and read: statistics, probabilities, token sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from interp.measures.measure import Measure, ProbabilityBlock, key_sets
from interp.recording.recorder import record
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo
from tests.interp.measures.cases import TOP_TWO, attention_maps, top_two

INFO = MeasureInfo("x", "x", "1", 0, 1, "x")


def test_an_unknown_statistic_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"x: statistics \['entropi'\] are unknown; allowed: collision, distance, entropy, max_prob"):
        Measure(INFO, lambda rows: rows.entropy, frozenset({"entropi"}))


@pytest.mark.parametrize("name", ["distance", "max_prob"])
def test_a_measure_must_declare_the_statistics_that_it_reads(
    name: str, tiny_model: Callable[..., Any], tiny_tokens: Callable[..., Any]
) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens((20,))
    with torch.no_grad(), record(model, tokens, {"x": Measure(INFO, lambda rows: getattr(rows, name), frozenset({name}))}) as heads:
        model(**tokens.inputs)
    assert len(heads.table())
    with torch.no_grad(), pytest.raises(InputError, match=f"reads {name}, which its `statistics` do not name"):  # noqa: SIM117
        with record(model, tokens, {"x": Measure(INFO, lambda rows: getattr(rows, name))}):
            model(**tokens.inputs)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_a_measure_can_read_the_probabilities(padding_side: str, tiny_model: Callable[..., Any], tiny_tokens: Callable[..., Any]) -> None:
    seen = []

    def compute(block: ProbabilityBlock) -> torch.Tensor:
        assert block.probabilities.shape[0::2] == block.query_position.shape
        causal = block.key_position[:, None] <= block.query_position[..., None]
        real = (block.key_position >= 0)[:, None] & (block.query_position >= 0)[..., None]
        outside = block.probabilities.where((real & ~causal)[:, None], 0.0)
        seen.append(float(outside.abs().max()))
        return top_two(block)

    model = tiny_model("mistral")
    tokens = tiny_tokens((41, 20, 70, 33, 57, 26, 64, 48), padding_side)
    with torch.no_grad(), record(model, tokens, {"top_two": replace(TOP_TWO, compute=compute)}) as heads:
        model(**tokens.inputs)
    assert len(seen) > 8
    assert max(seen) == 0
    precise = tiny_model("mistral", attention="eager").double()
    table = heads.examples().set_index(["example", "layer", "head", "region"])["value"]
    for text in tokens.texts:
        for layer, maps in enumerate(attention_maps(precise, text.ids)):
            expected = np.sort(maps, -1)[..., -2:].sum(-1)[:, text.is_query].mean(-1)
            for head, value in enumerate(expected):
                assert table[text.example, layer, head, "all"] == pytest.approx(value, abs=1e-5)


def test_token_sets_of_the_wrong_length_are_rejected(tiny_tokens: Callable[..., Any]) -> None:
    measure = Measure(MeasureInfo("m", "m", "1", 0, 1, "m"), lambda rows: rows.mass("s"), sets={"s": lambda text, seed: np.ones(3)})
    with pytest.raises(InputError, match="token set s returns 3 weights for 20 tokens"):
        key_sets(tiny_tokens((20,)), [measure], 0)
