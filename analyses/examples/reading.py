"""What one model reads and writes of a problem, and what its heads measure on that text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pandas as pd

from analyses.command import say
from analyses.examples.request import Request
from analyses.examples.standing import find_other_problems, standing_table
from analyses.models.named import NamedModel
from distill.problems.arithmetic import ResponseStep, split_steps
from distill.problems.grading import Grade, grade
from distill.problems.sets import Problem
from interp.tables.errors import InputError
from interp.tables.results import ResultsFolder

if TYPE_CHECKING:
    from interp.checkpoints.loading import Checkpoint
    from interp.measures.measure import Measure
    from interp.tokens import Tokens


class ModelOpener(Protocol):
    """What opens models: `analyses.models.opening.OpenModels`, or a notebook that has them open."""

    def config(self, model: NamedModel) -> Any:
        """Return a model's config; no weights are loaded."""
        ...

    def open(self, model: NamedModel) -> Checkpoint:
        """Return a model; valid until another model is opened."""
        ...


@dataclass(frozen=True)
class Reading:
    """What one model read and wrote.

    Attributes:
        model: the model.
        tokens: the text that its heads were measured on.
        response: the generated answer, or the reference solution.
        steps: the steps of the response.
        step_of: number of the step that each token is in, [token]; -1 for no step.
        finish: "length" for a generated answer that was truncated, "stop" for a complete one; None for a reference solution.
        grade: the verdict on the answer; None if nothing was generated or the reference is not known.
        standing: rows of `interp.tables.example.STANDING`, without the model.
        compared_with: where the values on other problems come from; None if there are none.
        notes: why head runs that were found do not fit.
        identity: identity of the checkpoint.
        layers: numbers of the layers.
        n_heads: number of heads of a layer.
    """

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
    model: NamedModel,
    opener: ModelOpener,
    problem: Problem,
    request: Request,
    measures: dict[str, Measure],
    results: ResultsFolder,
    pool: Sequence[Problem],
) -> Reading:
    """Return what a model answers to a problem (or its reference solution), with the measures of its heads on that text.

    Args:
        model: the model.
        opener: opens it.
        problem: the problem.
        request: what to inspect.
        measures: measures to take.
        results: the results folder; a head run that is made for comparison is in its draft.
        pool: problems that such a head run may read.

    Raises:
        InputError: the model is in training mode, cannot generate, or has too few positions.
    """
    from analyses.heads.batches import plan_batches
    from interp.attention.seam import attention_layers

    checkpoint = opener.open(model)
    if checkpoint.model.training:
        raise InputError(f"{model.name} is in training mode, so dropout would change its numbers; call model.eval()")
    chat = request.chat and getattr(checkpoint.tokenizer, "chat_template", None) is not None
    new_tokens = request.max_new_tokens if request.text == "generated" else None
    prompts, _ = plan_batches(checkpoint, [problem], chat=chat, batch_tokens=1, max_new_tokens=new_tokens)
    pool = [other for other in pool if other.question != problem.question]
    others = find_other_problems(model, checkpoint, prompts, request, list(measures), results, pool)
    tokens, start, finish = _response_tokens(model, checkpoint, prompts, problem, request)
    text = tokens.texts[0]
    response = text.text[start : text.offsets[text.in_region("response"), 1].max(initial=start)]
    steps = split_steps(response, truncated=finish == "length")
    verdict = None
    if request.text == "generated" and problem.final_answer:
        verdict = grade(response, problem.answer, [request.grader], truncated=finish == "length")[0]
    values, counts = _measure(checkpoint, tokens, measures, request.seed)
    layers = attention_layers(checkpoint.model.config)
    return Reading(
        model=model,
        tokens=tokens,
        response=response,
        steps=steps,
        step_of=_steps_of_tokens(text.offsets, text.in_region("response"), start, steps),
        finish=finish,
        grade=verdict,
        standing=standing_table(values, counts, others.values, layers, list(measures)),
        compared_with=others.about,
        notes=others.notes,
        identity=checkpoint.identity,
        layers=layers,
        n_heads=int(values.shape[1]),
    )


def _response_tokens(
    model: NamedModel, checkpoint: Checkpoint, prompts: Tokens, problem: Problem, request: Request
) -> tuple[Tokens, int, Literal["stop", "length"] | None]:
    """Return the problem with its response, the first character of the response, and how generation finished."""
    from analyses.heads.batches import write_answers

    prompt_length = len(prompts.texts[0].text)
    if request.text == "reference":
        return prompts, prompt_length - len(problem.answer), None
    if not checkpoint.model.can_generate():
        raise InputError(f"{model.name} cannot generate; {request.spelled('text', 'reference')} lets it read the reference solution")
    say(f"{model.name} answers")
    tokens, n_truncated = write_answers(checkpoint, prompts.select([0], "left"), request.max_new_tokens)
    return tokens, prompt_length, "length" if n_truncated else "stop"


def _measure(checkpoint: Checkpoint, tokens: Tokens, measures: dict[str, Measure], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return every head's measures on one text, and the number of queries behind each, both [layer, head, measure, region]."""
    import torch

    from analyses.heads.batches import decoder_of
    from interp.recording.recorder import record

    inputs = {name: tensor.to(checkpoint.model.device) for name, tensor in tokens.inputs.items()}
    with torch.inference_mode(), record(checkpoint.model, tokens, measures, backend="blocked", seed=seed) as heads:
        decoder_of(checkpoint.model)(**inputs, use_cache=False)
    values, counts = heads.totals.values()
    return values[0], counts[0]


def _steps_of_tokens(offsets: np.ndarray, in_response: np.ndarray, start: int, steps: Sequence[ResponseStep]) -> np.ndarray:
    """Return the step that each token's first character is in, counted from 0, [token]; -1 outside the response and between steps.

    Args:
        offsets: first and last character of each token in the text, [token, 2].
        in_response: whether a token belongs to the response, [token].
        start: first character of the response.
        steps: the steps of the response.
    """
    step_of = np.full(len(offsets), -1, np.int64)
    for number, step in enumerate(steps):
        last = np.maximum(offsets[:, 1], offsets[:, 0] + 1)
        inside = (offsets[:, 0] < start + step.stop) & (last > start + step.start)
        step_of[in_response & inside & (step_of < 0)] = number
    return step_of
