"""What distillation costs, beside its peers: `python -m benchmarks.distill`.

Two tables. The loss, beside whole logits, bare matrix products, TRL and Liger; and the collection of a teacher's answers with its signals,
beside transformers' plain `generate` with the same batch, in tokens a second (those of the answers; padding does not count).

Every way runs forward and backward in a process of its own, which gives time and peak memory above the inputs; the rounds take the ways in
turn, and the table shows medians and ratios. The head is frozen, as under LoRA; the loss is 0.5 CE + 0.5 T^2 KL(teacher || student).
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import tyro

from benchmarks.heads import peak_bytes, too_small, wrong_threads

WAYS = {
    "two products": "bare: logits from hidden states, and back",
    "three products": "bare: the same, and the teacher's logits",
    "dense topk": "whole logits, autograd, top 64 and a bucket",
    "topk": "distill.objectives.chunked, top 64 and a bucket",
    "dense": "whole logits of both sides, autograd",
    "hidden": "distill.objectives.chunked, teacher's hidden states",
    "trl": "TRL's ChunkedDivergenceFunction, without CE; on a CPU its products are float32, so it takes long: by name only",
    "liger": "Liger's LigerFusedLinearJSDLoss, uncompiled; it makes the head's gradient too",
}
PEERS = {"trl": "trl", "liger": "liger_kernel"}
K = 64


@dataclass(frozen=True)
class BenchConfig:
    """Cost of the distillation loss.

    Attributes:
        ways: which to take; products and whole logits are needed for the ratios.
        tokens: of the batch.
        vocabulary: rows of the head; at least 65, the top 64 and one for the bucket.
        hidden: width of the states, of student and teacher.
        dtype: of states and heads.
        temperature: T where the teacher gives hidden states; a top k has T = 1.
        rounds: how often each way runs.
        threads: of torch, at most the processors of this machine.
        collect_tokens: longest answer of the second table, in tokens.
        collect_batch: answers of a batch.
        smoke: one tiny round without time or memory worth reading, to see that everything runs.
        child: for internal use: run one way, print its seconds and peak memory.
    """

    ways: tuple[str, ...] = tuple(way for way in WAYS if way != "trl")
    tokens: int = 2048
    vocabulary: int = 128_256
    hidden: int = 4096
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    temperature: float = 2.0
    rounds: int = 1
    threads: int = min(2, os.cpu_count() or 1)
    collect_tokens: int = 160
    collect_batch: int = 8
    smoke: bool = False
    child: str | None = None


def mistake(config: BenchConfig) -> str | None:
    """What is wrong with the options, if anything."""
    unknown = [way for way in config.ways if way not in WAYS]
    if unknown:
        return f"--ways: {', '.join(map(repr, unknown))}; allowed: {', '.join(WAYS)}"
    needed = ["two products", "three products", "dense"] + ["dense topk"] * any("topk" in way for way in config.ways)
    missing = [way for way in needed if way not in config.ways]
    if missing:
        return f"--ways lacks {', '.join(map(repr, missing))}, which the ratios need"
    if not 0 < config.temperature < math.inf:
        return f"--temperature is {config.temperature}; allowed: more than 0"
    least = {"tokens": 1, "vocabulary": K + 1, "hidden": 1, "rounds": 1, "collect_tokens": 1, "collect_batch": 1}
    given = {f"--{name.replace('_', '-')}": (getattr(config, name), allowed) for name, allowed in least.items()}
    return too_small(given) or wrong_threads(config.threads)


def runner(way: str, config: BenchConfig) -> Callable[[], Any]:
    """A function that runs one way once over random inputs."""
    import torch
    import torch.nn.functional as F

    from distill.objectives.chunked import distillation_loss
    from distill.records.signals import Hidden, TopK
    from interp.checkpoints.unembedding import OutputHead

    generator = torch.Generator().manual_seed(0)
    dtype, temperature, n_tokens, vocabulary = getattr(torch, config.dtype), config.temperature, config.tokens, config.vocabulary
    # A few random rows over and over, the same for both heads: quick to make, and products take no notice.
    some = torch.randn(min(1024, vocabulary), config.hidden, generator=generator).to(dtype) / config.hidden**0.5
    weight = some.repeat(-(-vocabulary // len(some)), 1)[:vocabulary]
    hidden, states = (torch.randn(2, n_tokens, config.hidden, generator=generator) * 2).to(dtype)
    hidden = hidden.clone().requires_grad_()
    targets = torch.randint(vocabulary, (n_tokens,), generator=generator)
    ids = torch.arange(K) * (vocabulary // K) + torch.randint(vocabulary // K, (n_tokens, K), generator=generator)
    log_probs = torch.randn(n_tokens, K + 1, generator=generator).log_softmax(-1)[:, :K]
    head = OutputHead(weight)

    def products() -> None:
        torch.mm(torch.mm(hidden.detach(), weight.T), weight)

    def three_products() -> None:
        products()
        torch.mm(states, weight.T)

    def whole_topk() -> None:
        logits = F.linear(hidden, weight).float()
        log_q = logits.log_softmax(-1)
        rest = log_q.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        left_over = (-torch.expm1(log_probs.logsumexp(-1, keepdim=True))).log()
        log_p, log_q = torch.cat([log_probs, left_over], -1), torch.cat([log_q.gather(1, ids), rest], -1)
        divergence = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        (0.5 * F.cross_entropy(logits, targets, reduction="sum") + 0.5 * divergence).backward()

    def ours_topk() -> None:
        distillation_loss(hidden, head, targets, TopK(ids, log_probs)).total.backward()

    def whole() -> None:
        logits = F.linear(hidden, weight).float()
        log_q = (logits / temperature).log_softmax(-1)
        log_p = (F.linear(states, weight).float() / temperature).log_softmax(-1)
        divergence = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        (0.5 * F.cross_entropy(logits, targets, reduction="sum") + 0.5 * temperature**2 * divergence).backward()

    def ours_hidden() -> None:
        distillation_loss(hidden, head, targets, Hidden(states, head), temperature=temperature).total.backward()

    if way == "trl":
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # pyright: ignore[reportMissingImports]

        return lambda: ChunkedDivergenceFunction.apply(hidden, weight, None, states, weight, None, 0.0, temperature)[0].sum().backward()  # pyright: ignore
    if way == "liger":
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # pyright: ignore[reportMissingImports]

        loss = LigerFusedLinearJSDLoss(beta=0.0, temperature=temperature, compiled=False, chunk_size=256)
        return lambda: loss(hidden, weight, states, weight, targets).backward()
    return {
        "two products": products,
        "three products": three_products,
        "dense topk": whole_topk,
        "topk": ours_topk,
        "dense": whole,
        "hidden": ours_hidden,
    }[way]


def run_child(config: BenchConfig, way: str) -> tuple[float, float]:
    """Seconds and peak bytes above the inputs of one run, from a process of its own."""
    options = [f"--{name}={getattr(config, name)}" for name in ("tokens", "vocabulary", "hidden", "dtype", "temperature", "threads")]
    command = [sys.executable, "-m", "benchmarks.distill", *options, "--child", way]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way} failed:\n{done.stderr[-2000:]}")
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def losses(config: BenchConfig) -> None:
    """Print the table of the loss."""
    ways = [way for way in config.ways if way not in PEERS or importlib.util.find_spec(PEERS[way])]
    print(
        f"loss: {config.tokens} tokens, vocabulary {config.vocabulary}, hidden {config.hidden}, {config.dtype}, "
        f"median of {config.rounds} round(s) in turn; one [token, vocab] float32 is {config.tokens * config.vocabulary * 4 / 1e6:.0f} MB"
    )
    for way, text in WAYS.items():
        print(f"  {way:15} {text}" + ("" if way in ways else "; not installed" if way in config.ways else "; not asked for"))
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(config.rounds):
        for way in ways:
            taken[way].append(run_child(config, way))
    seconds = {way: statistics.median(t for t, _ in runs) for way, runs in taken.items()}
    peaks = {way: statistics.median(p for _, p in runs) for way, runs in taken.items()}
    print(f"\n{'':15} {'seconds':>9} {'/two products':>14} {'/three products':>16} {'peak, +MB':>10} {'/dense':>8}")
    for way in ways:
        dense = peaks["dense topk" if "topk" in way else "dense"]
        share = f"{peaks[way] / dense:8.3f}" if dense else f"{'-':>8}"  # of tensors below a page's size nothing is seen
        print(
            f"{way:15} {seconds[way]:9.2f} {seconds[way] / seconds['two products']:14.2f} {seconds[way] / seconds['three products']:16.2f} "
            f"{peaks[way] / 1e6:10.0f} {share}"
        )


def collection(config: BenchConfig) -> None:
    """Print the second table: the embedded model answers shipped problems, the ways in turn."""
    import torch

    from distill.problems.sets import load_problems
    from distill.strategies import STRATEGIES
    from distill.teachers.generate import Sampling, generate
    from interp.checkpoints.opening import open_checkpoint

    opened = open_checkpoint("smollm2", device="cpu")
    model, tokenizer = opened.model, opened.tokenizer
    prompts = [STRATEGIES["none"].encode(tokenizer, p.question, True) for p in load_problems("shipped")[: config.collect_batch]]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    new = config.collect_tokens

    def plain() -> int:
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        ends = out[:, width:] == tokenizer.eos_token_id
        return int(torch.where(ends.any(1), ends.int().argmax(1) + 1, ends.shape[1]).sum())

    def ours(signal: Any) -> int:
        said = generate(model, tokenizer, prompts, Sampling(new), batch_size=len(prompts), signal=signal)
        return sum(len(answer.ids) for answer in said)

    ways: dict[str, Callable[[], int]] = {"generate": plain, **{tier: lambda tier=tier: ours(tier) for tier in ("text", "topk", "hidden")}}
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways.values():
        way()  # what is loaded once
    for _ in range(config.rounds if config.smoke else max(3, config.rounds)):
        for name, way in ways.items():
            begun = time.perf_counter()
            tokens = way()
            speeds[name].append(tokens / (time.perf_counter() - begun))
    print(f"\nsmollm2, {len(prompts)} prompts of up to {width} tokens, up to {new} new ones, greedy, float32")
    print(f"{'':15} {'tokens/s':>9} {'/generate':>10}")
    for name, taken in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(taken, speeds["generate"], strict=True))
        print(f"{name:15} {statistics.median(taken):9.1f} {ratio:10.3f}")


def main() -> int:
    """Print the tables."""
    config = tyro.cli(BenchConfig, prog="python -m benchmarks.distill", description=__doc__)
    wrong = mistake(config)
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    import torch

    torch.set_num_threads(config.threads)
    if config.child:
        small = BenchConfig(tokens=16, vocabulary=K * 4, hidden=64, dtype=config.dtype)
        runner(config.child, small)()  # what is loaded once
        run = runner(config.child, config)
        taken: list[float] = []

        def timed() -> None:
            begun = time.perf_counter()
            run()
            taken.append(time.perf_counter() - begun)

        peak = peak_bytes(timed)
        print(json.dumps([taken[0], peak]))
        return 0
    if config.smoke:
        config = BenchConfig(tuple(WAYS), tokens=32, vocabulary=512, hidden=64, dtype=config.dtype, rounds=1, threads=config.threads)
        config = replace(config, collect_tokens=4, collect_batch=2, smoke=True)
    print(f"{platform.machine()}, torch {torch.__version__}, {config.threads} thread(s)")
    losses(config)
    collection(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
