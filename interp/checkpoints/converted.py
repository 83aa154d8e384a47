"""Keep GGUF models as safetensors folders in a cache whose content is verified by hash before it is used."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

from interp.checkpoints.gguf import load_gguf
from interp.checkpoints.identity import joint_sha256
from interp.tables.errors import CheckpointError
from interp.tables.files import file_sha256, locked, write_folder, write_json

_CONVERTED = "safetensors-v2"
"""Folder of the converted GGUF files in the cache; changes with the conversion."""

_MANIFEST = "manifest.json"
"""Lists the SHA-256 of each other file of a converted folder. It is written last."""

_State = tuple[tuple[str, int, int, int], ...]

_VERIFIED: dict[Path, _State] = {}
"""States in which this process has verified converted folders: name, size, time of change and inode of each file."""


def converted_folder(parts: tuple[Path, ...]) -> Path:
    """Return a GGUF model as a safetensors folder, converted once and kept in the hub's assets cache under the file's hash.

    The folder's files are hashed once in a process, and again when they change. A damaged folder is converted again, with a note on
    standard error. Several processes may convert at once: each writes its own draft, and the first to finish provides the folder.

    Args:
        parts: the file, or the parts of a split one in order.

    Raises:
        CheckpointError: the file cannot be read, or the cache cannot be written.
    """
    from huggingface_hub import cached_assets_path

    digest = joint_sha256(parts)
    try:
        target = Path(cached_assets_path(library_name="primed-heads", namespace="gguf", subfolder=_CONVERTED)) / digest
        if target.is_dir() and _damage(target) is not None:
            _set_aside(target, parts[0])
        if not target.is_dir():
            write_folder(target, lambda draft: _convert_with_manifest(parts, draft))
            damage = _damage(target)
            if damage is not None:
                raise CheckpointError(f"{parts[0]}: the converted copy was damaged while it was stored ({damage}); is the disk sound?")
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:  # ValueError: the cache's place is a file
        raise CheckpointError(
            f"{parts[0]}: the converted weights cannot be stored ({error}); HF_ASSETS_CACHE names the folder, which needs room for them"
        ) from error
    return target


def _set_aside(target: Path, gguf: Path) -> None:
    """Remove a damaged folder, unless another process has already replaced it."""
    with locked(target.parent):
        damage = _damage(target) if target.is_dir() else None
        if damage is None:
            return
        print(f"note: the converted copy of {gguf} is damaged ({damage}); it is converted again", file=sys.stderr)
        shutil.rmtree(target)


def _damage(folder: Path) -> str | None:
    """Return what is wrong with a converted folder; None if it is as it was written."""
    try:
        state = _state(folder)
        if _VERIFIED.get(folder) == state:
            return None
        listed = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["sha256"]
        found = {name for name, *_ in state if name != _MANIFEST}
        if gone := sorted(set(listed) - found):
            return f"{gone[0]} is missing"
        if foreign := sorted(found - set(listed)):
            return f"{foreign[0]} was added"
        for name, digest in listed.items():
            if file_sha256(folder / name) != digest:
                return f"{name} was changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} cannot be read"
    _VERIFIED[folder] = state
    return None


def _state(folder: Path) -> _State:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((p.relative_to(folder).as_posix(), (s := p.stat()).st_size, s.st_mtime_ns, s.st_ino) for p in files)


def _convert_with_manifest(parts: tuple[Path, ...], target: Path) -> None:
    _convert(parts, target)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    write_json(target / _MANIFEST, {"sha256": {path.relative_to(target).as_posix(): file_sha256(path) for path in files}})


def _convert(parts: tuple[Path, ...], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_gguf(parts, target)
    output, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if output is not embedding and torch.equal(output, embedding):  # one tied matrix, stored twice
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.is_quantized = False  # the file was; the loaded weights are not
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
