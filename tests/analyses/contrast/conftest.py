"""Shared by the tests of a contrast: two tiny models with planted right and wrong answers.

A random model solves no problem. So the reference of each problem is written after the models have answered: it is the number that one of
them wrote. This plants who is right; everything else is what the command does with real answers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analyses.contrast.options import ContrastConfig
from analyses.contrast.run import contrast_answers
from interp.tables.errors import InputError

N = 24
NEW = 24
MEASURES = ("entropy_nats", "previous_mass")
NO_NUMBER = "#### 987654321"
COMMAND = "python -m analyses.examples --contrast"


def questions() -> list[str]:
    return [f"Ann has {3 * n + 2} pens and buys {n % 5 + 1} packs of {n % 7 + 2}. How many pens?" for n in range(N)]


def write_jsonl(path: Path, answers: list[str]) -> Path:
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in zip(questions(), answers, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def options(out: Path, problems: Path | None, *models: Path, **changes: Any) -> ContrastConfig:
    given = {"measures": MEASURES, "max_new_tokens": NEW, "figures": False, "device": "cpu", **changes}
    return ContrastConfig(models=tuple(map(str, models)), problems=None if problems is None else str(problems), out=out, **given)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., Path]) -> Path:
    """Two tiny models that answered all problems, and a problem file in which each solves problems that the other does not."""
    place = tmp_path_factory.mktemp("contrast")
    for name, seed in (("one", 1), ("two", 2)):
        save_checkpoint(place / name, num_hidden_layers=2, seed=seed)
    blank = write_jsonl(place / "blank.jsonl", [NO_NUMBER] * N)
    with pytest.raises(InputError, match="too few"):
        contrast_answers(options(place / "first", blank, place / "one", place / "two"), command=COMMAND)
    answered = pd.read_parquet(place / "first.partial" / "answers.parquet")
    extracted = {name: part.set_index("problem")["extracted"] for name, part in answered.groupby("model", observed=True)}
    answers = []
    for n in range(N):
        one, two = extracted["one"][n], extracted["two"][n]
        wanted = one if n % 3 == 0 else two if n % 3 == 1 else ""
        answers.append(f"#### {wanted}" if wanted and one != two else NO_NUMBER)
    write_jsonl(place / "planted.jsonl", answers)
    return place


@pytest.fixture(scope="session")
def done(place: Path) -> Path:
    """The finished contrast of the two models on the planted problems, with figures."""
    out = place / "done"
    contrast_answers(options(out, place / "planted.jsonl", place / "one", place / "two", figures=True), command=COMMAND)
    return out


@pytest.fixture
def runs(done: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the two finished head runs, which a test may damage."""
    first, second = (Path(shutil.copytree(done / "heads" / name, tmp_path / "runs" / name)) for name in ("one", "two"))
    return first, second


def run_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def change(folder: Path, **changes: Any) -> None:
    (folder / "run.json").write_text(json.dumps({**run_json(folder), **changes}), encoding="utf-8")
