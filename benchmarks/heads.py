"""What recording every head costs, beside a plain forward and beside the usual ways: `python -m benchmarks.heads`.

Time: all ways in one process, taken in turn, median of the rounds, printed as ratios to the plain sdpa forward of the same batch.
Memory: a process a way, sampled during one forward of the decoder (without logits); printed as MB above the plain forward's peak, and
with that one forward's time.
The model is the embedded default in float32, random token ids; "heads" takes every measure of ours.
"""

from __future__ import annotations

import functools
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tyro

WAYS = {
    "plain": "sdpa forward, nothing recorded",
    "heads": "record(): all measures",
    "eager": "eager with output_attentions, entropy, max and sum of squares of the maps",
    "lens": "TransformerLens bridge, run_with_cache of the attention patterns, same statistics",
}


@dataclass(frozen=True)
class BenchConfig:
    """Cost of recording heads.

    Attributes:
        shapes: batch x tokens.
        memory_shapes: batch x tokens at which peak memory is taken as well.
        rounds: how often each way is timed; a way that holds whole maps of texts above 1,000 tokens, once.
        threads: of torch.
        smoke: one tiny round without time or memory worth reading, to see that everything runs.
        problems: instead of the table: a JSONL file in GSM8K's format (or "shipped"), read in length-sorted batches, each batch plainly and
            recorded in turn; prints the ratio of the sums.
        limit: first N problems of it.
        batch_tokens: padded tokens of such a batch.
        save: also write the numbers to this JSON file, for `python -m benchmarks.plot`.
        child: for internal use: "WAY BATCH TOKENS", print the peak memory of this process.
    """

    shapes: tuple[str, ...] = ("8x224", "1x2048")
    memory_shapes: tuple[str, ...] = ("8x224", "1x2048", "1x8192")
    rounds: int = 3
    threads: int = 1
    smoke: bool = False
    problems: str | None = None
    limit: int | None = None
    batch_tokens: int = 2048
    save: Path | None = None
    child: str | None = None


ONCE_ABOVE = 1000
"""Tokens of a text above which one round must do for the peers, which take some times as long there."""


HOLD_MAPS = ("eager", "lens")


def fits(way: str, batch: int, length: int) -> bool:
    """Whether a way that holds every map of the embedded model (30 layers of 9 heads, float32) stays below 8 GB with them."""
    return way not in HOLD_MAPS or batch * length**2 * 9 * 30 * 4 <= 8e9


@functools.cache
def opened(bridged: bool) -> Any:
    """The embedded model; a copy of its own for the bridge, which rebuilds the model it is given."""
    from interp import open_checkpoint

    return open_checkpoint("smollm2", device="cpu")


@functools.cache
def bridged_model() -> Any:
    """The embedded model in TransformerLens."""
    from transformer_lens.model_bridge import TransformerBridge

    checkpoint = opened(True)
    return TransformerBridge.boot_transformers(
        "HuggingFaceTB/SmolLM2-135M-Instruct", hf_model=checkpoint.model, tokenizer=checkpoint.tokenizer, device="cpu"
    )


def runner(way: str, shape: tuple[int, int], *, decoder_only: bool = False) -> Callable[[], Any]:
    """A function that runs one way once over random tokens of a shape."""
    import numpy as np
    import torch

    from interp import record
    from interp.tokens import AnnotatedText, Tokens

    checkpoint = opened(way == "lens")
    model = checkpoint.model
    generator = np.random.default_rng(0)
    batch, length = shape
    texts = tuple(
        AnnotatedText(
            example=number,
            text="",
            ids=generator.integers(100, 20_000, length),
            offsets=np.zeros((length, 2), np.int64),
            regions=np.repeat([0, 1, 2], [length // 8, length // 4, length - length // 8 - length // 4]).astype(np.uint8),
            roles=generator.choice([0, 2, 3, 4, 5, 6], length, p=[0.68, 0.07, 0.06, 0.09, 0.08, 0.02]).astype(np.uint8),
            is_query=np.ones(length, bool),
        )
        for number in range(batch)
    )
    tokens = Tokens(texts)
    ids = tokens.inputs
    body = model.base_model if decoder_only else model

    def three(patterns: Any) -> None:
        for p in patterns:
            torch.special.entr(p).sum(-1)
            p.amax(-1)
            p.square().sum(-1)

    def plain() -> Any:
        return body(**ids, use_cache=False)

    def heads() -> Any:
        with record(model, tokens) as recording:
            body(**ids, use_cache=False)
        return recording

    def eager() -> Any:
        model.set_attn_implementation("eager")
        three(body(**ids, use_cache=False, output_attentions=True).attentions)
        model.set_attn_implementation("sdpa")

    if way == "lens":
        bridge = bridged_model()

        def lens() -> Any:
            _, cache = bridge.run_with_cache(ids["input_ids"], names_filter=lambda name: name.endswith("hook_pattern"))
            three(cache.values())

        return lens
    return {"plain": plain, "heads": heads, "eager": eager}[way]


def peak_bytes(run: Callable[[], Any]) -> int:
    """Largest resident memory of this process during a call, above what it held before."""
    process, before = psutil.Process(), psutil.Process().memory_info().rss
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.0005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return peak - before


def time_problems(config: BenchConfig) -> None:
    """Plain and recorded forwards of the decoder over the same length-sorted batches, in turn."""
    from tqdm import tqdm

    from analyses.heads import HeadsConfig, plan
    from distill.problems import load_problems
    from interp import record

    checkpoint = opened(False)
    problems = load_problems(config.problems or "shipped", limit=config.limit)
    texts, batches = plan(HeadsConfig(batch_tokens=config.batch_tokens), checkpoint, problems, True)
    decoder = checkpoint.model.base_model
    spent = {"plain": 0.0, "heads": 0.0}
    for number, batch in enumerate(tqdm([batches[0], *batches])):  # the first batch twice: it warms up
        tokens = texts.select(batch)
        for way in spent if number % 2 else reversed(spent):
            begun = time.perf_counter()
            if way == "plain":
                decoder(**tokens.inputs, use_cache=False)
            else:
                with record(checkpoint.model, tokens):
                    decoder(**tokens.inputs, use_cache=False)
            spent[way] += (time.perf_counter() - begun) * (number > 0)
    n_tokens = sum(len(text) for text in texts.texts)
    print(
        f"{len(problems)} problems, {n_tokens} tokens, {len(batches)} batches of at most {config.batch_tokens} padded tokens: "
        f"plain {spent['plain']:.1f} s, recorded {spent['heads']:.1f} s, ratio {spent['heads'] / spent['plain']:.3f}"
    )


def main() -> int:
    """Print the table."""
    config = tyro.cli(BenchConfig, prog="python -m benchmarks.heads", description=__doc__)
    import torch

    torch.set_num_threads(config.threads)
    torch.set_grad_enabled(False)
    if config.child:
        way, batch, length = config.child.split()
        runner(way, (1, 16), decoder_only=True)()  # what is loaded once
        run = runner(way, (int(batch), int(length)), decoder_only=True)
        begun = time.perf_counter()
        peak = peak_bytes(run)
        print(json.dumps([peak, time.perf_counter() - begun]))
        return 0
    if config.problems:
        from distill.problems import ProblemError

        try:
            time_problems(config)
        except ProblemError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0
    shapes, memory_shapes, rounds = config.shapes, config.memory_shapes, config.rounds
    if config.smoke:
        shapes, memory_shapes, rounds = ("2x32",), ("2x32",), 1
    print(f"{platform.machine()}, torch {torch.__version__}, {config.threads} thread(s), float32, median of {rounds} rounds in turn")
    for way, text in WAYS.items():
        print(f"  {way:6} {text}")
    print(f"\n{'batch x tokens':>15} {'plain, s':>9} " + " ".join(f"{way + ' /plain':>13}" for way in list(WAYS)[1:]))
    saved: dict[str, Any] = {"torch": torch.__version__, "machine": platform.machine(), "threads": config.threads, "rows": []}
    for shape in shapes:
        batch, length = (int(n) for n in shape.split("x"))
        runs = {way: runner(way, (batch, length)) for way in WAYS if fits(way, batch, length)}
        times: dict[str, list[float]] = {way: [] for way in runs}
        for number in range(rounds + 1):
            for way, run in runs.items():
                once = length > ONCE_ABOVE and way in HOLD_MAPS
                if once and number not in (0, rounds):
                    continue
                begun = time.perf_counter()
                run()
                if number:  # the first round warms up
                    times[way].append(time.perf_counter() - begun)
        median = {way: statistics.median(taken) for way, taken in times.items()}
        ratios = " ".join(f"{median[way] / median['plain']:13.3f}" if way in median else f"{'no room':>13}" for way in list(WAYS)[1:])
        print(f"{shape:>15} {median['plain']:9.3f} {ratios}", flush=True)
        saved["rows"].append({"shape": shape, "rounds": {way: len(taken) for way, taken in times.items()}, "seconds": median})
    print(
        f"\ndecoder alone, once\n{'batch x tokens':>15} {'plain, MB':>9} " + " ".join(f"{way + ', +MB':>13}" for way in list(WAYS)[1:]),
        end="",
    )
    print(f" {'plain, s':>9} " + " ".join(f"{way + ' /plain':>13}" for way in list(WAYS)[1:]))
    for shape in memory_shapes:
        batch, length = shape.split("x")
        peaks: dict[str, float] = {}
        seconds: dict[str, float] = {}
        for way in WAYS:
            if not fits(way, int(batch), int(length)):
                continue
            command = [sys.executable, "-m", "benchmarks.heads", "--threads", str(config.threads), "--child", f"{way} {batch} {length}"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak, seconds[way] = json.loads(done.stdout.splitlines()[-1])
            peaks[way] = peak / 1e6
        rest = " ".join(f"{peaks[way] - peaks['plain']:13.0f}" if way in peaks else f"{'> 8000':>13}" for way in list(WAYS)[1:])
        ratios = " ".join(f"{seconds[way] / seconds['plain']:13.3f}" if way in seconds else f"{'no room':>13}" for way in list(WAYS)[1:])
        print(f"{shape:>15} {peaks['plain']:9.0f} {rest} {seconds['plain']:9.3f} {ratios}", flush=True)
        saved["rows"].append({"shape": shape, "peak_mb": peaks, "seconds": seconds})
    if config.save:
        config.save.parent.mkdir(parents=True, exist_ok=True)
        config.save.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
