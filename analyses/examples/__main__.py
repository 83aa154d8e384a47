"""TODO_DOC analyses/examples/__main__.py."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import tyro

from analyses.command import guarded
from analyses.examples.options import ExamplesConfig
from analyses.examples.run import contrast, look_at
from interp.tables.errors import OptionError

if TYPE_CHECKING:
    pass


PROG = "python -m analyses.examples"


EXAMPLES = """
Examples:

  python -m analyses.examples                                          the embedded model on the first shipped problem
  python -m analyses.examples --model runs/smollm2-generated --problem 7   a run of analyses.heads: its model, compared with that run
  python -m analyses.examples --model smollm2 runs/demo/students/teacher-seed0 --text gold   two models on the same text
  python -m analyses.examples --question "Ana has 3 bags of 12 nuts. How many nuts?" --answer 36 --open
  python -m analyses.examples --heads 12.3,auto --problems gsm8k --problem 100
  python -m analyses.examples --watch 3.1,7 --problem 4                maps of head 3.1 and of layer 7 alone are kept
  python -m analyses.examples --contrast --model A B --problems gsm8k --limit 200    heads of right and of wrong answers
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 after an error in the input, 130 when interrupted."""
    try:
        config = tyro.cli(
            ExamplesConfig, prog=PROG, description=(ExamplesConfig.__doc__ or "").split("\n")[0] + "\n" + EXAMPLES, args=arguments
        )
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = shlex.join(["python", "-m", "analyses.examples", *(sys.argv[1:] if arguments is None else arguments)])
    heads = config.folder() / "heads"

    def kept() -> str:
        return f"head runs that were finished are kept in {heads}: the same command goes on" if heads.is_dir() else "nothing was finished"

    return guarded(
        lambda: (contrast if config.contrast else look_at)(config, command),
        debug=config.debug,
        interrupted=kept,
        out=config.folder(),
        kept=kept,
        smaller="a smaller --max-new-tokens, or --watch with few heads",
    )


if __name__ == "__main__":
    sys.exit(main())
