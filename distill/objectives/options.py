"""Options of the objective: the section `[objective]` of a study."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from distill.objectives.divergences import find_divergence
from distill.settings import require_setting
from interp.tables.errors import InputError, StudyError
from interp.tables.plugins import nearest


@dataclass(frozen=True)
class Alignment:
    """How positions of the student are matched with those of the teacher.

    Attributes:
        scores_prompt: the teacher scores its own prompt, and positions are matched by index; otherwise it answers, and both models score
            the response's tokens.
        divergence: the only divergence that is allowed; None allows all.
        orders: the values of `objective.order` that are allowed.
    """

    scores_prompt: bool = False
    divergence: str | None = None
    orders: tuple[str, ...] = ("matched",)


ALIGNMENTS: dict[str, Alignment] = {
    "aligned": Alignment(),
    "published": Alignment(scores_prompt=True, divergence="reverse_kl", orders=("matched", "lexicographic")),
}
"""What `objective.name` can be."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """What a student minimizes: `alpha * CE + (1 - alpha) * temperature^2 * divergence`, averaged over the scored tokens.

    Attributes:
        name: aligned (the teacher answers; both models score the response's tokens, each after its own prompt) or published (as in the
            code of arXiv 2412.17846: the teacher scores prompt and question, matched by index to the question and to the answer's
            tokens).
        divergence: a name of `distill.objectives.divergences.DIVERGENCES`: forward_kl is KL(teacher || student), reverse_kl is
            KL(student || teacher), and jsd is between them, depending on beta.
        beta: for jsd: 0 is forward_kl, 1 is reverse_kl.
        temperature: divides the logits of both models for the divergence.
        alpha: weight of the cross-entropy, 0 to 1; at 1 the teacher's signals are not used.
        teacher: records (stored signals) or live (the teacher stays in memory and scores during training).
        topk_at_temperature: what to do if stored top-k signals are used at a temperature other than 1: refuse, or truncate (compare only
            the stored tokens; the missing mass is printed).
        order: for published: matched pairs each question with its own signals; lexicographic pairs them as the published code does
            (keys sorted as text: 1, 10, 100, 1000, 1001, ...).
        keep: train on all answers of the teacher, or only on the correct ones.
        truncated: answers that reached teacher.max_new_tokens: keep (without an end) or drop.
        max_tokens: longest text, in tokens; the rest is cut off. 256 in the published code.
    """

    name: str = "aligned"
    divergence: str = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    alpha: float = 0.5
    teacher: Literal["records", "live"] = "records"
    topk_at_temperature: Literal["refuse", "truncate"] = "refuse"
    order: Literal["matched", "lexicographic"] = "matched"
    keep: Literal["all", "correct"] = "all"
    truncated: Literal["keep", "drop"] = "keep"
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            StudyError: a name is unknown, a value is out of range, or two values exclude each other.
        """
        require_setting(
            self.name in ALIGNMENTS,
            f"objective.name is {self.name!r}{nearest(self.name, list(ALIGNMENTS))}; known: {', '.join(ALIGNMENTS)}",
        )
        try:
            find_divergence(self.divergence)
        except InputError as error:
            raise StudyError(f"objective.divergence: {error}") from error
        require_setting(0 <= self.alpha <= 1, f"objective.alpha is {self.alpha}; it must lie in [0, 1]")
        require_setting(0 <= self.beta <= 1, f"objective.beta is {self.beta}; it must lie in [0, 1]")
        require_setting(0 < self.temperature < math.inf, f"objective.temperature is {self.temperature}; it must be above 0 and finite")
        require_setting(self.max_tokens >= 2, f"objective.max_tokens is {self.max_tokens}; at least 2 is needed")
        only = self.alignment.divergence
        require_setting(
            only in (None, self.divergence), f'objective.name = "{self.name}" needs divergence = "{only}", as in the published code'
        )
        require_setting(
            not self.alignment.scores_prompt or self.keep == "all",
            f'objective.name = "{self.name}" trains on the reference answers; set keep = "all"',
        )
        allowed = [name for name, alignment in ALIGNMENTS.items() if self.order in alignment.orders]
        require_setting(self.name in allowed, f'objective.order = "{self.order}" needs name = "{" or ".join(allowed)}"')

    @property
    def alignment(self) -> Alignment:
        """How positions of the student are matched with those of the teacher."""
        return ALIGNMENTS[self.name]

    @property
    def formula(self) -> str:
        """The loss, as cards and tables print it."""
        if self.alpha == 1:
            return "CE"
        divergence = find_divergence(self.divergence).formula_with(beta=self.beta)
        return f"{self.alpha:g} CE + {1 - self.alpha:g} T^2 {divergence} at T = {self.temperature:g}"
