"""Attention masks that are evaluated block by block instead of as one [query, key] matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask, sliding_window_causal_mask_function

CACHED_ELEMENTS = 4 << 20
"""Maximum number of elements (five bytes each) in all mask blocks that are cached for the next layer."""

LOWEST = torch.finfo(torch.float32).min
"""Score of a masked key. It is finite, so that a query without any key gets finite numbers, which are then discarded."""


@dataclass(frozen=True)
class MaskBlock:
    """Which keys the queries of one block may attend to.

    Keys in [first, open_until) are allowed for every query, keys in [open_until, last) for those that `allowed` lists, other keys for none.

    Attributes:
        first: first key that any query may attend to.
        open_until: one past the last of the keys that are allowed for every query.
        last: one past the last key that any query may attend to.
        allowed: whether a query may attend to a key, bool [batch or 1, query, last - open_until].
        counts: number of keys that each query may attend to, [batch or 1, query].
        closed: whether some query may attend to no key.
    """

    first: int
    open_until: int
    last: int
    allowed: Tensor
    counts: Tensor
    closed: bool

    @functools.cached_property
    def ceiling(self) -> Tensor:
        """Infinity where `allowed` is True, `LOWEST` elsewhere.

        The minimum of this and a score is the masked score, bit for bit, at a sixth of the cost of `masked_fill` on a CPU.
        """
        return torch.full(self.allowed.shape, torch.inf, device=self.allowed.device).masked_fill_(~self.allowed, LOWEST)

    def to(self, device: torch.device) -> MaskBlock:
        """Return the same block on another device."""
        if self.allowed.device == device:
            return self
        return MaskBlock(self.first, self.open_until, self.last, self.allowed.to(device), self.counts.to(device), self.closed)

    def sees(self, example: Tensor, flat: Tensor, span: int) -> Tensor:
        """Return 1.0 for allowed query-key pairs and 0.0 for others.

        Args:
            example: example of each pair, counted from the block's first.
            flat: index of each pair into the flattened [query, last - first].
            span: last - first.
        """
        query, key = flat // span, flat % span - (self.open_until - self.first)
        if self.allowed.shape[0] == 1:
            example = torch.zeros_like(example)
        seen = torch.ones(flat.shape[0], device=flat.device)
        partly = key >= 0
        seen[partly] = self.allowed[example[partly], query[partly], key[partly]].float()
        return seen


@dataclass
class LazyMask:
    """A layer's mask as transformers describes it, before anything of size query x key exists.

    It takes the place of the mask tensor between the model's mask function and its attention function. Every pattern that transformers can
    express (causal, sliding window, chunked, packed, padded) is supported, at the memory of one block.

    Attributes:
        mask_function: transformers' rule `(batch, head, query, key) -> bool` over absolute positions.
        padding: True for real tokens, [batch, key]; None if nothing is padded.
        plain_causal: the rule is causality alone, so the mask of a block is a triangle.
        window: width w of a sliding window if the rule is exactly `query - w < key <= query`; None for any other rule.
        counted: key sets, `n_allowed`, `set_sizes` and `pair_sizes`, which the blocked backend stores for the next layer with this mask.
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
    prepared: object = field(default=None, init=False, repr=False, compare=False)  # what the Triton backend stores for the next layer

    def to(self, *args: object, **kwargs: object) -> LazyMask:
        """Return the mask itself: accelerate moves arguments between devices, but blocks are made on the device of their layer."""
        return self

    @property
    def real_keys(self) -> tuple[tuple[int, int], ...]:
        """First and one past the last real key of each example, counted from the first key held; (0, 0) if real keys are not contiguous."""
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
        """Return the mask of the queries [q0, q1) of some examples over the keys [start, stop).

        Args:
            examples: which examples of the batch.
            q0: first query, counted from the first query of this forward.
            q1: one past the last query.
            start: first key, counted from the first key held; earlier keys are padding in all these examples.
            stop: one past the last key; later keys are padding in all these examples.
            device: device of the layer.
            padded: whether keys in [start, stop) may be padding in some of these examples.
        """
        # a triangle is the same for every example
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
        if self.use_vmap:  # a custom mask function need not work on index tensors, so transformers maps it with vmap
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
        """Return a mask as a block: drop keys that no query may attend to, and turn leading keys that all may attend to into a range."""
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
    """Return the width of transformers' own causal sliding window; None for every other rule.

    transformers uses one name for the width of windows and of chunks (`local_size`), so the rule itself is inspected: it must be the code
    that `sliding_window_causal_mask_function` makes, around the same two rules, and evaluate to the edge of the window.
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
    """Return a mask that holds no tensor: a function for `transformers.AttentionMaskInterface`, with the contract of `sdpa_mask`."""
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
