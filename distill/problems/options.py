"""Options of a study's problem sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill.settings import require_setting


@dataclass(frozen=True)
class ProblemSet:
    """A range of problems of one source.

    Attributes:
        problems: shipped (the small set of this package), gsm8k (openai/gsm8k of the Hub), gsm8k-socratic (the same problems with
            sub-questions in the solutions), or a JSONL file in GSM8K's format.
        split: train or test of gsm8k.
        first: index of the first problem, from 0.
        limit: number of problems from there; left out, all that follow.
    """

    problems: str = "shipped"
    split: Literal["train", "test"] = "train"
    first: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_setting(self.first >= 0, f"first is {self.first}; 0 or more is needed")
        require_setting(self.limit is None or self.limit >= 1, f"limit is {self.limit}; at least 1 is needed, or leave it out")


@dataclass(frozen=True)
class DataConfig:
    """The three disjoint sets of problems of a study.

    Attributes:
        train: problems that students learn from.
        heldout: problems of the training split that students do not learn from, for perplexity, the divergence from the teacher, and the
            search.
        test: problems on which the accuracy of students is measured.
    """

    train: ProblemSet = ProblemSet(limit=40)
    heldout: ProblemSet = ProblemSet(first=40, limit=6)
    test: ProblemSet = ProblemSet(split="test", first=46)

    def __post_init__(self) -> None:
        """Check that training and search do not use the test split."""
        for name in ("train", "heldout"):
            own = getattr(self, name)
            require_setting(own.split != "test", f'data.{name}.split is "test"; only data.test may use it, set split = "train"')
