"""Measure the cost of many adapters of one base: `python -m benchmarks.adapters`.

LoRA adapters with random weights are written to a temporary folder. Then every head is measured for each of them by two methods, each in a
separate process: "separate" opens every adapter on its own, and "shared" opens them as `python -m analyses.shifts` does, on one loaded base
whose adapters are switched. Both read the same batches of shipped problems with their solutions. Opening an adapter runs a few short trial
forward passes ("trials"), which count as part of opening. Imports count as neither opening nor recording. The exit code is 1 if the tables
of the two methods are not equal.

Example:

  python -m benchmarks.adapters --adapters 8 --limit 16
"""

from __future__ import annotations

import gc
import importlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from benchmarks.heads import peak_bytes, wrong_threads
from benchmarks.start import IMPORTS

if TYPE_CHECKING:
    from interp.checkpoints.loading import Checkpoint

METHODS = ("separate", "shared")


@dataclass(frozen=True)
class AdaptersConfig:
    """Cost of measuring many adapters of one base.

    Attributes:
        adapters: number of adapters.
        rank: rank of each adapter.
        model: base of the adapters; accepts what --model of analyses.heads accepts.
        limit: first N shipped problems.
        batch_tokens: largest number of padded tokens in a batch.
        rounds: number of runs of each method; the methods alternate.
        threads: threads of torch, at most the number of processors.
        smoke: two adapters, two problems and one round; times and memory mean nothing.
        child: for internal use: the method that this process runs.
        folder: for internal use: the folder of the adapters.
    """

    adapters: int = 4
    rank: int = 16
    model: str = "smollm2"
    limit: int = 8
    batch_tokens: int = 2048
    rounds: int = 3
    threads: int = 1
    smoke: bool = False
    child: str | None = None
    folder: Path | None = None


@dataclass
class Cost:
    """Cost of one method.

    Attributes:
        open_seconds: time spent opening models and switching adapters.
        record_seconds: time spent in recorded forward passes.
        loads: number of times that a base's weights were loaded.
        trials: forward passes while models were opened.
        forwards: forward passes over batches of texts.
        peak_bytes: peak resident memory above that of the process after its imports.
    """

    open_seconds: float = 0.0
    record_seconds: float = 0.0
    loads: int = 0
    trials: int = 0
    forwards: int = 0
    peak_bytes: int = 0


def write_adapters(config: AdaptersConfig, folder: Path) -> None:
    """Write adapters of the query and value projections, each with different random weights."""
    import torch
    from peft import LoraConfig, get_peft_model

    from interp.checkpoints.opening import open_checkpoint

    torch.manual_seed(0)
    model = open_checkpoint(config.model, device="cpu").model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 uses a deprecated name of transformers 5.23
        for number in range(config.adapters):
            adapted: Any = get_peft_model(model, LoraConfig(r=config.rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
            with torch.no_grad():
                for name, parameter in adapted.named_parameters():
                    if "lora_B" in name:  # initialized to zero, which would leave the base unchanged
                        parameter.normal_(std=0.02)
            adapted.peft_config["default"].base_model_name_or_path = config.model
            adapted.save_pretrained(folder / f"adapter-{number}", save_embedding_layers=False)  # does not look up the base on the hub
            model = adapted.unload()


def checkpoints(method: str, config: AdaptersConfig, folder: Path) -> Iterator[Checkpoint]:
    """Yield the opened adapters one after another; each is freed when the next is requested."""
    from analyses.models.named import find_models
    from analyses.models.opening import OpenModels
    from analyses.options import ModelOptions
    from interp.checkpoints.opening import open_checkpoint

    sources = [str(folder / f"adapter-{number}") for number in range(config.adapters)]
    if method == "shared":
        models = find_models(sources, config.model)
        opened = OpenModels(models, ModelOptions(device="cpu"))
        yield from map(opened.open, models)
        return
    for source in sources:
        yield open_checkpoint(source, base=config.model, device="cpu")
        gc.collect()


def measure_cost(method: str, config: AdaptersConfig, folder: Path) -> Cost:
    """Measure all adapters by one method, write their values to `folder`, and return the cost."""
    import numpy as np
    from torch import nn
    from transformers import AutoModelForCausalLM

    from analyses.heads.batches import decoder_of, plan_batches, record_batch
    from analyses.heads.options import HeadsConfig
    from distill.problems.sets import load_problems
    from interp.measures.catalog import load_measures

    cost, problems, measures = Cost(), load_problems("shipped", limit=config.limit), load_measures()
    for name in (*IMPORTS, "peft.tuners.lora"):
        importlib.import_module(name)  # imports do not count as opening
    heads = HeadsConfig(model=config.model, batch_tokens=config.batch_tokens, device="cpu")
    load, recording = AutoModelForCausalLM.from_pretrained, False

    def counted_load(*arguments: Any, **settings: Any) -> Any:
        cost.loads += 1
        model = load(*arguments, **settings)
        loaded = model[0] if isinstance(model, tuple) else model
        decoder_of(loaded).register_forward_pre_hook(count_forward)
        return model

    def count_forward(_: nn.Module, __: Any) -> None:
        cost.forwards += recording
        cost.trials += not recording

    def run() -> None:
        nonlocal recording
        begun = time.perf_counter()
        for checkpoint in checkpoints(method, config, folder):
            opened = time.perf_counter()
            cost.open_seconds += opened - begun
            chat = getattr(checkpoint.tokenizer, "chat_template", None) is not None
            texts, batches = plan_batches(checkpoint, problems, chat=chat, batch_tokens=config.batch_tokens)
            recording = True
            parts = [record_batch(heads, checkpoint, texts, batch, measures, "blocked") for batch in batches]
            recording = False
            np.savez(
                folder / f"{method}-{checkpoint.name}.npz",
                examples=np.concatenate([part.examples for part in parts]),
                values=np.concatenate([part.values for part in parts]),
                counts=np.concatenate([part.counts for part in parts]),
            )
            del checkpoint  # so that it is freed before the next is opened
            begun = time.perf_counter()
            cost.record_seconds += begun - opened

    AutoModelForCausalLM.from_pretrained = counted_load
    cost.peak_bytes = peak_bytes(run)
    return cost


def differing(folder: Path, adapters: int) -> list[str]:
    """Return adapters whose tables differ between the methods in any bit, and a note if two adapters have the same table."""
    import numpy as np

    unequal, seen = [], set()
    for number in range(adapters):
        with np.load(folder / f"separate-adapter-{number}.npz") as one, np.load(folder / f"shared-adapter-{number}.npz") as other:
            if not all(np.array_equal(one[name], other[name], equal_nan=name == "values") for name in ("examples", "values", "counts")):
                unequal.append(f"adapter-{number}")
            seen.add(one["values"].tobytes())
    return unequal if len(seen) == adapters else [*unequal, "two adapters have the same table"]


def run_child(method: str, config: AdaptersConfig, folder: Path) -> Cost:
    """Run one method in a separate process and return its cost."""
    options = [f"--{name}={getattr(config, name)}" for name in ("adapters", "model", "limit", "threads")]
    options += [f"--batch-tokens={config.batch_tokens}", f"--folder={folder}"]
    command = [sys.executable, "-m", "benchmarks.adapters", *options, "--child", method]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"error: method {method!r} failed: {(done.stderr.strip().splitlines() or ['no error output'])[-1]}", file=sys.stderr)
        raise SystemExit(2)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    """Print the table; return exit code 1 if the numbers differ."""
    config = tyro.cli(AdaptersConfig, prog="python -m benchmarks.adapters", description=__doc__)
    wrong = wrong_threads(config.threads)
    if config.adapters < 2 or min(config.rounds, config.limit, config.rank, config.batch_tokens) < 1:
        wrong = "--adapters must be 2 or more, --rounds, --limit, --rank and --batch-tokens at least 1"
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    import torch

    from interp.tables.errors import CheckpointError

    torch.set_num_threads(config.threads)
    if config.child:
        assert config.folder is not None
        print(json.dumps(asdict(measure_cost(config.child, config, config.folder))))
        return 0
    if config.smoke:
        config = AdaptersConfig(adapters=2, rank=config.rank, model=config.model, limit=2, rounds=1, threads=config.threads)
    runs: dict[str, list[Cost]] = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            write_adapters(config, folder)
        except CheckpointError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        unequal: set[str] = set()
        for _ in range(config.rounds):
            for method in METHODS:
                runs[method].append(run_child(method, config, folder))
            unequal |= set(differing(folder, config.adapters))
    print(
        f"{platform.machine()}, torch {torch.__version__}, {config.threads} thread(s), {config.adapters} adapters of {config.model}, "
        f"{config.limit} problems, n = {config.rounds}, alternating; median (smallest-largest)"
    )
    print(f"{'':9} {'opening, s':>22} {'recording, s':>24} {'loads':>6} {'forwards':>9} {'trials':>7} {'peak, +MB':>10}")
    for method, taken in runs.items():
        spans = []
        for times in ([each.open_seconds for each in taken], [each.record_seconds for each in taken]):
            spans.append(f"{statistics.median(times):.2f} ({min(times):.2f}-{max(times):.2f})")
        peak, last = statistics.median(each.peak_bytes for each in taken) / 1e6, taken[-1]
        print(f"{method:9} {spans[0]:>22} {spans[1]:>24} {last.loads:6} {last.forwards:9} {last.trials:7} {peak:10.0f}")
    opening = {method: statistics.median(each.open_seconds for each in taken) for method, taken in runs.items()}
    print(f"opening, shared / separate: {opening['shared'] / opening['separate']:.3f}")
    print("tables: " + (f"DIFFERENT: {', '.join(sorted(unequal))}" if unequal else "equal to the last bit"))
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
