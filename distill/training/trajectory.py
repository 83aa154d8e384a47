# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Heads while they learn: a student's head table on a few fixed texts, at chosen steps of its training, or at checkpoints on disk.

The recording is no part of the training: weights, modes and random numbers are afterwards what they were, so the adapter is the same,
byte for byte, with it and without it.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from distill.problems.sets import Problem
from interp.attention.seam import attention_layers
from interp.checkpoints.loading import Checkpoint
from interp.checkpoints.opening import open_checkpoint
from interp.measures.catalog import load_measures
from interp.recording.recorder import record
from interp.tables.errors import NonFiniteError, RecordingError, StudyError
from interp.tables.schema import REGIONS, read, write
from interp.tables.shifts import TRAJECTORY
from interp.tokens import Tokens, annotate

FILE = "trajectory.parquet"
"""In a student's folder: the schema is `interp.tables.shifts.TRAJECTORY`."""


PARTS = "heads"
"""Folder in an unfinished student's: a table for each recorded step."""


KEY = "key.json"
"""Beside the parts: which texts and measures they are of."""


BATCH_TOKENS = 2048
"""Padded tokens of one recorded forward pass, at most (one text may be longer)."""


FEWEST_STEPS = 10
"""Between two recordings."""


REGION = "response"
"""Of the numbers that go to trackers."""


SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def recording_steps(total: int, records: int) -> list[int]:
    """Steps at which to record, evenly from 0 to the last, at least `FEWEST_STEPS` apart; the first and the last always.

    Args:
        total: steps of the training.
        records: recordings, 2 or more; a short training has fewer.
    """
    gaps = max(1, min(records - 1, total // FEWEST_STEPS))
    return sorted({number * total // gaps for number in range(gaps + 1)})


def fixed_texts(checkpoint: Checkpoint, problems: Sequence[Problem], chat: bool | None = None) -> Tokens:
    """Questions and their reference solutions as annotated texts, the same for every student and every step.

    Args:
        checkpoint: whose tokenizer and positions they must fit.
        problems: the texts.
        chat: through the chat template; None: where the tokenizer has one.

    Raises:
        StudyError: a text is longer than the model's positions.
        InputError: the tokenizer or its template cannot be annotated.
    """
    tokens = annotate(
        checkpoint.tokenizer, [p.question for p in problems], [p.answer for p in problems], chat=chat, examples=[p.index for p in problems]
    )
    limit = checkpoint.position_limit
    longest = max(tokens.texts, key=len)
    if limit is not None and len(longest) > limit:
        raise StudyError(f"problem {longest.example} has {len(longest)} tokens, the model has {limit} positions; take shorter texts")
    return tokens


def record_heads(model: Any, tokens: Tokens, measures: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Every head's mean over texts; a text counts once whatever its length. The model is afterwards as it was.

    Args:
        model: as it stands in training, on one device or split over several, but not sharded.
        tokens: from `fixed_texts`.
        measures: names.

    Returns:
        Means and the number of texts behind each, both [layer, head, measure, region]; NaN and 0 where undefined for every text.

    Raises:
        RecordingError: an architecture that cannot be recorded.
        NonFiniteError: NaN in attention.
    """
    chosen = load_measures(measures)
    root = next(m for m in model.modules() if isinstance(m, PreTrainedModel))
    values = []
    with _at_rest(model, root.device):
        for batch in _batches([len(text) for text in tokens.texts]):
            part = tokens.select(batch)
            inputs = {name: tensor.to(root.device) for name, tensor in part.inputs.items()}
            with record(model, part, chosen) as heads:
                root.base_model(**inputs, use_cache=False)  # the decoder alone: no logits
            values.append(heads.totals.values()[0])
    whole = np.concatenate(values)
    defined = np.isfinite(whole)
    with np.errstate(invalid="ignore"):
        return np.where(defined, whole, 0.0).sum(0) / defined.sum(0), defined.sum(0)


@contextmanager
def _at_rest(model: Any, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; each module's mode and the random numbers' state come back."""
    modes = [(module, module.training) for module in model.modules()]
    # not inference_mode: a buffer that is made inside could then not be trained with
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Which texts go together: longest first, as many as the budget of padded tokens allows."""
    batches: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= BATCH_TOKENS:
            batches[-1].append(at)
        else:
            batches.append([at])
    return batches


def trajectory_rows(
    name: str, step: int, layers: Sequence[int], measures: Sequence[str], means: np.ndarray, counts: np.ndarray
) -> pd.DataFrame:
    """Rows of `TRAJECTORY` for one step, from what `record_heads` gives."""
    axes = [[name], [step], layers, range(means.shape[1]), measures, REGIONS]
    frame = pd.MultiIndex.from_product(axes, names=list(TRAJECTORY.key)).to_frame(index=False)
    return frame.assign(mean=means.ravel(), n_examples=counts.ravel())


class HeadTrajectory(TrainerCallback):
    """Records the heads before the first step, at chosen steps and after the last; the first process records, the others train on.

    Tables lie in the unfinished student's folder, each as soon as it is there: a run that goes on from a checkpoint keeps those up to
    it, and drops later ones. A sharded model (FSDP, DeepSpeed) and one that the recorder refuses are not recorded: one line says so, and
    the training goes on, as it does where attention is no longer finite (the training then says so itself).

    Args:
        tokens: from `fixed_texts`.
        measures: names.
        name: the student's, for the table.
        records: how many recordings (see `recording_steps`), or the steps themselves.

    Attributes:
        log: takes a few numbers at each recording: a Trainer's `log`, so that they reach its trackers.
        seconds: spent on recording so far.

    Raises:
        InputError: an unknown measure.
        StudyError: fewer than two recordings.
    """

    def __init__(self, tokens: Tokens, measures: Sequence[str], name: str, records: int | Sequence[int] = 6) -> None:
        if isinstance(records, int) and records < 2:
            raise StudyError(f"records is {records}; at least 2 are needed, the first and the last step")
        self.tokens, self.measures, self.name, self.records = tokens, tuple(load_measures(measures)), name, records
        self.log: Callable[[dict[str, float]], None] = lambda _: None
        self.seconds = self._took = 0.0
        self._steps: frozenset[int] = frozenset()

    # --- events of the Trainer --------------------------------------------------------------------------------------

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **keywords: Any) -> None:
        """Keeps what was recorded up to the checkpoint, and records what is missing here: step 0 is the base's."""
        if not state.is_world_process_zero:
            return
        if PartialState().distributed_type in SHARDED:
            note("the weights are sharded over processes; python -m analyses.heads measures the finished student")
            return
        self._steps = frozenset(
            recording_steps(state.max_steps, self.records) if isinstance(self.records, int) else {0, state.max_steps, *self.records}
        )
        folder, model = Path(args.output_dir or "."), keywords["model"]
        self._keep(folder, state.global_step)
        now = state.global_step
        if now > 0 and not _part(folder, 0).exists():  # recording begins in the midst of the training
            with model.disable_adapter():
                self._record(folder, model, 0)
        known = _part(folder, now).exists()
        if now in self._steps and not known:
            self._record(folder, model, now)
        if now == 0 or not known:  # the checkpoint's log has the line of what was known
            self._tell(folder, now, control)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **keywords: Any) -> None:
        """Records where the step is one of those chosen."""
        if state.global_step in self._steps:
            folder = Path(args.output_dir or ".")
            self._record(folder, keywords["model"], state.global_step)
            self._tell(folder, state.global_step, control)

    # --- what is kept -----------------------------------------------------------------------------------------------

    def _keep(self, folder: Path, step: int) -> None:
        """Drops parts of other texts or measures, and those after the step."""
        parts = folder / PARTS
        ids = [text.ids.tolist() for text in self.tokens.texts]
        key = json.dumps({"texts_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(), "measures": self.measures})
        if not (parts / KEY).is_file() or (parts / KEY).read_text("utf-8") != key:
            shutil.rmtree(parts, ignore_errors=True)
            parts.mkdir(parents=True)
            (parts / KEY).write_text(key, "utf-8")
        for file in parts.glob("step-*.parquet"):
            if int(file.stem.removeprefix("step-")) > step:
                file.unlink()

    def _record(self, folder: Path, model: Any, step: int) -> None:
        """One table, whole or not at all."""
        started = time.perf_counter()
        try:
            means, counts = record_heads(model, self.tokens, self.measures)
        except (RecordingError, NonFiniteError) as error:
            note(f"step {step}: {error}")
            self._steps = frozenset()
            return
        file = _part(folder, step)
        rows = trajectory_rows(self.name, step, attention_layers(model.config), self.measures, means, counts)
        write(rows, TRAJECTORY, file.with_suffix(".draft"))
        file.with_suffix(".draft").replace(file)
        self._took = time.perf_counter() - started
        self.seconds += self._took

    def _tell(self, folder: Path, step: int, control: Any) -> None:
        """A line of the Trainer's log, from the step's table."""
        if not (_part(folder, step).exists() and _part(folder, 0).exists()):
            return
        now, first = (read(_part(folder, number), TRAJECTORY) for number in (step, 0))
        due = control.should_log
        self.log({**summary(now, first), "heads/seconds": round(self._took, 3)})
        control.should_log = due  # the Trainer takes this line for the one that is due: the loss's would be left out

    def files(self, folder: Path) -> dict[str, bytes]:
        """The whole table as a file of the student's, from an unfinished student's folder; nothing where nothing was recorded."""
        parts = sorted((folder / PARTS).glob("step-*.parquet"))
        if not parts or not (self._steps or self.seconds):  # parts that were not looked at may be of other texts
            return {}
        joined = pd.concat([read(file, TRAJECTORY) for file in parts], ignore_index=True)
        write(joined, TRAJECTORY, folder / PARTS / FILE)
        return {FILE: (folder / PARTS / FILE).read_bytes()}


def note(why: str) -> None:
    """A line for people: the training does without."""
    print(f"note: heads are not recorded: {' '.join(why.split())}", file=sys.stderr)


def _part(folder: Path, step: int) -> Path:
    return folder / PARTS / f"step-{step:06d}.parquet"


def summary(now: pd.DataFrame, first: pd.DataFrame) -> dict[str, float]:
    """A few numbers for trackers, of the responses' queries; what is undefined is left out.

    `heads/MEASURE` is the mean over all heads; `heads/moved` the mean over heads, then measures, of |now - first| / s, s being the
    standard deviation between heads at step 0: 1 says that heads moved as far as they are apart.

    Args:
        now: one step's rows of `interp.tables.shifts.TRAJECTORY`.
        first: step 0's, in the same order.
    """
    numbers, moved = {}, []
    for measure in now["measure"].unique():
        rows = ((now["measure"] == measure) & (now["region"] == REGION)).to_numpy()
        after, before = (frame["mean"].to_numpy()[rows] for frame in (now, first))
        both = np.isfinite(after) & np.isfinite(before)
        if both.any():
            numbers[f"heads/{measure}"] = float(after[both].mean())
            spread = before[both].std()
            if spread > 0:
                moved.append(np.abs(after - before)[both].mean() / spread)
    return {**numbers, **({"heads/moved": float(np.mean(moved))} if moved else {})}


# --- on disk --------------------------------------------------------------------------------------------------------


def read_trajectory(folder: Path) -> pd.DataFrame:
    """A finished student's table: rows of `interp.tables.shifts.TRAJECTORY`, steps ascending.

    Raises:
        StudyError: no such file, or steps that do not hold the same heads, measures and regions.
        InputError: not a readable table of this schema.
    """
    file = folder / FILE
    if not file.is_file():
        raise StudyError(
            f"{folder} has no {FILE}: it was trained with heads.records = 0, with sharded weights, or before heads were followed; "
            "checkpoint-N folders, where it has some, can be measured instead"
        )
    frame = read(file, TRAJECTORY)
    check_trajectory(frame, str(file))
    return frame.sort_values("step", kind="stable", ignore_index=True)


def check_trajectory(frame: pd.DataFrame, place: str) -> None:
    """Refuses several students, a negative step, steps of different heads, and a mean that is not finite where texts are behind it.

    Raises:
        StudyError: the message names the place.
    """
    if frame["model"].nunique() != 1:
        raise StudyError(f"{place}: {frame['model'].nunique()} students; a trajectory is of one")
    if (frame["step"] < 0).any():
        raise StudyError(f"{place}: step {frame['step'].min()}; steps are counted from 0")
    cells = ["layer", "head", "measure", "region"]
    grids = {step: frozenset(rows[cells].astype(str).itertuples(index=False, name=None)) for step, rows in frame.groupby("step")}
    odd = [step for step, grid in grids.items() if grid != next(iter(grids.values()))]
    if odd:
        raise StudyError(f"{place}: step {odd[0]} holds other heads, measures or regions than step {next(iter(grids))}")
    wrong = (frame["n_examples"] > 0) != np.isfinite(frame["mean"])
    if wrong.any():
        raise StudyError(
            f"{place}: {int(wrong.sum())} rows are measured but not finite, or finite but not measured: {frame[wrong].iloc[0].to_dict()}"
        )


def checkpoint_folders(folder: Path) -> list[Path]:
    """PEFT checkpoints as a Trainer leaves them, `checkpoint-N/` with an adapter_config.json, by ascending N.

    Raises:
        StudyError: there is none.
    """
    found = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))}
    adapters = [found[step] for step in sorted(found) if (found[step] / "adapter_config.json").is_file()]
    if not adapters:
        raise StudyError(
            f"{folder} holds no checkpoint-N with an adapter_config.json ({len(found)} without); name the folder that the Trainer wrote to"
        )
    return adapters


def record_checkpoints(
    folders: Sequence[Path],
    problems: Sequence[Problem],
    measures: Sequence[str],
    *,
    name: str | None = None,
    base: str | None = None,
    chat: bool | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> pd.DataFrame:
    """The same table from checkpoints that lie on disk; step 0 is their base. Each is opened, and checked, by itself.

    Args:
        folders: from `checkpoint_folders`; their numbers are the steps.
        problems: whose questions and reference solutions are read.
        measures: names.
        name: the student's; None takes the name of the folder that holds them.
        base: of the adapters; None takes what each names.
        chat: through the chat template; None: where the tokenizer has one.
        device: as `interp.checkpoints.opening.open_checkpoint`.
        dtype: likewise.
        trust_remote_code: likewise.

    Raises:
        StudyError: no folder, or a text that is too long.
        CheckpointError: a checkpoint that cannot be opened, or that changes nothing.
        RecordingError: an architecture that cannot be recorded.
    """
    if not folders:
        raise StudyError("no checkpoint is named; give at least one checkpoint-N folder")
    names = list(load_measures(measures))
    called = name or folders[0].resolve().parent.name.removesuffix(".partial")
    frames: list[pd.DataFrame] = []
    for folder in folders:
        opened = open_checkpoint(folder, base=base, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        tokens, layers = fixed_texts(opened, problems, chat), attention_layers(opened.model.config)
        if not frames:
            with opened.model.disable_adapter():
                frames.append(trajectory_rows(called, 0, layers, names, *record_heads(opened.model, tokens, names)))
        step = int(folder.name.rsplit("-", 1)[1])
        frames.append(trajectory_rows(called, step, layers, names, *record_heads(opened.model, tokens, names)))
        del opened
        gc.collect()  # one model at a time
    joined = pd.concat(frames, ignore_index=True)
    check_trajectory(joined, called)
    return joined
