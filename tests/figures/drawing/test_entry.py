"""figures.drawing.entry: which figures of a catalog are drawn, in what order, under which names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from figures.drawing import entry
from figures.drawing.entry import Choice, FigureEntry, draw_figures
from interp.tables.errors import InputError


@dataclass
class Content:
    """Two measures, two models and one table; `drawn` collects the arguments of drawing functions."""

    drawn: list[tuple[Any, ...]] = field(default_factory=list)

    def table_names(self) -> tuple[str, ...]:
        return ("heads",)

    def choices(self, of: Choice) -> Mapping[str, Any]:
        return {"measure": {"m0": "M0", "m1": "M1"}, "model": {"a-b": "a b", "": "only"}}.get(of, {})

    def caption_fields(self, chosen: Mapping[Choice, Any]) -> dict[str, str]:
        return {"n": "n = 4", "measure": "", **chosen}


def figure_of(content: Content, *chosen: str) -> Figure:
    content.drawn.append(chosen)
    return Figure()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Names of the figures that are drawn from a catalog; no file is written."""
    monkeypatch.setattr(entry, "save_figure", lambda figure, folder, name: [folder / f"{name}.png"])
    return lambda content, own: [figure.name for figure in draw_figures("run_figures", own, content, tmp_path)]


def test_a_figure_is_drawn_for_each_choice_and_named_by_it(names):
    content = Content()
    assert names(content, {"map": FigureEntry(figure_of, "", each=("measure", "model"))}) == [
        "map_m0_a-b",
        "map_m1_a-b",
        "map_m0",
        "map_m1",
    ]
    assert content.drawn == [("M0", "a b"), ("M1", "a b"), ("M0", "only"), ("M1", "only")]


def test_neighbors_with_the_same_choices_are_drawn_together(names):
    own = {"one": FigureEntry(figure_of, "", each=("measure",)), "two": FigureEntry(figure_of, "", each=("measure",), files="second")}
    assert names(Content(), own) == ["one_m0", "second_m0", "one_m1", "second_m1"]


def test_a_figure_without_its_table_or_without_content_is_left_out(names):
    own = {
        "needs": FigureEntry(figure_of, "", needs=("heads", "lora")),
        "none": FigureEntry(lambda content: None, ""),
        "drawn": FigureEntry(figure_of, "", needs=("heads",)),
    }
    assert names(Content(), own) == ["drawn"]


def test_captions_are_filled_in(tmp_path: Path):
    own = {"map": FigureEntry(figure_of, "{measure}, {n}.", each=("measure",), section="maps")}
    drawn = draw_figures("run_figures", own, Content(), tmp_path / "figures")
    assert [(figure.caption, figure.section) for figure in drawn] == [("M0, n = 4.", "maps"), ("M1, n = 4.", "maps")]
    assert [path.name for path in drawn[0].files] == ["map_m0.png", "map_m0.pdf"]
    assert all(path.is_file() for figure in drawn for path in figure.files)


MINE = FigureEntry(figure_of, "mine")


def test_figures_of_installed_packages_follow_the_own_ones(names, monkeypatch):
    point = EntryPoint("mine", f"{__name__}:MINE", "primed_heads.run_figures")
    monkeypatch.setattr(EntryPoint, "load", lambda self: MINE)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point] if group == "primed_heads.run_figures" else [])
    assert names(Content(), {"own": FigureEntry(figure_of, "")}) == ["own", "mine"]
    with pytest.raises(InputError, match="run_figures: mine is defined twice"):
        names(Content(), {"mine": FigureEntry(figure_of, "")})
