"""Heads of two models of different architecture, matched by what they do with the same texts. Tables in, tables out: no torch.

    words = same_words(inputs_of_teacher, inputs_of_student)
    teacher, student = (profiles(table, examples_in_common=words["example"]) for table in (examples_of_teacher, examples_of_student))
    match_heads(teacher, student)

The models may differ in layers, heads and tokenizer; what they must share is the characters of question and response (`same_words`
checks it), because a head's profile is its values on each of these texts.

No p value is given. Shuffling examples leaves each head's mean over examples, on which most of a similarity stands, and so tests less
than a reader would think; shuffling heads only renames them. `margin` and `stability` say how far a pair stands out instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from interp.tables.errors import InputError
from interp.tables.heads import EXAMPLE_VALUES, INPUTS
from interp.tables.schema import TOKEN_REGIONS

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
"""Measures of `interp.measures.catalog.MEASURES` that compare across tokenizers: probability masses, and the entropy as a share of its largest.

Left out, because a text that is cut into more tokens changes them:

- entropy_nats, renyi2_nats: their largest value is ln of the number of tokens.
- mean_distance: in tokens.
- numeric_enrichment, sparsity_010, sparsity_010_published: divided by, or counted as, a share of the tokens.
- numeric_z: its shuffles move single tokens, so its spread hangs on how many a number is cut into.

Left out, because they say twice what others say: numeric_mass (sum of the four kinds) and numeric_mass_without_bos (its share beyond
bos_mass). "Previous token" and "same token" are other characters under another tokenizer, but a head that looks there still does.
"""


PROFILE_REGIONS = ("question", "response")
"""Regions whose characters both models read; `all` has the chat template too, which is each model's own."""


DEPTH_WEIGHT = 0.25
"""Correlation that a partner must gain for standing at the other end of the network. A convention, not a measured optimum: between
neighbouring layers of a deep model it is about 0.01, so it decides only between partners that are nearly as similar."""


N_RESAMPLES = 200
"""Bootstrap samples of examples behind `stability`, whose standard error is then at most 0.035."""


CONSTANT = 1e-6
"""A feature whose standard deviation over heads is at most that share of its largest value is rounding of float32."""


SHOWN = 40
"""Characters of a word that an error shows."""


# --- the same text -----------------------------------------------------------------------------------------------------


def same_words(one: pd.DataFrame, other: pd.DataFrame, *, regions: Sequence[str] = PROFILE_REGIONS) -> pd.DataFrame:
    """Check that two models read the same words, whatever their tokenizers, in every example that both tables hold.

    The text is put together from the tokens. White space is left out before comparing, because many tokenizers (Llama 3's) say of a
    token " the" that it covers "the" alone: "10 0" and "100" are therefore the same. Words are parted where either table shows white
    space. A character that is cut into several tokens stands in the table once for each of them, so that a run of the same character
    beyond ASCII counts as one. Where either text holds U+FFFD (half a character), only ASCII characters are compared. A token of the
    text that also covers characters of the chat template would count as a difference.

    Args:
        one: an `inputs` table.
        other: the other model's.
        regions: which to compare; ("question",) where each model wrote its own response.

    Returns:
        A row an example: example, n_words, n_tokens_one, n_tokens_other (tokens of these regions).

    Raises:
        InputError: no example in common, an example without any word, or the first example and word that differ.
    """
    unknown = sorted(set(regions) - set(TOKEN_REGIONS))
    if unknown or not regions:
        raise InputError(f"regions {', '.join(unknown) or '(none)'} are not among those of tokens: {', '.join(TOKEN_REGIONS)}")
    sides = [_by_example(frame, regions) for frame in (one, other)]
    common = sorted(set(one["example"]) & set(other["example"]))
    if not common:
        raise InputError(f"no example in common: {_some(one['example'])} against {_some(other['example'])}")
    nothing = pd.DataFrame({"region": [], "token": []})
    rows = []
    for example in common:
        mine, theirs = (side.get(example, nothing) for side in sides)
        n_words = 0
        for region in regions:
            texts = ["".join(part.loc[part["region"] == region, "token"]) for part in (mine, theirs)]
            n_words += _compare(texts[0], texts[1], f"example {example}, {region}")
        if n_words == 0:
            raise InputError(f"example {example} has no word in {' or '.join(regions)}: nothing to compare")
        rows.append((int(example), n_words, len(mine), len(theirs)))
    return pd.DataFrame(rows, columns=["example", "n_words", "n_tokens_one", "n_tokens_other"])


def _by_example(inputs: pd.DataFrame, regions: Sequence[str]) -> dict[int, pd.DataFrame]:
    _check_columns(inputs, ("example", "position", "token", "region"), INPUTS.name)
    kept = inputs.loc[inputs["region"].isin(regions), ["example", "position", "token", "region"]].sort_values(["example", "position"])
    return {int(example): part for example, part in kept.groupby("example")}  # pyright: ignore[reportArgumentType]


def _compare(one: str, other: str, where: str) -> int:
    """Number of words that both texts have."""
    ascii_only = "\ufffd" in one + other
    (mine, my_starts), (theirs, their_starts) = (_characters(text, ascii_only) for text in (one, other))
    starts = np.union1d(my_starts, their_starts)
    if np.array_equal(mine, theirs):
        return len(starts)
    shorter = min(len(mine), len(theirs))
    unequal = np.flatnonzero(mine[:shorter] != theirs[:shorter])
    at = int(unequal[0]) if len(unequal) else shorter
    number = max(1, int((starts <= at).sum()))
    start = int(starts[number - 1])
    shown = [
        "".join(map(chr, codes[start : min([s for s in own if s > max(at, start)], default=len(codes))][:SHOWN]))
        for codes, own in ((mine, my_starts), (theirs, their_starts))
    ]
    raise InputError(f"{where}, word {number}: {shown[0]!r} against {shown[1]!r}; both models must have read the same text")


def _characters(text: str, ascii_only: bool) -> tuple[np.ndarray, np.ndarray]:
    """Code points without white space and repeated characters beyond ASCII, and the places among them where words begin."""
    words = text.split()
    codes = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), "<u4")
    starts = np.cumsum([0, *(len(word) for word in words[:-1])])[: len(words)]
    first = np.ones(len(codes), bool)
    first[1:] = (codes[1:] != codes[:-1]) | (codes[1:] < 128)
    kept = first & (codes < 128) if ascii_only else first
    places = np.unique((np.cumsum(kept) - kept)[starts[first[starts]]])  # a repeated character begins no word
    return codes[kept], places[places < kept.sum()]


# --- profiles ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadProfiles:
    """What every head of a model does on some examples.

    Attributes:
        model: its name.
        layers: number of each head's layer, [head].
        heads: each head's number in its layer, [head].
        n_layers: layers of the model.
        values: standardised over heads: each feature has mean 0 and standard deviation 1, [head, feature].
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
        """Depth: layer / (n_layers - 1), from 0 to 1; 0.5 in a model of one layer, [head]."""
        return self.layers / (self.n_layers - 1) if self.n_layers > 1 else np.full(len(self), 0.5)


def profiles(
    examples: pd.DataFrame,
    *,
    examples_in_common: Iterable[int],
    measures: Sequence[str] | None = None,
    regions: Sequence[str] = PROFILE_REGIONS,
    n_layers: int | None = None,
) -> HeadProfiles:
    """Profiles of all heads of one model, from its `examples` table.

    A feature is a measure's value in a region of an example. Its mean over the model's heads is subtracted and the rest divided by its
    standard deviation over them, (x - mean) / sd: what all heads share, such as the length of the text, is gone. Features without a
    value for some head, and those that are the same for all heads, are left out.

    Args:
        examples: the table, of one model, rows in any order.
        examples_in_common: numbers of the examples that both models read, as of `same_words`.
        measures: which; None for those of `PROFILE_MEASURES` that the table holds.
        regions: which.
        n_layers: layers of the model; None: one more than the highest in the table, which is too few only for a model whose last layers
            have no attention.

    Raises:
        InputError: a column, example, measure or region that is missing, several models, a repeated row, fewer than two heads, or no
            feature that is left.
    """
    _check_columns(examples, ("model", "example", "layer", "head", "measure", "region", "value"), EXAMPLE_VALUES.name)
    models = [str(name) for name in examples["model"].unique()]
    if len(models) != 1:
        raise InputError(f"the table holds models {', '.join(models) or '(none)'}; give the rows of one")
    numbers = np.unique(np.asarray(list(examples_in_common), np.int64))
    held = examples["measure"].unique().tolist()
    names = [name for name in PROFILE_MEASURES if name in held] if measures is None else list(dict.fromkeys(measures))
    regions = list(dict.fromkeys(regions))
    if not names:
        raise InputError(
            f"{models[0]}: the table holds measures {', '.join(held)}, none of those that compare: {', '.join(PROFILE_MEASURES)}"
        )
    for what, wanted, seen in (
        ("examples", numbers.tolist(), examples["example"].unique().tolist()),
        ("measures", names, held),
        ("regions", regions, examples["region"].unique().tolist()),
    ):
        missing = [item for item in wanted if item not in set(seen)]
        if missing or not wanted:
            raise InputError(f"{models[0]}: {what} {_some(missing) if missing else '(none)'} asked for; the table holds {_some(seen)}")
    chosen = examples["measure"].isin(names) & examples["region"].isin(regions) & examples["example"].isin(numbers)
    kept = examples.loc[chosen, ["example", "layer", "head", "measure", "region", "value"]]

    layer, head = kept["layer"].to_numpy(np.int64), kept["head"].to_numpy(np.int64)
    width = int(head.max()) + 1
    found, row = np.unique(layer * width + head, return_inverse=True)
    if len(found) < 2:
        raise InputError(f"{models[0]} has one head: a profile says how a head differs from its model's others, so two are needed")
    features = pd.MultiIndex.from_product([names, regions, numbers.tolist()], names=["measure", "region", "example"])
    # mapping a column of categories maps each category once
    column = kept["measure"].map({name: at for at, name in enumerate(names)}).to_numpy(np.int64) * len(regions)
    column += kept["region"].map({name: at for at, name in enumerate(regions)}).to_numpy(np.int64)
    column = column * len(numbers) + np.searchsorted(numbers, kept["example"].to_numpy(np.int64))
    cell = row * len(features) + column
    if len(np.unique(cell)) < len(cell):
        raise InputError(f"{models[0]}: {len(cell) - len(np.unique(cell))} rows repeat an example, head, measure and region")
    values = np.full(len(found) * len(features), np.nan)
    values[cell] = kept["value"].to_numpy(float)
    values = values.reshape(len(found), len(features))

    defined = np.isfinite(values).all(0)
    if not defined.any():
        raise InputError(f"{models[0]}: no measure has a value for every head in any of the {len(numbers)} examples")
    values, features = values[:, defined], features.take(np.flatnonzero(defined))
    spread = values.std(0)
    varied = spread > CONSTANT * np.abs(values).max(0)
    if not varied.any():
        raise InputError(f"{models[0]}: all {len(found)} heads are the same in each of {len(features)} values: nothing tells them apart")
    values = (values[:, varied] - values[:, varied].mean(0)) / spread[varied]
    layers = found // width
    if n_layers is not None and n_layers <= layers.max():
        raise InputError(f"{models[0]}: n_layers is {n_layers}, but the table holds layer {layers.max()}")
    n_layers = int(layers.max()) + 1 if n_layers is None else n_layers
    return HeadProfiles(models[0], layers, found % width, n_layers, values, features.take(np.flatnonzero(varied)))


def _check_columns(frame: pd.DataFrame, needed: Sequence[str], table: str) -> None:
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise InputError(f"table {table}: missing columns {missing}; it has {list(frame.columns)}")


def _some(items: Iterable[object]) -> str:
    """The first few, for a message."""
    unique = list(dict.fromkeys(items))
    return ", ".join(map(str, unique[:8])) + (f", ... ({len(unique)})" if len(unique) > 8 else "") if unique else "(none)"


# --- matching ----------------------------------------------------------------------------------------------------------


def match_heads(
    one: HeadProfiles,
    other: HeadProfiles,
    *,
    depth_weight: float = DEPTH_WEIGHT,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Partners: every head of the model that has fewer gets one of the other's, no two the same, at the lowest total cost.

    The cost of a pair is 1 - r + depth_weight |depth_one - depth_other|, where r is Pearson's correlation of the two profiles over the
    features that both models have; the assignment is exact (Jonker-Volgenant, scipy's linear_sum_assignment; Kuhn 1955 "Hungarian").

    Every head gets a partner, whether or not the other model has one that is like it: read `similarity`, `margin` and `stability`.

    Args:
        one: profiles of a model.
        other: profiles of another, on the same examples.
        depth_weight: see `DEPTH_WEIGHT`; 0 leaves depth out.
        n_resamples: bootstrap samples of the examples; 0 for none.
        seed: of these.

    Returns:
        A row a pair, ordered by layer_one, head_one:

        - layer_one, head_one, depth_one, layer_other, head_other, depth_other;
        - similarity: r, -1 to 1;
        - depth_difference: |depth_one - depth_other|, 0 to 1;
        - margin: r minus the highest r that either head of the pair has with another head, -2 to 2; above 0 where each is the other's
          most similar;
        - stability: share of resamples of the examples with the same partner, 0 to 1; NaN with one example or no resamples. It speaks of
          the choice of examples alone.

    Raises:
        InputError: no measure, region or example in common, fewer than two features, a profile that does not vary, a depth_weight
            that is negative or not finite, a negative n_resamples.
    """
    if not (np.isfinite(depth_weight) and depth_weight >= 0):
        raise InputError(f"depth_weight is {depth_weight}; it must be 0 or more")
    if n_resamples < 0:
        raise InputError(f"n_resamples is {n_resamples}; it must be 0 or more")
    mine, theirs, features = _shared(one, other)
    similarity = _correlation(mine, theirs)
    for model, values in ((one, mine), (other, theirs)):
        still = np.flatnonzero(values.std(1) <= CONSTANT)
        if len(still):
            at = int(still[0])
            raise InputError(
                f"{model.model}: head {model.heads[at]} of layer {model.layers[at]} is the same in all {len(features)} features in common: "
                "give more examples or measures"
            )
    depths = [one.depths, other.depths]
    far = depth_weight * np.abs(depths[0][:, None] - depths[1])
    rows, columns = linear_sum_assignment(far - similarity)
    pairs = similarity[rows, columns]

    same, counted = np.zeros(len(rows)), 0
    numbers, of_example = np.unique(features.get_level_values("example"), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), n_resamples)
    for draw in draws if len(numbers) > 1 else draws[:0]:
        again = _correlation(mine, theirs, draw[of_example])
        if not np.isfinite(again).all():
            continue  # a resample in which some profile does not vary says nothing
        at, partner = linear_sum_assignment(far - again)
        drawn = np.full(len(one), -1)
        drawn[at] = partner
        same += drawn[rows] == columns
        counted += 1

    matched = pd.DataFrame({"layer_one": one.layers[rows], "head_one": one.heads[rows], "depth_one": depths[0][rows]})
    matched["layer_other"], matched["head_other"] = other.layers[columns], other.heads[columns]
    matched["depth_other"] = depths[1][columns]
    matched["similarity"] = pairs
    matched["depth_difference"] = (matched["depth_one"] - matched["depth_other"]).abs()
    matched["margin"] = pairs - _best_alternative(similarity, rows, columns)
    matched["stability"] = same / counted if counted else np.nan
    return matched.sort_values(["layer_one", "head_one"], ignore_index=True)


def match_layers(one: HeadProfiles, other: HeadProfiles) -> pd.DataFrame:
    """How similar every layer of a model is to every layer of another: linear CKA of their heads' profiles.

    With X the profiles of a layer's heads as columns, [feature, head], each minus its mean, CKA = ||X'Y||^2 / (||X'X|| ||Y'Y||), Frobenius
    norms (Kornblith et al. 2019, arXiv 1905.00414). It does not hang on the order or number of heads, and needs no partners; it leans
    upward where features are few beside heads.

    Returns:
        A row a pair of layers: layer_one, depth_one, layer_other, depth_other, similarity (0 to 1).

    Raises:
        InputError: as `match_heads` where nothing is in common, and a layer whose profiles do not vary.
    """
    mine, theirs, features = _shared(one, other)
    starts, numbers, norms, depths = [], [], [], []
    for model, values in ((one, mine), (other, theirs)):
        values -= values.mean(1, keepdims=True)
        layers, first = np.unique(model.layers, return_index=True)
        parts = np.split(values, first[1:])
        own = np.asarray([np.linalg.norm(part @ part.T) for part in parts])
        still = layers[own <= CONSTANT * len(features)]
        if len(still):
            raise InputError(f"{model.model}: layer {still[0]} is the same in all {len(features)} features in common")
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
    """Both models' values at the features that both have, copies, [head, feature], and these features."""
    features = one.features.intersection(other.features, sort=False)
    assert isinstance(features, pd.MultiIndex)
    if len(features) < 2:
        for level in ("measure", "region", "example"):
            mine, theirs = (p.features.get_level_values(level).unique() for p in (one, other))
            if mine.intersection(theirs).empty:
                raise InputError(f"no {level} in common: {one.model} has {_some(mine)}, {other.model} {_some(theirs)}")
        raise InputError(f"{len(features)} features (measure, region, example) in common; a correlation needs two")
    mine, theirs = (p.values[:, p.features.get_indexer(features)] for p in (one, other))
    return mine, theirs, features


def _correlation(one: np.ndarray, other: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Pearson's r of every row with every row, each feature counted `weights` times, [row of one, row of other]; NaN without variance."""
    if weights is not None:
        drawn = weights > 0
        one, other, weights = one[:, drawn], other[:, drawn], weights[drawn]
    centred = []
    for values in (one, other):
        values = values - np.average(values, axis=1, weights=weights)[:, None]
        if weights is not None:
            values *= np.sqrt(weights)
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            centred.append(np.where(norms > CONSTANT, values / norms, np.nan))
    return np.clip(centred[0] @ centred[1].T, -1, 1)


def _best_alternative(similarity: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Highest similarity that either head of each pair has with a head other than its partner, [pair]."""
    without = similarity.copy()
    without[rows, columns] = -np.inf
    return np.maximum(without.max(1)[rows], without.max(0)[columns])
