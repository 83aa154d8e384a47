"""Teachers' answers and signals on disk: keyed by their content, written whole or not at all, verified on reading.

A store is a folder. A group in it holds the answers of one teacher under one strategy's text; its folder's name is a hash of what shapes
them. Inside, answers lie in shards: Parquet files, and safetensors files beside them for hidden states and whole distributions. Shards are
cut by the problems' positions, and their names hold a hash of their content, so that damage is seen, a killed run leaves whole shards only,
and a restart writes the same files that an undisturbed run would.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from distill.config import differences
from distill.losses import Head
from distill.problems import Problem

FORMAT = 1
TENSORS = ("hidden", "dense_log_probs")
"""Signals that lie in safetensors files; the others are columns."""
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("index", pa.int64()),
        ("question", pa.string()),
        ("reference", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("finish", pa.string()),
        ("topk_ids", pa.list_(pa.int32())),
        ("topk_log_probs", pa.list_(pa.float32())),
        ("k", pa.int32()),
    ]
)


class RecordError(ValueError):
    """Records that are missing, damaged or of another study; the message says what was seen and what to do."""


@dataclass(frozen=True)
class Record:
    """One answer of a teacher to one problem, with its signals.

    Attributes:
        index: the problem's position in its source.
        question: the problem's text.
        reference: the reference solution.
        prompt_ids: the teacher's prompt, in its tokenizer; empty where the teacher does not tell.
        response_ids: the response's tokens with the end-of-text token where the teacher ended it; empty where only text is known.
        text: the response, without end-of-text token.
        finish: "eos" (the teacher ended it) or "length" (cut).
        signals: by name, one row a scored token: {} for text; topk_ids int32 and topk_log_probs float32 [token, k]; hidden [token, hidden]
            in the teacher's dtype; dense_log_probs float32 [token, vocab]. Scored tokens are the response's: row j is the distribution from
            which response_ids[j] was drawn (aligned objective); or, for the published objective, the prompt's: row i is the distribution
            after prompt_ids[: i + 1], and the response is empty.
    """

    index: int
    question: str
    reference: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    text: str
    finish: Literal["eos", "length"]
    signals: Mapping[str, Tensor] = field(default_factory=dict)


def record_key(question: str, reference: str) -> str:
    """SHA-256 of a problem's texts: the same problem has the same key, wherever it stands."""
    return hashlib.sha256(json.dumps([question, reference]).encode()).hexdigest()


class RecordStore:
    """A folder of records.

    Args:
        folder: made at the first write.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def group(self, identity: Mapping[str, Any]) -> RecordGroup:
        """The group of one teacher under one strategy; it may have no records yet.

        Args:
            identity: JSON of all that shapes the answers: strategy, teacher, sampling, signal.
        """
        return RecordGroup(self.folder, json.loads(json.dumps(identity)))

    def groups(self) -> list[RecordGroup]:
        """The groups that have records.

        Raises:
            RecordError: no such folder, or a group whose description is damaged.
        """
        if not self.folder.is_dir():
            raise RecordError(f"{self.folder} is no folder of records; `python -m distill collect STUDY.toml` makes one")
        found = []
        for file in sorted(self.folder.glob("*/group.json")):
            try:
                group = RecordGroup(self.folder, json.loads(file.read_text("utf-8"))["identity"])
                if group.folder != file.parent:
                    raise ValueError("it describes another folder than its own")
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise RecordError(f"{file} is damaged ({error}); run collect again: it writes it anew and keeps the answers") from error
            found.append(group)
        return found

    def write_head(self, head: Head, owner: Mapping[str, Any]) -> None:
        """Keeps the output head that turns a teacher's hidden states into logits; once for each teacher.

        Args:
            head: of the teacher.
            owner: the teacher's identity.
        """
        if any(_intact(file) for file in self._heads(owner)):
            return
        stem = self._head_stem(owner)
        tensors = {"weight": head.weight.detach().cpu().contiguous()}
        if head.bias is not None:
            tensors["bias"] = head.bias.detach().cpu().contiguous()
        about = {"head": json.dumps({"scale": head.scale, "softcap": head.softcap})}  # one key: their order in the file is not fixed
        stem.parent.mkdir(parents=True, exist_ok=True)
        with _locked(stem.with_name(f".{stem.name}.lock"), waits=True):
            _remove_drafts(stem.parent, stem.name)
            _write_named(stem, ".safetensors", lambda draft: save_file(tensors, draft, metadata=about))

    def read_head(self, owner: Mapping[str, Any]) -> Head:
        """The output head of a teacher.

        Raises:
            RecordError: it is not there, or damaged.
        """
        files = self._heads(owner)
        place = next(filter(_intact, files), None)
        if place is None and files:
            raise RecordError(f"{files[0]} is damaged (its SHA-256 does not begin as its name ends); run collect again: it redoes it")
        if place is None:
            raise RecordError(f"{self._head_stem(owner)}-*.safetensors is missing: the output head of hidden states; run collect again")
        with safe_open(place, "pt") as file:
            about = json.loads(file.metadata()["head"])
            bias = file.get_tensor("bias") if "bias" in set(file.keys()) else None
            return Head(file.get_tensor("weight"), bias, about["scale"], about["softcap"])

    def _heads(self, owner: Mapping[str, Any]) -> list[Path]:
        stem = self._head_stem(owner)
        return sorted(stem.parent.glob(f"{stem.name}-*.safetensors"))

    def _head_stem(self, owner: Mapping[str, Any]) -> Path:
        return self.folder / "heads" / _digest(owner)[:16]


class RecordGroup:
    """The answers of one teacher under one strategy.

    Args:
        store: the store's folder.
        identity: see `RecordStore.group`.
    """

    def __init__(self, store: Path, identity: Mapping[str, Any]) -> None:
        self.identity = identity
        self.key = _digest({"format": FORMAT, **identity})[:16]
        self.store, self.folder = store, store / self.key

    # --- writing ----------------------------------------------------------------------------------------------------

    def collect(
        self,
        problems: Sequence[Problem],
        answer: Callable[[Sequence[Problem]], Sequence[Record]],
        shard_rows: int,
        *,
        label: str | None = None,
    ) -> None:
        """Has the missing problems answered, shard by shard. Several processes may do so at once: they share the shards.

        Args:
            problems: wanted; one that stands there twice is asked once.
            answer: one record a problem, in order.
            shard_rows: problems of a shard, by their positions.
            label: of a progress bar; None shows none.

        Raises:
            RecordError: answers that do not fit the problems.
            OSError: no room or no permission; whole shards are kept, and the same call goes on.
        """
        keys = [record_key(p.question, p.answer) for p in problems]
        if not keys:
            return
        self._describe()
        self._set_aside()
        there = self._whole()
        first = {key: i for i, key in reversed(list(enumerate(keys)))}  # a sampling teacher may answer a repeated problem in two ways
        chunks = [list(range(at, min(at + shard_rows, len(problems)))) for at in range(0, len(problems), shard_rows)]
        todo = [chunk for chunk in chunks if any(keys[i] not in there for i in chunk)]
        with tqdm(total=len(problems), desc=label, unit="answer", disable=label is None) as bar:
            bar.update(len(problems) - sum(map(len, todo)))
            waits = False
            while todo:
                busy = []
                for chunk in todo:
                    # a free chunk is taken; one that another process has at work comes back at the end
                    with _locked(self.folder / f".{chunk[0]:06d}.lock", waits) as ours:
                        if not ours:
                            busy.append(chunk)
                            continue
                        there = self._whole()
                        missing = [i for i in chunk if keys[i] not in there and first[keys[i]] == i]
                        if missing:
                            self._write(chunk[0], [keys[i] for i in missing], answer([problems[i] for i in missing]))
                    bar.update(len(chunk))
                todo, waits = busy, True
        for left in self.folder.glob(".*.lock"):  # of killed processes; one that is held stays
            with _locked(left) as ours:
                if ours:
                    self._remove_leftovers(left.stem.removeprefix("."))

    def _describe(self) -> None:
        """Writes group.json where it is missing or damaged."""
        place = self.folder / "group.json"
        said = json.dumps({"format": FORMAT, "identity": self.identity}, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        if place.exists() and place.read_bytes() == said.encode():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / ".group.lock", waits=True):
            _remove_drafts(self.folder, place.name)
            with _draft(place) as draft:
                draft.write_bytes(said.encode())
                _settle(draft, place)

    def _write(self, position: int, keys: Sequence[str], records: Sequence[Record]) -> None:
        if [record_key(r.question, r.reference) for r in records] != list(keys):
            raise RecordError(f"the teacher gave {len(records)} answers that are not those to the {len(keys)} problems asked")
        try:
            table = pa.Table.from_pylist([_row(key, record) for key, record in zip(keys, records, strict=True)], SCHEMA)
        except UnicodeEncodeError as error:
            raise RecordError(f"the teacher gave half of a surrogate pair in {error.object[:60]!r}; it must give valid Unicode") from error
        stem = f"{position:06d}-{_digest(list(keys))[:12]}"
        self._remove_leftovers(f"{position:06d}")
        about: dict[str, str] = {"format": str(FORMAT)}
        tensors = {f"{name}.{at}": r.signals[name].contiguous() for at, r in enumerate(records) for name in TENSORS if name in r.signals}
        if tensors:
            place = self.folder / f"{stem}.safetensors"
            with _draft(place) as draft:
                save_file(tensors, draft)
                about["tensors_sha256"] = _sha256(draft)
                _settle(draft, place)
        table = table.replace_schema_metadata({"primed_heads_records": json.dumps(about)})
        _write_named(self.folder / stem, ".parquet", lambda draft: pq.write_table(table, draft, compression="zstd"))

    def _remove_leftovers(self, chunk: str) -> None:
        """Removes what killed processes have left of a chunk, whose lock must be held: drafts, and tensors whose rows never came."""
        _remove_drafts(self.folder, chunk)
        for tensors in self.folder.glob(f"{chunk}-*.safetensors"):
            if not any(self.folder.glob(f"{tensors.stem}-*.parquet")):
                tensors.unlink()

    def _whole(self) -> set[str]:
        """Keys of the whole shards."""
        keys: set[str] = set()
        for file in sorted(self.folder.glob("*.parquet")):
            with contextlib.suppress(RecordError):
                keys.update(_keys(file))
        return keys

    def _set_aside(self) -> None:
        """Moves damaged shards aside, and a line says so; not where another process has the chunk at work."""
        for file in sorted(self.folder.glob("*.parquet")):
            if _fault(file) is None:
                continue
            with _locked(self.folder / f".{file.name.partition('-')[0]}.lock") as ours:
                fault = _fault(file)
                if not ours or fault is None or not file.exists():  # another process is or was here
                    continue
                print(f"{fault}; it is moved aside and collected again", file=sys.stderr)
                for part in (file, _tensors_of(file)):
                    if part.exists():
                        part.replace(part.with_name(part.name + ".damaged"))

    # --- reading ----------------------------------------------------------------------------------------------------

    def read(self, problems: Sequence[Problem]) -> list[Record]:
        """The records of problems, in their order, however the store has them; hidden states are read when they are asked for.

        Raises:
            RecordError: records that are missing or damaged, or a group that the store does not have.
        """
        if not self.folder.is_dir():
            raise RecordError(self._not_here())
        found: dict[str, Record] = {}
        for file in sorted(self.folder.glob("*.parquet")):
            try:
                table = _read_shard(file)
            except RecordError as error:
                raise RecordError(f"{error}; run collect again: it redoes this file") from error
            for at, row in enumerate(table.to_pylist()):
                record = _record(row, _tensors_of(file), at)
                before = found.setdefault(row["key"], record)
                if (before.response_ids, before.text, before.finish) != (record.response_ids, record.text, record.finish):
                    raise RecordError(
                        f"{file.name} in {self.folder} answers problem {record.index} otherwise than another shard; delete one"
                    )
        wanted = [record_key(p.question, p.answer) for p in problems]
        missing = [p for key, p in zip(wanted, problems, strict=True) if key not in found]
        if missing:
            raise RecordError(
                f"{self.folder} lacks {len(missing)} of {len(problems)} answers, the first to problem {missing[0].index} "
                f"({missing[0].question[:60]!r}); run collect"
            )
        return [_at(found[key], p) for key, p in zip(wanted, problems, strict=True)]

    def rows(self) -> tuple[pd.DataFrame, int]:
        """The answers of all whole shards as text, a row each, and the number of damaged shards."""
        columns = ["index", "question", "reference", "prompt_ids", "response_ids", "text", "finish"]
        whole, damaged = [], 0
        for file in sorted(self.folder.glob("*.parquet")):
            try:
                whole.append(_read_shard(file).select(columns))
            except RecordError:
                damaged += 1
        return (pa.concat_tables(whole).to_pandas() if whole else pd.DataFrame(columns=columns)), damaged

    def _not_here(self) -> str:
        """What the store has instead, and what the nearest group has otherwise."""
        groups = RecordStore(self.store).groups() if self.store.is_dir() else []
        if not groups:
            return f"{self.store} holds no records; run collect first"
        changes = min((differences(group.identity, self.identity) for group in groups), key=len)
        held = "\n  ".join(_described(group.identity) for group in groups)
        return (
            f"{self.store} holds no records of this teacher, strategy and signal; run collect. It holds\n  {held}\n"
            f"The nearest differs in\n  " + "\n  ".join(changes)
        )


def _described(identity: Mapping[str, Any]) -> str:
    text = identity.get("strategy", {}).get("text") or "(no text)"
    return f"{identity.get('teacher', {}).get('name', '?')}, {identity.get('signal', {}).get('tier', '?')}: {text[:60]!r}"


def _row(key: str, record: Record) -> dict[str, Any]:
    ids, log_probs = record.signals.get("topk_ids"), record.signals.get("topk_log_probs")
    return {
        "key": key,
        "index": record.index,
        "question": record.question,
        "reference": record.reference,
        "prompt_ids": list(record.prompt_ids),
        "response_ids": list(record.response_ids),
        "text": record.text,
        "finish": record.finish,
        "topk_ids": None if ids is None else ids.flatten().numpy(),
        "topk_log_probs": None if log_probs is None else log_probs.flatten().numpy(),
        "k": None if ids is None else ids.shape[1],
    }


def _record(row: Mapping[str, Any], tensors: Path, at: int) -> Record:
    signals: Mapping[str, Tensor] = {}
    if row["k"] is not None:
        shape = (-1, row["k"])
        signals = {
            "topk_ids": torch.from_numpy(np.asarray(row["topk_ids"], np.int32)).reshape(shape),
            "topk_log_probs": torch.from_numpy(np.asarray(row["topk_log_probs"], np.float32)).reshape(shape),
        }
    elif tensors.exists():
        signals = _Stored(tensors, at)
    return Record(
        row["index"],
        row["question"],
        row["reference"],
        tuple(row["prompt_ids"]),
        tuple(row["response_ids"]),
        row["text"],
        row["finish"],
        signals,
    )


def _at(record: Record, problem: Problem) -> Record:
    """A record under the problem's own number: the key does not hold it."""
    fields = {name: getattr(record, name) for name in ("question", "reference", "prompt_ids", "response_ids", "text", "finish", "signals")}
    return Record(index=problem.index, **fields)


class _Stored(Mapping[str, Tensor]):
    """A record's rows of a safetensors file, read when they are asked for."""

    def __init__(self, file: Path, at: int) -> None:
        self.file, self.at = file, at

    @cached_property
    def _names(self) -> tuple[str, ...]:
        with self._opened() as file:
            stored = set(file.keys())
        return tuple(name for name in TENSORS if f"{name}.{self.at}" in stored)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with self._opened() as file:
            return file.get_tensor(f"{name}.{self.at}")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """The file, which was whole when its records were read."""
        try:
            with safe_open(self.file, "pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise RecordError(f"{self.file} was lost or damaged after it was read ({error}); run collect again") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _read_shard(file: Path) -> pa.Table:
    """A shard with everything about it checked.

    Raises:
        RecordError: it is damaged; the message names it.
    """
    try:
        if not _intact(file):
            raise RecordError(f"{file} is damaged (its SHA-256 does not begin as its name ends)")
        table = pq.read_table(file)
        about = json.loads((table.schema.metadata or {})[b"primed_heads_records"])
        if about["format"] != str(FORMAT) or not table.schema.equals(SCHEMA):
            raise RecordError(f"{file} has the format of another version")
        tensors = _tensors_of(file)
        if "tensors_sha256" in about and _sha256(tensors) != about["tensors_sha256"]:
            raise RecordError(f"{tensors} is damaged (its SHA-256 is not the one noted in {file.name})")
    except FileNotFoundError as error:
        raise RecordError(f"{error.filename} is missing") from error
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{file} is damaged ({str(error).splitlines()[0]:.120})") from error
    return table


def _tensors_of(file: Path) -> Path:
    """The safetensors file beside a shard."""
    return file.with_name(f"{file.stem.rsplit('-', 1)[0]}.safetensors")


_State = tuple[str, int, int, int, int] | None
_KEYS: dict[tuple[_State, _State], list[str]] = {}


def _state(path: Path) -> _State:
    """What tells one state of a file from another; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino  # a tool can set mtime back, not ctime


def _keys(file: Path) -> list[str]:
    """Keys of a shard, all of which is checked once in a process, and again where it has changed."""
    states = _state(file), _state(_tensors_of(file))
    if states not in _KEYS:
        _KEYS[states] = [str(key) for key in _read_shard(file).column("key").to_pylist()]
    return _KEYS[states]


def _fault(file: Path) -> RecordError | None:
    """What is wrong with a shard; None where it is whole."""
    try:
        _keys(file)
    except RecordError as error:
        return error
    return None


@contextlib.contextmanager
def _locked(place: Path, waits: bool = False) -> Iterator[bool]:
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


def _remove_drafts(folder: Path, start: str) -> None:
    """Removes what killed processes have left of files whose names begin so; their lock must be held."""
    for draft in folder.glob(f".{start}*.draft-*"):
        shutil.rmtree(draft)


@contextlib.contextmanager
def _draft(place: Path) -> Iterator[Path]:
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


def _settle(draft: Path, place: Path) -> None:
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


def _write_named(stem: Path, suffix: str, write: Callable[[Path], Any]) -> None:
    """Writes a file whose name ends in the hash of its content, so that damage shows."""
    with _draft(stem.with_name(stem.name + suffix)) as draft:
        write(draft)
        _settle(draft, stem.with_name(f"{stem.name}-{_sha256(draft)[:16]}{suffix}"))


def _intact(file: Path) -> bool:
    """The file's content is the one that its name tells."""
    return _sha256(file)[:16] == file.stem.rsplit("-", 1)[-1]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_DIGESTS: dict[_State, str] = {}


def _sha256(path: Path) -> str:
    state = _state(path)
    if state is None or state not in _DIGESTS:
        with path.open("rb") as file:
            _DIGESTS[state] = hashlib.file_digest(file, "sha256").hexdigest()
    return _DIGESTS[state]


# --- inspecting -----------------------------------------------------------------------------------------------------


def summary(store: RecordStore, correct: Callable[[str, str], bool]) -> pd.DataFrame:
    """What a store holds, a row a group: teacher, strategy, signal, counts, lengths in tokens, bytes, and the teacher's accuracy.

    Args:
        store: to look into.
        correct: says of a response and a reference solution whether it is right.

    Raises:
        RecordError: no such store.
    """
    lines = []
    for group in store.groups():
        rows, damaged = group.rows()
        lengths = rows["response_ids"].map(len)
        said = rows["text"] != ""
        right = [correct(text, reference) for text, reference in zip(rows["text"][said], rows["reference"][said], strict=True)]
        lines.append(
            {
                "group": group.key,
                "teacher": group.identity.get("teacher", {}).get("name"),
                "strategy": group.identity.get("strategy", {}).get("text", "")[:32] or "(no text)",
                "signal": group.identity.get("signal", {}).get("tier"),
                "k": group.identity.get("signal", {}).get("top_k"),
                "records": len(rows),
                "tokens_mean": lengths.mean() if len(rows) else float("nan"),
                "tokens_max": lengths.max() if len(rows) else float("nan"),
                "cut": (rows["finish"] == "length").mean() if len(rows) else float("nan"),
                "empty": int((~said).sum()),
                "accuracy": sum(right) / len(right) if right else float("nan"),
                "megabytes": sum(state[1] for state in map(_state, group.folder.iterdir()) if state) / 1e6,
                "damaged": damaged,
            }
        )
    return pd.DataFrame(lines)


def sample_rows(group: RecordGroup, number: int) -> list[str]:
    """The first answers of a group's whole shards, for people."""
    rows, _ = group.rows()
    return [
        f"\n[{group.key}, problem {row['index']}] {row['question']}\n-> ({len(row['response_ids'])} tokens, {row['finish']}) {row['text']}"
        for row in rows.head(number).to_dict("records")
    ]
