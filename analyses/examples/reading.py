"""What one model reads and writes of a problem, and what its heads measure on that text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pandas as pd

from analyses.command import say
from analyses.examples.request import Request
from analyses.examples.standing import compared_values, standing_table
from analyses.models.named import NamedModel
from distill.problems.arithmetic import ResponseStep, split_steps
from distill.problems.grading import Grade, grade
from distill.problems.sets import Problem
from interp.tables.errors import InputError

if TYPE_CHECKING:
    from interp.checkpoints.loading import Checkpoint
    from interp.measures.measure import Measure
    from interp.tokens import Tokens


class Opens(Protocol):
    """Who opens models: `analyses.models.opening.OpenModels`, or a notebook that has them open."""

    def config(self, model: NamedModel) -> Any:
        """A model's config, for which no weights are loaded."""
        ...

    def open(self, model: NamedModel) -> Checkpoint:
        """A model that is good until another is asked for."""
        ...


@dataclass(frozen=True)
class Reading:
    """What one model read, and what it wrote."""

    model: NamedModel
    tokens: Tokens
    response: str
    steps: list[ResponseStep]
    step_of: np.ndarray
    finish: Literal["stop", "length"] | None
    grade: Grade | None
    standing: pd.DataFrame
    compared_with: dict[str, Any] | None
    notes: list[str]
    identity: dict[str, Any]
    layers: tuple[int, ...]
    n_heads: int


def read_problem(
    model: NamedModel, opened: Opens, problem: Problem, request: Request, measures: dict[str, Measure], out: Path, pool: Sequence[Problem]
) -> Reading:
    """Let a model answer (or read the reference), and measure its heads on that text."""
    import torch

    from analyses.heads.batches import decoder_of, plan_batches, write_answers
    from interp.attention.seam import attention_layers
    from interp.recording.recorder import record

    checkpoint = opened.open(model)
    chat = request.chat and getattr(checkpoint.tokenizer, "chat_template", None) is not None
    if checkpoint.model.training:
        raise InputError(f"{model.name} is in training mode, so dropout would change its numbers; call model.eval()")
    new_tokens = request.max_new_tokens if request.text == "generated" else None
    prompts, _ = plan_batches(checkpoint, [problem], chat=chat, batch_tokens=1, max_new_tokens=new_tokens)
    others, compared, notes = compared_values(model, checkpoint, prompts, request, list(measures), out, pool, problem)
    finish = None
    if request.text == "generated":
        if not checkpoint.model.can_generate():
            raise InputError(f"{model.name} cannot generate; {request.spelt('text', 'gold')} lets it read the reference solution")
        say(f"{model.name} answers")
        tokens, n_truncated = write_answers(checkpoint, prompts.select([0], "left"), request.max_new_tokens)
        finish = "length" if n_truncated else "stop"
        start = len(prompts.texts[0].text)
    else:
        tokens = prompts
        start = len(prompts.texts[0].text) - len(problem.answer)
    text = tokens.texts[0]
    response = text.text[start : text.offsets[text.in_region("response"), 1].max(initial=start)]
    found = split_steps(response, truncated=finish == "length")
    verdict = None
    if request.text == "generated" and problem.final_answer:
        verdict = grade(response, problem.answer, [request.grader], truncated=finish == "length")[0]
    device = checkpoint.model.device
    inputs = {name: tensor.to(device) for name, tensor in tokens.inputs.items()}
    with torch.inference_mode(), record(checkpoint.model, tokens, measures, backend="blocked", seed=request.seed) as heads:
        decoder_of(checkpoint.model)(**inputs, use_cache=False)
    values, counts = heads.totals.values()
    layers, n_heads = attention_layers(checkpoint.model.config), int(values.shape[2])
    return Reading(
        model,
        tokens,
        response,
        found,
        steps_of_tokens(text.offsets, text.in_region("response"), start, found),
        finish,
        verdict,
        standing_table(values[0], counts[0], others, layers, list(measures)),
        compared,
        notes,
        checkpoint.identity,
        layers,
        n_heads,
    )


def steps_of_tokens(offsets: np.ndarray, in_response: np.ndarray, start: int, found: Sequence[ResponseStep]) -> np.ndarray:
    """The step that each token's first character stands in, counted from 0, [token]; -1 outside the response and between steps."""
    step_of = np.full(len(offsets), -1, np.int64)
    for number, step in enumerate(found):
        last = np.maximum(offsets[:, 1], offsets[:, 0] + 1)
        inside = (offsets[:, 0] < start + step.stop) & (last > start + step.start)
        step_of[in_response & inside & (step_of < 0)] = number
    return step_of
