from __future__ import annotations

import pytest

from distill.evaluation.options import EvaluationConfig
from distill.problems.grading import GRADERS
from interp.tables.errors import StudyError


def test_unknown_grader_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(StudyError, match=r"unknown grader 'strct' \(did you mean strict\?\); known: first_final"):
        EvaluationConfig(grader="strct")


@pytest.mark.parametrize("name", GRADERS)
def test_every_grader_is_accepted(name: str) -> None:
    assert EvaluationConfig(grader=name).grader == name
