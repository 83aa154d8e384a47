"""A reader finds the old file or the new one, whatever happens to the writer; locks end with their process."""

from __future__ import annotations

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.tables import files
from interp.tables.files import file_sha256, locked, sync, write_file, write_folder, write_json, write_text


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, drafts included."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- one file ---------------------------------------------------------------------------------------------------------


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_text(tmp_path / "a.txt", text)
        assert content(tmp_path) == {"a.txt": text}


@pytest.mark.parametrize("error", [ValueError("bad"), OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("begun", [False, True])
def test_a_failed_writer_leaves_the_old_file_and_no_draft(tmp_path: Path, error: BaseException, begun: bool) -> None:
    def fail(draft: Path) -> None:
        if begun:
            draft.write_text("half")
        raise error

    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(type(error)):
        write_file(tmp_path / "a.txt", fail)
    with pytest.raises(type(error)):
        write_file(tmp_path / "new.txt", fail)
    assert content(tmp_path) == {"a.txt": "old"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(*((os, "fsync", fail) if step == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a.txt", "new")
    assert content(tmp_path) == {"a.txt": "old"}


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "none" / "a.txt", "new")


def test_the_content_is_flushed_before_the_rename_and_the_folder_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    fsync, replace = os.fsync, Path.replace

    def spied_fsync(handle: int) -> None:
        steps.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    def spied_replace(self: Path, target: Path) -> Path:
        steps.append(("rename", target.name))
        return replace(self, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc, which names what a handle is of")
    monkeypatch.setattr(os, "fsync", spied_fsync)
    monkeypatch.setattr(Path, "replace", spied_replace)
    write_text(tmp_path / "a.txt", "new")
    (draft, *rest) = steps
    assert draft[0] == "fsync"
    assert draft[1].startswith(".a.txt.draft-")
    assert rest == [("rename", "a.txt"), ("fsync", tmp_path.name)]


def test_writers_of_one_file_do_not_share_a_draft(tmp_path: Path) -> None:
    together = threading.Barrier(4)

    def write(number: int) -> None:
        def fill(draft: Path) -> None:
            draft.write_text(str(number) * 1000)
            together.wait(30)

        write_file(tmp_path / "a.txt", fill)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    ((name, text),) = content(tmp_path).items()
    assert name == "a.txt"
    assert text in [str(number) * 1000 for number in range(4)]


def test_text_is_written_as_utf8_with_its_own_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "é\n\r\nü")
    assert (tmp_path / "a.txt").read_bytes() == "é\n\r\nü".encode()


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_holds_no_nan_and_no_numpy(tmp_path: Path) -> None:
    value = {
        "nan": float("nan"),
        "infinite": [1.5, -np.inf],
        "scalar": np.float32(0.5),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "array": np.array([[1.0, np.nan]]),
        "tuple": (1, "a"),
        "path": Path("a/b"),
        "none": None,
        "text": "é",
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == {
        "nan": None,
        "infinite": [1.5, None],
        "scalar": 0.5,
        "count": 3,
        "flag": True,
        "array": [[1.0, None]],
        "tuple": [1, "a"],
        "path": str(Path("a/b")),
        "none": None,
        "text": "é",
    }
    assert "é" in text
    assert text.endswith("}\n")


# --- folders ----------------------------------------------------------------------------------------------------------


def fill(folder: Path, text: str) -> None:
    (folder / "part").mkdir(parents=True)
    (folder / "part" / "a.txt").write_text(text)


def test_a_folder_is_written_as_a_unit(tmp_path: Path) -> None:
    write_folder(tmp_path / "done", lambda draft: fill(draft, "one"))
    assert content(tmp_path) == {"done/part/a.txt": "one"}


def test_a_folder_that_another_process_wrote_first_is_kept(tmp_path: Path) -> None:
    def slow(draft: Path) -> None:
        fill(draft, "two")
        fill(tmp_path / "done", "one")

    write_folder(tmp_path / "done", slow)
    assert content(tmp_path) == {"done/part/a.txt": "one"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_folder_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail(draft: Path) -> None:
        fill(draft, "one")
        raise error

    with pytest.raises(type(error)):
        write_folder(tmp_path / "done", fail)
    assert list(tmp_path.iterdir()) == []


# --- flushing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_folder_that_cannot_be_flushed_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(_: int) -> None:
        raise OSError(number, "not supported")

    (tmp_path / "a").write_text("")
    monkeypatch.setattr(os, "fsync", fail)
    sync(tmp_path)
    with pytest.raises(OSError, match="not supported"):
        sync(tmp_path / "a")


def test_a_failed_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        sync(tmp_path)


def test_windows_flushes_files_but_not_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = os.open

    def spied(path: Any, flags: int, *more: Any, **named: Any) -> int:
        opened.append((Path(path).name, flags & os.O_RDWR))
        return real(path, flags, *more, **named)

    (tmp_path / "a").write_text("")
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(os, "open", spied)
    sync(tmp_path)
    sync(tmp_path / "a")
    assert opened == [("a", os.O_RDWR)]


def test_windows_waits_for_a_reader_that_holds_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals, replace = [1, 2], Path.replace

    def busy(self: Path, target: Path) -> Path:
        if refusals:
            refusals.pop()
            raise PermissionError(errno.EACCES, "Access is denied")
        return replace(self, target)

    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(Path, "replace", busy)
    monkeypatch.setattr("time.sleep", lambda _: None)
    write_text(tmp_path / "a.txt", "new")
    assert content(tmp_path) == {"a.txt": "new"}
    refusals.extend(range(9))
    with pytest.raises(PermissionError):
        write_text(tmp_path / "a.txt", "newer")
    assert content(tmp_path) == {"a.txt": "new"}


# --- hashes and locks -------------------------------------------------------------------------------------------------


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_second_holder_of_a_lock_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(OSError, match="busy"), locked(tmp_path, lambda: OSError("busy")):
        pytest.fail("two held the lock")
    with locked(tmp_path, lambda: OSError("busy")):
        pass


def test_a_waiting_holder_gets_the_lock_when_it_is_released(tmp_path: Path) -> None:
    order, held = [], threading.Event()

    def wait() -> None:
        held.wait(30)
        with locked(tmp_path):
            order.append("second")

    thread = threading.Thread(target=wait)
    thread.start()
    with locked(tmp_path):
        held.set()
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_the_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path, lambda: OSError("busy")):
        pass
