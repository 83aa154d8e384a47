"""The page in a notebook: what is wrong is told as the command tells it, and a model of one's own will do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interp.tables.errors import InputError


def test_a_notebook_is_told_what_is_wrong(checkpoint: Path) -> None:
    from interp import open_checkpoint, show

    opened = open_checkpoint(checkpoint, device="cpu")
    with pytest.raises(InputError, match="empty"):
        show(opened, question=" ")
    with pytest.raises(InputError, match="answer"):
        show(opened, question="How?", text="reference")
    with pytest.raises(InputError, match="two models"):
        show(opened, opened, question="How?")
    with pytest.raises(InputError, match="no head 7"):
        show(opened, question="How?", heads="7", max_new_tokens=4)
    with pytest.raises(InputError, match="LlamaForCausalLM; give Checkpoint"):
        show(opened.model, question="How?")
    with pytest.raises(InputError, match="region is 'zz'"):
        show(opened, question="How?", region="zz")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="surrogate"):
        show(opened, question="\ud800?")
    opened.model.train()
    with pytest.raises(InputError, match="training mode"):
        show(opened, question="How?", max_new_tokens=4)


def test_a_model_without_a_head_cannot_write(checkpoint: Path) -> None:
    from transformers import AutoModel

    from interp import open_checkpoint, show

    opened = open_checkpoint(checkpoint, device="cpu")
    bare = dataclasses.replace(opened, model=AutoModel.from_pretrained(checkpoint).eval(), identity={})
    with pytest.raises(InputError, match="cannot generate; text='gold' lets it read"):
        show(bare, question="How?", max_new_tokens=4)


def test_a_model_of_ones_own_is_compared_with_problems_measured_for_it(checkpoint: Path) -> None:
    from interp import open_checkpoint, show

    own = dataclasses.replace(open_checkpoint(checkpoint, device="cpu"), identity={}, name="mine")
    page = show(own, question="How much is 3 times 4?", answer=12, max_new_tokens=4, others=3)
    assert "measured for it" in page.html


def test_messages_name_the_arguments_of_the_call(checkpoint: Path) -> None:
    from interp import open_checkpoint, show

    opened = open_checkpoint(checkpoint, device="cpu")
    refusals: tuple[tuple[dict[str, Any], str], ...] = (
        ({"heads": "9.9"}, "heads: there is no head 9.9; "),
        ({"heads": "first"}, "heads 'first': a head is written 12.3, a whole layer 12, or auto; "),
        ({"watch": "first"}, "watch 'first': a head is written 12.3, a whole layer 12; "),
        ({"heads": "0.1", "watch": "1"}, "heads='0.1' is not among the heads of watch: "),
        ({"by": "entropy"}, "by='entropy' is no measure; "),
    )
    for asked, told in refusals:
        with pytest.raises(InputError) as refused:
            show(opened, question="How?", max_new_tokens=4, **asked)
        assert str(refused.value).startswith(told)
    page = show(opened, question="How much is 3 times 4?", max_new_tokens=4)
    assert "and so does others=12" in page.html
    assert "(max_new_tokens)" in page.html


def test_models_of_other_forms_are_refused_before_one_is_loaded(
    checkpoint: Path, save_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    from interp import open_checkpoint, show

    opened = open_checkpoint(checkpoint, device="cpu")
    deeper = save_checkpoint(tmp_path / "deeper", num_hidden_layers=3)
    monkeypatch.delattr(AutoModelForCausalLM, "from_pretrained")
    with pytest.raises(InputError, match="2 layers of 4 heads, deeper 3 of 4"):
        show(opened, deeper, question="How?")


def test_an_empty_name_is_no_model() -> None:
    from interp import show

    with pytest.raises(InputError, match="the name of a model is empty"):
        show(" ", question="How?")
