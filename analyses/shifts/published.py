"""The published study's curves and ranking from stored maps, for `analyses.shifts --published`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analyses.shifts.options import ShiftsConfig


def compare_published(config: ShiftsConfig, command: str) -> int:
    """The published study's curves and its ranking of heads, from stored maps."""
    import pandas as pd

    from analyses.shifts.folder import ComparisonFolder
    from analyses.shifts.stored_maps import open_published, published_curves, published_heads, variance_ranking
    from interp.tables.published import CURVES

    assert config.published is not None
    models = open_published(config.published)
    folder = ComparisonFolder(config.folder(), force=config.force)
    tables = {
        "curves": pd.concat([published_curves(m) for m in models], ignore_index=True),
        "heads": pd.concat([published_heads(m) for m in models], ignore_index=True),
    }
    if len(models) > 1:
        tables["variance"] = variance_ranking(models)
    about = {
        "kind": "published",
        "command": command,
        "source": str(config.published),
        "n_examples": 1,
        "n_tokens": models[0].n_tokens,
        "n_layers": len(models[0].layers),
        "n_heads": models[0].n_heads,
        "measures": [asdict(info) for info in CURVES.values()],
        "models": [{"name": m.name, "source": str(m.source)} for m in models],
        "warnings": [
            "one text: the curves say nothing of other problems, and no interval can be given",
            *([] if len(models) > 1 else ["one model: there is no variance between models to rank heads by"]),
        ],
    }
    folder.write(tables, about)
    if config.figures:
        folder.draw(config.region)
    for warning in about["warnings"]:
        print(f"warning: {warning}")
    curves = tables["curves"]
    print(
        f"\nPublished curves of {len(models)} models ({len(models[0].layers)} layers x {models[0].n_heads} heads, one text of "
        f"{models[0].n_tokens} tokens), mean over heads:\n"
    )
    print(
        curves.pivot_table(index="layer", columns=["curve", "model"], values="value", observed=True).to_string(float_format="{:.4f}".format)
    )
    if "variance" in tables:
        print(f"\nHeads by variance over the {len(models)} models (mean over all entries of their maps):\n")
        print(tables["variance"].head(10).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    print(f"\ntables:  {', '.join(tables)} in {folder.out}")
    return 0
