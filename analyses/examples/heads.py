"""Which heads of one problem are shown: those that are named, and the most unusual ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analyses.examples.request import Request
from interp.tables.errors import InputError

_AUTO_HEADS = 6
"""Number of heads that "auto" takes."""

_SIGNIFICANT = 0.05


def parse_heads(typed: Sequence[str], layers: Sequence[int], n_heads: int, option: str) -> list[tuple[int, int]]:
    """Return (layer, head) of "12.3", and of every head of "12", in the order typed; "auto" is left out.

    Args:
        typed: one or more heads each, separated by commas.
        layers: numbers of the model's layers.
        n_heads: number of heads of a layer.
        option: name of the option, for messages.

    Raises:
        InputError: a text is not a head, or the model has no such head; the message names the heads that it has.
    """
    found: dict[tuple[int, int], None] = {}
    known = f"the model has layers {layers[0]} to {layers[-1]} with heads 0 to {n_heads - 1}"
    for name in [part.strip() for given in typed for part in given.split(",") if part.strip()]:
        if name == "auto":
            continue
        layer, dot, head = name.partition(".")
        if not layer.isdecimal() or not (head.isdecimal() if dot else not head):
            auto = ", or auto for the most unusual ones" if option.endswith("heads") else ""
            raise InputError(f"{option} {name!r} is not a head; write 12.3 for a head, 12 for a layer{auto}; {known}")
        if int(layer) not in layers or (dot and int(head) >= n_heads):
            raise InputError(f"{option}: there is no head {name}; {known}")
        for one in (int(head),) if dot else range(n_heads):
            found[int(layer), one] = None
    return list(found)


def named_heads(request: Request, layers: Sequence[int], n_heads: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the heads that are named to be shown, and those to be watched.

    Raises:
        InputError: a head does not exist, or is to be shown and not watched.
    """
    named = parse_heads(request.heads, layers, n_heads, request.spelled("heads"))
    watched = parse_heads(request.watch, layers, n_heads, request.spelled("watch"))
    if watched and named and not set(named) <= set(watched):
        missing = "{}.{}".format(*next(head for head in named if head not in watched))
        raise InputError(f"{request.spelled('heads', missing)} is not among the heads of {request.spelled('watch')}; name it there too")
    return named, watched


def choose_heads(
    request: Request, layers: Sequence[int], n_heads: int, order: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the heads whose maps are kept, and those that are shown first.

    Args:
        request: which heads are named.
        layers: numbers of the models' layers.
        n_heads: number of heads of a layer.
        order: all heads, as `rank_heads` returns them.
    """
    named, watched = named_heads(request, layers, n_heads)
    typed = {part.strip() for given in request.heads for part in given.split(",")}
    if watched:
        chosen = named or [head for head in order if head in set(watched)]
        return watched, [*chosen, *(head for head in watched if head not in chosen)][: max(_AUTO_HEADS, len(named))]
    chosen = [*named, *([head for head in order if head not in named][:_AUTO_HEADS] if "auto" in typed or not named else [])]
    return sorted(chosen), chosen


def rank_heads(tables: Sequence[pd.DataFrame], by: str, region: str) -> list[tuple[int, int]]:
    """Return all heads, the most unusual first.

    Heads that differ from their run at p <= 0.05 (for any model) come first, ordered by the size of the difference; the others follow in
    the same order. Without a run, the largest values come first.

    Args:
        tables: each model's rows of `interp.tables.example.STANDING`.
        by: the measure.
        region: the region of its queries.
    """
    best: dict[tuple[int, int], tuple[bool, float]] = {}
    for table in tables:
        rows = table[(table["measure"] == by) & (table["region"] == region)]
        compared = rows["mean"].notna()
        size = np.where(compared, (rows["value"] - rows["mean"]).abs(), rows["value"] if not compared.any() else -1.0)
        for layer, head, p, each in zip(rows["layer"], rows["head"], rows["p"], size, strict=True):
            key = (bool(p <= _SIGNIFICANT), float(each) if np.isfinite(each) else -1.0)
            best[int(layer), int(head)] = max(best.get((int(layer), int(head)), key), key)
    return sorted(best, key=lambda head: (*(-v for v in best[head]), *head))
