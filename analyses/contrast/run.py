"""Find the heads that differ between a model's right and wrong answers, and between models that do and do not solve a problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from analyses.command import say
from analyses.contrast.options import ContrastConfig
from analyses.contrast.result import CONTRAST_FOLDER, ContrastResult
from interp.tables.errors import InputError
from interp.tables.results import ResultsFolder

if TYPE_CHECKING:
    import pandas as pd

    from analyses.models.named import NamedModel
    from distill.problems.sets import Problem


def contrast_answers(options: ContrastConfig, *, command: str = "analyses.contrast.run.contrast_answers") -> ContrastResult:
    """Return which heads differ between right and wrong answers, after writing tables and figures to `options.out`.

        from analyses.contrast.options import ContrastConfig
        from analyses.contrast.run import contrast_answers

        result = contrast_answers(ContrastConfig(models=("runs/student-generated",)))
        result.contrast.query("q < 0.05")

    Models without a finished head run are measured on their own answers first. Their head runs are kept in the results folder, also if
    the contrast is interrupted.

    Args:
        options: what to contrast, and where the results go.
        command: recorded in run.json.

    Raises:
        PrimedHeadsError: options, models, head runs, problems or results folder cannot be used as they are, or there are too few right
            or wrong answers; the graded answers are kept in that case, and the message says where.
    """
    from analyses.contrast.head_runs import check_head_runs, complete_options
    from analyses.models.measuring import has_new_head_runs
    from analyses.models.named import find_models

    models = find_models(options.models, options.base)
    _check(options, models)
    options, problems = complete_options(options, models)
    check_head_runs(options, models, problems)
    results = ResultsFolder(options.out, CONTRAST_FOLDER, force=options.force, resume=True)
    try:
        results.clear(keep=CONTRAST_FOLDER.carried)  # tables of an interrupted call
        result = _contrast(options, models, problems, results, command)
    except BaseException:
        results.abandon(keep=has_new_head_runs(results) or (results.draft / "answers.parquet").is_file())
        raise
    if options.figures:
        from figures.contrast.draw import draw_contrast

        say("drawing figures")
        draw_contrast(result.folder)
    return result


def _check(options: ContrastConfig, models: Sequence[NamedModel]) -> None:
    """Raise for what can be known to be wrong before anything is measured."""
    from distill.problems.grading import check_grader
    from interp.checkpoints.opening import identify
    from interp.tables.contrast import PAIRED

    check_grader(options.grader)
    if not models:
        raise InputError("there is no model to contrast; name at least one")
    names = [m.name for m in models]
    repeated = next((name for name in names if names.count(name) > 1 or name == PAIRED), None)
    if repeated is not None:
        raise InputError(
            f"two models are called {repeated!r}; measure one of them with python -m analyses.heads --text generated --name OTHER, and "
            "name its run"
        )
    for model in models:
        if model.folder is None and model.source is not None:
            identify(model.source, trust_remote_code=options.trust_remote_code)


def _contrast(
    options: ContrastConfig, models: Sequence[NamedModel], problems: Sequence[Problem], results: ResultsFolder, command: str
) -> ContrastResult:
    """Measure the models, grade their answers, test every head, and publish the results."""
    import numpy as np
    import pandas as pd

    from analyses.contrast.about import describe_contrast_run
    from analyses.contrast.answers import graded_answers
    from analyses.contrast.head_runs import check_head_runs, measure_answers, with_common_measures
    from analyses.contrast.statistics import contrast_table
    from analyses.models.head_runs import read_model_run
    from analyses.models.named import folder_of
    from analyses.models.opening import OpenModels
    from interp.tables.contrast import ANSWERS, CONTRAST
    from interp.tables.results import read_run_json

    opened = OpenModels(models, options)
    models = [m if m.folder else replace(m, folder=measure_answers(options, m, opened, results)) for m in models]
    check_head_runs(options, models, problems)
    say("grading answers")
    runs = with_common_measures([read_model_run(m) for m in models])
    answers = [graded_answers(run, read_run_json(folder_of(m)), problems, options.grader) for run, m in zip(runs, models, strict=True)]
    all_answers = pd.concat(answers, ignore_index=True)
    results.write_table(all_answers, ANSWERS)
    say("contrasting heads")
    right = np.stack([table["correct"].to_numpy(bool) for table in answers])
    values = [run.values for run in runs]
    try:
        table = contrast_table(values, right, seed=options.seed)
    except InputError as error:
        raise InputError(f"{error}. {_advice(options, models, all_answers, results)}") from error
    results.write_table(table, CONTRAST)
    about = describe_contrast_run(options, models, values, answers, right, results.final)
    run = {"kind": "contrast", "command": command, **about}
    results.publish(run)
    return ContrastResult(results.out, table, all_answers, run)


def _advice(options: ContrastConfig, models: Sequence[NamedModel], answers: pd.DataFrame, results: ResultsFolder) -> str:
    """Return what to do about too few right or wrong answers, and where the graded answers are."""
    from analyses.contrast.about import is_embedded

    n_truncated = int(answers["truncated"].sum())
    truncated = f"{n_truncated} of {len(answers)} answers were truncated at {options.max_new_tokens} tokens (--max-new-tokens). "
    embedded = "; the embedded model has 135M parameters and solves hardly any problem" if any(map(is_embedded, models)) else ""
    return (
        f"{truncated if n_truncated else ''}Use more problems (--limit, --problems) or other models{embedded}. "
        f"The graded answers are in {results.draft / 'answers.parquet'}"
    )
