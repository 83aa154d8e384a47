"""`python -m analyses.grades`: grade stored responses with every grader, and compare the models on the same problems."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from analyses.command import run_command
from analyses.grades.options import GradesConfig

_EXAMPLES = """
Examples:

  python -m analyses.grades published/responses                          the published responses, compared with their logged verdicts
  python -m analyses.grades mine.jsonl theirs.jsonl --baseline theirs   one {"question", "answer", "response"} per line
  python -m analyses.grades results/evaluations --graders first_final   evaluations of `python -m distill`
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        "analyses.grades",
        GradesConfig,
        _EXAMPLES,
        _grade,
        left=lambda _: "nothing was written; run the same command again",
        figures=False,
        arguments=arguments,
    )


def _grade(options: GradesConfig, command: str) -> None:
    from analyses.grades.run import grade_responses
    from analyses.grades.text import describe_grades

    print(describe_grades(grade_responses(options, command=command)))


if __name__ == "__main__":
    sys.exit(main())
