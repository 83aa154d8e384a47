"""The head runs behind a comparison: folders of `analyses.heads`, checkpoints that are measured first, or a whole study of `distill`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyses.models.named import Named
from interp.tables.errors import InputError
from interp.tables.heads import INPUTS, Run, read_values
from interp.tables.results import read_run_json
from interp.tables.schema import read

if TYPE_CHECKING:
    pass


# --- reading --------------------------------------------------------------------------------------------------------


def read_head_run(model: Named) -> Run:
    """A head run's values and tokens.

    Raises:
        InputError: a table that is missing, damaged or of another version; the message names it.
    """
    assert model.folder is not None
    try:
        values = read_values(model.folder / "examples.parquet")
        inputs = read(model.folder / "inputs.parquet", INPUTS)
    except InputError as error:
        raise InputError(f"{error}; measure {model.name} again with python -m analyses.heads") from error
    from dataclasses import replace

    return Run(replace(values, model=model.name), inputs, model.condition, model.seed)


def same_texts(models: Sequence[Named]) -> None:
    """Head runs of one comparison read their texts alike.

    Raises:
        InputError: one read the gold solutions and another its own answers, or through another template.
    """
    first, *others = [(m, read_run_json(m.folder)) for m in models if m.folder is not None]
    for model, run in others:
        for key, what in (("text", "--text"), ("chat", "the chat template")):
            if run[key] != first[1][key]:
                raise InputError(
                    f"{first[0].name} was measured with {what} {first[1][key]}, {model.name} with {run[key]}: measure one again"
                )
    if first[1]["text"] == "generated" and others:
        raise InputError("the runs read each model's own answers (--text generated), which differ; measure them with --text gold")
