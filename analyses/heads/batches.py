"""Batches of a head run: which texts are read together, and recording one batch after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analyses.heads.options import HeadsConfig
from interp.tables.errors import InputError

if TYPE_CHECKING:
    from analyses.heads.parts import Part, Parts
    from distill.problems.sets import Problem
    from interp.checkpoints.loading import Checkpoint
    from interp.measures.measure import Measure
    from interp.tokens import Tokens


def plan_batches(
    checkpoint: Checkpoint, problems: Sequence[Problem], *, chat: bool, batch_tokens: int, max_new_tokens: int | None = None
) -> tuple[Tokens, list[list[int]]]:
    """Return the annotated texts, and which of them form each batch: sorted by length, longest first, within a budget of padded tokens.

    Args:
        checkpoint: the model that will read them.
        problems: a text each.
        chat: use the tokenizer's chat template.
        batch_tokens: largest number of padded tokens in a batch; a single text may be longer.
        max_new_tokens: None reads each problem with its reference solution; otherwise the texts are prompts, and room is left for an
            answer of this many tokens.

    Raises:
        InputError: a text is longer than the model's positions, or the tokenizer is another model's.
    """
    from interp.tokens import annotate

    texts = annotate(
        checkpoint.tokenizer,
        [p.question for p in problems],
        [p.answer for p in problems] if max_new_tokens is None else None,
        chat=chat,
        examples=[p.index for p in problems],
    )
    _check_tokens(checkpoint, texts, max_new_tokens or 0)
    lengths = [len(text) + (max_new_tokens or 0) for text in texts.texts]
    batches: list[list[int]] = [[]]
    for at in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):  # longest first: memory runs out early or never
        if batches[-1] and (len(batches[-1]) + 1) * lengths[batches[-1][0]] > batch_tokens:
            batches.append([])
        batches[-1].append(at)
    return texts, batches


def _check_tokens(checkpoint: Checkpoint, texts: Tokens, new: int) -> None:
    """Raise if the model has no embedding for a token, or too few positions for a text and its new tokens."""
    embedded = checkpoint.model.get_input_embeddings().num_embeddings
    highest = max(int(text.ids.max()) for text in texts.texts)
    if highest >= embedded:
        raise InputError(
            f"the tokenizer gives token id {highest}, but the model knows ids 0 to {embedded - 1}: the tokenizer belongs to another model"
        )
    limit = checkpoint.position_limit
    lengths = [len(text) + new for text in texts.texts]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if limit is None or lengths[longest] <= limit:
        return
    if len(lengths) == 1:
        fits = limit - lengths[0] + new
        raise InputError(
            f"the problem has {lengths[0] - new} tokens{f' and {new} new ones' if new else ''}, but the model has {limit} positions"
            + (f"; --max-new-tokens {fits} fits" if new and fits > 0 else "")
        )
    raise InputError(
        f"problem {texts.texts[longest].example} (counted from 0) has {lengths[longest]} tokens{f' ({new} of them new)' if new else ''}, "
        f"but the model has {limit} positions; {sum(n > limit for n in lengths)} of {len(lengths)} problems are too long: leave them out"
    )


def record_batches(
    options: HeadsConfig,
    checkpoint: Checkpoint,
    texts: Tokens,
    batches: list[list[int]],
    todo: list[int],
    measures: dict[str, Measure],
    backend: str,
    parts: Parts,
    *,
    show: bool,
) -> None:
    """Record one batch after another, and write each as a part as soon as it is done."""
    from tqdm import tqdm

    total = sum(len(texts.texts[i]) for number in todo for i in batches[number])
    with tqdm(total=total, unit="tok", unit_scale=True, disable=not show, desc="recording", dynamic_ncols=True) as bar:
        for number in todo:
            parts.write(number, record_batch(options, checkpoint, texts, batches[number], measures, backend))
            bar.update(sum(len(texts.texts[i]) for i in batches[number]))


def record_batch(
    options: HeadsConfig, checkpoint: Checkpoint, texts: Tokens, batch: list[int], measures: dict[str, Measure], backend: str
) -> Part:
    """Return the part of one batch: generate the model's answers if asked for, then record one forward pass."""
    import torch

    from analyses.heads.parts import Part
    from interp.recording.recorder import record

    tokens, n_truncated = texts.select(batch), 0
    if options.text == "generated":
        tokens, n_truncated = write_answers(checkpoint, texts.select(batch, "left"), options.max_new_tokens)
    device = checkpoint.model.device
    inputs = {name: tensor.to(device) for name, tensor in tokens.inputs.items()}
    decoder = decoder_of(checkpoint.model)  # the logits of every token are not needed
    with torch.inference_mode(), record(checkpoint.model, tokens, measures, backend=backend, seed=options.seed) as heads:
        decoder(**inputs, use_cache=False)
    values, counts = heads.totals.values()
    blocked = tuple(layer for layer, taken in sorted(heads.backends.items()) if taken != heads.backend)
    return Part(list(heads.totals.examples), values, counts, tokens.to_frame(), n_truncated, blocked)


def decoder_of(model: Any) -> Any:
    """Return the model without its language-modeling head; the layers of an adapter are inside it."""
    from transformers import PreTrainedModel

    return next(m for m in model.modules() if isinstance(m, PreTrainedModel)).base_model


def write_answers(checkpoint: Checkpoint, prompts: Tokens, max_new_tokens: int) -> tuple[Tokens, int]:
    """Return the model's greedy answers to prompts, annotated, and how many of them are truncated."""
    import numpy as np

    from distill.teachers.generate import Sampling, end_ids, generate
    from interp.tokens import Tokens as Batch

    ids = [text.ids.tolist() for text in prompts.texts]
    answers = generate(checkpoint.model, checkpoint.tokenizer, ids, Sampling(max_new_tokens), batch_size=len(ids))
    rows = np.full((len(ids), max(len(answer.ids) for answer in answers)), prompts.pad_id)
    for row, answer in zip(rows, answers, strict=True):
        row[: len(answer.ids)] = answer.ids  # a shorter answer ends in an end token, and what follows that is dropped
    tokens = prompts.extend(rows, end_ids(checkpoint.model, checkpoint.tokenizer))
    n_truncated = sum(answer.finish == "length" for answer in answers)
    return Batch(tokens.texts, "right", prompts.pad_id, prompts.tokenizer, prompts.sources), n_truncated
