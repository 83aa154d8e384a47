from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from figures.example.read import is_example, read_example
from interp.tables.errors import InputError


def test_a_folder_is_read(example_folder: Callable[..., Path]) -> None:
    folder = example_folder()
    example = read_example(folder)
    assert is_example(folder)
    assert example.models == ["model-0", "model-1"]
    assert set(example.chosen) <= set(example.watched)
    for _, tokens in example.tokens.groupby("model", observed=True):
        text = "".join(tokens["shown"])
        assert example.run["problem"]["question"] in text
    sums = example.edges.groupby(["model", "layer", "head", "query"], observed=True)["probability"].sum()
    assert ((sums > 0.9) & (sums < 1.0001)).all()


def test_other_folders_are_none(tmp_path: Path) -> None:
    assert not is_example(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    assert not is_example(tmp_path)


@pytest.mark.parametrize("missing", ["run.json", "edges.parquet", "next.parquet"])
def test_a_missing_file_is_named(example_folder: Callable[..., Path], missing: str) -> None:
    folder = example_folder()
    (folder / missing).unlink()
    with pytest.raises(InputError, match=missing):
        read_example(folder)


def test_a_key_that_is_missing_is_named(example_folder: Callable[..., Path]) -> None:
    folder = example_folder()
    run = json.loads((folder / "run.json").read_text())
    del run["chosen"]
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match="chosen"):
        read_example(folder)


def test_a_stranger_among_the_models(example_folder: Callable[..., Path]) -> None:
    folder = example_folder()
    run = json.loads((folder / "run.json").read_text())
    run["models"] = run["models"][:1]
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match="model-1"):
        read_example(folder)


def test_without_a_run_to_compare_with(example_folder: Callable[..., Path]) -> None:
    standing: pd.DataFrame = read_example(example_folder(compared=False)).standing
    assert standing["t"].isna().all()
    assert np.isfinite(standing["value"]).all()
