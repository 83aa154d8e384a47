"""TODO_DOC analyses/grades/__main__.py."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import tyro

from analyses.command import guarded
from analyses.grades.options import GradesConfig
from analyses.grades.run import run
from interp.tables.errors import OptionError

if TYPE_CHECKING:
    pass


PROG = "python -m analyses.grades"


EXAMPLES = """
Examples:

  python -m analyses.grades published/responses                          the published responses, beside what was logged
  python -m analyses.grades mine.jsonl theirs.jsonl --baseline theirs   one {"question", "answer", "response"} a line
  python -m analyses.grades results/evaluations --graders first_final   what `python -m distill` evaluated
"""


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


if __name__ == "__main__":
    sys.exit(main())
