"""What the tests of the loss share: random batches, the loss written with dense logits and autograd, and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from beartype import beartype
from hypothesis import strategies as st
from jaxtyping import jaxtyped
from torch import Tensor

from distill.objectives.chunked import LossSums, distillation_loss
from distill.objectives.divergences import DIVERGENCES
from distill.records.signals import Dense, Hidden, Signal, TopK
from interp.checkpoints.unembedding import OutputHead

TOKENS, VOCABULARY, WIDTH, TEACHER_WIDTH = 7, 19, 5, 6


TEMPERATURES = (1.0, 2.5, 5.94)


HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"scale": 0.25},
    "capped": {"softcap": 2.0},
    "all": {"bias": True, "scale": 1.7, "softcap": 3.0},
}


loss_with_shapes: Callable[..., LossSums] = jaxtyped(typechecker=beartype)(distillation_loss)
"""The loss, with the shapes of its signature executed."""


@dataclass
class Case:
    """A batch of random numbers."""

    hidden: Tensor
    head: OutputHead
    targets: Tensor
    teacher_logits: Tensor
    teacher_states: Tensor
    teacher_head: OutputHead
    weights: Tensor

    def signal(self, name: str) -> Signal:
        log_p = self.teacher_logits.log_softmax(-1)
        if name == "hidden":
            return Hidden(self.teacher_states, self.teacher_head)
        if name == "dense":
            return Dense(log_p)
        return top(log_p, {"top4": 4, "all": log_p.shape[1]}[name])

    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.hidden, self.head.weight, self.head.bias) if leaf is not None]


def top(log_p: Tensor, k: int) -> TopK:
    """Return the k largest, in a shuffled order: nothing may depend on it."""
    best = log_p.topk(k, -1)
    order = torch.argsort(torch.rand(best.indices.shape, generator=torch.Generator().manual_seed(5)), -1)
    return TopK(best.indices.gather(1, order), best.values.gather(1, order))


def make(
    head: str = "plain", dtype: torch.dtype = torch.float64, seed: int = 0, tokens: int = TOKENS, vocabulary: int = VOCABULARY
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def make_head(width: int) -> OutputHead:
        options = dict[str, Any](HEADS[head])
        bias = normal(vocabulary).requires_grad_() if options.pop("bias", False) else None
        return OutputHead(normal(vocabulary, width).requires_grad_(), bias, **options)

    teacher_head, states = make_head(TEACHER_WIDTH), normal(tokens, TEACHER_WIDTH)
    return Case(
        hidden=normal(tokens, WIDTH).requires_grad_(),
        head=make_head(WIDTH),
        targets=torch.randint(vocabulary, (tokens,), generator=generator),
        teacher_logits=plain_logits(states, teacher_head).detach(),
        teacher_states=states,
        teacher_head=teacher_head,
        weights=torch.rand(tokens, generator=generator, dtype=torch.float64).to(dtype) + 0.5,
    )


def select(case: Case, index: Tensor) -> Case:
    return replace(
        case,
        hidden=case.hidden.detach()[index].requires_grad_(),
        targets=case.targets[index],
        teacher_logits=case.teacher_logits[index],
        teacher_states=case.teacher_states[index],
        weights=case.weights[index],
    )


def plain_logits(hidden: Tensor, head: OutputHead) -> Tensor:
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def plain_kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def plain_divergence(name: str, p: Tensor, q: Tensor, beta: float) -> Tensor:
    """Return a divergence from probabilities: the project's own written anew, any other from its entry."""
    if name == "forward_kl":
        return plain_kl(p, q)
    if name == "reverse_kl":
        return plain_kl(q, p)
    if name == "jsd":
        m = beta * p + (1 - beta) * q
        return beta * plain_kl(p, m) + (1 - beta) * plain_kl(q, m)
    entry = DIVERGENCES[name]
    return entry.value(p.log(), q.log(), **entry.chosen_parameters(beta=beta))


def plain_distributions(case: Case, signal: str, temperature: float, vocabulary: int | None = None) -> tuple[Tensor, Tensor]:
    student, teacher = plain_logits(case.hidden, case.head)[:, :vocabulary], case.teacher_logits[:, :vocabulary]
    if signal != "top4":
        return (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    ids = case.teacher_logits.topk(4, -1).indices
    if temperature != 1:
        return (teacher.gather(1, ids) / temperature).softmax(-1), (student.gather(1, ids) / temperature).softmax(-1)
    p, q = teacher.softmax(-1).gather(1, ids), student.softmax(-1).gather(1, ids)
    return torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1), torch.cat([q, 1 - q.sum(-1, keepdim=True)], -1)


def plain_parts(case: Case, signal: str, name: str, alpha: float, temperature: float, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    log_q = plain_logits(case.hidden, case.head).log_softmax(-1)
    cross_entropy = (case.weights * -log_q[torch.arange(len(log_q)), case.targets]).sum()
    p, q = plain_distributions(case, signal, temperature)
    divergence = (case.weights * plain_divergence(name, p, q, beta)).sum()
    return alpha * cross_entropy + (1 - alpha) * temperature**2 * divergence, cross_entropy, divergence


def gradients(total: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(total, leaves, retain_graph=True))


def our_sums(case: Case, signal: str | None, **options: Any) -> LossSums:
    options = {"weights": case.weights, "topk_at_temperature": "truncate", "chunk_tokens": 3} | options
    teacher = None if signal is None else case.signal(signal)
    return loss_with_shapes(case.hidden, case.head, case.targets, teacher, **options)


def assert_same(ours: list[Tensor], theirs: list[Tensor], rtol: float = 1e-9, atol: float = 1e-11) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def log_probabilities(size: int, spread: float = 8.0) -> st.SearchStrategy[Tensor]:
    """Log-probabilities of one distribution over `size` tokens, [1, size]."""
    numbers = st.lists(st.floats(-spread, spread), min_size=size, max_size=size)
    return numbers.map(lambda logits: torch.tensor([logits], dtype=torch.float64).log_softmax(-1))
