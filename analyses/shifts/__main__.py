"""`python -m analyses.shifts`: compare the attention heads of several models."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from analyses.command import run_command
from analyses.shifts.options import ShiftsConfig

_EXAMPLES = """
Examples:

  python -m analyses.shifts runs/base runs/teacher runs/none            folders of analyses.heads; the first is the baseline
  python -m analyses.shifts smollm2 students/teacher --limit 20         checkpoints: their heads are measured first
  python -m analyses.shifts --study runs/demo                           all conditions and seeds of a study, with their accuracy
  python -m analyses.shifts --study runs/small --baseline none          compared with the students of the teacher without a prompt
  python -m analyses.shifts runs/teacher-1.5b runs/student --match      different architectures: heads paired by what they do
  python -m analyses.shifts --trajectory runs/demo/students/*           when each head moved while its student learned
  python -m analyses.shifts --published ../attention                    stored maps of the published study: its curves and ranking
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        "analyses.shifts", ShiftsConfig, _EXAMPLES, _compare, left=_left, smaller="a smaller --batch-tokens", arguments=arguments
    )


def _compare(options: ShiftsConfig, command: str) -> None:
    from analyses.shifts.compare import compare_models
    from analyses.shifts.text import describe_comparison

    print(describe_comparison(compare_models(options, command=command)))


def _left(options: ShiftsConfig) -> str:
    heads = options.folder().with_name(options.folder().name + ".partial") / "heads"
    if not heads.is_dir():
        return "nothing was finished, and nothing is kept"
    return f"finished head runs are kept in {heads}: the same command continues"


if __name__ == "__main__":
    sys.exit(main())
