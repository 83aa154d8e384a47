"""`python -m analyses.heads`: measure every attention head of one checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from analyses.command import run_command
from analyses.heads.options import HeadsConfig

_EXAMPLES = """
Examples:

  python -m analyses.heads                                     the embedded model on the shipped problems
  python -m analyses.heads --model Qwen/Qwen3-0.6B --problems gsm8k --limit 100
  python -m analyses.heads --model students/teacher --base meta-llama/Llama-3.1-8B-Instruct
  python -m analyses.heads --model model.gguf --problems my.jsonl --text generated
  accelerate launch -m analyses.heads --model DIR --out runs/dir          split the examples over GPUs
  torchrun --nproc-per-node 2 -m analyses.heads --device cpu              split the examples over two CPU processes
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        "analyses.heads", HeadsConfig, _EXAMPLES, _measure, left=_left, smaller="a smaller --batch-tokens", arguments=arguments
    )


def _measure(options: HeadsConfig, command: str) -> None:
    from analyses.heads.run import measure_heads

    done = measure_heads(options, command=command)
    if done is None:  # not the first process
        return
    for warning in done.run["warnings"]:
        print(f"warning: {warning}")
    print(f"tables:  {done.folder / 'heads.parquet'}, examples.parquet, inputs.parquet, run.json")
    if done.figures:
        print(f"figures: {len(done.figures) - 1} files in {done.folder / 'figures'}")
        print(f"report:  {done.folder / 'report.html'}")


def _left(options: HeadsConfig) -> str:
    draft = options.folder().with_name(options.folder().name + ".partial")
    if not draft.exists():
        return "nothing was finished, and nothing is kept"
    return f"finished batches are kept in {draft}: the same command with --resume continues"


if __name__ == "__main__":
    sys.exit(main())
