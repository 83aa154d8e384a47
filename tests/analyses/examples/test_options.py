"""Options are checked before anything is opened, and --contrast passes its own on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.analyses.examples.conftest import SHORT, Ran


@pytest.mark.parametrize("more", [[], ["--contrast"], ["--debug"]])
def test_an_empty_model_name_is_refused(inspect: Callable[..., Ran], more: list[str]) -> None:
    ran = inspect("--model", "", *more)
    assert ran.code == 2
    assert ran.err.startswith("error: --model is empty; give a hub id, ")


def test_the_contrast_gets_the_options(inspect: Callable[..., Ran], checkpoint: Path) -> None:
    ran = inspect("--contrast", "--limit", 3, "--measures", "entropy_nats", *SHORT)
    assert ran.code == 2
    assert "0 right, 3 wrong" in ran.err  # a random model; the tests of analyses.contrast plant right answers
    assert len(pd.read_parquet("out.partial/answers.parquet")) == 3
    assert json.loads((Path("out.partial/heads") / checkpoint.name / "run.json").read_text())["config"]["max_new_tokens"] == 12
