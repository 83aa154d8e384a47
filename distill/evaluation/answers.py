"""Let a model answer problems, and grade the answers.

All students of a study answer with the same prompt, length limit and graders, which every table names.
"""

from __future__ import annotations

import glob
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from distill.evaluation.options import EvaluationConfig
from distill.problems.extraction import locate_answer
from distill.problems.grading import DEFAULT_GRADER, GRADERS, grade, is_correct
from distill.problems.sets import Problem, problems_digest
from distill.records.record import record_key
from distill.settings import as_tables, changed_settings
from distill.strategies import Strategy
from distill.teachers.generate import Generated, Sampling, generate
from interp.tables.errors import DamagedError, StudyError
from interp.tables.files import write_file, write_folder, write_json
from interp.tables.versions import versions
from interp.tokens import decoded_offsets

_RUNTIME = ("batch_size", "level", "resamples", "grader")
"""Keys of `EvaluationConfig` that do not change the answers."""


def answer_problems(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    config: EvaluationConfig,
    context: Strategy,
    chat: bool,
    *,
    folder: Path,
    about: Mapping[str, Any],
    label: str | None = None,
) -> Path:
    """Let a model answer problems, and grade the answers; an unfinished evaluation is resumed, a finished one is kept.

    `responses.parquet` has one row per answer: problem, sample, question, reference, response, tokens, finish, confidence.
    `grades.parquet` has one row per answer and grader: model, problem, sample, grader, extracted, correct. `evaluation.json` holds
    settings, accuracies, speed and versions.

    The confidence is the geometric mean of the probabilities of the tokens of the answer's number, exp(mean log p), at temperature 1. It
    always refers to the number that `DEFAULT_GRADER` finds, so that another grader needs no new answers. It is NaN without a number.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: the model's tokenizer.
        problems: the problems.
        config: the settings.
        context: the instruction that is put next to each question.
        chat: use the chat template.
        folder: folder of the results. While it works, `folder.partial` holds the finished batches.
        about: who answers: condition, seed, name, model.
        label: label of the progress bar; None shows none.

    Returns:
        The folder.

    Raises:
        StudyError: the folder holds an evaluation with other settings; the message names them.
        InputError: a reference solution does not end in a number.
    """
    settings = json.loads(json.dumps({**evaluation_settings(problems, config, context, chat), "about": dict(about)}))
    draft = folder.with_name(folder.name + ".partial")
    if (folder / "evaluation.json").is_file():
        _require_same(json.loads((folder / "evaluation.json").read_text("utf-8"))["settings"], settings, folder)
        shutil.rmtree(draft, ignore_errors=True)  # a call was killed after the rename
        return folder
    for problem in problems:  # refuse what cannot be graded before any work
        is_correct(None, problem.answer)
    _begin(draft, settings)
    parts = _answer_parts(model, tokenizer, problems, config, context, chat, draft, label)
    _finish(folder, parts, settings, config)
    shutil.rmtree(draft)
    return folder


def _begin(draft: Path, settings: dict[str, Any]) -> None:
    """Store the settings of an evaluation in its draft, or compare them with those of the draft that is resumed."""
    draft.mkdir(parents=True, exist_ok=True)
    before = _read_json(draft / "settings.json")
    if before is not None:
        _require_same(before, settings, draft)
        return
    for part in draft.glob("part-*.parquet"):  # their settings are unknown, because settings.json is damaged
        part.unlink()
    write_json(draft / "settings.json", settings)


def _answer_parts(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    config: EvaluationConfig,
    context: Strategy,
    chat: bool,
    draft: Path,
    label: str | None,
) -> list[Path]:
    """Write one file per batch of answers, except for those that exist, and return all of them."""
    from tqdm import tqdm

    asked = [(p, sample) for p in problems for sample in range(config.samples)]
    prompts = {p.index: context.encode(tokenizer, p.question, chat) for p in problems}
    asked.sort(key=lambda item: -len(prompts[item[0].index]))  # prompts of similar length share a batch
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p, config.seed, config.stop)
    parts = []
    with tqdm(total=len(asked), desc=label, unit="answer", disable=label is None) as bar:
        for at in range(0, len(asked), config.batch_size):
            batch = asked[at : at + config.batch_size]
            part = draft / f"part-{at:06d}.parquet"
            if not _is_complete(part, len(batch)):
                started = time.perf_counter()
                keys = [f"{record_key(p.question, p.answer)}:{sample}" for p, sample in batch]
                answers = generate(model, tokenizer, [prompts[p.index] for p, _ in batch], sampling, batch_size=len(batch), keys=keys)
                _write_part(part, batch, answers, tokenizer, time.perf_counter() - started)
            parts.append(part)
            bar.update(len(batch))
    return parts


def evaluation_settings(problems: Sequence[Problem], config: EvaluationConfig, context: Strategy, chat: bool) -> dict[str, Any]:
    """Return what must be equal for two evaluations to be in one table: problems, prompt, length limit, decoding."""
    return {
        "evaluation": {key: value for key, value in as_tables(config).items() if key not in _RUNTIME},
        "problems_sha256": problems_digest(list(problems)),
        "context": context.content,
        "chat": chat,
    }


def answers_of(folder: Path) -> dict[str, Any] | None:
    """Return who answered, from the folder of a finished or unfinished evaluation; None if there is none."""
    found = _read_json(folder / "evaluation.json") or {}
    settings = found.get("settings") or _read_json(folder / "settings.json")
    return None if settings is None else dict(settings["about"])


def _require_same(before: Mapping[str, Any], now: Mapping[str, Any], place: Path) -> None:
    changed = changed_settings(before, now)
    if changed:
        raise StudyError(f"{place} was made with other settings:\n  " + "\n  ".join(changed) + "\nRestore them, or delete the folder")


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _write_part(part: Path, batch: Sequence[tuple[Problem, int]], answers: Sequence[Generated], tokenizer: Any, seconds: float) -> None:
    rows = [
        {
            "problem": p.index,
            "sample": sample,
            "question": p.question,
            "reference": p.answer,
            "response": answer.text,
            "tokens": len(answer.ids),
            "finish": answer.finish,
            "confidence": _confidence(answer, tokenizer),
        }
        for (p, sample), answer in zip(batch, answers, strict=True)
    ]
    table = pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=False)
    write_file(part, partial(pq.write_table, table.replace_schema_metadata({"seconds": repr(seconds)})))


def _is_complete(part: Path, rows: int) -> bool:
    """Return whether a part can be read and has the expected number of rows; it has another one after a change of batch size."""
    try:
        return pq.read_table(part).num_rows == rows
    except (OSError, pa.ArrowException):
        return False


def _confidence(answer: Generated, tokenizer: Any) -> float:
    extracted = GRADERS[DEFAULT_GRADER].extract(answer.text, answer.finish == "length")
    if extracted is None:
        return math.nan
    text, offsets = decoded_offsets(tokenizer, list(answer.ids))  # with special tokens, which the answer's text lacks
    span = locate_answer(text, extracted)
    if span is None:
        return math.nan
    inside = (offsets[:, 0] < span[1]) & (offsets[:, 1] > span[0])
    return float(np.exp(answer.log_probs[inside].mean())) if inside.any() else math.nan


def _finish(folder: Path, parts: Sequence[Path], settings: Mapping[str, Any], config: EvaluationConfig) -> None:
    """Grade the answers of all parts, and write the evaluation's folder."""
    tables = [pq.read_table(part) for part in parts]
    seconds = sum(float((t.schema.metadata or {})[b"seconds"]) for t in tables)
    responses = pa.concat_tables([t.replace_schema_metadata(None) for t in tables])
    responses = responses.sort_by([("problem", "ascending"), ("sample", "ascending")])
    answers = responses.to_pandas()
    grades = _grade_all(answers, settings["about"].get("name", ""))
    n_tokens = int(answers["tokens"].sum())
    summary = {
        "settings": settings,
        "grader": config.grader,
        "accuracy": {grader: float(verdicts["correct"].mean()) for grader, verdicts in grades.groupby("grader", sort=False)},
        "answers": len(answers),
        "tokens": n_tokens,
        "seconds": seconds,
        "tokens_per_second": n_tokens / seconds if seconds else math.nan,
        "truncated": float((answers["finish"] == "length").mean()),
        "without_confidence": int(answers["confidence"].isna().sum()),
        "versions": versions(),
    }

    def write(draft: Path) -> None:
        draft.mkdir()
        pq.write_table(responses, draft / "responses.parquet")
        pq.write_table(pa.Table.from_pandas(grades, preserve_index=False), draft / "grades.parquet")
        write_json(draft / "evaluation.json", summary)

    for left in folder.parent.glob(f".{glob.escape(folder.name)}.draft-*"):  # a call was killed while it wrote the folder
        shutil.rmtree(left)
    write_folder(folder, write)


def _grade_all(answers: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the verdict of every grader on every answer, one row each."""
    return pd.DataFrame(
        [
            {
                "model": name,
                "problem": row.problem,
                "sample": row.sample,
                "grader": verdict.grader,
                "extracted": verdict.extracted,
                "correct": verdict.correct,
            }
            for row in answers.itertuples()
            for verdict in grade(str(row.response), str(row.reference), truncated=str(row.finish) == "length")
        ]
    )


def read_answers(folder: Path, grader: str) -> pd.DataFrame:
    """Return an evaluation's answers with one grader's verdicts, as `distill.evaluation.statistics` takes them.

    Raises:
        DamagedError: the folder holds no complete evaluation, or no verdicts of the grader.
    """
    try:
        answers = pq.read_table(folder / "responses.parquet").to_pandas()
        grades = pq.read_table(folder / "grades.parquet").to_pandas()
        about = json.loads((folder / "evaluation.json").read_text("utf-8"))["settings"]["about"]
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise DamagedError(
            f"{folder} holds no complete evaluation ({str(error).splitlines()[0]:.120}); run `python -m distill evaluate`"
        ) from error
    chosen = grades[grades["grader"] == grader]
    if not len(chosen):
        raise DamagedError(f"{folder} has no verdicts of {grader!r}; it has those of {', '.join(grades['grader'].unique())}")
    answers = answers.merge(chosen[["problem", "sample", "correct", "extracted"]], on=["problem", "sample"], validate="one_to_one")
    return answers.assign(condition=about["condition"], seed=pd.array([about["seed"]] * len(answers), dtype="Int64"))
