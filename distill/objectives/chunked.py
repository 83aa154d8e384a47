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
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.objectives.checks import check_numbers, check_shapes, check_values, refuse_temperature, refuse_tokens
from distill.objectives.divergences import LOSSES, slope_of, through_softmax
from distill.records.signals import Dense, Hidden, Signal, TopK, with_bucket
from interp.checkpoints.unembedding import OutputHead, finish_logits, head_product, statistics_dtype
from interp.tables.errors import InputError

CHUNK_BYTES = 128 << 20
"""Float32 logits of one chunk, which is what a matrix product makes at once: 261 tokens of a vocabulary of 128,256. About 256 are needed
for its full speed (measured: benchmarks/distill.py). Two such buffers live at once where the teacher gives hidden states."""


CPU_BLOCK_BYTES = 4 << 20
"""Softmaxes on a CPU take this much of a chunk at once: their buffers stay in the cache, and the system need not find new memory for each,
which costs more than the arithmetic (measured likewise). An accelerator takes a whole chunk, and has up to six buffers of its size."""


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


# --- the loss ---------------------------------------------------------------------------------------------------------


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
        InputError: an argument outside its range, shapes or dtypes that do not fit, ids outside the vocabulary, numbers that are not finite.
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
    bucket = False
    if isinstance(teacher, TopK) and teacher.ids.shape[1] < vocabulary:
        bucket = temperature == 1
        if not bucket and topk_at_temperature == "refuse":
            refuse_temperature(teacher, vocabulary, temperature)
    dtype = statistics_dtype(hidden.dtype)
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
        head: OutputHead,
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
                product = head_product(head, states)
                said = None if teacher is None else _said(teacher.rows(slice(start, stop)), objective, weights.dtype)
                for first in range(start, stop, block_rows):
                    rows = slice(first, min(first + block_rows, stop))
                    inside = slice(rows.start - start, rows.stop - start)
                    cross_entropy[rows], divergence[rows], grad = _block(
                        finish_logits(head, product[inside]),
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
    head: OutputHead | None

    def rows(self, index: slice) -> _Said:
        return _Said(self.logits[index], None if self.ids is None else self.ids[index], self.head)


def _said(teacher: Signal, objective: _Objective, dtype: torch.dtype) -> _Said:
    if isinstance(teacher, Hidden):
        return _Said(head_product(teacher.head, teacher.states), None, teacher.head)
    if isinstance(teacher, Dense):
        return _Said(teacher.log_probs, None, None)
    log_probs = teacher.log_probs.to(dtype)
    return _Said(with_bucket(log_probs) if objective.bucket else log_probs, teacher.ids.long(), None)


def _block(
    logits: Tensor, head: OutputHead, targets: Tensor, said: _Said | None, weights: Tensor, objective: _Objective, wants_grad: bool
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
    theirs = said.logits if said.head is None else finish_logits(said.head, said.logits)
    log_p = torch.log_softmax(theirs[:, : objective.vocabulary].to(logits.dtype) / temperature, -1)
    divergence = LOSSES[objective.divergence](log_p, log_q, beta)
    if grad is None:
        return divergence
    slope = through_softmax(slope_of(objective.divergence, log_p, log_q, beta), log_q)
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


def _cast(head: OutputHead, hidden: Tensor) -> OutputHead:
    """The head in the dtype that the student's products run in."""
    device = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    elif head.weight.dtype != dtype:
        raise InputError(
            f"hidden states are {dtype}, the head's weight {head.weight.dtype}; cast one to the other, or compute under autocast"
        )
    return replace(head, weight=head.weight.to(dtype), bias=None if head.bias is None else head.bias.to(dtype))
