"""Grade stored responses with every grader, and compare the models on the same problems.

Nothing is generated and no model is loaded: the responses may come from anywhere. Published responses come with logged verdicts, which are
in the tables as another grader, `logged`.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analyses.grades.options import GradesConfig
from analyses.grades.reading import read_sources
from analyses.grades.responses import Source, by_model, facts_table, number_problems
from analyses.grades.tables import PUBLISHED_CODE, accuracy_table, grade_all, notes_on, pairs_table, with_logged
from distill.problems.grading import GRADERS
from interp.tables.errors import InputError, OptionError
from interp.tables.files import write_file, write_json, write_text
from interp.tables.plugins import nearest
from interp.tables.results import Kind, ResultsFolder
from interp.tables.versions import versions

TABLES = ("grades.parquet", "accuracy.csv", "pairs.csv")
"""Files of the tables."""

_GRADES_FOLDER = Kind(noun="set of grades", kinds=("grades",), names="|".join(TABLES))

_PACKAGES = ("math-verify", "scipy", "statsmodels")
"""Packages that decide verdicts and statistics, in addition to `interp.tables.versions.PACKAGES`."""

_GRADES_SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("problem", pa.int64(), nullable=False),
        pa.field("grader", pa.string(), nullable=False),
        pa.field("extracted", pa.string()),
        pa.field("correct", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class GradedResponses:
    """Graded responses and the comparison of their models.

    Attributes:
        folder: the results folder.
        grades: every grader's verdict on every response (`analyses.grades.tables.grade_all`).
        accuracy: accuracy by model and grader (`analyses.grades.tables.accuracy_table`).
        pairs: models compared on the same problems (`analyses.grades.tables.pairs_table`).
        run: the content of run.json.
    """

    folder: Path
    grades: pd.DataFrame
    accuracy: pd.DataFrame
    pairs: pd.DataFrame
    run: dict[str, Any]


def grade_responses(options: GradesConfig, *, command: str = "analyses.grades.run.grade_responses") -> GradedResponses:
    """Return the verdict of every grader on stored responses, after writing them to `options.out`.

        from analyses.grades.options import GradesConfig
        from analyses.grades.run import grade_responses

        graded = grade_responses(GradesConfig(paths=(Path("mine.jsonl"), Path("theirs.jsonl"))))
        graded.pairs.query("p_holm < 0.05")

    Grades of an earlier call are replaced.

    Args:
        options: what to grade, and where the results go.
        command: recorded in run.json.

    Raises:
        PrimedHeadsError: options, responses or results folder cannot be used as they are.
    """
    graders = choose_graders(options.graders)
    sources = read_sources(options.paths)
    models = by_model(sources)
    published = {r.model for source in sources if source.kind == "csv" for r in source.responses}
    if graders == [PUBLISHED_CODE] and not published:
        raise InputError(f"{PUBLISHED_CODE} is for CSV files in the published layout, but none is given; name other --graders")
    baseline = options.baseline or min(models)
    if baseline not in models:
        raise InputError(f"--baseline {baseline!r} has no responses; known: {', '.join(models)}")
    numbers = number_problems(models)
    in_place = _check_content(options)
    results = None if in_place else ResultsFolder(options.out, _GRADES_FOLDER, force=True, resume=True)
    try:
        grades = grade_all(models, numbers, graders, published)
        facts = facts_table(models, numbers)
        accuracy = accuracy_table(grades, facts, options.level)
        pairs = pairs_table(with_logged(grades, facts), baseline, options.level, options.resamples, options.seed)
        run = _describe(options, command, graders, baseline, sources, notes_on(models, numbers, grades, facts))
        if results is None:
            _write_tables(options.out, grades, accuracy, pairs)
            write_json(options.out / "run.json", run)
        else:
            _write_tables(results.draft, grades, accuracy, pairs)
            results.publish(run)
    except BaseException:
        if results is not None:
            results.abandon(keep=False)
        raise
    return GradedResponses(options.out, grades, accuracy, pairs, run)


def choose_graders(given: Sequence[str]) -> list[str]:
    """Return the names of graders, separated by blanks or commas; all graders if none is given.

    Raises:
        InputError: an unknown name.
    """
    known = [*GRADERS, PUBLISHED_CODE]
    names = list(dict.fromkeys(name for part in given for name in part.split(",") if name)) or known
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise InputError(f"unknown grader {unknown!r}{nearest(unknown, known)}; known: {', '.join(known)}")
    return names


def _check_content(options: GradesConfig) -> bool:
    """Return whether the results folder has other content, so that the files are written into it and it is never replaced.

    Raises:
        OptionError: it has other content, no grades, and --force was not given.
    """
    out, ours = options.out, (*TABLES, "run.json")
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if not names:
        return False
    try:
        kind = json.loads((out / "run.json").read_text("utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if kind != "grades" and not options.force:
        raise OptionError(f"--out {out} has other content than grades; name another folder, or --force writes {', '.join(ours)} into it")
    return kind != "grades" or bool(names.difference(ours))


def _write_tables(folder: Path, grades: pd.DataFrame, accuracy: pd.DataFrame, pairs: pd.DataFrame) -> None:
    """Write the three tables, each atomically.

    Raises:
        OSError: no space or no permission.
    """
    table = pa.Table.from_pandas(grades[_GRADES_SCHEMA.names], schema=_GRADES_SCHEMA, preserve_index=False).replace_schema_metadata(None)
    texts = {"accuracy.csv": accuracy.to_csv(index=False), "pairs.csv": pairs.to_csv(index=False)}
    write_file(folder / "grades.parquet", lambda path: pq.write_table(table, path))
    for name, text in texts.items():
        write_text(folder / name, text)


def _describe(
    options: GradesConfig, command: str, graders: Sequence[str], baseline: str, sources: Sequence[Source], notes: Sequence[str]
) -> dict[str, Any]:
    """Return the content of run.json."""
    return {
        "kind": "grades",
        "command": command,
        "versions": {**versions(), **{name: importlib.metadata.version(name) for name in _PACKAGES}},
        "inputs": [
            {
                "path": str(source.path),
                "kind": source.kind,
                "sha256": source.sha256,
                "models": list(dict.fromkeys(r.model for r in source.responses)),
                "n": len(source.responses),
            }
            for source in sources
        ],
        "settings": {
            "graders": list(graders),
            "baseline": baseline,
            "level": options.level,
            "seed": options.seed,
            "resamples": options.resamples,
        },
        "notes": list(notes),
    }
