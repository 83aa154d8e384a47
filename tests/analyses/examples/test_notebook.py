"""`show` gives the page of the command, takes a model of your own, and names its arguments in messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interp.tables.errors import InputError
from tests.analyses.examples.conftest import SHORT, Ran, run_json


def test_show_gives_the_page_of_the_command(inspect: Callable[..., Ran], checkpoint: Path, tmp_path: Path) -> None:
    from analyses.examples import show
    from interp import open_checkpoint

    question = "Ann has 12 pens and buys 3 packs of 4. How many pens?"
    page = show(open_checkpoint(checkpoint, device="cpu"), question=question, answer="24", max_new_tokens=12, heads="1.1")
    assert inspect("--question", question, "--answer", "24", *SHORT, "--heads", "1.1", "--others", 0).code == 0
    theirs = Path("out/example.html").read_text("utf-8")
    command = run_json()["command"]
    assert page.html.count("\n") == theirs.count("\n")
    assert len(page.html) == pytest.approx(len(theirs), abs=len(command) + 400)  # only the command and the versions differ
    framed = page._repr_html_()
    assert framed.startswith("<iframe")
    assert "<script" not in framed  # escaped inside the frame's attribute
    assert page.save(tmp_path / "page.html").read_text("utf-8") == page.html


def test_bad_arguments_are_refused(checkpoint: Path) -> None:
    from analyses.examples import show
    from interp import open_checkpoint

    opened = open_checkpoint(checkpoint, device="cpu")
    with pytest.raises(InputError, match="question is ' '; it must be a text that is not empty"):
        show(opened, question=" ")
    with pytest.raises(InputError, match="give it as answer"):
        show(opened, question="How?", text="reference")
    with pytest.raises(InputError, match="two models"):
        show(opened, opened, question="How?")
    with pytest.raises(InputError, match="no head 7"):
        show(opened, question="How?", heads="7", max_new_tokens=4)
    with pytest.raises(InputError, match="LlamaForCausalLM; give Checkpoint"):
        show(opened.model, question="How?")
    with pytest.raises(InputError, match="region is 'zz'"):
        show(opened, question="How?", region="zz")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="question holds half of a surrogate pair"):
        show(opened, question="\ud800?")
    opened.model.train()
    with pytest.raises(InputError, match="training mode"):
        show(opened, question="How?", max_new_tokens=4)


def test_a_model_without_an_output_head_cannot_answer(checkpoint: Path) -> None:
    from transformers import AutoModel

    from analyses.examples import show
    from interp import open_checkpoint

    opened = open_checkpoint(checkpoint, device="cpu")
    bare = dataclasses.replace(opened, model=AutoModel.from_pretrained(checkpoint).eval(), identity={})
    with pytest.raises(InputError, match="cannot generate; text='reference' lets it read"):
        show(bare, question="How?", max_new_tokens=4)


def test_a_users_own_model_is_compared_with_problems_measured_for_it(checkpoint: Path) -> None:
    from analyses.examples import show
    from interp import open_checkpoint

    own = dataclasses.replace(open_checkpoint(checkpoint, device="cpu"), identity={}, name="mine")
    page = show(own, question="How much is 3 times 4?", answer=12, max_new_tokens=4, others=3)
    assert "measured for it" in page.html


def test_messages_name_the_arguments_of_the_call(checkpoint: Path) -> None:
    from analyses.examples import show
    from interp import open_checkpoint

    opened = open_checkpoint(checkpoint, device="cpu")
    refusals: tuple[tuple[dict[str, Any], str], ...] = (
        ({"heads": "9.9"}, "heads: there is no head 9.9; "),
        ({"heads": "first"}, "heads 'first' is not a head; write 12.3 for a head, 12 for a layer, or auto for the most unusual ones; "),
        ({"watch": "first"}, "watch 'first' is not a head; write 12.3 for a head, 12 for a layer; "),
        ({"heads": "0.1", "watch": "1"}, "heads='0.1' is not among the heads of watch; "),
        ({"by": "entropy"}, "by='entropy' is not a measure; "),
    )
    for arguments, message in refusals:
        with pytest.raises(InputError) as refused:
            show(opened, question="How?", max_new_tokens=4, **arguments)
        assert str(refused.value).startswith(message)
    page = show(opened, question="How much is 3 times 4?", max_new_tokens=4)
    assert "and so does others=12" in page.html
    assert "(max_new_tokens)" in page.html


def test_models_with_different_shapes_are_refused_before_one_is_loaded(
    checkpoint: Path, save_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    from analyses.examples import show
    from interp import open_checkpoint

    opened = open_checkpoint(checkpoint, device="cpu")
    deeper = save_checkpoint(tmp_path / "deeper", num_hidden_layers=3)
    monkeypatch.delattr(AutoModelForCausalLM, "from_pretrained")
    with pytest.raises(InputError, match="2 layers of 4 heads, but deeper has 3 of 4"):
        show(opened, deeper, question="How?")


def test_an_empty_model_name_is_refused() -> None:
    from analyses.examples import show

    with pytest.raises(InputError, match="the name of a model is empty"):
        show(" ", question="How?")


def test_gold_still_names_reference_text(checkpoint: Path) -> None:
    from analyses.examples import show
    from interp import open_checkpoint

    old: Any = "gold"
    page = show(open_checkpoint(checkpoint, device="cpu"), question="How much is 3 times 4?", answer="3*4 = 12\n#### 12", text=old)
    assert "3*4 = 12" in page.html
