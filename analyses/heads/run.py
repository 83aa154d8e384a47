"""`python -m analyses.heads`: one checkpoint in; every attention head measured, tables, figures and a page out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from analyses.heads.batches import plan, record_batches
from analyses.heads.options import HeadsConfig
from analyses.heads.tables import assemble

if TYPE_CHECKING:
    from interp.checkpoints.loading import Checkpoint
    from interp.measures.measure import Measure


def run(config: HeadsConfig, command: str, opened: Callable[[], Checkpoint] | None = None) -> int:
    """The whole job: problems, model, batches, tables, figures.

    Args:
        config: what to do.
        command: for the record of the run.
        opened: gives the model, where it is open already; None opens `config.model`.
    """
    from analyses.heads.folder import RunFolder
    from distill.problems.sets import load_problems, problems_digest

    started = time.perf_counter()
    problems = load_problems(config.problems, config.split, config.limit)
    from accelerate import PartialState  # the first import of torch: what is wrong with files and options was said before it

    from interp.checkpoints.loading import choose_device
    from interp.checkpoints.opening import open_checkpoint
    from interp.measures.catalog import load_measures

    # processes that are not told that there is no GPU would each take themselves for the only one
    state = PartialState(cpu=choose_device(config.device) == "cpu")
    own_device = config.device == "auto" and state.num_processes > 1 and not str(state.device).startswith("cpu")
    first = state.is_main_process
    measures = load_measures([n for given in config.measures for n in given.split(",") if n] or None)
    folder = None
    if first:
        folder = RunFolder(config.folder(), force=config.force, resume=config.resume)
    state.wait_for_everyone()
    folder = folder or RunFolder(config.folder(), force=config.force, resume=True, lock=False)
    try:
        say(first, f"opening {config.model}")
        if opened is not None:
            checkpoint = opened()
        else:
            checkpoint = open_checkpoint(
                config.model,
                base=config.base,
                device=str(state.device) if own_device else config.device,
                dtype=config.dtype,
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
            )
        open_at = time.perf_counter()
        backend = choose(config, checkpoint, measures)
        chat = config.chat and getattr(checkpoint.tokenizer, "chat_template", None) is not None
        texts, batches = plan(config, checkpoint, problems, chat)
        settings = {
            "model": {key: value for key, value in checkpoint.identity.items() if key not in ("source", "name", "device")},
            "problems": problems_digest(problems),
            "measures": list(measures),
            "text": config.text,
            "chat": chat,
            "max_new_tokens": config.max_new_tokens if config.text == "generated" else None,
            "batch_tokens": config.batch_tokens,
            "backend": backend,
            "seed": config.seed,
            "device": checkpoint.identity["device"].split(":")[0],
        }
        if first:
            folder.begin(settings)
        state.wait_for_everyone()
        todo = [n for n in range(len(batches)) if n % state.num_processes == state.process_index and not folder.has(n)]
        if config.resume:
            say(
                first,
                f"resuming: {len(batches) - len(todo)} of {len(batches)} batches are done" if state.num_processes == 1 else "resuming",
            )
        record_batches(config, checkpoint, texts, batches, todo, measures, backend, folder, show=first)
        state.wait_for_everyone()
    except BaseException:
        if first:
            folder.abandon()
        raise
    if not first:
        return 0
    recorded = time.perf_counter()
    say(True, "making tables")
    run_record = assemble(config, checkpoint, problems, measures, folder, len(batches), settings, command)
    tabled = time.perf_counter()
    from analyses.heads.folder import peak_memory_bytes, write_json

    run_record["n_processes"] = state.num_processes
    run_record["timings"] = {
        "open_seconds": round(open_at - started, 3),
        "record_seconds": round(recorded - open_at, 3),
        "tables_seconds": round(tabled - recorded, 3),
    }
    run_record["memory"] = {f"{name}_peak_bytes": size for name, size in peak_memory_bytes().items()}
    write_json(folder.partial / "run.json", run_record)
    drawn: list[Path] = []
    if config.figures:
        from figures.run.draw import draw_run

        say(True, "drawing figures")
        drawn = draw_run(folder.partial)
        run_record["timings"]["figures_seconds"] = round(time.perf_counter() - tabled, 3)
    run_record["timings"]["total_seconds"] = round(time.perf_counter() - started, 3)
    write_json(folder.partial / "run.json", run_record)
    folder.publish()
    for warning in run_record["warnings"]:
        print(f"warning: {warning}")
    print(f"tables:  {folder.out / 'heads.parquet'}, examples.parquet, inputs.parquet, run.json")
    if drawn:
        print(f"figures: {len(drawn) - 1} files in {folder.out / 'figures'}")
        print(f"report:  {folder.out / 'report.html'}")
    return 0


def say(show: bool, text: str) -> None:
    """A line of progress, to standard error."""
    if show:
        print(text, file=sys.stderr, flush=True)


def choose(config: HeadsConfig, checkpoint: Checkpoint, measures: dict[str, Measure]) -> str:
    """The backend of recording: as asked, or by the recorder's rule."""
    from interp.recording.backends import check_backend, choose_backend

    if config.backend == "auto":
        return choose_backend(checkpoint.model, measures.values())
    check_backend(config.backend, checkpoint.model, measures.values())
    return config.backend
