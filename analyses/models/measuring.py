"""Head runs that a comparison needs and that are not there yet."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.models.named import Named
from interp.tables.errors import InputError
from interp.tables.results import read_run_json

if TYPE_CHECKING:
    from analyses.heads.options import HeadsConfig
    from analyses.models.opening import OpenModels
    from analyses.shifts.options import ShiftsConfig
    from distill.problems.sets import Problem
    from interp.checkpoints.loading import Checkpoint


def measure(config: ShiftsConfig, model: Named, problems: Sequence[Problem] | None, out: Path, opened: OpenModels) -> Path:
    """A model's head run, made by `analyses.heads` where it is not there yet."""
    from analyses.heads.options import HeadsConfig
    from distill.problems.sets import load_problems, problems_digest
    from interp.checkpoints.opening import identify

    assert model.source is not None
    folder = out / "heads" / model.name
    source, limit = config.problems or "shipped", config.limit
    if problems is not None and config.problems is None:
        source, limit = str(written(problems[: limit or 100], out / "problems.jsonl")), None
    digest = problems_digest(load_problems(source, config.split, limit))
    wanted = HeadsConfig(
        model=model.source,
        problems=source,
        split=config.split,
        limit=limit,
        out=folder,
        base=model.base,
        device=config.device,
        dtype=config.dtype,
        batch_tokens=config.batch_tokens,
        measures=config.measures,
        seed=config.seed,
        name=model.name,
        resume=folder.with_name(folder.name + ".partial").exists(),
        figures=False,
        trust_remote_code=config.trust_remote_code,
    )
    identity = identify(model.source, trust_remote_code=config.trust_remote_code)
    return measured(wanted, identity, lambda: opened.open(model), digest)


def measured(wanted: HeadsConfig, identity: dict[str, Any], opened: Callable[[], Checkpoint], digest: str | None = None) -> Path:
    """A head run: the one that is there, where it is of the same weights, problems and settings, or else a new one.

    Args:
        wanted: the run.
        identity: of the model: `interp.checkpoints.opening.identify`, or an open checkpoint's.
        opened: gives the model, if it is needed.
        digest: of the problems; None reads them.
    """
    from analyses.heads.run import run
    from distill.problems.sets import load_problems, problems_digest

    folder = wanted.folder()
    if (folder / "run.json").is_file():
        digest = digest or problems_digest(load_problems(wanted.problems, wanted.split, wanted.limit))
        if _is_of(folder, digest, wanted, identity):
            return folder
        wanted = replace(wanted, resume=False, force=True)
    elif not wanted.resume and folder.with_name(folder.name + ".partial").exists():
        wanted = replace(wanted, force=True)  # what a killed call left, perhaps of other settings
    print(f"measuring the heads of {wanted.name}", file=sys.stderr, flush=True)
    run(wanted, "measured by another command", opened)
    return folder


def written(problems: Sequence[Problem], file: Path) -> Path:
    """Problems as the JSONL file that a head run names."""
    from interp.tables.files import write_text

    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(json.dumps({"question": p.question, "answer": p.answer}, ensure_ascii=False) + "\n" for p in problems))
    return file


def _is_of(folder: Path, digest: str, wanted: Any, identity: dict[str, Any]) -> bool:
    """A head run is of these problems, settings and weights."""
    try:
        run = read_run_json(folder)
    except InputError:
        return False
    settings = ("measures", "dtype", "seed", "text", "chat", *(["max_new_tokens"] if wanted.text == "generated" else []))
    same = all(run["config"].get(key) == json.loads(json.dumps(getattr(wanted, key))) for key in settings)
    return same and same_weights(run["model"], identity) and run["problems"]["sha256"] == digest


def same_weights(run: dict[str, Any], identity: dict[str, Any]) -> bool:
    """A run's model and another have the same weights, wherever their files lie.

    Args:
        run: `model` of run.json: an open checkpoint's identity.
        identity: another open checkpoint's, or that of `interp.checkpoints.opening.identify`.
    """
    parts = [(run.get("adapter") or run, identity.get("adapter") or identity)]
    if run.get("adapter"):
        parts.append((run, identity.get("base") or identity))
    return bool(run.get("adapter")) == bool(identity.get("adapter") or identity.get("base")) and all(
        theirs.get(key) == ours[key] for theirs, ours in parts for key in ("weights_sha256", "revision") if key in ours
    )
