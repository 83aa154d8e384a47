"""Teachers' answers and signals on disk: keyed by their content, written whole or not at all, verified on reading.

A store is a folder. A group in it holds the answers of one teacher under one strategy's text; its folder's name is a hash of what shapes
them. Inside, answers lie in shards: Parquet files, and safetensors files beside them for hidden states and whole distributions. Shards are
cut by the problems' positions, and their names hold a hash of their content, so that damage is seen, a killed run leaves whole shards only,
and a restart writes the same files that an undisturbed run would.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from distill.problems.sets import Problem
from distill.records.record import FORMAT, SCHEMA, TENSORS, Record, record_key, record_of, row_of, tensor_at
from distill.records.shards import (
    digest_of,
    draft_name,
    file_sha256,
    is_intact,
    locked_folder,
    read_shard,
    remove_drafts,
    settle,
    shard_fault,
    shard_keys,
    tensors_of,
    write_named,
)
from distill.settings import changed_settings
from interp.checkpoints.unembedding import OutputHead
from interp.tables.errors import DamagedError, StudyError


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
            DamagedError: no such folder, or a group whose description is damaged.
        """
        if not self.folder.is_dir():
            raise StudyError(f"{self.folder} is no folder of records; `python -m distill collect STUDY.toml` makes one")
        found = []
        for file in sorted(self.folder.glob("*/group.json")):
            try:
                group = RecordGroup(self.folder, json.loads(file.read_text("utf-8"))["identity"])
                if group.folder != file.parent:
                    raise ValueError("it describes another folder than its own")
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DamagedError(f"{file} is damaged ({error}); run collect again: it writes it anew and keeps the answers") from error
            found.append(group)
        return found

    def write_head(self, head: OutputHead, owner: Mapping[str, Any]) -> None:
        """Keeps the output head that turns a teacher's hidden states into logits; once for each teacher.

        Args:
            head: of the teacher.
            owner: the teacher's identity.
        """
        if any(is_intact(file) for file in self._heads(owner)):
            return
        stem = self._head_stem(owner)
        tensors = {"weight": head.weight.detach().cpu().contiguous()}
        if head.bias is not None:
            tensors["bias"] = head.bias.detach().cpu().contiguous()
        about = {"head": json.dumps({"scale": head.scale, "softcap": head.softcap})}  # one key: their order in the file is not fixed
        stem.parent.mkdir(parents=True, exist_ok=True)
        with locked_folder(stem.with_name(f".{stem.name}.lock"), waits=True):
            remove_drafts(stem.parent, stem.name)
            write_named(stem, ".safetensors", lambda draft: save_file(tensors, draft, metadata=about))

    def read_head(self, owner: Mapping[str, Any]) -> OutputHead:
        """The output head of a teacher.

        Raises:
            DamagedError: it is not there, or damaged.
        """
        files = self._heads(owner)
        place = next(filter(is_intact, files), None)
        if place is None and files:
            raise DamagedError(f"{files[0]} is damaged (its SHA-256 does not begin as its name ends); run collect again: it redoes it")
        if place is None:
            raise DamagedError(f"{self._head_stem(owner)}-*.safetensors is missing: the output head of hidden states; run collect again")
        with safe_open(place, "pt") as file:
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
        store: the store's folder.
        identity: see `RecordStore.group`.
    """

    def __init__(self, store: Path, identity: Mapping[str, Any]) -> None:
        self.identity = identity
        self.key = digest_of({"format": FORMAT, **identity})[:16]
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
            StudyError: answers that do not fit the problems.
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
                    with locked_folder(self.folder / f".{chunk[0]:06d}.lock", waits) as ours:
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
            with locked_folder(left) as ours:
                if ours:
                    self._remove_leftovers(left.stem.removeprefix("."))

    def _describe(self) -> None:
        """Writes group.json where it is missing or damaged."""
        place = self.folder / "group.json"
        said = json.dumps({"format": FORMAT, "identity": self.identity}, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        if place.exists() and place.read_bytes() == said.encode():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked_folder(self.folder / ".group.lock", waits=True):
            remove_drafts(self.folder, place.name)
            with draft_name(place) as draft:
                draft.write_bytes(said.encode())
                settle(draft, place)

    def _write(self, position: int, keys: Sequence[str], records: Sequence[Record]) -> None:
        if [record_key(r.question, r.reference) for r in records] != list(keys):
            raise StudyError(f"the teacher gave {len(records)} answers that are not those to the {len(keys)} problems asked")
        try:
            table = pa.Table.from_pylist([row_of(key, record) for key, record in zip(keys, records, strict=True)], SCHEMA)
        except UnicodeEncodeError as error:
            raise StudyError(f"the teacher gave half of a surrogate pair in {error.object[:60]!r}; it must give valid Unicode") from error
        stem = f"{position:06d}-{digest_of(list(keys))[:12]}"
        self._remove_leftovers(f"{position:06d}")
        about: dict[str, str] = {"format": str(FORMAT)}
        tensors = {f"{name}.{at}": r.signals[name].contiguous() for at, r in enumerate(records) for name in TENSORS if name in r.signals}
        if tensors:
            place = self.folder / f"{stem}.safetensors"
            with draft_name(place) as draft:
                save_file(tensors, draft)
                about["tensors_sha256"] = file_sha256(draft)
                settle(draft, place)
        table = table.replace_schema_metadata({"primed_heads_records": json.dumps(about)})
        write_named(self.folder / stem, ".parquet", lambda draft: pq.write_table(table, draft, compression="zstd"))

    def _remove_leftovers(self, chunk: str) -> None:
        """Removes what killed processes have left of a chunk, whose lock must be held: drafts, and tensors whose rows never came."""
        remove_drafts(self.folder, chunk)
        for tensors in self.folder.glob(f"{chunk}-*.safetensors"):
            if not any(self.folder.glob(f"{tensors.stem}-*.parquet")):
                tensors.unlink()

    def _whole(self) -> set[str]:
        """Keys of the whole shards."""
        keys: set[str] = set()
        for file in sorted(self.folder.glob("*.parquet")):
            with contextlib.suppress(StudyError):
                keys.update(shard_keys(file))
        return keys

    def _set_aside(self) -> None:
        """Moves damaged shards aside, and a line says so; not where another process has the chunk at work."""
        for file in sorted(self.folder.glob("*.parquet")):
            if shard_fault(file) is None:
                continue
            with locked_folder(self.folder / f".{file.name.partition('-')[0]}.lock") as ours:
                fault = shard_fault(file)
                if not ours or fault is None or not file.exists():  # another process is or was here
                    continue
                print(f"{fault}; it is moved aside and collected again", file=sys.stderr)
                for part in (file, tensors_of(file)):
                    if part.exists():
                        part.replace(part.with_name(part.name + ".damaged"))

    # --- reading ----------------------------------------------------------------------------------------------------

    def read(self, problems: Sequence[Problem]) -> list[Record]:
        """The records of problems, in their order, however the store has them; hidden states are read when they are asked for.

        Raises:
            DamagedError: records that are missing or damaged, or a group that the store does not have.
        """
        if not self.folder.is_dir():
            raise StudyError(self._not_here())
        found: dict[str, Record] = {}
        for file in sorted(self.folder.glob("*.parquet")):
            try:
                table = read_shard(file)
            except DamagedError as error:
                raise DamagedError(f"{error}; run collect again: it redoes this file") from error
            for at, row in enumerate(table.to_pylist()):
                record = record_of(row, tensors_of(file), at)
                before = found.setdefault(row["key"], record)
                if (before.response_ids, before.text, before.finish) != (record.response_ids, record.text, record.finish):
                    raise StudyError(
                        f"{file.name} in {self.folder} answers problem {record.index} otherwise than another shard; delete one"
                    )
        wanted = [record_key(p.question, p.answer) for p in problems]
        missing = [p for key, p in zip(wanted, problems, strict=True) if key not in found]
        if missing:
            raise StudyError(
                f"{self.folder} lacks {len(missing)} of {len(problems)} answers, the first to problem {missing[0].index} "
                f"({missing[0].question[:60]!r}); run collect"
            )
        return [tensor_at(found[key], p) for key, p in zip(wanted, problems, strict=True)]

    def rows(self) -> tuple[pd.DataFrame, int]:
        """The answers of all whole shards as text, a row each, and the number of damaged shards."""
        columns = ["index", "question", "reference", "prompt_ids", "response_ids", "text", "finish"]
        whole, damaged = [], 0
        for file in sorted(self.folder.glob("*.parquet")):
            try:
                whole.append(read_shard(file).select(columns))
            except DamagedError:
                damaged += 1
        return (pa.concat_tables(whole).to_pandas() if whole else pd.DataFrame(columns=columns)), damaged

    def _not_here(self) -> str:
        """What the store has instead, and what the nearest group has otherwise."""
        groups = RecordStore(self.store).groups() if self.store.is_dir() else []
        if not groups:
            return f"{self.store} holds no records; run collect first"
        changes = min((changed_settings(group.identity, self.identity) for group in groups), key=len)
        held = "\n  ".join(_described(group.identity) for group in groups)
        return (
            f"{self.store} holds no records of this teacher, strategy and signal; run collect. It holds\n  {held}\n"
            f"The nearest differs in\n  " + "\n  ".join(changes)
        )


def _described(identity: Mapping[str, Any]) -> str:
    text = identity.get("strategy", {}).get("text") or "(no text)"
    return f"{identity.get('teacher', {}).get('name', '?')}, {identity.get('signal', {}).get('tier', '?')}: {text[:60]!r}"
