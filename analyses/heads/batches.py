"""TODO_DOC analyses/heads/batches.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analyses.heads.options import HeadsConfig
from interp.tables.errors import InputError

if TYPE_CHECKING:
    from analyses.heads.folder import Part, RunFolder
    from distill.problems.sets import Problem
    from interp.checkpoints.loading import Checkpoint
    from interp.measures.measure import Measure
    from interp.tokens import Tokens


def plan(config: HeadsConfig, checkpoint: Checkpoint, problems: list[Problem], chat: bool) -> tuple[Tokens, list[list[int]]]:
    """Annotated texts (or prompts), and which of them go together: sorted by length, as many as the token budget allows.

    Raises:
        InputError: a text is longer than the model's positions.
    """
    from interp.tokens import annotate

    generated = config.text == "generated"
    texts = annotate(
        checkpoint.tokenizer,
        [p.question for p in problems],
        None if generated else [p.answer for p in problems],
        chat=chat,
        examples=[p.index for p in problems],
    )
    extra = config.max_new_tokens if generated else 0
    lengths = [len(text) + extra for text in texts.texts]
    embedded = checkpoint.model.get_input_embeddings().num_embeddings
    highest = max(int(text.ids.max()) for text in texts.texts)
    if highest >= embedded:
        raise InputError(f"the tokenizer gives token id {highest}, the model knows 0 to {embedded - 1}: the tokenizer is another model's")
    limit = checkpoint.position_limit
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if limit is not None and len(lengths) == 1 and lengths[0] > limit:
        fewer = f"; --max-new-tokens {limit - lengths[0] + extra} fits" if extra and lengths[0] - extra < limit else ""
        new = f" and {extra} new ones" if extra else ""
        raise InputError(f"the problem has {lengths[0] - extra} tokens{new}, the model has {limit} positions{fewer}")
    if limit is not None and lengths[longest] > limit:
        raise InputError(
            f"problem {texts.texts[longest].example} (counted from 0) has {lengths[longest]} tokens"
            f"{f' ({extra} of them new)' if extra else ''}, the model has {limit} positions; "
            f"{sum(n > limit for n in lengths)} of {len(lengths)} problems are too long: leave them out"
        )
    batches: list[list[int]] = [[]]
    for at in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):  # longest first: memory fails early or never
        if batches[-1] and (len(batches[-1]) + 1) * lengths[batches[-1][0]] > config.batch_tokens:
            batches.append([])
        batches[-1].append(at)
    return texts, batches


def record_batches(
    config: HeadsConfig,
    checkpoint: Checkpoint,
    texts: Tokens,
    batches: list[list[int]],
    todo: list[int],
    measures: dict[str, Measure],
    backend: str,
    folder: RunFolder,
    *,
    show: bool,
) -> None:
    """Record batch after batch, each kept as soon as it is done."""
    from tqdm import tqdm

    total = sum(len(texts.texts[i]) for number in todo for i in batches[number])
    with tqdm(total=total, unit="tok", unit_scale=True, disable=not show, desc="recording", dynamic_ncols=True) as bar:
        for number in todo:
            folder.write_part(number, record_batch(config, checkpoint, texts, batches[number], measures, backend))
            bar.update(sum(len(texts.texts[i]) for i in batches[number]))


def record_batch(
    config: HeadsConfig, checkpoint: Checkpoint, texts: Tokens, batch: list[int], measures: dict[str, Measure], backend: str
) -> Part:
    """One batch: the model's answers where asked for, then one recorded forward."""
    import torch

    from analyses.heads.folder import Part
    from interp.recording.recorder import record

    tokens, n_truncated = texts.select(batch), 0
    if config.text == "generated":
        tokens, n_truncated = write_answers(checkpoint, texts.select(batch, "left"), config.max_new_tokens)
    device = checkpoint.model.device
    inputs = {name: tensor.to(device) for name, tensor in tokens.inputs.items()}
    # the decoder alone: logits of every token are not needed
    decoder = decoder_of(checkpoint.model)
    with torch.inference_mode(), record(checkpoint.model, tokens, measures, backend=backend, seed=config.seed) as heads:
        decoder(**inputs, use_cache=False)
    values, counts = heads.totals.values()
    blocked = tuple(layer for layer, taken in sorted(heads.backends.items()) if taken != heads.backend)
    return Part(list(heads.totals.examples), values, counts, tokens.to_frame(), n_truncated, blocked)


def decoder_of(model: Any) -> Any:
    """The model without its language-modelling head (PEFT's layers are inside it)."""
    from transformers import PreTrainedModel

    return next(m for m in model.modules() if isinstance(m, PreTrainedModel)).base_model


def stop_ids(checkpoint: Checkpoint) -> list[int]:
    """Tokens that end the model's text."""
    own = getattr(checkpoint.model, "generation_config", None)
    stop = getattr(own, "eos_token_id", None)
    stop = checkpoint.tokenizer.eos_token_id if stop is None else stop
    return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)


def write_answers(checkpoint: Checkpoint, prompts: Tokens, max_new_tokens: int) -> tuple[Tokens, int]:
    """The model's greedy answers, annotated, and how many of them ran into the cut."""
    import torch
    from transformers import GenerationConfig

    model, stops = checkpoint.model, stop_ids(checkpoint)
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stops or None, pad_token_id=prompts.pad_id, use_cache=True
    )
    inputs = {name: prompts.inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        written = model.generate(**inputs, generation_config=greedy).cpu().numpy()[:, prompts.width :]
    tokens = prompts.extend(written, stops)
    cut = sum(len(text) == len(prompt) + max_new_tokens for text, prompt in zip(tokens.texts, prompts.texts, strict=True))
    from interp.tokens import Tokens as Batch

    return Batch(tokens.texts, "right", prompts.pad_id, prompts.tokenizer, prompts.sources), cut
