"""Measure what every statistic of attention costs on a GPU: `python -m benchmarks.gpu`.

The command has three parts, and `--parts` chooses among them.

table: attention with the shape of Llama-3.1-8B (32 heads, 8 key-value heads) in bfloat16, causal, on random tensors. All variants run
alternately in one process and are timed with CUDA events. The table shows the median over rounds, as a ratio to torch's
scaled_dot_product_attention with FlashAttention; peak memory above the inputs; and whether the kernel takes at most 1.25 times as long.

errors: the kernel's largest error against float64 at every length, over the first and last 128 queries, on random and adversarial inputs:
|found - exact| / max(|exact|, 1e-3), so 1e-3 relative means 1e-6 absolute below 1e-3. The exit code is 1 if an error exceeds 1e-3.

model: one long text through a random model with the shape of Llama-3.1-8B, plain and recorded alternately.

The kernel has not run on a GPU yet. It was tested in Triton's interpreter and compiled for compute capability 8.0 and 9.0
(tests/interp/attention/test_triton.py).

Examples:

  python -m benchmarks.gpu                                          everything
  python -m benchmarks.gpu --parts table errors --lengths 512 4096  two parts at two lengths
  python -m benchmarks.gpu --parts model --backend blocked          the long text, recorded by another backend
  python -m benchmarks.gpu --smoke                                  every part in its smallest form, on any machine
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import tyro

if TYPE_CHECKING:
    from torch import Tensor

    from interp.tokens import Tokens

VARIANTS = {
    "triton": "the kernel: output, entropy, collision, distance, 25 masses, largest probability, count above 0.1, two keys per query",
    "no count": "the kernel without the count above 0.1",
    "output": "the kernel without masses, counts and chosen keys",
    "flash": "the flash backend: fused calls and algebra; no distance, no largest probability, no count",
    "blocked": "the blocked backend: plain torch, every statistic",
}
COLUMNS = 25
"""Number of token sets of all measures together."""
INPUT_KINDS = ("random", "large offset", "one-hot", "all equal")
"""Inputs on which errors are measured; all but the first are adversarial."""
CHECKED = 128
"""Queries at each end of a text that are compared with float64."""
TARGET, LARGEST_ERROR, FLOOR = 1.25, 1e-3, 1e-3
"""Wanted ratio of the kernel's time to sdpa's; largest accepted |found - exact| / max(|exact|, FLOOR); FLOOR itself."""


@dataclass(frozen=True)
class GpuConfig:
    """Cost of the Triton kernel.

    Attributes:
        parts: parts to run.
        lengths: tokens per text in the parts table and errors.
        head_dims: head sizes.
        heads: query heads.
        kv_heads: key-value heads.
        batch_tokens: texts are batched up to this number of tokens.
        longest_blocked: longest text of the blocked backend; the flash backend runs up to four times this length.
        rounds: number of timed runs of each variant in the table.
        model_rounds: number of timed runs of the long text, plain and recorded alternately.
        tokens: length of the long text.
        backend: backend that records the long text, with every measure (flash does not support all).
        layers: layers of the model.
        smoke: run every part in its smallest form on any machine; times mean nothing.
    """

    parts: tuple[Literal["table", "errors", "model"], ...] = ("table", "errors", "model")
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16384, 32768)
    head_dims: tuple[int, ...] = (64, 128)
    heads: int = 32
    kv_heads: int = 8
    batch_tokens: int = 8192
    longest_blocked: int = 4096
    rounds: int = 9
    model_rounds: int = 3
    tokens: int = 32768
    backend: Literal["triton", "blocked"] = "triton"
    layers: int = 32
    smoke: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"--heads is {self.heads}; allowed: a multiple of --kv-heads, which is {self.kv_heads}")
        if min((*self.lengths, *self.head_dims, self.tokens, self.layers, self.batch_tokens), default=0) < 1:
            raise ValueError("--lengths, --head-dims, --tokens, --layers and --batch-tokens must be at least 1")
        if not self.parts or min(self.rounds, self.model_rounds) < 1:
            raise ValueError(
                f"--parts is {self.parts}, --rounds {self.rounds} and --model-rounds {self.model_rounds}; at least one of each is needed"
            )

    def batch(self, length: int) -> int:
        """Return the number of texts of this length in a batch."""
        return max(1, self.batch_tokens // length)

    def variants(self, length: int) -> tuple[str, ...]:
        """Return the variants that are timed at this length."""
        limits = {"flash": 4 * self.longest_blocked, "blocked": self.longest_blocked}
        return tuple(variant for variant in VARIANTS if length <= limits.get(variant, length))


def tensors(config: GpuConfig, length: int, head_dim: int, device: str, batch: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return random queries, keys and values in bfloat16, [batch, head, token, dim]."""
    import torch

    generator = torch.Generator(device).manual_seed(0)
    batch = batch or config.batch(length)
    shapes = [(batch, heads, length, head_dim) for heads in (config.heads, config.kv_heads, config.kv_heads)]
    query, key, value = (torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) for shape in shapes)
    return query, key, value


def random_key_sets(batch: int, length: int, device: str) -> Any:
    """Return random token sets, and for each query the chosen keys: its own and the previous one."""
    import torch

    from interp.attention.statistics import KeySets

    columns = (torch.rand(batch, length, COLUMNS, generator=torch.Generator().manual_seed(1)) < 0.2).float()
    at = torch.arange(length)
    pairs = torch.cat([torch.stack([at, at, 0 * at]), torch.stack([at[1:], at[:-1], 0 * at[1:] + 1])], 1)
    pairs = pairs[:, pairs[0].argsort(stable=True)]
    return KeySets(columns, (pairs,) * batch, 2, (0,) * batch, (length,) * batch).to(torch.device(device))


def runner(variant: str, query: Tensor, key: Tensor, value: Tensor, sets: Any) -> Callable[[], Any]:
    """Return a function that runs one variant once. Its calls share the mask, as the layers of a model do."""
    import torch

    from interp.attention.blocked import blocked_pass
    from interp.attention.flash import flash_pass
    from interp.attention.masks import lazy_mask
    from interp.attention.statistics import KeySets, Scores, Wanted
    from interp.attention.triton import triton_pass

    batch, _, length, dim = query.shape
    mask = lazy_mask(batch, length, length)
    scores = Scores(dim**-0.5 / 2)  # halved, because unscaled random queries of 128 dimensions exceed the flash backend's limit
    wanted = Wanted(thresholds=(0.1,))
    if variant == "sdpa":

        def sdpa() -> Any:
            function = torch.nn.functional.scaled_dot_product_attention
            if query.device.type != "cuda":
                return function(query, key, value, is_causal=True, enable_gqa=True)
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
                return function(query, key, value, is_causal=True, enable_gqa=True)

        return sdpa
    if variant == "flash":
        return lambda: flash_pass(query, key, value, mask, scores, sets)
    if variant == "blocked":
        return lambda: blocked_pass(query, key, value, mask, scores, sets, wanted)
    if variant == "output":
        sets = KeySets(sets.columns[..., :0], tuple(pairs[:, :0] for pairs in sets.pairs), 0, sets.starts, sets.stops)
    if variant != "triton":
        wanted = Wanted()
    return lambda: triton_pass(query, key, value, mask, scores, sets, wanted)


def milliseconds(run: Callable[[], Any], device: str) -> float:
    """Return the milliseconds of one run, by CUDA events on a GPU."""
    import torch

    if device != "cuda":
        begun = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - begun)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def peak_megabytes(run: Callable[[], Any], device: str) -> float:
    """Return the peak memory of one run above the memory before it; NaN without a GPU."""
    import torch

    if device != "cuda":
        return float("nan")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def print_table(config: GpuConfig, device: str) -> None:
    """Print times and memory, and after each head size the lengths at which the kernel meets the target."""
    print(
        f"\n{'dim':>4} {'batch x tokens':>15} {'sdpa, ms':>9} "
        + " ".join(f"{variant + ' /sdpa':>14}" for variant in VARIANTS)
        + "   and MB"
    )
    for head_dim in config.head_dims:
        ratio: dict[int, float] = {}
        for length in config.lengths:
            query, key, value = tensors(config, length, head_dim, device)
            sets = random_key_sets(query.shape[0], length, device)
            runs = {variant: runner(variant, query, key, value, sets) for variant in ("sdpa", *config.variants(length))}
            taken: dict[str, list[float]] = {variant: [] for variant in runs}
            for number in range(config.rounds + 2):
                for variant, run in runs.items():
                    spent = milliseconds(run, device)
                    if number > 1:  # the first rounds compile and warm up
                        taken[variant].append(spent)
            median = {variant: statistics.median(times) for variant, times in taken.items()}
            ratio[length] = median["triton"] / median["sdpa"]
            peak = {variant: peak_megabytes(run, device) for variant, run in runs.items()}
            ratios = " ".join(f"{median[variant] / median['sdpa']:14.3f}" if variant in median else f"{'':>14}" for variant in VARIANTS)
            memory = ", ".join(f"{variant} {megabytes:.0f}" for variant, megabytes in peak.items())
            print(f"{head_dim:4} {query.shape[0]:6} x {length:6} {median['sdpa']:9.3f} {ratios}   {memory}", flush=True)
        verdicts = ", ".join(f"{length} {'met' if cost <= TARGET else 'missed'} ({cost:.2f})" for length, cost in ratio.items())
        print(f"{head_dim:4} target {TARGET} x sdpa: {verdicts}", flush=True)


def inputs_of_kind(kind: str, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and keys of one kind in `INPUT_KINDS`, made from random ones."""
    import torch

    if kind == "large offset":
        return query, key + 50
    if kind == "one-hot":
        return 10 * query, 10 * key
    if kind == "all equal":
        return query, torch.full_like(key, 0.5)
    return query, key


def worst_errors(query: Tensor, key: Tensor, value: Tensor, sets: Any, threshold: float = 0.1) -> dict[str, float]:
    """Return the kernel's largest error of each statistic over the first and last queries of one text, computed one key head at a time.

    "counts" is the share of queries whose count cannot be explained by a threshold within `LARGEST_ERROR` of the requested one.
    """
    import torch

    from interp.attention.masks import lazy_mask
    from interp.attention.statistics import Scores, Wanted
    from interp.attention.triton import triton_pass

    _, heads, length, dim = query.shape
    scaling, groups = dim**-0.5, heads // key.shape[1]
    mask, wanted = lazy_mask(1, length, length), Wanted(thresholds=(threshold,))
    output, rows = triton_pass(query, key, value, mask, Scores(scaling), sets, wanted)
    assert output is not None
    assert rows.max_prob is not None
    assert rows.distance is not None
    at, columns = torch.arange(length, device=query.device), sets.columns[0].double()
    worst: dict[str, float] = {}
    for first, last in {(0, min(length, CHECKED)), (max(0, length - CHECKED), length)}:
        for kv_head in range(key.shape[1]):
            of = slice(kv_head * groups, (kv_head + 1) * groups)
            distance = (at[first:last, None] - at).double()
            score = scaling * query[0, of, first:last].double() @ key[0, kv_head].double().T
            p = score.masked_fill_(distance < 0, -torch.inf).softmax(-1)
            own = p.gather(2, at[first:last, None].expand(groups, -1, 1))[..., 0]
            before = p.gather(2, (at[first:last, None] - 1).clamp(min=0).expand(groups, -1, 1))[..., 0]
            inside = (0, of, slice(first, last))
            later = slice(1 if first == 0 else 0, None)  # the first token has no previous one
            pairs = {
                "entropy": (rows.entropy[inside], torch.special.entr(p).sum(-1)),
                "sum p^2": (rows.collision[inside], p.square().sum(-1)),
                "max": (rows.max_prob[inside], p.amax(-1)),
                "distance": (rows.distance[inside], (p * distance).sum(-1)),
                "masses": (rows.masses[:, *inside], torch.einsum("hqk,kc->chq", p, columns)),
                "own key": (rows.pair_masses[0, *inside], own),
                "key before": (rows.pair_masses[1, *inside][:, later], before[:, later]),
            }
            found = {
                name: float(((a - b).abs() / b.abs().clamp_min(FLOOR)).nan_to_num(torch.inf).max())
                for name, (a, b) in pairs.items()
                if b.numel()
            }
            high, low = ((p > threshold * (1 + sign * LARGEST_ERROR)).sum(-1) for sign in (-1, 1))
            count = rows.above[threshold][inside]
            found["counts"] = float(((count > high) | (count < low)).double().mean())
            exact = (p @ value[0, kv_head].double()).transpose(0, 1)
            found["output"] = float(((output[0, first:last, of] - exact).abs() / exact.abs().clamp_min(1)).max())
            worst = {name: max(error, worst.get(name, 0.0)) for name, error in found.items()}
    return worst


def print_errors(config: GpuConfig, device: str) -> list[str]:
    """Print the largest error of each statistic against float64; return the errors that exceed the limit."""
    print(f"\nlargest error against float64, |found - exact| / max(|exact|, {FLOOR:g}), over the first and last {CHECKED} queries")
    print(f"limit {LARGEST_ERROR:g}; counts: share of queries that differ; output: bfloat16, relative above 1, no limit")
    beyond = []
    for head_dim in config.head_dims:
        for length in config.lengths:
            for kind in INPUT_KINDS:
                query, key, value = tensors(config, length, head_dim, device, batch=1)
                query, key = inputs_of_kind(kind, query, key)
                worst = worst_errors(query, key, value, random_key_sets(1, length, device))
                line = "  ".join(f"{name} {error:.1e}" for name, error in worst.items())
                print(f"{head_dim:4} 1 x {length:6} {kind:>13}  {line}", flush=True)
                limits = dict.fromkeys(worst, LARGEST_ERROR) | {"counts": 0.0, "output": float("inf")}
                beyond += [f"{name} {worst[name]:.1e} ({kind}, {head_dim}, {length})" for name in worst if worst[name] > limits[name]]
    return beyond


def model_config(config: GpuConfig, *, tiny: bool = False) -> Any:
    """Return the config of a model with the shape of Llama-3.1-8B, or of a tiny one."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=64 if tiny else 4096,
        intermediate_size=64 if tiny else 14_336,
        num_hidden_layers=config.layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        rms_norm_eps=1e-5,
    )


def random_tokens(length: int) -> Tokens:
    """Return one text of random token ids with random number and operator roles."""
    import numpy as np

    from interp.tokens import AnnotatedText, Tokens

    generator = np.random.default_rng(0)
    parts = [length // 8, length // 4, length - length // 8 - length // 4]
    text = AnnotatedText(
        example=0,
        text="",
        ids=generator.integers(1000, 100_000, length),
        offsets=np.zeros((length, 2), np.int64),
        regions=np.repeat([0, 1, 2], parts).astype(np.uint8),
        roles=generator.choice([0, 2, 3, 4, 5, 6], length, p=[0.68, 0.07, 0.06, 0.09, 0.08, 0.02]).astype(np.uint8),
        is_query=np.ones(length, bool),
    )
    return Tokens((text,))


def long_text(config: GpuConfig, device: str, *, tiny: bool = False) -> None:
    """Record one long text through a random model; print seconds and peak memory of the plain and the recorded forward pass."""
    import torch
    from transformers import AutoModelForCausalLM

    from interp import record

    with torch.device(device):
        model = AutoModelForCausalLM.from_config(model_config(config, tiny=tiny), dtype=torch.bfloat16).eval()
    tokens = random_tokens(config.tokens)
    inputs = {name: tensor.to(device) for name, tensor in tokens.inputs.items()}
    decoder = model.base_model  # without logits, which alone would be tokens x 128,256 numbers
    kept: dict[str, Any] = {}

    def plain() -> None:
        decoder(**inputs, use_cache=False)

    def recorded() -> None:
        with record(model, tokens, backend=config.backend) as recording:
            decoder(**inputs, use_cache=False)
        kept["recording"] = recording

    billions = sum(p.numel() for p in model.parameters()) / 1e9
    shape = "a tiny model" if tiny else "Llama-3.1-8B's shape"
    print(
        f"\n{config.layers} layers of {shape} ({billions:.2f} billion parameters), bfloat16, {config.tokens} tokens, "
        f"backend {config.backend}"
    )
    runs = {"plain forward": plain, "recorded": recorded}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # compiles and warms up
    for _ in range(config.model_rounds):
        for name, run in runs.items():
            taken[name].append(milliseconds(run, device) / 1e3)
    for name, run in runs.items():
        seconds, peak = taken[name], peak_megabytes(run, device) / 1e3
        spread = f"{min(seconds):.3f} to {max(seconds):.3f}"
        print(
            f"{name:>14} {statistics.median(seconds):8.3f} s ({spread}, {len(seconds)} rounds), {peak:7.2f} GB above the weights",
            flush=True,
        )
    ratios = [ours / base for base, ours in zip(taken["plain forward"], taken["recorded"], strict=True)]
    print(f"recorded / plain {statistics.median(ratios):.3f}, median of the rounds ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"eager attention maps of all layers would take {2 * config.layers * 32 * config.tokens**2 / 1e12:.3g} TB")
    backends = list(kept["recording"].backends.values())
    print(f"layers by backend: {', '.join(f'{backend} {backends.count(backend)}' for backend in sorted(set(backends)))}")
    print(kept["recording"].table().groupby("measure")["value"].mean().to_string())


def run_parts(config: GpuConfig, device: str, *, tiny: bool = False) -> int:
    """Run the selected parts; return exit code 1 if an error of the kernel exceeds the limit."""
    beyond = []
    if "table" in config.parts:
        for variant, text in VARIANTS.items():
            print(f"  {variant:8} {text}")
        print_table(config, device)
    if "errors" in config.parts:
        beyond = print_errors(config, device)
    if "model" in config.parts:
        long_text(config, device, tiny=tiny)
    if beyond:
        print(f"error: {len(beyond)} errors exceed {LARGEST_ERROR:g}: {'; '.join(beyond)}", file=sys.stderr)
    return 1 if beyond else 0


def smoke(config: GpuConfig) -> int:
    """Run every part on a CPU with tiny shapes; the kernel runs in Triton's interpreter if TRITON_INTERPRET=1 is set."""
    import torch

    from interp.attention.triton import available

    for length in config.lengths:
        print(f"{config.batch(length)} x {length}: {', '.join(config.variants(length))}")
    can, why = available(torch.device("cpu"))
    tiny = GpuConfig(
        parts=config.parts,
        lengths=(48, 150),
        head_dims=(16,),
        heads=4,
        kv_heads=2,
        batch_tokens=48,
        rounds=1,
        model_rounds=1,
        tokens=40,
        layers=1,
    )
    if can:
        return run_parts(tiny, "cpu", tiny=True)
    print(f"the kernel was left out: {why}; set TRITON_INTERPRET=1 to run it slowly in the interpreter")
    return run_parts(replace(tiny, parts=("model",), backend="blocked"), "cpu", tiny=True) if "model" in config.parts else 0


def main() -> int:
    """Run the parts; return exit code 0, 1 if an error exceeds the limit, or 2 without a GPU."""
    config = tyro.cli(GpuConfig, prog="python -m benchmarks.gpu", description=__doc__)
    import torch

    torch.set_grad_enabled(False)
    if config.smoke:
        return smoke(config)
    if not torch.cuda.is_available():
        print("error: no CUDA device was found; --smoke runs every part in its smallest form without one", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16, causal, {config.heads} heads over {config.kv_heads}")
    return run_parts(config, "cuda")


if __name__ == "__main__":
    sys.exit(main())
