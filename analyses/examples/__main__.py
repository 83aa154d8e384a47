"""`python -m analyses.examples`: inspect one problem, or with --contrast compare right with wrong answers over many problems."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Sequence

from analyses.command import run_command
from analyses.examples.options import ExamplesConfig, contrast_config

_EXAMPLES = """
Examples:

  python -m analyses.examples                                          the embedded model on the first shipped problem
  python -m analyses.examples --model runs/smollm2-generated --problem 7   a run of analyses.heads: its model, compared with that run
  python -m analyses.examples --model smollm2 runs/demo/students/teacher-seed0 --text reference   two models on the same text
  python -m analyses.examples --question "Ana has 3 bags of 12 nuts. How many nuts?" --answer 36 --open
  python -m analyses.examples --heads 12.3,auto --problems gsm8k --problem 100
  python -m analyses.examples --watch 3.1,7 --problem 4                keep the maps of head 3.1 and of layer 7 only
  python -m analyses.examples --contrast --model A B --problems gsm8k --limit 200    heads on right and on wrong answers
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        "analyses.examples",
        ExamplesConfig,
        _EXAMPLES,
        _inspect,
        left=_left,
        smaller="a smaller --max-new-tokens, or --watch with few heads",
        arguments=arguments,
    )


def _inspect(options: ExamplesConfig, command: str) -> None:
    if options.contrast:
        from analyses.contrast.run import contrast_answers
        from analyses.contrast.text import describe_contrast

        print(describe_contrast(contrast_answers(contrast_config(options), command=command)))
        return
    from analyses.examples.run import inspect_problem
    from analyses.examples.text import describe_example

    inspected = inspect_problem(options, command=command)
    print(describe_example(inspected.example))
    print(f"tables:  {inspected.folder}")
    if inspected.figures:
        print(f"figures: {len(inspected.figures)} files in {inspected.folder / 'figures'}")
    print(f"page:    {inspected.page}")
    if options.open:
        webbrowser.open(inspected.page.resolve().as_uri())


def _left(options: ExamplesConfig) -> str:
    heads = options.folder().with_name(options.folder().name + ".partial") / "heads"
    if not heads.is_dir():
        return "nothing was finished, and nothing is kept"
    return f"finished head runs are kept in {heads}: the same command continues"


if __name__ == "__main__":
    sys.exit(main())
