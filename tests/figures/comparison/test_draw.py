"""figures.comparison.draw: figures and page of a comparison, and folders that raise."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analyses.shifts.differences import (
    accuracy_slopes_table,
    agreement_table,
    condition_shifts_table,
    divergences_table,
    layers_table,
    ranks_table,
    shifts_table,
)
from figures.comparison.draw import draw_comparison
from figures.comparison.read import HEADLINE_MEASURES
from figures.drawing import entry
from figures.drawing.style import use_style
from figures.folder import folder_kind
from interp.tables.errors import InputError
from interp.tables.heads import HeadValues, ModelRun
from interp.tables.published import CURVES
from interp.tables.schema import REGIONS, MeasureInfo, write
from interp.tables.shifts import SHIFT_TABLES

MEASURES = ("entropy_nats", "numeric_mass")
INFOS = [MeasureInfo(name, name.replace("_", " "), "probability", 0, None, "f") for name in MEASURES]
INPUTS = pd.DataFrame({"example": [0], "position": [0]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A comparison of three conditions with two seeds each, as `analyses.shifts` writes it."""
    random = np.random.default_rng(0)
    base = random.random((12, 3, 4, len(MEASURES), len(REGIONS)))
    runs = [ModelRun(HeadValues("untouched", tuple(range(12)), (0, 1, 2), 4, MEASURES, base), INPUTS, "untouched")]
    for condition in ("none", "teacher", "<b>odd & co"):
        for seed in (0, 1):
            values = base + random.normal(0, 0.05, (1, 3, 4, 2, 3)) + random.normal(0, 0.02, base.shape)
            runs.append(
                ModelRun(HeadValues(f"{condition}-seed{seed}", tuple(range(12)), (0, 1, 2), 4, MEASURES, values), INPUTS, condition, seed)
            )
    others = runs[1:]
    rows = [
        {
            "model": r.name,
            "baseline": "untouched",
            "example": e,
            "layer": la,
            "head": h,
            "measure": "js",
            "region": region,
            "value": 0.01 * e,
        }
        for r in others
        for e in range(3)
        for la in range(3)
        for h in range(4)
        for region in REGIONS
    ]
    tables = {
        "shifts": pd.concat([shifts_table(runs[0], r) for r in others], ignore_index=True),
        "conditions": pd.concat([condition_shifts_table(runs[:1], others[at : at + 2]) for at in (0, 2, 4)], ignore_index=True),
        "layers": pd.concat([layers_table(runs[0], r) for r in runs], ignore_index=True),
        "ranks": pd.concat([ranks_table(r) for r in runs], ignore_index=True),
        "agreement": agreement_table(runs),
        "accuracy": accuracy_slopes_table(runs[0].values, [r.values for r in others], list(random.random(6))),
        "divergences": divergences_table(pd.DataFrame(rows)),
    }
    for name, table in tables.items():
        write(table, SHIFT_TABLES[name], tmp_path / f"{name}.parquet")
    models = [{"model": r.name, "condition": r.condition, "seed": r.seed, "accuracy": 0.3, "shift": 0.5} for r in runs]
    known = pd.DataFrame(models).assign(accuracy_low=0.2, accuracy_high=0.4, n_problems=50)
    known.astype({"seed": "Int64"}).to_csv(tmp_path / "models.csv", index=False)
    about = {
        "kind": "shifts",
        "command": "python -m analyses.shifts",
        "baseline_models": ["untouched"],
        "baseline": "untouched",
        "region": "response",
        "seed": 0,
        "text": "reference",
        "n_examples": 12,
        "n_layers": 3,
        "n_heads": 4,
        "measures": [asdict(info) for info in INFOS],
        "models": [{"name": r.name} for r in runs],
        "warnings": ["only 12 <examples>"],
        "versions": {"numpy": "2"},
    }
    (tmp_path / "run.json").write_text(json.dumps(about))
    return tmp_path


def change(folder: Path, **changes: Any) -> None:
    run = {**json.loads((folder / "run.json").read_text()), **changes}
    (folder / "run.json").write_text(json.dumps({key: value for key, value in run.items() if value is not None}))


def test_a_comparison_has_figures_and_a_page(folder: Path, tmp_path: Path) -> None:
    assert folder_kind(folder) == "shifts"
    written = draw_comparison(folder, tmp_path / "out", measures=("entropy_nats",))
    names = {path.stem for path in written}
    assert {"accuracy", "layers_entropy_nats", "difference_entropy_nats_teacher", "volcano_entropy_nats_none", "divergence_map"} <= names
    assert {"ranks_entropy_nats", "agreement_entropy_nats", "accuracy_against_shift", "accuracy_entropy_nats"} <= names
    assert not any("numeric_mass" in name for name in names)
    page = written[-1].read_text(encoding="utf-8")
    titles = re.findall(r"<h2 id=\"section-\d+\">(.+?)</h2>", page)
    assert titles[:3] == ["Accuracy", "Layers", "Heads"]
    assert "only 12 &lt;examples&gt;" in page
    assert "<b>odd" not in page
    assert "&lt;b&gt;odd &amp; co" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)  # nothing from elsewhere
    assert page.count("<img") == len([path for path in written if path.suffix == ".png"])


def test_drawing_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    both = [draw_comparison(folder, tmp_path / name, measures=("entropy_nats",), models=("teacher",)) for name in ("one", "two")]
    assert [p.name for p in both[0]] == [p.name for p in both[1]]
    for one, two in zip(*both, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name


def test_models_measures_and_region_can_be_chosen(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(figure: Figure, folder: Path, name: str) -> list[Path]:
        figure.savefig(folder / f"{name}.png", dpi=20)  # which are drawn counts here, not their pixels
        return [folder / f"{name}.png"]

    monkeypatch.setattr(entry, "save_figure", save)
    with use_style("dark"):
        written = draw_comparison(folder, tmp_path / "out", "question", ("numeric_mass",), ("teacher-seed1",))
    names = {path.stem for path in written}
    assert "difference_numeric_mass_teacher-seed1" in names
    assert not any(name.startswith("difference") and "teacher-seed1" not in name for name in names)
    for wrong in ({"measures": ("mass",)}, {"models": ("nobody",)}, {"region": "answer"}):
        with pytest.raises(InputError, match="unknown"):
            draw_comparison(folder, tmp_path / "o2", **wrong)  # pyright: ignore[reportArgumentType]


def test_published_curves_have_a_page(tmp_path: Path) -> None:
    layers = np.repeat(range(3), len(CURVES))
    curves = pd.DataFrame({"model": "AI", "layer": layers, "curve": list(CURVES) * 3, "unit": "1", "value": 0.5, "sd": 0.1, "n_heads": 2})
    heads = pd.concat([curves[["model", "layer", "curve", "value"]].assign(head=h) for h in (0, 1)])
    curves.to_csv(tmp_path / "curves.csv", index=False)
    heads.to_csv(tmp_path / "heads.csv", index=False)
    about = {"kind": "published", "command": "c", "n_examples": 1, "warnings": [], "models": [{"name": "AI"}]}
    (tmp_path / "run.json").write_text(json.dumps({**about, "measures": [asdict(info) for info in CURVES.values()]}))
    written = draw_comparison(tmp_path, tmp_path / "out")
    assert [path.name for path in written] == ["published_curves.png", "published_curves.pdf", "report.html"]
    assert "Published maps of AI" in written[-1].read_text(encoding="utf-8")


def test_a_folder_that_is_not_a_comparison_raises(folder: Path) -> None:
    for changes, words in (
        ({"kind": "other"}, "kind is 'other'"),
        ({"kind": "shifts", "measures": None}, "missing measures"),
    ):
        change(folder, **changes)
        with pytest.raises(InputError, match=words):
            draw_comparison(folder)
    (folder / "run.json").write_text("{")
    with pytest.raises(InputError, match="not readable"):
        draw_comparison(folder)
    assert set(MEASURES) <= set(HEADLINE_MEASURES)
