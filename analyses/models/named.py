"""What an argument of a comparison names: a finished head run, or a model that has to be measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from interp.tables.errors import DamagedError, InputError
from interp.tables.results import read_run_json


@dataclass(frozen=True)
class NamedModel:
    """One model of a comparison, before its heads are read.

    Attributes:
        name: name in tables and figures.
        condition: name that a student's seeds share; the model's name if there is no card.
        seed: seed of a student.
        folder: head run of the model; None if it has to be measured.
        source: the model, as `--model` of `analyses.heads` takes it; None if only the tables of its run are available.
        base: base model of an adapter whose config does not name it.
        accuracy: accuracy, its interval and the number of problems, if known.
    """

    name: str
    condition: str
    seed: int | None = None
    folder: Path | None = None
    source: str | None = None
    base: str | None = None
    accuracy: dict[str, float] = field(default_factory=dict)


def folder_of(model: NamedModel) -> Path:
    """Return the head run of a model that has been measured."""
    assert model.folder is not None
    return model.folder


def find_model(argument: str, base: str | None = None) -> NamedModel:
    """Return the head run or the model that an argument names.

    Args:
        argument: folder of a head run, or a model as `--model` of `analyses.heads` takes it.
        base: base model of an adapter.

    Raises:
        InputError: the argument is empty, or names a study, or a folder that is neither a run nor a model.
    """
    if not argument.strip():  # Path("") would be the current folder
        raise InputError("the name of a model is empty; give a hub id, a folder, an adapter, a .gguf file, smollm2, or a head run")
    path = Path(argument).expanduser()
    if path.is_dir():
        if (path / "run.json").is_file():
            return _of_run(path)
        if (path / "study.json").is_file():
            raise InputError(f"{path} is a study; name it with --study {path}")
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            seen = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
            raise InputError(
                f"{path} holds {seen}: it is neither a head run (run.json) nor a model (config.json) nor an adapter; name another folder"
            )
        condition, seed = _card(path)
        return NamedModel(path.resolve().name, condition or path.resolve().name, seed, source=argument, base=base)
    name = re.sub(r"[^\w.\-]+", "-", path.name.removesuffix(".gguf")) or "model"
    return NamedModel(name, name, source=argument, base=base)


def find_models(arguments: Sequence[str], base: str | None = None) -> list[NamedModel]:
    """Return what several arguments name.

    Args:
        arguments: as for `find_model`.
        base: base model of the adapters among them.

    Raises:
        InputError: as `find_model`, or a base is given but no adapter.
    """
    adapters = [(Path(argument).expanduser() / "adapter_config.json").is_file() for argument in arguments]
    if base is not None and not any(adapters):
        raise InputError(f"--base {base} was given, but {', '.join(arguments)} is not an adapter (no adapter_config.json)")
    return [find_model(argument, base if adapter else None) for argument, adapter in zip(arguments, adapters, strict=True)]


def _of_run(folder: Path) -> NamedModel:
    run = read_run_json(folder)
    source = str(run["config"].get("model", ""))
    adapter = Path(source).expanduser()
    condition, seed = _card(adapter) if adapter.is_dir() else (None, None)
    name = str(run["model"]["name"])
    return NamedModel(name, condition or name, seed, folder=folder, source=source or None, base=run["config"].get("base"))


def _card(folder: Path) -> tuple[str | None, int | None]:
    """Return condition and seed of a student of `distill`; None if there is no card."""
    from distill.students.card import read_card

    if not (folder / "card.json").is_file():
        return None, None
    try:
        card = read_card(folder)
        return str(card["condition"]), card["seed"]
    except (DamagedError, KeyError) as error:
        raise InputError(f"{folder / 'card.json'}: {error}") from error
