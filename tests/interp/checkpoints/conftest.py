"""A tiny saved model, an adapter of it, and small tools that the tests of checkpoints share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.checkpoints import opening

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(44))]
"""As many as the tiny models' vocabulary."""


@pytest.fixture(scope="session")
def save_tokenizer() -> Callable[..., None]:
    """Save a tokenizer of the tiny models' vocabulary in a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def save(folder: Path, **settings: Any) -> None:
        fast = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
        fast.pre_tokenizer = pre_tokenizers.Whitespace()
        special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        PreTrainedTokenizerFast(tokenizer_object=fast, **special, **settings).save_pretrained(folder)

    return save


@pytest.fixture(scope="session")
def change_json() -> Callable[..., None]:
    """Change keys of a JSON file."""

    def change(path: Path, **changes: Any) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")

    return change


@pytest.fixture(scope="session")
def sha256() -> Callable[[Path], str]:
    return lambda path: hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def logits_of() -> Callable[[Any], torch.Tensor]:
    """Return a model's logits of a fixed text."""

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=torch.arange(4, 24)[None], use_cache=False).logits

    return logits


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Any], save_tokenizer: Callable[..., None]) -> Path:
    """A tiny Llama, saved. Read only."""
    target = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("llama").save_pretrained(target)
    save_tokenizer(target)
    return target


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A LoRA adapter of `folder` on q_proj, written as PEFT writes it. Read only."""
    from safetensors.torch import save_file

    target = tmp_path_factory.mktemp("adapters") / "lora"
    target.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (target / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(folder)}))
    random = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(2):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        weights[f"{stem}A.weight"] = torch.randn(2, 32, generator=random)
        weights[f"{stem}B.weight"] = torch.randn(32, 2, generator=random)
    save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for converted weights that only this test uses."""
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


@pytest.fixture(scope="session")
def folders_below() -> Callable[[Path], list[str]]:
    """Return the names of what the cache holds."""
    return lambda assets: sorted(path.name for path in assets.glob("primed-heads/gguf/*/*"))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights are loaded."""
    monkeypatch.setattr(opening, "load_model", lambda *_, **__: pytest.fail("the weights were loaded"))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("the weights were loaded"))
