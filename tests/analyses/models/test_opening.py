"""Several adapters of one base in one command load the weights once, and give the values of each adapter alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from analyses.shifts.__main__ import main

Heads = Callable[..., Any]
Make = Callable[..., Path]
BATCHES = ("--batch-tokens", "160")
N_BATCHES = 3
"""Of the seven short problems: some batches have several texts, and all have different shapes."""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, adapters: list[Path]) -> tuple[list[str], Counter[tuple[int, ...]]]:
    """Return the folders whose weights were loaded, and how often the decoder read a batch of each shape while recording."""
    from transformers import AutoModelForCausalLM
    from transformers.models.llama.modeling_llama import LlamaModel

    from analyses.heads import batches

    loads, forwards = [], Counter()
    load, forward, record_batch, recording = (
        AutoModelForCausalLM.from_pretrained,
        LlamaModel.forward,
        batches.record_batch,
        [],
    )

    def loaded(folder: Any, **settings: Any) -> Any:
        loads.append(Path(folder).name)
        return load(folder, **settings)

    def recorded(*arguments: Any) -> Any:
        recording.append(True)  # opening an adapter tries it on a few tokens, which are not counted
        try:
            return record_batch(*arguments)
        finally:
            recording.clear()

    def went(self: Any, *arguments: Any, **inputs: Any) -> Any:
        if recording:
            forwards[tuple(inputs["input_ids"].shape)] += 1
        return forward(self, *arguments, **inputs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loaded)
    monkeypatch.setattr(LlamaModel, "forward", went)
    monkeypatch.setattr(batches, "record_batch", recorded)
    return loads, forwards


@pytest.fixture
def adapters(tmp_path: Path, checkpoint: Path, save_adapter: Make) -> list[Path]:
    return [save_adapter(tmp_path / "adapters" / f"scale-{scale}", checkpoint, scale=scale) for scale in (0.5, 0.3, 0.1)]


@pytest.mark.parametrize(("n_adapters", "with_base"), [(3, None), (2, "first"), (1, "last")])
def test_adapters_of_one_base_take_one_load_and_a_forward_each(
    n_adapters: int,
    with_base: str | None,
    heads: Heads,
    counted: Any,
    adapters: list[Path],
    checkpoint: Path,
    problems: Path,
    tmp_path: Path,
) -> None:
    adapters = adapters[:n_adapters]
    models = [*([checkpoint] if with_base == "first" else []), *adapters, *([checkpoint] if with_base == "last" else [])]
    loads, forwards = counted
    options = ["--problems", str(problems), "--device", "cpu", "--maps", "no", "--no-figures", "--out", str(tmp_path / "out")]
    assert main([*map(str, models), *BATCHES, *options]) == 0
    assert loads == [checkpoint.name]
    assert len(forwards) == N_BATCHES
    assert set(forwards.values()) == {len(models)}

    together = {}
    for model in models:
        alone, shared = tmp_path / "alone" / model.name, tmp_path / "out" / "heads" / model.name
        assert heads("--model", model, "--out", alone, *BATCHES).code == 0
        for name in ("examples", "heads", "inputs"):
            pd.testing.assert_frame_equal(
                pd.read_parquet(shared / f"{name}.parquet"), pd.read_parquet(alone / f"{name}.parquet"), rtol=0, atol=0
            )
        together[model] = pd.read_parquet(shared / "examples.parquet")["value"]
    assert len({tuple(values) for values in together.values()}) == len(models)  # each adapter changed something
    assert len(loads) == 1 + len(models)  # separate runs load the model again, so the counter works
    assert set(forwards.values()) == {2 * len(models)}


def test_the_base_of_adapters_is_recognized_by_its_weights(
    adapters: list[Path], checkpoint: Path, save_checkpoint: Make, tmp_path: Path
) -> None:
    from analyses.models.named import find_models
    from analyses.models.opening import OpenModels
    from analyses.options import ModelOptions
    from interp.checkpoints.opening import open_checkpoint

    other = save_checkpoint(tmp_path / "other", seed=1)
    models = find_models([str(path) for path in (checkpoint, *adapters, other)])
    base, first, *_, another = models
    opened = OpenModels(models, ModelOptions(device="cpu"))
    assert opened.open(another).model is not opened.open(base).model
    ids = torch.arange(40)[None]

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids).logits

    alone = {model.name: open_checkpoint(str(model.source), device="cpu") for model in (base, first, another)}
    for model in (first, base, another, first, base):  # in any order, and repeatedly
        found = opened.open(model)
        assert torch.equal(logits(found.model), logits(alone[model.name].model))
        assert found.identity == alone[model.name].identity
        assert found.name == model.name
        assert not any(p.requires_grad for p in found.model.parameters())
    assert opened.open(base).model is opened.open(first).model


def test_an_adapter_that_rewrote_its_base_leaves_the_others_their_numbers(adapters: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    """PiSSA takes its start out of the base's weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from analyses.models.named import find_models
    from analyses.models.opening import OpenModels
    from analyses.options import ModelOptions
    from interp.checkpoints.opening import open_checkpoint

    trained: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(checkpoint),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM"),
    )
    for name, parameter in trained.named_parameters():
        if "lora_" in name:
            parameter.data += 0.3
    trained.save_pretrained(tmp_path / "pissa")
    models = find_models([str(path) for path in (checkpoint, tmp_path / "pissa", *adapters[:2])])
    ids = torch.arange(40)[None]

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids).logits

    alone = {model.name: logits(open_checkpoint(str(model.source), device="cpu").model) for model in models}
    torch.testing.assert_close(alone["pissa"], logits(trained.eval()), rtol=1e-4, atol=1e-4)
    for order in (models, models[::-1]):
        opened = OpenModels(order, ModelOptions(device="cpu"))
        for model in order:
            torch.testing.assert_close(logits(opened.open(model).model), alone[model.name], rtol=1e-5, atol=1e-5)
        assert opened.shares(models)


@pytest.mark.parametrize("written", ["{", "[]", "{}", None])
def test_a_damaged_adapter_is_one_error_line(
    written: str | None, adapters: list[Path], checkpoint: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Next to its base, where the name of the base is read first."""
    file = adapters[0] / "adapter_config.json"
    file.write_text(written if written is not None else file.read_text("utf-8")[:40], "utf-8")
    options = ["--problems", str(problems), "--device", "cpu", "--maps", "no", "--no-figures", "--out", str(tmp_path / "out")]
    assert main([str(checkpoint), str(adapters[0]), *options]) == 2
    assert "Traceback" not in capsys.readouterr().err
