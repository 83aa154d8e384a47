"""figures.run.draw: files that are written, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from figures.run.catalog import RUN_FIGURES
from figures.run.draw import draw_run
from interp.tables.errors import InputError


def _edit_run(folder: Path, **changes: object) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_every_figure_and_the_page_are_written(run_folder):
    written = draw_run(run_folder)
    run = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    names = [name for name, entry in RUN_FIGURES.items() if not entry.each] + [f"head_map_{measure['name']}" for measure in run["measures"]]
    expected = [run_folder / "figures" / f"{name}.{ending}" for name in names for ending in ("png", "pdf")]
    assert written == [*expected, run_folder / "report.html"]
    assert all(path.stat().st_size > 0 for path in written)
    html = written[-1].read_text(encoding="utf-8")
    assert html.count("<img") == len(names)
    assert len(html) < 6_000_000


def test_drawing_twice_gives_the_same_bytes(few_measures, tmp_path):
    first = draw_run(few_measures, tmp_path / "first")
    second = draw_run(few_measures, tmp_path / "second")
    assert [path.relative_to(tmp_path / "first") for path in first] == [path.relative_to(tmp_path / "second") for path in second]
    assert all(one.read_bytes() == two.read_bytes() for one, two in zip(first, second, strict=True))
    assert not (few_measures / "figures").exists()


def test_another_region_can_be_drawn(few_measures):
    assert "Queries: question" in draw_run(few_measures, region="question")[-1].read_text(encoding="utf-8")


def test_errors_name_the_cause(run_folder, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        draw_run(tmp_path / "absent")
    with pytest.raises(InputError, match="unknown region 'answer'; known: question, response, all"):
        draw_run(run_folder, region="answer")
    _edit_run(run_folder, model={"kind": "hub"})
    with pytest.raises(InputError, match="model needs a name"):
        draw_run(run_folder)
    (run_folder / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="missing command, model"):
        draw_run(run_folder)
    (run_folder / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not readable as JSON"):
        draw_run(run_folder)
    (run_folder / "run.json").unlink()
    with pytest.raises(InputError, match=r"no run\.json"):
        draw_run(run_folder)


def test_a_damaged_table_raises_and_nothing_is_written(run_folder):
    path = run_folder / "heads.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"heads\.parquet"):
        draw_run(run_folder)
    assert not (run_folder / "figures").exists()
    assert not (run_folder / "report.html").exists()


def test_a_measure_that_run_json_does_not_describe_raises(run_folder):
    _edit_run(run_folder, measures=[])
    with pytest.raises(InputError, match="does not describe"):
        draw_run(run_folder)


@pytest.mark.parametrize("name", ["../../elsewhere", "a b", ""])
def test_a_measure_name_cannot_be_a_path(run_folder, name):
    run = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    run["measures"][0]["name"] = name
    _edit_run(run_folder, measures=run["measures"])
    with pytest.raises(InputError, match="letters, digits and underscores"):
        draw_run(run_folder)
