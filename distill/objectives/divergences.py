"""TODO_DOC distill/objectives/divergences.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

# --- divergences ------------------------------------------------------------------------------------------------------


def forward_kl(teacher_log_p: Float[Tensor, "n m"], student_log_q: Float[Tensor, "n m"], beta: float = 0.5) -> Float[Tensor, " n"]:
    """KL(teacher || student) = sum_j p_j (log p_j - log q_j), in nats, >= 0; `beta` plays no part."""
    return (teacher_log_p.exp() * (teacher_log_p - student_log_q)).sum(-1)


def reverse_kl(teacher_log_p: Float[Tensor, "n m"], student_log_q: Float[Tensor, "n m"], beta: float = 0.5) -> Float[Tensor, " n"]:
    """KL(student || teacher) = sum_j q_j (log q_j - log p_j), in nats, >= 0; `beta` plays no part."""
    return (student_log_q.exp() * (student_log_q - teacher_log_p)).sum(-1)


def jsd(teacher_log_p: Float[Tensor, "n m"], student_log_q: Float[Tensor, "n m"], beta: float = 0.5) -> Float[Tensor, " n"]:
    """Generalised Jensen-Shannon divergence: beta KL(teacher || M) + (1 - beta) KL(student || M), M = beta teacher + (1 - beta) student.

    In nats, between 0 and the entropy of (beta, 1 - beta); symmetric at beta = 0.5. As in TRL's `generalized_jsd_loss`, the ends, where
    this would be 0, stand for the limits of it over beta and 1 - beta: beta = 0 is KL(teacher || student), beta = 1 is KL(student ||
    teacher). Source: Agarwal et al. 2023 (arXiv 2306.13649), equation 1.
    """
    if beta == 0:
        return forward_kl(teacher_log_p, student_log_q)
    if beta == 1:
        return reverse_kl(teacher_log_p, student_log_q)
    log_m = _log_mixture(teacher_log_p, student_log_q, beta)
    return beta * forward_kl(teacher_log_p, log_m) + (1 - beta) * forward_kl(student_log_q, log_m)


LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd}
"""D(log-probabilities of the teacher [n, m], of the student [n, m], beta) -> [n], over the vocabulary or over k tokens and the rest."""


def slope_of(name: str, teacher_log_p: Tensor, student_log_q: Tensor, beta: float) -> Tensor:
    """The derivative of D by student_log_q, [n, m]; a constant times q is left out, since `through_softmax` would take it off again."""
    if name == "forward_kl" or (name == "jsd" and beta == 0):
        return -teacher_log_p.exp()
    if name == "reverse_kl" or beta == 1:
        return student_log_q.exp().mul_(student_log_q - teacher_log_p)
    log_m = _log_mixture(teacher_log_p, student_log_q, beta)
    return student_log_q.exp().mul_(student_log_q - log_m).mul_(1 - beta)


def _log_mixture(teacher_log_p: Tensor, student_log_q: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(teacher_log_p + math.log(beta), student_log_q + math.log1p(-beta))


def through_softmax(slope: Tensor, log_q: Tensor) -> Tensor:
    """From a slope with respect to log_q to one with respect to what log_q is the log-softmax of; overwrites `slope`."""
    return slope.sub_(log_q.exp().mul_(slope.sum(-1, keepdim=True)))
