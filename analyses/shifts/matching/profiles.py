"""Heads of two models of different architecture, matched by what they do with the same texts. Tables in, tables out; needs no torch.

    words = same_words(inputs_of_teacher, inputs_of_student)
    teacher, student = (profiles(table, examples_in_common=words["example"]) for table in (examples_of_teacher, examples_of_student))
    match_heads(teacher, student)

The models may differ in layers, heads and tokenizer. They must have read the same characters of question and response
(`analyses.shifts.matching.words.same_words` checks it), because a head's profile is its values on each of these texts.

No p value is given. Shuffling examples keeps each head's mean over examples, which makes up most of a similarity, so such a test would
be weaker than it looks; shuffling heads only renames them. `margin` and `stability` describe how clear a pair is instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from analyses.shifts.matching.words import PROFILE_REGIONS, check_columns, first_few
from interp.tables.errors import InputError
from interp.tables.heads import EXAMPLE_VALUES

PROFILE_MEASURES = (
    "entropy_normalized",
    "max_prob",
    "self_mass",
    "previous_mass",
    "bos_mass",
    "numeric_mass_question",
    "numeric_mass_operand",
    "numeric_mass_intermediate",
    "numeric_mass_final",
    "operator_mass",
    "duplicate_token_mass",
    "induction_mass",
)
"""Measures of `interp.measures.catalog.MEASURES` that are comparable across tokenizers: probability masses and the normalized entropy.

Left out, because they change if a text is split into more tokens:

- entropy_nats, renyi2_nats: their largest value is ln of the number of tokens.
- mean_distance: in tokens.
- numeric_enrichment, sparsity_010, sparsity_010_published: divided by, or counted as, a share of the tokens.
- numeric_z: its shuffles move single tokens, so its spread depends on how many tokens a number is split into.

Left out, because others imply them: numeric_mass (sum of the four kinds) and numeric_mass_without_bos (its share without bos_mass).
"Previous token" and "same token" cover other characters under another tokenizer, but a head that attends there still does.
"""

DEPTH_WEIGHT = 0.25
"""How much higher the correlation with a partner at the opposite end of the network must be for that partner to be chosen.

A convention, not a measured optimum. Between neighboring layers of a deep model it amounts to about 0.01, so it only decides between
partners that are nearly equally similar.
"""

_N_RESAMPLES = 200
"""Bootstrap samples of examples for `stability`; its standard error is then at most 0.035."""

_CONSTANT = 1e-6
"""A feature is constant if its standard deviation over heads is at most this share of its largest value, which is float32 rounding."""


# --- profiles ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadProfiles:
    """The profiles of all heads of a model: their values on some examples.

    Attributes:
        model: name of the model.
        layers: layer number of each head, [head].
        heads: number of each head in its layer, [head].
        n_layers: number of layers of the model.
        values: standardized over heads: each feature has mean 0 and standard deviation 1, [head, feature].
        features: (measure, region, example) of each feature.
    """

    model: str
    layers: np.ndarray
    heads: np.ndarray
    n_layers: int
    values: np.ndarray
    features: pd.MultiIndex

    def __len__(self) -> int:
        return len(self.heads)

    @property
    def depths(self) -> np.ndarray:
        """Relative depth of each head: layer / (n_layers - 1), from 0 to 1; 0.5 in a model with one layer, [head]."""
        return self.layers / (self.n_layers - 1) if self.n_layers > 1 else np.full(len(self), 0.5)


def profiles(
    examples: pd.DataFrame,
    *,
    examples_in_common: Iterable[int],
    measures: Sequence[str] | None = None,
    regions: Sequence[str] = PROFILE_REGIONS,
    n_layers: int | None = None,
) -> HeadProfiles:
    """Return the profiles of all heads of one model, from its `examples` table.

    A feature is a measure's value in a region of an example. It is standardized over the model's heads, (x - mean) / sd, which removes
    what all heads share, such as the length of the text. Features that are undefined for some head or equal for all heads are left out.

    Args:
        examples: table of one model, with rows in any order.
        examples_in_common: numbers of the examples that both models read, as `same_words` returns them.
        measures: names of the measures; None takes those of `PROFILE_MEASURES` that the table has.
        regions: names of the regions.
        n_layers: number of layers of the model; None takes one more than the highest layer in the table, which is too low only for a
            model whose last layers have no attention.

    Raises:
        InputError: a column, example, measure or region is missing, there are several models, a repeated row, fewer than two heads, or
            no usable feature.
    """
    check_columns(examples, ("model", "example", "layer", "head", "measure", "region", "value"), EXAMPLE_VALUES.name)
    models = [str(name) for name in examples["model"].unique()]
    if len(models) != 1:
        raise InputError(f"the table has models {', '.join(models) or '(none)'}; give the rows of one model")
    model = models[0]
    numbers = np.unique(np.asarray(list(examples_in_common), np.int64))
    names, regions = _chosen(examples, model, numbers, measures, regions)
    layers, heads, values = _feature_matrix(examples, model, numbers, names, regions)
    features = pd.MultiIndex.from_product([names, regions, numbers.tolist()], names=["measure", "region", "example"])

    defined = np.isfinite(values).all(0)
    if not defined.any():
        raise InputError(f"{model}: no measure has a value for every head in any of the {len(numbers)} examples")
    values, features = values[:, defined], features.take(np.flatnonzero(defined))
    spread = values.std(0)
    varied = spread > _CONSTANT * np.abs(values).max(0)
    if not varied.any():
        raise InputError(f"{model}: all {len(heads)} heads are the same in each of {len(features)} values, so they cannot be told apart")
    values = (values[:, varied] - values[:, varied].mean(0)) / spread[varied]
    if n_layers is not None and n_layers <= layers.max():
        raise InputError(f"{model}: n_layers is {n_layers}, but the table has layer {layers.max()}")
    n_layers = int(layers.max()) + 1 if n_layers is None else n_layers
    return HeadProfiles(model, layers, heads, n_layers, values, features.take(np.flatnonzero(varied)))


def _chosen(
    examples: pd.DataFrame, model: str, numbers: np.ndarray, measures: Sequence[str] | None, regions: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the measures and regions of a profile, after checking that the table has them and the examples."""
    present = examples["measure"].unique().tolist()
    names = [name for name in PROFILE_MEASURES if name in present] if measures is None else list(dict.fromkeys(measures))
    regions = list(dict.fromkeys(regions))
    if not names:
        raise InputError(
            f"{model}: the table has measures {', '.join(present)}, but none that is comparable across models: "
            f"{', '.join(PROFILE_MEASURES)}"
        )
    for what, wanted, seen in (
        ("examples", numbers.tolist(), examples["example"].unique().tolist()),
        ("measures", names, present),
        ("regions", regions, examples["region"].unique().tolist()),
    ):
        missing = [item for item in wanted if item not in set(seen)]
        if missing or not wanted:
            raise InputError(f"{model}: {what} {first_few(missing)} asked for; the table has {first_few(seen)}")
    return names, regions


def _feature_matrix(
    examples: pd.DataFrame, model: str, numbers: np.ndarray, names: list[str], regions: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return layer and number of each head, and the values [head, (measure, region, example)], NaN where undefined."""
    chosen = examples["measure"].isin(names) & examples["region"].isin(regions) & examples["example"].isin(numbers)
    kept = examples.loc[chosen, ["example", "layer", "head", "measure", "region", "value"]]
    layer, head = kept["layer"].to_numpy(np.int64), kept["head"].to_numpy(np.int64)
    width = int(head.max()) + 1
    found, row = np.unique(layer * width + head, return_inverse=True)
    if len(found) < 2:
        raise InputError(f"{model} has one head; a profile compares a head with the model's other heads, so at least two are needed")
    # mapping a categorical column maps each category only once
    column = kept["measure"].map({name: at for at, name in enumerate(names)}).to_numpy(np.int64) * len(regions)
    column += kept["region"].map({name: at for at, name in enumerate(regions)}).to_numpy(np.int64)
    column = column * len(numbers) + np.searchsorted(numbers, kept["example"].to_numpy(np.int64))
    n_features = len(names) * len(regions) * len(numbers)
    cell = row * n_features + column
    if len(np.unique(cell)) < len(cell):
        raise InputError(f"{model}: {len(cell) - len(np.unique(cell))} rows repeat an example, head, measure and region")
    values = np.full(len(found) * n_features, np.nan)
    values[cell] = kept["value"].to_numpy(float)
    return found // width, found % width, values.reshape(len(found), n_features)


# --- matching ----------------------------------------------------------------------------------------------------------


def match_heads(
    one: HeadProfiles,
    other: HeadProfiles,
    *,
    depth_weight: float = DEPTH_WEIGHT,
    n_resamples: int = _N_RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return pairs of heads: every head of the model with fewer heads gets a different partner, at the lowest total cost.

    The cost of a pair is 1 - r + depth_weight |depth_one - depth_other|, where r is Pearson's correlation of the two profiles over the
    features that both models have. The assignment is exact (Jonker-Volgenant, scipy's linear_sum_assignment; Kuhn 1955, "Hungarian").

    Every head gets a partner, even if no head of the other model is similar: see `similarity`, `margin` and `stability`.

    Args:
        one: profiles of a model.
        other: profiles of another model on the same examples.
        depth_weight: see `DEPTH_WEIGHT`; 0 ignores depth.
        n_resamples: number of bootstrap samples of the examples; 0 for none.
        seed: seed of the bootstrap.

    Returns:
        A row per pair, ordered by layer_one, head_one:

        - layer_one, head_one, depth_one, layer_other, head_other, depth_other;
        - similarity: r, -1 to 1;
        - depth_difference: |depth_one - depth_other|, 0 to 1;
        - margin: r minus the highest r that either head of the pair has with another head, -2 to 2; above 0 if each head is the most
          similar one to the other;
        - stability: share of bootstrap samples of the examples with the same partner, 0 to 1; NaN with one example or no samples. It
          reflects only the choice of examples.

    Raises:
        InputError: no measure, region or example in common, fewer than two features, a profile that does not vary, a depth_weight
            that is negative or not finite, or a negative n_resamples.
    """
    if not (np.isfinite(depth_weight) and depth_weight >= 0):
        raise InputError(f"depth_weight is {depth_weight}; it must be 0 or more")
    if n_resamples < 0:
        raise InputError(f"n_resamples is {n_resamples}; it must be 0 or more")
    mine, theirs, features = _shared(one, other)
    for model, values in ((one, mine), (other, theirs)):
        constant = np.flatnonzero(values.std(1) <= _CONSTANT)
        if len(constant):
            at = int(constant[0])
            raise InputError(
                f"{model.model}: head {model.heads[at]} of layer {model.layers[at]} is the same in all {len(features)} features in common; "
                "take more examples or measures"
            )
    similarity = _row_correlation(mine, theirs)
    depth_cost = depth_weight * np.abs(one.depths[:, None] - other.depths)
    rows, columns = linear_sum_assignment(depth_cost - similarity)
    pairs = similarity[rows, columns]

    matched = pd.DataFrame({"layer_one": one.layers[rows], "head_one": one.heads[rows], "depth_one": one.depths[rows]})
    matched["layer_other"], matched["head_other"] = other.layers[columns], other.heads[columns]
    matched["depth_other"] = other.depths[columns]
    matched["similarity"] = pairs
    matched["depth_difference"] = (matched["depth_one"] - matched["depth_other"]).abs()
    matched["margin"] = pairs - _best_alternative(similarity, rows, columns)
    partners = np.full(len(one), -1)
    partners[rows] = columns
    matched["stability"] = _stability(mine, theirs, features, depth_cost, partners, n_resamples, seed)[rows]
    return matched.sort_values(["layer_one", "head_one"], ignore_index=True)


def _stability(
    mine: np.ndarray,
    theirs: np.ndarray,
    features: pd.MultiIndex,
    depth_cost: np.ndarray,
    partners: np.ndarray,
    n_resamples: int,
    seed: int,
) -> np.ndarray:
    """Return for each head of the first model in what share of bootstrap samples of the examples it keeps its partner, [head]."""
    same, counted = np.zeros(len(partners)), 0
    numbers, of_example = np.unique(features.get_level_values("example"), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), n_resamples)
    for draw in draws if len(numbers) > 1 else draws[:0]:
        similarity = _row_correlation(mine, theirs, draw[of_example])
        if not np.isfinite(similarity).all():
            continue  # some profile does not vary in this sample
        rows, columns = linear_sum_assignment(depth_cost - similarity)
        drawn = np.full(len(partners), -1)
        drawn[rows] = columns
        same += drawn == partners
        counted += 1
    return same / counted if counted else np.full(len(partners), np.nan)


def match_layers(one: HeadProfiles, other: HeadProfiles) -> pd.DataFrame:
    """Return how similar every layer of a model is to every layer of another: linear CKA of their heads' profiles.

    With X the profiles of a layer's heads as columns, [feature, head], each minus its mean, CKA = ||X'Y||^2 / (||X'X|| ||Y'Y||), Frobenius
    norms (Kornblith et al. 2019, arXiv 1905.00414). It does not depend on the order or number of heads and needs no partners. It is
    biased upward if there are few features compared with heads.

    Returns:
        A row per pair of layers: layer_one, depth_one, layer_other, depth_other, similarity (0 to 1).

    Raises:
        InputError: nothing is in common (as for `match_heads`), or a layer's profiles do not vary.
    """
    mine, theirs, features = _shared(one, other)
    starts, numbers, norms, depths = [], [], [], []
    for model, values in ((one, mine), (other, theirs)):
        values -= values.mean(1, keepdims=True)
        layers, first = np.unique(model.layers, return_index=True)
        parts = np.split(values, first[1:])
        own = np.asarray([np.linalg.norm(part @ part.T) for part in parts])
        constant = layers[own <= _CONSTANT * len(features)]
        if len(constant):
            raise InputError(f"{model.model}: layer {constant[0]} is the same in all {len(features)} features in common")
        starts.append(first)
        numbers.append(layers)
        norms.append(own)
        depths.append(model.depths[first])
    squares = (mine @ theirs.T) ** 2
    cross = np.add.reduceat(np.add.reduceat(squares, starts[0], 0), starts[1], 1)
    similarity = cross / np.outer(norms[0], norms[1])
    grid = pd.MultiIndex.from_product([numbers[0], numbers[1]], names=["layer_one", "layer_other"]).to_frame(index=False)
    grid.insert(1, "depth_one", np.repeat(depths[0], len(numbers[1])))
    grid["depth_other"] = np.tile(depths[1], len(numbers[0]))
    grid["similarity"] = similarity.ravel()
    return grid


def _shared(one: HeadProfiles, other: HeadProfiles) -> tuple[np.ndarray, np.ndarray, pd.MultiIndex]:
    """Return copies of both models' values at the features that both have, [head, feature], and these features."""
    features = one.features.intersection(other.features, sort=False)
    assert isinstance(features, pd.MultiIndex)
    if len(features) < 2:
        for level in ("measure", "region", "example"):
            mine, theirs = (p.features.get_level_values(level).unique() for p in (one, other))
            if mine.intersection(theirs).empty:
                raise InputError(f"no {level} in common: {one.model} has {first_few(mine)}, {other.model} {first_few(theirs)}")
        raise InputError(f"{len(features)} features (measure, region, example) in common; a correlation needs two")
    mine, theirs = (p.values[:, p.features.get_indexer(features)] for p in (one, other))
    return mine, theirs, features


def _row_correlation(one: np.ndarray, other: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return Pearson's r of every row with every row, [row of one, row of other]; NaN without variance.

    Args:
        one: [row, feature].
        other: [row, feature].
        weights: how often each feature counts; None counts each once.
    """
    if weights is not None:
        drawn = weights > 0
        one, other, weights = one[:, drawn], other[:, drawn], weights[drawn]
    centered = []
    for values in (one, other):
        values = values - np.average(values, axis=1, weights=weights)[:, None]
        if weights is not None:
            values *= np.sqrt(weights)
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            centered.append(np.where(norms > _CONSTANT, values / norms, np.nan))
    return np.clip(centered[0] @ centered[1].T, -1, 1)


def _best_alternative(similarity: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the highest similarity that either head of each pair has with a head other than its partner, [pair]."""
    without = similarity.copy()
    without[rows, columns] = -np.inf
    return np.maximum(without.max(1)[rows], without.max(0)[columns])
