"""`python -m distill`: collect a teacher's records, train students, evaluate them, search settings, or run a complete study."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from distill.problems.grading import DEFAULT_GRADER, grader_help
from interp.tables.errors import StudyError, error_line

if TYPE_CHECKING:
    from distill.study.run import StudyRun

_PROG = "python -m distill"
_DESCRIPTION = """Train students from the answers of prompted teachers, and evaluate them.

Examples:

  python -m distill run studies/demo.toml                      run all steps of a study, or resume it, and write its tables
  python -m distill run studies/small.toml --set seeds=[0] --set data.train.limit=100 --out runs/slice
  python -m distill collect studies/small.toml --condition teacher ground_truth
  python -m distill train studies/small.toml --condition teacher --seed 0
  accelerate launch -m distill train studies/small.toml --condition teacher --seed 0
  python -m distill evaluate studies/small.toml --model Qwen/Qwen2.5-Coder-0.5B-Instruct
  python -m distill search studies/small.toml
  python -m distill inspect runs/small/records
"""
_KEPT = "finished work is kept; run the same command again to resume"
_SMALLER = "a smaller batch_size in [teacher], [train] or [evaluation]"

StudyFile = Annotated[Path, tyro.conf.Positional]
Changes = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class StudyCommand:
    """Options of all commands on a study.

    Attributes:
        study: TOML file of the study.
        set: a change to it, such as train.epochs=1; can be repeated.
        out: folder of the results; default: the study's, or runs/NAME.
        quiet: show no progress.
        debug: show the traceback of an error.
    """

    study: StudyFile
    set: Changes = ()
    out: Path | None = None
    quiet: bool = False
    debug: bool = False


@dataclass(frozen=True)
class RunCommand(StudyCommand):
    """Run a complete study: collect, train and evaluate every condition and seed, and print the tables. Resumes where it stopped."""


@dataclass(frozen=True)
class CollectCommand(StudyCommand):
    """Collect the teacher's answers and signals; existing ones are kept. Several processes can share the work.

    Attributes:
        condition: names of conditions; default: all of the study.
    """

    condition: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainCommand(StudyCommand):
    """Train students from collected records, on several devices under accelerate or torchrun. Resumes where it stopped.

    Attributes:
        condition: names of conditions; default: all of the study.
        seed: seeds; default: all of the study.
    """

    condition: tuple[str, ...] = ()
    seed: tuple[int, ...] = ()


@dataclass(frozen=True)
class EvaluateCommand(StudyCommand):
    """Let students answer the test problems, grade the answers, and print the tables; with --model, evaluate any model.

    Attributes:
        condition: names of conditions; default: all of the study.
        seed: seeds; default: all of the study.
        model: evaluate this checkpoint, of any kind, instead of the study's students.
    """

    condition: tuple[str, ...] = ()
    seed: tuple[int, ...] = ()
    model: str | None = None


@dataclass(frozen=True)
class SearchCommand(StudyCommand):
    """Search temperature, alpha, learning rate and rank on held-out problems with Optuna's TPE sampler. Resumes where it stopped."""


@dataclass(frozen=True)
class InspectCommand:
    """Show what a store of records holds: counts, lengths, sizes, signals, the teacher's accuracy, and some answers.

    Attributes:
        records: folder of the store, or of a study.
        rows: number of answers to show per group.
        debug: show the traceback of an error.
    """

    records: Annotated[Path, tyro.conf.Positional]
    rows: int = 2
    grader: Annotated[str, tyro.conf.arg(help=f"the grader whose verdicts the accuracy counts ({grader_help()})")] = DEFAULT_GRADER
    debug: bool = False


Command = (
    Annotated[RunCommand, tyro.conf.subcommand("run")]
    | Annotated[CollectCommand, tyro.conf.subcommand("collect")]
    | Annotated[TrainCommand, tyro.conf.subcommand("train")]
    | Annotated[EvaluateCommand, tyro.conf.subcommand("evaluate")]
    | Annotated[SearchCommand, tyro.conf.subcommand("search")]
    | Annotated[InspectCommand, tyro.conf.subcommand("inspect")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code: 0 for success, 2 after an error in the input, 130 when interrupted."""
    command = tyro.cli(Command, prog=_PROG, description=_DESCRIPTION, args=arguments)  # pyright: ignore[reportCallIssue, reportArgumentType]
    try:
        return inspect_records(command) if isinstance(command, InspectCommand) else run_study_command(command)
    except KeyboardInterrupt:
        print(f"\ninterrupted; {_KEPT}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python reports an error when it exits
        return 0
    except Exception as error:
        line = error_line(error, kept=_KEPT, smaller=_SMALLER)
        if command.debug or line is None:
            raise
        print(line, file=sys.stderr)
        return 2


def run_study_command(command: StudyCommand) -> int:
    """Run a command on a study, and return its exit code."""
    from distill.study.config import read_study

    study = read_study(command.study, command.set)
    study = study if command.out is None else replace(study, out=str(command.out))
    from distill.study.folder import StudyFolder
    from distill.study.launcher import has_other_processes, is_first_process
    from distill.study.run import StudyRun

    run = StudyRun(StudyFolder(study), show_progress=not command.quiet and is_first_process())
    if has_other_processes() and isinstance(command, (RunCommand, EvaluateCommand, SearchCommand)):
        raise StudyError("run, evaluate and search use one process; under a launcher, use collect and train")
    _check_selection(run, command)
    run.begin()
    match command:
        case RunCommand():
            run.run()
        case CollectCommand():
            for condition in _conditions(run, command.condition):
                run.collect(condition)
        case TrainCommand():
            _train(run, command)
        case EvaluateCommand(model=str(model)):
            run.evaluate_model(model)
        case EvaluateCommand():
            for condition, seed in _students(run, command.condition, command.seed):
                run.evaluate_one(condition, seed)
            run.write_tables()
        case SearchCommand():
            from distill.study.search import search_study

            search_study(run)
    run.write_settings()
    return 0


def _check_selection(run: StudyRun, command: StudyCommand) -> None:
    """Raise before anything is written if the results folder, --condition or --seed cannot be used."""
    from distill.study.conditions import condition_of

    folder = run.study.folder
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"{folder} is a file, and the study's results go there; name a folder with --out")
    conditions, seeds = getattr(command, "condition", ()), getattr(command, "seed", ())
    if isinstance(command, TrainCommand):
        untrained = [name for name in conditions if not condition_of(name).trained]
        if untrained:
            raise StudyError(f"--condition {untrained[0]} is the student without training; there is nothing to train")
    _students(run, conditions, seeds)


def _train(run: StudyRun, command: TrainCommand) -> None:
    from distill.study.launcher import is_first_process

    for condition, seed in _students(run, command.condition, command.seed):
        if seed is not None:
            folder = run.train_one(condition, seed)
            if is_first_process():
                print(folder)


def _conditions(run: StudyRun, wanted: Sequence[str]) -> list[str]:
    """Return the wanted conditions in the study's order; all of them if none is named."""
    unknown = [name for name in wanted if name not in run.config.conditions]
    if unknown:
        raise StudyError(f"--condition {unknown[0]} is not a condition of the study; conditions: {', '.join(run.config.conditions)}")
    return [name for name in run.config.conditions if not wanted or name in wanted]


def _students(run: StudyRun, conditions: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int | None]]:
    """Return condition and seed of the wanted students, in the study's order."""
    unknown = [seed for seed in seeds if seed not in run.config.seeds]
    if unknown:
        raise StudyError(f"--seed {unknown[0]} is not a seed of the study; seeds: {', '.join(map(str, run.config.seeds))}")
    chosen = _conditions(run, conditions)
    return [(name, seed) for name, seed in run.study.students if name in chosen and (seed is None or not seeds or seed in seeds)]


def inspect_records(command: InspectCommand) -> int:
    """Print what a store of records holds, and return the exit code."""
    from distill.problems.grading import check_grader, grade
    from distill.records.inspect import sample_rows, summarize_store
    from distill.records.store import RecordStore

    check_grader(command.grader)
    folder = command.records / "records" if (command.records / "records").is_dir() else command.records
    store = RecordStore(folder)
    if not store.groups():
        raise StudyError(f"{folder} holds no records; name the folder of a study, or its records/ after `python -m distill collect`")
    table = summarize_store(store, lambda response, reference: grade(response, reference, [command.grader])[0].correct)
    print(table.to_string(index=False))
    for group in store.groups():
        for line in sample_rows(group, command.rows):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
