"""figures.example.draw: files, command, and texts of every figure in every style."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from figures import __main__ as command
from figures.drawing import entry
from figures.drawing.style import active_style, save_figure, use_style
from figures.example.attention_arcs import (
    attention_arcs,
)
from figures.example.draw import draw_example, draw_example_figures, parse_head
from figures.example.probabilities import number_probabilities
from figures.example.read import Example, read_example
from figures.example.standing import standing_map
from figures.example.steps import step_bars
from figures.example.token_maps import token_map
from interp.tables.errors import InputError, OptionError
from tests.figures.texts import assert_texts_inside_and_apart

STEP = "Then she gives 12 clips to each of 3 friends, which is 12*3 = <<12*3=36>>36 clips in all, as $1,250.50 was not enough."
LONG = "\n".join([STEP] * 6) + "\n#### 36"
ODD = "يشتري 3 علب من 12 قلم $x_1^2$ = 36 🙂 \U0001d53d😀 中文 ש\n\\frac{1}{2} 36*2=72_a^b $3$ & $ {%} " + "w" * 250 + "\n\n#### 72"
CASES = {
    "usual": {},
    "one model": {"answers": ("3*12=36\n#### 36",)},
    "reference": {"answers": (LONG, LONG)},
    "three models": {"answers": (LONG, "3*12=36", STEP)},
    "odd": {"question": "كم قلم؟ Pay $5 and $6_x^2? 🙂 한국어", "answers": (ODD, "ok $\n#### 72")},
    "no numbers": {"question": "What?", "answers": ("none\n\n", "none\nat all"), "compared": False},
    "one head": {"layers": 1, "heads": 1, "answers": ("#### 5",)},
    "long names": {"answers": (STEP, STEP + "\n" + STEP)},
}
NAME = "An-Organisation/a-model-with-quite-a-long-name-135M-Instruct-v2-$x_1$-模型-"


def with_long_names(example: Example) -> Example:
    names = {name: NAME + name for name in example.models}
    run = {**example.run, "models": [{**model, "name": names[model["name"]]} for model in example.run["models"]]}
    tables = {name: getattr(example, name) for name in ("tokens", "edges", "standing", "steps", "next")}
    return dataclasses.replace(
        example, run=run, **{name: table.assign(model=table["model"].astype(str).map(names)) for name, table in tables.items()}
    )


def figures_of(example: Example) -> Iterator[Figure]:
    head = example.chosen[0]
    yield token_map(example, head)
    yield token_map(example, head, "numbers", "numbers")
    yield attention_arcs(example, head)
    yield standing_map(example)
    yield step_bars(example, example.chosen)
    yield number_probabilities(example)


@pytest.mark.parametrize(("name", "width"), [("paper", None), ("slides", "one")])
@pytest.mark.parametrize("case", CASES)
def test_texts_are_inside_and_do_not_overlap(example_folder, case, name, width):
    example = read_example(example_folder(**CASES[case], **({} if case == "one head" else {"watched": [(1, 0), (1, 1)]})))
    example = with_long_names(example) if case == "long names" else example
    with use_style(name, width):
        for figure in figures_of(example):
            assert figure.get_figwidth() in (active_style().one, active_style().two)
            assert_texts_inside_and_apart(figure, overlap=1.5)


@pytest.mark.parametrize(("name", "width"), [("paper", "one"), ("slides", None), ("dark", None)])
def test_texts_do_not_overlap_in_any_style_and_width(example_folder, name, width):
    example = read_example(example_folder(answers=("\n".join([STEP] * 3), STEP), watched=[(1, 0)]))
    with use_style(name, width):
        for figure in figures_of(example):
            assert_texts_inside_and_apart(figure, overlap=1.5)


def test_a_text_of_four_hundred_tokens_fits_a_page(example_folder, tmp_path):
    example = read_example(example_folder(answers=("\n".join([STEP] * 9),), layers=2, heads=2, watched=[(0, 1)]))
    assert len(example.tokens) > 400
    for figure in figures_of(example):
        assert_texts_inside_and_apart(figure, overlap=1.5)
        assert figure.get_figheight() < 9.5  # a page
        save_figure(figure, tmp_path, "figure")


def test_files_are_named_by_figure_and_head(example_folder, tmp_path):
    example = read_example(example_folder(answers=("3*12=36",), watched=[(0, 0), (2, 3)]))
    written = draw_example_figures(example, tmp_path, [(2, 3), (2, 3)])
    names = ["map_2_3", "numbers_2_3", "arcs_2_3", "standing", "steps", "number_probabilities"]
    assert written == [tmp_path / "figures" / f"{name}.{ending}" for name in names for ending in ("png", "pdf")]
    assert all(path.stat().st_size > 1000 for path in written)
    first = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in draw_example_figures(example, tmp_path, [(2, 3)])] == first


def test_the_first_four_chosen_heads_are_drawn(example_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(entry, "save_figure", lambda _, folder, name: [folder / f"{name}.png"])  # which heads counts here, not their pixels
    example = read_example(example_folder(question="5?", answers=("5",)))
    chosen = [(2, 0), (0, 1), (1, 1), (1, 2), (0, 0)]
    example = dataclasses.replace(example, run={**example.run, "chosen": chosen})
    maps = [path.stem for path in draw_example_figures(example, tmp_path) if path.name.startswith("map")]
    assert maps == ["map_2_0", "map_0_1", "map_1_1", "map_1_2"]


def test_a_head_without_a_map_raises_before_anything_is_written(example_folder, tmp_path):
    example = read_example(example_folder(watched=[(0, 0), (2, 3)]))
    with pytest.raises(InputError, match=r"head 1\.1 was not watched.*watched: 0\.0, 2\.3"):
        draw_example_figures(example, tmp_path / "out", [(0, 0), (1, 1)])
    with pytest.raises(InputError, match="no head to draw"):
        draw_example_figures(example, tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["3", "3.1.2", "a.b", "-1.2", "3,1", "².1"])
def test_a_head_must_be_written_as_layer_dot_head(text):
    assert parse_head("12.3") == (12, 3)
    with pytest.raises(OptionError, match=r"layer\.head"):
        parse_head(text)


# --- with the page and the command --------------------------------------------------------------------------------------


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that contains only the question."""
    monkeypatch.setattr("figures.example.draw.example_page", lambda example: f"page of {example.run['problem']['question']} ▯")


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["figures", *map(str, arguments)])
    return command.main()


@pytest.mark.usefixtures("page")
def test_the_page_is_written_last(example_folder):
    folder = example_folder(answers=("3*12=36",))
    written = draw_example(folder, heads=[(0, 1)])
    assert written[-1] == folder / "example.html"
    assert written[-1].read_text(encoding="utf-8") == f"page of {read_example(folder).run['problem']['question']} ▯"
    assert len(written) == 13


@pytest.mark.usefixtures("page")
def test_the_command_draws_chosen_heads_in_a_style(monkeypatch, capsys, example_folder, tmp_path):
    out = tmp_path / "drawn"
    arguments = (example_folder(answers=("3*12=36",)), "--out", out, "--heads", "1.2", "0.1", "--style", "dark", "--width", "one")
    assert _run(monkeypatch, *arguments) == 0
    assert sorted(path.name for path in (out / "figures").glob("map*.png")) == ["map_0_1.png", "map_1_2.png"]
    assert "18 figure files" in capsys.readouterr().out
    assert (out / "example.html").is_file()
    with Image.open(out / "figures" / "arcs_0_1.png") as image:
        assert image.width == int(3.35 * 300)
        assert image.convert("L").getpixel((5, image.height - 5)) < 40  # pyright: ignore[reportOperatorIssue,reportOptionalOperand]


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--heads", "2.2"), "watched: 0.0"),
        (("--heads", "two"), "layer.head"),
        (("--region", "all"), "--region applies to a head run, a comparison or a contrast"),
        (("--measures", "bos_mass"), "--measures applies to a comparison or a contrast"),
    ],
)
def test_an_error_prints_one_line_and_exits_with_2(monkeypatch, capsys, example_folder, arguments, said):
    assert _run(monkeypatch, example_folder(watched=[(0, 0)]), *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_heads_raise_for_other_kinds_of_folders(monkeypatch, capsys, run_folder: Path):
    assert _run(monkeypatch, run_folder, "--heads", "1.2") == 2
    assert "--heads applies to one problem" in capsys.readouterr().err
    (run_folder / "run.json").write_text(json.dumps({"kind": "shifts"}), encoding="utf-8")
    assert _run(monkeypatch, run_folder, "--heads", "1.2") == 2
