"""What many adapters of one base cost: `python -m benchmarks.adapters`.

LoRA adapters with random weights are written to a temporary folder. Then every head is measured for each of them, in two ways, each in a
process of its own: "separate" opens every adapter by itself, "shared" opens them as `python -m analyses.shifts` does, on one loaded base
whose adapters are switched. All read the same batches of shipped problems with their solutions. Opening an adapter tries it out with two
short forwards, with and without it: "trials", a part of its opening. Imports count for neither. The tables must be equal, or the exit
status is 1.

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

WAYS = ("separate", "shared")


@dataclass(frozen=True)
class AdaptersConfig:
    """Cost of measuring many adapters of one base.

    Attributes:
        adapters: how many.
        rank: of each.
        model: their base, as --model of analyses.heads takes it.
        limit: first N shipped problems.
        batch_tokens: padded tokens of a batch, at most.
        rounds: how often each way runs, in turn.
        threads: of torch, at most the processors of this machine.
        smoke: two adapters, two problems, one round, without times or memory worth reading.
        child: for internal use: the way that this process takes.
        folder: for internal use: where the adapters lie.
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
class Spent:
    """What one way took.

    Attributes:
        open_seconds: of opening models and switching adapters.
        record_seconds: of the recorded forwards.
        loads: how often a base's weights were loaded.
        trials: forwards while models were opened.
        forwards: over batches of texts.
        peak_bytes: resident memory above what the process held with its imports.
    """

    open_seconds: float = 0.0
    record_seconds: float = 0.0
    loads: int = 0
    trials: int = 0
    forwards: int = 0
    peak_bytes: int = 0


def write_adapters(config: AdaptersConfig, folder: Path) -> None:
    """Adapters of the queries' and values' matrices, each with random weights of its own."""
    import torch
    from peft import LoraConfig, get_peft_model

    from interp.checkpoints.opening import open_checkpoint

    torch.manual_seed(0)
    model = open_checkpoint(config.model, device="cpu").model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5.23 by an old name
        for number in range(config.adapters):
            adapted: Any = get_peft_model(model, LoraConfig(r=config.rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
            with torch.no_grad():
                for name, parameter in adapted.named_parameters():
                    if "lora_B" in name:  # zero until it is trained
                        parameter.normal_(std=0.02)
            adapted.peft_config["default"].base_model_name_or_path = config.model
            adapted.save_pretrained(folder / f"adapter-{number}", save_embedding_layers=False)  # no look for the base on the hub
            model = adapted.unload()


def checkpoints(way: str, config: AdaptersConfig, folder: Path) -> Iterator[Checkpoint]:
    """The adapters one after the other, each open until the next is asked for."""
    from analyses.models.named import find_models
    from analyses.models.opening import OpenModels
    from analyses.options import ModelOptions
    from interp.checkpoints.opening import open_checkpoint

    sources = [str(folder / f"adapter-{number}") for number in range(config.adapters)]
    if way == "shared":
        models = find_models(sources, config.model)
        opened = OpenModels(models, ModelOptions(device="cpu"))
        yield from map(opened.open, models)
        return
    for source in sources:
        yield open_checkpoint(source, base=config.model, device="cpu")
        gc.collect()


def take(way: str, config: AdaptersConfig, folder: Path) -> Spent:
    """Measure all adapters one way; their values go to `folder`."""
    import numpy as np
    from torch import nn
    from transformers import AutoModelForCausalLM

    from analyses.heads.batches import decoder_of, plan_batches, record_batch
    from analyses.heads.options import HeadsConfig
    from distill.problems.sets import load_problems
    from interp.measures.catalog import load_measures

    spent, problems, measures = Spent(), load_problems("shipped", limit=config.limit), load_measures()
    for name in (*IMPORTS, "peft.tuners.lora"):
        importlib.import_module(name)  # not a part of opening
    heads = HeadsConfig(model=config.model, batch_tokens=config.batch_tokens, device="cpu")
    load, recording = AutoModelForCausalLM.from_pretrained, False

    def counted(*arguments: Any, **settings: Any) -> Any:
        spent.loads += 1
        model = load(*arguments, **settings)
        whole = model[0] if isinstance(model, tuple) else model
        decoder_of(whole).register_forward_pre_hook(went)
        return model

    def went(_: nn.Module, __: Any) -> None:
        spent.forwards += recording
        spent.trials += not recording

    def run() -> None:
        nonlocal recording
        begun = time.perf_counter()
        for checkpoint in checkpoints(way, config, folder):
            opened = time.perf_counter()
            spent.open_seconds += opened - begun
            chat = getattr(checkpoint.tokenizer, "chat_template", None) is not None
            texts, batches = plan_batches(checkpoint, problems, chat=chat, batch_tokens=config.batch_tokens)
            recording = True
            parts = [record_batch(heads, checkpoint, texts, batch, measures, "blocked") for batch in batches]
            recording = False
            np.savez(
                folder / f"{way}-{checkpoint.name}.npz",
                examples=np.concatenate([part.examples for part in parts]),
                values=np.concatenate([part.values for part in parts]),
                counts=np.concatenate([part.counts for part in parts]),
            )
            del checkpoint  # before the next is opened
            begun = time.perf_counter()
            spent.record_seconds += begun - opened

    AutoModelForCausalLM.from_pretrained = counted
    spent.peak_bytes = peak_bytes(run)
    return spent


def differing(folder: Path, adapters: int) -> list[str]:
    """Adapters whose tables of the two ways are not equal to the last bit, and adapters with the table of another."""
    import numpy as np

    wrong, seen = [], set()
    for number in range(adapters):
        with np.load(folder / f"separate-adapter-{number}.npz") as one, np.load(folder / f"shared-adapter-{number}.npz") as other:
            if not all(np.array_equal(one[name], other[name], equal_nan=name == "values") for name in ("examples", "values", "counts")):
                wrong.append(f"adapter-{number}")
            seen.add(one["values"].tobytes())
    return wrong if len(seen) == adapters else [*wrong, "two adapters of one table"]


def run_child(way: str, config: AdaptersConfig, folder: Path) -> Spent:
    """One way in a process of its own."""
    options = [f"--{name}={getattr(config, name)}" for name in ("adapters", "model", "limit", "threads")]
    options += [f"--batch-tokens={config.batch_tokens}", f"--folder={folder}"]
    command = [sys.executable, "-m", "benchmarks.adapters", *options, "--child", way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"error: the {way} way failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}", file=sys.stderr)
        raise SystemExit(2)
    return Spent(**json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    """Print the table; 1 where the numbers differ."""
    config = tyro.cli(AdaptersConfig, prog="python -m benchmarks.adapters", description=__doc__)
    mistake = wrong_threads(config.threads)
    if config.adapters < 2 or min(config.rounds, config.limit, config.rank, config.batch_tokens) < 1:
        mistake = "--adapters must be 2 or more, --rounds, --limit, --rank and --batch-tokens at least 1"
    if mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    import torch

    from interp.tables.errors import CheckpointError

    torch.set_num_threads(config.threads)
    if config.child:
        assert config.folder is not None
        print(json.dumps(asdict(take(config.child, config, config.folder))))
        return 0
    if config.smoke:
        config = AdaptersConfig(adapters=2, rank=config.rank, model=config.model, limit=2, rounds=1, threads=config.threads)
    runs: dict[str, list[Spent]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            write_adapters(config, folder)
        except CheckpointError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        wrong: set[str] = set()
        for _ in range(config.rounds):
            for way in WAYS:
                runs[way].append(run_child(way, config, folder))
            wrong |= set(differing(folder, config.adapters))
    print(
        f"{platform.machine()}, torch {torch.__version__}, {config.threads} thread(s), {config.adapters} adapters of {config.model}, "
        f"{config.limit} problems, n = {config.rounds} in turn; median (least-largest)"
    )
    print(f"{'':9} {'opening, s':>22} {'recording, s':>24} {'loads':>6} {'forwards':>9} {'trials':>7} {'peak, +MB':>10}")
    for way, taken in runs.items():
        spans = []
        for times in ([each.open_seconds for each in taken], [each.record_seconds for each in taken]):
            spans.append(f"{statistics.median(times):.2f} ({min(times):.2f}-{max(times):.2f})")
        peak, last = statistics.median(each.peak_bytes for each in taken) / 1e6, taken[-1]
        print(f"{way:9} {spans[0]:>22} {spans[1]:>24} {last.loads:6} {last.forwards:9} {last.trials:7} {peak:10.0f}")
    opening = {way: statistics.median(each.open_seconds for each in taken) for way, taken in runs.items()}
    print(f"opening, shared / separate: {opening['shared'] / opening['separate']:.3f}")
    print("tables: " + (f"DIFFERENT: {', '.join(sorted(wrong))}" if wrong else "equal to the last bit"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
