"""Measure what distillation costs compared with other implementations: `python -m benchmarks.distill`.

The first table shows the loss, compared with complete logits, bare matrix products, TRL and Liger. The second shows the collection of a
teacher's answers with its signals, compared with the plain `generate` of transformers on the same batch, in tokens of the answers per
second (padding does not count).

Every method of the first table runs forward and backward in a separate process, which reports its time and its peak memory above the
inputs. The methods alternate, and the table shows medians and ratios. The output head is frozen, as in LoRA training, and the loss is
0.5 CE + 0.5 T^2 KL(teacher || student).
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

METHODS = {
    "two products": "bare: logits from hidden states, and back",
    "three products": "bare: the same, and the teacher's logits",
    "dense topk": "complete logits, autograd, top 64 and a bucket",
    "topk": "distill.objectives.chunked, top 64 and a bucket",
    "dense": "complete logits of both models, autograd",
    "hidden": "distill.objectives.chunked, the teacher's hidden states",
    "trl": "TRL's ChunkedDivergenceFunction, without CE; slow on a CPU, where its products are float32, so it is not a default",
    "liger": "Liger's LigerFusedLinearJSDLoss, uncompiled; it also computes the output head's gradient",
}

PEERS = {"trl": "trl", "liger": "liger_kernel"}
"""Packages that methods need; a method whose package is missing is left out."""

K = 64
"""Tokens of a teacher's top k."""


@dataclass(frozen=True)
class DistillBenchConfig:
    """Cost of distillation: the loss, and the collection of answers.

    Attributes:
        methods: methods of the loss to run; the ratios need the bare products and complete logits.
        tokens: tokens of the batch.
        vocabulary: rows of the output head; at least 65, the top 64 and one for the bucket.
        hidden: size of the hidden states of student and teacher.
        dtype: dtype of hidden states and output heads.
        temperature: T with the teacher's hidden states; a top k has T = 1.
        rounds: number of runs of each method.
        threads: threads of torch, at most the number of processors.
        collect_tokens: length limit of answers in the second table, in tokens.
        collect_batch: answers per batch in the second table.
        smoke: one tiny round that only shows that everything runs; its times and memory mean nothing.
        child: for internal use: run one method, print its seconds and peak memory.
    """

    methods: tuple[str, ...] = tuple(method for method in METHODS if method != "trl")
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


def wrong_options(config: DistillBenchConfig) -> str | None:
    """Return what is wrong with the options, or None."""
    unknown = [method for method in config.methods if method not in METHODS]
    if unknown:
        return f"--methods: {', '.join(map(repr, unknown))}; allowed: {', '.join(METHODS)}"
    needed = ["two products", "three products", "dense"] + ["dense topk"] * any("topk" in method for method in config.methods)
    missing = [method for method in needed if method not in config.methods]
    if missing:
        return f"--methods lacks {', '.join(map(repr, missing))}, which the ratios need"
    if not 0 < config.temperature < math.inf:
        return f"--temperature is {config.temperature}; allowed: more than 0"
    least = {"tokens": 1, "vocabulary": K + 1, "hidden": 1, "rounds": 1, "collect_tokens": 1, "collect_batch": 1}
    given = {f"--{name.replace('_', '-')}": (getattr(config, name), allowed) for name, allowed in least.items()}
    return too_small(given) or wrong_threads(config.threads)


def runner(method: str, config: DistillBenchConfig) -> Callable[[], Any]:
    """Return a function that runs one method once on random inputs."""
    import torch
    import torch.nn.functional as F

    from distill.objectives.chunked import distillation_loss
    from distill.records.signals import Hidden, TopK
    from interp.checkpoints.unembedding import OutputHead

    generator = torch.Generator().manual_seed(0)
    dtype, temperature, n_tokens, vocabulary = getattr(torch, config.dtype), config.temperature, config.tokens, config.vocabulary
    # Repeated rows, the same in both heads, are quick to make and do not change the cost of the products.
    rows = torch.randn(min(1024, vocabulary), config.hidden, generator=generator).to(dtype) / config.hidden**0.5
    weight = rows.repeat(-(-vocabulary // len(rows)), 1)[:vocabulary]
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

    def dense_topk() -> None:
        logits = F.linear(hidden, weight).float()
        log_q = logits.log_softmax(-1)
        rest = log_q.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        teacher_rest = (-torch.expm1(log_probs.logsumexp(-1, keepdim=True))).log()
        log_p, log_q = torch.cat([log_probs, teacher_rest], -1), torch.cat([log_q.gather(1, ids), rest], -1)
        divergence = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        (0.5 * F.cross_entropy(logits, targets, reduction="sum") + 0.5 * divergence).backward()

    def chunked_topk() -> None:
        distillation_loss(hidden, head, targets, TopK(ids, log_probs)).total.backward()

    def dense() -> None:
        logits = F.linear(hidden, weight).float()
        log_q = (logits / temperature).log_softmax(-1)
        log_p = (F.linear(states, weight).float() / temperature).log_softmax(-1)
        divergence = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        (0.5 * F.cross_entropy(logits, targets, reduction="sum") + 0.5 * temperature**2 * divergence).backward()

    def chunked_hidden() -> None:
        distillation_loss(hidden, head, targets, Hidden(states, head), temperature=temperature).total.backward()

    if method == "trl":
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # pyright: ignore[reportMissingImports]

        return lambda: ChunkedDivergenceFunction.apply(hidden, weight, None, states, weight, None, 0.0, temperature)[0].sum().backward()  # pyright: ignore
    if method == "liger":
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # pyright: ignore[reportMissingImports]

        loss = LigerFusedLinearJSDLoss(beta=0.0, temperature=temperature, compiled=False, chunk_size=256)
        return lambda: loss(hidden, weight, states, weight, targets).backward()
    return {
        "two products": products,
        "three products": three_products,
        "dense topk": dense_topk,
        "topk": chunked_topk,
        "dense": dense,
        "hidden": chunked_hidden,
    }[method]


def run_child(config: DistillBenchConfig, method: str) -> tuple[float, float]:
    """Return seconds and peak bytes above the inputs of one run in a separate process."""
    options = [f"--{name}={getattr(config, name)}" for name in ("tokens", "vocabulary", "hidden", "dtype", "temperature", "threads")]
    command = [sys.executable, "-m", "benchmarks.distill", *options, "--child", method]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{method} failed:\n{done.stderr[-2000:]}")
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def time_losses(config: DistillBenchConfig) -> None:
    """Print the table of the loss."""
    methods = [method for method in config.methods if method not in PEERS or importlib.util.find_spec(PEERS[method])]
    print(
        f"loss: {config.tokens} tokens, vocabulary {config.vocabulary}, hidden {config.hidden}, {config.dtype}, "
        f"median of {config.rounds} alternating round(s); "
        f"one [token, vocab] float32 tensor is {config.tokens * config.vocabulary * 4 / 1e6:.0f} MB"
    )
    for method, text in METHODS.items():
        print(f"  {method:15} {text}" + ("" if method in methods else "; not installed" if method in config.methods else "; not selected"))
    taken: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
    for _ in range(config.rounds):
        for method in methods:
            taken[method].append(run_child(config, method))
    seconds = {method: statistics.median(t for t, _ in runs) for method, runs in taken.items()}
    peaks = {method: statistics.median(p for _, p in runs) for method, runs in taken.items()}
    print(f"\n{'':15} {'seconds':>9} {'/two products':>14} {'/three products':>16} {'peak, +MB':>10} {'/dense':>8}")
    for method in methods:
        dense = peaks["dense topk" if "topk" in method else "dense"]
        share = f"{peaks[method] / dense:8.3f}" if dense else f"{'-':>8}"  # tensors smaller than a page do not change resident memory
        two, three = (seconds[method] / seconds[products] for products in ("two products", "three products"))
        print(f"{method:15} {seconds[method]:9.2f} {two:14.2f} {three:16.2f} {peaks[method] / 1e6:10.0f} {share}")


def time_collection(config: DistillBenchConfig) -> None:
    """Print the table of collection: the embedded model answers shipped problems, plainly and with each signal alternately."""
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

    def collect(signal: Any) -> int:
        answers = generate(model, tokenizer, prompts, Sampling(new), batch_size=len(prompts), signal=signal)
        return sum(len(answer.ids) for answer in answers)

    signals = ("text", "topk", "hidden")
    runs: dict[str, Callable[[], int]] = {"generate": plain, **{signal: lambda signal=signal: collect(signal) for signal in signals}}
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # warm-up
    for _ in range(config.rounds if config.smoke else max(3, config.rounds)):
        for name, run in runs.items():
            begun = time.perf_counter()
            tokens = run()
            speeds[name].append(tokens / (time.perf_counter() - begun))
    print(f"\nsmollm2, {len(prompts)} prompts of up to {width} tokens, up to {new} new ones, greedy, float32")
    print(f"{'':15} {'tokens/s':>9} {'/generate':>10}")
    for name, taken in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(taken, speeds["generate"], strict=True))
        print(f"{name:15} {statistics.median(taken):9.1f} {ratio:10.3f}")


def main() -> int:
    """Print the tables; return the exit code."""
    given = ["--methods" if argument == "--ways" else argument for argument in sys.argv[1:]]  # --ways is its name in version 0.1
    config = tyro.cli(DistillBenchConfig, prog="python -m benchmarks.distill", description=__doc__, args=given)
    wrong = wrong_options(config)
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    import torch

    torch.set_num_threads(config.threads)
    if config.child:
        small = DistillBenchConfig(tokens=16, vocabulary=K * 4, hidden=64, dtype=config.dtype)
        runner(config.child, small)()  # loads what is loaded only once
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
        config = DistillBenchConfig(
            tuple(METHODS), tokens=32, vocabulary=512, hidden=64, dtype=config.dtype, rounds=1, threads=config.threads
        )
        config = replace(config, collect_tokens=4, collect_batch=2, smoke=True)
    print(f"{platform.machine()}, torch {torch.__version__}, {config.threads} thread(s)")
    time_losses(config)
    time_collection(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
