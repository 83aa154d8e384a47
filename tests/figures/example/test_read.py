"""figures.example.read: a folder of one problem, and what raises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from figures.example.read import read_example
from figures.folder import folder_kind
from interp.tables.errors import InputError


def test_a_folder_is_read_with_consistent_tables(example_folder: Callable[..., Path]) -> None:
    folder = example_folder()
    example = read_example(folder)
    assert folder_kind(folder) == "example"
    assert example.models == ["model-0", "model-1"]
    assert set(example.chosen) <= set(example.watched)
    for _, tokens in example.tokens.groupby("model", observed=True):
        text = "".join(tokens["shown"])
        assert example.run["problem"]["question"] in text
    sums = example.edges.groupby(["model", "layer", "head", "query"], observed=True)["probability"].sum()
    assert ((sums > 0.9) & (sums < 1.0001)).all()


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run\.json"):
        read_example(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(InputError, match="a JSON object is needed, found list"):
        read_example(tmp_path)
    (tmp_path / "run.json").write_text('{"kind": "shifts"}')
    with pytest.raises(InputError, match="kind is 'shifts'"):
        read_example(tmp_path)


@pytest.mark.parametrize("missing", ["run.json", "edges.parquet", "next.parquet"])
def test_a_missing_file_is_named(example_folder: Callable[..., Path], missing: str) -> None:
    folder = example_folder()
    (folder / missing).unlink()
    with pytest.raises(InputError, match=missing):
        read_example(folder)


def test_a_missing_key_is_named(example_folder: Callable[..., Path]) -> None:
    folder = example_folder()
    run = json.loads((folder / "run.json").read_text())
    del run["chosen"]
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match="chosen"):
        read_example(folder)


def test_a_model_that_run_json_lacks_raises(example_folder: Callable[..., Path]) -> None:
    folder = example_folder()
    run = json.loads((folder / "run.json").read_text())
    run["models"] = run["models"][:1]
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match="model-1"):
        read_example(folder)


def test_without_a_run_t_is_undefined(example_folder: Callable[..., Path]) -> None:
    standing: pd.DataFrame = read_example(example_folder(compared=False)).standing
    assert standing["t"].isna().all()
    assert np.isfinite(standing["value"]).all()
