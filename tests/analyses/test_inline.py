"""The page in a notebook: what is wrong is told as the command tells it, and a model of one's own will do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest


def test_a_notebook_is_told_what_is_wrong(checkpoint: Path) -> None:
    from analyses.example_wish import ExampleError
    from interp import open_checkpoint, show

    opened = open_checkpoint(checkpoint, device="cpu")
    with pytest.raises(ExampleError, match="empty"):
        show(opened, question=" ")
    with pytest.raises(ExampleError, match="answer"):
        show(opened, question="How?", text="gold")
    with pytest.raises(ExampleError, match="two models"):
        show(opened, opened, question="How?")
    with pytest.raises(ExampleError, match="no head 7"):
        show(opened, question="How?", heads="7", max_new_tokens=4)
    with pytest.raises(ExampleError, match="LlamaForCausalLM; give Checkpoint"):
        show(opened.model, question="How?")
    with pytest.raises(ExampleError, match="region is 'zz'"):
        show(opened, question="How?", region="zz")  # type: ignore[arg-type]
    with pytest.raises(ExampleError, match="surrogate"):
        show(opened, question="\ud800?")
    opened.model.train()
    with pytest.raises(ExampleError, match="training mode"):
        show(opened, question="How?", max_new_tokens=4)


def test_a_model_without_a_head_cannot_write(checkpoint: Path) -> None:
    from transformers import AutoModel

    from analyses.example_wish import ExampleError
    from interp import open_checkpoint, show

    opened = open_checkpoint(checkpoint, device="cpu")
    bare = dataclasses.replace(opened, model=AutoModel.from_pretrained(checkpoint).eval(), identity={})
    with pytest.raises(ExampleError, match="cannot generate; --text gold"):
        show(bare, question="How?", max_new_tokens=4)


def test_a_model_of_ones_own_is_compared_with_problems_measured_for_it(checkpoint: Path) -> None:
    from interp import open_checkpoint, show

    own = dataclasses.replace(open_checkpoint(checkpoint, device="cpu"), identity={}, name="mine")
    page = show(own, question="How much is 3 times 4?", answer=12, max_new_tokens=4, others=3)
    assert "measured for it" in page.html
