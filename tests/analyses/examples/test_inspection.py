"""Models are inspected together only if they have the same layers and heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.analyses.examples.conftest import SHORT, Ran


def test_models_with_different_shapes_are_refused(
    inspect: Callable[..., Ran], checkpoint: Path, save_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    deeper = save_checkpoint(tmp_path / "deeper", num_hidden_layers=3)
    ran = inspect("--model", checkpoint, deeper, "--text", "reference", "--others", 0)
    assert ran.code == 2
    assert "2 layers of 4 heads" in ran.err
    assert "3 of 4" in ran.err


def test_models_with_different_shapes_are_refused_before_one_answers(
    inspect: Callable[..., Ran], checkpoint: Path, save_checkpoint: Callable[..., Path], adapter: Path, tmp_path: Path, monkeypatch
) -> None:
    from transformers import AutoModelForCausalLM

    fewer = save_checkpoint(tmp_path / "fewer", num_attention_heads=2, num_key_value_heads=2)
    monkeypatch.delattr(AutoModelForCausalLM, "from_pretrained")
    ran = inspect("--model", checkpoint, adapter, fewer, *SHORT)
    assert ran.code == 2
    assert (
        f"{checkpoint.name} has 2 layers of 4 heads, but fewer has 2 of 2; models are compared only if they have the same layers" in ran.err
    )
    assert list(Path.cwd().glob("out*")) == []
