"""What recording every head costs, beside a plain forward and beside the usual ways: `python -m benchmarks.heads`.

Time: all ways in one process, taken in turn (each round begins with another way), printed as the median over the rounds of each round's
ratio to the plain sdpa forward of the same batch, with the smallest and the largest.
Attention: the same of one layer's attention alone with every statistic that measures are made of, beside torch's own, as in the later
layers of a model (masks and chosen pairs are at hand).
Memory: a process a way, sampled during one forward of the decoder alone (without logits), printed as MB above the plain forward's peak.
The model is the embedded default in float32, the texts are the shipped problems laid end to end; "heads" takes every measure of ours.

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

if TYPE_CHECKING:
    from distill.problems.sets import Problem
    from interp.tokens import Tokens

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
        memory_shapes: batch x tokens at which peak memory is taken as well; none to leave it out.
        rounds: how often each way is timed, after a round that warms up, at each shape; the last number counts for the shapes that follow.
        peer_rounds: how often the ways that hold whole maps are timed, at most; 0 leaves them out of the tables.
        threads: of torch, at most the processors of this machine.
        smoke: one tiny round without time or memory worth reading, to see that everything runs.
        problems: instead of the tables: a JSONL file in GSM8K's format (or "shipped"), read in length-sorted batches by the decoder alone,
            each batch plainly and recorded in turn; prints the ratio of the sums.
        limit: first N problems of it.
        batch_tokens: padded tokens of such a batch.
        peers_every: every Nth of these batches is read in the other ways as well; 0 for none.
        save: also write the numbers to this JSON file (beside what it holds), for `python -m benchmarks.plot`.
        child: for internal use: "WAY BATCH TOKENS", print the peak memory of this process.
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


def mistake(config: BenchConfig) -> str | None:
    """What is wrong with the options, if anything."""
    for shape in (*config.shapes, *config.memory_shapes):
        if not re.fullmatch(r"[1-9]\d*x([89]|[1-9]\d+)", shape):
            return f"shape {shape!r}; allowed: BATCHxTOKENS with 8 tokens or more, as 8x224"
    least = {"--rounds": (min(config.rounds, default=0), 1), "--peer-rounds": (config.peer_rounds, 0)}
    least |= {"--batch-tokens": (config.batch_tokens, 1), "--peers-every": (config.peers_every, 0)}
    return too_small(least) or wrong_threads(config.threads)


def too_small(least: Mapping[str, tuple[int, int]]) -> str | None:
    """What is wrong with the first option whose number is below the smallest allowed; {option: (number, smallest)}."""
    for option, (given, allowed) in least.items():
        if given < allowed:
            return f"{option} is {given}; allowed: {allowed} or more"
    return None


def wrong_threads(threads: int) -> str | None:
    """What is wrong with a number of threads. More than there are processors wait for each other, and nothing else is measured then."""
    most = os.cpu_count() or 1
    return None if 1 <= threads <= most else f"--threads is {threads}; allowed: 1 to {most}, the processors of this machine"


def wrong_save(file: Path) -> str | None:
    """Why numbers cannot be written beside what a file holds, if so. A file that is not there is not left behind."""
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


HOLD_MAPS = ("eager", "lens")
LARGEST = 8e9
"""Bytes of maps above which a way that holds them all is not tried."""


def fits(way: str, batch: int, length: int) -> bool:
    """Whether a way that holds every map of the embedded model (30 layers of 9 heads, float32) has room for them."""
    return way not in HOLD_MAPS or batch * length**2 * 9 * 30 * 4 <= LARGEST


@functools.cache
def opened(bridged: bool) -> Any:
    """The embedded model; a copy of its own for the bridge, which rebuilds the model it is given."""
    from interp import open_checkpoint

    return open_checkpoint("smollm2", device="cpu")


@functools.cache
def bridged_model(decoder_only: bool) -> Any:
    """The embedded model in TransformerLens; without logits, which its bridge always makes, where they are not wanted."""
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
    """Token ids and roles of the shipped problems with their solutions, laid end to end."""
    import numpy as np

    from analyses.heads.batches import plan_batches
    from distill.problems.sets import load_problems

    texts = plan_batches(opened(False), load_problems("shipped"), chat=False, batch_tokens=2048)[0].texts
    return np.concatenate([text.ids for text in texts]), np.concatenate([text.roles for text in texts])


def some_tokens(batch: int, length: int) -> Tokens:
    """Texts of a length, cut from the shipped problems laid end to end: tokens repeat in them as they do in GSM8K."""
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
    """What the peers' maps are read for."""
    import torch

    for p in patterns:
        torch.special.entr(p).sum(-1)
        p.amax(-1)
        p.square().sum(-1)


def forward(way: str, tokens: Tokens, *, decoder_only: bool) -> None:
    """Run one way once."""
    from interp import record

    model, inputs = opened(way == "lens").model, tokens.inputs
    body = model.base_model if decoder_only else model
    if way == "plain":
        body(**inputs, use_cache=False)
    elif way == "heads":
        with record(model, tokens):
            body(**inputs, use_cache=False)
    elif way == "eager":
        model.set_attn_implementation("eager")
        three_statistics(body(**inputs, use_cache=False, output_attentions=True).attentions)
        model.set_attn_implementation("sdpa")
    else:
        _, cache = bridged_model(decoder_only).run_with_cache(
            **inputs_of_bridge(inputs), names_filter=lambda name: name.endswith("hook_pattern")
        )
        three_statistics(cache.values())


def inputs_of_bridge(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The bridge calls the ids otherwise; a mask is left out where nothing is padded, as its users would."""
    masked = {} if bool(inputs["attention_mask"].all()) else {"attention_mask": inputs["attention_mask"]}
    return {"input": inputs["input_ids"], **masked}


def in_turn(ways: Sequence[str], rounds: Mapping[str, int], run: Callable[[str], object]) -> dict[str, list[float]]:
    """Seconds of each way in each round, after a round that warms up. Each round begins with another way."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways:
        run(way)
    for number in range(max(rounds[way] for way in ways)):
        at = number % len(ways)
        for way in (*ways[at:], *ways[:at]):
            if number < rounds[way]:
                begun = time.perf_counter()
                run(way)
                taken[way].append(time.perf_counter() - begun)
    return taken


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


def time_problems(config: BenchConfig, problems: list[Problem]) -> dict[str, Any]:
    """The ways over the same length-sorted batches, in turn."""
    from tqdm import tqdm

    from analyses.heads.batches import plan_batches

    texts, batches = plan_batches(opened(False), problems, chat=True, batch_tokens=config.batch_tokens)
    spent: dict[str, list[tuple[int, float]]] = {way: [] for way in WAYS}
    for number, batch in enumerate(tqdm([batches[0], *batches])):  # the first batch twice: it warms up
        tokens = texts.select(batch)
        peers = config.peers_every > 0 and (number == 0 or (number - 1) % config.peers_every == 0)
        ways = [way for way in WAYS if way not in HOLD_MAPS or (peers and fits(way, len(batch), tokens.width))]
        at = number % len(ways)
        for way in (*ways[at:], *ways[:at]):
            begun = time.perf_counter()
            forward(way, tokens, decoder_only=True)
            if number:
                spent[way].append((number, time.perf_counter() - begun))
    plain = dict(spent["plain"])
    n_tokens = sum(len(text) for text in texts.texts)
    print(
        f"{len(problems)} problems, {n_tokens} tokens, {len(batches)} batches of at most {config.batch_tokens} padded tokens, decoder alone"
    )
    saved: dict[str, Any] = {"problems": len(problems), "tokens": n_tokens, "batches": len(batches), "ways": {}}
    for way, taken in spent.items():
        if taken:
            seconds, beside = sum(t for _, t in taken), sum(plain[number] for number, _ in taken)
            print(f"{way:>8} {len(taken):5} batches {seconds:9.1f} s, plain {beside:9.1f} s, ratio of the sums {seconds / beside:.3f}")
            saved["ways"][way] = {"batches": len(taken), "seconds": seconds, "plain_seconds": beside}
    return saved


def time_shapes(shapes: Sequence[str], rounds: Sequence[int], peer_rounds: int) -> list[dict[str, Any]]:
    """Print the first table."""
    peers = list(WAYS)[1:]
    print(
        f"\nwith logits, median ratio to plain (smallest to largest, rounds)\n{'batch x tokens':>15} {'plain, s':>9} "
        + " ".join(f"{way:>25}" for way in peers)
    )
    rows = []
    for at, shape in enumerate(shapes):
        batch, length = (int(n) for n in shape.split("x"))
        ways = [way for way in WAYS if fits(way, batch, length) and (peer_rounds or way not in HOLD_MAPS)]
        n = rounds[min(at, len(rounds) - 1)]
        tokens = some_tokens(batch, length)
        taken = in_turn(
            ways,
            {way: min(n, peer_rounds) if way in HOLD_MAPS else n for way in ways},
            lambda way, tokens=tokens: forward(way, tokens, decoder_only=False),
        )
        cells, ratios, missing = [], {}, "no room" if peer_rounds else "not asked for"
        for way in peers:
            ratios[way] = [a / b for a, b in zip(taken.get(way, []), taken["plain"], strict=False)]
            found = ratios[way]
            cells.append(f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f}, {len(found)})" if found else missing)
        seconds = {way: statistics.median(times) for way, times in taken.items()}
        print(f"{shape:>15} {seconds['plain']:9.3f} " + " ".join(f"{cell:>25}" for cell in cells), flush=True)
        rows.append({"shape": shape, "seconds": seconds, "ratios": {way: found for way, found in ratios.items() if found}})
    return rows


def attention_runner(batch: int, length: int) -> Callable[[str], object]:
    """A function that computes one layer's attention with the heads of the embedded model and random queries, keys and values."""
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

    def run(way: str) -> object:
        if way == "plain":
            return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return blocked_pass(query, key, value, mask, scores, sets, wanted)

    return run


def time_attention(shapes: Sequence[str], rounds: Sequence[int]) -> list[dict[str, Any]]:
    """Print the second table."""
    print("\none layer's attention alone, median ratio to torch's own (smallest to largest, rounds)")
    print(f"{'batch x tokens':>15} {'torch, ms':>9} {'every statistic':>25}")
    rows = []
    for at, shape in enumerate(shapes):
        batch, length = (int(n) for n in shape.split("x"))
        n = 5 * rounds[min(at, len(rounds) - 1)]
        taken = in_turn(["plain", "heads"], {"plain": n, "heads": n}, attention_runner(batch, length))
        ratios = [a / b for a, b in zip(taken["heads"], taken["plain"], strict=True)]
        cell = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {n})"
        print(f"{shape:>15} {1e3 * statistics.median(taken['plain']):9.2f} {cell:>25}", flush=True)
        rows.append({"shape": shape, "ratios": ratios})
    return rows


def measure_memory(shapes: Sequence[str], threads: int, ways: Sequence[str] = tuple(WAYS)) -> list[dict[str, Any]]:
    """Print the third table."""
    peers = list(WAYS)[1:]
    print(f"\ndecoder alone, peak memory\n{'batch x tokens':>15} {'plain, MB':>9} " + " ".join(f"{way + ', +MB':>13}" for way in peers))
    rows = []
    for shape in shapes:
        batch, length = shape.split("x")
        peaks: dict[str, float] = {}
        for way in ways:
            if fits(way, int(batch), int(length)):
                command = [sys.executable, "-m", "benchmarks.heads", "--threads", str(threads), "--child", f"{way} {batch} {length}"]
                # memory that was freed goes back at once: else what is kept for later use comes and goes by 100 MB from run to run
                environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                peaks[way] = json.loads(done.stdout.splitlines()[-1]) / 1e6
        missing = {way: f"> {LARGEST / 1e6:.0f}" if way in ways else "not asked for" for way in peers}
        rest = " ".join(f"{peaks[way] - peaks['plain']:13.0f}" if way in peaks else f"{missing[way]:>13}" for way in peers)
        print(f"{shape:>15} {peaks['plain']:9.0f} {rest}", flush=True)
        rows.append({"shape": shape, "peak_mb": peaks})
    return rows


def main() -> int:
    """Print the tables."""
    config = tyro.cli(BenchConfig, prog="python -m benchmarks.heads", description=__doc__)
    wrong, problems = mistake(config), []
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
        way, batch, length = config.child.split()
        forward(way, some_tokens(1, 16), decoder_only=True)  # what is loaded once
        tokens = some_tokens(int(batch), int(length))
        print(json.dumps(peak_bytes(lambda: forward(way, tokens, decoder_only=True))))
        return 0
    saved: dict[str, Any] = {"torch": torch.__version__, "machine": platform.machine(), "threads": config.threads}
    print(f"{platform.machine()}, torch {torch.__version__}, {config.threads} thread(s), float32")
    for way, text in WAYS.items():
        print(f"  {way:6} {text}")
    if problems:
        saved["problems"] = time_problems(config, problems)
    elif config.smoke:
        saved["times"], saved["attention"] = time_shapes(["2x32"], [1], min(config.peer_rounds, 1)), time_attention(["2x32"], [1])
        saved["memory"] = measure_memory(["2x32"], config.threads, ("plain", "heads"))
    else:
        saved["times"] = time_shapes(config.shapes, config.rounds, config.peer_rounds)
        saved["attention"] = time_attention(config.shapes, config.rounds)
        asked = tuple(way for way in WAYS if config.peer_rounds or way not in HOLD_MAPS)
        saved["memory"] = measure_memory(config.memory_shapes, config.threads, asked)
    if config.save:
        known = json.loads(config.save.read_text("utf-8") or "{}") if config.save.exists() else {}
        config.save.write_text(json.dumps({**known, **saved}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
