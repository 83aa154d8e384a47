"""What a student can do: its answers with every grader's verdict, and how likely held-out answers are to it.

All students answer under one prompt, one cut and one set of graders, and those stand beside every number.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from distill.evaluation.options import EvaluationConfig
from distill.problems.grading import DEFAULT_GRADER, GRADERS, grade, is_correct, locate
from distill.problems.sets import Problem, problems_digest
from distill.records.record import record_key
from distill.settings import as_tables, differences
from distill.strategies import Strategy
from distill.teachers.generate import Generated, Sampling, generate
from interp.tables.errors import DamagedError, StudyError
from interp.tables.files import write_text
from interp.tables.versions import versions
from interp.tokens import decoded_offsets

RUNTIME = ("batch_size", "level", "resamples", "grader")
"""Keys of `EvaluationConfig` that leave the answers as they are."""


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
    """Lets a model answer problems, and grades the answers; goes on where a killed call was.

    `responses.parquet` has a row an answer: problem, sample, response, tokens, finish, confidence, reference. `grades.parquet` has one more
    level: model, problem, sample, grader, extracted, correct. `evaluation.json` holds config, prompt, versions and speed.

    The confidence is the geometric mean of the probabilities that the model gave to the tokens of the number with which it answered:
    exp(mean log p), at temperature 1. Whoever's verdict is shown, it is the number that `DEFAULT_GRADER` finds, so that another grader
    needs no new answers. It is NaN where there is no number.

    Args:
        model: in evaluation mode.
        tokenizer: its own.
        problems: to answer.
        config: how.
        context: what stands beside each question.
        chat: through the chat template.
        folder: of the results; while it works, `folder.partial` holds the finished batches.
        about: who answers: condition, seed, model.
        label: of a progress bar.

    Raises:
        StudyError: an unfinished or finished evaluation of another kind lies there; the message says which key differs.
        InputError: an unknown grader, or a problem whose solution ends in no number.
    """
    settings = json.loads(json.dumps({**evaluation_settings(problems, config, context, chat), "about": dict(about)}))
    partial = folder.with_name(folder.name + ".partial")
    if (folder / "evaluation.json").is_file():
        _same(json.loads((folder / "evaluation.json").read_text("utf-8"))["settings"], settings, folder)
        shutil.rmtree(partial, ignore_errors=True)  # of a call that was killed after its last rename
        return folder
    grade("", problems[0].answer, [config.grader])  # what cannot be graded is refused before the work
    for problem in problems:
        is_correct(None, problem.answer)
    partial.mkdir(parents=True, exist_ok=True)
    begun = _read_json(partial / "settings.json")
    if begun is not None:
        _same(begun, settings, partial)
    else:
        for part in partial.glob("part-*.parquet"):  # of a settings file that is damaged: nobody knows of which settings
            part.unlink()
        write_text(partial / "settings.json", json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
    asked = [(p, sample) for p in problems for sample in range(config.samples)]
    # longest first, so that batches are even; which rows share a batch changes nothing but rounding
    prompts = {p.index: context.encode(tokenizer, p.question, chat) for p in problems}
    asked.sort(key=lambda item: -len(prompts[item[0].index]))
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p, config.seed, config.stop)
    parts = [partial / f"part-{at:06d}.parquet" for at in range(0, len(asked), config.batch_size)]
    from tqdm import tqdm

    with tqdm(total=len(asked), desc=label, unit="answer", disable=label is None) as bar:
        for at, part in zip(range(0, len(asked), config.batch_size), parts, strict=True):
            batch = asked[at : at + config.batch_size]
            if not _is_whole(part, len(batch)):
                started = time.perf_counter()
                keys = [f"{record_key(p.question, p.answer)}:{sample}" for p, sample in batch]
                said = generate(model, tokenizer, [prompts[p.index] for p, _ in batch], sampling, batch_size=len(batch), keys=keys)
                _write_part(part, batch, said, tokenizer, time.perf_counter() - started)
            bar.update(len(batch))
    _finish(folder, partial, parts, settings, config, about)
    return folder


def evaluation_settings(problems: Sequence[Problem], config: EvaluationConfig, context: Strategy, chat: bool) -> dict[str, Any]:
    """What must be equal for two evaluations to stand in one table: problems, prompt, cut, decoding."""
    return {
        "evaluation": {key: value for key, value in as_tables(config).items() if key not in RUNTIME},
        "problems_sha256": problems_digest(list(problems)),
        "context": context.content,
        "chat": chat,
    }


def began_with(place: Path) -> dict[str, Any] | None:
    """Whose answers lie in an evaluation's folder, finished or not; None where nobody's do."""
    found = _read_json(place / "evaluation.json") or {}
    settings = found.get("settings") or _read_json(place / "settings.json")
    return None if settings is None else dict(settings["about"])


def _same(before: Mapping[str, Any], now: Mapping[str, Any], place: Path) -> None:
    changed = differences(before, now)
    if changed:
        raise StudyError(f"{place} was made with other settings:\n  " + "\n  ".join(changed) + "\nSet them back, or delete it")


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _write_part(part: Path, batch: Sequence[tuple[Problem, int]], said: Sequence[Generated], tokenizer: Any, seconds: float) -> None:
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
        for (p, sample), answer in zip(batch, said, strict=True)
    ]
    table = pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=False)
    draft = part.with_suffix(".draft")
    pq.write_table(table.replace_schema_metadata({"seconds": repr(seconds)}), draft)
    draft.replace(part)


def _is_whole(part: Path, rows: int) -> bool:
    """A part is written whole or not at all; one that another batch size has cut, or a disk has damaged, is made again."""
    try:
        return pq.read_table(part).num_rows == rows
    except (OSError, pa.ArrowException):
        return False


def _confidence(answer: Generated, tokenizer: Any) -> float:
    extracted = GRADERS[DEFAULT_GRADER](answer.text, answer.finish == "length")
    if extracted is None:
        return math.nan
    text, offsets = decoded_offsets(tokenizer, list(answer.ids))  # with the special tokens, which the answer's text has not
    span = locate(text, extracted)
    if span is None:
        return math.nan
    inside = (offsets[:, 0] < span[1]) & (offsets[:, 1] > span[0])
    return float(np.exp(answer.log_probs[inside].mean())) if inside.any() else math.nan


def _finish(
    folder: Path, partial: Path, parts: Sequence[Path], settings: Mapping[str, Any], config: EvaluationConfig, about: Mapping[str, Any]
) -> None:
    tables = [pq.read_table(part) for part in parts]
    seconds = sum(float((t.schema.metadata or {})[b"seconds"]) for t in tables)
    whole = pa.concat_tables([t.replace_schema_metadata(None) for t in tables]).sort_by([("problem", "ascending"), ("sample", "ascending")])
    answers = whole.to_pandas()
    name = about.get("name", "")
    grades = [
        {
            "model": name,
            "problem": row.problem,
            "sample": row.sample,
            "grader": verdict.grader,
            "extracted": verdict.extracted,
            "correct": verdict.correct,
        }
        for row in answers.itertuples()
        for verdict in grade(str(row.response), str(row.reference), cut=str(row.finish) == "length")
    ]
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    pq.write_table(whole, draft / "responses.parquet")
    pq.write_table(pa.Table.from_pandas(pd.DataFrame(grades), preserve_index=False), draft / "grades.parquet")
    verdicts = pd.DataFrame(grades)
    summary = {
        "settings": settings,
        "grader": config.grader,
        "accuracy": {g: float(v["correct"].mean()) for g, v in verdicts.groupby("grader", sort=False)},
        "answers": len(answers),
        "tokens": int(answers["tokens"].sum()),
        "seconds": seconds,
        "tokens_per_second": float(answers["tokens"].sum() / seconds) if seconds else math.nan,
        "cut": float((answers["finish"] == "length").mean()),
        "without_confidence": int(answers["confidence"].isna().sum()),
        "versions": versions(),
    }
    write_text(draft / "evaluation.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    draft.rename(folder)
    shutil.rmtree(partial)


def read_answers(folder: Path, grader: str) -> pd.DataFrame:
    """An evaluation's answers with one grader's verdict, as `distill.evaluation.statistics` takes them.

    Raises:
        DamagedError: no evaluation there, or the grader was not asked.
    """
    try:
        answers = pq.read_table(folder / "responses.parquet").to_pandas()
        grades = pq.read_table(folder / "grades.parquet").to_pandas()
        about = json.loads((folder / "evaluation.json").read_text("utf-8"))["settings"]["about"]
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise DamagedError(f"{folder} holds no whole evaluation ({str(error).splitlines()[0]:.120}); run evaluate") from error
    chosen = grades[grades["grader"] == grader]
    if not len(chosen):
        raise DamagedError(f"{folder} has no verdicts of {grader!r}; it has those of {', '.join(grades['grader'].unique())}")
    answers = answers.merge(chosen[["problem", "sample", "correct", "extracted"]], on=["problem", "sample"], validate="one_to_one")
    return answers.assign(condition=about["condition"], seed=pd.array([about["seed"]] * len(answers), dtype="Int64"))
