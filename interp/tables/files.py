"""Write files so that a reader finds a complete file or none, whatever happens to the writer; lock folders."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LOCK = ".lock"
"""Name of the lock file in a folder."""


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name next to its place, flush it to the disk and rename it.

    Args:
        path: where the file goes; a file that is there is replaced.
        write: writes the content to the path that it is given.

    Raises:
        OSError: no space, no permission. The old file is left as it was.
    """
    draft = path.with_name(f".{path.name}.draft-{os.getpid()}")
    try:
        write(draft)
        sync(draft)
        draft.replace(path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically (see `write_file`)."""
    write_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically (see `write_file`); NaN and infinity become null, and paths become text."""
    write_text(path, json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def plain(value: Any) -> Any:
    """Return a value that JSON can hold: numpy scalars as Python's, NaN and infinity as None."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sync(path: Path) -> None:
    """Flush a file or a folder from the operating system's memory to the disk; a folder only where the system can."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path, busy: Callable[[], Exception] | None = None) -> Iterator[None]:
    """Hold the lock of a folder, which the operating system releases when its process dies.

    Args:
        folder: must exist.
        busy: gives the error to raise where another process holds the lock; None waits for it.
    """
    lock = FileLock(folder / LOCK, timeout=-1 if busy is None else 0)
    try:
        lock.acquire()
    except Timeout as error:
        assert busy is not None
        raise busy() from error
    try:
        yield
    finally:
        lock.release()
