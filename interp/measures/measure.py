# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What a measure is (`Measure`) and what it computes from (`Rows`, or `ProbabilityBlock` for the probabilities themselves)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from interp.attention.statistics import STATISTICS, KeySets, RowStatistics
from interp.measures.token_sets import TokenPairs, TokenSet
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo
from interp.tokens import AnnotatedText, Tokens


@dataclass(frozen=True)
class ProbabilityBlock:
    """Attention probabilities of some queries, for measures that ask for "probabilities".

    Attributes:
        probabilities: [batch, head, query, key].
        query_position: position of each query in its text, counted from 0, [batch, query].
        key_position: position of each key in its text, [batch, key]; negative for padding.
    """

    probabilities: Tensor
    query_position: Tensor
    key_position: Tensor


def _requested(name: str, statistic: Tensor | None) -> Tensor:
    if statistic is None:
        raise InputError(
            f"the measure reads {name}, which its `statistics` do not name; declare it with statistics=frozenset({{{name!r}}})"
        )
    return statistic


@dataclass(frozen=True)
class Rows:
    """Statistics of every query of one layer, from which measures are computed. Tensors are [batch, head, query] or broadcast to it."""

    statistics: RowStatistics
    set_columns: Mapping[str, slice]
    pair_numbers: Mapping[str, int]
    positions: Tensor
    lengths: Tensor

    @property
    def n_allowed(self) -> Tensor:
        """Number of keys n_i that the query may attend to, including an attention sink, [batch, 1, query]."""
        return self.statistics.n_allowed[:, None]

    @property
    def position(self) -> Tensor:
        """Position i of the query in its text, counted from 0, [batch, 1, query]."""
        return self.positions[:, None]

    @property
    def length(self) -> Tensor:
        """Number of tokens T of the text, [batch, 1, 1]."""
        return self.lengths[:, None, None]

    @property
    def entropy(self) -> Tensor:
        """Entropy -sum_j p_ij ln p_ij, in nats."""
        return self.statistics.entropy

    @property
    def collision(self) -> Tensor:
        """Collision probability sum_j p_ij^2."""
        return self.statistics.collision

    @property
    def max_prob(self) -> Tensor:
        """Largest probability max_j p_ij."""
        return _requested("max_prob", self.statistics.max_prob)

    @property
    def distance(self) -> Tensor:
        """Mean distance sum_j p_ij (i - j), in tokens; with an attention sink, over the distribution of the keys alone."""
        return _requested("distance", self.statistics.distance)

    def above(self, threshold: float) -> Tensor:
        """Return the number of keys with p_ij > threshold."""
        return self.statistics.above[threshold]

    def mass(self, name: str) -> Tensor:
        """Return sum_{j in set} p_ij; [set, batch, head, query] if the token set has several rows."""
        columns = self.set_columns[name]
        masses = self.statistics.masses[columns]
        return masses[0] if columns.stop - columns.start == 1 else masses

    def set_size(self, name: str) -> Tensor:
        """Return how many of the allowed keys A_i are in a token set, [batch, 1, query]."""
        return self.statistics.set_sizes[..., self.set_columns[name].start][:, None]

    def pair_mass(self, name: str) -> Tensor:
        """Return the sum of p_ij over the keys that are paired with i; NaN if none of them is allowed."""
        number = self.pair_numbers[name]
        size = self.statistics.pair_sizes[number][:, None]
        return torch.where(size > 0, self.statistics.pair_masses[number], torch.nan)


@dataclass(frozen=True)
class Measure:
    """One measure of an attention head.

    Attributes:
        info: name, title, unit, scale and formula.
        compute: maps `Rows` to [batch, head, query], NaN where undefined. If `statistics` has "probabilities", it gets a
            `ProbabilityBlock` instead. With `combine`, it may return [part, batch, head, query].
        statistics: which of "entropy", "collision", "distance", "max_prob" and "probabilities" it reads.
        thresholds: thresholds that it passes to `Rows.above`.
        sets: token sets that it reads with `Rows.mass`, by name.
        pairs: query-key pairs that it reads with `Rows.pair_mass`, by name.
        combine: maps one example's mean of every part over the queries of a region, [part, ...], to the value, [...].
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
            raise InputError(
                f"measure {self.info.name}: statistics {sorted(unknown)} are unknown; allowed: {', '.join(sorted(STATISTICS))}"
            )


def by_name(*measures: Measure) -> dict[str, Measure]:
    """Return measures in a dict under their names."""
    return {measure.info.name: measure for measure in measures}


def key_sets(tokens: Tokens, measures: Sequence[Measure], seed: int) -> tuple[KeySets, dict[str, slice], dict[str, int]]:
    """Evaluate the measures' token sets and pairs on a batch.

    Returns:
        The sets over the padded batch, the columns of each token set, and the number of each set of pairs.
    """
    sets: dict[str, TokenSet] = {name: of for measure in measures for name, of in measure.sets.items()}
    pairs: dict[str, TokenPairs] = {name: of for measure in measures for name, of in measure.pairs.items()}
    weights, columns = _set_weights(tokens.texts, sets, seed)
    padded = torch.from_numpy(np.ascontiguousarray(tokens.pad(weights, 0).transpose(0, 2, 1)))
    starts = tokens.starts
    entries = tuple(_pair_entries(text, start, list(pairs.values())) for text, start in zip(tokens.texts, starts, strict=True))
    stops = tuple(start + len(text) for start, text in zip(starts, tokens.texts, strict=True))
    numbers = {name: number for number, name in enumerate(pairs)}
    return KeySets(padded, entries, len(pairs), starts, stops), columns, numbers


def _set_weights(texts: Sequence[AnnotatedText], sets: Mapping[str, TokenSet], seed: int) -> tuple[list[np.ndarray], dict[str, slice]]:
    """Return the weights of each text, [row, token], and which rows belong to each token set."""
    columns: dict[str, slice] = {}
    per_text: list[list[np.ndarray]] = [[np.zeros((0, len(text)), np.float32)] for text in texts]
    first = 0
    for name, of in sets.items():
        width = 0
        for text, rows in zip(texts, per_text, strict=True):
            weights = np.atleast_2d(np.asarray(of(text, seed), np.float32))
            if weights.shape[-1] != len(text):
                raise InputError(f"token set {name} returns {weights.shape[-1]} weights for {len(text)} tokens; one per token is needed")
            width = weights.shape[0]
            rows.append(weights)
        columns[name] = slice(first, first + width)
        first += width
    return [np.concatenate(rows) for rows in per_text], columns


def _pair_entries(text: AnnotatedText, start: int, pairs: Sequence[TokenPairs]) -> Tensor:
    """Return query, key and set number of each pair whose key is not later than its query, [3, pair] int32, sorted by query.

    Args:
        text: the text.
        start: position of its first token in the padded batch.
        pairs: the sets of pairs.
    """
    found = [np.zeros((3, 0), np.int32)]
    for number, of in enumerate(pairs):
        query, key = of(text)
        causal = key <= query
        found.append(np.stack([query[causal] + start, key[causal] + start, np.full(int(causal.sum()), number)]).astype(np.int32))
    joined = np.concatenate(found, 1)
    del found  # a repetitive text has millions of pairs
    return torch.from_numpy(np.ascontiguousarray(joined[:, np.argsort(joined[0], kind="stable")]))
