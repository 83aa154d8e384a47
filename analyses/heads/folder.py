"""The folder of a run: begun beside its place, filled part by part, and moved to its place when whole.

While a run is at work its files lie in `OUT.partial`. A part is one batch of examples, written to a temporary name and renamed, so a part
that is there is whole, also after `kill -9`. A finished run is renamed to `OUT`: there is never half a run under that name.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from interp.tables.errors import InputError, OptionError
from interp.tables.heads import INPUTS
from interp.tables.schema import read, write

SETTINGS = "settings.json"


LOCK = ".lock"


OWN = re.compile(
    r"\.lock|\..*-part-.*|\..*\.json|\.writable-\d+|part-\d+\.(safetensors|parquet)|settings\.json|run\.json|\w+\.parquet|report\.html|figures"
)
"""Names that a run writes: a folder that holds others is never deleted."""


@dataclass(frozen=True)
class Part:
    """The results of one batch.

    Attributes:
        examples: their numbers.
        values: [example, layer, head, measure, region].
        counts: queries behind each value, same shape.
        inputs: rows of the `inputs` table.
        n_cut: generated texts that ran into the cut.
        blocked: layers that the blocked backend took because the run's own backend cannot express them.
    """

    examples: list[int]
    values: np.ndarray
    counts: np.ndarray
    inputs: pd.DataFrame
    n_truncated: int = 0
    blocked: tuple[int, ...] = ()


class RunFolder:
    """One run's output, from the first part to the finished folder."""

    def __init__(self, out: Path, *, force: bool, resume: bool, lock: bool = True) -> None:
        """Check that the run may be written there, before any work is done.

        Raises:
            OptionError: the place is taken, an unfinished run lies there, or the folder cannot be written.
        """
        if not out.name:
            raise OptionError(f"--out {out} is the root of the file system; name a folder")
        self.out = out
        self.partial = out.with_name(out.name + ".partial")
        self.force, self.resume = force, resume
        if out.exists() and not out.is_dir():
            raise OptionError(f"--out {out} is a file; name a folder")
        holds_run = (out / "run.json").is_file()
        if out.is_dir() and any(out.iterdir()):
            if not holds_run:
                raise OptionError(f"--out {out} holds other things than a run; name another folder")
            if not force:
                raise OptionError(f"--out {out} holds a finished run; --force replaces it, or name another folder")
        if self.partial.exists() and not (resume or force):
            raise OptionError(f"an unfinished run lies in {self.partial}; --resume goes on with it, --force begins anew")
        if self.partial.exists() and not self.partial.is_dir():
            raise OptionError(f"{self.partial} is a file, and unfinished runs go there; move it, or name another --out")
        for folder in (out, self.partial):
            strange = sorted(path.name for path in folder.iterdir() if not OWN.fullmatch(path.name)) if folder.is_dir() else []
            if strange:
                raise OptionError(f"{folder} holds {strange[0]!r}, which no run wrote; move it, or name another --out")
        self._fresh = not self.partial.exists()
        self._lock = FileLock(self.partial / LOCK, timeout=0) if lock else None
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            if self._lock is not None:
                self._lock.acquire()
            if not self._fresh and not resume:
                for path in self.partial.iterdir():
                    if path.name != LOCK:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                self._fresh = True
            probe = self.partial / f".writable-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except Timeout as error:
            raise OptionError(f"another run is at work in {self.partial}; wait for it, or name another --out") from error
        except OSError as error:
            raise OptionError(f"--out {out} cannot be written: {error.strerror} ({error.filename})") from error

    def release(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.release()

    def begin(self, settings: dict[str, Any]) -> None:
        """Keep what decides the numbers, or compare it with that of the run that is resumed.

        Raises:
            OptionError: the unfinished run was made with other settings; the message names them.
        """
        path = self.partial / SETTINGS
        settings = json.loads(json.dumps(settings))
        if path.is_file():
            try:
                before = dict(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise OptionError(f"{path} is damaged ({error}); --force begins anew") from error
            differ = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
            if differ:
                name = differ[0]
                raise OptionError(
                    f"{self.partial} was begun with other settings ({', '.join(differ)}; {name}: {before.get(name)!r}, now "
                    f"{settings.get(name)!r}); give the same, or --force to begin anew"
                )
        else:
            write_json(path, settings)

    def _paths(self, number: int) -> tuple[Path, Path]:
        return self.partial / f"part-{number:05d}.safetensors", self.partial / f"part-{number:05d}.parquet"

    def has(self, number: int) -> bool:
        """The part was written, and can be read. A torn part (a disk's fault: writing is atomic) counts as not written."""
        if not self._paths(number)[0].is_file():
            return False
        try:
            self.read_part(number)
        except OptionError as error:
            print(f"note: {error}; it is done again", file=sys.stderr)
            return False
        return True

    def write_part(self, number: int, part: Part) -> None:
        """Write one part so that it is there whole or not at all.

        Raises:
            OptionError: no space, no permission.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        values, inputs = self._paths(number)
        temporary = [path.with_name(f".{os.getpid()}-{path.name}") for path in (values, inputs)]
        tensors = {
            "examples": np.asarray(part.examples, np.int64),
            "values": np.ascontiguousarray(part.values, np.float64),
            "counts": np.ascontiguousarray(part.counts, np.int32),
            "n_truncated": np.asarray([part.n_truncated], np.int64),
            "blocked": np.asarray(part.blocked, np.int64),
        }
        try:
            write(part.inputs, INPUTS, temporary[1])
            save_file(tensors, temporary[0])
            for path in temporary:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            temporary[1].replace(inputs)
            temporary[0].replace(values)  # last: its being there says that the part is whole
        except (SafetensorError, OSError) as error:
            raise OptionError(f"{self.partial}: part {number} cannot be written ({error}); --resume goes on from finished parts") from error
        finally:
            for path in temporary:
                path.unlink(missing_ok=True)

    def read_part(self, number: int) -> Part:
        """Read one part.

        Raises:
            OptionError: the part is torn.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        values, inputs = self._paths(number)
        try:
            found = load_file(values)
            rows, blocked = read(inputs, INPUTS), tuple(found["blocked"].tolist())
            return Part(found["examples"].tolist(), found["values"], found["counts"], rows, int(found["n_truncated"][0]), blocked)
        except (SafetensorError, InputError, OSError, KeyError) as error:
            raise OptionError(f"part {number} of {self.partial} is damaged ({error})") from error

    def abandon(self) -> None:
        """Leave nothing where nothing was finished: a failed start leaves no folder."""
        self.release()
        if self._fresh and not any(self.partial.glob("part-*.safetensors")):
            shutil.rmtree(self.partial, ignore_errors=True)

    def publish(self) -> None:
        """Drop the parts and move the folder to its place; a run that was there is replaced only now."""
        for path in [*self.partial.glob("part-*"), *self.partial.glob(".*-part-*"), self.partial / SETTINGS, self.partial / LOCK]:
            path.unlink(missing_ok=True)
        old = self.out.with_name(f"{self.out.name}.old-{os.getpid()}")
        replaced = self.out.exists()
        if replaced:
            self.out.rename(old)
        self.partial.rename(self.out)
        self.release()
        if replaced:
            shutil.rmtree(old)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON by backend of a temporary file."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def peak_memory_bytes() -> dict[str, int]:
    """Largest resident memory of this process so far, and of each accelerator, in bytes."""
    import torch

    scale = 1 if sys.platform == "darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale}
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            peak[f"cuda:{number}"] = torch.cuda.max_memory_allocated(number)
    return peak
