"""TODO_DOC distill/records/signals.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.checkpoints.unembedding import OutputHead


@dataclass(frozen=True)
class TopK:
    """A teacher's k likeliest tokens.

    Attributes:
        ids: distinct token ids, in any order.
        log_probs: at T = 1, over the teacher's whole vocabulary, in nats; what they leave over is 1 - sum(exp(log_probs)).
    """

    ids: Int[Tensor, "token k"]
    log_probs: Float[Tensor, "token k"]

    def rows(self, index: slice | Tensor) -> TopK:
        """The same for some tokens."""
        return TopK(self.ids[index], self.log_probs[index])


@dataclass(frozen=True)
class Hidden:
    """A teacher's last hidden states, after the final norm: they give its logits exactly, at any temperature.

    Attributes:
        states: what the head is applied to.
        head: the teacher's own.
    """

    states: Float[Tensor, "token hidden_teacher"]
    head: OutputHead

    def rows(self, index: slice | Tensor) -> Hidden:
        """The same for some tokens."""
        return Hidden(self.states[index], self.head)


@dataclass(frozen=True)
class Dense:
    """A teacher's whole distribution, for tiny vocabularies.

    Attributes:
        log_probs: at T = 1, in nats.
    """

    log_probs: Float[Tensor, "token vocab"]

    def rows(self, index: slice | Tensor) -> Dense:
        """The same for some tokens."""
        return Dense(self.log_probs[index])


Signal = TopK | Hidden | Dense
"""What a teacher said at each token of a batch; no gradient ever reaches it."""


# --- the teacher's left-over mass -------------------------------------------------------------------------------------


def missing_mass(
    log_probs: Float[Tensor, "token k"], vocabulary: int, temperature: float
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """How much of a teacher's distribution at a temperature lies outside its stored top k: the least and the most that it can be.

    Stored are p_1 .. p_k at T = 1, the largest of `vocabulary`. The others sum to m = 1 - sum(p_i) and are each at most c = min(p_i),
    which leaves room for R = sum of x^(1/T) over them. Between T = 1 and T = infinity x^(1/T) is concave, so R is largest where m is
    spread evenly over the vocabulary - k others and smallest where floor(m / c) of them are c and one has what is left; below T = 1 it is
    the other way round. Both can occur: the bounds are tight. The missing mass is R / (R + sum(p_i^(1/T))). It is as precise as m is: what
    rounding took from the stored values is not seen.

    Args:
        log_probs: at T = 1, in nats, of the k largest.
        vocabulary: number of tokens of the teacher.
        temperature: above 0.

    Returns:
        Lower and upper bound a token, float64, from 0 to 1; both are m at T = 1, and 0 where k is the vocabulary.
    """
    log_p = log_probs.double()
    others = vocabulary - log_p.shape[-1]
    if others <= 0:
        return torch.zeros_like(log_p[:, 0]), torch.zeros_like(log_p[:, 0])
    log_c = log_p.amin(-1).clamp(min=-700)  # where exp is still above 0
    left_over = (-torch.expm1(log_p.logsumexp(-1))).clamp(min=0)
    left_over = torch.minimum(left_over, others * log_c.exp())  # beyond it, the stored ones would not be the largest
    whole = torch.floor(left_over / log_c.exp())
    remainder = (left_over - whole * log_c.exp()).clamp(min=0)
    power = 1 / temperature
    even = (1 - power) * math.log(others) + power * left_over.log()
    peaked = torch.logaddexp(whole.log() + power * log_c, power * remainder.log())
    kept = (power * log_p).logsumexp(-1)
    one, other = torch.sigmoid(even - kept), torch.sigmoid(peaked - kept)
    return torch.minimum(one, other), torch.maximum(one, other)


def with_bucket(log_probs: Tensor) -> Tensor:
    """Appends the log of the left-over mass, [token, k + 1]; below the dtype's epsilon it is rounding, and is taken as epsilon."""
    left_over = -torch.expm1(log_probs.logsumexp(-1, keepdim=True))
    return torch.cat([log_probs, left_over.clamp(min=torch.finfo(log_probs.dtype).eps).log()], -1)
