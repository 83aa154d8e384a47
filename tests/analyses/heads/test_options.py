"""Options: limits, defaults, names of earlier versions, and what another command passes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analyses.heads.options import HeadsConfig, heads_config
from analyses.options import ReadingOptions
from interp.tables.errors import OptionError
from tests.analyses.heads.conftest import error_of, nothing_at, run_of

Heads = Callable[..., Any]
"""The fixture that runs the command: `(*arguments)` -> code, out, err."""
Tables = Callable[[Path], dict[str, pd.DataFrame]]
Save = Callable[..., Path]


def test_default_folder_is_named_after_the_model(heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert heads("--limit", "1", "--measures", "bos_mass").code == 0
    assert heads("--limit", "1", "--measures", "bos_mass", "--text", "generated", "--max-new-tokens", "2").code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tiny", "tiny-generated"]


def test_unknown_options_exit_with_2(heads: Heads, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--nonsense"], ["--limit", "many"], ["--text", "silver"]):
        with pytest.raises(SystemExit) as exit_:
            heads("--out", tmp_path / "run", *arguments)
        assert exit_.value.code == 2
        assert arguments[-1] in capfd.readouterr().err
    assert nothing_at(tmp_path / "run")


def test_limit_measures_and_name_are_applied(heads: Heads, tmp_path: Path, tables: Tables, good: Path) -> None:
    ran = heads("--out", tmp_path / "run", "--limit", "2", "--measures", "bos_mass", "entropy_nats", "--name", "my model")
    assert ran.code == 0
    found = tables(tmp_path / "run")
    assert found["examples"]["example"].unique().tolist() == [0, 1]
    assert set(found["heads"]["measure"]) == {"bos_mass", "entropy_nats"}
    assert found["heads"]["model"].unique().tolist() == ["my model"]
    assert [measure["name"] for measure in run_of(tmp_path / "run")["measures"]] == found["heads"]["measure"].unique().tolist()
    key = ["example", "layer", "head", "measure", "region"]
    mine = found["examples"].set_index(key)["value"].sort_index()
    whole = tables(good)["examples"].set_index(key)["value"]
    np.testing.assert_allclose(mine, whole.reindex(mine.index), rtol=1e-6, atol=1e-6)


def test_measures_may_be_separated_by_commas(checkpoint: Path, heads: Any, tmp_path: Path) -> None:
    ran = heads("--model", checkpoint, "--out", tmp_path / "run", "--measures", "entropy_nats,bos_mass", "--no-figures", "--limit", 2)
    assert ran.code == 0, ran
    assert set(pd.read_parquet(tmp_path / "run" / "heads.parquet")["measure"]) == {"entropy_nats", "bos_mass"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resume", "--force"], ("--resume", "--force")),
        (["--limit", "0"], ("--limit is 0", "at least 1")),
        (["--batch-tokens", "0"], ("--batch-tokens is 0", "at least 1")),
        (["--max-new-tokens", "-3"], ("--max-new-tokens is -3", "at least 1")),
        (["--seed", "-1"], ("--seed is -1", "at least 0")),
    ],
)
def test_options_out_of_range_are_refused(heads: Heads, tmp_path: Path, arguments: list[str], words: tuple[str, ...]) -> None:
    out = tmp_path / "out" / "run"
    message = error_of(heads("--out", out, *arguments))
    assert all(word in message for word in words)
    assert not out.parent.exists()


def test_another_command_passes_its_options_on() -> None:
    """`heads_config` takes every option of `ReadingOptions`; force and figures are the other command's own business."""
    given = ReadingOptions(
        problems="mine.jsonl",
        split="train",
        limit=3,
        chat=False,
        measures=("bos_mass",),
        batch_tokens=64,
        base="base",
        device="cpu",
        dtype="float32",
        trust_remote_code=True,
        seed=4,
        force=True,
        debug=True,
    )
    found = heads_config(given, model="m", text="generated", limit=None)
    assert found == HeadsConfig(
        model="m",
        text="generated",
        problems="mine.jsonl",
        split="train",
        limit=None,
        chat=False,
        measures=("bos_mass",),
        batch_tokens=64,
        base="base",
        device="cpu",
        dtype="float32",
        trust_remote_code=True,
        seed=4,
        figures=False,
        debug=True,
    )
    assert heads_config(ReadingOptions()).problems == "shipped"


def test_options_are_keywords_and_checked_where_they_are_made() -> None:
    with pytest.raises(OptionError, match="--batch-tokens is 0; at least 1 is needed"):
        ReadingOptions(batch_tokens=0)
    with pytest.raises(TypeError):
        HeadsConfig("smollm2")  # pyright: ignore[reportCallIssue]
