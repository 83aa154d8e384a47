"""Files with random damage: whatever they hold, opening them gives a model or one of the project's own errors."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interp.checkpoints.opening import open_checkpoint
from interp.tables.errors import PrimedHeadsError

ROUNDS = 25
ODD_VALUES = (None, True, -1, 0, 1.5, 10**9, 10**30, "", "x", "..", "\0", [], [1], ["a", {}], {}, {"a": 1}, "x" * 5000)


def damage_bytes(path: Path, chance: random.Random) -> None:
    """Change bytes of a file's header, or truncate the file."""
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(min(len(data), 2000))
        kind = chance.choice(("byte", "byte", "number", "truncation"))
        if kind == "byte":
            data[at] = chance.randrange(256)
        elif kind == "number":
            data[at : at + 8] = b"\xff" * 8
        else:
            data = data[: max(at, 1)]
    path.write_bytes(data)


def replace_value(path: Path, chance: random.Random) -> None:
    """Give a key of a JSON file an odd value."""
    content = json.loads(path.read_text("utf-8"))
    content[chance.choice(sorted(content))] = chance.choice(ODD_VALUES)
    path.write_text(json.dumps(content), "utf-8")


def open_or_refuse(source: Path) -> None:
    try:
        open_checkpoint(source, device="cpu")
    except PrimedHeadsError as error:
        assert str(error).strip()  # noqa: PT017 (a model may open all the same)


@pytest.mark.parametrize("damage", [damage_bytes, replace_value])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json", "generation_config.json"])
def test_a_damaged_model_gives_no_foreign_error(name: str, damage: Callable[..., None], folder: Path, tmp_path: Path) -> None:
    if damage is replace_value and not name.endswith(".json"):
        pytest.skip("not JSON")
    chance = random.Random(name)
    for number in range(ROUNDS):
        model = Path(shutil.copytree(folder, tmp_path / str(number)))
        damage(model / name, chance)
        open_or_refuse(model)


@pytest.mark.parametrize("damage", [damage_bytes, replace_value])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_gives_no_foreign_error(
    name: str, damage: Callable[..., None], folder: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if damage is replace_value and not name.endswith(".json"):
        pytest.skip("not JSON")

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    chance = random.Random(name)
    for number in range(ROUNDS):
        lora = Path(shutil.copytree(adapter, tmp_path / str(number)))
        damage(lora / name, chance)
        open_or_refuse(lora)


@pytest.mark.usefixtures("assets")
def test_a_damaged_gguf_file_gives_no_foreign_error(tmp_path: Path, tiny_model: Callable[..., Any], write_gguf: Callable[..., Any]) -> None:
    write_gguf(tmp_path / "sound.gguf", tiny_model("llama"))
    chance = random.Random(0)
    for number in range(ROUNDS):
        model = Path(shutil.copy(tmp_path / "sound.gguf", tmp_path / f"{number}.gguf"))
        damage_bytes(model, chance)
        open_or_refuse(model)
