"""What a teacher provides at each scored token, as tensors, and the mass that a top k leaves over."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.checkpoints.unembedding import OutputHead


@dataclass(frozen=True)
class TopK:
    """A teacher's k most likely tokens.

    Attributes:
        ids: distinct token ids, in any order.
        log_probs: log-probabilities at T = 1 over the teacher's full vocabulary, in nats; the left-over mass is 1 - sum(exp(log_probs)).
    """

    ids: Int[Tensor, "token k"]
    log_probs: Float[Tensor, "token k"]

    def rows(self, index: slice | Tensor) -> TopK:
        """Return the signal of some tokens."""
        return TopK(self.ids[index], self.log_probs[index])


@dataclass(frozen=True)
class Hidden:
    """A teacher's last hidden states, after the final norm. They give its logits exactly, at any temperature.

    Attributes:
        states: input of the head.
        head: the teacher's output head.
    """

    states: Float[Tensor, "token hidden_teacher"]
    head: OutputHead

    def rows(self, index: slice | Tensor) -> Hidden:
        """Return the signal of some tokens."""
        return Hidden(self.states[index], self.head)


@dataclass(frozen=True)
class Dense:
    """A teacher's full distribution, for tiny vocabularies.

    Attributes:
        log_probs: log-probabilities at T = 1, in nats.
    """

    log_probs: Float[Tensor, "token vocab"]

    def rows(self, index: slice | Tensor) -> Dense:
        """Return the signal of some tokens."""
        return Dense(self.log_probs[index])


Signal = TopK | Hidden | Dense
"""What a teacher provides at each token of a batch; it never receives a gradient."""


def missing_mass(
    log_probs: Float[Tensor, "token k"], vocabulary: int, temperature: float
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """Return bounds of the mass of a teacher's distribution that is outside of its stored top k at a temperature.

    Stored are p_1 .. p_k at T = 1, the largest of `vocabulary`. The other probabilities sum to m = 1 - sum(p_i), and each is at most
    c = min(p_i). At temperature T their unnormalized mass is R, the sum of x^(1/T) over them. Above T = 1, x^(1/T) is concave: R is
    largest if m is spread evenly over the vocabulary - k others, and smallest if floor(m / c) of them are c and one is the remainder.
    Below T = 1 it is the other way round. The missing mass is R / (R + sum(p_i^(1/T))). Both bounds can be reached. They are as precise
    as m is: what rounding took from the stored values is not known.

    Args:
        log_probs: log-probabilities of the k most likely tokens at T = 1, in nats.
        vocabulary: number of tokens of the teacher.
        temperature: above 0.

    Returns:
        Lower and upper bound for each token, float64, from 0 to 1. Both are m at T = 1, and 0 if k is the vocabulary.
    """
    log_p = log_probs.double()
    others = vocabulary - log_p.shape[-1]
    if others <= 0:
        return torch.zeros_like(log_p[:, 0]), torch.zeros_like(log_p[:, 0])
    log_c = log_p.amin(-1).clamp(min=-700)  # exp is still above 0
    left_over = (-torch.expm1(log_p.logsumexp(-1))).clamp(min=0)
    left_over = torch.minimum(left_over, others * log_c.exp())  # with more, the stored ones would not be the largest
    n_largest = torch.floor(left_over / log_c.exp())
    remainder = (left_over - n_largest * log_c.exp()).clamp(min=0)
    power = 1 / temperature
    even = (1 - power) * math.log(others) + power * left_over.log()
    peaked = torch.logaddexp(n_largest.log() + power * log_c, power * remainder.log())
    kept = (power * log_p).logsumexp(-1)
    one, other = torch.sigmoid(even - kept), torch.sigmoid(peaked - kept)
    return torch.minimum(one, other), torch.maximum(one, other)


def with_bucket(log_probs: Tensor) -> Tensor:
    """Return log-probabilities with the log of the left-over mass appended, [token, k + 1].

    Left-over mass below the dtype's epsilon is rounding error; it is replaced by epsilon.
    """
    left_over = -torch.expm1(log_probs.logsumexp(-1, keepdim=True))
    return torch.cat([log_probs, left_over.clamp(min=torch.finfo(log_probs.dtype).eps).log()], -1)
