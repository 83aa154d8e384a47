"""The heads of one problem that are shown: those named, and those that stand out most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analyses.examples.request import Request
from interp.tables.errors import InputError

AUTO = 6
"""Heads that `auto` takes."""


def parse_heads(typed: Sequence[str], layers: Sequence[int], n_heads: int, option: str) -> list[tuple[int, int]]:
    """(layer, head) of "12.3", of every head of "12", in the order typed; "auto" is left out.

    Raises:
        InputError: not of that form, or no such head; the message says the model's shape.
    """
    found: dict[tuple[int, int], None] = {}
    form = f"the model has layers {layers[0]} to {layers[-1]} with heads 0 to {n_heads - 1}"
    for name in [part.strip() for given in typed for part in given.split(",") if part.strip()]:
        if name == "auto":
            continue
        layer, dot, head = name.partition(".")
        if not layer.isdecimal() or not (head.isdecimal() if dot else not head):
            raise InputError(
                f"{option} {name!r}: a head is written 12.3, a whole layer 12{', or auto' if option.endswith('heads') else ''}; {form}"
            )
        if int(layer) not in layers or (dot and int(head) >= n_heads):
            raise InputError(f"{option}: there is no head {name}; {form}")
        for one in (int(head),) if dot else range(n_heads):
            found[int(layer), one] = None
    return list(found)


def named_heads(request: Request, layers: Sequence[int], n_heads: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The heads that are named to be shown, and those to be watched.

    Raises:
        InputError: one that does not exist, or that is to be shown and not watched.
    """
    named = parse_heads(request.heads, layers, n_heads, request.spelt("heads"))
    watched = parse_heads(request.watch, layers, n_heads, request.spelt("watch"))
    if watched and named and not set(named) <= set(watched):
        missing = "{}.{}".format(*next(head for head in named if head not in watched))
        raise InputError(f"{request.spelt('heads', missing)} is not among the heads of {request.spelt('watch')}: name it there too")
    return named, watched


def choose_heads(
    request: Request, layers: Sequence[int], n_heads: int, order: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The heads whose maps are kept, and those that are shown first.

    Args:
        request: which were named.
        layers: of the models.
        n_heads: of a layer.
        order: as `standing_out` gives it.
    """
    named, watched = named_heads(request, layers, n_heads)
    asked = {part.strip() for given in request.heads for part in given.split(",")}
    if watched:
        chosen = named or [head for head in order if head in set(watched)]
        return watched, [*chosen, *(head for head in watched if head not in chosen)][: max(AUTO, len(named))]
    chosen = [*named, *([head for head in order if head not in named][:AUTO] if "auto" in asked or not named else [])]
    return sorted(chosen), chosen


def standing_out(tables: Sequence[pd.DataFrame], by: str, region: str) -> list[tuple[int, int]]:
    """All heads, the one that stands out most first.

    Those that differ from their run at p <= 0.05 (of any model) come first, by the size of the difference; the others follow likewise.
    Without a run, the largest values come first.
    """
    best: dict[tuple[int, int], tuple[bool, float]] = {}
    for table in tables:
        rows = table[(table["measure"] == by) & (table["region"] == region)]
        compared = rows["mean"].notna()
        size = np.where(compared, (rows["value"] - rows["mean"]).abs(), rows["value"] if not compared.any() else -1.0)
        for layer, head, p, each in zip(rows["layer"], rows["head"], rows["p"], size, strict=True):
            key = (bool(p <= 0.05), float(each) if np.isfinite(each) else -1.0)
            best[int(layer), int(head)] = max(best.get((int(layer), int(head)), key), key)
    return sorted(best, key=lambda head: (*(-v for v in best[head]), *head))
