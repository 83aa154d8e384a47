"""Shards of a store: files whose names end in the hash of their content, checked when they are read, and locks of the chunks they cover."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from distill.records.record import RECORD_FORMAT, RECORD_SCHEMA
from interp.tables.errors import DamagedError
from interp.tables.files import file_sha256, write_file


def read_shard(file: Path) -> pa.Table:
    """Return a shard's rows after checking the shard and its tensors.

    Raises:
        DamagedError: the shard is damaged or missing; the message names it.
    """
    try:
        if not is_intact(file):
            raise DamagedError(f"{file} is damaged (its SHA-256 does not match its name)")
        table = pq.read_table(file)
        about = json.loads((table.schema.metadata or {})[b"primed_heads_records"])
        if about["format"] != str(RECORD_FORMAT) or not table.schema.equals(RECORD_SCHEMA):
            raise DamagedError(f"{file} has the format of another version")
        tensors = tensors_of(file)
        if "tensors_sha256" in about and _sha256(tensors) != about["tensors_sha256"]:
            raise DamagedError(f"{tensors} is damaged (its SHA-256 is not the one recorded in {file.name})")
    except FileNotFoundError as error:
        raise DamagedError(f"{error.filename} is missing") from error
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{file} is damaged ({str(error).splitlines()[0]:.120})") from error
    return table


def tensors_of(file: Path) -> Path:
    """Return the path of the safetensors file that belongs to a shard's Parquet file; it exists only if the shard has tensors."""
    return file.with_name(f"{file.stem.rsplit('-', 1)[0]}.safetensors")


_State = tuple[str, int, int, int, int] | None


_KEYS: dict[tuple[_State, _State], list[str]] = {}
"""Keys of the shards that this process has checked, by the state of their files."""

_DIGESTS: dict[_State, str] = {}
"""SHA-256 of the files that this process has read, by their state."""


def shard_state(path: Path) -> _State:
    """Return what distinguishes two states of a file: path, size, times and inode; None if the file does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino  # a tool can set mtime back, but not ctime


def shard_keys(file: Path) -> list[str]:
    """Return the keys of a shard. It is checked completely once in a process, and again if it changes.

    Raises:
        DamagedError: the shard is damaged or missing.
    """
    states = shard_state(file), shard_state(tensors_of(file))
    if states not in _KEYS:
        _KEYS[states] = [str(key) for key in read_shard(file).column("key").to_pylist()]
    return _KEYS[states]


def shard_fault(file: Path) -> DamagedError | None:
    """Return what is wrong with a shard; None if it is intact."""
    try:
        shard_keys(file)
    except DamagedError as error:
        return error
    return None


@contextlib.contextmanager
def hold_lock(path: Path, *, waits: bool = False) -> Iterator[bool]:
    """Hold a lock file, and yield True; yield False if another process holds it and `waits` is not set.

    The file is removed while it is held: a process that waits for it notices that, and makes a new one.
    """
    lock = FileLock(path, timeout=-1 if waits else 0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def remove_drafts(folder: Path, start: str) -> None:
    """Remove the drafts that killed processes left of files whose names begin with `start`; the caller holds their lock."""
    for draft in folder.glob(f".{start}*.draft-*"):
        if draft.is_dir():  # version 0.1 made a folder for each draft
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)


def write_data(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Raises:
        OSError: no space or no permission; the error names `path`.
    """
    try:
        write_file(path, lambda draft: draft.write_bytes(data))
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def write_named(stem: Path, suffix: str, data: bytes) -> None:
    """Write a file atomically under a name that ends in the hash of its content, so that damage is noticed.

    Raises:
        OSError: no space or no permission.
    """
    write_data(stem.with_name(f"{stem.name}-{hashlib.sha256(data).hexdigest()[:16]}{suffix}"), data)


def is_intact(file: Path) -> bool:
    """Whether a file's content matches the hash in its name."""
    return _sha256(file)[:16] == file.stem.rsplit("-", 1)[-1]


def digest_of(content: Any) -> str:
    """Return the SHA-256 of a value as JSON, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file, which is read again only if it changed."""
    state = shard_state(path)
    if state is None or state not in _DIGESTS:
        _DIGESTS[state] = file_sha256(path)
    return _DIGESTS[state]
