"""Measure every attention head of one checkpoint on a set of problems; tables, figures and a page."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.command import say
from analyses.heads.batches import plan_batches, record_batches
from analyses.heads.memory import peak_memory_bytes
from analyses.heads.options import HeadsConfig
from analyses.heads.parts import HEAD_RUN, Parts
from analyses.heads.tables import describe_run, write_tables
from interp.tables.results import ResultsFolder

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import PartialState

    from distill.problems.sets import Problem
    from interp.checkpoints.loading import Checkpoint
    from interp.measures.measure import Measure


@dataclass(frozen=True)
class MeasuredHeads:
    """A finished head run.

    Attributes:
        folder: the results folder.
        heads: the `heads` table: a row per layer, head, measure and region (`interp.tables.heads.HEADS`).
        run: the content of run.json.
        figures: the figures that were drawn, and the page last; empty if none was asked for.
    """

    folder: Path
    heads: pd.DataFrame
    run: dict[str, Any]
    figures: list[Path]

    def table(self, name: str) -> pd.DataFrame:
        """Return a table of the run: "heads", "examples" (a row per example too) or "inputs" (every token that was read)."""
        from interp.tables.heads import HEAD_TABLES
        from interp.tables.schema import read

        return read(self.folder / f"{name}.parquet", HEAD_TABLES[name])


def measure_heads(
    options: HeadsConfig,
    *,
    command: str = "analyses.heads.run.measure_heads",
    opened: Callable[[], Checkpoint] | None = None,
    recorded: HeadsConfig | None = None,
) -> MeasuredHeads | None:
    """Return every head's measures on a set of problems, after writing them to `options.folder()`.

        from analyses.heads.options import HeadsConfig
        from analyses.heads.run import measure_heads

        run = measure_heads(HeadsConfig(model="smollm2", limit=5, figures=False))
        run.heads.query("measure == 'entropy_nats' and region == 'response'")

    Under `torchrun` or `accelerate launch` every process records its share of the batches; the first one makes the tables.

    Args:
        options: what to measure, and where the results go.
        command: recorded in run.json.
        opened: returns the model if it is already open; None opens `options.model`.
        recorded: the options to record in run.json, if a caller will move files that `options` names; None records `options`.

    Returns:
        The run; None in all processes but the first.

    Raises:
        PrimedHeadsError: options, problems, checkpoint or results folder cannot be used as they are.
    """
    from distill.problems.sets import load_problems

    timings = _Timings()
    problems = load_problems(options.problems, options.split, options.limit)
    from accelerate import PartialState  # the first import of torch: files and options were checked before it

    from interp.checkpoints.loading import choose_device
    from interp.measures.catalog import load_measures

    # a process that is not told to use the CPU would take the first GPU it finds, as would all others
    processes = PartialState(cpu=choose_device(options.device) == "cpu")
    measures = load_measures([name for given in options.measures for name in given.split(",") if name] or None)
    results = _results_folder(options, processes)
    parts = Parts(results)
    try:
        _report(processes, f"opening {options.model}")
        checkpoint = opened() if opened is not None else _open(options, processes)
        timings.add("open_seconds")
        settings, n_batches = _record(options, checkpoint, problems, measures, results, processes)
        timings.add("record_seconds")
        if not processes.is_main_process:
            return None
        say("making tables")
        tables = write_tables(options, checkpoint, list(measures), results, n_batches)
        timings.add("tables_seconds")
        about = describe_run(recorded or options, checkpoint, problems, measures, tables, settings)
        about |= {"command": command, "n_processes": processes.num_processes, "timings": timings.with_total()}
        about["memory"] = {f"{name}_peak_bytes": size for name, size in peak_memory_bytes().items()}
        results.publish(about)
    except BaseException:
        if processes.is_main_process:
            results.abandon(keep=parts.any())
        raise
    figures = _draw(results, about, timings) if options.figures else []
    return MeasuredHeads(results.out, tables.heads, about, figures)


def _results_folder(options: HeadsConfig, processes: PartialState) -> ResultsFolder:
    """Return the run's results folder, which the first process makes and locks."""
    results = None
    if processes.is_main_process:
        results = ResultsFolder(options.folder(), HEAD_RUN, force=options.force, resume=options.resume)
    processes.wait_for_everyone()
    return results or ResultsFolder(options.folder(), HEAD_RUN, force=options.force, resume=True, lock=False)


def _open(options: HeadsConfig, processes: PartialState) -> Checkpoint:
    """Return the model of the options, on this process's own GPU if there are several processes."""
    from interp.checkpoints.opening import open_checkpoint

    own_gpu = options.device == "auto" and processes.num_processes > 1 and not str(processes.device).startswith("cpu")
    return open_checkpoint(
        options.model,
        base=options.base,
        device=str(processes.device) if own_gpu else options.device,
        dtype=options.dtype,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )


def _record(
    options: HeadsConfig,
    checkpoint: Checkpoint,
    problems: list[Problem],
    measures: dict[str, Measure],
    results: ResultsFolder,
    processes: PartialState,
) -> tuple[dict[str, Any], int]:
    """Record this process's share of the batches that have no part yet; return the settings of the run and the number of batches."""
    parts, first = Parts(results), processes.is_main_process
    backend = _backend(options, checkpoint, measures)
    chat = options.chat and getattr(checkpoint.tokenizer, "chat_template", None) is not None
    new_tokens = options.max_new_tokens if options.text == "generated" else None
    texts, batches = plan_batches(checkpoint, problems, chat=chat, batch_tokens=options.batch_tokens, max_new_tokens=new_tokens)
    settings = _settings(options, checkpoint, problems, list(measures), backend, chat)
    if first:
        results.begin(settings)
    processes.wait_for_everyone()
    mine = range(processes.process_index, len(batches), processes.num_processes)
    todo = [number for number in mine if not parts.has(number)]
    if options.resume:
        done = f": {len(batches) - len(todo)} of {len(batches)} batches are done" if processes.num_processes == 1 else ""
        _report(processes, f"resuming{done}")
    record_batches(options, checkpoint, texts, batches, todo, measures, backend, parts, show=first)
    processes.wait_for_everyone()
    return settings, len(batches)


def _backend(options: HeadsConfig, checkpoint: Checkpoint, measures: dict[str, Measure]) -> str:
    """Return the recording backend: the one that was asked for, or the recorder's choice."""
    from interp.recording.backends import check_backend, choose_backend

    if options.backend == "auto":
        return choose_backend(checkpoint.model, measures.values())
    check_backend(options.backend, checkpoint.model, measures.values())
    return options.backend


def _settings(
    options: HeadsConfig, checkpoint: Checkpoint, problems: list[Problem], measures: list[str], backend: str, chat: bool
) -> dict[str, Any]:
    """Return what decides the numbers: a run is resumed only under the same settings."""
    from distill.problems.sets import problems_digest

    return {
        "model": {key: value for key, value in checkpoint.identity.items() if key not in ("source", "name", "device")},
        "problems": problems_digest(problems),
        "measures": measures,
        "text": options.text,
        "chat": chat,
        "max_new_tokens": options.max_new_tokens if options.text == "generated" else None,
        "batch_tokens": options.batch_tokens,
        "backend": backend,
        "seed": options.seed,
        "device": checkpoint.identity["device"].split(":")[0],
    }


def _draw(results: ResultsFolder, about: dict[str, Any], timings: _Timings) -> list[Path]:
    """Draw the figures and the page of a published run, and add the time that this took to its run.json."""
    from figures.run.draw import draw_run
    from interp.tables.files import write_json

    say("drawing figures")
    drawn = draw_run(results.out)
    timings.add("figures_seconds")
    about["timings"] = timings.with_total()
    write_json(results.out / "run.json", about)
    return drawn


def _report(processes: PartialState, text: str) -> None:
    """Print a line of progress, once for all processes."""
    if processes.is_main_process:
        say(text)


class _Timings:
    """Seconds that each step of a run took."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def add(self, step: str) -> None:
        """Note the time since the previous step."""
        now = time.perf_counter()
        self._seconds[step] = round(now - self._last, 3)
        self._last = now

    def with_total(self) -> dict[str, float]:
        """Return the seconds of every step, and their total up to now."""
        return {**self._seconds, "total_seconds": round(time.perf_counter() - self._started, 3)}
