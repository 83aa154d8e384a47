"""Conditions of a study: what differs between its students.

A condition is named after the strategy that prompts its teacher, except for the controls, for which no teacher is prompted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distill.strategies import Strategy
from interp.tables.errors import StudyError
from interp.tables.plugins import nearest


@dataclass(frozen=True)
class Condition:
    """How the students of one condition are made.

    Attributes:
        name: name in tables and folders, and of the strategy if a teacher is prompted.
        trained: False for the student as it is before training.
        from_references: the training answers are the reference solutions, so the loss is cross-entropy alone.
    """

    name: str
    trained: bool = True
    from_references: bool = False

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher is prompted with the strategy of the same name."""
        return self.trained and not self.from_references


UNTOUCHED = Condition("untouched", trained=False)
"""The student without training."""

FINETUNE = Condition("finetune", from_references=True)
"""The student trained on the reference solutions."""

CONTROLS: dict[str, Condition] = {control.name: control for control in (UNTOUCHED, FINETUNE)}
"""The conditions without a teacher. Strategies cannot have their names."""


def condition_of(name: str) -> Condition:
    """Return the condition of a name: a control, or the condition whose teacher is prompted with the strategy of that name."""
    return CONTROLS.get(name, Condition(name))


def choose_strategies(names: Iterable[str], known: Mapping[str, Strategy]) -> dict[str, Strategy]:
    """Return the strategies of conditions, in their order; controls have none.

    Args:
        names: names of conditions.
        known: the strategies by name, as from `distill.strategies.load_strategies`.

    Raises:
        StudyError: an unknown name; the message has the nearest known name and all of them.
    """
    chosen = {}
    for name in names:
        if not condition_of(name).has_teacher:
            continue
        if name not in known:
            every = [*CONTROLS, *known]
            raise StudyError(
                f'unknown condition {name!r}{nearest(name, every)}; known: {", ".join(every)}; strategies = ["file.toml"] adds your own'
            )
        chosen[name] = known[name]
    return chosen
