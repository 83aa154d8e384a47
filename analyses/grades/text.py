"""Graded responses as text for the terminal: the tables, each with how it was measured."""

from __future__ import annotations

from analyses.grades.run import TABLES, GradedResponses
from distill.evaluation.statistics import table_text


def describe_grades(graded: GradedResponses) -> str:
    """Return accuracy, lengths and paired differences as tables, with notes and where the files are."""
    settings, accuracy = graded.run["settings"], graded.accuracy
    level = f"{100 * settings['level']:g} %"
    lengths = accuracy.drop_duplicates("model")[["model", "n", "characters", "truncated"]]
    parts = [
        f"Accuracy. n: number of responses; low, high: Wilson {level} score interval; found: fraction in which the grader found an answer; "
        "agrees, differs: number of responses whose verdict equals the logged one, and does not.\n\n"
        f"{table_text(accuracy.drop(columns=['characters', 'truncated']))}\n",
        "Responses. n: number of responses; characters: mean length; truncated: fraction that reached the length limit.\n\n"
        f"{table_text(lengths)}\n",
    ]
    if len(graded.pairs):
        baseline = settings["baseline"]
        parts.append(
            f"Paired with {baseline} by question. problems: n answered by both; difference: fraction right minus that of {baseline}, with "
            f"its {level} percentile bootstrap interval over problems ({settings['resamples']} resamples, seed {settings['seed']}); "
            "p_mcnemar: McNemar's exact test, two-sided; p_holm: Holm's correction over the models within a grader.\n\n"
            f"{table_text(graded.pairs.drop(columns='baseline'))}\n"
        )
    parts += [f"note: {note}" for note in graded.run["notes"]]
    first, *others = TABLES
    parts.append(f"tables: {graded.folder / first}, {', '.join([*others, 'run.json'])}")
    return "\n".join(parts)
