"""The comparison of `analyses.shifts --match`: two models of different architectures, whose heads are paired by profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analyses.models.named import NamedModel, folder_of
from analyses.shifts.matching.profiles import match_heads, match_layers, profiles
from analyses.shifts.matching.words import same_words
from interp.tables.heads import EXAMPLE_VALUES, INPUTS
from interp.tables.schema import read

_FEW_EXAMPLES = 20
"""With fewer examples than this, profiles are rough."""


def compare_by_profile(models: Sequence[NamedModel], seed: int) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Return the tables of a comparison by profile, and the content of its run.json.

    Args:
        models: two models with their head runs.
        seed: seed of the bootstrap.
    """
    one, other = models
    words = same_words(read(folder_of(one) / "inputs.parquet", INPUTS), read(folder_of(other) / "inputs.parquet", INPUTS))
    common = [int(example) for example in words["example"]]
    both = [profiles(read(folder_of(m) / "examples.parquet", EXAMPLE_VALUES), examples_in_common=common) for m in models]
    tables = {"matches": match_heads(*both, seed=seed), "layer_matches": match_layers(*both), "words": words}
    about = {
        "kind": "match",
        "baseline": one.name,
        "seed": seed,
        "n_examples": len(common),
        "measures": sorted({str(name) for name in both[0].features.get_level_values("measure")}),
        "warnings": [f"only {len(common)} examples: profiles are rough"] if len(common) < _FEW_EXAMPLES else [],
    }
    return tables, about
