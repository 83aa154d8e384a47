"""What every statistic of attention costs on a GPU, beside FlashAttention's own forward: `python -m benchmarks.gpu`.

Attention of Llama-3.1-8B's shape (32 heads, 8 key-value heads) in bfloat16, causal, random tensors. All ways in one process, taken in turn,
CUDA events, median of the rounds, printed as ratios to torch's scaled_dot_product_attention with the flash backend; peak memory above the
inputs; then the worst error of the kernel against float64, on random and on adversarial inputs, at a short length.

`--model` instead builds a random model of that shape on the card and records one long text through it, in one pass.

Not run on a GPU here yet: the kernel was tested in Triton's interpreter and compiled for compute capability 8.0 and 9.0
(tests/interp/test_triton_pass.py).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from torch import Tensor

    from interp.tokens import Tokens

WAYS = {
    "triton": "the kernel: output, entropy, collision, distance, 25 masses, largest probability, count above 0.1, two chosen keys a query",
    "no count": "the kernel without the count above 0.1",
    "output": "the kernel without masses, counts and chosen keys",
    "flash": "the flash way: fused calls and algebra, no largest probability, no count",
    "blocked": "the blocked way: plain torch, everything",
}
COLUMNS = 25
"""Token sets of all measures together."""
ADVERSARIAL = ("random", "large offset", "one-hot", "all equal")


@dataclass(frozen=True)
class GpuConfig:
    """Cost of the Triton kernel.

    Attributes:
        lengths: tokens of a text.
        head_dims: head sizes.
        heads: query heads.
        kv_heads: key-value heads.
        batch_tokens: texts are stacked up to this many tokens.
        longest_blocked: the blocked way is left out above this length, and the flash way above four times it.
        rounds: how often each way is timed.
        model: record one long text through a random model of Llama-3.1-8B's shape instead.
        tokens: length of that text.
        way: how it is recorded.
        layers: of that model.
        smoke: a tiny round of the table on any machine, times not worth reading, and the model's shape without its weights.
    """

    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16384, 32768)
    head_dims: tuple[int, ...] = (64, 128)
    heads: int = 32
    kv_heads: int = 8
    batch_tokens: int = 8192
    longest_blocked: int = 4096
    rounds: int = 9
    model: bool = False
    tokens: int = 32768
    way: str = "triton"
    layers: int = 32
    smoke: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key-value heads evenly")

    def batch(self, length: int) -> int:
        """Texts of this length that are taken together."""
        return max(1, self.batch_tokens // length)

    def ways(self, length: int) -> tuple[str, ...]:
        """The ways that are timed at this length."""
        limits = {"flash": 4 * self.longest_blocked, "blocked": self.longest_blocked}
        return tuple(way for way in WAYS if length <= limits.get(way, length))


def tensors(config: GpuConfig, length: int, head_dim: int, device: str, batch: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values in bfloat16, [batch, head, token, dim]."""
    import torch

    generator = torch.Generator(device).manual_seed(0)
    batch = batch or config.batch(length)
    shapes = [(batch, heads, length, head_dim) for heads in (config.heads, config.kv_heads, config.kv_heads)]
    query, key, value = (torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) for shape in shapes)
    return query, key, value


def key_sets(batch: int, length: int, device: str) -> Any:
    """Random token sets, and each query's own key and the one before it."""
    import torch

    from interp.attention import KeySets

    columns = (torch.rand(batch, length, COLUMNS, generator=torch.Generator().manual_seed(1)) < 0.2).float()
    at = torch.arange(length)
    pairs = torch.cat([torch.stack([at, at, 0 * at]), torch.stack([at[1:], at[:-1], 0 * at[1:] + 1])], 1)
    pairs = pairs[:, pairs[0].argsort(stable=True)]
    return KeySets(columns, (pairs,) * batch, 2, (0,) * batch, (length,) * batch).to(torch.device(device))


def runner(way: str, query: Tensor, key: Tensor, value: Tensor, sets: Any) -> Callable[[], Any]:
    """A function that runs one way once. The mask is shared by its calls, as by the layers of a model."""
    import torch

    from interp.attention import KeySets, Scores, Wanted, blocked_pass, flash_pass
    from interp.masks import lazy_mask
    from interp.triton_pass import triton_pass

    batch, _, length, dim = query.shape
    mask = lazy_mask(batch, length, length)
    scores, wanted = Scores(dim**-0.5), Wanted(thresholds=(0.1,))
    if way == "sdpa":

        def sdpa() -> Any:
            function = torch.nn.functional.scaled_dot_product_attention
            if query.device.type != "cuda":
                return function(query, key, value, is_causal=True, enable_gqa=True)
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
                return function(query, key, value, is_causal=True, enable_gqa=True)

        return sdpa
    if way == "flash":
        return lambda: flash_pass(query, key, value, mask, scores, sets)
    if way == "blocked":
        return lambda: blocked_pass(query, key, value, mask, scores, sets, wanted)
    if way == "output":
        sets = KeySets(sets.columns[..., :0], tuple(pairs[:, :0] for pairs in sets.pairs), 0, sets.starts, sets.stops)
    if way != "triton":
        wanted = Wanted()
    return lambda: triton_pass(query, key, value, mask, scores, sets, wanted)


def milliseconds(run: Callable[[], Any], device: str) -> float:
    """One run, by CUDA events where there is a GPU."""
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
    """Memory of one run above what was held before."""
    import torch

    if device != "cuda":
        return float("nan")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def table(config: GpuConfig, device: str) -> None:
    """Print times and memory."""
    print(f"\n{'dim':>4} {'batch x tokens':>15} {'sdpa, ms':>9} " + " ".join(f"{way + ' /sdpa':>14}" for way in WAYS) + "   and MB")
    for head_dim in config.head_dims:
        for length in config.lengths:
            query, key, value = tensors(config, length, head_dim, device)
            sets = key_sets(query.shape[0], length, device)
            runs = {way: runner(way, query, key, value, sets) for way in ("sdpa", *config.ways(length))}
            taken: dict[str, list[float]] = {way: [] for way in runs}
            for number in range(config.rounds + 2):
                for way, run in runs.items():
                    spent = milliseconds(run, device)
                    if number > 1:  # the first rounds compile and warm up
                        taken[way].append(spent)
            median = {way: statistics.median(times) for way, times in taken.items()}
            peak = {way: peak_megabytes(run, device) for way, run in runs.items()}
            ratios = " ".join(f"{median[way] / median['sdpa']:14.3f}" if way in median else f"{'':>14}" for way in WAYS)
            memory = ", ".join(f"{way} {megabytes:.0f}" for way, megabytes in peak.items())
            print(f"{head_dim:4} {query.shape[0]:6} x {length:6} {median['sdpa']:9.3f} {ratios}   {memory}", flush=True)


def errors(config: GpuConfig, device: str, length: int) -> None:
    """Print the worst error of each statistic against float64, relative where it is above 1."""
    import torch

    from interp.attention import Scores, Wanted
    from interp.masks import lazy_mask
    from interp.triton_pass import triton_pass

    print(f"\nworst error against float64, 1 x {length} (target 1e-3); counts: share of queries that differ")
    for head_dim in config.head_dims:
        for kind in ADVERSARIAL:
            query, key, value = tensors(config, length, head_dim, device, batch=1)
            scaling = head_dim**-0.5
            if kind == "large offset":
                key = key + 50
            elif kind == "one-hot":
                query, key = 10 * query, 10 * key
            elif kind == "all equal":
                key = torch.full_like(key, 0.5)
            sets = key_sets(1, length, device)
            wanted = Wanted(thresholds=(0.1,))
            _, rows = triton_pass(query, key, value, lazy_mask(1, length, length), Scores(scaling), sets, wanted)
            score = scaling * query.double() @ key.double().repeat_interleave(config.heads // config.kv_heads, 1).transpose(2, 3)
            at = torch.arange(length, device=device)
            p = score.masked_fill(at > at[:, None], -torch.inf).softmax(-1)
            assert rows.max_prob is not None
            pairs = {
                "entropy": (rows.entropy, torch.special.entr(p).sum(-1)),
                "sum p^2": (rows.collision, p.square().sum(-1)),
                "max": (rows.max_prob, p.amax(-1)),
                "distance": (rows.distance, (p * (at[:, None] - at)).sum(-1)),
                "masses": (rows.masses, torch.einsum("bhqk,bkc->cbhq", p, sets.columns.double())),
                "chosen": (rows.pair_masses[0], p.diagonal(dim1=2, dim2=3)),
            }
            worst = {name: float(((a - b).abs() / b.abs().clamp_min(1)).max()) for name, (a, b) in pairs.items()}
            other = float((rows.above[0.1] != (p > 0.1).sum(-1)).float().mean())
            print(f"{head_dim:4} {kind:>13}  " + "  ".join(f"{name} {e:.1e}" for name, e in worst.items()) + f"  counts {other:.1e}")


def model_config(config: GpuConfig) -> Any:
    """Llama-3.1-8B's shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=config.layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        rms_norm_eps=1e-5,
    )


def random_tokens(length: int) -> Tokens:
    """One text of random token ids, with numbers and operators strewn in."""
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


def long_text(config: GpuConfig) -> None:
    """Record one long text through a random model on the card; print seconds and peak memory beside the plain forward."""
    import torch
    from transformers import AutoModelForCausalLM

    from interp import record

    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(model_config(config), dtype=torch.bfloat16).eval()
    tokens = random_tokens(config.tokens)
    inputs = {name: tensor.cuda() for name, tensor in tokens.inputs.items()}
    decoder = model.base_model  # without logits, which alone would take tokens x 128,256 numbers

    def plain() -> Any:
        return decoder(**inputs, use_cache=False)

    def recorded() -> Any:
        with record(model, tokens, way=config.way) as recording:
            decoder(**inputs, use_cache=False)
        return recording

    print(f"{config.layers} layers of Llama-3.1-8B's shape, bfloat16, {config.tokens} tokens, way {config.way}")
    for name, run in {"plain forward": plain, "recorded": recorded}.items():
        run()  # compiles
        seconds = [milliseconds(run, "cuda") / 1e3 for _ in range(3)]
        print(f"{name:>14} {statistics.median(seconds):8.3f} s, {peak_megabytes(run, 'cuda') / 1e3:7.2f} GB above the weights", flush=True)
    whole = 2 * config.layers * 32 * config.tokens**2 / 1e12
    print(f"eager attention maps of all layers would take {whole:.2f} TB")
    print(recorded().table().groupby("measure")["value"].mean().to_string())


def smoke(config: GpuConfig) -> None:
    """Every function that needs no GPU, on a shape that takes no time."""
    import torch

    from interp.triton_pass import available

    for length in config.lengths:
        print(f"{config.batch(length)} x {length}: {', '.join(config.ways(length))}")
    tiny = GpuConfig(lengths=(48,), head_dims=(16,), heads=4, kv_heads=2, batch_tokens=48, rounds=1)
    can, why = available(torch.device("cpu"))
    if can:
        table(tiny, "cpu")
        errors(tiny, "cpu", 48)
    else:
        print(f"the kernel was left out: {why}; TRITON_INTERPRET=1 runs it slowly")
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config(config), dtype=torch.bfloat16)
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    print(f"model of {billions:.2f} billion parameters, text of {random_tokens(config.tokens).width} tokens")


def main() -> int:
    """Print the table, or record the long text."""
    config = tyro.cli(GpuConfig, prog="python -m benchmarks.gpu", description=__doc__)
    import torch

    torch.set_grad_enabled(False)
    if config.smoke:
        smoke(config)
        return 0
    if not torch.cuda.is_available():
        print("no CUDA device here; --smoke runs what needs none", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16, causal, {config.heads} heads over {config.kv_heads}")
    if config.model:
        long_text(config)
        return 0
    for way, text in WAYS.items():
        print(f"  {way:8} {text}")
    table(config, "cuda")
    errors(config, "cuda", min(512, *config.lengths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
