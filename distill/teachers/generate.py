"""Batched generation that hands out what the model thought at each token: log-probabilities, top k, or hidden states.

A loop of our own over the model's forward pass, because `generate` of transformers goes on with rows that have ended, and keeps nothing
of the states. Rows that end leave the batch and its cache; prompts are batched by length; results come back in the given order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from interp.checkpoints.unembedding import keep_hidden
from interp.tables.errors import InputError

TIERS = ("text", "topk", "hidden", "dense")


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: cut of an answer.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_p: the smallest set of likeliest tokens with at least this mass is drawn from.
        seed: every row draws by itself, from a generator of this seed and the row's key.
        stop: texts that end an answer.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}; at least 1 is needed")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}; 0 (greedy) or more is needed")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must lie above 0 and at most at 1")
        if "" in self.stop:
            raise InputError("a stop text is empty, so every answer would end at once; leave it out")


@dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        ids: with the end-of-text token that ended it; cut before the first token that holds a part of a stop text.
        text: without end-of-text token and stop text.
        finish: "eos", "stop" or "length" (the cut).
        log_probs: of each token in the model's own distribution (T = 1, before top_p), nats, float32 [token].
        signals: as `distill.records.record.Record.signals`; row j is the distribution from which ids[j] was drawn.
    """

    ids: tuple[int, ...]
    text: str
    finish: Literal["eos", "stop", "length"]
    log_probs: np.ndarray
    signals: dict[str, Tensor] = field(default_factory=dict)


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """All tokens that end a text: the generation config's and the tokenizer's."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(own if isinstance(own, (list, tuple)) else [own])}
    return tuple(sorted(i for i in ids if i is not None))


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_size: int,
    signal: Literal["text", "topk", "hidden", "dense"] = "text",
    top_k: int = 64,
    keys: Sequence[str] | None = None,
    label: str | None = None,
) -> list[Generated]:
    """Answers to prompts, in their order. Batches change nothing but rounding.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its own.
        prompts: token ids.
        sampling: how tokens are chosen, and when to stop.
        batch_size: prompts at a time.
        signal: what to keep of each token's distribution.
        top_k: of topk.
        keys: of the rows' random numbers; default the prompts' ids.
        label: of a progress bar; None shows none.

    Raises:
        InputError: an empty prompt, one that leaves no room below the model's position limit, a model in training mode, or one whose
            logits are no numbers.
    """
    if model.training:
        raise InputError("the model is in training mode, so dropout would change its answers; call model.eval()")
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {number} is empty")
        if limit and len(prompt) + sampling.max_new_tokens > limit:
            raise InputError(
                f"prompt {number} has {len(prompt)} tokens; with max_new_tokens = {sampling.max_new_tokens} that is more than the model's "
                f"{limit} positions; set max_new_tokens to {max(0, limit - len(prompt))} or less"
            )
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


class _Row:
    """One answer while it is written."""

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
        taken = self.tail  # as many tokens as the longest stop text has bytes; more where special tokens, which are no text, lie among them
        end = self.tokenizer.decode(self.ids[-taken:], skip_special_tokens=True)
        while len(end) < self.tail and taken < len(self.ids):
            taken *= 2
            end = self.tokenizer.decode(self.ids[-taken:], skip_special_tokens=True)
        return any(stop in end for stop in self.sampling.stop)

    def result(self) -> Generated:
        assert self.finish is not None
        kept = len(self.ids)
        said = self.ids[:-1] if self.finish == "eos" else self.ids
        text = self.tokenizer.decode(said, skip_special_tokens=True)
        if self.finish == "stop":
            text = text[: min(at for stop in self.sampling.stop if (at := text.find(stop)) >= 0)]
            while kept and len(self.tokenizer.decode(self.ids[:kept], skip_special_tokens=True)) > len(text):
                kept -= 1
        signals = {name: rows[:kept] for name, rows in self.signals.items()}
        return Generated(tuple(self.ids[:kept]), text, self.finish, np.asarray(self.log_probs[:kept], np.float32), signals)


def _answer(model: Any, rows: list[_Row], ends: Sequence[int], sampling: Sampling, signal: str, top_k: int) -> None:
    """Writes all rows of one batch to their ends."""
    from transformers import DynamicCache

    device = model.get_input_embeddings().weight.device
    width = max(len(row.prompt) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):  # padded on the left, so that all rows write at one place
        ids[number, width - len(row.prompt) :] = torch.tensor(row.prompt)
        mask[number, width - len(row.prompt) :] = 1
    # room for all tokens that can come, so that no step makes a longer mask
    mask = torch.cat([mask, torch.ones((len(rows), sampling.max_new_tokens), dtype=torch.long)], 1).to(device)
    positions = (mask[:, :width].cumsum(1) - 1).clamp(min=0)
    ids = ids.to(device)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    alive = list(range(len(rows)))
    kept: list[tuple[list[int], dict[str, Tensor]]] = []
    with keep_hidden(model) as states:
        for step in range(sampling.max_new_tokens):
            logits = model(
                input_ids=ids,
                attention_mask=mask[:, : width + step],
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            hidden = states.pop()[:, -1]
            tokens, log_probs, said = _choose(logits, hidden, [rows[i] for i in alive], sampling, signal, top_k)
            kept.append((list(alive), said))
            for i, token, log_prob in zip(alive, tokens.tolist(), log_probs.tolist(), strict=True):
                if math.isnan(log_prob):
                    raise InputError(f"the model's logits are no numbers (NaN) at token {step}; float16 overflows: use another dtype")
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
    for name in kept[0][1]:
        parts: dict[int, list[Tensor]] = {}
        for present, said in kept:
            for at, i in enumerate(present):
                parts.setdefault(i, []).append(said[name][at])
        for i, pieces in parts.items():
            rows[i].signals[name] = torch.stack(pieces).cpu()


def _choose(
    logits: Tensor, hidden: Tensor, rows: Sequence[_Row], sampling: Sampling, signal: str, top_k: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The next token of each row, its log-probability, and what is kept of the distribution."""
    logits = logits.float()
    norm = logits.logsumexp(-1, keepdim=True)
    said: dict[str, Tensor] = {}
    if signal == "hidden":
        said["hidden"] = hidden
    elif signal == "dense":
        said["dense_log_probs"] = logits - norm
    elif signal == "topk":
        top = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
        said = {"topk_ids": top.indices.int(), "topk_log_probs": top.values - norm}
    tokens = logits.argmax(-1) if sampling.temperature == 0 else _draw(logits / sampling.temperature, rows, sampling.top_p)
    return tokens, (logits.gather(1, tokens[:, None]) - norm)[:, 0], said


def _draw(logits: Tensor, rows: Sequence[_Row], top_p: float) -> Tensor:
    """One token a row, by its own random number: the first in order of probability at which the cumulated mass passes it."""
    probabilities, order = torch.softmax(logits, -1).sort(-1, descending=True)
    mass = probabilities.double().cumsum(-1) if logits.device.type != "mps" else probabilities.cumsum(-1)
    last = (mass < top_p).sum(-1).clamp(max=logits.shape[-1] - 1)  # the token with which the set reaches top_p
    whole = mass.gather(1, last[:, None])
    numbers = torch.tensor([[row.random.random() if row.random else 0.0] for row in rows], dtype=mass.dtype, device=mass.device)
    at = torch.minimum((mass <= numbers * whole).sum(-1), last)
    return order.gather(1, at[:, None])[:, 0]
