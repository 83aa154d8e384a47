"""The results folder that every command of `analyses` writes: a draft next to its place, `run.json` last, moved to its place when complete.

While a command is at work its files are in `OUT.partial`. When the tables are complete, `run.json` is written and the draft is renamed to
`OUT`; results that were there are removed only after that. One process at a time works in a draft.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from interp.tables.errors import DamagedError, InputError, OptionError
from interp.tables.files import LOCK, WINDOWS, json_text, rename, sync, write_json
from interp.tables.schema import MeasureInfo, TableSchema, write
from interp.tables.versions import current, versions

_SETTINGS = "settings.json"
"""What decides the numbers of a draft; compared when the draft is resumed, dropped when it is published."""

_ALWAYS = r"\.lock|\..*\.draft.*|\..*\.json|\.DS_Store|settings\.json|run\.json|report\.html|figures"
"""Names that every kind of results may hold."""

_TRACES = r"\.lock|\..*\.draft.*|\.writable-.*"
"""Names that a call leaves which was killed before it did anything."""


@dataclass(frozen=True)
class Kind:
    """One kind of results.

    Attributes:
        noun: what messages call it, such as "comparison".
        kinds: values of `kind` in run.json that results of this kind may have; head runs have none (None).
        names: regular expression of the further names that the command writes. A folder that holds others is never replaced.
        carried: names that new results take over from those that they replace, such as head runs that are still valid.
        temporary: glob patterns of names that are removed when the results are published, such as the parts that tables are made from.
    """

    noun: str
    kinds: tuple[str | None, ...]
    names: str
    carried: tuple[str, ...] = ()
    temporary: tuple[str, ...] = ()


class ResultsFolder:
    """The results of one command, from the first file to the finished folder.

    Args:
        out: where the results go; where it is a link, its target.
        kind: what kind of results they are.
        force: replace finished results, and discard an unfinished draft unless `resume` is given.
        resume: continue an unfinished draft.
        lock: False for the further processes of one command, which share the draft that the first one checked and locked.

    Attributes:
        out: where the results go.
        draft: where they are written.
        fresh: the draft holds nothing of an earlier call.

    Raises:
        OptionError: the place is taken, holds other files, or cannot be written, or another process works there.
    """

    def __init__(self, out: Path, kind: Kind, *, force: bool = False, resume: bool = False, lock: bool = True) -> None:
        self.kind, self.force, self.fresh = kind, force, False
        self._made: list[Path] = []
        try:
            self.out = _place(out)
            self.draft = self.out.with_name(self.out.name + ".partial")
            self._lock = FileLock(self.draft / LOCK, timeout=0) if lock else None
            if self._lock is None:
                self._made = _make(self.draft)
            else:
                self._open(self._lock, resume=resume)
        except Timeout as error:
            raise OptionError(f"another process works in {self.draft}; wait for it, or name another --out") from error
        except (OSError, ValueError) as error:  # ValueError: a path that no file system can hold
            where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
            raise OptionError(f"--out {out} cannot be written: {getattr(error, 'strerror', None) or error}{where}") from error

    def _open(self, lock: FileLock, *, resume: bool) -> None:
        """Make and lock the draft, recover from killed calls, and check that the work may begin."""
        if self.draft.is_dir():
            self._check_draft()  # before a lock file is left in somebody else's folder
        elif self.draft.exists():
            raise OptionError(f"{self.draft} is a file, and unfinished results go there; move it, or name another --out")
        elif not self._left():
            self._check_out()  # before anything is made
        self._made = _make(self.draft)
        lock.acquire()
        try:
            self.fresh = all(re.fullmatch(_TRACES, name) for name in _names(self.draft))
            self._recover()
            self._check_out()  # again: another process may have published in the meantime
            self._check_draft()
            if not self.fresh and not (resume or self.force):
                raise OptionError(
                    f"an unfinished {self.kind.noun} is in {self.draft}; --resume continues it, --force discards it and starts again"
                )
            if self.fresh or not resume:
                self.clear()
                self.fresh = True
            probe = self.draft / f".writable-{os.getpid()}.json"
            probe.write_bytes(b"{}")
            probe.unlink()
            self._carry()
        except BaseException:
            self.abandon(keep=False)
            raise

    def _recover(self) -> None:
        """Finish or undo a replacement that was killed.

        Before the second of its two renames, the results that it moved away are moved back, and the draft can be resumed; after it,
        what is left of the old results and of the draft is removed.
        """
        for old in self._left():
            complete = (old / "run.json").is_file()
            if complete and not self.out.exists():
                rename(old, self.out)
            elif not complete or (self.out / "run.json").is_file():
                _discard(old)
        if (self.out / _SETTINGS).is_file() and (self.out / "run.json").is_file():
            self._clean()

    def _left(self) -> list[Path]:
        """Return old results that a killed replacement left under another name.

        A folder counts only if it has such a name and holds what this kind of command writes, and nothing else: any other folder is
        somebody else's.
        """
        found = sorted(self.out.parent.glob(f".{glob.escape(self.out.name)}.old-{'[0-9a-f]' * 8}"))
        return [old for old in found if self._is_own(old)]

    def _is_own(self, folder: Path) -> bool:
        """Return whether a folder holds results of this kind, or what is left of them, and nothing else."""
        try:
            _check_names(folder, self.kind, "{!r}")
            return _kind_of(folder) in (*self.kind.kinds, _NOTHING)
        except OptionError:
            return False

    def _check_out(self) -> None:
        """Raise if results may not go to `out`."""
        out, noun = self.out, self.kind.noun
        if out.exists() and not out.is_dir():
            raise OptionError(f"--out {out} is a file; name a folder")
        if os.path.ismount(out):
            raise OptionError(f"--out {out} is a mount point, which cannot be replaced; name a folder in it")
        if not out.is_dir() or not any(out.iterdir()):
            return
        found = _kind_of(out)
        if found == _NOTHING:
            names = sorted(name for name in _names(out) if not name.startswith("."))
            if names and not any(re.fullmatch(self.kind.names, name) for name in names):  # figures alone are no results
                raise OptionError(f"--out {out} holds {names[0]!r}, and is not a finished {noun}; name another folder")
            _check_names(out, self.kind, f"--out {out} holds {{!r}}, and is not a finished {noun}; name another folder")
        elif found not in self.kind.kinds:
            raise OptionError(f"--out {out} holds results of another kind ({found or 'a head run'}); name another folder")
        elif not self.force:
            raise OptionError(f"--out {out} holds a finished {noun}; --force replaces it, or name another folder")
        _check_names(out, self.kind, f"--out {out} holds {{!r}}, which no {noun} wrote; move it, or name another --out")

    def _check_draft(self) -> None:
        """Raise if the draft holds what this kind of command does not write."""
        found = _kind_of(self.draft)
        if found != _NOTHING and found not in self.kind.kinds:
            raise OptionError(f"{self.draft} holds results of another kind ({found or 'a head run'}); move it, or name another --out")
        _check_names(self.draft, self.kind, f"{self.draft} holds {{!r}}, which no {self.kind.noun} wrote; move it, or name another --out")

    def _carry(self) -> None:
        """Take over what stays valid from the results that will be replaced; the originals are left as they are."""
        for name in self.kind.carried:
            old, new = self.out / name, self.draft / name
            if new.exists() or not old.exists():
                continue
            draft = self.draft / f".{name}.draft-{os.getpid()}"
            if old.is_dir():
                shutil.copytree(old, draft, copy_function=_link)
            else:
                _link(old, draft)
            rename(draft, new)

    def begin(self, settings: dict[str, Any]) -> None:
        """Store what decides the numbers, or compare it with what the resumed draft was begun with.

        Raises:
            OptionError: the draft was begun with other settings; the message names them.
            DamagedError: the stored settings cannot be read.
        """
        path = self.draft / _SETTINGS
        settings = json.loads(json_text(settings))
        if not path.is_file():
            write_json(path, settings)
            return
        try:
            before = dict(current(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            raise DamagedError(f"{path} is damaged ({error}); --force starts again") from error
        differ = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if differ:
            name = differ[0]
            raise OptionError(
                f"{self.draft} was begun with other settings ({', '.join(differ)}; {name}: {before.get(name)!r}, now "
                f"{settings.get(name)!r}); give the same, or --force to start again"
            )

    def clear(self, *, keep: tuple[str, ...] = ()) -> None:
        """Remove what the draft holds, except the entries named in `keep`."""
        for path in self.draft.iterdir():
            if path.name not in (LOCK, *keep):
                _remove(path)

    def final(self, path: Path) -> Path:
        """Return where a path of the draft will be once it is published; other paths are returned as they are."""
        return self.out / path.relative_to(self.draft) if path.is_relative_to(self.draft) else path

    def write_table(self, frame: pd.DataFrame, schema: TableSchema) -> None:
        """Write one table of the draft as Parquet, checked against its schema."""
        write(frame, schema, self.draft / f"{schema.name}.parquet")

    def publish(self, run: dict[str, Any]) -> None:
        """Write run.json, then move the draft to its place; results that were there are removed only after that.

        Args:
            run: the content of run.json; the versions of the software are added where they are missing.

        Raises:
            OptionError: something was put at `out` in the meantime that may not be replaced. The draft stays.
            OSError: no space or no permission. The draft and the old results stay.
        """
        write_json(self.draft / "run.json", {**run, "versions": run.get("versions") or versions()})
        sync(self.draft)
        try:
            self._check_out()
        except OptionError as error:
            raise OptionError(f"{error}; the new results are complete in {self.draft}") from None
        old = self.out.with_name(f".{self.out.name}.old-{secrets.token_hex(4)}")
        replaced = self.out.exists()
        if WINDOWS:  # a folder with an open file cannot be renamed
            self.release()
        try:
            if replaced:
                rename(self.out, old)
            rename(self.draft, self.out)
        except BaseException:  # an interruption too: the old results stay where they were
            if old.exists() and not self.out.exists():
                rename(old, self.out)
            raise
        sync(self.out.parent)
        self._clean()
        self.release()
        self.fresh = False  # the next draft of this name is another call's
        if replaced:
            _discard(old)

    def _clean(self) -> None:
        """Remove what published results no longer need; the settings last, since they tell that this is not done yet."""
        for pattern in ("**/.*.draft-*", *self.kind.temporary, LOCK, _SETTINGS):
            for path in list(self.out.glob(pattern)):
                with contextlib.suppress(OSError):
                    _remove(path)

    def abandon(self, *, keep: bool) -> None:
        """Leave the draft to a later call, or, where it holds nothing to keep and this call made it, remove it.

        Args:
            keep: something worth keeping was finished.
        """
        discard = self.fresh and not keep and not (self.draft / "run.json").is_file() and not self._holds_carried()
        if WINDOWS:  # an open file cannot be removed
            self.release()
        if discard:
            shutil.rmtree(self.draft, ignore_errors=True)
            for folder in self._made[1:]:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        self.release()

    def _holds_carried(self) -> bool:
        """Return whether the draft holds finished parts, such as head runs, that the results in place lack."""
        folders = [(self.draft / name, self.out / name) for name in self.kind.carried if (self.draft / name).is_dir()]
        return any(_names(new) - _names(old) for new, old in folders)

    def release(self) -> None:
        """Let other processes work in the folder."""
        if self._lock is not None:
            self._lock.release()


_NOTHING = object()


def _place(out: Path) -> Path:
    """Return the folder that `out` means, under a name to which others can be related.

    Raises:
        OptionError: `out` is the root of the file system.
    """
    if out.name in ("", ".."):
        out = out.resolve()
    if not out.name:
        raise OptionError(f"--out {out} is the root of the file system; name a folder")
    return out.resolve() if out.is_symlink() else out


def _kind_of(folder: Path) -> Any:
    """Return `kind` of a folder's run.json (None for a head run), or `_NOTHING` where there is no run.json.

    Raises:
        OptionError: run.json is damaged.
    """
    path = folder / "run.json"
    if not path.is_file():
        return _NOTHING
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise OptionError(f"{path} is damaged ({error}); move it, or name another --out") from error


def _check_names(folder: Path, kind: Kind, message: str) -> None:
    """Raise if a folder holds a name that results of this kind do not have; `message` has a place for it."""
    own = re.compile(f"{_ALWAYS}|{kind.names}")
    strange = sorted(name for name in _names(folder) if not own.fullmatch(name))
    if strange:
        raise OptionError(message.format(strange[0]))


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _make(folder: Path) -> list[Path]:
    """Make a folder with its parents; return those that were made, the folder first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
    return missing


def _discard(folder: Path) -> None:
    """Remove results, run.json first, so that what a kill leaves of them does not count as results."""
    with contextlib.suppress(OSError):
        (folder / "run.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder with what it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _link(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, or copy it where the file system cannot; published files are replaced, never changed in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def read_run_json(folder: Path) -> dict[str, Any]:
    """Return the content of a head run's run.json, under today's names.

    Raises:
        InputError: there is no run, it is damaged, or it has not the form that this version reads.
    """
    path = folder / "run.json"
    try:
        run = current(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); measure the model again with python -m analyses.heads") from error
    needed = ("model", "config", "measures", "problems", "text", "chat")
    missing = [key for key in needed if not isinstance(run, dict) or key not in run]
    shaped = not missing and isinstance(run["model"], dict) and isinstance(run["config"], dict) and isinstance(run["measures"], list)
    if not shaped or "name" not in run["model"]:
        raise InputError(
            f"{path} has no {', '.join(missing) or 'usable model, config or measures'}: it is of another version; measure the model again"
        )
    return run


def measure_infos(run: dict[str, Any]) -> dict[str, MeasureInfo]:
    """Return the measures of a run by name, in the order of run.json.

    Raises:
        InputError: an entry lacks a field of `interp.tables.schema.MeasureInfo`, or its name is not an identifier.
    """
    infos = {}
    for entry in run["measures"]:
        try:
            info = MeasureInfo(*(entry[field] for field in ("name", "title", "unit", "low", "high", "formula")))
        except (KeyError, TypeError) as error:
            raise InputError(f"run.json: a measure lacks {error}: {entry}") from error
        if not str(info.name).isidentifier():  # it becomes a part of file names
            raise InputError(f"run.json: measure name {info.name!r} is not made of letters, digits and underscores")
        infos[info.name] = info
    return infos
