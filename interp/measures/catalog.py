"""`MEASURES`: every measure of this package by name, in table order.

A measure gives one number per query. The tables hold its mean over the queries of a region for which it is defined; NaN means undefined.
p_ij is the attention of query i to key j. A_i is the set of keys that i may attend to (causality, sliding window), and n_i their number.
In a model with attention sinks, the sink is one more outcome of the distribution (it counts in entropies and n_i), but it is not a key
(it does not count in masses).

To add a measure, add its function and its entry to the file of its kind, and a row to docs/measures.md (a test checks it). For a new
kind, add a file like `places.py` and merge its dict here.
"""

from __future__ import annotations

from collections.abc import Iterable

from interp.measures.measure import Measure
from interp.measures.numbers import NUMBER_MEASURES
from interp.measures.places import PLACE_MEASURES
from interp.measures.repeats import REPEAT_MEASURES
from interp.measures.sparsity import SPARSITY_MEASURES
from interp.measures.spread import SPREAD_MEASURES
from interp.tables.errors import InputError
from interp.tables.plugins import chosen, members

MEASURES: dict[str, Measure] = {**SPREAD_MEASURES, **PLACE_MEASURES, **NUMBER_MEASURES, **REPEAT_MEASURES, **SPARSITY_MEASURES}


def load_measures(names: Iterable[str] | None = None) -> dict[str, Measure]:
    """Return measures by name: those of this package, and those that installed packages offer as `primed_heads.measures`.

    Args:
        names: which measures, in this order; None for all of them.

    Raises:
        InputError: a name is unknown (the message lists the known ones), an entry point repeats a name or cannot be imported, or it is not
            a `Measure` of the entry point's name.
    """
    known = members("measures", MEASURES, Measure)
    for name, measure in known.items():
        if measure.info.name != name:
            raise InputError(
                f"measures: the entry point {name} holds a Measure whose info.name is {measure.info.name!r}; the two must be equal"
            )
    return chosen("measures", known, names)
