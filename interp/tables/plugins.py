"""Families that a user can extend: the project's own members, and those that installed packages offer as entry points.

A family is a dict in a file named `catalog`. A package adds a member by an entry point whose name is the member's name:

    [project.entry-points."primed_heads.measures"]
    far_mass = "far_mass:MEASURE"
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from interp.tables.errors import InputError

_T = TypeVar("_T")


def members(family: str, own: Mapping[str, _T], kind: type[_T]) -> dict[str, _T]:
    """Return a family's members by name: the project's own first, then those of installed packages.

    Args:
        family: the plural noun in the entry point group, such as "measures" in `primed_heads.measures`.
        own: the project's own members.
        kind: the class of every member.

    Raises:
        InputError: an entry point repeats a name, cannot be imported, or is not a `kind`.
    """
    found = dict(own)
    for point in importlib.metadata.entry_points(group=f"primed_heads.{family}"):
        if point.name in found:
            raise InputError(f"{family}: {point.name} is defined twice, the second time by the entry point {point.value}")
        try:
            member = point.load()
        except (ImportError, AttributeError) as error:
            raise InputError(f"{family}: the entry point {point.name} = {point.value} cannot be imported ({error})") from error
        if not isinstance(member, kind):
            raise InputError(
                f"{family}: the entry point {point.name} = {point.value} is a {type(member).__name__}; a {kind.__name__} is needed"
            )
        found[point.name] = member
    return found


def chosen(family: str, known: Mapping[str, _T], names: Iterable[str] | None) -> dict[str, _T]:
    """Return the members that were asked for, in the order in which they were named; all of them for None.

    Raises:
        InputError: an unknown name, or no name at all; the message has the nearest known name and all of them.
    """
    if names is None:
        return dict(known)
    wanted = list(dict.fromkeys(names))
    for name in wanted or ["(none)"]:
        if name not in known:
            raise InputError(f"{family}: {name!r} is not known{nearest(name, known)}; known: {', '.join(known)}")
    return {name: known[name] for name in wanted}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the most similar known name, or nothing."""
    near = get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""
