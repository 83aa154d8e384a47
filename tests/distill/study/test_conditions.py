from __future__ import annotations

import pytest

from distill.strategies import STRATEGIES
from distill.study.conditions import CONTROLS, FINETUNE, UNTOUCHED, Condition, choose_strategies, condition_of
from interp.tables.errors import StudyError


def test_controls_have_no_teacher() -> None:
    assert list(CONTROLS) == ["untouched", "finetune"]
    assert (condition_of("untouched"), condition_of("finetune")) == (UNTOUCHED, FINETUNE)
    assert not any(control.has_teacher for control in CONTROLS.values())
    assert (UNTOUCHED.trained, FINETUNE.trained, FINETUNE.from_references) == (False, True, True)


def test_other_names_are_conditions_with_a_teacher() -> None:
    assert condition_of("rhyme") == Condition("rhyme")
    assert condition_of("rhyme").trained
    assert condition_of("rhyme").has_teacher


def test_no_preset_strategy_has_the_name_of_a_control() -> None:
    assert not set(CONTROLS) & set(STRATEGIES)


def test_strategies_are_chosen_in_the_order_of_conditions() -> None:
    assert list(choose_strategies(["untouched", "teacher", "finetune", "none"], STRATEGIES)) == ["teacher", "none"]


def test_unknown_condition_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StudyError, match=r"did you mean socratic.*untouched, finetune, none, teacher"):
        choose_strategies(["socratik"], STRATEGIES)
