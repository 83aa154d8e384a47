"""The comparison of `analyses.shifts --published`: curves and ranking of the published study, from stored maps."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.shifts.published.curves import curve_means, curve_values, variance_ranking
from analyses.shifts.published.stored_maps import open_published
from interp.tables.published import CURVES


def compare_published(folder: Path) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Return the tables of a published comparison, and the content of its run.json.

    Args:
        folder: stored maps, as `analyses.shifts.published.stored_maps.open_published` takes them.
    """
    models = open_published(folder)
    tables = {
        "curves": pd.concat([curve_means(m) for m in models], ignore_index=True),
        "heads": pd.concat([curve_values(m) for m in models], ignore_index=True),
    }
    if len(models) > 1:
        tables["variance"] = variance_ranking(models)
    about = {
        "kind": "published",
        "source": str(folder),
        "n_examples": 1,
        "n_tokens": models[0].n_tokens,
        "n_layers": len(models[0].layers),
        "n_heads": models[0].n_heads,
        "measures": [asdict(info) for info in CURVES.values()],
        "models": [{"name": m.name, "source": str(m.source)} for m in models],
        "warnings": [
            "one text: the curves describe no other problem, and no interval can be given",
            *([] if len(models) > 1 else ["one model: there is no variance between models to rank heads by"]),
        ],
    }
    return tables, about
