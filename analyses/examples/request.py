"""What to inspect in one problem, and how: the settings that the command line and a notebook share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill.problems.grading import check_grader
from interp.tables.errors import InputError
from interp.tables.schema import REGIONS

FEWEST_OTHERS = 3
"""Smallest number of other problems that a comparison needs."""


@dataclass(frozen=True)
class Request:
    """What to inspect, and how.

    Attributes:
        text: generated reads the model's own answer, reference the reference solution.
        heads: heads to show first, as typed: "12.3", "12" (a complete layer) or "auto".
        watch: the only heads whose maps are kept, as typed; without "auto".
        by: measure by which "auto" chooses heads.
        region: region of the queries of that measure.
        grader: grader of the answers.
        chat: use the chat template if the tokenizer has one.
        max_new_tokens: answers are truncated at this number of tokens.
        others: number of problems to measure for comparison if there is no run; 0 for none.
        seed: seed of the shuffled token sets.
        from_call: the request comes from a call of `show`, so messages name its arguments and not the options of the command.
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
    from_call: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without a model.

        Raises:
            InputError: a value is out of range or unknown, or no head is named.
        """
        if self.text not in ("generated", "reference"):
            raise InputError(f"{self.spelled('text')} is {self.text!r}; allowed: generated, reference")
        if self.region not in REGIONS:
            raise InputError(f"{self.spelled('region')} is {self.region!r}; allowed: {', '.join(REGIONS)}")
        check_grader(self.grader)
        for name, value, least in (("max_new_tokens", self.max_new_tokens, 1), ("seed", self.seed, 0)):
            if value < least:
                raise InputError(f"{self.spelled(name)} is {value}; at least {least} is needed")
        if self.others < 0 or 0 < self.others < FEWEST_OTHERS:
            raise InputError(
                f"{self.spelled('others')} is {self.others}; give 0 to compare with no other problems, or at least {FEWEST_OTHERS}"
            )
        if not any(part.strip() for given in self.heads for part in given.split(",")):
            raise InputError(f"{self.spelled('heads')} names no head; give 12.3, 12 (a complete layer) or auto")

    def spelled(self, name: str, value: str | int | None = None) -> str:
        """Return a setting as the user writes it: `--by entropy_nats` in a command, `by='entropy_nats'` in a call.

        Args:
            name: field of the request.
            value: the setting's value; None returns the name alone.
        """
        if self.from_call:
            return name if value is None else f"{name}={value!r}"
        option = f"--{name.replace('_', '-')}"
        return option if value is None else f"{option} {value}"
