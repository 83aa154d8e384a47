"""TODO_DOC interp/checkpoints/identity.py."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from interp.checkpoints.found import FoundFiles


def content_of(found: FoundFiles) -> dict[str, Any]:
    if found.kind == "hub":
        return {"name": found.name, "revision": found.revision}
    about: dict[str, Any] = {"name": found.name, "weights_sha256": _hash(found.weights)}
    if found.kind == "folder":
        files = (found.folder / name for name in ("config.json", "generation_config.json"))
        about["config_sha256"] = _hash(tuple(file for file in files if file.is_file()))
    return about


def about_adapter(found: FoundFiles, config: Any) -> dict[str, Any]:
    return {
        "kind": "adapter",
        "source": found.source,
        "revision": found.revision,
        "weights_sha256": _hash(found.weights),
        "peft_type": str(getattr(config.peft_type, "value", config.peft_type)),
        "rank": getattr(config, "r", None),
    }


def weights_of(found: FoundFiles) -> object:
    """What tells two base models apart wherever they lie."""
    return {key: value for key, value in content_of(found).items() if key != "name"} if found.kind != "hub" else found.folder.resolve()


# --- what was opened ------------------------------------------------------------------------------------------------


def checkpoint_identity(found: FoundFiles, model: Any, unused: list[str]) -> dict[str, Any]:
    text = model.config.get_text_config(decoder=True)
    return {
        "name": found.name,
        "kind": found.kind,
        "source": found.source,
        "revision": found.revision,
        "weights_sha256": _hash(found.weights),
        "architecture": type(model).__name__,
        "n_layers": int(text.num_hidden_layers),
        "n_heads": int(text.num_attention_heads),
        "n_parameters": int(sum(p.numel() for p in model.parameters())),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(next(model.parameters()).device),
        "unused_weights": unused,
        "adapter": None,
    }


def _hash(files: tuple[Path, ...]) -> str:
    """SHA-256 of the weights' file; of several, that of the lines "name digest"."""
    if len(files) == 1:
        return file_sha256(files[0])
    lines = "".join(f"{file.name} {file_sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


_DIGESTS: dict[tuple[str, int, int], str] = {}


def file_sha256(path: Path) -> str:
    state = path.stat()
    name = (str(path.resolve()), state.st_size, state.st_mtime_ns)
    if name not in _DIGESTS:
        with path.open("rb") as file:
            _DIGESTS[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return _DIGESTS[name]
