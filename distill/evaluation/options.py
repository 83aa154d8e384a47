"""Options of the evaluation: the section `[evaluation]` of a study."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distill.problems.grading import DEFAULT_GRADER, GRADERS
from distill.settings import require_seed, require_setting
from interp.tables.plugins import nearest


@dataclass(frozen=True)
class EvaluationConfig:
    """How every student is evaluated.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        batch_size: answers per batch.
        samples: answers to each problem; more than 1 needs a temperature above 0.
        temperature: sampling temperature; 0 is greedy.
        top_p: for sampling.
        stop: texts that end an answer, in addition to the end tokens.
        grader: the grader whose verdicts the accuracy counts (a name in `distill.problems.grading.GRADERS`); the verdicts of all graders
            are stored.
        level: confidence level of intervals.
        resamples: number of bootstrap resamples.
        seed: for sampling and the bootstrap.
    """

    max_new_tokens: int = 350
    batch_size: int = 32
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ("Question:",)
    grader: str = DEFAULT_GRADER
    level: float = 0.95
    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            StudyError: the grader is unknown, a value is out of range, or two values exclude each other.
        """
        for name in ("max_new_tokens", "batch_size", "samples", "resamples"):
            require_setting(getattr(self, name) >= 1, f"evaluation.{name} is {getattr(self, name)}; at least 1 is needed")
        require_setting(0 <= self.temperature < math.inf, f"evaluation.temperature is {self.temperature}; 0 (greedy) or more is needed")
        require_seed(self.seed, "evaluation.seed")
        require_setting(all(self.stop), 'evaluation.stop holds "", which ends every answer at once; leave it out')
        require_setting(
            self.samples == 1 or self.temperature > 0,
            f"evaluation.samples is {self.samples}, but evaluation.temperature is 0, so all samples would be equal; raise the temperature",
        )
        require_setting(0 < self.top_p <= 1, f"evaluation.top_p is {self.top_p}; it must be above 0 and at most 1")
        require_setting(0 < self.level < 1, f"evaluation.level is {self.level}; it must be between 0 and 1, such as 0.95")
        require_setting(
            self.grader in GRADERS,
            f"evaluation.grader: unknown grader {self.grader!r}{nearest(self.grader, GRADERS)}; known: {', '.join(GRADERS)}",
        )
