"""Two models of other architectures: heads matched by what they do, for `analyses.shifts --match`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from analyses.models.named import Named, folder_of
from analyses.shifts.folder import ComparisonFolder

if TYPE_CHECKING:
    from analyses.shifts.options import ShiftsConfig


def match(config: ShiftsConfig, command: str, models: Sequence[Named], folder: ComparisonFolder) -> int:
    """Two models of other architectures: heads matched by profile."""
    import pandas as pd

    from analyses.shifts.profiles import match_heads, match_layers, profiles, same_words
    from interp.tables.heads import EXAMPLE_VALUES, INPUTS
    from interp.tables.schema import read

    one, other = models
    print(f"matching the heads of {one.name} and {other.name}", file=sys.stderr)
    words = same_words(read(folder_of(one) / "inputs.parquet", INPUTS), read(folder_of(other) / "inputs.parquet", INPUTS))
    common = [int(example) for example in words["example"]]
    both = [profiles(read(folder_of(m) / "examples.parquet", EXAMPLE_VALUES), examples_in_common=common) for m in models]
    matches = match_heads(*both, seed=config.seed)
    about = {
        "kind": "match",
        "command": command,
        "baseline": one.name,
        "seed": config.seed,
        "n_examples": len(common),
        "measures": sorted({str(name) for name in both[0].features.get_level_values("measure")}),
        "models": [{**asdict(m), "folder": str(m.folder)} for m in models],
        "warnings": [f"only {len(common)} examples: profiles are rough"] if len(common) < 20 else [],
    }
    folder.write({"matches": matches, "layer_matches": match_layers(*both), "words": words}, about)
    if config.figures:
        folder.draw(config.region)
    for warning in about["warnings"]:
        print(f"warning: {warning}")
    print(
        f"\nHeads of {one.name} and {other.name} matched by profile over {len(common)} examples ({words['n_words'].sum():,} words, "
        f"{words['n_tokens_one'].sum():,} and {words['n_tokens_other'].sum():,} tokens); similarity: Pearson's r of standardised profiles; "
        "margin above 0: each is the other's most similar; stability: share of bootstrap resamples with the same partner.\n"
    )
    print(
        pd.DataFrame(
            {
                "matched": [len(matches)],
                "similarity, mean": [matches["similarity"].mean()],
                "margin > 0": [f"{(matches['margin'] > 0).mean():.0%}"],
                "stability, mean": [matches["stability"].mean()],
                "depth difference, mean": [matches["depth_difference"].abs().mean()],
            }
        ).to_string(index=False, float_format=lambda value: f"{value:.3g}")
    )
    shown = matches.sort_values(["similarity"], ascending=False, kind="stable").head(15)
    print("\nThe most similar:\n\n" + shown.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    print(f"\ntables:  matches, layer_matches, words in {folder.out}")
    return 0
