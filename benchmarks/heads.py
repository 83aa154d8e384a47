"""Measure what recording every head costs: `python -m benchmarks.heads`.

The methods compared are a plain forward pass, recording with this project, eager attention, and TransformerLens.

Time: all methods run alternately in one process, and each round starts with a different method. The table shows the median over rounds of
each round's ratio to the plain sdpa forward pass of the same batch, with the smallest and the largest ratio.
Attention: the same for the attention of one layer alone, with every statistic that measures use, relative to torch's own attention. Masks
and chosen pairs are computed beforehand, as in all layers of a model but the first.
Memory: one process per method, sampled during one forward pass of the decoder alone (without logits), as MB above the peak of the plain
forward pass.
The model is the embedded default in float32, and the texts are taken from the concatenated shipped problems. "heads" computes all measures.

Examples:
    python -m benchmarks.heads --shapes 8x224 1x2048 1x8192 --rounds 11 5 3 --save runs/bench/heads.json
    python -m benchmarks.heads --problems gsm8k/test.jsonl --peers-every 4
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import tyro

from interp.tables.files import write_json

if TYPE_CHECKING:
    from distill.problems.sets import Problem
    from interp.tokens import Tokens

METHODS = {
    "plain": "sdpa forward pass, nothing recorded",
    "heads": "record(): all measures",
    "eager": "eager attention with output_attentions; entropy, maximum and sum of squares of the maps",
    "lens": "TransformerLens bridge, run_with_cache of the attention patterns; the same statistics",
}

HOLD_MAPS = ("eager", "lens")
"""Methods that hold all attention maps of a batch in memory."""

LARGEST = 8e9
"""Bytes of maps above which a method that holds them is not tried."""


@dataclass(frozen=True)
class HeadsBenchConfig:
    """Cost of recording heads.

    Attributes:
        shapes: batch x tokens.
        memory_shapes: batch x tokens for the table of peak memory; none to leave the table out.
        rounds: number of timed rounds at each shape, after one warm-up round; the last number applies to all further shapes.
        peer_rounds: largest number of rounds for the methods that hold attention maps; 0 leaves them out of the tables.
        threads: threads of torch, at most the number of processors.
        smoke: one tiny round that only shows that everything runs; its times and memory mean nothing.
        problems: instead of the tables, read a JSONL file in GSM8K's format (or "shipped") in length-sorted batches with the decoder alone,
            plain and recorded alternately, and print the ratio of the total times.
        limit: first N problems of that file.
        batch_tokens: largest number of padded tokens in such a batch.
        peers_every: run the peers on every Nth of these batches; 0 for none.
        save: write the numbers to this JSON file for `python -m benchmarks.plot`; other keys in the file are kept.
        child: for internal use: "METHOD BATCH TOKENS", print the peak memory of this process.
    """

    shapes: tuple[str, ...] = ("8x224", "1x2048")
    memory_shapes: tuple[str, ...] = ("8x224", "1x2048", "1x8192")
    rounds: tuple[int, ...] = (5, 3)
    peer_rounds: int = 2
    threads: int = 1
    smoke: bool = False
    problems: str | None = None
    limit: int | None = None
    batch_tokens: int = 2048
    peers_every: int = 0
    save: Path | None = None
    child: str | None = None


def wrong_options(config: HeadsBenchConfig) -> str | None:
    """Return what is wrong with the options, or None."""
    for shape in (*config.shapes, *config.memory_shapes):
        if not re.fullmatch(r"[1-9]\d*x([89]|[1-9]\d+)", shape):
            return f"--shapes or --memory-shapes: {shape!r}; allowed: BATCHxTOKENS with 8 tokens or more, such as 8x224"
    least = {"--rounds": (min(config.rounds, default=0), 1), "--peer-rounds": (config.peer_rounds, 0)}
    least |= {"--batch-tokens": (config.batch_tokens, 1), "--peers-every": (config.peers_every, 0)}
    return too_small(least) or wrong_threads(config.threads)


def too_small(least: Mapping[str, tuple[int, int]]) -> str | None:
    """Return a message about the first option whose number is too small, or None.

    Args:
        least: the given number and the smallest allowed number, by option.
    """
    for option, (given, allowed) in least.items():
        if given < allowed:
            return f"{option} is {given}; allowed: {allowed} or more"
    return None


def wrong_threads(threads: int) -> str | None:
    """Return what is wrong with a number of threads, or None. With more threads than processors, the times show only waiting."""
    most = os.cpu_count() or 1
    return None if 1 <= threads <= most else f"--threads is {threads}; allowed: 1 to {most}, the processors of this machine"


def wrong_save(file: Path) -> str | None:
    """Return why numbers cannot be added to a JSON file, or None. The check does not create the file."""
    new = not os.path.lexists(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
        if new:
            file.unlink()
            return None
        known = json.loads(file.read_text("utf-8") or "{}")
    except OSError as error:
        return f"--save: {file} cannot be written: {error.strerror}"
    except ValueError as error:
        return f"--save: {file} is not JSON ({error}); name another file"
    return None if isinstance(known, dict) else f"--save: {file} holds a {type(known).__name__}, not an object; name another file"


def fits(method: str, batch: int, length: int) -> bool:
    """Return whether the maps that a method holds (embedded model: 30 layers of 9 heads, float32) are within `LARGEST` bytes."""
    return method not in HOLD_MAPS or batch * length**2 * 9 * 30 * 4 <= LARGEST


@functools.cache
def opened(bridged: bool) -> Any:
    """Return the embedded model; the TransformerLens bridge gets a separate copy because it modifies the model."""
    from interp import open_checkpoint

    return open_checkpoint("smollm2", device="cpu")


@functools.cache
def bridged_model(decoder_only: bool) -> Any:
    """Return the embedded model in TransformerLens.

    Args:
        decoder_only: skip the logits, which the bridge otherwise always computes.
    """
    from transformer_lens.model_bridge import TransformerBridge

    checkpoint = opened(True)
    bridge: Any = TransformerBridge.boot_transformers(
        "HuggingFaceTB/SmolLM2-135M-Instruct", hf_model=checkpoint.model, tokenizer=checkpoint.tokenizer, device="cpu"
    )
    if decoder_only:
        bridge.unembed.forward = lambda hidden: hidden
    return bridge


@functools.cache
def shipped_texts() -> tuple[Any, Any]:
    """Return token ids and roles of the shipped problems with their solutions, concatenated."""
    import numpy as np

    from analyses.heads.batches import plan_batches
    from distill.problems.sets import load_problems

    texts = plan_batches(opened(False), load_problems("shipped"), chat=False, batch_tokens=2048)[0].texts
    return np.concatenate([text.ids for text in texts]), np.concatenate([text.roles for text in texts])


def some_tokens(batch: int, length: int) -> Tokens:
    """Return texts of one length, taken from the concatenated shipped problems so that tokens repeat as they do in GSM8K."""
    import numpy as np

    from interp.tokens import AnnotatedText, Tokens

    ids, roles = (np.resize(each, (batch, length)) for each in shipped_texts())
    regions = np.repeat([0, 1, 2], [length // 8, length // 4, length - length // 8 - length // 4]).astype(np.uint8)
    return Tokens(
        tuple(
            AnnotatedText(
                example=number,
                text="",
                ids=ids[number],
                offsets=np.zeros((length, 2), np.int64),
                regions=regions,
                roles=roles[number],
                is_query=np.ones(length, bool),
            )
            for number in range(batch)
        )
    )


def three_statistics(patterns: Iterable[Any]) -> None:
    """Compute the statistics for which the peers' maps are read."""
    import torch

    for p in patterns:
        torch.special.entr(p).sum(-1)
        p.amax(-1)
        p.square().sum(-1)


def forward(method: str, tokens: Tokens, *, decoder_only: bool) -> None:
    """Run one method once."""
    from interp import record

    model, inputs = opened(method == "lens").model, tokens.inputs
    body = model.base_model if decoder_only else model
    if method == "plain":
        body(**inputs, use_cache=False)
    elif method == "heads":
        with record(model, tokens):
            body(**inputs, use_cache=False)
    elif method == "eager":
        model.set_attn_implementation("eager")
        three_statistics(body(**inputs, use_cache=False, output_attentions=True).attentions)
        model.set_attn_implementation("sdpa")
    else:
        _, cache = bridged_model(decoder_only).run_with_cache(
            **bridge_inputs(inputs), names_filter=lambda name: name.endswith("hook_pattern")
        )
        three_statistics(cache.values())


def bridge_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs under the bridge's names. Without padding there is no mask, as in typical use of the bridge."""
    masked = {} if bool(inputs["attention_mask"].all()) else {"attention_mask": inputs["attention_mask"]}
    return {"input": inputs["input_ids"], **masked}


def time_alternately(methods: Sequence[str], rounds: Mapping[str, int], run: Callable[[str], object]) -> dict[str, list[float]]:
    """Return the seconds of each method in each round, after a warm-up round. Each round starts with a different method."""
    taken: dict[str, list[float]] = {method: [] for method in methods}
    for method in methods:
        run(method)
    for number in range(max(rounds[method] for method in methods)):
        at = number % len(methods)
        for method in (*methods[at:], *methods[:at]):
            if number < rounds[method]:
                begun = time.perf_counter()
                run(method)
                taken[method].append(time.perf_counter() - begun)
    return taken


def peak_bytes(run: Callable[[], Any]) -> int:
    """Return the peak resident memory of this process during a call, above its memory before the call."""
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


def time_problems(config: HeadsBenchConfig, problems: list[Problem]) -> dict[str, Any]:
    """Time the methods alternately over the same length-sorted batches; print and return the totals."""
    from tqdm import tqdm

    from analyses.heads.batches import plan_batches

    texts, batches = plan_batches(opened(False), problems, chat=True, batch_tokens=config.batch_tokens)
    spent: dict[str, list[tuple[int, float]]] = {method: [] for method in METHODS}
    for number, batch in enumerate(tqdm([batches[0], *batches])):  # the first batch runs twice, once as a warm-up
        tokens = texts.select(batch)
        peers = config.peers_every > 0 and (number == 0 or (number - 1) % config.peers_every == 0)
        methods = [method for method in METHODS if method not in HOLD_MAPS or (peers and fits(method, len(batch), tokens.width))]
        at = number % len(methods)
        for method in (*methods[at:], *methods[:at]):
            begun = time.perf_counter()
            forward(method, tokens, decoder_only=True)
            if number:
                spent[method].append((number, time.perf_counter() - begun))
    plain = dict(spent["plain"])
    n_tokens = sum(len(text) for text in texts.texts)
    print(
        f"{len(problems)} problems, {n_tokens} tokens, {len(batches)} batches of at most {config.batch_tokens} padded tokens, decoder alone"
    )
    saved: dict[str, Any] = {"problems": len(problems), "tokens": n_tokens, "batches": len(batches), "methods": {}}
    for method, taken in spent.items():
        if taken:
            seconds, plain_seconds = sum(t for _, t in taken), sum(plain[number] for number, _ in taken)
            print(f"{method:>8} {len(taken):5} batches {seconds:9.1f} s, plain {plain_seconds:9.1f} s, ratio {seconds / plain_seconds:.3f}")
            saved["methods"][method] = {"batches": len(taken), "seconds": seconds, "plain_seconds": plain_seconds}
    return saved


def time_shapes(shapes: Sequence[str], rounds: Sequence[int], peer_rounds: int) -> list[dict[str, Any]]:
    """Print and return the times of the complete forward pass."""
    peers = list(METHODS)[1:]
    print(
        f"\nwith logits, median ratio to plain (smallest to largest, rounds)\n{'batch x tokens':>15} {'plain, s':>9} "
        + " ".join(f"{method:>25}" for method in peers)
    )
    rows = []
    for at, shape in enumerate(shapes):
        batch, length = (int(n) for n in shape.split("x"))
        methods = [method for method in METHODS if fits(method, batch, length) and (peer_rounds or method not in HOLD_MAPS)]
        n = rounds[min(at, len(rounds) - 1)]
        tokens = some_tokens(batch, length)
        taken = time_alternately(
            methods,
            {method: min(n, peer_rounds) if method in HOLD_MAPS else n for method in methods},
            lambda method, tokens=tokens: forward(method, tokens, decoder_only=False),
        )
        cells, ratios, missing = [], {}, "does not fit" if peer_rounds else "not selected"
        for method in peers:
            ratios[method] = [a / b for a, b in zip(taken.get(method, []), taken["plain"], strict=False)]
            found = ratios[method]
            cells.append(f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f}, {len(found)})" if found else missing)
        seconds = {method: statistics.median(times) for method, times in taken.items()}
        print(f"{shape:>15} {seconds['plain']:9.3f} " + " ".join(f"{cell:>25}" for cell in cells), flush=True)
        rows.append({"shape": shape, "seconds": seconds, "ratios": {method: found for method, found in ratios.items() if found}})
    return rows


def attention_runner(batch: int, length: int) -> Callable[[str], object]:
    """Return a function that computes one layer's attention with the embedded model's head counts and random queries, keys and values."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from interp.attention.blocked import blocked_pass
    from interp.attention.masks import lazy_mask
    from interp.attention.statistics import Scores, Wanted
    from interp.measures.catalog import MEASURES
    from interp.measures.measure import key_sets

    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(batch, heads, length, 64, generator=generator) for heads in (9, 3, 3))
    sets, _, _ = key_sets(some_tokens(batch, length), list(MEASURES.values()), 0)
    mask, scores, wanted = lazy_mask(batch, length, length), Scores(64**-0.5), Wanted(thresholds=(0.1,))

    def run(method: str) -> object:
        if method == "plain":
            return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return blocked_pass(query, key, value, mask, scores, sets, wanted)

    return run


def time_attention(shapes: Sequence[str], rounds: Sequence[int]) -> list[dict[str, Any]]:
    """Print and return the times of one layer's attention."""
    print("\none layer's attention alone, median ratio to torch's own (smallest to largest, rounds)")
    print(f"{'batch x tokens':>15} {'torch, ms':>9} {'every statistic':>25}")
    rows = []
    for at, shape in enumerate(shapes):
        batch, length = (int(n) for n in shape.split("x"))
        n = 5 * rounds[min(at, len(rounds) - 1)]
        taken = time_alternately(["plain", "heads"], {"plain": n, "heads": n}, attention_runner(batch, length))
        ratios = [a / b for a, b in zip(taken["heads"], taken["plain"], strict=True)]
        cell = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {n})"
        print(f"{shape:>15} {1e3 * statistics.median(taken['plain']):9.2f} {cell:>25}", flush=True)
        rows.append({"shape": shape, "ratios": ratios})
    return rows


def measure_memory(shapes: Sequence[str], threads: int, methods: Sequence[str] = tuple(METHODS)) -> list[dict[str, Any]]:
    """Print and return the peak memory of the decoder."""
    peers = list(METHODS)[1:]
    print(
        f"\ndecoder alone, peak memory\n{'batch x tokens':>15} {'plain, MB':>9} " + " ".join(f"{method + ', +MB':>13}" for method in peers)
    )
    rows = []
    for shape in shapes:
        batch, length = shape.split("x")
        peaks: dict[str, float] = {}
        for method in methods:
            if fits(method, int(batch), int(length)):
                command = [sys.executable, "-m", "benchmarks.heads", "--threads", str(threads), "--child", f"{method} {batch} {length}"]
                # Freed memory is returned at once; memory that malloc keeps for reuse would vary by 100 MB between runs.
                environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                peaks[method] = json.loads(done.stdout.splitlines()[-1]) / 1e6
        missing = {method: f"> {LARGEST / 1e6:.0f}" if method in methods else "not selected" for method in peers}
        rest = " ".join(f"{peaks[method] - peaks['plain']:13.0f}" if method in peaks else f"{missing[method]:>13}" for method in peers)
        print(f"{shape:>15} {peaks['plain']:9.0f} {rest}", flush=True)
        rows.append({"shape": shape, "peak_mb": peaks})
    return rows


def main() -> int:
    """Print the tables; return the exit code."""
    config = tyro.cli(HeadsBenchConfig, prog="python -m benchmarks.heads", description=__doc__)
    wrong, problems = wrong_options(config), []
    if config.problems and not wrong:
        from distill.problems.sets import load_problems
        from interp.tables.errors import InputError

        try:
            problems = load_problems(config.problems, limit=config.limit)
        except InputError as error:
            wrong = str(error)
    if config.save and not wrong:
        wrong = wrong_save(config.save)
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    import torch

    torch.set_num_threads(config.threads)
    torch.set_grad_enabled(False)
    if config.child:
        method, batch, length = config.child.split()
        forward(method, some_tokens(1, 16), decoder_only=True)  # loads what is loaded only once
        tokens = some_tokens(int(batch), int(length))
        print(json.dumps(peak_bytes(lambda: forward(method, tokens, decoder_only=True))))
        return 0
    saved: dict[str, Any] = {"torch": torch.__version__, "machine": platform.machine(), "threads": config.threads}
    print(f"{platform.machine()}, torch {torch.__version__}, {config.threads} thread(s), float32")
    for method, text in METHODS.items():
        print(f"  {method:6} {text}")
    if problems:
        saved["problems"] = time_problems(config, problems)
    elif config.smoke:
        saved["times"], saved["attention"] = time_shapes(["2x32"], [1], min(config.peer_rounds, 1)), time_attention(["2x32"], [1])
        saved["memory"] = measure_memory(["2x32"], config.threads, ("plain", "heads"))
    else:
        saved["times"] = time_shapes(config.shapes, config.rounds, config.peer_rounds)
        saved["attention"] = time_attention(config.shapes, config.rounds)
        asked = tuple(method for method in METHODS if config.peer_rounds or method not in HOLD_MAPS)
        saved["memory"] = measure_memory(config.memory_shapes, config.threads, asked)
    if config.save:
        known = json.loads(config.save.read_text("utf-8") or "{}") if config.save.exists() else {}
        write_json(config.save, {**known, **saved})
    return 0


if __name__ == "__main__":
    sys.exit(main())
