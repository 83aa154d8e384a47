"""Teachers' answers and signals on disk, keyed by their content, written atomically and verified when they are read.

A store is a folder. It holds one group for each teacher and strategy; the name of a group's folder is a hash of everything that shapes the
answers. A group consists of shards: Parquet files, with safetensors files for hidden states and full distributions. Shards cover chunks of
problems by position. Their names contain a hash of their content, so damage is noticed, a killed run leaves only complete shards, and a
resumed run writes the same files as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.torch import save
from tqdm import tqdm

from distill.problems.sets import Problem
from distill.records.record import RECORD_FORMAT, RECORD_SCHEMA, TENSOR_SIGNALS, Record, record_key, record_to_row, row_to_record
from distill.records.shards import (
    digest_of,
    hold_lock,
    is_intact,
    read_shard,
    remove_drafts,
    shard_fault,
    shard_keys,
    tensors_of,
    write_data,
    write_named,
)
from distill.settings import changed_settings
from interp.checkpoints.unembedding import OutputHead
from interp.tables.errors import DamagedError, StudyError


class RecordStore:
    """A folder of records.

    Args:
        folder: created by the first write.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def group(self, identity: Mapping[str, Any]) -> RecordGroup:
        """Return the group of one teacher under one strategy; it may have no records yet.

        Args:
            identity: everything that shapes the answers, as JSON values: strategy, teacher, sampling, signal.
        """
        return RecordGroup(self.folder, json.loads(json.dumps(identity)))

    def groups(self) -> list[RecordGroup]:
        """Return the groups that have records.

        Raises:
            StudyError: the folder does not exist.
            DamagedError: a group's description is damaged.
        """
        if not self.folder.is_dir():
            raise StudyError(f"{self.folder} is not a folder of records; `python -m distill collect STUDY.toml` creates one")
        found = []
        for file in sorted(self.folder.glob("*/group.json")):
            try:
                group = RecordGroup(self.folder, json.loads(file.read_text("utf-8"))["identity"])
                if group.folder != file.parent:
                    raise ValueError("it describes another folder")
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DamagedError(f"{file} is damaged ({error}); run collect again: it rewrites the file and keeps the answers") from error
            found.append(group)
        return found

    def write_head(self, head: OutputHead, owner: Mapping[str, Any]) -> None:
        """Store the output head that turns a teacher's hidden states into logits, once for each teacher.

        Args:
            head: the teacher's head.
            owner: the teacher's identity.
        """
        if any(is_intact(file) for file in self._heads(owner)):
            return
        stem = self._head_stem(owner)
        tensors = {"weight": head.weight.detach().cpu().contiguous()}
        if head.bias is not None:
            tensors["bias"] = head.bias.detach().cpu().contiguous()
        about = {"head": json.dumps({"scale": head.scale, "softcap": head.softcap})}  # one key: the order of several is not fixed
        stem.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(stem.with_name(f".{stem.name}.lock"), waits=True):
            remove_drafts(stem.parent, stem.name)
            write_named(stem, ".safetensors", save(tensors, metadata=about))

    def read_head(self, owner: Mapping[str, Any]) -> OutputHead:
        """Return the output head of a teacher.

        Raises:
            DamagedError: the head is missing or damaged.
        """
        files = self._heads(owner)
        path = next(filter(is_intact, files), None)
        if path is None and files:
            raise DamagedError(f"{files[0]} is damaged (its SHA-256 does not match its name); run collect again: it rewrites the file")
        if path is None:
            raise DamagedError(f"{self._head_stem(owner)}-*.safetensors, the output head of hidden states, is missing; run collect again")
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["head"])
            bias = file.get_tensor("bias") if "bias" in set(file.keys()) else None
            return OutputHead(file.get_tensor("weight"), bias, about["scale"], about["softcap"])

    def _heads(self, owner: Mapping[str, Any]) -> list[Path]:
        stem = self._head_stem(owner)
        return sorted(stem.parent.glob(f"{stem.name}-*.safetensors"))

    def _head_stem(self, owner: Mapping[str, Any]) -> Path:
        return self.folder / "heads" / digest_of(owner)[:16]


class RecordGroup:
    """The answers of one teacher under one strategy.

    Args:
        store: folder of the store.
        identity: see `RecordStore.group`.
    """

    def __init__(self, store: Path, identity: Mapping[str, Any]) -> None:
        self.identity = identity
        self.key = digest_of({"format": RECORD_FORMAT, **identity})[:16]
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
        """Collect the missing answers, shard by shard. Several processes that call this at once share the shards.

        Args:
            problems: the problems; one that occurs twice is asked once.
            answer: returns one record for each problem, in order.
            shard_rows: problems of a shard, by position.
            label: label of a progress bar; None shows none.

        Raises:
            StudyError: the answers do not fit the problems.
            OSError: no space or no permission; complete shards are kept, and the same call continues.
        """
        keys = [record_key(p.question, p.answer) for p in problems]
        if not keys:
            return
        self._describe()
        self._set_aside()
        stored = self._stored_keys()
        wanted = {key: i for i, key in reversed(list(enumerate(keys)))}  # a sampling teacher may answer a repeated problem in two ways
        chunks = [list(range(at, min(at + shard_rows, len(problems)))) for at in range(0, len(problems), shard_rows)]
        todo = [chunk for chunk in chunks if any(keys[i] not in stored for i in chunk)]
        with tqdm(total=len(problems), desc=label, unit="answer", disable=label is None) as bar:
            bar.update(len(problems) - sum(map(len, todo)))
            waits = False
            while todo:
                busy = []
                for chunk in todo:
                    # A chunk that another process works on is left for the end, and then waited for.
                    with hold_lock(self.folder / f".{chunk[0]:06d}.lock", waits=waits) as held:
                        if not held:
                            busy.append(chunk)
                            continue
                        self._collect_chunk([i for i in chunk if wanted[keys[i]] == i], chunk[0], problems, keys, answer)
                    bar.update(len(chunk))
                todo, waits = busy, True
        self._remove_stale_locks()

    def _collect_chunk(
        self,
        positions: Sequence[int],
        first: int,
        problems: Sequence[Problem],
        keys: Sequence[str],
        answer: Callable[[Sequence[Problem]], Sequence[Record]],
    ) -> None:
        """Collect the missing answers to the problems at some positions of the chunk that begins at `first`, whose lock is held."""
        stored = self._stored_keys()
        missing = [i for i in positions if keys[i] not in stored]
        if missing:
            self._write(first, [keys[i] for i in missing], answer([problems[i] for i in missing]))

    def _remove_stale_locks(self) -> None:
        """Remove the lock files of killed processes with what they left; a lock that is held stays."""
        for lock in self.folder.glob(".*.lock"):
            with hold_lock(lock) as held:
                if held:
                    self._remove_leftovers(lock.stem.removeprefix("."))

    def _describe(self) -> None:
        """Write group.json if it is missing or damaged."""
        path = self.folder / "group.json"
        description = json.dumps({"format": RECORD_FORMAT, "identity": self.identity}, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        if path.exists() and path.read_bytes() == description.encode():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(self.folder / ".group.lock", waits=True):
            remove_drafts(self.folder, path.name)
            write_data(path, description.encode())

    def _write(self, position: int, keys: Sequence[str], records: Sequence[Record]) -> None:
        if [record_key(r.question, r.reference) for r in records] != list(keys):
            raise StudyError(f"the teacher returned {len(records)} answers that do not match the {len(keys)} problems asked")
        try:
            table = pa.Table.from_pylist([record_to_row(key, record) for key, record in zip(keys, records, strict=True)], RECORD_SCHEMA)
        except UnicodeEncodeError as error:
            raise StudyError(
                f"the teacher returned half of a surrogate pair in {error.object[:60]!r}; its answers must be valid Unicode"
            ) from error
        stem = f"{position:06d}-{digest_of(list(keys))[:12]}"
        self._remove_leftovers(f"{position:06d}")
        about: dict[str, str] = {"format": str(RECORD_FORMAT)}
        tensors = {
            f"{name}.{at}": r.signals[name].contiguous() for at, r in enumerate(records) for name in TENSOR_SIGNALS if name in r.signals
        }
        if tensors:
            data = save(tensors)
            about["tensors_sha256"] = hashlib.sha256(data).hexdigest()
            write_data(self.folder / f"{stem}.safetensors", data)
        table = table.replace_schema_metadata({"primed_heads_records": json.dumps(about)})
        content = pa.BufferOutputStream()
        pq.write_table(table, content, compression="zstd")
        write_named(self.folder / stem, ".parquet", content.getvalue().to_pybytes())

    def _remove_leftovers(self, chunk: str) -> None:
        """Remove what killed processes left of a chunk, whose lock is held: drafts, and tensors without rows."""
        remove_drafts(self.folder, chunk)
        for tensors in self.folder.glob(f"{chunk}-*.safetensors"):
            if not any(self.folder.glob(f"{tensors.stem}-*.parquet")):
                tensors.unlink()

    def _stored_keys(self) -> set[str]:
        """Return the keys of the intact shards."""
        keys: set[str] = set()
        for file in sorted(self.folder.glob("*.parquet")):
            with contextlib.suppress(DamagedError):
                keys.update(shard_keys(file))
        return keys

    def _set_aside(self) -> None:
        """Move damaged shards aside and report them, except those of a chunk that another process works on."""
        for file in sorted(self.folder.glob("*.parquet")):
            if shard_fault(file) is None:
                continue
            with hold_lock(self.folder / f".{file.name.partition('-')[0]}.lock") as held:
                fault = shard_fault(file)
                if not held or fault is None or not file.exists():  # another process is or was at work
                    continue
                print(f"{fault}; it was moved aside and is collected again", file=sys.stderr)
                for part in (file, tensors_of(file)):
                    if part.exists():
                        part.replace(part.with_name(part.name + ".damaged"))

    # --- reading ----------------------------------------------------------------------------------------------------

    def read(self, problems: Sequence[Problem]) -> list[Record]:
        """Return the records of problems, in the order of the problems; hidden states are read when they are used.

        Raises:
            StudyError: the store does not have this group, answers are missing, or two shards disagree.
            DamagedError: a shard is damaged.
        """
        if not self.folder.is_dir():
            raise StudyError(self._missing_message())
        found: dict[str, Record] = {}
        for file in sorted(self.folder.glob("*.parquet")):
            try:
                table = read_shard(file)
            except DamagedError as error:
                raise DamagedError(f"{error}; run collect again: it redoes this shard") from error
            for at, row in enumerate(table.to_pylist()):
                record = row_to_record(row, tensors_of(file), at)
                before = found.setdefault(row["key"], record)
                if (before.response_ids, before.text, before.finish) != (record.response_ids, record.text, record.finish):
                    raise StudyError(
                        f"{file.name} in {self.folder} has another answer to problem {record.index} than another shard; delete one of them"
                    )
        wanted = [record_key(p.question, p.answer) for p in problems]
        missing = [p for key, p in zip(wanted, problems, strict=True) if key not in found]
        if missing:
            raise StudyError(
                f"{self.folder} lacks {len(missing)} of {len(problems)} answers, the first to problem {missing[0].index} "
                f"({missing[0].question[:60]!r}); run collect"
            )
        return [replace(found[key], index=p.index) for key, p in zip(wanted, problems, strict=True)]

    def rows(self) -> tuple[pd.DataFrame, int]:
        """Return the answers of all intact shards as text, one row each, and the number of damaged shards."""
        columns = ["index", "question", "reference", "prompt_ids", "response_ids", "text", "finish"]
        intact, damaged = [], 0
        for file in sorted(self.folder.glob("*.parquet")):
            try:
                intact.append(read_shard(file).select(columns))
            except DamagedError:
                damaged += 1
        return (pa.concat_tables(intact).to_pandas() if intact else pd.DataFrame(columns=columns)), damaged

    def _missing_message(self) -> str:
        """Return the message for a group that the store does not have: its groups, and how the most similar one differs."""
        groups = RecordStore(self.store).groups() if self.store.is_dir() else []
        if not groups:
            return f"{self.store} holds no records; run collect first"
        changes = min((changed_settings(group.identity, self.identity) for group in groups), key=len)
        held = "\n  ".join(_described(group.identity) for group in groups)
        return (
            f"{self.store} holds no records of this teacher, strategy and signal; run collect. It holds\n  {held}\n"
            f"The most similar group differs in\n  " + "\n  ".join(changes)
        )


def _described(identity: Mapping[str, Any]) -> str:
    text = identity.get("strategy", {}).get("text") or "(no text)"
    return f"{identity.get('teacher', {}).get('name', '?')}, {identity.get('signal', {}).get('tier', '?')}: {text[:60]!r}"
