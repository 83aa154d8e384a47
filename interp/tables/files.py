"""Write files so that a reader finds a complete file or none, whatever happens to the writer; lock folders."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LOCK = ".lock"
"""Name of the lock file in a folder."""

WINDOWS = os.name == "nt"
"""Windows refuses to rename or remove what is open, and cannot flush a folder."""

_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM})
"""What file systems answer that cannot flush a folder. The rename is atomic all the same."""

_RETRY_SECONDS = (0.01, 0.05, 0.2, 1.0)
"""On Windows a scanner or a reader may hold a file for a moment."""


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name next to its place, flush it to the disk and rename it.

    Args:
        path: where the file goes; a file that is there is replaced.
        write: writes the content to the path that it is given. That path does not end in `path.suffix`, so name the format.

    Raises:
        OSError: no space or no permission. The old file is left as it was.
    """
    draft = _draft_of(path)
    try:
        write(draft)
        sync(draft)
        rename(draft, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Write a folder whose name says what it holds, such as a hash, under a temporary name next to its place, and rename it.

    A folder that is there already is kept: another process was faster.

    Args:
        path: where the folder goes.
        write: makes the folder that it is given, and fills it.

    Raises:
        OSError: no space or no permission. Nothing is left.
    """
    draft = _draft_of(path)
    try:
        write(draft)
        for part in draft.rglob("*"):
            sync(part)
        sync(draft)
        try:
            rename(draft, path)
        except OSError:
            if not path.is_dir():
                raise
        sync(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically (see `write_file`), with line ends as they are in the text."""
    write_file(path, lambda draft: draft.write_text(text, encoding="utf-8", newline=""))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically (see `write_file`); NaN and infinity become null, and paths become text."""
    write_text(path, json_text(content) + "\n")


def json_text(content: Any) -> str:
    """Return JSON text of a value: numpy values as Python's, NaN and infinity as null, and paths as text."""
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if hasattr(value, "tolist"):  # numpy's arrays and scalars, tensors
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _draft_of(path: Path) -> Path:
    """Return a name for a draft that no other thread or process uses."""
    return path.with_name(f".{path.name}.draft-{os.getpid()}-{secrets.token_hex(4)}")


def rename(source: Path, target: Path) -> None:
    """Rename a file, replacing what is there, or a folder; on Windows, try again for a second while another process has it open."""
    for seconds in _RETRY_SECONDS if WINDOWS else ():
        try:
            source.replace(target)
            return
        except PermissionError:
            time.sleep(seconds)
    source.replace(target)


def sync(path: Path) -> None:
    """Flush a file or a folder from the operating system's memory to the disk; a folder only where the system can.

    Raises:
        OSError: the disk is full or failed.
    """
    is_folder = path.is_dir()
    if is_folder and WINDOWS:
        return
    try:
        # Windows flushes only what is open for writing.
        handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not (is_folder and error.errno in _UNSUPPORTED):
            raise


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path, busy: Callable[[], Exception] | None = None) -> Iterator[None]:
    """Hold the lock of a folder, which the operating system releases when its process dies.

    Args:
        folder: must exist.
        busy: returns the error to raise while another process holds the lock; None waits for it.

    Raises:
        OSError: the folder cannot be written.
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
