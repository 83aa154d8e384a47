"""The divergences between a teacher's and a student's next-token distributions.

`DIVERGENCES` is the catalog: adding an entry makes a divergence available to options, error messages, cards and the loss. An installed
package adds one by an entry point of the group `primed_heads.divergences`. The value and the slope of an entry are called with tensors,
but this module imports no torch, so that options and --help can read the names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING

from interp.tables.errors import InputError
from interp.tables.plugins import members, nearest

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_PARAMETERS = ("beta",)
"""Keys of `[objective]` that a divergence may read."""


@dataclass(frozen=True)
class Divergence:
    """A divergence with its own gradient.

    The distributions are over `outcome`: the shared vocabulary, or k tokens and one bucket for the rest. Both sides are normalized.

    Attributes:
        value: (teacher_log_p, student_log_q, **parameters) -> D for each token, [token], in nats; 0 where both sides are equal.
        slope: (teacher_log_p, student_log_q, **parameters) -> the derivative of D with respect to student_log_q, before the softmax,
            [token, outcome], as a new tensor that the loss overwrites. A constant times the student's probabilities may be left out:
            the softmax's own derivative removes it.
        formula: what cards and tables print; {beta} is replaced by the parameter's value.
        parameters: keys of `[objective]` that value and slope take by keyword; only "beta" is available.

    Raises:
        InputError: value or slope is not callable, or the formula or `parameters` name an unknown parameter.
    """

    value: Callable[..., Tensor]
    slope: Callable[..., Tensor]
    formula: str
    parameters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise if a part is missing or names an unknown parameter."""
        for name in ("value", "slope"):
            if not callable(getattr(self, name)):
                raise InputError(f"{name} of a divergence is {getattr(self, name)!r}; a function is needed")
        unknown = set(self.parameters) - set(_PARAMETERS)
        if unknown:
            raise InputError(f"a divergence has the parameter {min(unknown)!r}; available: {', '.join(_PARAMETERS)}")
        fields = {field for _, field, _, _ in Formatter().parse(self.formula) if field is not None}
        if fields - set(self.parameters):
            raise InputError(f"formula {self.formula!r} names {min(fields - set(self.parameters))!r}, which is not one of its parameters")

    def chosen_parameters(self, **available: float) -> dict[str, float]:
        """Return the parameters that value and slope take, out of those that are available."""
        return {name: available[name] for name in self.parameters}

    def formula_with(self, **available: float) -> str:
        """Return the formula with the values of its parameters."""
        return self.formula.format(**{name: f"{value:g}" for name, value in self.chosen_parameters(**available).items()})


def forward_kl(teacher_log_p: Float[Tensor, "token outcome"], student_log_q: Float[Tensor, "token outcome"]) -> Float[Tensor, " token"]:
    """Return KL(teacher || student) = sum_j p_j (log p_j - log q_j), in nats, at least 0."""
    return (teacher_log_p.exp() * (teacher_log_p - student_log_q)).sum(-1)


def _forward_kl_slope(
    teacher_log_p: Float[Tensor, "token outcome"], student_log_q: Float[Tensor, "token outcome"]
) -> Float[Tensor, "token outcome"]:
    return -teacher_log_p.exp()


def reverse_kl(teacher_log_p: Float[Tensor, "token outcome"], student_log_q: Float[Tensor, "token outcome"]) -> Float[Tensor, " token"]:
    """Return KL(student || teacher) = sum_j q_j (log q_j - log p_j), in nats, at least 0."""
    return (student_log_q.exp() * (student_log_q - teacher_log_p)).sum(-1)


def _reverse_kl_slope(
    teacher_log_p: Float[Tensor, "token outcome"], student_log_q: Float[Tensor, "token outcome"]
) -> Float[Tensor, "token outcome"]:
    # The derivative is q_j (log q_j - log p_j + 1); adding the 1 would cost digits near equality, and the softmax removes it.
    return student_log_q.exp().mul_(student_log_q - teacher_log_p)


def jsd(
    teacher_log_p: Float[Tensor, "token outcome"], student_log_q: Float[Tensor, "token outcome"], beta: float = 0.5
) -> Float[Tensor, " token"]:
    """Return the generalized Jensen-Shannon divergence, in nats.

    beta KL(teacher || M) + (1 - beta) KL(student || M), with M = beta teacher + (1 - beta) student. It is between 0 and the entropy of
    (beta, 1 - beta), and symmetric at beta = 0.5. At beta = 0 and beta = 1 this formula would be 0; as in TRL's
    `generalized_jsd_loss`, beta = 0 gives KL(teacher || student), the limit of the formula divided by beta, and beta = 1 gives
    KL(student || teacher), the limit of the formula divided by 1 - beta. Source: Agarwal et al. 2023 (arXiv 2306.13649), equation 1.
    """
    if beta == 0:
        return forward_kl(teacher_log_p, student_log_q)
    if beta == 1:
        return reverse_kl(teacher_log_p, student_log_q)
    log_m = _log_mixture(teacher_log_p, student_log_q, beta)
    return beta * forward_kl(teacher_log_p, log_m) + (1 - beta) * forward_kl(student_log_q, log_m)


def _jsd_slope(
    teacher_log_p: Float[Tensor, "token outcome"], student_log_q: Float[Tensor, "token outcome"], beta: float = 0.5
) -> Float[Tensor, "token outcome"]:
    if beta == 0:
        return _forward_kl_slope(teacher_log_p, student_log_q)
    if beta == 1:
        return _reverse_kl_slope(teacher_log_p, student_log_q)
    log_m = _log_mixture(teacher_log_p, student_log_q, beta)
    return student_log_q.exp().mul_(student_log_q - log_m).mul_(1 - beta)


def _log_mixture(teacher_log_p: Tensor, student_log_q: Tensor, beta: float) -> Tensor:
    return (teacher_log_p + math.log(beta)).logaddexp(student_log_q + math.log1p(-beta))


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": Divergence(forward_kl, _forward_kl_slope, "KL(teacher || student)"),
    "reverse_kl": Divergence(reverse_kl, _reverse_kl_slope, "KL(student || teacher)"),
    "jsd": Divergence(jsd, _jsd_slope, "JSD(beta {beta})", ("beta",)),
}
"""The project's own divergences by name."""

_installed: dict[str, Divergence] = {}
"""Divergences of installed packages that were asked for: looking through the packages takes milliseconds, and each batch asks."""


def find_divergence(name: str) -> Divergence:
    """Return a divergence by name: one of `DIVERGENCES`, or one that an installed package offers.

    Raises:
        InputError: the name is unknown; the message has the nearest known name and all of them.
    """
    found = DIVERGENCES.get(name) or _installed.get(name)
    if found is None:
        known = members("divergences", DIVERGENCES, Divergence)
        if name not in known:
            raise InputError(f"unknown divergence {name!r}{nearest(name, known)}; known: {', '.join(known)}")
        found = _installed[name] = known[name]
    return found
