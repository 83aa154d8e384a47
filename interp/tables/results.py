"""The results folder that every command writes: a draft next to its place, `run.json` last, moved to its place when complete.

While a command is at work its files are in `OUT.partial`. When the tables are complete, `run.json` is written and the draft is renamed to
`OUT`; results that were there are removed only after that. One process at a time works in a draft.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from interp.tables.errors import DamagedError, InputError, OptionError
from interp.tables.files import LOCK, sync, write_file, write_json
from interp.tables.schema import MeasureInfo, TableSchema, write

SETTINGS = "settings.json"
"""What decides the numbers of a draft; compared when the draft is resumed, dropped when it is published."""

_ALWAYS = r"\.lock|\..*\.draft.*|\..*\.json|settings\.json|run\.json|report\.html|figures"
"""Names that every kind of results may hold."""


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
        out: where the results go.
        kind: what kind of results they are.
        force: replace finished results, and discard an unfinished draft unless `resume` is given.
        resume: continue an unfinished draft.
        lock: False for the further processes of one command, which share the first one's lock.

    Attributes:
        out: where the results go.
        draft: where they are written.

    Raises:
        OptionError: the place is taken, holds other files, or cannot be written, or another process works there.
    """

    def __init__(self, out: Path, kind: Kind, *, force: bool = False, resume: bool = False, lock: bool = True) -> None:
        if not out.name:
            raise OptionError(f"--out {out} is the root of the file system; name a folder")
        self.out, self.kind = out, kind
        self.draft = out.with_name(out.name + ".partial")
        self._lock = FileLock(self.draft / LOCK, timeout=0) if lock else None
        self._restore()
        self._check_out(force)
        self._check_draft(resume=resume or force)
        self.fresh = not self.draft.exists()
        """Nothing of an earlier call is in the draft."""
        self._made: list[Path] = []
        try:
            self._made = _make(self.draft)
            if self._lock is not None:
                self._lock.acquire()
            if not self.fresh and force and not resume:
                self.clear()
                self.fresh = True
            probe = self.draft / f".writable-{os.getpid()}.json"
            probe.write_bytes(b"")
            probe.unlink()
            if lock:
                self._carry()
        except Timeout as error:
            raise OptionError(f"another process works in {self.draft}; wait for it, or name another --out") from error
        except OSError as error:
            raise OptionError(f"--out {out} cannot be written: {error.strerror} ({error.filename})") from error

    def _restore(self) -> None:
        """Undo a replacement that was killed between its two renames; remove what one left behind after them."""
        for old in sorted(self.out.parent.glob(f"{glob_escape(self.out.name)}.old-*")) if self.out.parent.is_dir() else []:
            if not self.out.exists() and (old / "run.json").is_file():
                old.rename(self.out)
            elif (self.out / "run.json").is_file():
                shutil.rmtree(old, ignore_errors=True)

    def _check_out(self, force: bool) -> None:
        out, noun = self.out, self.kind.noun
        if out.exists() and not out.is_dir():
            raise OptionError(f"--out {out} is a file; name a folder")
        if not out.is_dir() or not any(out.iterdir()):
            return
        found = _kind_of(out)
        if found == _NOTHING:
            self._check_names(out, f"--out {out} holds {{!r}}, and is not a finished {noun}; name another folder")
        elif found not in self.kind.kinds:
            raise OptionError(f"--out {out} holds results of another kind ({found or 'a head run'}); name another folder")
        elif not force:
            raise OptionError(f"--out {out} holds a finished {noun}; --force replaces it, or name another folder")
        self._check_names(out, f"--out {out} holds {{!r}}, which no {noun} wrote; move it, or name another --out")

    def _check_draft(self, *, resume: bool) -> None:
        if self.draft.exists() and not self.draft.is_dir():
            raise OptionError(f"{self.draft} is a file, and unfinished results go there; move it, or name another --out")
        if self.draft.is_dir():
            if not resume:
                raise OptionError(
                    f"an unfinished {self.kind.noun} is in {self.draft}; --resume continues it, --force discards it and starts again"
                )
            self._check_names(self.draft, f"{self.draft} holds {{!r}}, which no {self.kind.noun} wrote; move it, or name another --out")

    def _check_names(self, folder: Path, message: str) -> None:
        own = re.compile(f"{_ALWAYS}|{self.kind.names}")
        strange = sorted(path.name for path in folder.iterdir() if not own.fullmatch(path.name))
        if strange:
            raise OptionError(message.format(strange[0]))

    def _carry(self) -> None:
        """Take over what stays valid from the results that will be replaced; the originals are left as they are."""
        for name in self.kind.carried:
            old, new = self.out / name, self.draft / name
            if old.is_dir() and not new.exists():
                shutil.copytree(old, new, copy_function=_link)
            elif old.is_file() and not new.exists():
                _link(old, new)

    def begin(self, settings: dict[str, Any]) -> None:
        """Store what decides the numbers, or compare it with what the resumed draft was begun with.

        Raises:
            OptionError: the draft was begun with other settings; the message names them.
            DamagedError: the stored settings cannot be read.
        """
        from interp.tables.versions import current

        path = self.draft / SETTINGS
        settings = json.loads(json.dumps(settings))
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
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def final(self, path: Path) -> Path:
        """Return where a path of the draft will be once it is published; other paths are returned as they are."""
        return self.out / path.relative_to(self.draft) if path.is_relative_to(self.draft) else path

    def write_table(self, frame: pd.DataFrame, schema: TableSchema) -> None:
        """Write one table of the draft as Parquet, checked against its schema."""
        write_file(self.draft / f"{schema.name}.parquet", lambda path: write(frame, schema, path))

    def publish(self, run: dict[str, Any]) -> None:
        """Write run.json, then move the draft to its place; results that were there are removed only after that.

        Args:
            run: the content of run.json; the versions of the software are added where they are missing.
        """
        from interp.tables.versions import versions

        write_json(self.draft / "run.json", {**run, "versions": run.get("versions") or versions()})
        for pattern in (SETTINGS, LOCK, ".*.draft-*", *self.kind.temporary):
            for path in self.draft.glob(pattern):
                path.unlink(missing_ok=True)
        sync(self.draft)
        old = self.out.with_name(f"{self.out.name}.old-{os.getpid()}")
        replaced = self.out.exists()
        if replaced:
            self.out.rename(old)
        self.draft.rename(self.out)
        sync(self.out.parent)
        self.release()
        if replaced:
            shutil.rmtree(old, ignore_errors=True)

    def abandon(self, *, keep: bool) -> None:
        """Leave the draft to a later call, or, where it holds nothing to keep and this call made it, remove it.

        Args:
            keep: something worth keeping was finished.
        """
        self.release()
        if self.fresh and not keep and not self._holds_carried():
            shutil.rmtree(self.draft, ignore_errors=True)
            for folder in self._made[1:]:
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _holds_carried(self) -> bool:
        """The draft holds finished parts, such as head runs, that the results in place lack."""
        folders = [(self.draft / name, self.out / name) for name in self.kind.carried if (self.draft / name).is_dir()]
        return any(_names(new) - _names(old) for new, old in folders)

    def release(self) -> None:
        """Let other processes work in the folder."""
        if self._lock is not None:
            self._lock.release()


_NOTHING = object()


def _kind_of(folder: Path) -> Any:
    """Return `kind` of a folder's run.json (None for a head run), or `_NOTHING` where there is no readable run.json.

    Raises:
        OptionError: run.json is damaged.
    """
    path = folder / "run.json"
    if not path.is_file():
        return _NOTHING
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise OptionError(f"{path} is damaged ({error}); name another --out") from error


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _make(folder: Path) -> list[Path]:
    """Make a folder with its parents; return those that were made, the folder first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _link(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, or copy it where the file system cannot; published files are replaced, never changed in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def glob_escape(name: str) -> str:
    """Return a pattern that matches a name literally."""
    return re.sub(r"([*?[])", r"[\1]", name)


def read_run_json(folder: Path) -> dict[str, Any]:
    """Return the content of a head run's run.json.

    Raises:
        InputError: there is no run, it is damaged, or it was written by another version.
    """
    from interp.tables.versions import current

    path = folder / "run.json"
    try:
        run = current(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
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
