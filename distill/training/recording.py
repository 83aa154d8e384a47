# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Record a student's heads during its training.

Recording does not influence the training: weights, modes and random numbers are restored afterwards, so the adapter is byte for byte the
same with and without it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import TrainerCallback, TrainingArguments

from distill.training.trajectory import TRAJECTORY_FILE, record_heads, trajectory_rows
from interp.attention.seam import attention_layers
from interp.measures.catalog import load_measures
from interp.tables.errors import NonFiniteError, RecordingError, StudyError
from interp.tables.files import write_text
from interp.tables.schema import read, write
from interp.tables.shifts import TRAJECTORY
from interp.tokens import Tokens

_PARTS = "heads"
"""Folder in an unfinished student's folder, with a table for each recorded step."""

_PARTS_KEY = "key.json"
"""In that folder: which texts and measures the tables are of."""

_FEWEST_STEPS = 10
"""Smallest number of steps between two recordings."""

_TRACKED_REGION = "response"
"""Region of the queries whose numbers go to trackers."""

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def recording_steps(total: int, records: int) -> list[int]:
    """Return the steps at which to record, evenly spaced from 0 to the last and at least 10 apart, always with the first and the last.

    Args:
        total: steps of the training.
        records: number of recordings, at least 2; a short training has fewer.
    """
    gaps = max(1, min(records - 1, total // _FEWEST_STEPS))
    return sorted({number * total // gaps for number in range(gaps + 1)})


class HeadTrajectory(TrainerCallback):
    """Record the heads before the first step, at chosen steps and after the last, on the first process.

    Each table is written to the unfinished student's folder as soon as it is complete. A run that resumes from a checkpoint keeps the
    tables up to that checkpoint and drops later ones. If the weights are sharded (FSDP, DeepSpeed), if the recorder refuses the model, or
    if attention is not finite, a line reports that heads are not recorded, and training continues.

    Args:
        tokens: from `distill.training.trajectory.fixed_texts`.
        measures: names of the measures.
        name: name of the student in the table.
        records: number of recordings (see `recording_steps`), or the steps themselves.

    Attributes:
        log: receives a few numbers at each recording: the Trainer's `log`, so that they reach its trackers.
        seconds: time spent on recording so far.

    Raises:
        InputError: a measure is unknown.
        StudyError: there are fewer than two recordings.
    """

    def __init__(self, tokens: Tokens, measures: Sequence[str], name: str, records: int | Sequence[int] = 6) -> None:
        if isinstance(records, int) and records < 2:
            raise StudyError(f"records is {records}; at least 2 are needed, the first and the last step")
        self.tokens, self.measures, self.name, self.records = tokens, tuple(load_measures(measures)), name, records
        self.log: Callable[[dict[str, float]], None] = lambda _: None
        self.seconds = self._last_seconds = 0.0
        self._steps: frozenset[int] = frozenset()

    # --- events of the Trainer --------------------------------------------------------------------------------------

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **keywords: Any) -> None:
        """Keep what was recorded up to the checkpoint, and record what is missing at this step; step 0 is the base."""
        if not state.is_world_process_zero:
            return
        if PartialState().distributed_type in _SHARDED:
            report_unrecorded("the weights are sharded over processes; python -m analyses.heads measures the finished student")
            return
        self._steps = frozenset(
            recording_steps(state.max_steps, self.records) if isinstance(self.records, int) else {0, state.max_steps, *self.records}
        )
        folder, model, step = Path(args.output_dir or "."), keywords["model"], state.global_step
        self._keep(folder, step)
        if step > 0 and not _part(folder, 0).exists():  # recording starts in the middle of the training
            with model.disable_adapter():
                self._record(folder, model, 0)
        recorded = _part(folder, step).exists()
        if step in self._steps and not recorded:
            self._record(folder, model, step)
        if step == 0 or not recorded:  # otherwise the checkpoint's log has the line
            self._log_numbers(folder, step, control)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **keywords: Any) -> None:
        """Record if the step is one of those chosen."""
        if state.global_step in self._steps:
            folder = Path(args.output_dir or ".")
            self._record(folder, keywords["model"], state.global_step)
            self._log_numbers(folder, state.global_step, control)

    # --- tables of single steps -------------------------------------------------------------------------------------

    def _keep(self, folder: Path, step: int) -> None:
        """Drop tables of other texts or measures, and those after the step."""
        parts = folder / _PARTS
        ids = [text.ids.tolist() for text in self.tokens.texts]
        key = json.dumps({"texts_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(), "measures": self.measures})
        if not (parts / _PARTS_KEY).is_file() or (parts / _PARTS_KEY).read_text("utf-8") != key:
            shutil.rmtree(parts, ignore_errors=True)
            parts.mkdir(parents=True)
            write_text(parts / _PARTS_KEY, key)
        for file in parts.glob("step-*.parquet"):
            if int(file.stem.removeprefix("step-")) > step:
                file.unlink()

    def _record(self, folder: Path, model: Any, step: int) -> None:
        """Write the table of one step."""
        started = time.perf_counter()
        try:
            means, counts = record_heads(model, self.tokens, self.measures)
        except (RecordingError, NonFiniteError) as error:
            report_unrecorded(f"step {step}: {error}")
            self._steps = frozenset()
            return
        rows = trajectory_rows(self.name, step, attention_layers(model.config), self.measures, means, counts)
        write(rows, TRAJECTORY, _part(folder, step))
        self._last_seconds = time.perf_counter() - started
        self.seconds += self._last_seconds

    def _log_numbers(self, folder: Path, step: int, control: Any) -> None:
        """Write a line of the Trainer's log from the step's table."""
        if not (_part(folder, step).exists() and _part(folder, 0).exists()):
            return
        now, first = (read(_part(folder, number), TRAJECTORY) for number in (step, 0))
        due = control.should_log
        self.log({**tracked_numbers(now, first), "heads/seconds": round(self._last_seconds, 3)})
        control.should_log = due  # the Trainer would take this line for the one with the loss, and leave that out

    def files(self, folder: Path) -> dict[str, bytes]:
        """Return the complete table as a file for the student's folder; nothing if nothing was recorded.

        Args:
            folder: folder of the unfinished student.
        """
        parts = sorted((folder / _PARTS).glob("step-*.parquet"))
        if not parts or not (self._steps or self.seconds):  # tables that were not checked may be of other texts
            return {}
        joined = pd.concat([read(file, TRAJECTORY) for file in parts], ignore_index=True)
        table = folder / _PARTS / TRAJECTORY_FILE
        write(joined, TRAJECTORY, table)
        return {TRAJECTORY_FILE: table.read_bytes()}


def report_unrecorded(reason: str) -> None:
    """Print that heads are not recorded, and why; training continues without it."""
    print(f"note: heads are not recorded: {' '.join(reason.split())}", file=sys.stderr)


def _part(folder: Path, step: int) -> Path:
    return folder / _PARTS / f"step-{step:06d}.parquet"


def tracked_numbers(now: pd.DataFrame, first: pd.DataFrame) -> dict[str, float]:
    """Return a few numbers for trackers, over the queries of responses; undefined numbers are left out.

    `heads/MEASURE` is the mean over all heads. `heads/moved` is the mean over heads, then over measures, of |now - first| / s, where s is
    the standard deviation between heads at step 0: at 1, heads have moved as far as they differ from each other.

    Args:
        now: rows of `interp.tables.shifts.TRAJECTORY` of one step.
        first: rows of step 0, in the same order.
    """
    numbers, moved = {}, []
    for measure in now["measure"].unique():
        rows = ((now["measure"] == measure) & (now["region"] == _TRACKED_REGION)).to_numpy()
        after, before = (frame["mean"].to_numpy()[rows] for frame in (now, first))
        both = np.isfinite(after) & np.isfinite(before)
        if both.any():
            numbers[f"heads/{measure}"] = float(after[both].mean())
            spread = before[both].std()
            if spread > 0:
                moved.append(np.abs(after - before)[both].mean() / spread)
    return {**numbers, **({"heads/moved": float(np.mean(moved))} if moved else {})}
