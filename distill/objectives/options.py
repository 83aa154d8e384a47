"""TODO_DOC distill/objectives/options.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from distill.settings import nearest_hint, require

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What a student minimises: `alpha * CE + (1 - alpha) * temperature^2 * divergence`, a mean over the scored tokens.

    Attributes:
        name: aligned (the teacher answers; both score the response's tokens, each after its own prompt) or published (arXiv
            2412.17846's code: the teacher scores prompt and question, matched by index to the question and to the answer's tokens).
        divergence: forward_kl is KL(teacher || student), reverse_kl is KL(student || teacher), jsd lies between by beta.
        beta: of jsd: 0 is forward_kl, 1 is reverse_kl.
        temperature: both sides' logits are divided by it for the divergence.
        alpha: weight of the cross-entropy, 0 to 1; at 1 the teacher's signals are not used.
        teacher: records (stored signals) or live (the teacher is held in memory and scores while the student learns).
        topk_at_temperature: what to do where stored top-k signals meet a temperature other than 1: refuse, or truncate (both sides
            restricted to the kept tokens; the mass that is missing is printed).
        order: of published: matched pairs each question with its own signals; lexicographic pairs them as the published code does
            (keys sorted as text: 1, 10, 100, 1000, 1001, ...).
        keep: all answers of the teacher, or only the correct ones.
        cut: answers that ran into teacher.max_new_tokens: keep (without an end) or drop.
        max_tokens: longest text, in tokens; the rest is cut. 256 in the published code.
    """

    name: Literal["aligned", "published"] = "aligned"
    divergence: str = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    alpha: float = 0.5
    teacher: Literal["records", "live"] = "records"
    topk_at_temperature: Literal["refuse", "truncate"] = "refuse"
    order: Literal["matched", "lexicographic"] = "matched"
    keep: Literal["all", "correct"] = "all"
    cut: Literal["keep", "drop"] = "keep"
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require(
            self.divergence in DIVERGENCES,
            f"objective.divergence {self.divergence!r}{nearest_hint(self.divergence, DIVERGENCES)}; known: {', '.join(DIVERGENCES)}",
        )
        require(0 <= self.alpha <= 1, f"objective.alpha is {self.alpha}; it must lie in [0, 1]")
        require(0 <= self.beta <= 1, f"objective.beta is {self.beta}; it must lie in [0, 1]")
        require(0 < self.temperature < math.inf, f"objective.temperature is {self.temperature}; it must be above 0")
        require(self.max_tokens >= 2, f"objective.max_tokens is {self.max_tokens}; at least 2 is needed")
        published = self.name == "published"
        require(not published or self.divergence == "reverse_kl", 'objective published has divergence = "reverse_kl", as its code has it')
        require(not published or self.keep == "all", 'objective published trains on the reference answers: keep = "all"')
        require(published or self.order == "matched", 'objective.order = "lexicographic" belongs to name = "published"')

    @property
    def formula(self) -> str:
        """The loss, as cards and tables state it."""
        if self.alpha == 1:
            return "CE"
        names = {"forward_kl": "KL(teacher || student)", "reverse_kl": "KL(student || teacher)", "jsd": f"JSD(beta {self.beta:g})"}
        return f"{self.alpha:g} CE + {1 - self.alpha:g} T^2 {names[self.divergence]} at T = {self.temperature:g}"
