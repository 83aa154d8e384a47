"""The output head and hidden states give the model's own logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp.checkpoints.unembedding import hidden_states, instead_of_head, keep_hidden, output_head
from interp.tables.errors import CheckpointError

IDS = torch.arange(4, 24).reshape(2, 10)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize(
    ("family", "settings"), [("llama", {}), ("gpt2", {}), ("gpt_neox", {}), ("gemma2", {"final_logit_softcapping": 2.0})]
)
def test_the_head_gives_the_logits_of_the_model(tiny_model: Callable[..., Any], family: str, settings: dict[str, Any]) -> None:
    model = tiny_model(family, **settings)
    head = output_head(model)
    with torch.no_grad():
        hidden = hidden_states(model, IDS, torch.ones_like(IDS))
        torch.testing.assert_close(head.logits(hidden), logits(model, IDS), rtol=1e-4, atol=1e-4)
    assert head.softcap == settings.get("final_logit_softcapping")


def test_a_model_that_changes_its_logits_is_refused(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    forward = type(model).forward

    def doubled(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = forward(self, *args, **kwargs)
        result.logits = result.logits * 2
        return result

    monkeypatch.setattr(type(model), "forward", doubled)
    model.train()
    with pytest.raises(CheckpointError, match="LlamaForCausalLM: its logits differ by up to"):
        output_head(model)
    assert model.training


def test_a_model_without_a_head_is_refused(tiny_model: Callable[..., Any]) -> None:
    with pytest.raises(CheckpointError, match="LlamaModel has no output head"):
        output_head(tiny_model("llama").model)


def test_padding_does_not_change_hidden_states(tiny_model: Callable[..., Any]) -> None:
    model, mask = tiny_model("llama"), torch.ones_like(IDS)
    ids = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
    with torch.no_grad():
        padded = hidden_states(model, ids, torch.cat([torch.zeros(2, 3, dtype=torch.long), mask], 1))
        torch.testing.assert_close(padded[:, 3:], hidden_states(model, IDS, mask), rtol=1e-4, atol=1e-5)


def test_hidden_states_are_kept_next_to_the_logits(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    with keep_hidden(model) as kept:
        first = logits(model, IDS)
    torch.testing.assert_close(output_head(model).logits(kept[0]), first, rtol=1e-4, atol=1e-4)
    logits(model, IDS)
    assert len(kept) == 1


def test_the_head_is_restored_after_an_error(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    before = logits(model, IDS)

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), instead_of_head(model, fail):
        logits(model, IDS)
    assert torch.equal(logits(model, IDS), before)
