"""TODO_DOC analyses/heads/__main__.py."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import tyro

from analyses.command import guarded
from analyses.heads.options import EXAMPLES, PROG, HeadsConfig
from analyses.heads.run import run
from interp.tables.errors import OptionError

if TYPE_CHECKING:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 after an error in the input, 130 when interrupted."""
    try:
        config = tyro.cli(HeadsConfig, prog=PROG, description=(HeadsConfig.__doc__ or "").split("\n")[0] + "\n" + EXAMPLES, args=arguments)
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = shlex.join(["python", "-m", "analyses.heads", *(sys.argv[1:] if arguments is None else arguments)])
    return guarded(
        lambda: run(config, command),
        debug=config.debug,
        interrupted=lambda: _after_interruption(config),
        out=config.folder(),
        kept="batches that were finished are kept for --resume",
        smaller="a smaller --batch-tokens",
    )


def _after_interruption(config: HeadsConfig) -> str:
    kept = config.folder().with_name(config.folder().name + ".partial")
    if not kept.exists():
        return "nothing was finished, and nothing is kept"
    return f"finished batches are kept in {kept}: the same command with --resume goes on"


if __name__ == "__main__":
    sys.exit(main())
