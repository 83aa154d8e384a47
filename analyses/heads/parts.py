"""The parts of an unfinished head run: one batch of examples each, written as soon as it is recorded.

A part is two files in the draft of the results folder (`interp.tables.results`), `part-N.parquet` with the tokens and then
`part-N.safetensors` with the values. The second file completes the part, so an interrupted run loses at most the batch it was recording.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from interp.tables.errors import DamagedError, InputError, OptionError
from interp.tables.files import write_file
from interp.tables.heads import INPUTS
from interp.tables.results import Kind, ResultsFolder
from interp.tables.schema import read, write
from interp.tables.versions import current

HEAD_RUN = Kind(
    noun="head run", kinds=(None,), names=r"part-\d+\.(safetensors|parquet)|\..*-part-.*|\w+\.parquet", temporary=("part-*", ".*-part-*")
)
"""The results of `analyses.heads`."""


@dataclass(frozen=True)
class Part:
    """The results of one batch.

    Attributes:
        examples: numbers of the examples.
        values: [example, layer, head, measure, region].
        counts: number of queries behind each value, same shape.
        inputs: rows of the `inputs` table.
        n_truncated: number of generated answers that were truncated.
        blocked: layers that the blocked backend recorded because the run's own backend cannot express them.
    """

    examples: list[int]
    values: np.ndarray
    counts: np.ndarray
    inputs: pd.DataFrame
    n_truncated: int = 0
    blocked: tuple[int, ...] = ()


class Parts:
    """The parts of a head run.

    Args:
        results: the run's results folder; parts are files of its draft.
    """

    def __init__(self, results: ResultsFolder) -> None:
        self._draft = results.draft

    def _paths(self, number: int) -> tuple[Path, Path]:
        return self._draft / f"part-{number:05d}.safetensors", self._draft / f"part-{number:05d}.parquet"

    def has(self, number: int) -> bool:
        """Return whether a part is complete; a note is printed for a damaged one, which has to be recorded again."""
        if not self._paths(number)[0].is_file():
            return False
        try:
            self.read(number)
        except DamagedError as error:
            print(f"note: {error}; it is recorded again", file=sys.stderr)
            return False
        return True

    def any(self) -> bool:
        """Return whether some part was finished."""
        return any(True for _ in self._draft.glob("part-*.safetensors"))

    def write(self, number: int, part: Part) -> None:
        """Write one part.

        Raises:
            OptionError: no space or no permission.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        values, inputs = self._paths(number)
        tensors = {
            "examples": np.asarray(part.examples, np.int64),
            "values": np.ascontiguousarray(part.values, np.float64),
            "counts": np.ascontiguousarray(part.counts, np.int32),
            "n_truncated": np.asarray([part.n_truncated], np.int64),
            "blocked": np.asarray(part.blocked, np.int64),
        }
        try:
            write(part.inputs, INPUTS, inputs)
            try:
                write_file(values, lambda draft: save_file(tensors, draft))  # last: this file completes the part
            except BaseException:
                inputs.unlink(missing_ok=True)
                raise
        except (SafetensorError, OSError) as error:
            raise OptionError(
                f"{self._draft}: part {number} cannot be written ({error}); --resume continues from the finished parts"
            ) from error

    def read(self, number: int) -> Part:
        """Return one part.

        Raises:
            DamagedError: the part is incomplete.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        values, inputs = self._paths(number)
        try:
            found = current(load_file(values))
            return Part(
                examples=found["examples"].tolist(),
                values=found["values"],
                counts=found["counts"],
                inputs=read(inputs, INPUTS),
                n_truncated=int(found["n_truncated"][0]),
                blocked=tuple(found["blocked"].tolist()),
            )
        except (SafetensorError, InputError, OSError, KeyError) as error:
            raise DamagedError(f"part {number} of {self._draft} is damaged ({error})") from error
