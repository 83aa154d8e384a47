"""Read the run.json of a results folder, of this version or an earlier one."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.tables.errors import InputError
from interp.tables.versions import current


def folder_kind(folder: Path) -> str | None:
    """Return the `kind` in a folder's run.json; None for a head run, which has none.

    Raises:
        InputError: there is no such folder, or no readable run.json in it.
    """
    kind = _content(folder).get("kind")
    return None if kind is None else str(kind)


def read_about(folder: Path, needed: Sequence[str], kinds: Collection[str | None], command: str) -> dict[str, Any]:
    """Return the content of run.json with the names of this version.

    Args:
        folder: a results folder.
        needed: keys that run.json must have.
        kinds: allowed values of `kind`.
        command: the command that writes such a folder, for the message.

    Raises:
        InputError: there is no such folder, run.json is missing, unreadable or of another kind, or it lacks a key.
    """
    about = _content(folder)
    path = folder / "run.json"
    if about.get("kind") not in kinds:
        raise InputError(f"{path}: kind is {about.get('kind')!r}; {command} writes {', '.join(map(str, kinds))}")
    missing = [key for key in needed if key not in about]
    if missing:
        raise InputError(f"{path}: missing {', '.join(missing)}; write the folder again with {command}")
    return about


def _content(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if not path.is_file():
        raise InputError(f"{folder}: no run.json; a finished results folder has one")
    try:
        about = current(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(about, dict):
        raise InputError(f"{path}: a JSON object is needed, found {type(about).__name__}")
    return about


def known_names(what: str, asked: Iterable[str], known: Collection[str] | Mapping[str, Any]) -> list[str]:
    """Return the names that were asked for.

    Raises:
        InputError: a name is unknown; the message lists the known ones.
    """
    names = list(asked)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"unknown {what} {unknown[0]!r}; known: {', '.join(known)}")
    return names


def file_parts(names: Sequence[str]) -> dict[str, str]:
    """Return a distinct part of a file name for each name: letters, digits, "_", "." and "-" only.

    Args:
        names: such as models' names; distinct.
    """
    plain = {name: re.sub(r"[^\w.\-]+", "-", name).strip("-") or "model" for name in names}
    taken = list(plain.values())
    return {name: text if taken.count(text) == 1 else f"{text}-{index}" for index, (name, text) in enumerate(plain.items())}
