"""Students on disk: ordinary PEFT adapter folders, with a card that says what made them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from distill.students.options import StudentConfig
from interp.checkpoints.loading import Checkpoint
from interp.checkpoints.opening import open_checkpoint
from interp.tables.errors import DamagedError, StudyError

CARD = "card.json"


CARD_FORMAT = 1


WEIGHTS = "adapter_model.safetensors"


def new_student(config: StudentConfig, seed: int) -> tuple[Any, Checkpoint]:
    """A base model with a fresh LoRA adapter, which changes nothing yet.

    Args:
        config: base and adapter.
        seed: of the adapter's first values.

    Returns:
        The PEFT model, its adapter in float32 and trainable, and the base's checkpoint (tokenizer, identity).

    Raises:
        StudyError: a target that the model does not have; the message lists the model's linear layers.
        CheckpointError: a base that cannot be opened.
    """
    from peft import LoraConfig, get_peft_model

    checkpoint = open_checkpoint(
        config.model, device=config.device, dtype=config.dtype, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    if checkpoint.identity["adapter"] is not None:
        raise StudyError(f"student.model {config.model} is an adapter; name its base (merge the adapter to go on from it)")
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
    model.config._name_or_path = model.name_or_path = base_name(config.model)  # PEFT writes it down as the adapter's base
    with warnings.catch_warnings():  # peft 0.21 asks transformers 5.23 by an old name
        warnings.simplefilter("ignore", FutureWarning)
        student = get_peft_model(model, lora)
    student.peft_config["default"].revision = config.revision
    return student, checkpoint


def base_name(model: str) -> str:
    """How an adapter names its base: a path in full, so that it is found from any folder; other names as they are."""
    return str(Path(model).expanduser().resolve()) if Path(model).expanduser().exists() else model


def _check_targets(model: Any, targets: tuple[str, ...]) -> None:
    """PEFT is content where one of several targets is found; and the loss reads the output head as it is."""
    head = model.get_output_embeddings()
    names = [name for name, _ in model.named_modules() if name]
    missing = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)]
    if missing:
        linear = [name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
        linear += [name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, Conv1D)]
        have = sorted(set(linear) - set(_names_of(model, head)))
        raise StudyError(f"student.targets: {type(model).__name__} has no {', '.join(missing)}; its linear layers are {', '.join(have)}")
    for target in targets:
        for name, part in model.named_modules():
            named = name == target or name.endswith(f".{target}")
            if named and not isinstance(part, (torch.nn.Linear, torch.nn.Embedding, Conv1D)):
                raise StudyError(f"student.targets: {name} is a {type(part).__name__}, which LoRA cannot change; name linear layers")
    adapted = [t for t in targets if t in _names_of(model, head)]
    if adapted:
        raise StudyError(f"student.targets: {adapted[0]} is the output head, which is not adapted; leave it out")


def _names_of(model: Any, layer: Any) -> list[str]:
    return [name.rsplit(".", 1)[-1] for name, part in model.named_modules() if part is layer]


def save_student(
    model: Any,
    folder: Path,
    card: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
    files: Mapping[str, str | bytes] | None = None,
) -> None:
    """Writes adapter, card, README and further files into a folder that is not there yet, as a whole or not at all.

    What a killed process left of an earlier call is removed: one process at a time writes a student.

    Args:
        model: the trained PEFT model.
        folder: the student's.
        card: see `read_card`.
        state: the whole model's weights, where the model itself holds a shard of them.
        files: more files, by name; text is written as UTF-8.

    Raises:
        OSError: no room or no permission; nothing is left in `folder`.
    """
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        model.save_pretrained(draft, safe_serialization=True, state_dict=state, save_embedding_layers=False)
        _sort_targets(draft / "adapter_config.json")
        write_student_files(draft, {**card, "adapter_sha256": file_sha256(draft / WEIGHTS)})
        for name, content in (files or {}).items():
            (draft / name).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        for file in draft.iterdir():
            _to_disk(file)
        draft.rename(folder)
        _to_disk(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sort_targets(file: Path) -> None:
    """PEFT holds them as a set, whose order changes from process to process."""
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**config, "target_modules": sorted(config["target_modules"])}, indent=2, sort_keys=True) + "\n", "utf-8")


def write_student_files(folder: Path, card: Mapping[str, Any]) -> None:
    """The card as JSON, and a README for people and the hub."""
    (folder / CARD).write_text(json.dumps({"format": CARD_FORMAT, **card}, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / "README.md").write_text(_readme(card), "utf-8")


def read_card(folder: Path) -> dict[str, Any]:
    """A student's card: condition, strategy, seed, settings, parents (base, teacher, records, texts), counts, training, versions, hash.

    Raises:
        DamagedError: no card, or one that cannot be read.
    """
    try:
        card = json.loads((folder / CARD).read_text("utf-8"))
    except FileNotFoundError:
        raise DamagedError(f"{folder} has no {CARD}: it is no student of ours; train one with `python -m distill train`") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedError(f"{folder / CARD} cannot be read ({error}); delete the folder and train again") from error
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        raise DamagedError(
            f"{folder / CARD} has format {card.get('format') if isinstance(card, dict) else None!r}; {CARD_FORMAT} is read here"
        )
    return card


def read_student(folder: Path) -> dict[str, Any]:
    """The card of a student whose adapter is there and whole.

    Raises:
        DamagedError: as `read_card`, or an adapter that is missing or damaged.
    """
    card = read_card(folder)
    try:
        json.loads((folder / "adapter_config.json").read_text("utf-8"))
        whole = file_sha256(folder / WEIGHTS) == card.get("adapter_sha256")
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder}: its adapter is missing or damaged ({error}); delete the folder and train again") from error
    if not whole:
        raise DamagedError(f"{folder / WEIGHTS} is not what its card says (SHA-256): it is damaged; delete the folder and train again")
    return card


def file_sha256(file: Path) -> str:
    """Of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _readme(card: Mapping[str, Any]) -> str:
    parents, training, settings = card["parents"], card["training"], card["settings"]
    teacher = parents["teacher"]["name"] if parents["teacher"] else "none: reference solutions"
    said = card["strategy"]["text"] or "(nothing)"
    front = f"---\nlibrary_name: peft\nbase_model: {settings['student']['model']}\ntags: [knowledge-distillation, lora, gsm8k]\n---\n\n"
    lines = [
        f"# {card['condition']}, seed {card['seed']}",
        "",
        f"A LoRA adapter for `{settings['student']['model']}`, made by primed-heads {card['versions']['primed-heads']}. "
        f"Its card, `{CARD}`, holds all settings, hashes and counts.",
        "",
        f"- teacher: {teacher}",
        f"- strategy, which the student never saw: {said}",
        f"- objective: {settings['objective']['name']}, {card['formula']}",
        f"- texts: {card['counts']['kept']} of {card['counts']['records']} records; {training['steps']} steps, "
        f"last loss {training['last_loss']:.4f}",
        "",
        "    python -m analyses.heads --model THIS_FOLDER",
        "",
    ]
    return front + "\n".join(lines)
