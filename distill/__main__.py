"""`python -m distill`: collect a teacher's records, train students, evaluate them, search, or run a whole study."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from interp.tables.errors import StudyError, error_line

if TYPE_CHECKING:
    from distill.study.run import StudyRun

PROG = "python -m distill"
EXAMPLES = """Students of a teacher that is prompted in several ways.

Examples:

  python -m distill run studies/demo.toml                      every step of a study, and its tables; goes on where it was
  python -m distill run studies/small.toml --set seeds=[0] --set data.train.limit=100 --out runs/slice
  python -m distill collect studies/small.toml --condition teacher ground_truth
  python -m distill train studies/small.toml --condition teacher --seed 0
  accelerate launch -m distill train studies/small.toml --condition teacher --seed 0
  python -m distill evaluate studies/small.toml --model Qwen/Qwen2.5-Coder-0.5B-Instruct
  python -m distill search studies/small.toml
  python -m distill inspect runs/small/records
"""

StudyFile = Annotated[Path, tyro.conf.Positional]
Settings = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class OnStudy:
    """What all commands on a study take.

    Attributes:
        study: the study's TOML file.
        set: a change on top of it, such as train.epochs=1; may be given several times.
        out: folder of the results; default as the study says, or runs/NAME.
        quiet: no bars and lines of progress.
        debug: show the traceback of an error.
    """

    study: StudyFile
    set: Settings = ()
    out: Path | None = None
    quiet: bool = False
    debug: bool = False


@dataclass(frozen=True)
class Run(OnStudy):
    """Run a whole study: collect, train and evaluate every condition and seed, and print the table. Goes on where it was."""


@dataclass(frozen=True)
class Collect(OnStudy):
    """Collect the teacher's answers and signals; what is there is kept. Several processes at once share the work.

    Attributes:
        condition: names; all of the study where none is given.
    """

    condition: tuple[str, ...] = ()


@dataclass(frozen=True)
class Train(OnStudy):
    """Train students from collected records; under accelerate or torchrun on several devices. Goes on where it was.

    Attributes:
        condition: names; all of the study where none is given.
        seed: seeds; all of the study where none is given.
    """

    condition: tuple[str, ...] = ()
    seed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Evaluate(OnStudy):
    """Let students answer the test problems, grade them, and print the tables; or any model, with --model.

    Attributes:
        condition: names; all of the study where none is given.
        seed: seeds; all of the study where none is given.
        model: a checkpoint of any kind instead of the study's students, evaluated in the same way.
    """

    condition: tuple[str, ...] = ()
    seed: tuple[int, ...] = ()
    model: str | None = None


@dataclass(frozen=True)
class Search(OnStudy):
    """Search temperature, alpha, learning rate and rank on held-out problems of the training split (Optuna's TPE). Goes on where it was."""


@dataclass(frozen=True)
class Inspect:
    """Show what a store of records holds: counts, lengths, sizes, signals, the teacher's accuracy, and some rows.

    Attributes:
        records: the store's folder, or a study's.
        rows: how many answers to show of each group.
        grader: whose verdict the accuracy is.
        debug: show the traceback of an error.
    """

    records: Annotated[Path, tyro.conf.Positional]
    rows: int = 2
    grader: str = "first_final"
    debug: bool = False


KEPT = "what was finished is kept: the same command goes on"

Command = Run | Collect | Train | Evaluate | Search | Inspect


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 after an error in the input, 130 when interrupted."""
    command = tyro.cli(Command, prog=PROG, description=EXAMPLES, args=arguments)  # pyright: ignore[reportCallIssue, reportArgumentType]
    try:
        return inspect(command) if isinstance(command, Inspect) else work(command)
    except KeyboardInterrupt:
        print(f"\ninterrupted; {KEPT}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain on leaving
        return 0
    except Exception as error:
        line = error_line(error, kept=KEPT, smaller="a smaller batch_size in [teacher], [train] or [evaluation]")
        if command.debug or line is None:
            raise
        print(line, file=sys.stderr)
        return 2


def work(command: OnStudy) -> int:
    """All commands but `inspect`: they begin with a study."""
    from distill.study.config import read_study

    study = read_study(command.study, command.set)
    study = study if command.out is None else replace(study, out=str(command.out))
    from distill.study.folder import StudyFolder
    from distill.study.run import StudyRun

    run = StudyRun(StudyFolder(study), show_progress=not command.quiet and int(os.environ.get("RANK", "0")) == 0)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and isinstance(command, (Run, Evaluate, Search)):
        raise StudyError("run, evaluate and search are for one process; under a launcher use collect and train")
    run.begin()
    match command:
        case Run():
            run.run()
        case Collect():
            for condition in _conditions(run, command.condition):
                run.collect(condition)
        case Train():
            if "untouched" in command.condition:
                raise StudyError("--condition untouched: it is the student without training; there is nothing to train")
            for condition, seed in _students(run, command.condition, command.seed):
                if seed is not None:
                    folder = run.train_one(condition, seed)
                    if int(os.environ.get("RANK", "0")) == 0:
                        print(folder)
        case Evaluate(model=str(model)):
            run.evaluate_model(model)
        case Evaluate():
            for condition, seed in _students(run, command.condition, command.seed):
                run.evaluate_one(condition, seed)
            run.report()
        case Search():
            from distill.study.search import search_study

            search_study(run)
    run.write_down()
    return 0


def _conditions(run: StudyRun, wanted: Sequence[str]) -> list[str]:
    unknown = [name for name in wanted if name not in run.config.conditions]
    if unknown:
        raise StudyError(f"--condition {unknown[0]} is no condition of the study; conditions: {', '.join(run.config.conditions)}")
    return [name for name in run.config.conditions if not wanted or name in wanted]


def _students(run: StudyRun, conditions: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int | None]]:
    unknown = [seed for seed in seeds if seed not in run.config.seeds]
    if unknown:
        raise StudyError(f"--seed {unknown[0]} is no seed of the study; seeds: {', '.join(map(str, run.config.seeds))}")
    chosen = _conditions(run, conditions)
    return [(name, seed) for name, seed in run.study.students if name in chosen and (seed is None or not seeds or seed in seeds)]


def inspect(command: Inspect) -> int:
    """What a store of records holds."""
    from distill.problems.grading import grade
    from distill.records.inspect import sample_rows, summarize_store
    from distill.records.store import RecordStore

    folder = command.records / "records" if (command.records / "records").is_dir() else command.records
    store = RecordStore(folder)
    if not store.groups():
        raise StudyError(f"{folder} holds no records; name a study's folder, or its records/ after `python -m distill collect`")
    table = summarize_store(store, lambda response, reference: grade(response, reference, [command.grader])[0].correct)
    print(table.to_string(index=False))
    for group in store.groups():
        for line in sample_rows(group, command.rows):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
