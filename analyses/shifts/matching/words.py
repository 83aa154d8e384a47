"""Whether two models with different tokenizers read the same words. Tables in, table out; needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from interp.tables.errors import InputError
from interp.tables.heads import INPUTS
from interp.tables.schema import TOKEN_REGIONS

PROFILE_REGIONS = ("question", "response")
"""Regions whose characters both models read; `all` includes the chat template too, which differs between models."""

_SHOWN_CHARACTERS = 40
"""Number of characters of a word that an error shows."""


def same_words(one: pd.DataFrame, other: pd.DataFrame, *, regions: Sequence[str] = PROFILE_REGIONS) -> pd.DataFrame:
    """Check that two models read the same words in every example that both tables have, and return the number of words and tokens.

    The text is assembled from the tokens. White space is removed before comparing, because many tokenizers (such as Llama 3's) report
    that a token " the" covers only "the"; "10 0" and "100" are therefore the same. A word starts where either table shows white space. A
    character that is split into several tokens is in the table once for each of them, so a run of the same non-ASCII character counts
    as one. If either text contains U+FFFD (half a character), only ASCII characters are compared. A token that covers characters of both
    the text and the chat template counts as a difference.

    Args:
        one: an `inputs` table.
        other: the other model's.
        regions: regions to compare; ("question",) if each model wrote its own response.

    Returns:
        A row per example: example, n_words, n_tokens_one, n_tokens_other (tokens of these regions).

    Raises:
        InputError: no example in common, an example without words, or texts that differ; the message has the first example and word.
    """
    unknown = sorted(set(regions) - set(TOKEN_REGIONS))
    if unknown or not regions:
        raise InputError(f"regions {', '.join(unknown) or '(none)'} are not regions of tokens: {', '.join(TOKEN_REGIONS)}")
    sides = [_by_example(frame, regions) for frame in (one, other)]
    common = sorted(set(one["example"]) & set(other["example"]))
    if not common:
        raise InputError(f"no example in common: {first_few(one['example'])} against {first_few(other['example'])}")
    nothing = pd.DataFrame({"region": [], "token": []})
    rows = []
    for example in common:
        mine, theirs = (side.get(example, nothing) for side in sides)
        n_words = 0
        for region in regions:
            texts = ["".join(part.loc[part["region"] == region, "token"]) for part in (mine, theirs)]
            n_words += _compare(texts[0], texts[1], f"example {example}, {region}")
        if n_words == 0:
            raise InputError(f"example {example} has no words in {' or '.join(regions)}: nothing to compare")
        rows.append((int(example), n_words, len(mine), len(theirs)))
    return pd.DataFrame(rows, columns=["example", "n_words", "n_tokens_one", "n_tokens_other"])


def _by_example(inputs: pd.DataFrame, regions: Sequence[str]) -> dict[int, pd.DataFrame]:
    check_columns(inputs, ("example", "position", "token", "region"), INPUTS.name)
    kept = inputs.loc[inputs["region"].isin(regions), ["example", "position", "token", "region"]].sort_values(["example", "position"])
    return {int(example): part for example, part in kept.groupby("example")}  # pyright: ignore[reportArgumentType]


def _compare(one: str, other: str, where: str) -> int:
    """Return the number of words, which must be the same in both texts."""
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
        "".join(map(chr, codes[start : min([s for s in own if s > max(at, start)], default=len(codes))][:_SHOWN_CHARACTERS]))
        for codes, own in ((mine, my_starts), (theirs, their_starts))
    ]
    raise InputError(f"{where}, word {number}: {shown[0]!r} against {shown[1]!r}; both models must have read the same text")


def _characters(text: str, ascii_only: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return code points without white space and repeated non-ASCII characters, and the positions among them where words start."""
    words = text.split()
    codes = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), "<u4")
    starts = np.cumsum([0, *(len(word) for word in words[:-1])])[: len(words)]
    first = np.ones(len(codes), bool)
    first[1:] = (codes[1:] != codes[:-1]) | (codes[1:] < 128)
    kept = first & (codes < 128) if ascii_only else first
    places = np.unique((np.cumsum(kept) - kept)[starts[first[starts]]])  # a repeated character does not start a word
    return codes[kept], places[places < kept.sum()]


def check_columns(frame: pd.DataFrame, needed: Sequence[str], table: str) -> None:
    """Raise if a table lacks columns.

    Args:
        frame: the table.
        needed: names of the columns.
        table: name of the table, for the message.

    Raises:
        InputError: columns are missing.
    """
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise InputError(f"table {table}: missing columns {missing}; it has {list(frame.columns)}")


def first_few(items: Iterable[object]) -> str:
    """Return the first few different items as text, and how many there are, for a message."""
    unique = list(dict.fromkeys(items))
    return ", ".join(map(str, unique[:8])) + (f", ... ({len(unique)})" if len(unique) > 8 else "") if unique else "(none)"
