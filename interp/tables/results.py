"""TODO_DOC interp/tables/results.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.tables.schema import MeasureInfo

if TYPE_CHECKING:
    pass


class InputError(ValueError):
    """An argument that is no head run, no model and no study; the message says what was seen and what is allowed."""


def read_run_json(folder: Path) -> dict[str, Any]:
    """What a head run says of itself.

    Raises:
        InputError: no run, a damaged one, or one of another version.
    """
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); measure the model again with python -m analyses.heads") from error
    needed = ("model", "config", "measures", "problems", "text", "chat")
    missing = [key for key in needed if not isinstance(run, dict) or key not in run]
    shaped = not missing and isinstance(run["model"], dict) and isinstance(run["config"], dict) and isinstance(run["measures"], list)
    if not shaped or "name" not in run["model"]:
        raise InputError(
            f"{path} has no {', '.join(missing) or 'usable model, config or measures'}: it is of another version; measure the model again"
        )
    return run


class RunFolderError(ValueError):
    """A folder is no complete run folder; the message names the file and what is missing."""


def measure_infos(run: dict[str, Any]) -> dict[str, MeasureInfo]:
    """The measures of a run by name, in the order of run.json.

    Raises:
        RunFolderError: an entry lacks a field of `interp.tables.schema.MeasureInfo`, or its name is no identifier.
    """
    infos = {}
    for entry in run["measures"]:
        try:
            info = MeasureInfo(*(entry[field] for field in ("name", "title", "unit", "low", "high", "formula")))
        except (KeyError, TypeError) as error:
            raise RunFolderError(f"run.json: a measure lacks {error}: {entry}") from error
        if not str(info.name).isidentifier():  # it becomes a part of file names
            raise RunFolderError(f"run.json: measure name {info.name!r} is not made of letters, digits and underscores")
        infos[info.name] = info
    return infos
