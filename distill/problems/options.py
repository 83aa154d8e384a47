"""TODO_DOC distill/problems/options.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill.settings import require


@dataclass(frozen=True)
class ProblemSet:
    """Which problems to take.

    Attributes:
        problems: shipped (our own set), gsm8k (the hub's openai/gsm8k), gsm8k-socratic (the same problems with sub-questions in the
            solutions), or a JSONL file in GSM8K's format.
        split: of gsm8k, train or test.
        first: number of the first problem taken, from 0.
        limit: how many, from there; left out takes the rest.
    """

    problems: str = "shipped"
    split: Literal["train", "test"] = "train"
    first: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        require(self.first >= 0, f"first is {self.first}; 0 or more is needed")
        require(self.limit is None or self.limit >= 1, f"limit is {self.limit}; at least 1 is needed, or leave it out")


@dataclass(frozen=True)
class DataConfig:
    """The three disjoint sets of problems.

    Attributes:
        train: the students learn on these.
        heldout: never trained on; for the divergence to the teacher, for perplexity and for the search. From the training split.
        test: the students' accuracy is taken on these.
    """

    train: ProblemSet = ProblemSet(limit=40)
    heldout: ProblemSet = ProblemSet(first=40, limit=6)
    test: ProblemSet = ProblemSet(split="test", first=46)

    def __post_init__(self) -> None:
        """Checks that nothing is trained on, or chosen by, what is tested on."""
        for name in ("train", "heldout"):
            own = getattr(self, name)
            require(own.split != "test", f'data.{name}.split is "test", on which only data.test may be; use split = "train"')
