"""`python -m analyses.grades`: stored responses in; every grader's verdict on each, accuracy with intervals, and models paired, out.

Nothing is generated here and no model is loaded: the responses may come from anywhere. Published responses carry logged verdicts, which
stand in the tables as one more grader, `logged`.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from analyses.command import guarded
from analyses.responses import Response, Source, by_model, facts_table, number_problems, read_sources

if TYPE_CHECKING:
    import pandas as pd

PROG = "python -m analyses.grades"
EXAMPLES = """
Examples:

  python -m analyses.grades published/responses                          the published responses, beside what was logged
  python -m analyses.grades mine.jsonl theirs.jsonl --baseline theirs   one {"question", "answer", "response"} a line
  python -m analyses.grades results/evaluations --graders first_final   what `python -m distill` evaluated
"""
KIND = "grades"
FILES = ("grades.parquet", "accuracy.csv", "pairs.csv", "run.json")
PUBLISHED_CODE = "published_code"
"""The grader for the published layout alone: what the paper's code extracts, which depends on the order of the responses."""
LOGGED = "logged"
"""Stands in the tables as a grader: the verdicts that came with the responses."""


class OptionError(Exception):
    """An option out of range. No ValueError: tyro prints those in a box of many lines."""


class GradesError(ValueError):
    """Responses that cannot be read or compared, or a place that cannot be written."""


@dataclass(frozen=True)
class GradesConfig:
    """Grade stored responses with every grader, and compare the models on the same problems.

    Attributes:
        paths: folders of CSV files in the published layout, JSONL files with question, answer and response, or evaluations of distill.
        graders: names; all where none is given. An unknown name lists the known.
        baseline: model that the others are compared with; default the first by name.
        out: folder for the results.
        level: of the intervals.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        force: write into a folder that holds other things; files of the same names are replaced.
        debug: show the traceback of an error.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]] = ()
    graders: tuple[str, ...] = ()
    baseline: str | None = None
    out: Path = Path("runs/grades")
    level: float = 0.95
    seed: int = 0
    resamples: int = 10_000
    force: bool = False
    debug: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            OptionError: nothing to grade, or a number out of range.
        """
        if not self.paths:
            raise OptionError("nothing to grade: name folders of CSV files, JSONL files or evaluations (see --help)")
        if not 0 < self.level < 1:
            raise OptionError(f"--level is {self.level}; it must lie between 0 and 1, as 0.95 does")
        if self.seed < 0 or self.resamples < 1:
            raise OptionError(f"--seed is {self.seed} and --resamples {self.resamples}; at least 0 and 1 are needed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 after an error in the input, 130 when interrupted."""
    try:
        config = tyro.cli(
            GradesConfig, prog=PROG, description=(GradesConfig.__doc__ or "").split("\n")[0] + "\n" + EXAMPLES, args=arguments
        )
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = shlex.join(["python", "-m", "analyses.grades", *(sys.argv[1:] if arguments is None else arguments)])
    kept = "nothing was written, the same command begins again"
    return guarded(lambda: run(config, command), debug=config.debug, interrupted=lambda: kept, out=config.out, kept=kept, figures=False)


def run(config: GradesConfig, command: str) -> int:
    """The whole job: responses, verdicts, tables."""
    asked = chosen_graders(config.graders)
    sources = read_sources(config.paths)
    models = by_model(sources)
    published = {r.model for source in sources if source.kind == "csv" for r in source.responses}
    if asked == [PUBLISHED_CODE] and not published:
        raise GradesError(f"{PUBLISHED_CODE} is for CSV files in the published layout, and none is given; name other --graders")
    baseline = config.baseline or min(models)
    if baseline not in models:
        raise GradesError(f"--baseline {baseline!r} has no responses; there are those of {', '.join(models)}")
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
        GradesError: an unknown name.
    """
    from distill.grading import GRADERS

    known = [*GRADERS, PUBLISHED_CODE]
    names = list(dict.fromkeys(name for part in given for name in part.split(",") if name)) or known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise GradesError(f"unknown grader {unknown[0]!r}; known: {', '.join(known)}")
    return names


# --- verdicts and tables --------------------------------------------------------------------------------------------


def grade_all(
    models: Mapping[str, Sequence[Response]], numbers: Mapping[str, Sequence[int]], graders: Sequence[str], published: set[str]
) -> pd.DataFrame:
    """A row a response and grader: model, problem, grader, extracted (None where it found nothing), correct.

    Args:
        models: responses, in the order of their file.
        numbers: of `number_problems`.
        graders: names of `distill.grading.GRADERS`, and `PUBLISHED_CODE`.
        published: models on which `PUBLISHED_CODE` is used, for it reads a whole file in order.
    """
    import pandas as pd
    from tqdm import tqdm

    from distill.grading import grade, is_correct, published_column

    alone = [name for name in graders if name != PUBLISHED_CODE]
    rows: list[tuple[str, int, str, str | None, bool]] = []
    with tqdm(total=sum(map(len, models.values())), desc="grading", unit="response", dynamic_ncols=True) as bar:
        for model, responses in models.items():
            in_order: Sequence[str | None] = []
            if PUBLISHED_CODE in graders and model in published:
                in_order = published_column([r.text for r in responses])
            for at, (number, response) in enumerate(zip(numbers[model], responses, strict=True)):
                for verdict in grade(response.text, response.answer, alone, cut=bool(response.cut)):
                    rows.append((model, number, verdict.grader, verdict.extracted, verdict.correct))
                if in_order:
                    rows.append((model, number, PUBLISHED_CODE, in_order[at], is_correct(in_order[at], response.answer)))
                bar.update()
    return pd.DataFrame(rows, columns=["model", "problem", "grader", "extracted", "correct"])


def with_logged(grades: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    """Verdicts with the logged ones behind them, as those of one more grader."""
    import pandas as pd

    known = facts[facts["logged"].notna()]
    logged = known[["model", "problem"]].assign(grader=LOGGED, correct=known["logged"].astype(bool))
    return pd.concat([grades[["model", "problem", "grader", "correct"]], logged], ignore_index=True) if len(logged) else grades


def accuracy_table(grades: pd.DataFrame, facts: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """A row a model and grader, `logged` last where verdicts were logged.

    Returns:
        model, grader, n (responses), right, accuracy = right / n, low and high (Wilson's score interval, 0 to 1), found (share of
        responses in which the grader found an answer), agrees and differs (responses with the logged verdict, and with the other one),
        characters (mean length of the model's responses) and cut (share of them that ran into the limit; NaN where unknown).
    """
    import pandas as pd

    from distill.statistics import wilson_interval

    verdicts = with_logged(grades, facts).merge(grades, how="left", on=["model", "problem", "grader"], suffixes=("", "_alone"))
    verdicts = verdicts.merge(facts[["model", "problem", "logged"]], on=["model", "problem"], validate="many_to_one")
    lengths = {str(model): own for model, own in facts.groupby("model", sort=False)}
    rows = []
    for model in lengths:
        own = verdicts[verdicts["model"] == model]
        for grader in own["grader"].unique():
            given = own[own["grader"] == grader]
            right, n = int(given["correct"].sum()), len(given)
            low, high = wilson_interval(right, n, level)
            known = given[given["logged"].notna()]
            same = int((known["correct"] == known["logged"].astype(bool)).sum())
            compared = grader != LOGGED and len(known) > 0
            cut = lengths[model]["cut"]
            rows.append(
                {
                    "model": model,
                    "grader": grader,
                    "n": n,
                    "right": right,
                    "accuracy": right / n,
                    "low": low,
                    "high": high,
                    "found": math.nan if grader == LOGGED else float(given["extracted"].notna().mean()),
                    "agrees": same if compared else None,
                    "differs": len(known) - same if compared else None,
                    "characters": float(lengths[model]["characters"].mean()),
                    "cut": math.nan if cut.isna().any() else float(cut.astype(bool).mean()),
                }
            )
    return pd.DataFrame(rows).astype({"agrees": "Int64", "differs": "Int64"})


def pairs_table(verdicts: pd.DataFrame, baseline: str, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """A row a grader and model: the model against the baseline on the problems that both answered.

    Args:
        verdicts: model, problem, grader, correct; each problem once a model and grader.
        baseline: a model; under graders that it lacks there is no row.
        level: of the interval.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        grader, model, baseline, problems (answered by both), unpaired (by one of them only, left out), only_this and only_baseline
        (problems that only one has right), difference = (only_this - only_baseline) / problems with its percentile bootstrap interval over
        problems (NaN where no two problems differ in it), p_mcnemar (McNemar's exact test, two-sided) and p_holm (Holm's correction over
        the models of a grader).
    """
    import numpy as np
    import pandas as pd

    from distill.statistics import holm, mcnemar_exact, mean_interval

    rows = []
    for grader in verdicts["grader"].unique():
        given = verdicts[verdicts["grader"] == grader]
        right = {str(model): own.set_index("problem")["correct"].astype(bool) for model, own in given.groupby("model", sort=False)}
        first = len(rows)
        for model in right:
            if model == baseline or baseline not in right:
                continue
            this, other = right[model].align(right[baseline], join="inner")
            row: dict[str, Any] = {
                "grader": grader,
                "model": model,
                "baseline": baseline,
                "problems": len(this),
                "unpaired": len(right[model]) + len(right[baseline]) - 2 * len(this),
                **dict.fromkeys(("only_this", "only_baseline"), 0),
                **dict.fromkeys(("difference", "difference_low", "difference_high", "p_mcnemar"), math.nan),
            }
            if len(this):
                row["only_this"], row["only_baseline"], row["p_mcnemar"] = mcnemar_exact(this.to_numpy(), other.to_numpy())
                apart = this.to_numpy(np.float64) - other.to_numpy(np.float64)
                row["difference"] = float(apart.mean())
                row["difference_low"], row["difference_high"] = mean_interval(apart, level, resamples, seed)
            rows.append(row)
        for row, p in zip(rows[first:], holm([row["p_mcnemar"] for row in rows[first:]]), strict=True):
            row["p_holm"] = p
    names = "grader model baseline problems unpaired only_this only_baseline difference difference_low difference_high p_mcnemar p_holm"
    return pd.DataFrame(rows, columns=names.split())


def notes_on(
    models: Mapping[str, Sequence[Response]], numbers: Mapping[str, Sequence[int]], grades: pd.DataFrame, facts: pd.DataFrame
) -> list[str]:
    """What a reader of the tables has to know: questions without a pair, repeated ones, and the rows that were graded by hand."""
    notes = []
    if len(models) == 1:
        notes.append(f"{next(iter(models))} is the only model: no paired table")
    else:
        times = Counter(number for own in numbers.values() for number in own)
        lonely = sum(n == 1 for n in times.values())
        if lonely:
            notes.append(f"{lonely} of {len(times)} questions were answered by one model only: they are in no pair")
    for model, responses in models.items():
        repeated = len(responses) - len({r.question.strip() for r in responses})
        if repeated:
            notes.append(f"{model}: {repeated} responses are to a question that it answered before; they are told apart by occurrence")
        unknown = sum(r.cut is None for r in responses)
        if unknown:
            notes.append(
                f"{model}: of {unknown} of {len(responses)} responses nobody noted whether they were cut; they are graded as whole"
            )
    verdicts = grades.merge(facts[["model", "problem", "logged"]], on=["model", "problem"])
    verdicts = verdicts[verdicts["logged"].notna()]
    for model in models:
        own = verdicts[verdicts["model"] == model].set_index("problem")
        code, rules = own[own["grader"] == PUBLISHED_CODE], own[own["grader"] == "published"]
        if not len(code):
            continue
        logged = code["logged"].astype(bool)
        by_hand, same = code["extracted"].isna(), code["correct"] == logged
        note = (
            f"{model}: {PUBLISHED_CODE} reads a number in {(~by_hand).sum()} of {len(code)} logged responses, and gives the logged verdict "
            f"on {(same & ~by_hand).sum()} of them; the other {by_hand.sum()} had to be graded by hand, {(logged & by_hand).sum()} of "
            "them as right"
        )
        if len(rules):
            apart = rules["correct"] != logged
            note += (
                f"; `published` differs from the log on {apart.sum()}: {(apart & by_hand).sum()} graded by hand, and "
                f"{(apart & same & ~by_hand).sum()} on which the code used a number of an earlier response"
            )
        notes.append(note)
    return notes


# --- results --------------------------------------------------------------------------------------------------------


def check_folder(out: Path, *, force: bool) -> None:
    """The results may go there: it is new, empty, or this command wrote it.

    Raises:
        GradesError: a file, or a folder that holds other things, which only --force writes into.
    """
    if out.exists() and not out.is_dir():
        raise GradesError(f"--out {out} is a file; name a folder")
    if force or not out.is_dir() or not any(out.iterdir()):
        return
    try:
        kind = json.loads((out / "run.json").read_text("utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if kind != KIND:
        raise GradesError(f"--out {out} holds other things than grades; name another folder, or --force writes {', '.join(FILES)} into it")


def about(
    config: GradesConfig, command: str, graders: Sequence[str], baseline: str, sources: Sequence[Source], notes: Sequence[str]
) -> dict[str, Any]:
    """The contents of run.json."""
    import importlib.metadata

    from interp.versions import versions

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
    from distill.statistics import shown

    level = f"{100 * config.level:g} %"
    texts = accuracy.drop_duplicates("model")[["model", "n", "characters", "cut"]]
    print(
        f"Accuracy. n: responses; low, high: Wilson's {level} score interval; found: share in which the grader found an answer; agrees, "
        f"differs: responses with the logged verdict, with the other one.\n\n{shown(accuracy.drop(columns=['characters', 'cut']))}\n\n"
        f"Responses. n: how many; characters: mean length; cut: share that ran into the limit of length.\n\n{shown(texts)}\n"
    )
    if len(pairs):
        print(
            f"Paired with {baseline} by question. problems: n answered by both; difference: share right less {baseline}'s, with its "
            f"{level} percentile bootstrap interval over problems ({config.resamples} resamples, seed {config.seed}); p_mcnemar: McNemar's "
            f"exact test, two-sided; p_holm: Holm's correction over the models within a grader.\n\n"
            f"{shown(pairs.drop(columns='baseline'))}\n"
        )
    for note in notes:
        print(f"note: {note}")
    print(f"tables: {config.out / FILES[0]}, {', '.join(FILES[1:])}")


if __name__ == "__main__":
    sys.exit(main())
