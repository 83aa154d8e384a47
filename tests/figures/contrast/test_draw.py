"""figures.contrast.draw: the folder from which figures are drawn, and their files."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from figures import __main__ as command
from figures.contrast.draw import draw_contrast
from interp.tables.contrast import CONTRAST, PAIRED
from interp.tables.errors import InputError
from interp.tables.schema import write
from tests.figures.contrast.cases import INFOS, make_table


def make_folder(folder: Path, table: pd.DataFrame) -> Path:
    folder.mkdir(exist_ok=True)
    write(table, CONTRAST, folder / "contrast.parquet")
    names = [name for name in dict.fromkeys(table["model"].astype(str)) if name != PAIRED]
    run = {
        "kind": "contrast",
        "command": "python -m analyses.examples --contrast",
        "models": [{"name": name} for name in names],
        "measures": [asdict(info) for info in INFOS],
        "region": "response",
        "grader": "first_final",
    }
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_table()


def test_the_command_draws_a_contrast_in_a_style(table, tmp_path, monkeypatch, capsys):
    folder = make_folder(tmp_path / "contrast", table)
    monkeypatch.setattr(sys, "argv", ["figures", str(folder), "--style", "dark", "--measures", "numeric_mass"])
    assert command.main() == 0
    assert "8 figure files" in capsys.readouterr().out
    names = {path.name for path in (folder / "figures").iterdir() if path.suffix == ".png"}
    assert names == {"forest_one.png", "forest_two.png", "forest_paired.png", "contrast_map_paired_numeric_mass.png"}
    with Image.open(folder / "figures" / "forest_paired.png") as image:
        assert image.convert("L").getpixel((5, image.height - 5)) < 40  # pyright: ignore[reportOperatorIssue,reportOptionalOperand]


def test_files_of_an_only_model_do_not_name_it(tmp_path):
    folder = make_folder(tmp_path, make_table(names=("only",)))
    written = draw_contrast(folder, tmp_path / "drawn")
    assert [path.name for path in written if path.suffix == ".pdf"] == [
        "forest.pdf",
        *(f"contrast_map_{info.name}.pdf" for info in INFOS),
    ]
    assert all(path.stat().st_size > 1000 for path in written)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"region": "answer"}, "unknown region 'answer'; known: question, response, all"),
        ({"measures": ["mass"]}, "unknown measure 'mass'; known: entropy_nats"),
        ({"models": ["three"]}, r"unknown model 'three'; known: one, two, \(paired\)"),
    ],
)
def test_unknown_names_raise(table, tmp_path, asked, message):
    with pytest.raises(InputError, match=message):
        draw_contrast(make_folder(tmp_path, table), **asked)


def test_damaged_folders_raise(table, tmp_path):
    folder = make_folder(tmp_path, table)
    (folder / "contrast.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"contrast\.parquet"):
        draw_contrast(folder)
    (folder / "run.json").write_text('{"kind": "contrast"}')
    with pytest.raises(InputError, match="command, models"):
        draw_contrast(folder)
