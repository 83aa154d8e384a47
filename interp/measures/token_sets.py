# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Which keys, and which query-key pairs, the measures sum attention over: functions of an annotated text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from interp.tokens import NUMBER_ROLES, AnnotatedText

N_SHUFFLES = 16
"""Number of shuffled token sets that `numeric_z` compares with."""

SHUFFLE_BIN = 16
"""A shuffle moves the members of a set only within groups of this many neighboring tokens of one region."""

TokenSet = Callable[[AnnotatedText, int], np.ndarray]
"""(text, seed) -> weight of each token as a key, [token] or [set, token]; usually 0 or 1."""

TokenPairs = Callable[[AnnotatedText], np.ndarray]
"""text -> (query, key) positions whose attention is summed per query, [2, pair]."""


def with_roles(*names: str) -> TokenSet:
    """Return the set of tokens that have one of the roles."""
    return lambda text, seed: text.in_role(*names)


def first_token(text: AnnotatedText, seed: int = 0) -> np.ndarray:
    """Return the text's first token: BOS if the tokenizer has one, and in any case the token that serves as attention sink."""
    return np.arange(len(text)) == 0


def not_first_token(text: AnnotatedText, seed: int = 0) -> np.ndarray:
    """Return every token except the first."""
    return np.arange(len(text)) > 0


def numeric_beyond_first(text: AnnotatedText, seed: int = 0) -> np.ndarray:
    """Return the number tokens, without the text's first token."""
    return text.in_role(*NUMBER_ROLES) & not_first_token(text)


def numeric_shuffles(text: AnnotatedText, seed: int) -> np.ndarray:
    """Return the set of number tokens, shuffled `N_SHUFFLES` times, [shuffle, token].

    Members move only within groups of `SHUFFLE_BIN` neighboring tokens of their own region, so a shuffled set is as dense as the real one
    everywhere in the text. Special and template tokens and the first token stay. The draw depends only on the seed and the example's
    number.
    """
    numeric = text.in_role(*NUMBER_ROLES)
    shuffled = np.tile(numeric, (N_SHUFFLES, 1))
    generator = np.random.default_rng([seed, text.example])
    for region in ("question", "response"):
        places = np.flatnonzero(text.in_region(region) & not_first_token(text))
        for at in range(0, len(places), SHUFFLE_BIN):
            places_of_bin = places[at : at + SHUFFLE_BIN]
            flags = np.tile(numeric[places_of_bin], (N_SHUFFLES, 1))
            shuffled[:, places_of_bin] = generator.permuted(flags, axis=1)
    return shuffled


def same_position(text: AnnotatedText) -> np.ndarray:
    """Return the pairs (i, i)."""
    return np.tile(np.arange(len(text)), (2, 1))


def previous_position(text: AnnotatedText) -> np.ndarray:
    """Return the pairs (i, i - 1)."""
    at = np.arange(1, len(text))
    return np.stack([at, at - 1])


def duplicate_tokens(text: AnnotatedText) -> np.ndarray:
    """Return the pairs (i, j) with j < i and the same token id at both positions."""
    return _equal_ids(text.ids, 0)


def induction_targets(text: AnnotatedText) -> np.ndarray:
    """Return the pairs (i, j + 1) with j < i and the same token id at i and j: what followed earlier occurrences of the token."""
    return _equal_ids(text.ids, 1)


def _equal_ids(ids: np.ndarray, step: int) -> np.ndarray:
    """Return the pairs (i, j + step) with j < i and the same token id at i and j."""
    order = np.argsort(ids, kind="stable").astype(np.int32)
    queries, keys = [], []
    for group in np.split(order, np.flatnonzero(np.diff(ids[order])) + 1):
        later, earlier = np.tril_indices(len(group), -1)
        queries.append(group[later])
        keys.append(group[earlier] + step)
    return np.stack([np.concatenate(queries), np.concatenate(keys)])
