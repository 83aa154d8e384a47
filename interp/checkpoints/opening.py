"""Open whatever `--model` may name: a hub id, a folder, a PEFT adapter, a GGUF file, or the embedded default.

Every command and every notebook opens models here. A checkpoint's own code runs only where `trust_remote_code` allows it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interp.checkpoints.adapters import base_of, open_adapter
from interp.checkpoints.found import EMBEDDED, find_checkpoint
from interp.checkpoints.identity import checkpoint_identity, content_of
from interp.checkpoints.loading import (
    DTYPES,
    Checkpoint,
    choose_device,
    load_config,
    load_model,
    load_tokenizer,
    model_folder,
    quiet_transformers,
)
from interp.tables.errors import CheckpointError


def open_checkpoint(
    source: str | Path = EMBEDDED,
    *,
    base: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Open a causal language model with its tokenizer.

    Args:
        source: hub id, folder, PEFT adapter folder, `.gguf` file, or "smollm2".
        base: base model of an adapter; None takes the one that the adapter's config names.
        device: "auto" (CUDA, then MPS, then CPU), "cpu", "cuda", "cuda:N", "mps", or "balanced" (layers spread over all CUDA
            devices).
        dtype: "auto" is the checkpoint's own dtype, but float32 on a CPU and for GGUF files.
        revision: of a hub id.
        trust_remote_code: let the checkpoint run its own model code.

    Raises:
        CheckpointError: no such model, not a causal language model, damaged or missing weights, an adapter that does not fit its base or
            changes nothing, or a device that this machine does not have.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    device = choose_device(device)
    found = find_checkpoint(str(source), revision, trust_remote_code)
    with quiet_transformers():
        if found.kind == "adapter":
            return open_adapter(found, base, device, dtype, trust_remote_code)
        if base is not None:
            raise CheckpointError(f"--base {base} was given, but {source} is not an adapter (no adapter_config.json)")
        model, tokenizer, unused = load_model(found, device, dtype, trust_remote_code)
    return Checkpoint(model, tokenizer, found.name, checkpoint_identity(found, model, unused))


def open_tokenizer(source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer that `open_checkpoint` would give, without loading any weights.

    Raises:
        CheckpointError: as `open_checkpoint`.
    """
    found = find_checkpoint(str(source), revision, trust_remote_code, weights=False)
    with quiet_transformers():
        if found.kind == "adapter" and not (found.folder / "tokenizer_config.json").is_file():
            found = base_of(found, None, trust_remote_code, weights=False)[1]
        return load_tokenizer(model_folder(found), found.source, trust_remote_code)


def open_config(source: str | Path, *, base: str | None = None, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Return the config of the model that `open_checkpoint` would give, for an adapter that of its base, without loading any weights.

    Raises:
        CheckpointError: as `open_checkpoint`.
    """
    found = find_checkpoint(str(source), revision, trust_remote_code, weights=False)
    with quiet_transformers():
        if found.kind == "adapter":
            found = base_of(found, base, trust_remote_code, weights=False)[1]
        return load_config(model_folder(found), found.source, trust_remote_code)


def identify(source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> dict[str, Any]:
    """Return what decides a checkpoint's numbers, wherever its files are: name, and revision (hub) or hashes (files).

    The weights are hashed; in a folder also its config and its generation config. Nothing is loaded.

    Raises:
        CheckpointError: no such model.
    """
    found = find_checkpoint(str(source), revision, trust_remote_code, weights=False)
    about = content_of(found)
    if found.kind == "adapter":
        about["base"] = content_of(base_of(found, None, trust_remote_code, weights=False)[1])
    return about
