"""TODO_DOC distill/records/shards.py."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from distill.records.record import FORMAT, SCHEMA
from interp.tables.errors import DamagedError


def read_shard(file: Path) -> pa.Table:
    """A shard with everything about it checked.

    Raises:
        DamagedError: it is damaged; the message names it.
    """
    try:
        if not is_intact(file):
            raise DamagedError(f"{file} is damaged (its SHA-256 does not begin as its name ends)")
        table = pq.read_table(file)
        about = json.loads((table.schema.metadata or {})[b"primed_heads_records"])
        if about["format"] != str(FORMAT) or not table.schema.equals(SCHEMA):
            raise DamagedError(f"{file} has the format of another version")
        tensors = tensors_of(file)
        if "tensors_sha256" in about and file_sha256(tensors) != about["tensors_sha256"]:
            raise DamagedError(f"{tensors} is damaged (its SHA-256 is not the one noted in {file.name})")
    except FileNotFoundError as error:
        raise DamagedError(f"{error.filename} is missing") from error
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{file} is damaged ({str(error).splitlines()[0]:.120})") from error
    return table


def tensors_of(file: Path) -> Path:
    """The safetensors file beside a shard."""
    return file.with_name(f"{file.stem.rsplit('-', 1)[0]}.safetensors")


_State = tuple[str, int, int, int, int] | None


_KEYS: dict[tuple[_State, _State], list[str]] = {}


def shard_state(path: Path) -> _State:
    """What tells one state of a file from another; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino  # a tool can set mtime back, not ctime


def shard_keys(file: Path) -> list[str]:
    """Keys of a shard, all of which is checked once in a process, and again where it has changed."""
    states = shard_state(file), shard_state(tensors_of(file))
    if states not in _KEYS:
        _KEYS[states] = [str(key) for key in read_shard(file).column("key").to_pylist()]
    return _KEYS[states]


def shard_fault(file: Path) -> DamagedError | None:
    """What is wrong with a shard; None where it is whole."""
    try:
        shard_keys(file)
    except DamagedError as error:
        return error
    return None


@contextlib.contextmanager
def locked_folder(place: Path, waits: bool = False) -> Iterator[bool]:
    """Holds a lock file, or says False where another process does and waits is False.

    The file is removed while it is held: a process that waits for it sees that and makes a new one.
    """
    lock = FileLock(place, timeout=-1 if waits else 0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        place.unlink(missing_ok=True)
        lock.release()


def remove_drafts(folder: Path, start: str) -> None:
    """Removes what killed processes have left of files whose names begin so; their lock must be held."""
    for draft in folder.glob(f".{start}*.draft-*"):
        shutil.rmtree(draft)


@contextlib.contextmanager
def draft_name(place: Path) -> Iterator[Path]:
    """A file to write to, which is removed unless it was moved; an error of the system names the place.

    It has a folder of its own: safetensors writes to a file beside it that only its writer knows, and a killed process leaves that too.
    """
    folder = place.with_name(f".{place.name}.draft-{os.getpid()}")
    try:
        folder.mkdir(exist_ok=True)
        yield folder / place.name
    except SafetensorError as error:  # its writer wraps what the system said
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(place)) from error
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(place)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settle(draft: Path, place: Path) -> None:
    """A draft takes its place once it lies on the disk."""
    draft.chmod(place.parent.stat().st_mode & 0o666)  # safetensors' files are their owner's alone; who may read the folder may read these
    _sync(draft)
    draft.replace(place)
    _sync(place.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_named(stem: Path, suffix: str, write: Callable[[Path], Any]) -> None:
    """Writes a file whose name ends in the hash of its content, so that damage shows."""
    with draft_name(stem.with_name(stem.name + suffix)) as draft:
        write(draft)
        settle(draft, stem.with_name(f"{stem.name}-{file_sha256(draft)[:16]}{suffix}"))


def is_intact(file: Path) -> bool:
    """The file's content is the one that its name tells."""
    return file_sha256(file)[:16] == file.stem.rsplit("-", 1)[-1]


def digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_DIGESTS: dict[_State, str] = {}


def file_sha256(path: Path) -> str:
    state = shard_state(path)
    if state is None or state not in _DIGESTS:
        with path.open("rb") as file:
            _DIGESTS[state] = hashlib.file_digest(file, "sha256").hexdigest()
    return _DIGESTS[state]
