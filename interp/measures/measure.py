"""TODO_DOC interp/measures/measure.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from interp.attention.statistics import STATISTICS, KeySets, RowStatistics
from interp.measures.token_sets import (
    TokenPairs,
    TokenSet,
)
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo
from interp.tokens import Tokens


@dataclass(frozen=True)
class Block:
    """Probabilities of some queries, for measures that ask for "probabilities".

    Attributes:
        probabilities: [batch, head, query, key].
        query_position: place of each query in its text, counted from 0, [batch, query].
        key_position: place of each key in its text, [batch, key]; negative for padding.
    """

    probabilities: Tensor
    query_position: Tensor
    key_position: Tensor


def _named(name: str, statistic: Tensor | None) -> Tensor:
    if statistic is None:
        raise InputError(f"the measure reads {name}, which its `statistics` do not name: statistics=frozenset({{{name!r}}})")
    return statistic


@dataclass(frozen=True)
class Rows:
    """What a measure computes from: statistics of every query of one layer. Tensors are [batch, head, query] or broadcast to it."""

    statistics: RowStatistics
    set_columns: Mapping[str, slice]
    pair_numbers: Mapping[str, int]
    positions: Tensor
    lengths: Tensor
    blocks: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def n_allowed(self) -> Tensor:
        """n_i, an attention sink counted, [batch, 1, query]."""
        return self.statistics.n_allowed[:, None]

    @property
    def position(self) -> Tensor:
        """i, the query's place in its text counted from 0, [batch, 1, query]."""
        return self.positions[:, None]

    @property
    def length(self) -> Tensor:
        """T, the tokens of the text, [batch, 1, 1]."""
        return self.lengths[:, None, None]

    @property
    def entropy(self) -> Tensor:
        """- sum_j p_ij ln p_ij, nats."""
        return self.statistics.entropy

    @property
    def collision(self) -> Tensor:
        """sum_j p_ij^2."""
        return self.statistics.collision

    @property
    def max_prob(self) -> Tensor:
        """max_j p_ij."""
        return _named("max_prob", self.statistics.max_prob)

    @property
    def distance(self) -> Tensor:
        """sum_j p_ij (i - j), tokens (over keys alone where there is a sink)."""
        return _named("distance", self.statistics.distance)

    def above(self, threshold: float) -> Tensor:
        """Number of keys with p_ij > threshold."""
        return self.statistics.above[threshold]

    def mass(self, name: str) -> Tensor:
        """sum_{j in set} p_ij; [set, batch, head, query] where the set is a family."""
        columns = self.set_columns[name]
        masses = self.statistics.masses[columns]
        return masses[0] if columns.stop - columns.start == 1 else masses

    def set_size(self, name: str) -> Tensor:
        """Members of a set among A_i, [batch, 1, query]."""
        return self.statistics.set_sizes[..., self.set_columns[name].start][:, None]

    def pair_mass(self, name: str) -> Tensor:
        """Sum of p_ij over the keys that are paired with i; NaN where i has none in A_i."""
        number = self.pair_numbers[name]
        size = self.statistics.pair_sizes[number][:, None]
        return torch.where(size > 0, self.statistics.pair_masses[number], torch.nan)


@dataclass(frozen=True)
class Measure:
    """One measure.

    Attributes:
        info: name, title, unit, scale and formula.
        compute: `Rows` -> [batch, head, query], NaN where undefined. With "probabilities" in `statistics` it gets a `Block` instead.
            With `combine`, it may return [part, batch, head, query].
        statistics: which of "entropy", "collision", "distance", "max_prob", "probabilities" it reads.
        thresholds: counts that it reads with `Rows.above`.
        sets: token sets that it reads with `Rows.mass`, by name.
        pairs: pairs that it reads with `Rows.pair_mass`, by name.
        combine: per example, from the means of the parts over a region's queries, [part, ...], to the value, [...].
        parts: number of parts.
    """

    info: MeasureInfo
    compute: Callable[..., Tensor]
    statistics: frozenset[str] = frozenset()
    thresholds: tuple[float, ...] = ()
    sets: Mapping[str, TokenSet] = field(default_factory=dict)
    pairs: Mapping[str, TokenPairs] = field(default_factory=dict)
    combine: Callable[[np.ndarray], np.ndarray] | None = None
    parts: int = 1

    def __post_init__(self) -> None:
        unknown = set(self.statistics) - STATISTICS
        if unknown:
            raise InputError(f"measure {self.info.name} asks for statistics {sorted(unknown)}; known: {', '.join(sorted(STATISTICS))}")


def key_sets(tokens: Tokens, measures: Sequence[Measure], seed: int) -> tuple[KeySets, dict[str, slice], dict[str, int]]:
    """Evaluate the measures' token sets and pairs on a batch.

    Returns:
        The sets over the padded batch, the columns of each token set, and the number of each set of pairs.
    """
    sets: dict[str, TokenSet] = {name: of for measure in measures for name, of in measure.sets.items()}
    pairs: dict[str, TokenPairs] = {name: of for measure in measures for name, of in measure.pairs.items()}
    columns: dict[str, slice] = {}
    at, per_text = 0, [[] for _ in tokens.texts]
    for name, of in sets.items():
        width = 0
        for text, kept in zip(tokens.texts, per_text, strict=True):
            weights = np.atleast_2d(np.asarray(of(text, seed), np.float32))
            if weights.shape[-1] != len(text):
                raise InputError(f"token set {name} gives {weights.shape[-1]} weights for {len(text)} tokens")
            width = weights.shape[0]
            kept.append(weights)
        columns[name] = slice(at, at + width)
        at += width
    rows = [np.concatenate(kept) if kept else np.zeros((0, len(t)), np.float32) for kept, t in zip(per_text, tokens.texts, strict=True)]
    starts = tokens.starts
    entries = []
    for text, start in zip(tokens.texts, starts, strict=True):
        found = [np.zeros((3, 0), np.int32)]
        for number, of in enumerate(pairs.values()):
            query, key = of(text)
            seen = key <= query
            found.append(np.stack([query[seen] + start, key[seen] + start, np.full(int(seen.sum()), number)]).astype(np.int32))
        joined = np.concatenate(found, 1)
        del found  # repetitive texts have millions
        entries.append(torch.from_numpy(np.ascontiguousarray(joined[:, np.argsort(joined[0], kind="stable")])))
    padded = torch.from_numpy(np.ascontiguousarray(tokens.pad(rows, 0).transpose(0, 2, 1)))
    stops = tuple(start + len(text) for start, text in zip(starts, tokens.texts, strict=True))
    numbers = {name: number for number, name in enumerate(pairs)}
    return KeySets(padded, tuple(entries), len(pairs), starts, stops), columns, numbers
