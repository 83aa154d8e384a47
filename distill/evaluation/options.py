"""TODO_DOC distill/evaluation/options.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distill.settings import require, require_seed


@dataclass(frozen=True)
class EvaluationConfig:
    """How every student is measured, the same for all.

    Attributes:
        max_new_tokens: cut of an answer.
        batch_size: answers at a time.
        samples: answers to each problem; above 1 they are sampled.
        temperature: of sampling; 0 is greedy.
        top_p: of sampling.
        stop: texts that end an answer, beside the end-of-text tokens.
        grader: whose verdict the accuracy is (see `distill.problems.grading.GRADERS`); all are stored.
        level: of intervals.
        resamples: of the bootstrap.
        seed: of sampling and of the bootstrap.
    """

    max_new_tokens: int = 350
    batch_size: int = 32
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ("Question:",)
    grader: str = "first_final"
    level: float = 0.95
    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("max_new_tokens", "batch_size", "samples", "resamples"):
            require(getattr(self, name) >= 1, f"evaluation.{name} is {getattr(self, name)}; at least 1 is needed")
        require(0 <= self.temperature < math.inf, f"evaluation.temperature is {self.temperature}; 0 (greedy) or more is needed")
        require_seed(self.seed, "evaluation.seed")
        require(all(self.stop), 'evaluation.stop holds "", which ends every answer at once; leave it out')
        require(self.samples == 1 or self.temperature > 0, "evaluation.samples above 1 needs evaluation.temperature above 0")
        require(0 < self.top_p <= 1, f"evaluation.top_p is {self.top_p}; it must lie above 0 and at most at 1")
        require(0 < self.level < 1, f"evaluation.level is {self.level}; it must lie between 0 and 1, such as 0.95")
