"""figures.comparison.contrast: what the maps and the forest plots say, and the folder from which they are drawn."""

# A figure may be None by its type; where it were, the test fails as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from PIL import Image

from analyses.contrast.statistics import contrast_table
from figures import __main__ as command
from figures.contrast.draw import draw_contrast
from figures.contrast.forest import forest, forest_rows
from figures.contrast.maps import contrast_map
from figures.drawing.style import use_style
from interp.tables.contrast import CONTRAST, PAIRED
from interp.tables.errors import InputError
from interp.tables.heads import HeadValues
from interp.tables.schema import REGIONS, MeasureInfo, write
from tests.figures.texts import LONG, assert_texts_inside_and_apart

INFOS = (
    MeasureInfo("entropy_nats", "Entropy of attention", "nats", 0.0, None, "−Σ p log p"),
    MeasureInfo("numeric_mass", "Attention on numbers", "probability", 0.0, 1.0, "Σ p"),
    MeasureInfo("numeric_z", "Attention on numbers against shuffles", "standard deviations", None, None, "(x−μ)/σ"),
)
PLANTED = {(0, 1): 0.15, (2, 3): -0.15}


@cache
def make_table(layers: int = 3, heads: int = 4, n: int = 60, names: tuple[str, ...] = ("one", "two"), seed: int = 0) -> pd.DataFrame:
    """Models whose heads in `PLANTED` differ between right and wrong answers; one head of the last measure is undefined."""
    random = np.random.default_rng(seed)
    right = random.random((len(names), n)) < np.linspace(0.3, 0.7, len(names))[:, None]
    runs = []
    for name, verdicts in zip(names, right, strict=True):
        values = random.normal(0.4, 0.1, (n, layers, heads, len(INFOS), len(REGIONS)))
        for (layer, head), size in PLANTED.items():
            values[verdicts, layer, head] += size
        values[:, 1, 1, 2] = np.nan
        runs.append(HeadValues(name, tuple(range(n)), tuple(range(layers)), heads, tuple(info.name for info in INFOS), values))
    return contrast_table(runs, right)


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


def of(table: pd.DataFrame, model: str) -> pd.DataFrame:
    return table[table["model"] == model]


def said_by(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_significant_heads_are_colored_by_sign_and_the_others_gray(table):
    figure = contrast_map(of(table, PAIRED), INFOS[1])
    colors, grays = figure.axes[0].images
    drawn = np.ma.asarray(colors.get_array())
    shown = {(layer, head) for head, layer in zip(*np.nonzero(~np.ma.getmaskarray(drawn)), strict=True)}
    assert shown == set(PLANTED)
    assert {place: bool(drawn[place[::-1]] > 0) for place in shown} == {place: size > 0 for place, size in PLANTED.items()}
    assert not np.ma.getmaskarray(np.ma.asarray(grays.get_array()))[0, 0]


def test_the_subtitle_states_what_is_compared_and_how(table):
    rows = of(table, PAIRED)
    n_right, n_wrong, n = (int(rows[name].max()) for name in ("n_right", "n_wrong", "n_problems"))
    paired = f"{n_right} right, {n_wrong} wrong answers on {n} problems that have both · response queries · models paired by problem"
    for figure in (contrast_map(rows, INFOS[1], "greedy"), forest(rows, {i.name: i for i in INFOS}, "greedy")):
        said = said_by(figure)
        assert paired in said
        assert "Benjamini-Hochberg over 3 × 4 heads" in said
        assert "greedy" in said
        assert "right minus wrong" in said.lower()
    rows = of(table, "two")
    assert f"two · {rows['n_right'].max()} right, {rows['n_wrong'].max()} wrong answers" in said_by(contrast_map(rows, INFOS[1]))
    assert "Welch's t test" in said_by(contrast_map(rows, INFOS[1]))
    assert "2 of 12 heads have q ≤ 0.05" in said_by(contrast_map(of(table, PAIRED), INFOS[0]))
    assert "of 11 heads" in said_by(contrast_map(rows, INFOS[2]))


def test_a_table_with_several_models_raises(table):
    with pytest.raises(InputError, match="3 models"):
        contrast_map(table, INFOS[1])


def test_forest_rows_are_sorted_by_q_with_their_intervals(table):
    rows = of(table, PAIRED)
    chosen = forest_rows(rows, "response")
    figure = forest(rows, {info.name: info for info in INFOS})
    assert len(figure.axes) == len(chosen) == 3
    for axes, (name, heads) in zip(figure.axes, chosen.items(), strict=True):
        info = next(info for info in INFOS if info.name == name)
        assert info.title in axes.get_title(loc="left")
        assert list(heads["q"]) == sorted(heads["q"])
        labels = [text.get_text() for text in axes.get_yticklabels()]
        assert labels == [f"{layer}.{head}" for layer, head in zip(heads["layer"], heads["head"], strict=True)]
        assert set(labels[:2]) == {"0.1", "2.3"}
        segments = np.concatenate([lines.get_segments() for lines in axes.collections if isinstance(lines, LineCollection)])
        drawn = {round(y): (low, high) for (low, y), (high, _) in segments}
        for at, (low, high) in enumerate(zip(heads["ci_low"], heads["ci_high"], strict=True)):
            assert drawn[at] == pytest.approx((low, high))
        assert sum(text.get_text().startswith("q ") for text in axes.texts) == len(heads)


def test_without_a_test_there_is_no_figure(table):
    empty = of(table, "one").assign(difference=np.nan, p=np.nan, q=np.nan, ci_low=np.nan, ci_high=np.nan)
    assert contrast_map(empty, INFOS[1]) is None
    assert forest(empty, {info.name: info for info in INFOS}) is None
    assert contrast_map(of(table, "one"), MeasureInfo("self_mass", "Self", "probability", 0, 1, "p")) is None


@pytest.mark.parametrize("name", ["paper", "slides", "dark"])
@pytest.mark.parametrize(("layers", "heads"), [(3, 4), (32, 32)])
def test_texts_are_inside_and_do_not_overlap_in_any_style(name, layers, heads):
    with use_style(name):
        table = make_table(layers, heads, n=20, names=(LONG[:30], "two"))
        for model in (LONG[:30], PAIRED):
            assert_texts_inside_and_apart(forest(of(table, model), {info.name: info for info in INFOS}, "own answers"))
            assert_texts_inside_and_apart(contrast_map(of(table, model), INFOS[2], "own answers"))


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
