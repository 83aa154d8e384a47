"""Which keys a query may attend to, asked for block by block instead of as one [query, key] matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask, sliding_window_causal_mask_function

CACHED_ELEMENTS = 4 << 20
"""Mask blocks are kept for the next layer while they have at most this many elements (five bytes each) in all."""


LOWEST = torch.finfo(torch.float32).min
"""Score of a key that may not be seen: finite, so that a query without any key gets numbers, which are then thrown away."""


@dataclass(frozen=True)
class MaskBlock:
    """The keys of one block of queries.

    Keys in [first, open_until) are allowed for every query of the block; keys in [open_until, last) as `allowed` says, which is
    [batch or 1, query, last - open_until], True where the query may attend; all other keys are allowed for none.
    `counts` says how many keys each query may see, [batch or 1, query]; `closed` whether some query sees none.
    """

    first: int
    open_until: int
    last: int
    allowed: Tensor
    counts: Tensor
    closed: bool

    @functools.cached_property
    def ceiling(self) -> Tensor:
        """Infinite where `allowed`, the lowest float32 elsewhere, of its shape.

        The smaller of it and a score is the masked score, to the bit, at a sixth of what a fill by a bool mask costs on a CPU.
        """
        return torch.full(self.allowed.shape, torch.inf, device=self.allowed.device).masked_fill_(~self.allowed, LOWEST)

    def to(self, device: torch.device) -> MaskBlock:
        """The same block on another device."""
        if self.allowed.device == device:
            return self
        return MaskBlock(self.first, self.open_until, self.last, self.allowed.to(device), self.counts.to(device), self.closed)

    def sees(self, example: Tensor, flat: Tensor, span: int) -> Tensor:
        """1 where a chosen entry (its example of the block, its flat index into [query, last - first]) is allowed, 0 elsewhere."""
        query, key = flat // span, flat % span - (self.open_until - self.first)
        if self.allowed.shape[0] == 1:
            example = torch.zeros_like(example)
        seen = torch.ones(flat.shape[0], device=flat.device)
        partly = key >= 0
        seen[partly] = self.allowed[example[partly], query[partly], key[partly]].float()
        return seen


@dataclass
class LazyMask:
    """What `transformers` says of a layer's mask, before anything of size query x key is made.

    An object of this class takes the place of the mask tensor between the model's mask function and its attention function, so that
    every pattern that transformers can express (causal, sliding window, chunked, packed, padded) is honoured at the cost of one block.

    Attributes:
        mask_function: transformers' rule `(batch, head, query, key) -> bool` over absolute positions.
        padding: [batch, key] True where a token is real; None where nothing is padded.
        plain_causal: the rule is causality alone, so a block's mask is a triangle.
        window: the rule is causality and `key > query - window` alone; None where it is any other rule.
        counted: token sets and how many of their keys each query may see, kept by the pass for the next layer with this mask.
    """

    batch_size: int
    q_length: int
    kv_length: int
    q_offset: int
    kv_offset: int
    mask_function: Callable[..., object]
    padding: Tensor | None
    plain_causal: bool
    use_vmap: bool
    device: torch.device
    window: int | None = None
    counted: tuple[object, Tensor, Tensor, Tensor] | None = field(default=None, repr=False)
    _blocks: dict[tuple[int, int, int, int, int, int], MaskBlock] = field(default_factory=dict, repr=False)
    _cached: int = field(default=0, repr=False)
    _real_keys: tuple[tuple[int, int], ...] | None = field(default=None, init=False, repr=False, compare=False)
    prepared: object = field(default=None, init=False, repr=False, compare=False)  # kept by the Triton pass for the next layer

    def to(self, *args: object, **kwargs: object) -> LazyMask:
        """Stay as it is: blocks are made on the device of the layer that asks (accelerate moves arguments between devices)."""
        return self

    @property
    def real_keys(self) -> tuple[tuple[int, int], ...]:
        """First and one past the last real key of each example, counted from the first key held; (0, 0) where padding has holes."""
        if self._real_keys is None:
            if self.padding is None:
                self._real_keys = ((0, self.kv_length),) * self.batch_size
            else:
                real = self.padding[:, self.kv_offset : self.kv_offset + self.kv_length].cpu()
                edges = ((int(row.int().argmax()), int(row.sum())) for row in real)
                self._real_keys = tuple(
                    (first, first + n) if bool(row[first : first + n].all()) else (0, 0)
                    for (first, n), row in zip(edges, real, strict=True)
                )
        return self._real_keys

    def block(self, examples: slice, q0: int, q1: int, start: int, stop: int, device: torch.device, *, padded: bool) -> MaskBlock:
        """The mask of queries [q0, q1) of some examples over keys in [start, stop).

        Args:
            examples: which rows of the batch.
            q0: first query, counted from the first query of this forward.
            q1: one past the last query.
            start: first key worth a look (earlier ones are padding in all the examples), counted from the first key held.
            stop: one past the last key worth a look.
            device: where the layer is.
            padded: keys in [start, stop) may be padding in some of the examples.
        """
        # the same for every example
        triangle = self.plain_causal and not padded and all(a <= start and stop <= b for a, b in self.real_keys[examples])
        name = (0 if triangle else examples.start, 0 if triangle else examples.stop, q0, q1, start, stop)
        found = self._blocks.get(name)
        if found is None:
            found = self._triangle(q0, q1, start, stop) if triangle else self._trim(self._rows(examples, q0, q1, start, stop), start)
            if self._cached + found.allowed.numel() <= CACHED_ELEMENTS:
                self._cached += found.allowed.numel()
                self._blocks[name] = found
        return found.to(device)

    def _triangle(self, q0: int, q1: int, start: int, stop: int) -> MaskBlock:
        shift = self.q_offset - self.kv_offset
        last = min(stop, q1 + shift)
        open_until = min(max(start, q0 + shift), last)
        rows = torch.arange(q0 + shift, q1 + shift, device=self.device)[:, None]
        allowed = rows >= torch.arange(open_until, last, device=self.device)[None]
        counts = torch.arange(q0 + shift, q1 + shift, device=self.device)[None] - (start - 1)
        return MaskBlock(start, open_until, last, allowed[None], counts, closed=q0 + shift < start)

    def _rows(self, examples: slice, q0: int, q1: int, start: int, stop: int) -> Tensor:
        if self.use_vmap:  # a user's own mask function need not be index-based: transformers then maps it over whole tensors
            rows = sdpa_mask(
                batch_size=self.batch_size,
                q_length=q1 - q0,
                kv_length=stop - start,
                q_offset=self.q_offset + q0,
                kv_offset=self.kv_offset + start,
                mask_function=self.mask_function,
                attention_mask=self.padding,
                allow_is_causal_skip=False,
                use_vmap=True,
                device=self.device,
            )
            assert rows is not None
            return rows[examples, 0]
        batch = torch.arange(examples.start, examples.stop, device=self.device)[:, None, None, None]
        head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=self.device)
        query = torch.arange(q0, q1, device=self.device)[None, None, :, None] + self.q_offset
        key = torch.arange(start, stop, device=self.device)[None, None, None, :] + self.kv_offset
        rows = self.mask_function(batch, head, query, key)
        assert isinstance(rows, Tensor)
        if self.padding is not None:
            rows = rows & self.padding[batch, key]
        return rows.expand(-1, -1, q1 - q0, stop - start)[:, 0]

    @staticmethod
    def _trim(rows: Tensor, start: int) -> MaskBlock:
        """Cut the keys that no query of the block may see, and those in front that all may see."""
        counts = rows.sum(-1)
        closed = bool((counts == 0).any())
        some = rows.flatten(0, 1).any(0).nonzero()
        if some.numel() == 0:
            return MaskBlock(start, start, start, rows[:, :, :0], counts, closed)
        first, last = int(some[0]), int(some[-1]) + 1
        partly = (~rows[:, :, first:last].flatten(0, 1).all(0)).nonzero()
        open_until = last if partly.numel() == 0 else first + int(partly[0])
        allowed = rows[:, :, open_until:last].contiguous()
        return MaskBlock(start + first, start + open_until, start + last, allowed, counts, closed)


_WINDOW_RULE = sliding_window_causal_mask_function(1)


def _nonlocals(rule: object) -> dict[str, object]:
    code, cells = getattr(rule, "__code__", None), getattr(rule, "__closure__", None)
    return {} if code is None else {name: cell.cell_contents for name, cell in zip(code.co_freevars, cells or (), strict=True)}


def _window_of(rule: Callable[..., object]) -> int | None:
    """Width of transformers' own causal sliding window; None for every other rule.

    transformers names the width of windows and of chunks alike (`local_size`), so the rule itself is looked at: it must be the code that
    `sliding_window_causal_mask_function` makes, around the same two rules, and it must give the window's edge.
    """
    if getattr(rule, "__code__", None) is not _WINDOW_RULE.__code__:
        return None
    parts, known = (_nonlocals(r).get("mask_functions") for r in (rule, _WINDOW_RULE))
    if not isinstance(parts, tuple) or not isinstance(known, tuple) or len(parts) != len(known):
        return None
    if [getattr(p, "__code__", None) for p in parts] != [p.__code__ for p in known]:
        return None
    widths = [w for p in parts for w in _nonlocals(p).values()]
    if len(widths) != 1 or not isinstance(widths[0], int) or widths[0] < 1:
        return None
    window = widths[0]
    zero, query = torch.zeros(1, dtype=torch.long, device="cpu"), torch.tensor([window + 3], device="cpu")
    key = query + torch.tensor([-window - 1, -window, -window + 1, 0, 1], device="cpu")
    seen = rule(zero, zero, query, key)
    expected = (key > query - window) & (key <= query)
    return window if isinstance(seen, Tensor) and torch.equal(seen.cpu(), expected) else None


def lazy_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., object] = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: object,
) -> LazyMask:
    """A mask function for `transformers.AttentionMaskInterface` (same contract as its `sdpa_mask`) that makes no tensor."""
    padding = attention_mask
    if padding is not None and bool(padding.all()):
        padding = None
    return LazyMask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=int(q_offset),
        kv_offset=int(kv_offset),
        mask_function=mask_function,
        padding=padding,
        plain_causal=mask_function is causal_mask_function,
        use_vmap=use_vmap,
        device=torch.device(device),
        window=_window_of(mask_function),
    )
