"""Head runs that another command needs: reuse the finished one, continue the unfinished one, or measure the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.command import say
from analyses.heads.options import HeadsConfig, heads_config
from analyses.options import ReadingOptions
from interp.tables.errors import InputError
from interp.tables.results import read_run_json

if TYPE_CHECKING:
    from analyses.models.named import NamedModel
    from distill.problems.sets import Problem
    from interp.checkpoints.loading import Checkpoint
    from interp.tables.results import ResultsFolder


def head_run(
    model: NamedModel,
    options: ReadingOptions,
    folder: Path,
    opened: Callable[[], Checkpoint],
    *,
    final: Callable[[Path], Path] | None = None,
    resume: bool = True,
    **settings: Any,
) -> Path:
    """Return the folder of a model's head run, after measuring the model if there is no run of the same weights, problems and settings.

    Args:
        model: the model.
        options: the calling command's options: problems, measures, seed, device and so on are taken from them.
        folder: where the head run is, or goes.
        opened: opens the model; called only if it has to be measured.
        final: maps a path of an unfinished results folder to its place in the finished one (`ResultsFolder.final`); the run records the
            latter. None: the paths stay.
        resume: continue an unfinished run; False discards it.
        settings: fields of `HeadsConfig` that differ from `options`, such as `text` and `max_new_tokens`.

    Raises:
        PrimedHeadsError: as `analyses.heads.run.measure_heads` and `distill.problems.sets.load_problems`.
    """
    from analyses.heads.run import measure_heads
    from distill.problems.sets import load_problems, problems_digest
    from interp.checkpoints.opening import identify

    unfinished = folder.with_name(folder.name + ".partial").exists()
    wanted = heads_config(options, **{"model": str(model.source), "base": model.base, "name": model.name, "out": folder, **settings})
    if (folder / "run.json").is_file():
        digest = problems_digest(load_problems(wanted.problems, wanted.split, wanted.limit))
        identity = identify(model.source, trust_remote_code=options.trust_remote_code) if model.source else {}
        if _is_of(folder, digest, wanted, identity):
            return folder
        wanted = replace(wanted, force=True)
    elif unfinished:
        wanted = replace(wanted, resume=resume, force=not resume)
    say(f"measuring the heads of {model.name}")
    recorded = wanted
    if final is not None:
        recorded = replace(recorded, out=final(folder))
        if final(Path(wanted.problems)) != Path(wanted.problems):
            recorded = replace(recorded, problems=str(final(Path(wanted.problems))))
    measure_heads(wanted, command="measured by another command", opened=opened, recorded=recorded)
    return folder


def has_new_head_runs(results: ResultsFolder) -> bool:
    """Return whether the draft has finished head runs that the results in place lack or have in another version."""
    for new in results.draft.glob("heads/*/run.json"):
        old = results.final(new)
        if not old.is_file() or not new.samefile(old):
            return True
    return False


def write_problems(problems: Sequence[Problem], file: Path) -> Path:
    """Write problems as the JSONL file that a head run reads, and return its path."""
    from interp.tables.files import write_text

    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(json.dumps({"question": p.question, "answer": p.answer}, ensure_ascii=False) + "\n" for p in problems))
    return file


def _is_of(folder: Path, digest: str, wanted: HeadsConfig, identity: dict[str, Any]) -> bool:
    """Return whether a head run is of these problems, settings and weights."""
    try:
        run = read_run_json(folder)
    except InputError:
        return False
    settings = ("measures", "dtype", "seed", "text", "chat", *(["max_new_tokens"] if wanted.text == "generated" else []))
    same = all(run["config"].get(key) == json.loads(json.dumps(getattr(wanted, key))) for key in settings)
    return same and same_weights(run["model"], identity) and run["problems"]["sha256"] == digest


def same_weights(run: dict[str, Any], identity: dict[str, Any]) -> bool:
    """Return whether a run's model and another one have the same weights, wherever their files are.

    Args:
        run: `model` of run.json, which is the identity of an open checkpoint.
        identity: that of another open checkpoint, or the result of `interp.checkpoints.opening.identify`.
    """
    parts = [(run.get("adapter") or run, identity.get("adapter") or identity)]
    if run.get("adapter"):
        parts.append((run, identity.get("base") or identity))
    return bool(run.get("adapter")) == bool(identity.get("adapter") or identity.get("base")) and all(
        theirs.get(key) == ours[key] for theirs, ours in parts for key in ("weights_sha256", "revision") if key in ours
    )
