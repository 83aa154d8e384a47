"""`python -m analyses.grades`: stored responses in; every grader's verdict on each, accuracy with intervals, and models paired, out.

Nothing is generated here and no model is loaded: the responses may come from anywhere. Published responses carry logged verdicts, which
stand in the tables as one more grader, `logged`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.grades.options import PUBLISHED_CODE, GradesConfig
from analyses.grades.responses import Source, by_model, facts_table, number_problems, read_sources
from analyses.grades.tables import accuracy_table, grade_all, notes_on, pairs_table, with_logged
from interp.tables.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


KIND = "grades"


FILES = ("grades.parquet", "accuracy.csv", "pairs.csv", "run.json")


def run(config: GradesConfig, command: str) -> int:
    """The whole job: responses, verdicts, tables."""
    asked = chosen_graders(config.graders)
    sources = read_sources(config.paths)
    models = by_model(sources)
    published = {r.model for source in sources if source.kind == "csv" for r in source.responses}
    if asked == [PUBLISHED_CODE] and not published:
        raise InputError(f"{PUBLISHED_CODE} is for CSV files in the published layout, and none is given; name other --graders")
    baseline = config.baseline or min(models)
    if baseline not in models:
        raise InputError(f"--baseline {baseline!r} has no responses; there are those of {', '.join(models)}")
    numbers = number_problems(models)
    check_folder(config.out, force=config.force)

    grades = grade_all(models, numbers, asked, published)
    facts = facts_table(models, numbers)
    accuracy = accuracy_table(grades, facts, config.level)
    pairs = pairs_table(with_logged(grades, facts), baseline, config.level, config.resamples, config.seed)
    notes = notes_on(models, numbers, grades, facts)
    write_results(config.out, grades, accuracy, pairs, about(config, command, asked, baseline, sources, notes))
    show(config, accuracy, pairs, baseline, notes)
    return 0


def chosen_graders(given: Sequence[str]) -> list[str]:
    """Names of graders, parted by blanks or commas; all where none is given.

    Raises:
        InputError: an unknown name.
    """
    from distill.problems.grading import GRADERS

    known = [*GRADERS, PUBLISHED_CODE]
    names = list(dict.fromkeys(name for part in given for name in part.split(",") if name)) or known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"unknown grader {unknown[0]!r}; known: {', '.join(known)}")
    return names


# --- results --------------------------------------------------------------------------------------------------------


def check_folder(out: Path, *, force: bool) -> None:
    """The results may go there: it is new, empty, or this command wrote it.

    Raises:
        InputError: a file, or a folder that holds other things, which only --force writes into.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    if force or not out.is_dir() or not any(out.iterdir()):
        return
    try:
        kind = json.loads((out / "run.json").read_text("utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if kind != KIND:
        raise InputError(f"--out {out} holds other things than grades; name another folder, or --force writes {', '.join(FILES)} into it")


def about(
    config: GradesConfig, command: str, graders: Sequence[str], baseline: str, sources: Sequence[Source], notes: Sequence[str]
) -> dict[str, Any]:
    """The contents of run.json."""
    import importlib.metadata

    from interp.tables.versions import versions

    inputs = [
        {
            "path": str(s.path),
            "kind": s.kind,
            "sha256": s.sha256,
            "models": list(dict.fromkeys(r.model for r in s.responses)),
            "n": len(s.responses),
        }
        for s in sources
    ]
    return {
        "kind": KIND,
        "command": command,
        "versions": {**versions(), **{name: importlib.metadata.version(name) for name in ("math-verify", "scipy", "statsmodels")}},
        "inputs": inputs,
        "settings": {
            "graders": list(graders),
            "baseline": baseline,
            "level": config.level,
            "seed": config.seed,
            "resamples": config.resamples,
        },
        "notes": list(notes),
    }


def write_results(out: Path, grades: pd.DataFrame, accuracy: pd.DataFrame, pairs: pd.DataFrame, run: Mapping[str, Any]) -> None:
    """Writes all files under temporary names, then renames them: an older result is replaced when the new one is whole.

    Raises:
        OSError: no space, no permission.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, whole = pa.string(), pa.int64()
    fields = {"model": text, "problem": whole, "grader": text, "extracted": text, "correct": pa.bool_()}
    schema = pa.schema([pa.field(name, kind, nullable=name == "extracted") for name, kind in fields.items()])
    table = pa.Table.from_pandas(grades[list(fields)], schema=schema, preserve_index=False).replace_schema_metadata(None)
    out.mkdir(parents=True, exist_ok=True)
    drafts = {name: out / f".{os.getpid()}-{name}" for name in FILES}
    try:
        pq.write_table(table, drafts["grades.parquet"])
        accuracy.to_csv(drafts["accuracy.csv"], index=False)
        pairs.to_csv(drafts["pairs.csv"], index=False)
        drafts["run.json"].write_text(json.dumps(run, indent=2, ensure_ascii=False) + "\n", "utf-8")
        for name, draft in drafts.items():
            draft.replace(out / name)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def show(config: GradesConfig, accuracy: pd.DataFrame, pairs: pd.DataFrame, baseline: str, notes: Sequence[str]) -> None:
    """Prints the tables, each with how it was measured."""
    from distill.evaluation.statistics import table_text

    level = f"{100 * config.level:g} %"
    texts = accuracy.drop_duplicates("model")[["model", "n", "characters", "cut"]]
    print(
        f"Accuracy. n: responses; low, high: Wilson's {level} score interval; found: share in which the grader found an answer; agrees, "
        f"differs: responses with the logged verdict, with the other one.\n\n{table_text(accuracy.drop(columns=['characters', 'cut']))}\n\n"
        f"Responses. n: how many; characters: mean length; cut: share that ran into the limit of length.\n\n{table_text(texts)}\n"
    )
    if len(pairs):
        print(
            f"Paired with {baseline} by question. problems: n answered by both; difference: share right less {baseline}'s, with its "
            f"{level} percentile bootstrap interval over problems ({config.resamples} resamples, seed {config.seed}); p_mcnemar: McNemar's "
            f"exact test, two-sided; p_holm: Holm's correction over the models within a grader.\n\n"
            f"{table_text(pairs.drop(columns='baseline'))}\n"
        )
    for note in notes:
        print(f"note: {note}")
    print(f"tables: {config.out / FILES[0]}, {', '.join(FILES[1:])}")
