# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The distillation loss over chunks of tokens: nothing of [token, vocab] is kept for the backward pass.

The one formula, with p_T = softmax(logits / T):

    loss = alpha * CE(target, student at T = 1) + (1 - alpha) * T^2 * D(teacher_T, student_T)

T^2 stands in the value and so in the gradient: the gradient of D falls with 1 / T^2 (Hinton et al. 2015, section 2.1), so alpha keeps its
meaning at every temperature. D is one of `LOSSES`. Everything is summed over tokens, in nats; the caller divides by the number of tokens
of the whole batch.

Forward: for each chunk of tokens one matrix product gives the student's logits; the gradient with respect to them is written down in
closed form and multiplied with the head at once, so backward only scales what is there. The head's own gradient is made only where it asks
for one. Products run in the dtype of the hidden states, or in autocast's where it is on; the teacher's in the dtype of its own head,
whatever autocast says. Softmaxes and sums are float32 (float64 for float64). A sum keeps gradients of half precision away from its
smallest numbers, which a mean would reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_BYTES = 128 << 20
"""Float32 logits of one chunk, which is what a matrix product makes at once: 261 tokens of a vocabulary of 128,256. About 256 are needed
for its full speed (measured: benchmarks/distill.py). Two such buffers live at once where the teacher gives hidden states."""
CPU_BLOCK_BYTES = 4 << 20
"""Softmaxes on a CPU take this much of a chunk at once: their buffers stay in the cache, and the system need not find new memory for each,
which costs more than the arithmetic (measured likewise). An accelerator takes a whole chunk, and has up to six buffers of its size."""


class LossError(ValueError):
    """A loss that cannot be computed as asked; the message says what was seen, what is allowed and what to do."""


class NonFiniteError(LossError):
    """Hidden states of the student that are NaN or infinite."""


@dataclass(frozen=True)
class Head:
    """A model's output matrix and what follows it: logits = cap(scale * (weight @ hidden + bias)), cap(x) = softcap * tanh(x / softcap).

    Attributes:
        weight: rows are tokens.
        bias: added to the product.
        scale: factor of the logits (Cohere's `logit_scale`; Granite's is one over its `logits_scaling`).
        softcap: bound of the logits (Gemma 2's `final_logit_softcapping`); None where there is none.
    """

    weight: Float[Tensor, "vocab hidden"]
    bias: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "token hidden"]) -> Float[Tensor, "token vocab"]:
        """The logits of hidden states, in float32 (float64 for a float64 head) after a product in the weight's dtype."""
        return _finish(self, _product(self, hidden))


def _product(head: Head, hidden: Tensor) -> Tensor:
    return F.linear(hidden.to(head.weight.dtype), head.weight, head.bias)


def _finish(head: Head, product: Tensor) -> Tensor:
    logits = product.to(_statistics_dtype(product.dtype))
    if head.scale != 1:
        logits = logits * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return logits


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
    head: Head

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


@dataclass(frozen=True)
class LossSums:
    """Sums over tokens of weight times a part of the loss, in nats.

    Attributes:
        total: alpha * cross_entropy + (1 - alpha) * T^2 * divergence; it alone carries the gradient.
        cross_entropy: of the student at T = 1 on the targets.
        divergence: D(teacher_T, student_T), without T^2; 0 without a teacher.
    """

    total: Float[Tensor, ""]
    cross_entropy: Float[Tensor, ""]
    divergence: Float[Tensor, ""]


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


def _slope(name: str, teacher_log_p: Tensor, student_log_q: Tensor, beta: float) -> Tensor:
    """The derivative of D by student_log_q, [n, m]; a constant times q is left out, since `_through_softmax` would take it off again."""
    if name == "forward_kl" or (name == "jsd" and beta == 0):
        return -teacher_log_p.exp()
    if name == "reverse_kl" or beta == 1:
        return student_log_q.exp().mul_(student_log_q - teacher_log_p)
    log_m = _log_mixture(teacher_log_p, student_log_q, beta)
    return student_log_q.exp().mul_(student_log_q - log_m).mul_(1 - beta)


def _log_mixture(teacher_log_p: Tensor, student_log_q: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(teacher_log_p + math.log(beta), student_log_q + math.log1p(-beta))


def _through_softmax(slope: Tensor, log_q: Tensor) -> Tensor:
    """From a slope with respect to log_q to one with respect to what log_q is the log-softmax of; overwrites `slope`."""
    return slope.sub_(log_q.exp().mul_(slope.sum(-1, keepdim=True)))


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


def _with_bucket(log_probs: Tensor) -> Tensor:
    """Appends the log of the left-over mass, [token, k + 1]; below the dtype's epsilon it is rounding, and is taken as epsilon."""
    left_over = -torch.expm1(log_probs.logsumexp(-1, keepdim=True))
    return torch.cat([log_probs, left_over.clamp(min=torch.finfo(log_probs.dtype).eps).log()], -1)


# --- the loss ---------------------------------------------------------------------------------------------------------


def distillation_loss(
    hidden: Float[Tensor, "token hidden"],
    head: Head,
    targets: Int[Tensor, " token"],
    teacher: Signal | None,
    *,
    divergence: str = "forward_kl",
    alpha: float = 0.5,
    temperature: float = 1.0,
    beta: float = 0.5,
    weights: Float[Tensor, " token"] | None = None,
    vocabulary: int | None = None,
    topk_at_temperature: Literal["refuse", "truncate"] = "refuse",
    chunk_tokens: int | None = None,
) -> LossSums:
    """The loss of a batch, summed over its tokens: alpha * CE(target, student) + (1 - alpha) * T^2 * D(teacher_T, student_T).

    A top k is compared over k + 1 outcomes: its ids, and one bucket for all that is left over, on both sides. For the Kullback-Leibler
    divergences and the JSD this lies between 0 and the divergence of the whole distributions, and reaches it where k is the vocabulary.

    Args:
        hidden: the student's states before its head, the tokens of all examples in one axis, each at the place that predicts its target.
        head: the student's. Under FSDP or ZeRO-3, gather it first.
        targets: next-token ids.
        teacher: what the teacher says at the same places; None needs alpha = 1 and gives plain cross-entropy.
        divergence: a name of `LOSSES`.
        alpha: share of the cross-entropy, 0 to 1.
        temperature: T of both sides of the divergence, above 0.
        beta: of the JSD, 0 to 1, see `jsd`.
        weights: factor of each token, constant, at least 0; tokens of weight 0 are left out, whatever they hold. None weighs all with 1.
        vocabulary: how many ids, from 0, teacher and student share; None says all the student's. Families pad the matrix differently
            (Qwen2.5-0.5B has 151,936 rows, 7B 152,064). For the divergence both sides are restricted to these ids and made to sum to 1
            again (a top k cannot tell what its teacher left to padding: that counts as left over); the cross-entropy keeps the student's
            whole row.
        topk_at_temperature: what to do with a top k that is not the whole vocabulary where T is not 1. What it leaves over at T is not
            known (see `missing_mass`): "refuse" raises; "truncate" compares the k ids alone, each side at T and made to sum to 1 over
            them.
        chunk_tokens: tokens at once; None takes as many as `CHUNK_BYTES` allows. It does not change the numbers beyond rounding.

    Returns:
        Sums over tokens, float32 (float64 for float64 states). Gradients reach `hidden`, and the head's weight and bias where they require
        one.

    Raises:
        LossError: an argument outside its range, shapes or dtypes that do not fit, ids outside the vocabulary, numbers that are not finite.
    """
    _check_numbers(divergence, alpha, temperature, beta, teacher, topk_at_temperature, chunk_tokens)
    vocabulary = _check_shapes(hidden, head, targets, teacher, weights, vocabulary)
    head = _cast(head, hidden)
    token = torch.arange(len(hidden), device=hidden.device)
    if weights is not None:
        weights = weights.detach()
        _refuse(~(weights.isfinite() & (weights >= 0)), token, "weights", "is negative or not finite; weights are 0 or more")
        token = weights.nonzero()[:, 0]
        hidden, targets, weights = hidden[token], targets[token], weights[token]
        teacher = None if teacher is None else teacher.rows(token)
    _check_values(hidden, head, targets, teacher, vocabulary, token)
    bucket = False
    if isinstance(teacher, TopK) and teacher.ids.shape[1] < vocabulary:
        bucket = temperature == 1
        if not bucket and topk_at_temperature == "refuse":
            _refuse_temperature(teacher, vocabulary, temperature)
    dtype = _statistics_dtype(hidden.dtype)
    if weights is None:
        weights = torch.ones(len(hidden), dtype=dtype, device=hidden.device)
    objective = _Objective(divergence, alpha, temperature, beta, vocabulary, bucket)
    step = chunk_tokens or max(1, CHUNK_BYTES // (len(head.weight) * dtype.itemsize))
    # The weight and the bias go in by themselves too: autograd sees only tensors that are arguments.
    sums = _ChunkedLoss.apply(
        hidden, head.weight, head.bias, head, targets, teacher, weights.to(dtype), objective, step, torch.is_grad_enabled()
    )
    return LossSums(*cast(tuple[Tensor, Tensor, Tensor], sums))


@dataclass(frozen=True)
class _Objective:
    divergence: str
    alpha: float
    temperature: float
    beta: float
    vocabulary: int
    bucket: bool


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        targets: Tensor,
        teacher: Signal | None,
        weights: Tensor,
        objective: _Objective,
        step: int,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums, and the gradients of the total."""
        wants = [grad_enabled and wanted for wanted in ctx.needs_input_grad[:3]]
        cross_entropy, divergence = torch.zeros_like(weights), torch.zeros_like(weights)
        grad_hidden = torch.empty_like(hidden) if wants[0] else None
        # Sums over chunks stay in the dtype of the statistics: in bfloat16 they would stop growing.
        grad_weight = torch.zeros_like(weight, dtype=weights.dtype) if wants[1] else None
        grad_bias = torch.zeros(len(weight), dtype=weights.dtype, device=weight.device) if wants[2] else None
        block_rows = step if hidden.device.type != "cpu" else max(1, CPU_BLOCK_BYTES // (len(weight) * weights.itemsize))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), step):
                stop = min(start + step, len(hidden))
                states = hidden[start:stop].to(weight.dtype)
                product = _product(head, states)
                said = None if teacher is None else _said(teacher.rows(slice(start, stop)), objective, weights.dtype)
                for first in range(start, stop, block_rows):
                    rows = slice(first, min(first + block_rows, stop))
                    inside = slice(rows.start - start, rows.stop - start)
                    cross_entropy[rows], divergence[rows], grad = _block(
                        _finish(head, product[inside]),
                        head,
                        targets[rows],
                        None if said is None else said.rows(inside),
                        weights[rows],
                        objective,
                        any(wants),
                    )
                    if grad is not None:
                        product[inside] = grad  # the block's logits are done with
                    if grad is not None and grad_bias is not None:
                        grad_bias += grad.sum(0)
                if grad_hidden is not None:
                    grad_hidden[start:stop] = product @ weight
                if grad_weight is not None and grad_weight.dtype == product.dtype:
                    grad_weight.addmm_(product.t(), states)
                elif grad_weight is not None:
                    grad_weight += product.t() @ states
        cross_entropy, divergence = (cross_entropy * weights).sum(), (divergence * weights).sum()
        total = objective.alpha * cross_entropy + (1 - objective.alpha) * objective.temperature**2 * divergence
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype
        ctx.mark_non_differentiable(cross_entropy, divergence)
        return total, cross_entropy, divergence

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The stored gradients times the total's."""
        grads = [None if g is None else (g * grad_total).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return *grads, None, None, None, None, None, None, None


@dataclass(frozen=True)
class _Said:
    """A teacher's signal in the form that the divergence takes.

    Attributes:
        logits: what log-softmax of logits / T makes the teacher's distribution over the outcomes; the product of `head` where there is one.
        ids: the outcomes' tokens, of which the bucket has none; None where they are the shared vocabulary.
        head: its scale and cap are still to be applied.
    """

    logits: Tensor
    ids: Tensor | None
    head: Head | None

    def rows(self, index: slice) -> _Said:
        return _Said(self.logits[index], None if self.ids is None else self.ids[index], self.head)


def _said(teacher: Signal, objective: _Objective, dtype: torch.dtype) -> _Said:
    if isinstance(teacher, Hidden):
        return _Said(_product(teacher.head, teacher.states), None, teacher.head)
    if isinstance(teacher, Dense):
        return _Said(teacher.log_probs, None, None)
    log_probs = teacher.log_probs.to(dtype)
    return _Said(_with_bucket(log_probs) if objective.bucket else log_probs, teacher.ids.long(), None)


def _block(
    logits: Tensor, head: Head, targets: Tensor, said: _Said | None, weights: Tensor, objective: _Objective, wants_grad: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cross-entropy and divergence a token, and the total's gradient with respect to the head's product, [token, vocab]."""
    log_q = torch.log_softmax(logits, -1)
    cross_entropy = -log_q.gather(1, targets[:, None])[:, 0]
    grad = None
    if wants_grad:
        factor = (objective.alpha * weights)[:, None]
        grad = log_q.exp_().mul_(factor)
        grad.scatter_add_(1, targets[:, None], -factor)
    del log_q
    divergence = torch.zeros_like(cross_entropy) if said is None else _add_divergence(logits, said, weights, objective, grad)
    if grad is not None:
        if head.softcap is not None:
            grad.mul_(1 - (logits / head.softcap).square_())
        if head.scale != 1:
            grad.mul_(head.scale)
    return cross_entropy, divergence, grad


def _add_divergence(logits: Tensor, said: _Said, weights: Tensor, objective: _Objective, grad: Tensor | None) -> Tensor:
    """The divergence a token; adds its share of the total's gradient with respect to the logits to `grad`."""
    temperature, beta, ids = objective.temperature, objective.beta, said.ids
    outcomes = shared = logits[:, : objective.vocabulary]
    rest = log_rest = None
    if ids is not None:
        outcomes = shared.gather(1, ids)
    if ids is not None and objective.bucket:
        rest = shared.scatter(1, ids, -math.inf)
        log_rest = rest.logsumexp(-1, keepdim=True)
        outcomes = torch.cat([outcomes, log_rest], -1)
    log_q = torch.log_softmax(outcomes / temperature, -1)
    theirs = said.logits if said.head is None else _finish(said.head, said.logits)
    log_p = torch.log_softmax(theirs[:, : objective.vocabulary].to(logits.dtype) / temperature, -1)
    divergence = LOSSES[objective.divergence](log_p, log_q, beta)
    if grad is None:
        return divergence
    slope = _through_softmax(_slope(objective.divergence, log_p, log_q, beta), log_q)
    # T^2 of the formula, and 1 / T of outcomes / T.
    slope.mul_(((1 - objective.alpha) * temperature * weights)[:, None])
    shared_grad = grad[:, : objective.vocabulary]
    if ids is None:
        shared_grad.add_(slope)
    else:
        shared_grad.scatter_add_(1, ids, slope[:, : ids.shape[1]])
    if rest is not None and log_rest is not None:
        shared_grad.addcmul_(rest.sub_(log_rest).exp_(), slope[:, -1:])  # the bucket's log-sum-exp hands down its own softmax
    return divergence


def _statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _cast(head: Head, hidden: Tensor) -> Head:
    """The head in the dtype that the student's products run in."""
    device = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    elif head.weight.dtype != dtype:
        raise LossError(
            f"hidden states are {dtype}, the head's weight {head.weight.dtype}; cast one to the other, or compute under autocast"
        )
    return replace(head, weight=head.weight.to(dtype), bias=None if head.bias is None else head.bias.to(dtype))


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_numbers(
    divergence: str,
    alpha: float,
    temperature: float,
    beta: float,
    teacher: Signal | None,
    topk_at_temperature: str,
    chunk_tokens: int | None,
) -> None:
    if divergence not in LOSSES:
        raise LossError(f"unknown divergence {divergence!r}; known: {', '.join(LOSSES)}")
    if not 0 <= alpha <= 1:
        raise LossError(f"alpha is {alpha}; it must be from 0 (divergence alone) to 1 (cross-entropy alone)")
    if not 0 < temperature < math.inf:
        raise LossError(f"temperature is {temperature}; it must be above 0 and finite")
    if not 0 <= beta <= 1:
        raise LossError(f"beta is {beta}; it must be from 0 (KL(teacher || student)) to 1 (KL(student || teacher))")
    if teacher is None and alpha != 1:
        raise LossError(f"alpha is {alpha}, but there is no teacher to diverge from; give its signal, or set alpha to 1")
    if topk_at_temperature not in ("refuse", "truncate"):
        raise LossError(f"topk_at_temperature is {topk_at_temperature!r}; allowed: refuse, truncate")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise LossError(f"chunk_tokens is {chunk_tokens}; it must be at least 1, or left out")


def _check_shapes(
    hidden: Tensor, head: Head, targets: Tensor, teacher: Signal | None, weights: Tensor | None, vocabulary: int | None
) -> int:
    """The number of shared ids."""
    n_tokens, size = len(hidden), len(head.weight)
    _expect("hidden", hidden, n_tokens, head.weight.shape[1])
    if head.bias is not None:
        _expect("the head's bias", head.bias, size)
    _expect("targets", targets, n_tokens)
    if weights is not None:
        _expect("weights", weights, n_tokens)
    shared = size if vocabulary is None else vocabulary
    if not 1 <= shared <= size:
        raise LossError(f"vocabulary is {shared}; it must be from 1 to {size}, the rows of the student's head")
    if isinstance(teacher, TopK):
        if teacher.ids.ndim != 2 or not 1 <= teacher.ids.shape[1] <= shared:
            raise LossError(f"the teacher's ids have shape {list(teacher.ids.shape)}; needed: [{n_tokens}, k], with k from 1 to {shared}")
        _expect("the teacher's ids", teacher.ids, n_tokens, teacher.ids.shape[1])
        _expect("the teacher's log-probabilities", teacher.log_probs, n_tokens, teacher.ids.shape[1])
    elif teacher is not None:
        if isinstance(teacher, Hidden):
            _expect("the teacher's states", teacher.states, n_tokens, teacher.head.weight.shape[1])
            theirs = len(teacher.head.weight)
        else:
            theirs = teacher.log_probs.shape[-1]
            _expect("the teacher's log-probabilities", teacher.log_probs, n_tokens, theirs)
        if shared > theirs or (vocabulary is None and theirs != size):
            raise LossError(
                f"the student has {size} tokens, the teacher {theirs}, and vocabulary is {vocabulary}; "
                f"where the tokenizers are the same and only the padding differs, set vocabulary to the number of ids that they share"
            )
    return shared


def _expect(name: str, tensor: Tensor, *shape: int) -> None:
    if tuple(tensor.shape) != shape:
        raise LossError(f"{name}: shape {list(tensor.shape)}; needed: {list(shape)} (tokens first, as many as hidden has)")


def _check_values(hidden: Tensor, head: Head, targets: Tensor, teacher: Signal | None, vocabulary: int, token: Tensor) -> None:
    _refuse(
        ~hidden.isfinite().all(-1), token, "hidden", "is not finite; look for the first layer that gives NaN or infinity", NonFiniteError
    )
    size = len(head.weight)
    _refuse(
        (targets < 0) | (targets >= size),
        token,
        "targets",
        f"is outside the student's vocabulary, 0 to {size - 1}; leave a token out by weight 0",
    )
    if isinstance(teacher, Hidden):
        _refuse(~teacher.states.isfinite().all(-1), token, "the teacher's states", "is not finite; collect them again")
        return
    if teacher is None:
        return
    log_probs = teacher.log_probs
    _refuse(~log_probs.isfinite().all(-1), token, "the teacher's log-probabilities", "is not finite; collect them again, or floor them")
    if isinstance(teacher, TopK):
        outside = (teacher.ids < 0) | (teacher.ids >= vocabulary)
        _refuse(outside.any(-1), token, "the teacher's ids", f"is outside the shared vocabulary, 0 to {vocabulary - 1}")
        in_order = teacher.ids.sort(-1).values
        _refuse((in_order[:, 1:] == in_order[:, :-1]).any(-1), token, "the teacher's ids", "repeats an id; each may stand once")
    # Rounding to bfloat16 moves the sum of probabilities by a few per cent at most.
    _refuse(
        log_probs.float().logsumexp(-1) > 0.1,
        token,
        "the teacher's log-probabilities",
        "sums to a mass above 1; give log-probabilities, no logits",
    )


def _refuse(bad: Tensor, token: Tensor, name: str, problem: str, error: type[LossError] = LossError) -> None:
    if bool(bad.any()):
        first = int(token[int(bad.nonzero()[0, 0])])
        raise error(f"{name}: token {first} {problem} ({int(bad.sum())} of {len(bad)} tokens)")


def _refuse_temperature(teacher: TopK, vocabulary: int, temperature: float) -> None:
    k = teacher.ids.shape[1]
    lower, upper = (float(bound.mean()) for bound in missing_mass(teacher.log_probs, vocabulary, temperature))
    raise LossError(
        f"a stored top {k} of {vocabulary} tokens cannot give temperature {temperature:g}: there, {lower:.1%} to {upper:.1%} of the "
        f"teacher's mass lies outside it (mean over {len(teacher.ids)} tokens); take hidden states, set temperature to 1, or ask for "
        f'topk_at_temperature="truncate", which compares these {k} tokens alone'
    )
