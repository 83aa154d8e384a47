"""`python -m analyses.shifts`: several checkpoints in; which heads changed, how, how sure are we, and does it go with accuracy."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from analyses.command import guarded, say
from analyses.shift_options import OptionError, ShiftsConfig

if TYPE_CHECKING:
    import pandas as pd

    from analyses.head_runs import Named
    from interp.compare import Run

PROG = "python -m analyses.shifts"
EXAMPLES = """
Examples:

  python -m analyses.shifts runs/base runs/teacher runs/none            folders of analyses.heads; the first is the baseline
  python -m analyses.shifts smollm2 students/teacher --limit 20         checkpoints: their heads are measured first
  python -m analyses.shifts --study runs/demo                           all conditions and seeds of a study, with their accuracy
  python -m analyses.shifts --study runs/small --baseline none          against the teacher that was not prompted
  python -m analyses.shifts runs/teacher-1.5b runs/student --match      other architectures: heads matched by what they do
  python -m analyses.shifts --trajectory runs/demo/students/*           when each head moved while its student learnt
  python -m analyses.shifts --published ../attention                    the published study's maps: its curves and ranking
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 after an error in the input, 130 when interrupted."""
    try:
        config = tyro.cli(
            ShiftsConfig, prog=PROG, description=(ShiftsConfig.__doc__ or "").split("\n")[0] + "\n" + EXAMPLES, args=arguments
        )
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = shlex.join(["python", "-m", "analyses.shifts", *(sys.argv[1:] if arguments is None else arguments)])
    work = compare
    if config.published:
        from analyses.published_maps import compare_published as work
    elif config.trajectory:
        from analyses.trajectories import compare_trajectories as work
    kept = f"head runs that were finished are kept in {config.folder() / 'heads'}: the same command goes on"
    return guarded(
        lambda: work(config, command),
        debug=config.debug,
        interrupted=lambda: kept,
        out=config.folder(),
        kept=kept,
        smaller="a smaller --batch-tokens",
    )


def compare(config: ShiftsConfig, command: str) -> int:
    """Heads of models on the same texts: tables, figures, and a summary."""
    from analyses.comparison_folder import ComparisonFolder
    from analyses.head_runs import all_named, folder_of, of_study, read_head_run, read_run_json, same_texts, with_accuracy
    from analyses.matched import match
    from analyses.measuring import measure
    from analyses.open_models import Opening, OpenModels
    from analyses.shift_tables import adapter_tables, head_tables, map_tables
    from interp.compare import align

    models = all_named(config.runs, config.base) if config.runs else []
    problems, baseline = None, config.baseline
    if config.study is not None:
        students, problems, usual = of_study(config.study)
        models, baseline = [*students, *models], baseline or usual
    if config.accuracy is not None:
        models = with_accuracy(models, config.accuracy)
    _check(config, models, baseline)
    folder = ComparisonFolder(config.folder(), force=config.force)
    opened = OpenModels(models, Opening(config.device, config.dtype, config.trust_remote_code))
    models = [m if m.folder else replace(m, folder=measure(config, m, problems, folder.out, opened)) for m in models]
    same_texts(models)
    if config.match:
        return match(config, command, models, folder)
    say("comparing heads")
    runs = align([read_head_run(m) for m in models])
    bases = [r for r in runs if (baseline or runs[0].condition) in (r.condition, r.name)]
    bases = bases if len(bases) < len(runs) else runs[:1]  # seeds of one condition: the first is the baseline
    tables = head_tables(runs, bases, models, config.seed)
    tables |= adapter_tables(models, opened)
    tables |= map_tables(config, models, runs, bases, opened)
    infos = [{k: v for k, v in info.items() if k != "way"} for info in read_run_json(folder_of(models[0]))["measures"]]
    about = {
        "kind": "shifts",
        "command": command,
        "baseline": bases[0].condition,
        "baseline_models": [base.name for base in bases],
        "region": config.region,
        "seed": config.seed,
        "text": read_run_json(folder_of(models[0]))["text"],
        "n_examples": len(runs[0].values.examples),
        "n_layers": len(runs[0].values.layers),
        "n_heads": runs[0].values.n_heads,
        "measures": [info for info in infos if info["name"] in runs[0].values.measures],
        "models": [{**asdict(m), "folder": str(m.folder)} for m in models],
        "warnings": warnings(runs, bases, models),
    }
    folder.write(tables, about)
    if config.figures:
        say("drawing figures")
        folder.draw(config.region)
    summarise(tables, about, folder.out)
    return 0


def _check(config: ShiftsConfig, models: Sequence[Named], baseline: str | None) -> None:
    """What is wrong is said before anything is measured."""
    from interp.checkpoints import identify
    from interp.compare import CompareError

    if len(models) < 2:
        raise CompareError(f"{len(models)} model to compare ({', '.join(m.name for m in models)}); name at least two")
    names = [m.name for m in models]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise CompareError(
            f"two models are called {repeated!r}; measure one of them by python -m analyses.heads --name OTHER, and name its run"
        )
    known = list(dict.fromkeys([*(m.condition for m in models), *(m.name for m in models)]))
    if baseline is not None and baseline not in known:
        raise CompareError(f"--baseline {baseline!r} is none of the models; known: {', '.join(known)}")
    for model in models:
        if model.folder is None and model.source is not None:
            identify(model.source, trust_remote_code=config.trust_remote_code)


def warnings(runs: Sequence[Run], bases: Sequence[Run], models: Sequence[Named]) -> list[str]:
    """What a reader must know."""
    from interp.compare import FEWEST_STUDENTS, by_condition

    told = []
    n = len(runs[0].values.examples)
    if n < 20:
        told.append(f"only {n} examples: intervals and tests over examples are rough")
    based = {base.name for base in bases}
    single = [name for name, group in by_condition([r for r in runs if r.name not in based]).items() if len(group) == 1]
    if single:
        told.append(f"one seed of {', '.join(single)}: tests over examples speak of that student alone, another seed may differ")
    seeds = {base.seed for base in bases}
    unpaired = [r.name for r in runs if r.name not in based and r.seed not in seeds] if len(bases) > 1 else []
    if unpaired:
        told.append(
            f"{', '.join(unpaired)}: {bases[0].condition} has no student of that seed, so shifts and layers are against {bases[0].name}"
        )
    graded = sum(bool(m.accuracy) for m in models if m.name not in based)
    if 0 < graded < FEWEST_STUDENTS:
        told.append(f"{graded} students with a known accuracy: no p value goes with their correlation (from {FEWEST_STUDENTS} on)")
    return told


# --- telling --------------------------------------------------------------------------------------------------------


def summarise(tables: dict[str, pd.DataFrame], about: dict[str, Any], out: Path) -> None:
    """Which heads moved most, in a few lines."""
    import pandas as pd

    region, n_heads = about["region"], about["n_layers"] * about["n_heads"]
    for warning in about["warnings"]:
        print(f"warning: {warning}")
    several = tables["conditions"]["n_seeds"].max() > 1
    table, key = (tables["conditions"], "condition") if several else (tables["shifts"], "model")
    rows = table[(table["region"] == region) & table["q"].notna()]
    lines = []
    for (name, measured), group in rows.groupby([key, "measure"], observed=True, sort=False):
        clear = group[group["q"] < 0.05]
        if clear.empty:
            lines.append({key: name, "measure": measured, "q<0.05": f"0 of {len(group)}"})
            continue
        first = clear.loc[clear["difference"].abs().idxmax()]
        lines.append(
            {
                key: name,
                "measure": measured,
                "q<0.05": f"{len(clear)} of {len(group)}",
                "largest": f"{first['layer']}.{first['head']}",
                "difference": first["difference"],
                "ci_low": first["ci_low"],
                "ci_high": first["ci_high"],
                "q": first["q"],
            }
        )
    test = "seeds and examples crossed, quasi-F" if several else "paired t test over examples"
    print(
        f"\nHeads against {about['baseline']}: {about['n_examples']} examples, queries in {region}; {test}; Benjamini-Hochberg over "
        f"{n_heads} heads; 95 % intervals{'' if several else ' (bootstrap)'}:\n"
    )
    print(pd.DataFrame(lines).to_string(index=False, na_rep="", float_format=lambda value: f"{value:.3g}"))
    print(f"\ntables:  {', '.join(sorted(tables))} in {out}")
    if (out / "report.html").is_file():
        print(f"report:  {out / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
