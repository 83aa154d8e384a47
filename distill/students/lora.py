"""Students that are LoRA adapters: ordinary PEFT adapter folders, with a card that records what made them."""

from __future__ import annotations

import errno
import glob
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from distill.students.card import ADAPTER_FILE, write_card
from distill.students.options import StudentConfig
from interp.checkpoints.loading import Checkpoint
from interp.checkpoints.opening import open_checkpoint
from interp.tables.errors import StudyError
from interp.tables.files import file_sha256, write_folder


def new_student(config: StudentConfig, seed: int) -> tuple[Any, Checkpoint]:
    """Return a base model with a new LoRA adapter, which changes nothing yet.

    Args:
        config: base and adapter.
        seed: seed of the adapter's first values.

    Returns:
        The PEFT model, whose adapter is float32 and trainable, and the base's checkpoint (tokenizer, identity).

    Raises:
        StudyError: the model has no such target; the message lists its linear layers.
        CheckpointError: the base cannot be opened.
    """
    from peft import LoraConfig, get_peft_model

    checkpoint = open_checkpoint(
        config.model, device=config.device, dtype=config.dtype, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    if checkpoint.identity["adapter"] is not None:
        raise StudyError(f"student.model {config.model} is an adapter; name its base, or merge the adapter to continue from it")
    model = checkpoint.model
    _check_targets(model, config.targets)
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        task_type="CAUSAL_LM",
    )
    model.config._name_or_path = model.name_or_path = _base_name(config.model)  # PEFT records it as the adapter's base
    with warnings.catch_warnings():  # peft 0.21 asks transformers 5.23 by an old name
        warnings.simplefilter("ignore", FutureWarning)
        student = get_peft_model(model, lora)
    student.peft_config["default"].revision = config.revision
    return student, checkpoint


def _base_name(model: str) -> str:
    """Return how an adapter names its base: an absolute path, so that it is found from any folder; other names unchanged."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def _check_targets(model: Any, targets: tuple[str, ...]) -> None:
    """Raise if a target is missing, is not linear, or is the output head.

    PEFT accepts a list of targets if one of them is found. The loss reads the output head without its adapter.
    """
    head = model.get_output_embeddings()
    names = [name for name, _ in model.named_modules() if name]
    missing = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)]
    if missing:
        linear = [name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
        linear += [name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, Conv1D)]
        available = sorted(set(linear) - set(_names_of(model, head)))
        raise StudyError(
            f"student.targets: {type(model).__name__} has no {', '.join(missing)}; its linear layers are {', '.join(available)}"
        )
    for target in targets:
        for name, part in model.named_modules():
            named = name == target or name.endswith(f".{target}")
            if named and not isinstance(part, (torch.nn.Linear, torch.nn.Embedding, Conv1D)):
                raise StudyError(f"student.targets: {name} is a {type(part).__name__}, which LoRA cannot adapt; name linear layers")
    adapted = [t for t in targets if t in _names_of(model, head)]
    if adapted:
        raise StudyError(f"student.targets: {adapted[0]} is the output head, which cannot be adapted; leave it out")


def _names_of(model: Any, layer: Any) -> list[str]:
    return [name.rsplit(".", 1)[-1] for name, part in model.named_modules() if part is layer]


def save_student(
    model: Any,
    folder: Path,
    card: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
    files: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write adapter, card, README and further files into a new folder, which exists only once it is complete.

    Only one process at a time may write a student: what a killed process left of an earlier call is removed.

    Args:
        model: the trained PEFT model.
        folder: folder of the student; must not exist, or be empty.
        card: see `distill.students.card.read_card`.
        state: weights of the full model, if the model itself holds only a shard of them.
        files: more files by name; text is written as UTF-8.

    Raises:
        OSError: no space or no permission; no `folder` is left.
    """

    def write(draft: Path) -> None:
        model.save_pretrained(draft, safe_serialization=True, state_dict=state, save_embedding_layers=False)
        _sort_targets(draft / "adapter_config.json")
        write_card(draft, {**card, "adapter_sha256": file_sha256(draft / ADAPTER_FILE)})
        for name, content in (files or {}).items():
            (draft / name).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)

    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(errno.EEXIST, "the student's folder exists", str(folder))
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.draft*"):
        shutil.rmtree(left)
    write_folder(folder, write)


def _sort_targets(file: Path) -> None:
    """Sort the targets in adapter_config.json: PEFT holds them as a set, whose order changes from process to process."""
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**config, "target_modules": sorted(config["target_modules"])}, indent=2, sort_keys=True) + "\n", "utf-8")
