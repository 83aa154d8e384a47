"""What is to be looked at in one problem, and how: what the command line and a notebook both ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill.problems.grading import GRADERS
from interp.tables.errors import InputError
from interp.tables.schema import REGIONS

FEWEST = 3
"""Other problems that a run must have for a comparison with it to say anything."""


@dataclass(frozen=True)
class Request:
    """What is to be looked at, and how.

    Attributes:
        text: generated: the model's own answer; gold: the reference solution.
        heads: as typed: "12.3", "12" (a whole layer) or "auto".
        watch: likewise, without auto: the only heads whose maps are kept.
        by: measure by which `auto` chooses.
        region: of that measure.
        grader: of the answers.
        chat: use the chat template where there is one.
        max_new_tokens: cut of an answer.
        others: problems that are measured to compare with, where no run is there; 0: none.
        seed: of the shuffled token sets.
        called: it was asked for in a call of `interp.show`: messages name that call's arguments, and not the command's options.
    """

    text: Literal["generated", "reference"] = "generated"
    heads: tuple[str, ...] = ("auto",)
    watch: tuple[str, ...] = ()
    by: str = "numeric_mass"
    region: str = "response"
    grader: str = "first_final"
    chat: bool = True
    max_new_tokens: int = 256
    others: int = 0
    seed: int = 0
    called: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without a model.

        Raises:
            InputError: a value out of range, or no head named.
        """
        if self.text not in ("generated", "reference"):
            raise InputError(f"text is {self.text!r}; generated and gold are allowed")
        if self.region not in REGIONS:
            raise InputError(f"region is {self.region!r}; allowed: {', '.join(REGIONS)}")
        if self.grader not in GRADERS:
            raise InputError(f"grader is {self.grader!r}; known: {', '.join(GRADERS)}")
        if self.max_new_tokens < 1 or self.seed < 0:
            raise InputError(f"{self.max_new_tokens} new tokens and seed {self.seed}: at least 1 and 0 are needed")
        if self.others < 0 or 0 < self.others < FEWEST:
            raise InputError(f"{self.others} other problems to compare with: 0 for none, or at least {FEWEST}")
        if not any(part.strip() for given in self.heads for part in given.split(",")):
            raise InputError("no head is named; write 12.3, 12 (a whole layer) or auto")

    def spelt(self, name: str, value: str | int | None = None) -> str:
        """What was asked for, as whoever asked writes it: `--text gold` in a command, `text='gold'` in a call; without a value its name."""
        if self.called:
            return name if value is None else f"{name}={value!r}"
        option = f"--{name.replace('_', '-')}"
        return option if value is None else f"{option} {value}"
