"""A student's card: the file in its folder that records what the student was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.tables.errors import DamagedError
from interp.tables.files import file_sha256
from interp.tables.versions import current

CARD_FILE = "card.json"
"""Name of the card in a student's folder."""

ADAPTER_FILE = "adapter_model.safetensors"
"""Name of the adapter's weights in a student's folder."""

_CARD_FORMAT = 1


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write the card as JSON, and a README for people and the hub, into the draft of a student's folder."""
    (folder / CARD_FILE).write_text(json.dumps({"format": _CARD_FORMAT, **card}, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / "README.md").write_text(_readme(card), "utf-8")


def read_card(folder: Path) -> dict[str, Any]:
    """Return a student's card: condition, strategy, seed, settings, parents, counts, training, versions and hash.

    The parents are base, teacher, records and texts. Settings and counts that version 0.1 wrote are returned under today's names.

    Raises:
        DamagedError: there is no card, or it cannot be read.
    """
    path = folder / CARD_FILE
    try:
        card = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DamagedError(f"{folder} has no {CARD_FILE}, so it is not a student; train one with `python -m distill train`") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedError(f"{path} cannot be read ({error}); delete the folder and train again") from error
    if not isinstance(card, dict) or card.get("format") != _CARD_FORMAT:
        found = card.get("format") if isinstance(card, dict) else None
        raise DamagedError(f"{path} has format {found!r}; format {_CARD_FORMAT} is needed")
    return {**card, **{key: current(card[key], under=under) for key, under in (("settings", None), ("counts", "counts")) if key in card}}


def read_student(folder: Path) -> dict[str, Any]:
    """Return the card of a student after checking that its adapter is intact.

    Raises:
        DamagedError: the card or the adapter is missing or damaged.
    """
    card = read_card(folder)
    try:
        json.loads((folder / "adapter_config.json").read_text("utf-8"))
        intact = file_sha256(folder / ADAPTER_FILE) == card.get("adapter_sha256")
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder}: the adapter is missing or damaged ({error}); delete the folder and train again") from error
    if not intact:
        raise DamagedError(f"{folder / ADAPTER_FILE} is damaged: its SHA-256 is not the one on its card; delete the folder and train again")
    return card


def _readme(card: Mapping[str, Any]) -> str:
    parents, training, settings = card["parents"], card["training"], card["settings"]
    teacher = parents["teacher"]["name"] if parents["teacher"] else "none: reference solutions"
    strategy = card["strategy"]["text"] or "(no text)"
    front = f"---\nlibrary_name: peft\nbase_model: {settings['student']['model']}\ntags: [knowledge-distillation, lora, gsm8k]\n---\n\n"
    lines = [
        f"# {card['condition']}, seed {card['seed']}",
        "",
        f"A LoRA adapter for `{settings['student']['model']}`, made by primed-heads {card['versions']['primed-heads']}. "
        f"Its card, `{CARD_FILE}`, has all settings, hashes and counts.",
        "",
        f"- teacher: {teacher}",
        f"- strategy, which the student never saw: {strategy}",
        f"- objective: {settings['objective']['name']}, {card['formula']}",
        f"- texts: {card['counts']['kept']} of {card['counts']['records']} records; {training['steps']} steps, "
        f"last loss {training['last_loss']:.4f}",
        "",
        "    python -m analyses.heads --model THIS_FOLDER",
        "",
    ]
    return front + "\n".join(lines)
