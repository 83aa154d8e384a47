"""The Triton kernel against float64 softmax and the blocked backend. It runs in Triton's interpreter on a CPU (see tests/conftest.py).

With TRITON_INTERPRET=0 the same tests run on a GPU.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from interp.attention import triton as module
from interp.attention.blocked import blocked_pass
from interp.attention.masks import LazyMask, lazy_mask
from interp.attention.statistics import KeySets, RowStatistics, Scores, Wanted
from interp.attention.triton import TileSizes, available, triton_obstacles, triton_pass
from interp.tables.errors import NonFiniteError

DEVICE = torch.device("cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda")
CAN, WHY = available(DEVICE)
needs_triton = pytest.mark.skipif(not CAN, reason=WHY or "runs")
THRESHOLDS = (0.05, 0.1)
NAMES = ("entropy", "collision", "max_prob", "distance", "masses", "pair_masses", "n_allowed", "set_sizes", "pair_sizes")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split a short text into several tiles: leading ones, ones that need no mask, and ones on the diagonal."""
    monkeypatch.setattr(module, "tile_sizes", lambda dtype, dim: TileSizes(32, 16, 4))


def make_sets(batch: int, keys: int, n_columns: int, starts: tuple[int, ...], stops: tuple[int, ...], queries_from: int = 0) -> KeySets:
    """Return random columns over real keys, and the pairs (i, i) and (i, i - 1) of real tokens."""
    columns = (torch.rand(batch, keys, n_columns, generator=torch.Generator().manual_seed(5)) < 0.4).float()
    pairs = []
    for example, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        columns[example, :start] = columns[example, stop:] = 0
        at = torch.arange(max(start + 1, queries_from), stop)
        both = torch.stack([torch.cat([at, at]), torch.cat([at, at - 1]), torch.cat([0 * at, 0 * at + 1])])
        pairs.append(both[:, both[0].argsort(stable=True)])
    return KeySets(columns, tuple(pairs), 2, starts, stops)


@dataclasses.dataclass
class Case:
    """One call of the pass, as settings from which tensors are made."""

    batch: int = 1
    heads: int = 2
    kv_heads: int = 1
    length: int = 50
    offset: int = 0
    dim: int = 16
    value_dim: int = 16
    columns: int = 3
    dtype: torch.dtype = torch.float32
    scaling: float = 0.4
    softcap: float | None = None
    sinks: tuple[float, ...] | None = None
    window: int | None = None
    starts: tuple[int, ...] | None = None
    stops: tuple[int, ...] | None = None
    thresholds: tuple[float, ...] = THRESHOLDS
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def call(self) -> tuple[Tensor, Tensor, Tensor, LazyMask, Scores, KeySets, Wanted]:
        generator = torch.Generator().manual_seed(0)
        keys = self.length + self.offset
        shapes = ((self.heads, self.length, self.dim), (self.kv_heads, keys, self.dim), (self.kv_heads, keys, self.value_dim))
        query, key, value = (torch.randn(self.batch, *shape, generator=generator) for shape in shapes)
        if self.change is not None:
            query, key = self.change(query, key)
        starts, stops = self.starts or (0,) * self.batch, self.stops or (keys,) * self.batch
        at = torch.arange(keys)
        padding = torch.stack([(at >= start) & (at < stop) for start, stop in zip(starts, stops, strict=True)])
        for example in range(self.batch):  # the content of padding must not matter
            key[example, :, ~padding[example]] = value[example, :, ~padding[example]] = 1e30
            query[example, :, ~padding[example, self.offset :]] = 1e30
        mask = self.mask(padding)
        scores = Scores(self.scaling, self.softcap, None if self.sinks is None else torch.tensor(self.sinks))
        sets = make_sets(self.batch, keys, self.columns, starts, stops, self.offset)
        return query.to(self.dtype), key.to(self.dtype), value.to(self.dtype), mask, scores, sets, Wanted(thresholds=self.thresholds)

    def mask(self, padding: Tensor | None = None) -> LazyMask:
        rule = causal_mask_function if self.window is None else sliding_window_causal_mask_function(self.window)
        keys = self.length + self.offset
        return lazy_mask(self.batch, self.length, keys, q_offset=self.offset, mask_function=rule, attention_mask=padding)


def expected(case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    """Return output and statistics from float64 softmax of the same (rounded) queries and keys."""
    query, key, value, _, scores, sets, wanted = case.call()
    groups, keys = case.heads // case.kv_heads, key.shape[2]
    key, value = (t.double().repeat_interleave(groups, 1) for t in (key, value))
    score = scores.scaling * query.double() @ key.transpose(2, 3)
    if scores.softcap is not None:
        score = scores.softcap * torch.tanh(score / scores.softcap)
    i, j = torch.arange(case.length)[:, None] + case.offset, torch.arange(keys)
    allowed = (j <= i) & (j > i - (case.window or keys + 1))
    at = torch.stack([(j >= a) & (j < b) for a, b in zip(sets.starts, sets.stops, strict=True)])
    allowed = allowed & at[:, None] & at[:, case.offset :, None]
    score = score.masked_fill(~allowed[:, None], -torch.inf)
    real = allowed.any(-1)
    sink = torch.full((case.heads,), -torch.inf) if scores.sinks is None else scores.sinks
    p = torch.cat([score, sink.double().view(1, -1, 1, 1).expand(*score.shape[:3], 1)], -1).softmax(-1)
    p = torch.where(real[:, None, :, None], p, 0)
    own, n = p[..., :keys], allowed.double()
    columns = sets.columns.double()
    pairs = [own.new_zeros(case.batch, case.heads, case.length) for _ in range(2)]
    pair_sizes = [own.new_zeros(case.batch, case.length) for _ in range(2)]
    for example in range(case.batch):
        for q, k, number in sets.pairs[example].T.tolist():
            pairs[number][example, :, q - case.offset] += own[example, :, q - case.offset, k]
            pair_sizes[number][example, q - case.offset] += n[example, q - case.offset, k]
    found = {
        "entropy": torch.special.entr(p).sum(-1),
        "collision": p.square().sum(-1),
        "max_prob": own.amax(-1),
        "distance": (own * (i - j)).sum(-1) / own.sum(-1).clamp_min(1e-300),
        "masses": torch.einsum("bhqk,bkc->cbhq", own, columns),
        "pair_masses": torch.stack(pairs),
        "n_allowed": torch.where(real, n.sum(-1) + (scores.sinks is not None), 0),
        "set_sizes": n @ columns,
        "pair_sizes": torch.stack(pair_sizes),
        **{str(t): (own > t).sum(-1) for t in wanted.thresholds},
        **{f"near {t}": ((own - t).abs() < 1e-5).any(-1) for t in wanted.thresholds},
    }
    value = value.masked_fill(~at[:, None, :, None], 0)
    return (own @ value).transpose(1, 2), found


def on_device(scores: Scores) -> Scores:
    return dataclasses.replace(scores, sinks=None if scores.sinks is None else scores.sinks.to(DEVICE))


def run(case: Case, **changes: Any) -> tuple[Tensor | None, RowStatistics]:
    query, key, value, mask, scores, sets, wanted = case.call()
    scores = on_device(scores)
    given = {"value": value.to(DEVICE), "wanted": wanted, "mask": mask, **changes}
    output, rows = triton_pass(query.to(DEVICE), key.to(DEVICE), given["value"], given["mask"], scores, sets.to(DEVICE), given["wanted"])
    for name in NAMES:
        if getattr(rows, name) is not None:
            setattr(rows, name, getattr(rows, name).cpu())
    rows.above = {t: n.cpu() for t, n in rows.above.items()}
    return None if output is None else output.cpu(), rows


def assert_close(name: str, found: Tensor, wanted: Tensor, tolerance: float, floor: float = 1e-3) -> None:
    """Check the relative error above the floor, and the absolute error against `tolerance * floor` below it."""
    assert found.shape == wanted.shape
    error = (found.double() - wanted.double()).abs() / wanted.double().abs().clamp_min(floor)
    assert bool((error <= tolerance).all()), f"{name}: worst {float(error.max()):.2e}"


def check(case: Case, tolerance: float) -> None:
    output, rows = run(case)
    exact_output, exact = expected(case)
    assert output is not None
    assert output.dtype == case.dtype
    assert_close("output", output, exact_output, {torch.bfloat16: 2e-2, torch.float16: 3e-3}.get(case.dtype, 10 * tolerance), floor=1)
    for name in NAMES[:6]:
        assert_close(name, getattr(rows, name), exact[name], tolerance)
    for name in NAMES[6:]:
        np.testing.assert_array_equal(getattr(rows, name), exact[name], err_msg=name)
    for threshold in case.thresholds:
        clear = ~exact[f"near {threshold}"]
        np.testing.assert_array_equal(rows.above[threshold][clear], exact[str(threshold)][clear])


def far_keys(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return query, key + 50


def one_hot(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return 20 * query, 20 * key


def all_equal(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return query, torch.full_like(key, 3.0)


def rising(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Make every score larger than all earlier ones, so the running maximum moves in every tile and earlier sums are rescaled."""
    return torch.ones_like(query), torch.linspace(-40, 40, key.shape[2])[:, None].expand_as(key).clone()


def flat_tail(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Give one key nearly all attention, so that each other tile adds less than the last bit of 1; together they are the entropy."""
    key = torch.zeros_like(key)
    key[:, :, 3, 0] = 20.0
    query = torch.zeros_like(query)
    query[..., 0] = 2.5
    return query, key


CHANGES = {"far_keys": far_keys, "one_hot": one_hot, "all_equal": all_equal, "rising": rising, "flat_tail": flat_tail}

CASES = {
    "plain": Case(batch=2, heads=4, kv_heads=2),
    "dim_64": Case(dim=64, value_dim=64, scaling=0.125),
    "dim_128": Case(length=40, dim=128, value_dim=128, scaling=128**-0.5),
    "odd_dims": Case(dim=24, value_dim=12),
    "one_query": Case(length=1, offset=40),
    "one_token": Case(length=1),
    "exact_blocks": Case(length=64, heads=1),
    "window": Case(window=20, length=75),
    "narrow_window": Case(window=1),
    "softcap": Case(softcap=2.0, scaling=1.0),
    "sinks": Case(sinks=(0.5, -30.0)),
    "strong_sinks": Case(sinks=(30.0, 3.0)),
    "left_padding": Case(batch=2, starts=(19, 0)),
    "right_padding": Case(batch=2, stops=(50, 31)),
    "both_sides": Case(batch=2, starts=(5, 33), stops=(37, 50), window=9, sinks=(0.0, 1.0)),
    "offset": Case(length=20, offset=37, starts=(11,), window=30),
    "everything": Case(batch=2, heads=4, kv_heads=2, window=25, softcap=3.0, sinks=(0.0, 1.0, -1.0, 2.0), starts=(3, 0), scaling=1.0),
    "no_columns": Case(columns=0),
    "columns": Case(columns=25, length=35),
    "no_thresholds": Case(thresholds=()),
    "bfloat16": Case(dtype=torch.bfloat16, heads=4, kv_heads=2, columns=17),
    "float16": Case(dtype=torch.float16, window=18),
    "far_keys": Case(change=far_keys),
    "far_keys_bfloat16": Case(change=far_keys, dtype=torch.bfloat16),
    "one_hot": Case(change=one_hot),
    "all_equal": Case(change=all_equal),
    "flat_tail": Case(change=flat_tail, scaling=0.4, length=40, offset=1500, heads=1),
    "rising": Case(change=rising, scaling=0.3),
    "rising_bfloat16": Case(change=rising, scaling=0.3, dtype=torch.bfloat16),
}


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_float64(name: str) -> None:
    check(CASES[name], tolerance(CASES[name]))


def tolerance(case: Case) -> float:
    """Return the tolerance: float32 holds scores of some hundreds to about 1e-5; half-precision masses come from two bfloat16 numbers."""
    far = case.change in (far_keys, one_hot, rising, flat_tail)
    return 3e-4 if far else 5e-5 if case.dtype != torch.float32 else 1e-5


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [None, "far_keys", "one_hot", "all_equal", "rising", "flat_tail"])
def test_longer_texts_agree_with_float64_within_a_thousandth(
    change: str | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tiles of a GPU; relative above 1e-3, absolute 1e-6 below."""
    monkeypatch.undo()
    case = Case(
        length=300, dim=64, value_dim=64, scaling=0.125, columns=25, dtype=dtype, change=None if change is None else CHANGES[change]
    )
    output, rows = run(case)
    _, exact = expected(case)
    assert output is not None
    for name in NAMES[:6]:
        assert_close(name, getattr(rows, name), exact[name], 1e-3)


@needs_triton
@pytest.mark.parametrize("name", ["everything", "bfloat16", "offset", "both_sides"])
def test_agrees_with_the_blocked_backend(name: str) -> None:
    case = CASES[name]
    query, key, value, mask, scores, sets, wanted = case.call()
    output, rows = run(case)
    other, blocked = blocked_pass(query, key, value, mask, scores, sets, wanted)
    assert output is not None
    assert other is not None
    assert_close("output", output, other, 2e-2 if case.dtype == torch.bfloat16 else 1e-5, floor=1)
    for name in NAMES:
        # blocked distances are relative to a block of rows; half-precision masses come from two bfloat16 numbers
        allowed = 5e-5 if case.dtype != torch.float32 else 5e-6 if name == "distance" else 1e-6
        assert_close(name, getattr(rows, name), getattr(blocked, name), allowed, floor=1)
    for threshold in case.thresholds:
        np.testing.assert_array_equal(rows.above[threshold], blocked.above[threshold])


@needs_triton
def test_the_second_sweep_finds_keys_of_every_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use more tiles than groups of tiles, with one strong key in some of them."""
    monkeypatch.setattr(module, "tile_sizes", lambda dtype, dim: TileSizes(32, 16, 4))
    strong = [0, 17, 255, 300, 511, 512, 540]

    def change(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        key[:, :, strong] = 4.0
        return torch.ones_like(query), 0.3 * key

    case = Case(heads=1, length=30, offset=530, change=change, columns=0, thresholds=(0.1,))
    check(case, 1e-5)
    _, rows = run(case)
    assert rows.above[0.1][0, 0, -1] == len(strong)


@needs_triton
def test_uniform_and_one_hot_rows_are_exact() -> None:
    _, rows = run(CASES["all_equal"])
    n = torch.arange(1, 51).double().expand(1, 2, 50)
    assert_close("entropy", rows.entropy, n.log(), 1e-6)
    assert_close("collision", rows.collision, 1 / n, 1e-6)
    np.testing.assert_array_equal(rows.above[0.1][..., :9], n[..., :9])
    assert float(rows.above[0.1][..., 10:].max()) == 0
    _, rows = run(dataclasses.replace(CASES["one_hot"], window=1))
    assert float(rows.entropy.abs().max()) == 0
    assert float((rows.collision - 1).abs().max()) == 0


@needs_triton
def test_values_and_optional_statistics_can_be_left_out() -> None:
    case = CASES["plain"]
    output, rows = run(case, value=None, wanted=Wanted(max_prob=False))
    assert output is None
    assert rows.max_prob is None
    assert rows.above == {}
    assert_close("entropy", rows.entropy, expected(case)[1]["entropy"], 1e-5)


@needs_triton
def test_strided_inputs_and_a_mask_that_layers_share() -> None:
    case = CASES["plain"]
    query, key, value, mask, scores, sets, wanted = case.call()
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2).to(DEVICE) for t in (query, key, value)]
    sets = sets.to(DEVICE)
    _, first = triton_pass(turned[0], turned[1], turned[2], mask, scores, sets, wanted)
    kept = mask.prepared
    _, again = triton_pass(turned[0], turned[1].flip(-1).flip(-1), turned[2], mask, scores, sets, wanted)
    assert kept is mask.prepared
    torch.testing.assert_close(first.entropy, again.entropy, rtol=0, atol=0)
    assert_close("entropy", first.entropy.cpu(), expected(case)[1]["entropy"], 1e-5)
    assert dataclasses.replace(mask, q_length=3).prepared is None


@needs_triton
@pytest.mark.parametrize("window", [None, 9])
def test_any_number_of_pairs_per_query(window: int | None) -> None:
    """Queries have no pair, one or dozens; keys outside the window or in padding add nothing; sets share keys."""
    case = Case(batch=2, heads=4, kv_heads=2, window=window, starts=(0, 7), stops=(50, 43), softcap=6.0, sinks=(0.5, -1.0, 3.0, 0.0))
    query, key, value, mask, scores, sets, wanted = case.call()
    key, value = key.clamp(-9, 9), value.clamp(-9, 9)
    generator = torch.Generator().manual_seed(3)
    pairs = []
    for _ in range(2):
        chosen = (torch.rand(3, 50, 50, generator=generator) < torch.rand(1, 50, 1, generator=generator) ** 2).tril()
        chosen[:, 11] = False
        number, of_query, of_key = chosen.nonzero(as_tuple=True)
        both = torch.stack([of_query, of_key, number])
        pairs.append(both[:, both[0].argsort(stable=True)])
    sets = dataclasses.replace(sets, pairs=tuple(pairs), n_pair_sets=3, _blocks={}, _padding={})
    _, expected_rows = blocked_pass(query, key, value, mask, scores, sets, wanted)
    given = query.to(DEVICE), key.to(DEVICE), value.to(DEVICE)
    _, rows = triton_pass(*given, mask, on_device(scores), sets.to(DEVICE), wanted)
    assert_close("pair masses", rows.pair_masses.cpu(), expected_rows.pair_masses, 1e-5)
    np.testing.assert_array_equal(rows.pair_sizes.cpu(), expected_rows.pair_sizes)
    assert float(expected_rows.pair_sizes.max()) > 5
    assert float(expected_rows.pair_masses.max()) > 0.1


@needs_triton
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_attention_that_is_not_finite_is_rejected(bad: float) -> None:
    def change(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        query[1, 3, 17, 0] = bad
        return query, key

    case = dataclasses.replace(CASES["plain"], change=change)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match="head 3, example 1 of the batch, query 17"):
        run(case)


def obstacles(case: Case, **changes: Any) -> str:
    """Return why the kernel cannot take a call, with some arguments changed."""
    named = dict(zip(("query", "key", "value", "mask", "scores", "sets", "wanted"), case.call(), strict=True))
    for name in ("query", "key", "value"):
        named[name] = named[name].to(DEVICE)  # type: ignore[union-attr]
    return "; ".join(triton_obstacles(**{**named, **changes}))  # type: ignore[arg-type]


@needs_triton
def test_supported_masks_and_scores_have_no_obstacle() -> None:
    for window in (None, 7):
        assert not obstacles(Case(window=window))
        assert not obstacles(Case(window=window, softcap=3.0, sinks=(0.0, 0.0), starts=(4,), stops=(40,)))
    assert "position bias" in obstacles(Case(), scores=Scores(1.0, bias=torch.zeros(1, 1, 50, 50)))
    assert "positive scaling" in obstacles(Case(), scores=Scores(-1.0))
    padding = torch.ones(1, 50, dtype=torch.bool)
    padding[:, 20] = False
    assert "padding at the ends" in obstacles(Case(), mask=Case().mask(padding))
    assert "padding at the ends" in obstacles(Case(), mask=Case().mask(torch.zeros(1, 50, dtype=torch.bool)))


@needs_triton
@pytest.mark.parametrize(
    ("case", "changes", "reason"),
    [
        (
            Case(batch=2),
            {"mask": lazy_mask(2, 50, 50, mask_function=chunked_causal_mask_function(8, torch.zeros(2, dtype=torch.long)))},
            "a causal or sliding-window mask",
        ),
        (Case(), {"wanted": Wanted(on_block=lambda *_: None)}, "does not keep the probabilities"),
        (Case(), {"wanted": Wanted(thresholds=(0.0,))}, r"thresholds are \(0.0,\)"),
        (Case(), {"wanted": Wanted(thresholds=(0.1, 1.0))}, r"thresholds are \(0.1, 1.0\)"),
        (Case(dtype=torch.float64), {}, "in one of bfloat16, float16 and float32, got torch.float64"),
        (Case(columns=65), {}, "head sizes up to 256 and 64 columns of token sets, got 16 and 65"),
        (Case(dim=264), {}, "head sizes up to 256 and 64 columns of token sets, got 264 and 3"),
        (Case(value_dim=264), {}, "head sizes up to 256 and 64 columns of token sets, got 264 and 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_with_an_obstacle_are_rejected(case: Case, changes: dict[str, Any], reason: str) -> None:
    assert re.search(reason, obstacles(case, **changes))
    with pytest.raises(ValueError, match=f"{reason}.*. Use the blocked backend"):
        run(case, **changes)


@needs_triton
def test_every_obstacle_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BATCH_HEADS", 1)
    found = obstacles(Case(columns=65), scores=Scores(-1.0), wanted=Wanted(thresholds=(2.0,)))
    assert all(part in found for part in ("positive scaling", "thresholds are (2.0,)", "64 columns", "at most 1 heads of all texts"))
    can, why = available(torch.device("meta"))
    assert not can
    assert "meta" in why


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from interp.attention.triton_kernel import heads_forward as kernel

queries, keys, warps, stages, *capabilities = (int(word) for word in sys.argv[1:])
fixed = dict(n_batch=1, DIM=64, VALUE_DIM=64, COLUMNS=25, THRESHOLDS=1, BLOCK_DIM=64, BLOCK_VALUE=64, BLOCK_COLUMNS=32,
    BLOCK_QUERIES=queries, BLOCK_KEYS=keys, BLOCK_THRESHOLDS=2, PAIR_SETS=4, BLOCK_PAIR_SETS=4,
    CAPPED=True, WINDOWED=True, SINK=True, SPLIT=True, EMULATED=False)
half = dict.fromkeys(("query", "key", "value", "columns", "output"), "*bf16")
single = dict.fromkeys(("sinks", "thresholds", "statistics", "masses", "above", "pair_masses"), "*fp32")
whole = dict.fromkeys(("bounds", "pair_starts", "pair_keys", "pair_sets"), "*i32")
types = {**half, **single, **whole, **dict.fromkeys(("factor", "cap_scale", "cap", "least"), "fp32")}
signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in kernel.arg_names}
aligned = [i for i, name in enumerate(kernel.arg_names) if types.get(name, "").startswith("*") or "_row" in name]
attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
constants = {(kernel.arg_names.index(name),): given for name, given in fixed.items()}
for capability in capabilities:
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages})
    assert made.asm["cubin"]
    print(made.metadata.shared, made.asm["ptx"].count("wgmma.mma_async"), made.asm["ptx"].count("mma.sync"))
"""


@pytest.mark.skipif(sys.platform != "linux" or not CAN, reason=WHY or "Triton compiles for CUDA on linux")
def test_the_kernel_compiles_for_compute_capability_8_and_9() -> None:
    """Triton's assembler makes machine code that uses the tensor cores and fits the shared memory of every such card."""
    blocks = module.HALF_TILES[64]
    numbers = (blocks.queries, blocks.keys, blocks.warps, blocks.stages, 80, 90)
    command = [sys.executable, "-c", COMPILE, *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "0"}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ampere, hopper = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    assert ampere[0] <= 99 * 1024
    assert hopper[0] <= 227 * 1024
    assert ampere[2] > 0
    assert hopper[1] > 0
