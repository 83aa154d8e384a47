"""Tiny adapters on disk, and the command run in this process. Nothing is downloaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Ran(NamedTuple):
    """How the command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def save_adapter() -> Callable[..., Path]:
    """`(folder, base)` saves a LoRA adapter that changes its base; `scale=0` leaves every lora_B zero."""

    def save(folder: Path, base: Path, *, scale: float = 0.5) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        with warnings.catch_warnings():  # peft 0.21 asks transformers 5.23 by an old name
            warnings.simplefilter("ignore", FutureWarning)
            adapted: Any = get_peft_model(model, config)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=random) * (scale if "lora_B" in name else 0.3))
        adapted.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, save_adapter: Callable[..., Path]) -> Path:
    """A LoRA adapter of `checkpoint`. Read only."""
    return save_adapter(tmp_path_factory.mktemp("adapters") / "lora", checkpoint)


@pytest.fixture
def heads(checkpoint: Path, problems: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`(*arguments)` runs the command in this process: the tiny model, the short problems and no figures unless said otherwise."""
    from analyses.heads import main

    def run(*arguments: Any) -> Ran:
        given = [str(argument) for argument in arguments]
        for option, default in (("--model", checkpoint), ("--problems", problems), ("--device", "cpu")):
            if option not in given:
                given += [option, str(default)]
        if "--figures" not in given:
            given.append("--no-figures")
        capfd.readouterr()
        code = main(given)
        said = capfd.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def tables() -> Callable[[Path], dict[str, Any]]:
    """`(folder)` reads and validates the three tables of a run."""
    from interp.table import TABLES, read

    return lambda folder: {name: read(folder / f"{name}.parquet", schema) for name, schema in TABLES.items()}
