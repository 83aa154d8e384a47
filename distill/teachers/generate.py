"""Generate answers in batches, with the distribution at each token: log-probabilities, top k or hidden states.

Every answer that a transformers model writes comes from here (teachers, students' evaluations, head runs), and `end_ids` is the rule
for where it ends. vLLM and servers generate by themselves. Tokens come from the model's own distribution: the processors of its
generation config, such as a repetition penalty, are not applied.

`generate` of transformers continues rows that have ended and returns no hidden states. Here, rows that end leave the batch and its cache.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill.teachers.catalog import SignalKind
from interp.checkpoints.unembedding import keep_hidden
from interp.tables.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and when an answer ends.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        temperature: divides the logits; 0 takes the most likely token.
        top_p: tokens are drawn from the smallest set of most likely tokens with at least this mass.
        seed: each row has its own random generator, made from this seed and the row's key.
        stop: texts that end an answer, in addition to the end tokens.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}; at least 1 is needed")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}; 0 (greedy) or more is needed")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if "" in self.stop:
            raise InputError("a stop text is empty, so every answer would end at once; leave it out")


@dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        ids: token ids, including the end token; without tokens that hold a part of a stop text.
        text: the text without end token and stop text.
        finish: what ended the answer: an end token ("eos"), a stop text ("stop") or max_new_tokens ("length").
        log_probs: log-probability of each token under the model (T = 1, before top_p), in nats, float32 [token].
        signals: as `distill.records.record.Record.signals`; row j is the distribution from which ids[j] was drawn.
    """

    ids: tuple[int, ...]
    text: str
    finish: Literal["eos", "stop", "length"]
    log_probs: np.ndarray
    signals: dict[str, Tensor] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether the model itself ended the answer."""
        return self.finish == "eos"


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return all tokens that end an answer.

    These are the end tokens of the generation config, the tokenizer's end-of-text token, and the token that ends a turn in the chat
    template. Checkpoints often list only some of them: a base model's config lacks the token that its chat template ends turns with.
    """
    of_config = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = {tokenizer.eos_token_id, _turn_end_id(tokenizer), *(of_config if isinstance(of_config, (list, tuple)) else [of_config])}
    return tuple(sorted(i for i in ids if i is not None))


def _turn_end_id(tokenizer: Any) -> int | None:
    """Return the special token that follows an assistant's turn in the chat template; None without a template or such a token."""
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    reply = "Yes."
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Go on?"}, {"role": "assistant", "content": reply}], tokenize=False
        )
    except Exception:  # a template is a program, which may refuse any conversation
        return None
    before, found, after = text.rpartition(reply)
    ids = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"] if found and before else []
    return ids[0] if ids and _is_special(tokenizer, ids[0]) else None


def _is_special(tokenizer: Any, token: int) -> bool:
    added = tokenizer.added_tokens_decoder.get(token)  # not every checkpoint repeats these in its map of special tokens
    return token in tokenizer.all_special_ids or (added is not None and added.special)


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_size: int,
    signal: SignalKind = "text",
    top_k: int = 64,
    keys: Sequence[str] | None = None,
    label: str | None = None,
) -> list[Generated]:
    """Return the answers to prompts, in the order of the prompts. The batch size changes only rounding.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: the model's tokenizer.
        prompts: token ids of each prompt.
        sampling: how tokens are chosen, and when an answer ends.
        batch_size: prompts per batch.
        signal: what to keep of each token's distribution.
        top_k: for topk, number of tokens to keep.
        keys: seeds of the rows' random generators, in addition to `sampling.seed`; default: the prompts' ids.
        label: label of the progress bar; None shows none.

    Raises:
        InputError: a prompt is empty or leaves too few positions, the model is in training mode, or its logits are NaN.
    """
    if model.training:
        raise InputError("the model is in training mode, so dropout would change its answers; call model.eval()")
    _check_lengths(model, prompts, sampling.max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    results: list[Generated | None] = [None] * len(prompts)
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    ends = end_ids(model, tokenizer)
    with tqdm(total=len(prompts), desc=label, unit="answer", disable=label is None) as bar:
        for batch in batches:
            rows = [_Row(prompts[i], sampling, keys[i] if keys else ",".join(map(str, prompts[i])), tokenizer) for i in batch]
            _answer(model, rows, ends, sampling, signal, top_k)
            for i, row in zip(batch, rows, strict=True):
                results[i] = row.result()
            bar.update(len(batch))
    assert all(result is not None for result in results)
    return [result for result in results if result is not None]


def _check_lengths(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {number} is empty")
        if limit and len(prompt) + max_new_tokens > limit:
            raise InputError(
                f"prompt {number} has {len(prompt)} tokens; with max_new_tokens = {max_new_tokens} that is more than the model's "
                f"{limit} positions; set max_new_tokens to {max(0, limit - len(prompt))} or less"
            )


class _Row:
    """One answer while it is generated."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling, key: str, tokenizer: Any) -> None:
        self.prompt, self.sampling, self.tokenizer = prompt, sampling, tokenizer
        digest = hashlib.sha256(f"{sampling.seed}:{key}".encode()).digest()
        self.random = np.random.default_rng(int.from_bytes(digest[:8])) if sampling.temperature > 0 else None
        self.ids: list[int] = []
        self.log_probs: list[float] = []
        self.signals: dict[str, Tensor] = {}
        self.finish: Literal["eos", "stop", "length"] | None = None
        self.tail = 1 + max((len(stop.encode()) for stop in sampling.stop), default=0)

    def take(self, token: int, log_prob: float, ends: Sequence[int]) -> None:
        self.ids.append(token)
        self.log_probs.append(log_prob)
        if token in ends:
            self.finish = "eos"
        elif self.sampling.stop and self._stopped():
            self.finish = "stop"
        elif len(self.ids) == self.sampling.max_new_tokens:
            self.finish = "length"

    def _stopped(self) -> bool:
        taken = self.tail  # a token holds at least one byte, unless it is a special token, which adds no text: then more are decoded
        end = self.tokenizer.decode(self.ids[-taken:], skip_special_tokens=True)
        while len(end) < self.tail and taken < len(self.ids):
            taken *= 2
            end = self.tokenizer.decode(self.ids[-taken:], skip_special_tokens=True)
        return any(stop in end for stop in self.sampling.stop)

    def result(self) -> Generated:
        assert self.finish is not None
        kept = len(self.ids)
        content = self.ids[:-1] if self.finish == "eos" else self.ids
        text = self.tokenizer.decode(content, skip_special_tokens=True)
        if self.finish == "stop":
            text = text[: min(at for stop in self.sampling.stop if (at := text.find(stop)) >= 0)]
            while kept and len(self.tokenizer.decode(self.ids[:kept], skip_special_tokens=True)) > len(text):
                kept -= 1
        signals = {name: rows[:kept] for name, rows in self.signals.items()}
        return Generated(tuple(self.ids[:kept]), text, self.finish, np.asarray(self.log_probs[:kept], np.float32), signals)


def _answer(model: Any, rows: list[_Row], ends: Sequence[int], sampling: Sampling, signal: str, top_k: int) -> None:
    """Generate all rows of one batch up to their ends."""
    from transformers import DynamicCache

    ids, mask = _left_padded([row.prompt for row in rows], sampling.max_new_tokens)
    width = ids.shape[1]
    device = model.get_input_embeddings().weight.device
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask[:, :width].cumsum(1) - 1).clamp(min=0)
    options = _supported(model, {"position_ids": positions, "logits_to_keep": 1})
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    alive = list(range(len(rows)))
    kept: list[tuple[list[int], dict[str, Tensor]]] = []
    with keep_hidden(model) if signal == "hidden" else nullcontext() as states:
        for step in range(sampling.max_new_tokens):
            if "position_ids" in options:
                options["position_ids"] = positions
            logits = model(input_ids=ids, attention_mask=mask[:, : width + step], past_key_values=cache, use_cache=True, **options).logits[
                :, -1
            ]
            hidden = states.pop()[:, -1] if states is not None else None
            tokens, log_probs, distribution = _choose(logits, hidden, [rows[i] for i in alive], sampling, signal, top_k)
            kept.append((list(alive), distribution))
            for i, token, log_prob in zip(alive, tokens.tolist(), log_probs.tolist(), strict=True):
                if math.isnan(log_prob):
                    raise InputError(f"the model's logits are NaN at token {step}; if the dtype is float16, use another one")
                rows[i].take(token, log_prob, ends)
            going = [at for at, i in enumerate(alive) if rows[i].finish is None]
            if not going:
                break
            ids, positions = tokens[:, None], positions[:, -1:] + 1
            if len(going) < len(alive):
                index = torch.tensor(going, device=device)
                cache.batch_select_indices(index)
                ids, positions, mask = ids[index], positions[index], mask[index]
                alive = [alive[at] for at in going]
    _hand_out(rows, kept)


def _left_padded(prompts: Sequence[Sequence[int]], new: int) -> tuple[Tensor, Tensor]:
    """Return ids [prompt, token], padded on the left, and their mask, which already covers the new tokens."""
    width = max(map(len, prompts))
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.ones((len(prompts), width + new), dtype=torch.long)
    for number, prompt in enumerate(prompts):
        ids[number, width - len(prompt) :] = torch.tensor(prompt)
        mask[number, : width - len(prompt)] = 0
    return ids, mask


def _supported(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the model's forward pass takes: ALiBi models have no position_ids."""
    unwrapped = model.get_base_model() if hasattr(model, "get_base_model") else model  # a PEFT model passes options on
    taken = inspect.signature(unwrapped.forward).parameters
    return {name: value for name, value in options.items() if name in taken}


def _hand_out(rows: Sequence[_Row], kept: Sequence[tuple[list[int], dict[str, Tensor]]]) -> None:
    """Give each row its signals. `kept` holds, for each step, the rows that took part and their signals."""
    for name in kept[0][1]:
        parts: dict[int, list[Tensor]] = {}
        for present, distribution in kept:
            for at, i in enumerate(present):
                parts.setdefault(i, []).append(distribution[name][at])
        for i, pieces in parts.items():
            rows[i].signals[name] = torch.stack(pieces).cpu()


def _choose(
    logits: Tensor, hidden: Tensor | None, rows: Sequence[_Row], sampling: Sampling, signal: str, top_k: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the next token of each row, its log-probability, and what is kept of the distribution."""
    logits = logits.float()
    norm = logits.logsumexp(-1, keepdim=True)
    distribution: dict[str, Tensor] = {}
    if hidden is not None:
        distribution["hidden"] = hidden
    elif signal == "dense":
        distribution["dense_log_probs"] = logits - norm
    elif signal == "topk":
        top = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
        distribution = {"topk_ids": top.indices.int(), "topk_log_probs": top.values - norm}
    tokens = logits.argmax(-1) if sampling.temperature == 0 else _draw(logits / sampling.temperature, rows, sampling.top_p)
    return tokens, (logits.gather(1, tokens[:, None]) - norm)[:, 0], distribution


def _draw(logits: Tensor, rows: Sequence[_Row], top_p: float) -> Tensor:
    """Draw one token per row: the first, in order of probability, at which the cumulative mass exceeds the row's random number."""
    probabilities, order = torch.softmax(logits, -1).sort(-1, descending=True)
    mass = probabilities.double().cumsum(-1) if logits.device.type != "mps" else probabilities.cumsum(-1)
    last = (mass < top_p).sum(-1).clamp(max=logits.shape[-1] - 1)  # the token with which the set reaches top_p
    total = mass.gather(1, last[:, None])
    numbers = torch.tensor([[row.random.random() if row.random else 0.0] for row in rows], dtype=mass.dtype, device=mass.device)
    at = torch.minimum((mass <= numbers * total).sum(-1), last)
    return order.gather(1, at[:, None])[:, 0]
