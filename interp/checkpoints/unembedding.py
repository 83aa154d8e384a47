"""A model's output head, and last hidden states without logits: `OutputHead.logits` gives those of any token, later and in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.tables.errors import CheckpointError


@dataclass(frozen=True)
class OutputHead:
    """A model's output matrix and what follows it: logits = cap(scale * (weight @ hidden + bias)), cap(x) = softcap * tanh(x / softcap).

    Attributes:
        weight: one row per token of the vocabulary.
        bias: added to the product; None for no bias.
        scale: factor of the logits (Cohere's `logit_scale`; for Granite one over its `logits_scaling`).
        softcap: bound of the logits (Gemma 2's `final_logit_softcapping`); None for no bound.
    """

    weight: Float[Tensor, "vocab hidden"]
    bias: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "token hidden"]) -> Float[Tensor, "token vocab"]:
        """Return the logits of hidden states, in float32 (float64 for a float64 head) after a product in the weight's dtype."""
        return finish_logits(self, head_product(self, hidden))


def head_product(head: OutputHead, hidden: Tensor) -> Tensor:
    """Return weight @ hidden + bias, in the weight's dtype."""
    return F.linear(hidden.to(head.weight.dtype), head.weight, head.bias)


def finish_logits(head: OutputHead, product: Tensor) -> Tensor:
    """Return the logits that the head makes of `head_product`'s result, in `statistics_dtype`."""
    logits = product.to(statistics_dtype(product.dtype))
    if head.scale != 1:
        logits = logits * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return logits


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which statistics of tensors of this dtype are computed: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def output_head(model: Any) -> OutputHead:
    """Return a model's output head, checked against the model's own logits on a short text.

    Args:
        model: a causal language model of transformers, or a PEFT model of one.

    Raises:
        CheckpointError: the architecture does something else after its head, so its logits cannot be computed from hidden states.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        raise CheckpointError(f"{type(model).__name__} has no output head; a causal language model is needed")
    config = model.config.get_text_config(decoder=True)
    scale = 1.0
    if getattr(config, "logit_scale", None) is not None:  # Cohere
        scale = float(config.logit_scale)
    elif getattr(config, "logits_scaling", None) is not None:  # Granite
        scale = 1.0 / float(config.logits_scaling)
    head = OutputHead(layer.weight, getattr(layer, "bias", None), scale, getattr(config, "final_logit_softcapping", None))
    probe = (torch.arange(8, device=layer.weight.device) * 7919 % config.vocab_size)[None]
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), keep_hidden(model) as kept:
            logits = model(input_ids=probe, use_cache=False).logits[0].float()
        rebuilt = head.logits(kept[0][0]).float()
    finally:
        model.train(training)
    error = (rebuilt - logits).abs().max().item()
    if not error <= 0.02 * max(1.0, logits.abs().max().item()):
        raise CheckpointError(
            f"{type(model).__name__}: its logits differ by up to {error:.3g} from its output head's: the architecture changes them in "
            "a way that is not supported; only text can be distilled from or into it"
        )
    return head


@contextmanager
def keep_hidden(model: Any) -> Iterator[list[Tensor]]:
    """Collect the input of the output head at every forward pass: [batch, token, hidden], after the final norm."""
    kept: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach()))
    try:
        yield kept
    finally:
        hook.remove()


@contextmanager
def instead_of_head(model: Any, take: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Run `take` on the hidden states where the head would run, inside the model's own forward pass.

    No logits are computed, and wrappers that gather or shard weights (DDP, FSDP, DeepSpeed) have the head's weights available.

    Args:
        model: unwrapped; the wrapped one may be called inside.
        take: called with [batch, token, hidden]; the model returns its result in place of the logits.
    """
    layer = model.get_output_embeddings()
    layer.forward = take  # an attribute of the instance hides the class's method
    try:
        yield
    finally:
        del layer.forward


def hidden_states(
    model: Any, input_ids: Int[Tensor, "batch token"], attention_mask: Int[Tensor, "batch token"]
) -> Float[Tensor, "batch token hidden"]:
    """Return the last hidden states after the final norm, without computing logits.

    Positions count from each text's first token, whatever the padding.
    """
    kept: list[Tensor] = []

    def take(hidden: Tensor) -> Tensor:
        kept.append(hidden)
        return hidden[..., :0]

    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    with instead_of_head(model, take):
        model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False)
    return kept[0]
