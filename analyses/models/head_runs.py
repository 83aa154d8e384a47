"""The head runs that a comparison reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analyses.models.named import NamedModel, folder_of
from interp.tables.errors import InputError
from interp.tables.heads import INPUTS, ModelRun, read_values
from interp.tables.results import read_run_json
from interp.tables.schema import read


def read_model_run(model: NamedModel) -> ModelRun:
    """Return a head run's values and tokens.

    Raises:
        InputError: a table is missing, damaged or of another version; the message names it.
    """
    folder = folder_of(model)
    try:
        values = read_values(folder / "examples.parquet")
        inputs = read(folder / "inputs.parquet", INPUTS)
    except InputError as error:
        raise InputError(f"{error}; measure {model.name} again with python -m analyses.heads") from error
    return ModelRun(replace(values, model=model.name), inputs, model.condition, model.seed)


def check_same_texts(models: Sequence[NamedModel]) -> None:
    """Raise if head runs of one comparison read different kinds of text.

    Raises:
        InputError: one read the reference solutions and another its own answers, or only one used the chat template.
    """
    first, *others = [(m, read_run_json(m.folder)) for m in models if m.folder is not None]
    for model, run in others:
        for key, what in (("text", "--text"), ("chat", "the chat template")):
            if run[key] != first[1][key]:
                raise InputError(
                    f"{first[0].name} was measured with {what} {first[1][key]}, {model.name} with {run[key]}: measure one again"
                )
    if first[1]["text"] == "generated" and others:
        raise InputError("the runs read each model's own answers (--text generated), which differ; measure them with --text reference")
