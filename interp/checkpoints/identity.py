"""Record which weights were opened, so that a result names what it was measured on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from interp.checkpoints.found import FoundFiles
from interp.tables.files import file_sha256


def content_of(found: FoundFiles) -> dict[str, Any]:
    """Return what decides a model's numbers, wherever its files are: name, and revision (hub) or hashes (files)."""
    if found.kind == "hub":
        return {"name": found.name, "revision": found.revision}
    about: dict[str, Any] = {"name": found.name, "weights_sha256": joint_sha256(found.weights)}
    if found.kind == "folder":
        files = (found.folder / name for name in ("config.json", "generation_config.json"))
        about["config_sha256"] = joint_sha256(tuple(file for file in files if file.is_file()))
    return about


def about_adapter(found: FoundFiles, config: Any) -> dict[str, Any]:
    """Return an adapter's entry in the identity of the model that it is applied to.

    Args:
        found: the adapter's files.
        config: PEFT's config of the adapter.
    """
    return {
        "kind": "adapter",
        "source": found.source,
        "revision": found.revision,
        "weights_sha256": joint_sha256(found.weights),
        "peft_type": str(getattr(config.peft_type, "value", config.peft_type)),
        "rank": getattr(config, "r", None),
    }


def weights_of(found: FoundFiles) -> object:
    """Return a value that is equal for two base models of the same weights, wherever their files are."""
    return {key: value for key, value in content_of(found).items() if key != "name"} if found.kind != "hub" else found.folder.resolve()


def checkpoint_identity(found: FoundFiles, model: Any, unused: list[str]) -> dict[str, Any]:
    """Return the identity of an open model.

    Args:
        found: the files that it was loaded from.
        model: as loaded.
        unused: names of stored weights that the model has no place for.
    """
    text = model.config.get_text_config(decoder=True)
    return {
        "name": found.name,
        "kind": found.kind,
        "source": found.source,
        "revision": found.revision,
        "weights_sha256": joint_sha256(found.weights),
        "architecture": type(model).__name__,
        "n_layers": int(text.num_hidden_layers),
        "n_heads": int(text.num_attention_heads),
        "n_parameters": int(sum(p.numel() for p in model.parameters())),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(next(model.parameters()).device),
        "unused_weights": unused,
        "adapter": None,
    }


def joint_sha256(files: tuple[Path, ...]) -> str:
    """Return the SHA-256 of one file, or that of the lines "name digest" of several."""
    if len(files) == 1:
        return _file_digest(files[0])
    lines = "".join(f"{file.name} {_file_digest(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


_DIGESTS: dict[tuple[str, int, int], str] = {}


def _file_digest(path: Path) -> str:
    """Return a file's SHA-256, computed once in a process as long as the file's size and time of change stay."""
    state = path.stat()
    key = (str(path.resolve()), state.st_size, state.st_mtime_ns)
    if key not in _DIGESTS:
        _DIGESTS[key] = file_sha256(path)
    return _DIGESTS[key]
