# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The distillation loss over chunks of tokens: no tensor of [token, vocab] is kept for the backward pass.

    loss = alpha * CE(target, student at T = 1) + (1 - alpha) * T^2 * D(teacher_T, student_T),   p_T = softmax(logits / T)

T^2 is part of the value and therefore of the gradient: the gradient of D falls with 1 / T^2 (Hinton et al. 2015, section 2.1), so alpha
keeps its meaning at every temperature. D is one of `distill.objectives.divergences.DIVERGENCES`. Everything is summed over tokens, in
nats; the caller divides by the number of tokens of the complete batch.

In the forward pass, one matrix product per chunk of tokens gives the student's logits. The gradient with respect to the logits is
computed in closed form and multiplied with the head at once, so the backward pass only scales what is stored. The head's own gradient is
computed only if the head requires one. Products run in the dtype of the hidden states, or in autocast's; the teacher's run in the dtype
of its own head, also under autocast. Softmaxes and sums are float32 (float64 for float64). Losses are summed rather than averaged, so
that gradients in half precision stay away from the smallest numbers of their dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.objectives.checks import check_numbers, check_shapes, check_values, refuse_temperature, refuse_tokens
from distill.objectives.divergences import Divergence, find_divergence
from distill.records.signals import Dense, Hidden, Signal, TopK, with_bucket
from interp.checkpoints.unembedding import OutputHead, finish_logits, head_product, statistics_dtype
from interp.tables.errors import InputError

_CHUNK_BYTES = 128 << 20
"""Size of the float32 logits of one chunk, which one matrix product computes: 261 tokens of a vocabulary of 128,256. A product reaches its
full speed at about 256 tokens (measured: benchmarks/distill.py). If the teacher gives hidden states, two such buffers exist at once."""

_CPU_BLOCK_BYTES = 4 << 20
"""On a CPU, softmaxes process a chunk in blocks of this size. Their buffers then stay in the cache and reuse the same memory; allocating
it anew costs more than the arithmetic (same benchmark). An accelerator processes a complete chunk, with up to six buffers of its
size."""


@dataclass(frozen=True)
class LossSums:
    """Weighted sums over tokens, in nats.

    Attributes:
        total: alpha * cross_entropy + (1 - alpha) * T^2 * divergence; the only one with a gradient.
        cross_entropy: cross-entropy of the student at T = 1 on the targets.
        divergence: D(teacher_T, student_T), without T^2; 0 without a teacher.
    """

    total: Float[Tensor, ""]
    cross_entropy: Float[Tensor, ""]
    divergence: Float[Tensor, ""]


def distillation_loss(
    hidden: Float[Tensor, "token hidden"],
    head: OutputHead,
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
    """Return the loss of a batch, summed over its tokens: alpha * CE(target, student) + (1 - alpha) * T^2 * D(teacher_T, student_T).

    A top k is compared over k + 1 outcomes: its ids, and one bucket for everything else, on both sides. For the Kullback-Leibler
    divergences and the JSD, the result is between 0 and the divergence of the full distributions, and equal to it if k is the vocabulary.

    Args:
        hidden: the student's states before its head, the tokens of all examples along one axis, each at the position that predicts its
            target.
        head: the student's. Under FSDP or ZeRO-3, gather it first.
        targets: next-token ids.
        teacher: the teacher's signal at the same positions; None needs alpha = 1 and gives plain cross-entropy.
        divergence: a name of `distill.objectives.divergences.DIVERGENCES`.
        alpha: weight of the cross-entropy, 0 to 1.
        temperature: T of both sides of the divergence, above 0.
        beta: parameter of the JSD, 0 to 1, see `distill.objectives.divergences.jsd`.
        weights: constant factor of each token, at least 0. Tokens of weight 0 are left out, even if their values are not finite. None
            weights all tokens by 1.
        vocabulary: number of ids, from 0, that teacher and student share; None means all of the student's. Model families pad the output
            matrix differently (Qwen2.5-0.5B has 151,936 rows, 7B 152,064). For the divergence, both sides are restricted to these ids and
            normalized again (a top k does not show what its teacher assigned to padding; that counts as left over). The cross-entropy
            uses all of the student's ids.
        topk_at_temperature: what to do if T is not 1 and the top k is not the full vocabulary. The mass outside of the top k at T is
            then unknown (see `missing_mass`): "refuse" raises; "truncate" compares only the k ids, with each side at T and normalized
            over them.
        chunk_tokens: tokens of one chunk; None takes as many as fit into 128 MiB of logits. The result changes only by rounding.

    Returns:
        Sums over tokens, float32 (float64 for float64 states). Gradients reach `hidden`, and the head's weight and bias if they require
        one.

    Raises:
        InputError: an argument is out of range, shapes or dtypes do not fit, ids are outside the vocabulary, or numbers are not finite.
    """
    check_numbers(divergence, alpha, temperature, beta, teacher, topk_at_temperature, chunk_tokens)
    vocabulary = check_shapes(hidden, head, targets, teacher, weights, vocabulary)
    head = _cast(head, hidden)
    token = torch.arange(len(hidden), device=hidden.device)
    if weights is not None:
        weights = weights.detach()
        refuse_tokens(~(weights.isfinite() & (weights >= 0)), token, "weights", "is negative or not finite; weights are 0 or more")
        token = weights.nonzero()[:, 0]
        hidden, targets, weights = hidden[token], targets[token], weights[token]
        teacher = None if teacher is None else teacher.rows(token)
    check_values(hidden, head, targets, teacher, vocabulary, token)
    dtype = statistics_dtype(hidden.dtype)
    if weights is None:
        weights = torch.ones(len(hidden), dtype=dtype, device=hidden.device)
    entry = find_divergence(divergence)
    objective = _Objective(
        entry,
        entry.chosen_parameters(beta=beta),
        alpha,
        temperature,
        vocabulary,
        _has_bucket(teacher, vocabulary, temperature, topk_at_temperature),
    )
    step = chunk_tokens or max(1, _CHUNK_BYTES // (len(head.weight) * dtype.itemsize))
    # Weight and bias are passed separately, too: autograd sees only tensors that are arguments.
    sums = _ChunkedLoss.apply(
        hidden, head.weight, head.bias, head, targets, teacher, weights.to(dtype), objective, step, torch.is_grad_enabled()
    )
    return LossSums(*cast(tuple[Tensor, Tensor, Tensor], sums))


def _has_bucket(teacher: Signal | None, vocabulary: int, temperature: float, topk_at_temperature: str) -> bool:
    """Whether the mass outside of a top k is compared as one more outcome.

    Raises:
        InputError: the mass is unknown at this temperature, and that is to be refused.
    """
    if not isinstance(teacher, TopK) or teacher.ids.shape[1] >= vocabulary:
        return False
    if temperature != 1 and topk_at_temperature == "refuse":
        refuse_temperature(teacher, vocabulary, temperature)
    return temperature == 1


@dataclass(frozen=True)
class _Objective:
    divergence: Divergence
    parameters: dict[str, float]
    alpha: float
    temperature: float
    vocabulary: int
    bucket: bool


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: OutputHead,
        targets: Tensor,
        teacher: Signal | None,
        weights: Tensor,
        objective: _Objective,
        step: int,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sums, and store the gradients of the total."""
        wants = [grad_enabled and wanted for wanted in ctx.needs_input_grad[:3]]
        cross_entropy, divergence = torch.zeros_like(weights), torch.zeros_like(weights)
        grad_hidden = torch.empty_like(hidden) if wants[0] else None
        # Sums over chunks are kept in the dtype of the statistics: in bfloat16 they would stop growing.
        grad_weight = torch.zeros_like(weight, dtype=weights.dtype) if wants[1] else None
        grad_bias = torch.zeros(len(weight), dtype=weights.dtype, device=weight.device) if wants[2] else None
        block_rows = step if hidden.device.type != "cpu" else max(1, _CPU_BLOCK_BYTES // (len(weight) * weights.itemsize))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), step):
                stop = min(start + step, len(hidden))
                states = hidden[start:stop].to(weight.dtype)
                product = head_product(head, states)
                outcomes = None if teacher is None else _teacher_outcomes(teacher.rows(slice(start, stop)), objective, weights.dtype)
                for first in range(start, stop, block_rows):
                    rows = slice(first, min(first + block_rows, stop))
                    inside = slice(rows.start - start, rows.stop - start)
                    cross_entropy[rows], divergence[rows], grad = _block(
                        finish_logits(head, product[inside]),
                        head,
                        targets[rows],
                        None if outcomes is None else outcomes.rows(inside),
                        weights[rows],
                        objective,
                        any(wants),
                    )
                    if grad is not None:
                        product[inside] = grad  # the block's logits are no longer needed
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
        """Return the stored gradients times the gradient of the total."""
        grads = [None if g is None else (g * grad_total).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return *grads, None, None, None, None, None, None, None


@dataclass(frozen=True)
class _Outcomes:
    """A teacher's signal as a distribution over the outcomes that are compared.

    Attributes:
        logits: the log-softmax of logits / T is the teacher's distribution; if `head` is given, the product of that head.
        ids: token of each outcome except the bucket; None if the outcomes are the shared vocabulary.
        head: its scale and softcap have not been applied yet.
    """

    logits: Tensor
    ids: Tensor | None
    head: OutputHead | None

    def rows(self, index: slice) -> _Outcomes:
        return _Outcomes(self.logits[index], None if self.ids is None else self.ids[index], self.head)


def _teacher_outcomes(teacher: Signal, objective: _Objective, dtype: torch.dtype) -> _Outcomes:
    if isinstance(teacher, Hidden):
        return _Outcomes(head_product(teacher.head, teacher.states), None, teacher.head)
    if isinstance(teacher, Dense):
        return _Outcomes(teacher.log_probs, None, None)
    log_probs = teacher.log_probs.to(dtype)
    return _Outcomes(with_bucket(log_probs) if objective.bucket else log_probs, teacher.ids.long(), None)


def _block(
    logits: Tensor, head: OutputHead, targets: Tensor, teacher: _Outcomes | None, weights: Tensor, objective: _Objective, wants_grad: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return cross-entropy and divergence of each token, and the total's gradient with respect to the head's product, [token, vocab]."""
    log_q = torch.log_softmax(logits, -1)
    cross_entropy = -log_q.gather(1, targets[:, None])[:, 0]
    grad = None
    if wants_grad:
        factor = (objective.alpha * weights)[:, None]
        grad = log_q.exp_().mul_(factor)
        grad.scatter_add_(1, targets[:, None], -factor)
    del log_q
    divergence = torch.zeros_like(cross_entropy) if teacher is None else _add_divergence(logits, teacher, weights, objective, grad)
    if grad is not None:
        if head.softcap is not None:
            grad.mul_(1 - (logits / head.softcap).square_())
        if head.scale != 1:
            grad.mul_(head.scale)
    return cross_entropy, divergence, grad


def _add_divergence(logits: Tensor, teacher: _Outcomes, weights: Tensor, objective: _Objective, grad: Tensor | None) -> Tensor:
    """Return the divergence of each token; add its part of the total's gradient with respect to the logits to `grad`."""
    temperature, ids = objective.temperature, teacher.ids
    outcomes = shared = logits[:, : objective.vocabulary]
    rest = log_rest = None
    if ids is not None:
        outcomes = shared.gather(1, ids)
    if ids is not None and objective.bucket:
        rest = shared.scatter(1, ids, -math.inf)
        log_rest = rest.logsumexp(-1, keepdim=True)
        outcomes = torch.cat([outcomes, log_rest], -1)
    log_q = torch.log_softmax(outcomes / temperature, -1)
    teacher_logits = teacher.logits if teacher.head is None else finish_logits(teacher.head, teacher.logits)
    log_p = torch.log_softmax(teacher_logits[:, : objective.vocabulary].to(logits.dtype) / temperature, -1)
    divergence = objective.divergence.value(log_p, log_q, **objective.parameters)
    if grad is None:
        return divergence
    slope = _through_softmax(objective.divergence.slope(log_p, log_q, **objective.parameters), log_q)
    # T^2 of the formula times 1 / T, the derivative of outcomes / T.
    slope.mul_(((1 - objective.alpha) * temperature * weights)[:, None])
    shared_grad = grad[:, : objective.vocabulary]
    if ids is None:
        shared_grad.add_(slope)
    else:
        shared_grad.scatter_add_(1, ids, slope[:, : ids.shape[1]])
    if rest is not None and log_rest is not None:
        shared_grad.addcmul_(rest.sub_(log_rest).exp_(), slope[:, -1:])  # the derivative of the bucket's log-sum-exp is a softmax
    return divergence


def _through_softmax(slope: Tensor, log_q: Tensor) -> Tensor:
    """Return the derivative with respect to x, where log_q = log_softmax(x), from the one with respect to log_q; overwrite `slope`."""
    return slope.sub_(log_q.exp().mul_(slope.sum(-1, keepdim=True)))


def _cast(head: OutputHead, hidden: Tensor) -> OutputHead:
    """Return the head in the dtype that the student's products run in."""
    device = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    elif head.weight.dtype != dtype:
        raise InputError(
            f"hidden states are {dtype}, the head's weight {head.weight.dtype}; cast one to the other, or compute under autocast"
        )
    return replace(head, weight=head.weight.to(dtype), bias=None if head.bias is None else head.bias.to(dtype))
