"""What version 0.1 wrote still works: it is opened, compared and resumed with equal results (tests/fixtures/version_0_1/README.md)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from interp.tables.versions import MOVED, OLD_KEYS, current, current_columns

FIXTURES = Path(__file__).parent / "fixtures" / "version_0_1"
COMMON = ("--problems", "problems.jsonl", "--device", "cpu", "--no-figures")
HEADS = ("heads.parquet", "examples.parquet", "inputs.parquet")


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of everything, as the working directory."""
    place = tmp_path / "old"
    shutil.copytree(FIXTURES, place)
    monkeypatch.chdir(place)
    return place


def table(path: Path) -> pd.DataFrame:
    return current_columns(pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path))


def assert_same_tables(expected: Path, found: Path, names: Iterable[str] | None = None, *, without: Iterable[str] = ()) -> None:
    """Every table of one folder equals that of the other, under today's column names."""
    names = list(names or sorted(path.name for path in expected.iterdir() if path.suffix in (".parquet", ".csv")))
    assert names
    for name in names:
        one, other = (table(folder / name).drop(columns=list(without), errors="ignore") for folder in (expected, found))
        pd.testing.assert_frame_equal(one, other[list(one.columns)], rtol=1e-5, atol=1e-7, check_dtype=False, check_categorical=False)


def heads(*arguments: object) -> int:
    from analyses.heads.__main__ import main

    return main([str(argument) for argument in arguments])


def shifts(*arguments: object) -> int:
    from analyses.shifts.__main__ import main

    return main([str(argument) for argument in (*arguments, "--device", "cpu", "--no-figures")])


def examples(*arguments: object) -> int:
    from analyses.examples.__main__ import main

    return main([str(argument) for argument in (*arguments, "--device", "cpu", "--no-figures")])


def distill(*arguments: object) -> int:
    from distill.__main__ import main

    return main([str(argument) for argument in (*arguments, "--quiet")])


def never(*_: Any, **__: Any) -> Any:
    pytest.fail("a result of version 0.1 was made again")


def contents(folder: Path, *, without: Iterable[str] = (".lock",)) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in without
    }


# --- head runs ------------------------------------------------------------------------------------------------------------


def test_a_half_finished_head_run_resumes_to_the_tables_of_an_uninterrupted_one(old: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert heads("--model", "models/tiny", *COMMON, "--batch-tokens", 130, "--out", "heads_half", "--resume") == 0
    assert "2 of 5 batches" in capfd.readouterr().err
    assert_same_tables(old / "heads_half_expected", old / "heads_half", HEADS)


def test_truncated_answers_of_finished_batches_are_counted_after_resuming(old: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--text", "generated", "--max-new-tokens", 24, "--batch-tokens", 200, "--measures", "entropy_nats", "numeric_mass")
    assert heads("--model", "models/tiny", *COMMON, *options, "--out", "heads_generated_half", "--resume") == 0
    assert "2 of 3 batches" in capfd.readouterr().err
    assert_same_tables(old / "heads_generated", old / "heads_generated_half", HEADS)
    run = json.loads((old / "heads_generated_half" / "run.json").read_text())
    before = json.loads((old / "heads_generated" / "run.json").read_text())
    assert run["generated"]["n_truncated"] == before["generated"]["n_cut"] == 7


def test_a_finished_head_run_is_replaced_only_with_force(old: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = contents(old / "heads_run")
    assert heads("--model", "models/tiny", *COMMON, "--out", "heads_run") == 2
    assert "--force" in capfd.readouterr().err
    assert contents(old / "heads_run") == before


def test_old_options_give_the_tables_of_the_new_ones(old: Path) -> None:
    old_names = ("--text", "gold", "--way", "blocked")
    assert heads("--model", "models/tiny", *COMMON, *old_names, "--out", "again") == 0
    assert_same_tables(old / "heads_run", old / "again", HEADS)
    run = json.loads((old / "again" / "run.json").read_text())
    assert (run["text"], run["config"]["backend"]) == ("reference", "blocked")
    assert not set(OLD_KEYS) & (set(run) | set(run["config"]))


def test_old_options_are_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        heads("--help")
    text = capsys.readouterr().out
    assert "--backend" in text
    assert "--way" not in text
    assert "gold" not in text


# --- comparisons ----------------------------------------------------------------------------------------------------------


def test_old_head_runs_give_the_old_comparison(old: Path) -> None:
    assert shifts("heads_run", "heads_run_lora", "--out", "again") == 0
    assert_same_tables(old / "comparison", old / "again")


def test_old_head_runs_are_matched_as_before(old: Path) -> None:
    assert shifts("heads_run", "heads_run_lora", "--match", "--out", "again") == 0
    assert_same_tables(old / "match", old / "again")


def test_old_trajectories_give_the_old_table(old: Path) -> None:
    assert shifts("--trajectory", "study_full/students/finetune-seed0", "study_full/students/teacher-seed0", "--out", "again") == 0
    assert_same_tables(old / "trajectory", old / "again")


def test_a_new_head_run_compares_with_an_old_one(old: Path) -> None:
    assert heads("--model", "models/tiny", *COMMON, "--out", "new") == 0
    assert shifts("new", "heads_run_lora", "--out", "again") == 0
    assert_same_tables(old / "comparison", old / "again", ["shifts.parquet"], without=["model", "baseline"])


def test_a_finished_comparison_is_replaced_only_with_force_and_measures_nothing_again(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--study", "study_full", "--limit", 3, "--measures", "entropy_nats", "--out", "comparison_study")
    before = contents(old / "comparison_study")
    assert shifts(*arguments) == 2
    assert contents(old / "comparison_study") == before
    monkeypatch.setattr("analyses.heads.batches.record_batch", never)
    assert shifts(*arguments, "--force") == 0
    assert_same_tables(FIXTURES / "comparison_study", old / "comparison_study")


# --- one problem, right and wrong answers, grades -------------------------------------------------------------------------


def test_an_old_contrast_is_made_again_from_its_head_runs(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyses.heads.batches.record_batch", never)
    options = ("--measures", "entropy_nats", "previous_mass", "--max-new-tokens", 24, "--out", "contrast")
    models = ("--model", "models/tiny", "models/lora", "--problems", "contrast_problems.jsonl")
    assert examples("--contrast", *models, *options) == 2
    assert examples("--contrast", *models, *options, "--force") == 0
    assert_same_tables(FIXTURES / "contrast", old / "contrast")


def test_an_old_look_at_one_problem_is_made_again(old: Path) -> None:
    assert examples("--model", "heads_run", "--problem", 3, "--watch", "0.2", "1.3", "--out", "example") == 0
    assert_same_tables(FIXTURES / "example", old / "example")


def test_old_grades_are_made_again(old: Path) -> None:
    from analyses.grades.__main__ import main

    assert main(["responses.jsonl", "--resamples", "200", "--out", "grades"]) == 0
    assert_same_tables(FIXTURES / "grades", old / "grades")


@pytest.mark.parametrize(
    "folder", ["heads_run_lora", "heads_generated", "comparison", "match", "trajectory", "contrast", "example", "example_generated"]
)
def test_figures_draw_every_old_folder(old: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    from figures.__main__ import main

    monkeypatch.setattr("sys.argv", ["figures", folder])
    assert main() == 0
    assert list((old / folder / "figures").glob("*.png"))


# --- studies --------------------------------------------------------------------------------------------------------------

STUDY_TABLES = ("students.csv", "conditions.csv")


def test_a_study_with_a_half_trained_student_resumes_to_the_results_of_an_uninterrupted_one(old: Path) -> None:
    finished = contents(old / "study_half" / "students" / "finetune-seed0")
    assert distill("run", "study.toml", "--out", "study_half") == 0
    assert contents(old / "study_half" / "students" / "finetune-seed0") == finished
    assert_same_tables(old / "study_full", old / "study_half", STUDY_TABLES)
    for name in ("untouched", "finetune-seed0", "teacher-seed0"):
        one, other = (old / study / "evaluations" / name for study in ("study_full", "study_half"))
        assert_same_tables(one, other)
    trained = [old / study / "students" / "teacher-seed0" for study in ("study_full", "study_half")]
    assert_same_tables(trained[0], trained[1])
    steps = [
        [line["loss"] for line in map(json.loads, (place / "training.jsonl").read_text().splitlines()) if "loss" in line]
        for place in trained
    ]
    assert steps[0] == pytest.approx(steps[1], rel=1e-5, nan_ok=True)


def test_half_an_evaluation_is_taken_over(old: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from distill.evaluation import answers

    shutil.copytree(old / "evaluation_half", old / "study_half" / "evaluations", dirs_exist_ok=True)
    asked, generate = [], answers.generate

    def counted(*given: Any, **named: Any) -> Any:
        asked.append(given)
        return generate(*given, **named)

    monkeypatch.setattr(answers, "generate", counted)
    assert distill("evaluate", "study.toml", "--out", "study_half", "--condition", "untouched") == 2
    assert "is not evaluated yet, so nothing can be compared with it" in capfd.readouterr().err, "the others are missing"
    assert len(asked) == 1, "two of the three parts were there"
    assert_same_tables(old / "study_full" / "evaluations" / "untouched", old / "study_half" / "evaluations" / "untouched")


def test_a_finished_study_is_left_as_it_is(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(old / "study_half" / "records", old / "study_full" / "records")
    before = contents(old / "study_full")
    monkeypatch.setattr("distill.training.train.train_student", never)
    assert distill("run", "study.toml", "--out", "study_full") == 0
    after = contents(old / "study_full")
    kept = {name for name in before if name.startswith(("records/", "students/", "evaluations/"))}
    assert {name for name in kept if before[name] != after.get(name)} == set()
    assert_same_tables(FIXTURES / "study_full", old / "study_full", STUDY_TABLES)


def test_old_records_are_read_and_not_collected_again(old: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from distill.__main__ import main

    before = contents(old / "records_topk" / "records")
    settings = ("--set", "teacher.signal=topk", "--set", "objective.temperature=1.0")
    assert distill("collect", "study.toml", "--condition", "teacher", *settings, "--out", "records_topk") == 0
    assert contents(old / "records_topk" / "records") == before
    assert main(["inspect", "records_topk"]) == 0
    assert "topk" in capfd.readouterr().out


def test_half_a_search_goes_on_to_the_same_best_settings(old: Path) -> None:
    shutil.copytree(old / "study_half" / "records", old / "study_full" / "records")
    shutil.copytree(old / "search_half", old / "study_full" / "search", dirs_exist_ok=True)
    assert distill("search", "study.toml", "--out", "study_full") == 0
    found, expected = (
        re.findall(r"[-\d.e]+$", path.read_text(), re.MULTILINE)
        for path in (old / "study_full" / "search" / "best.toml", old / "search_expected" / "best.toml")
    )
    assert [float(n) for n in found] == pytest.approx([float(n) for n in expected], rel=1e-5)


def test_an_old_student_is_opened_by_every_command(old: Path) -> None:
    assert (
        heads("--model", "study_full/students/teacher-seed0", *COMMON, "--measures", "entropy_nats", "--limit", 2, "--out", "student") == 0
    )
    from analyses.grades.__main__ import main

    assert main(["study_full/evaluations", "--resamples", "100", "--out", "graded"]) == 0


def test_the_old_study_file_reads_under_todays_names(old: Path) -> None:
    from distill.study.config import read_study

    text = (old / "study.toml").read_text()
    assert re.search(r"^cut = ", text, re.MULTILINE)
    assert read_study(old / "study.toml").objective.truncated == "keep"


# --- names ----------------------------------------------------------------------------------------------------------------


def test_current_changes_only_names_that_changed() -> None:
    run = json.loads((FIXTURES / "heads_generated" / "run.json").read_text())
    renamed: Callable[[Any], Any] = current
    assert set(renamed(run)) == {OLD_KEYS.get(key, key) for key in run}
    assert renamed(renamed(run)) == renamed(run)


@pytest.mark.parametrize(
    "statement",
    ["from interp.measures import Measure", "from interp.table import MeasureInfo", "from interp import show", "import distill.trajectory"],
)
def test_import_paths_that_the_documentation_of_0_1_showed_name_the_new_one(statement: str) -> None:
    path = {"Measure": "interp.measures", "MeasureInfo": "interp.table", "show": "interp.show"}.get(
        statement.split()[-1], "distill.trajectory"
    )
    with pytest.raises(ImportError) as caught:
        exec(statement, {})
    new = re.findall(r"[\w.]+\.[\w.]+", MOVED[path])
    assert new
    assert any(name in str(caught.value) for name in new)
