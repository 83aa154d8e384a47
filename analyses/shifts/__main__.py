"""TODO_DOC analyses/shifts/__main__.py."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import tyro

from analyses.command import guarded
from analyses.shifts.compare import compare
from analyses.shifts.options import ShiftsConfig
from interp.tables.errors import OptionError

if TYPE_CHECKING:
    pass


PROG = "python -m analyses.shifts"


EXAMPLES = """
Examples:

  python -m analyses.shifts runs/base runs/teacher runs/none            folders of analyses.heads; the first is the baseline
  python -m analyses.shifts smollm2 students/teacher --limit 20         checkpoints: their heads are measured first
  python -m analyses.shifts --study runs/demo                           all conditions and seeds of a study, with their accuracy
  python -m analyses.shifts --study runs/small --baseline none          against the teacher that was not prompted
  python -m analyses.shifts runs/teacher-1.5b runs/student --match      other architectures: heads matched by what they do
  python -m analyses.shifts --trajectory runs/demo/students/*           when each head moved while its student learnt
  python -m analyses.shifts --published ../attention                    the published study's maps: its curves and ranking
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 after an error in the input, 130 when interrupted."""
    try:
        config = tyro.cli(
            ShiftsConfig, prog=PROG, description=(ShiftsConfig.__doc__ or "").split("\n")[0] + "\n" + EXAMPLES, args=arguments
        )
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = shlex.join(["python", "-m", "analyses.shifts", *(sys.argv[1:] if arguments is None else arguments)])
    work = compare
    if config.published:
        from analyses.shifts.published import compare_published as work
    elif config.trajectory:
        from analyses.shifts.trajectories import compare_trajectories as work
    kept = f"head runs that were finished are kept in {config.folder() / 'heads'}: the same command goes on"
    return guarded(
        lambda: work(config, command),
        debug=config.debug,
        interrupted=lambda: kept,
        out=config.folder(),
        kept=kept,
        smaller="a smaller --batch-tokens",
    )


if __name__ == "__main__":
    sys.exit(main())
