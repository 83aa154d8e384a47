"""Load a model and its tokenizer from files, onto a device.

Files from strangers are data: weights are read from safetensors or GGUF only, never from pickles.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interp.checkpoints.converted import converted_folder
from interp.checkpoints.found import FoundFiles, check_config_bounds, first_line, own_code, weight_files
from interp.tables.errors import CheckpointError

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Values of `dtype`; "auto" is the checkpoint's own dtype, but float32 on a CPU and for GGUF files."""

_DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps", "balanced")

_OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "ForMaskedLM")
"""Endings of the class names of models that do not predict the next token."""


@dataclass(frozen=True)
class Checkpoint:
    """An open model.

    Attributes:
        model: in evaluation mode, without gradients; a `PeftModel` where an adapter was named.
        tokenizer: fast, with offsets.
        name: short name for tables and titles.
        identity: what was opened: kind, source, revision, hashes, sizes, dtype, device and adapter.
        adapter: the name by which PEFT activates this checkpoint's adapter on a model with several (`open_adapters`); None otherwise.
    """

    model: Any
    tokenizer: Any
    name: str
    identity: dict[str, Any]
    adapter: str | None = None

    @property
    def position_limit(self) -> int | None:
        """Return the longest text that the model's positions allow, in tokens; None where the config names no limit."""
        text = self.model.config.get_text_config(decoder=True)
        limit = getattr(text, "max_position_embeddings", None)
        return int(limit) if limit else None


def model_folder(found: FoundFiles) -> Path:
    """Return the folder with a model's config, weights and tokenizer; a GGUF file is converted.

    Raises:
        CheckpointError: as `converted_folder`.
    """
    return converted_folder(found.weights) if found.kind in ("embedded", "gguf") else found.folder


def load_model(found: FoundFiles, device: str, dtype: str, trust_remote_code: bool) -> tuple[Any, Any, list[str]]:
    """Return a model in evaluation mode, its tokenizer, and the names of stored weights that the model has no place for.

    Args:
        found: a model, not an adapter.
        device: as `choose_device` returns it.
        dtype: one of `DTYPES`.
        trust_remote_code: let the checkpoint run its own code.

    Raises:
        CheckpointError: the files are damaged or incomplete, or the model is not a causal language model.
    """
    from transformers import AutoModelForCausalLM

    folder = model_folder(found)
    _check_safetensors(folder, found.source)
    config = load_config(folder, found.source, trust_remote_code)
    wanted = torch.float32 if dtype == "auto" and (device == "cpu" or found.kind in ("embedded", "gguf")) else dtype
    wanted = getattr(torch, wanted) if isinstance(wanted, str) and wanted != "auto" else wanted
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=wanted,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, all of them
            device_map="balanced" if device == "balanced" else None,
        )
    except Exception as error:
        raise CheckpointError(f"{found.source}: the weights cannot be loaded ({first_line(error)})") from error
    model, info = loaded
    absent = sorted(info["missing_keys"])
    absent += [f"{name} ({list(stored)} instead of {list(needed)})" for name, stored, needed in sorted(info["mismatched_keys"])]
    if absent:
        raise CheckpointError(
            f"{found.source}: {len(absent)} weights of {type(model).__name__} are missing or have another shape, the first is {absent[0]}"
        )
    tokenizer = load_tokenizer(folder, found.source, trust_remote_code)
    if device != "balanced":
        model.to(device)
    return model.eval().requires_grad_(False), tokenizer, sorted(info["unexpected_keys"])


def load_config(folder: Path, source: str, trust_remote_code: bool) -> Any:
    """Return the config of a model's folder.

    Raises:
        CheckpointError: it cannot be read, or is not a causal language model's.
    """
    from transformers import AutoConfig

    check_config_bounds(folder / "config.json")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise CheckpointError(
            f"{source}: its config.json cannot be read ({first_line(error)})" + own_code(folder / "config.json", trust_remote_code)
        ) from error
    _check_causal(config, source)
    return config


def load_tokenizer(folder: Path, source: str, trust_remote_code: bool) -> Any:
    """Return the tokenizer of a model's or an adapter's folder.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise CheckpointError(
            f"{source}: no tokenizer can be read ({first_line(error)})" + own_code(folder / "tokenizer_config.json", trust_remote_code)
        ) from error


def _check_causal(config: Any, source: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = config.model_type
    remote = bool(getattr(config, "auto_map", None))
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(f"{source}: {kind} is an encoder-decoder; a causal (decoder-only) language model is needed")
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise CheckpointError(f"{source}: {kind} is encoder-only; a causal (decoder-only) language model is needed")
    names = getattr(config, "architectures", None) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{source}: architectures in its config.json is {str(names)[:60]}; a list of class names is needed")
    heads = [name for name in names if name.endswith(_OTHER_HEADS)]
    if heads:
        raise CheckpointError(f"{source}: {heads[0]} does not predict the next token; a causal language model is needed")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not remote:
        raise CheckpointError(f"{source}: {kind} is not a causal language model of transformers")


def _check_safetensors(folder: Path, source: str) -> None:
    from safetensors import SafetensorError, safe_open

    for path in weight_files(folder, source):
        try:
            with safe_open(path, "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: damaged or truncated weights ({first_line(error)}); fetch the file again") from error


def choose_device(device: str) -> str:
    """Return the device that a name means on this machine: for "auto" CUDA, then MPS, then CPU.

    Raises:
        CheckpointError: an unknown name, or a device that this machine does not have.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps", "balanced") or (kind != "cuda" and device != kind):
        raise CheckpointError(f"device is {device!r}; allowed: {', '.join(_DEVICES)}")
    if kind in ("cuda", "balanced") and not torch.cuda.is_available():
        raise CheckpointError(
            f"device {device!r} was asked for, but this machine has no CUDA device; --device auto takes what is available"
        )
    if kind == "cuda" and ":" in device:
        number = device.split(":", 1)[1]
        if not number.isdigit() or int(number) >= torch.cuda.device_count():
            raise CheckpointError(f"device {device!r} was asked for; this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise CheckpointError("device 'mps' was asked for, but this machine has none; --device auto takes what is available")
    return device


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and messages: what matters becomes an error or an entry in `run.json`."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
