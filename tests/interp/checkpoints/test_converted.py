"""The cache of converted GGUF files: converted once, complete or absent, and verified before it is used."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.checkpoints import converted
from interp.checkpoints.opening import open_checkpoint, open_tokenizer
from interp.tables.errors import CheckpointError


def test_a_gguf_file_gives_the_model_that_was_written(
    tmp_path: Path,
    assets: Path,
    tiny_model: Callable[..., Any],
    write_gguf: Callable[..., None],
    sha256: Callable[..., Any],
    logits_of: Callable[..., Any],
    folders_below: Callable[..., Any],
) -> None:
    model, path = tiny_model("llama"), tmp_path / "tiny-f32.gguf"
    write_gguf(path, model)
    checkpoint = open_checkpoint(path, device="cpu")
    torch.testing.assert_close(logits_of(checkpoint.model), logits_of(model), rtol=1e-4, atol=1e-4)
    identity = checkpoint.identity
    assert (identity["kind"], identity["source"], identity["name"]) == ("gguf", str(path), "tiny-f32")
    assert identity["weights_sha256"] == sha256(path)
    assert identity["dtype"] == "float32"
    assert checkpoint.tokenizer.is_fast
    ids = checkpoint.tokenizer("wd ok", add_special_tokens=False)["input_ids"]
    assert checkpoint.tokenizer.convert_ids_to_tokens(ids) == ["wd", "\u0120", "o", "k"]
    assert folders_below(assets) == [sha256(path)]


def fake_conversion(monkeypatch: pytest.MonkeyPatch, convert: Callable[[Path, Path], None] | None = None) -> list[Path]:
    """Replace the conversion with a cheap one; return the list of where it wrote."""
    targets: list[Path] = []

    def write(parts: tuple[Path, ...], target: Path) -> None:
        targets.append(target)
        target.mkdir()
        (target / "config.json").write_bytes(parts[0].read_bytes())
        if convert is not None:
            convert(parts[0], target)

    monkeypatch.setattr(converted, "_convert", write)
    return targets


def test_a_gguf_file_is_converted_once_per_content(
    tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch, folders_below: Callable[..., Any]
) -> None:
    targets, path = fake_conversion(monkeypatch), tmp_path / "a.gguf"
    path.write_bytes(b"GGUF one")
    first = converted.converted_folder((path,))
    assert converted.converted_folder((path,)) == first
    (tmp_path / "same.gguf").write_bytes(b"GGUF one")
    assert converted.converted_folder((tmp_path / "same.gguf",)) == first
    assert len(targets) == 1
    path.write_bytes(b"GGUF other")
    second = converted.converted_folder((path,))
    assert ((first / "config.json").read_bytes(), (second / "config.json").read_bytes()) == (b"GGUF one", b"GGUF other")
    assert folders_below(assets) == sorted([first.name, second.name])


def test_simultaneous_conversions_do_not_collide(
    tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch, sha256: Callable[..., Any], folders_below: Callable[..., Any]
) -> None:
    together = threading.Barrier(4)
    targets, path = fake_conversion(monkeypatch, lambda *_: (together.wait(30), None)[1]), tmp_path / "a.gguf"
    path.write_bytes(b"GGUF")
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(converted.converted_folder, [(path,)] * 4))
    assert len(set(targets)) == 4
    assert len(found) == 1
    assert (found.pop() / "config.json").read_bytes() == b"GGUF"
    assert folders_below(assets) == [sha256(path)]


@pytest.mark.parametrize("error", [CheckpointError("cannot be read"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path,
    assets: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    sha256: Callable[..., Any],
    folders_below: Callable[..., Any],
) -> None:
    def fail(*_: Path) -> None:
        raise error

    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF")
    with monkeypatch.context() as patch:
        fake_conversion(patch, fail)
        with pytest.raises(CheckpointError if isinstance(error, Exception) else KeyboardInterrupt):
            converted.converted_folder((path,))
    assert folders_below(assets) == []
    fake_conversion(monkeypatch)
    assert converted.converted_folder((path,)).name == sha256(path)


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("dear")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "file" / "assets"))
    fake_conversion(monkeypatch)
    with pytest.raises(CheckpointError, match="HF_ASSETS_CACHE"):
        open_checkpoint(tmp_path / "a.gguf", device="cpu")


def flip(path: Path) -> None:
    """Change one byte in the middle, keeping the size."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped weights": (lambda folder: flip(folder / "model.safetensors"), "model.safetensors was changed"),
    "truncated weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors was changed"),
    "deleted weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "deleted config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "changed tokenizer": (lambda folder: flip(folder / "tokenizer.json"), "tokenizer.json was changed"),
    "foreign file": (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "index.json was added"),
    "deleted manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json cannot be read"),
    "damaged manifest": (lambda folder: (folder / "manifest.json").write_text("[1]"), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("verified_before", [True, False], ids=["same process", "new process"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_is_converted_again_with_a_note(
    damage: str,
    verified_before: bool,
    tmp_path: Path,
    assets: Path,
    tiny_model: Callable[..., Any],
    write_gguf: Callable[..., Any],
    logits_of: Callable[..., torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_model("llama"))
    wanted = logits_of(open_checkpoint(path, device="cpu").model)
    [folder] = [found for found in assets.glob("primed-heads/gguf/*/*") if found.is_dir()]
    if not verified_before:
        monkeypatch.setattr(converted, "_VERIFIED", {})
    assert "note:" not in capsys.readouterr().err
    change, message = DAMAGE[damage]
    change(folder)
    assert open_tokenizer(path)("wd")["input_ids"]
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert len(notes) == 1
    assert message in notes[0]
    assert torch.equal(logits_of(open_checkpoint(path, device="cpu").model), wanted)
    assert "note:" not in capsys.readouterr().err


def test_a_verified_copy_is_hashed_once_in_a_process(
    tmp_path: Path, assets: Path, tiny_model: Callable[..., Any], write_gguf: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_model("llama"))
    open_tokenizer(path)
    monkeypatch.setattr(converted, "file_sha256", lambda _: pytest.fail("a file was hashed again"))
    open_tokenizer(path)


def test_every_file_of_a_copy_is_flushed_before_it_gets_its_name(tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.tables import files

    fake_conversion(monkeypatch)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    done: list[str] = []
    sync, rename = files.sync, files.rename
    monkeypatch.setattr(files, "sync", lambda path: (done.append(path.name), sync(path)))
    monkeypatch.setattr(files, "rename", lambda source, target: (done.append("renamed to " + target.name), rename(source, target)))
    folder = converted.converted_folder((tmp_path / "a.gguf",))
    named = done.index(f"renamed to {folder.name}")
    assert {"config.json", "manifest.json"} <= set(done[:named])
    shutil.rmtree(folder)
