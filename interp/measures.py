# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The measures of an attention head, one function each, and the dict `MEASURES`.

A measure gives one number per query; the tables hold its mean over the queries of a region for which it is defined (NaN says: not defined).
p_ij is the attention of query i to key j, A_i the keys that i may attend to (causality, sliding window), n_i their number.
Where a model has attention sinks, the sink is one more outcome of the distribution (entropies, n_i), but not a key (masses).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from interp.attention import STATISTICS, KeySets, RowStatistics
from interp.table import MeasureInfo
from interp.token_sets import (
    N_SHUFFLES,
    TokenPairs,
    TokenSet,
    duplicate_tokens,
    first_token,
    induction_targets,
    not_first_token,
    numeric_beyond_first,
    numeric_shuffles,
    of_roles,
    previous_position,
    same_position,
)
from interp.tokens import NUMBER_ROLES, Tokens

ENTRY_POINTS = "primed_heads.measures"


class MeasureError(ValueError):
    """An unknown, repeated or broken measure."""


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
        raise MeasureError(f"the measure reads {name}, which its `statistics` do not name: statistics=frozenset({{{name!r}}})")
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
            raise MeasureError(f"measure {self.info.name} asks for statistics {sorted(unknown)}; known: {', '.join(sorted(STATISTICS))}")


def entropy_nats(rows: Rows) -> Tensor:
    """H_i = - sum_j p_ij ln p_ij."""
    return rows.entropy


def entropy_normalized(rows: Rows) -> Tensor:
    """H_i / ln n_i; undefined where n_i = 1."""
    return torch.where(rows.n_allowed > 1, rows.entropy / rows.n_allowed.log().clamp_min(1e-12), torch.nan)


def renyi2_nats(rows: Rows) -> Tensor:
    """- ln sum_j p_ij^2."""
    return -rows.collision.clamp_min(1e-30).log()


def max_prob(rows: Rows) -> Tensor:
    """max_j p_ij."""
    return rows.max_prob


def self_mass(rows: Rows) -> Tensor:
    """p_ii."""
    return rows.pair_mass("self")


def previous_mass(rows: Rows) -> Tensor:
    """p_{i,i-1}; undefined at the first token."""
    return rows.pair_mass("previous")


def bos_mass(rows: Rows) -> Tensor:
    """p_i0, the mass on the text's first token."""
    return rows.mass("first")


def mean_distance(rows: Rows) -> Tensor:
    """sum_j p_ij (i - j)."""
    return rows.distance


def numeric_mass(rows: Rows) -> Tensor:
    """Sum of p_ij over number tokens."""
    return rows.mass("numeric")


def numeric_mass_question(rows: Rows) -> Tensor:
    """Sum of p_ij over the question's numbers."""
    return rows.mass("question_number")


def numeric_mass_operand(rows: Rows) -> Tensor:
    """Sum of p_ij over the response's numbers that are neither results nor the answer."""
    return rows.mass("operand")


def numeric_mass_intermediate(rows: Rows) -> Tensor:
    """Sum of p_ij over intermediate results."""
    return rows.mass("intermediate_result")


def numeric_mass_final(rows: Rows) -> Tensor:
    """Sum of p_ij over the final answer."""
    return rows.mass("final_answer")


def operator_mass(rows: Rows) -> Tensor:
    """Sum of p_ij over arithmetic operators."""
    return rows.mass("operator")


def numeric_mass_without_bos(rows: Rows) -> Tensor:
    """Numeric mass / mass on all keys but the first token; undefined where no other key is allowed or none has any mass."""
    others = rows.mass("not_first")
    return torch.where(others > 0, rows.mass("numeric_beyond_first") / others.clamp_min(1e-38), torch.nan)


def numeric_enrichment(rows: Rows) -> Tensor:
    """Numeric mass / (share of number tokens among A_i); undefined where A_i has none."""
    size = rows.set_size("numeric")
    uniform = size / rows.n_allowed
    return torch.where(size > 0, rows.mass("numeric") / uniform.clamp_min(1e-12), torch.nan)


def numeric_z_parts(rows: Rows) -> Tensor:
    """Numeric mass, then the mass on each shuffled set, [1 + N_SHUFFLES, batch, head, query]."""
    return torch.cat([rows.mass("numeric")[None], rows.mass("numeric_shuffles")])


def numeric_z(parts: np.ndarray) -> np.ndarray:
    """(m - mean of shuffles) / standard deviation of shuffles, of the means over a region's queries; undefined where they do not differ."""
    spread = parts[1:].std(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 1e-9, (parts[0] - parts[1:].mean(0)) / spread, np.nan)


def duplicate_token_mass(rows: Rows) -> Tensor:
    """Sum of p_ij over earlier keys with the query's own token; undefined where there is none."""
    return rows.pair_mass("duplicate")


def induction_mass(rows: Rows) -> Tensor:
    """Sum of p_ij over keys that followed earlier occurrences of the query's token; undefined where there is none."""
    return rows.pair_mass("induction")


def sparsity_010(rows: Rows) -> Tensor:
    """(number of keys with p_ij > 0.1) / n_i."""
    return rows.above(0.1) / rows.n_allowed


def sparsity_010_published(rows: Rows) -> Tensor:
    """(number of keys with p_ij > 0.1) / T, whose mean over all T queries is the share of all T x T entries."""
    return rows.above(0.1) / rows.length


_NUMERIC: dict[str, TokenSet] = {"numeric": of_roles(*NUMBER_ROLES)}

MEASURES: dict[str, Measure] = {
    measure.info.name: measure
    for measure in (
        Measure(
            MeasureInfo("entropy_nats", "Attention entropy", "nats", 0, 5, "H_i = -sum_j p_ij ln p_ij"),
            entropy_nats,
            frozenset({"entropy"}),
        ),
        Measure(
            MeasureInfo("entropy_normalized", "Normalised entropy", "1", 0, 1, "H_i / ln n_i, n_i allowed keys"),
            entropy_normalized,
            frozenset({"entropy"}),
        ),
        Measure(
            MeasureInfo("renyi2_nats", "Rényi-2 entropy", "nats", 0, 5, "-ln sum_j p_ij^2"),
            renyi2_nats,
            frozenset({"collision"}),
        ),
        Measure(
            MeasureInfo("max_prob", "Largest probability", "probability", 0, 1, "max_j p_ij"),
            max_prob,
            frozenset({"max_prob"}),
        ),
        Measure(
            MeasureInfo("self_mass", "Attention to the token itself", "probability", 0, 1, "p_ii"),
            self_mass,
            pairs={"self": same_position},
        ),
        Measure(
            MeasureInfo("previous_mass", "Attention to the previous token", "probability", 0, 1, "p_i,i-1"),
            previous_mass,
            pairs={"previous": previous_position},
        ),
        Measure(
            MeasureInfo("bos_mass", "Attention to the first token", "probability", 0, 1, "p_i0"),
            bos_mass,
            sets={"first": first_token},
        ),
        Measure(
            MeasureInfo("mean_distance", "Mean attention distance", "tokens", 0, 150, "sum_j p_ij (i - j)"),
            mean_distance,
            frozenset({"distance"}),
        ),
        Measure(
            MeasureInfo("numeric_mass", "Attention to numbers", "probability", 0, 0.5, "sum of p_ij over number tokens"),
            numeric_mass,
            sets=_NUMERIC,
        ),
        Measure(
            MeasureInfo(
                "numeric_mass_question",
                "Attention to the question's numbers",
                "probability",
                0,
                0.5,
                "sum of p_ij over numbers of the question",
            ),
            numeric_mass_question,
            sets={"question_number": of_roles("question_number")},
        ),
        Measure(
            MeasureInfo(
                "numeric_mass_operand",
                "Attention to operands",
                "probability",
                0,
                0.5,
                "sum of p_ij over numbers of the response that are neither result nor answer",
            ),
            numeric_mass_operand,
            sets={"operand": of_roles("operand")},
        ),
        Measure(
            MeasureInfo(
                "numeric_mass_intermediate",
                "Attention to intermediate results",
                "probability",
                0,
                0.5,
                "sum of p_ij over numbers after '=' or a calculator mark",
            ),
            numeric_mass_intermediate,
            sets={"intermediate_result": of_roles("intermediate_result")},
        ),
        Measure(
            MeasureInfo(
                "numeric_mass_final",
                "Attention to the final answer",
                "probability",
                0,
                0.5,
                "sum of p_ij over the number after '####' or 'the answer is'",
            ),
            numeric_mass_final,
            sets={"final_answer": of_roles("final_answer")},
        ),
        Measure(
            MeasureInfo(
                "operator_mass",
                "Attention to operators",
                "probability",
                0,
                0.5,
                "sum of p_ij over + - * / x = between numbers",
            ),
            operator_mass,
            sets={"operator": of_roles("operator")},
        ),
        Measure(
            MeasureInfo(
                "numeric_mass_without_bos",
                "Attention to numbers, first token left out",
                "probability",
                0,
                0.5,
                "sum of p_ij over numbers j > 0 / sum of p_ij over all j > 0",
            ),
            numeric_mass_without_bos,
            sets={"numeric_beyond_first": numeric_beyond_first, "not_first": not_first_token},
        ),
        Measure(
            MeasureInfo(
                "numeric_enrichment",
                "Enrichment of numbers",
                "x uniform",
                0,
                4,
                "numeric mass / share of number tokens among the allowed keys; 1 = uniform attention",
            ),
            numeric_enrichment,
            sets=_NUMERIC,
        ),
        Measure(
            MeasureInfo(
                "numeric_z",
                "Numbers against shuffled positions",
                "standard deviations",
                -6,
                6,
                f"(m - mean m_k) / sd m_k over {N_SHUFFLES} position-matched shuffles of the number tokens",
            ),
            numeric_z_parts,
            sets={**_NUMERIC, "numeric_shuffles": numeric_shuffles},
            combine=numeric_z,
            parts=1 + N_SHUFFLES,
        ),
        Measure(
            MeasureInfo(
                "duplicate_token_mass",
                "Attention to the same token",
                "probability",
                0,
                1,
                "sum of p_ij over j < i with token_j = token_i",
            ),
            duplicate_token_mass,
            pairs={"duplicate": duplicate_tokens},
        ),
        Measure(
            MeasureInfo(
                "induction_mass",
                "Induction",
                "probability",
                0,
                1,
                "sum of p_ij over j with token_{j-1} = token_i, j - 1 < i",
            ),
            induction_mass,
            pairs={"induction": induction_targets},
        ),
        Measure(
            MeasureInfo("sparsity_010", "Share of keys above 0.1", "share", 0, 0.1, "#{j: p_ij > 0.1} / n_i"),
            sparsity_010,
            thresholds=(0.1,),
        ),
        Measure(
            MeasureInfo(
                "sparsity_010_published",
                "Share of all entries above 0.1",
                "share",
                0,
                0.05,
                "#{j: p_ij > 0.1} / T; its mean over the text is the share of all T x T entries",
            ),
            sparsity_010_published,
            thresholds=(0.1,),
        ),
    )
}


def load_measures(names: Iterable[str] | None = None) -> dict[str, Measure]:
    """Measures by name: our own, and those that installed packages offer under the entry point `primed_heads.measures`.

    Args:
        names: which; None for all.

    Raises:
        MeasureError: an unknown name (the message lists the known), a name offered twice, or an entry point that is no `Measure`.
    """
    offered = dict(MEASURES)
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if point.name in offered:
            raise MeasureError(f"measure {point.name} is offered twice, the second time by {point.value}")
        measure = point.load()
        if not isinstance(measure, Measure) or measure.info.name != point.name:
            raise MeasureError(f"entry point {point.name} = {point.value} must name a Measure called {point.name}")
        offered[point.name] = measure
    if names is None:
        return offered
    wanted = list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in offered]
    if unknown or not wanted:
        raise MeasureError(f"unknown measures {', '.join(unknown) or '(none)'}; known: {', '.join(offered)}")
    return {name: offered[name] for name in wanted}


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
                raise MeasureError(f"token set {name} gives {weights.shape[-1]} weights for {len(text)} tokens")
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
