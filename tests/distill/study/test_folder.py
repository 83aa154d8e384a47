from __future__ import annotations

from pathlib import Path

import pytest

from distill.students.card import CARD_FILE
from distill.study.config import study_from
from distill.study.folder import StudyFolder, student_name
from interp.tables.errors import DamagedError


@pytest.fixture
def study(tmp_path: Path, checkpoint: Path, problems: Path) -> StudyFolder:
    def some(first: int, limit: int) -> dict[str, object]:
        return {"problems": str(problems), "first": first, "limit": limit}

    tables = {
        "name": "known",
        "out": str(tmp_path / "out"),
        "conditions": ["untouched", "finetune", "none"],
        "seeds": [0, 1],
        "data": {"train": some(0, 4), "heldout": some(4, 1), "test": some(5, 2)},
        "teacher": {"model": str(checkpoint), "device": "cpu"},
        "student": {"model": str(checkpoint), "device": "cpu"},
    }
    return StudyFolder(study_from(tables))


def test_untouched_student_has_no_seed(study: StudyFolder) -> None:
    assert study.students == [("untouched", None), ("finetune", 0), ("finetune", 1), ("none", 0), ("none", 1)]
    assert [student_name(*student) for student in study.students[:2]] == ["untouched", "finetune-seed0"]


def test_settings_and_parents_write_nothing(study: StudyFolder) -> None:
    for condition, seed in study.students[1:]:
        assert study.settings(condition)["objective"]["alpha"] == (1.0 if condition == "finetune" else study.config.objective.alpha)
        assert (study.parents(condition)["teacher"] is None) == (condition == "finetune")
        assert not study.is_trained(condition, seed)
    assert study.parents("none")["records"] != study.parents("finetune")["records"]
    assert not study.folder.exists()


def test_damaged_student_is_reported_and_left_in_place(study: StudyFolder) -> None:
    card = study.student_folder("none", 0) / CARD_FILE
    card.parent.mkdir(parents=True)
    card.write_text("{")
    with pytest.raises(DamagedError, match="none-seed0"):
        study.is_trained("none", 0)
    assert card.read_text() == "{"
