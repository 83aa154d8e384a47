"""`python -m analyses.shifts`: several checkpoints in; which heads changed, how, how sure are we, and does it go with accuracy."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from analyses.command import guarded

if TYPE_CHECKING:
    import pandas as pd

    from analyses.head_runs import Named
    from analyses.open_models import OpenModels
    from distill.problems import Problem
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


class OptionError(Exception):
    """Options that exclude each other. No ValueError: tyro prints those in a box of many lines."""


@dataclass(frozen=True)
class ShiftsConfig:
    """Compare the heads of several models on the same texts.

    Attributes:
        runs: head runs (folders of analyses.heads) or models (as --model of analyses.heads takes them), the baseline first.
        baseline: model or condition that the others are compared with; default the first, or a study's untouched student.
        study: results folder of a study of distill: all its students, with their accuracy.
        published: folder of attention maps in the published layout, or of archives: the published curves and ranking.
        trajectory: students whose heads were recorded while they learnt, or folders of checkpoints.
        match: models of other architectures or tokenizers: match heads by what they do instead of by their place.
        maps: compare the attention maps themselves: auto does where all models are at hand, yes, or no.
        accuracy: CSV file with the columns model and accuracy, for models that are no study's.
        out: folder for the results; default runs/shifts, or STUDY/shifts.
        region: where the queries of figures and printed tables stand: question, response or all.
        problems: for models: shipped (our own set), gsm8k, or a JSONL file; a study's students read its test problems.
        split: of gsm8k, train or test.
        limit: first N problems only; 100 of a study.
        base: base model of adapters, where their config names none or another place.
        measures: for models: names; all where none is given.
        device: auto, cpu, cuda, cuda:N, mps, or balanced.
        dtype: auto is the checkpoint's own, but float32 on a CPU.
        batch_tokens: padded tokens of a batch, at most.
        seed: of the bootstrap and of the permutations.
        force: replace a finished comparison; head runs of the same models and problems are kept.
        figures: draw figures and page.
        trust_remote_code: run the checkpoints' own model code.
        debug: show the traceback of an error.
    """

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    baseline: str | None = None
    study: Path | None = None
    published: Path | None = None
    trajectory: tuple[Path, ...] = ()
    match: bool = False
    maps: Literal["auto", "yes", "no"] = "auto"
    accuracy: Path | None = None
    out: Path | None = None
    region: Literal["question", "response", "all"] = "response"
    problems: str | None = None
    split: str = "test"
    limit: int | None = None
    base: str | None = None
    measures: tuple[str, ...] = ()
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_tokens: int = 2048
    seed: int = 0
    force: bool = False
    figures: bool = True
    trust_remote_code: bool = False
    debug: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            OptionError: nothing to compare, or two kinds of comparison at once.
        """
        kinds = [name for name in ("study", "published", "trajectory") if getattr(self, name)]
        if len(kinds) > 1 or (self.runs and kinds and kinds != ["study"]):
            raise OptionError(f"{' and '.join(['RUN…'] * bool(self.runs) + [f'--{k}' for k in kinds])} are different comparisons: give one")
        if not kinds and not self.runs:
            raise OptionError("nothing to compare: name head runs or models, or --study, --published or --trajectory (see --help)")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"--limit is {self.limit}; at least 1 is needed")
        if self.seed < 0 or self.batch_tokens < 1:
            raise OptionError("--seed must be 0 or more, and --batch-tokens at least 1")
        if self.match and len(self.runs) != 2:
            raise OptionError(f"--match compares two models, {len(self.runs)} are named")

    def folder(self) -> Path:
        """Where the results go."""
        if self.out is not None:
            return self.out
        if self.study is not None:
            return self.study / "shifts"
        return Path("runs") / ("published" if self.published else "trajectory" if self.trajectory else "shifts")


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
    work = compare_published if config.published else compare_trajectories if config.trajectory else compare
    kept = f"head runs that were finished are kept in {config.folder() / 'heads'}: the same command goes on"
    return guarded(
        lambda: work(config, command),
        debug=config.debug,
        interrupted=lambda: kept,
        out=config.folder(),
        kept=kept,
        smaller="a smaller --batch-tokens",
    )


def say(text: str) -> None:
    """A line of progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def compare(config: ShiftsConfig, command: str) -> int:
    """Heads of models on the same texts: tables, figures, and a summary."""
    from analyses.comparison_folder import ComparisonFolder
    from analyses.head_runs import named, of_study, read_head_run, read_run_json, same_texts, with_accuracy
    from analyses.open_models import Opening, OpenModels
    from interp.compare import align

    models = [named(argument, config.base) for argument in config.runs]
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
    order = [name for name in (baseline,) if name] or [runs[0].condition]
    bases = [r for r in runs if order[0] in (r.condition, r.name)]
    tables = head_tables(runs, bases, models, config.seed)
    tables |= adapter_tables(models, opened)
    tables |= map_tables(config, models, runs, bases, opened)
    infos = [{k: v for k, v in info.items() if k != "way"} for info in read_run_json(_folder(models[0]))["measures"]]
    about = {
        "kind": "shifts",
        "command": command,
        "baseline": bases[0].condition,
        "region": config.region,
        "seed": config.seed,
        "text": read_run_json(_folder(models[0]))["text"],
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


def _folder(model: Named) -> Path:
    assert model.folder is not None
    return model.folder


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


# --- measuring ------------------------------------------------------------------------------------------------------


def measure(config: ShiftsConfig, model: Named, problems: Sequence[Problem] | None, out: Path, opened: OpenModels) -> Path:
    """A model's head run, made by `analyses.heads` where it is not there yet."""
    from analyses.heads import HeadsConfig, run
    from distill.problems import load_problems, problems_digest
    from interp.checkpoints import identify

    assert model.source is not None
    folder = out / "heads" / model.name
    source, limit = config.problems or "shipped", config.limit
    if problems is not None and config.problems is None:
        source, limit = str(_written(problems[: limit or 100], out / "problems.jsonl")), None
    digest = problems_digest(load_problems(source, config.split, limit))
    wanted = HeadsConfig(
        model=model.source,
        problems=source,
        split=config.split,
        limit=limit,
        out=folder,
        base=model.base,
        device=config.device,
        dtype=config.dtype,
        batch_tokens=config.batch_tokens,
        measures=config.measures,
        seed=config.seed,
        name=model.name,
        resume=folder.with_name(folder.name + ".partial").exists(),
        figures=False,
        trust_remote_code=config.trust_remote_code,
    )
    if (folder / "run.json").is_file():
        if _is_of(folder, digest, wanted, identify(model.source, trust_remote_code=config.trust_remote_code)):
            return folder
        wanted = replace(wanted, resume=False, force=True)
    say(f"measuring the heads of {model.name}")
    run(wanted, f"measured by {PROG}", lambda: opened.open(model))
    return folder


def _written(problems: Sequence[Problem], file: Path) -> Path:
    """Problems as the JSONL file that a head run names."""
    from distill.study import write_whole

    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, "".join(json.dumps({"question": p.question, "answer": p.answer}, ensure_ascii=False) + "\n" for p in problems))
    return file


def _is_of(folder: Path, digest: str, wanted: Any, identity: dict[str, Any]) -> bool:
    """A head run is of these problems, settings and weights."""
    from analyses.head_runs import InputError, read_run_json

    try:
        run = read_run_json(folder)
    except InputError:
        return False
    settings = ("measures", "dtype", "seed")
    same = all(run["config"].get(key) == json.loads(json.dumps(getattr(wanted, key))) for key in settings)
    own = run["model"].get("adapter") or run["model"]
    weights = all(own.get(key) == identity[key] for key in ("weights_sha256", "revision") if key in identity)
    based = identity.get("base", {})
    weights = weights and all(run["model"].get(key) == based[key] for key in ("weights_sha256", "revision") if key in based)
    return same and weights and run["problems"]["sha256"] == digest


# --- tables ---------------------------------------------------------------------------------------------------------


def _base_of(run: Run, bases: Sequence[Run]) -> Run:
    """The baseline's student of the same seed, or its first."""
    return next((base for base in bases if base.seed == run.seed), bases[0])


def head_tables(runs: Sequence[Run], bases: Sequence[Run], models: Sequence[Named], seed: int) -> dict[str, pd.DataFrame]:
    """Every table that the head runs give."""
    import pandas as pd

    from interp.compare import accuracy_table, agreement_table, by_condition, conditions_table, layers_table, ranks_table, shifts_table

    def base_of(run: Run) -> Run:
        return _base_of(run, bases)

    others = [r for r in runs if r.name not in {base.name for base in bases}]
    tables = {
        "shifts": pd.concat([shifts_table(base_of(r), r, seed=seed) for r in others], ignore_index=True),
        "conditions": pd.concat([conditions_table(bases, group, seed=seed) for group in by_condition(others).values()], ignore_index=True),
        "layers": pd.concat([layers_table(base_of(r), r, seed=seed) for r in runs], ignore_index=True),
        "ranks": pd.concat([ranks_table(r, seed=seed) for r in runs], ignore_index=True),
        "agreement": agreement_table(runs, seed=seed),
    }
    known = {m.name: m for m in models}
    graded = [r for r in others if known[r.name].accuracy]
    if len(graded) > 1 and len(bases) == 1:
        scores = [known[r.name].accuracy["accuracy"] for r in graded]
        tables["accuracy"] = accuracy_table(bases[0].values, [r.values for r in graded], scores, seed=seed)
    moved = tables["shifts"].groupby("model", observed=True)["effect"].apply(lambda e: e[e.abs() < float("inf")].abs().mean())
    rows = [
        {"model": r.name, "condition": r.condition, "seed": r.seed, "shift": moved.get(r.name, 0.0), **known[r.name].accuracy} for r in runs
    ]
    table = pd.DataFrame(rows, columns=["model", "condition", "seed", "accuracy", "accuracy_low", "accuracy_high", "n_problems", "shift"])
    tables["models"] = table.assign(seed=table["seed"].astype("Int64"))
    return tables


def adapter_tables(models: Sequence[Named], opened: OpenModels) -> dict[str, pd.DataFrame]:
    """Size and ranks of what each LoRA student changes in every head's QK and OV circuits."""
    import pandas as pd

    from interp.lora_geometry import LoraGeometryError, lora_geometry

    frames = []
    for model in models:
        if model.source is None or not (Path(model.source).expanduser() / "adapter_config.json").is_file():
            continue
        try:
            table = lora_geometry(opened.open(model).model)
        except LoraGeometryError as error:
            say(f"note: no circuit geometry of {model.name}: {error}")
            continue
        table.insert(0, "condition", model.condition)
        table.insert(0, "model", model.name)
        frames.append(table)
    return {"lora": pd.concat(frames, ignore_index=True)} if frames else {}


def map_tables(
    config: ShiftsConfig, models: Sequence[Named], runs: Sequence[Run], bases: Sequence[Run], opened: OpenModels
) -> dict[str, pd.DataFrame]:
    """Divergence of the maps themselves, where the models are at hand; why not is said.

    Students on one shared base run together. Other models run in pairs with their baseline, so that two are loaded at a time, and there is
    no variance over all of them.

    Raises:
        InputError: --maps yes, and a model or the texts are not at hand.
    """
    import pandas as pd

    from analyses.head_runs import InputError
    from interp.compare import divergences_table

    if config.maps == "no":
        return {}
    of_base: dict[str, list[Named]] = {base.name: [] for base in bases}
    known = {m.name: m for m in models}
    for run in runs:
        if run.name not in of_base:
            of_base[_base_of(run, bases).name].append(known[run.name])
    try:
        missing = [m.name for m in models if m.source is None]
        if missing:
            raise InputError(f"it is not known where the model of {missing[0]} lies")
        frames = []
        for name, others in of_base.items():
            together = opened.shares([known[name], *others])
            for group in [others] if together else [[other] for other in others]:
                frame = _divergences(config, known[name], group, runs, opened) if group else pd.DataFrame()
                frames.append(frame if together or len(others) == 1 or frame.empty else frame[frame["measure"] != "variance"])
        frames = [frame for frame in frames if not frame.empty]
        table = divergences_table(pd.concat(frames, ignore_index=True), seed=config.seed)
    except ValueError as error:
        if config.maps == "yes":
            raise
        say(f"note: the maps themselves are not compared: {str(error).splitlines()[0]}")
        return {}
    return {"divergences": table}


def _divergences(config: ShiftsConfig, base: Named, others: Sequence[Named], runs: Sequence[Run], opened: OpenModels) -> pd.DataFrame:
    """`interp.map_divergence` over the texts that the head runs read, batch by batch."""
    import numpy as np
    import pandas as pd
    from tqdm import tqdm

    from analyses.head_runs import InputError, read_run_json
    from analyses.heads import HeadsConfig, plan
    from distill.problems import load_problems, problems_digest
    from interp.map_divergence import map_divergence

    run = read_run_json(_folder(base))
    source = run["config"]
    problems = load_problems(str(source["problems"]), str(source["split"]), source["limit"])
    if problems_digest(problems) != run["problems"]["sha256"]:
        raise InputError(f"{source['problems']} no longer holds the problems that {base.name} read")
    wanted = set(runs[0].values.examples)
    students = opened.students([base, *others])
    checkpoint = opened.any_of([base, *others])
    texts, batches = plan(
        HeadsConfig(batch_tokens=config.batch_tokens), checkpoint, [p for p in problems if p.index in wanted], run["chat"]
    )
    inputs = runs[0].inputs
    for text in texts.texts:
        if not np.array_equal(text.ids, inputs.loc[inputs["example"] == text.example, "token_id"].to_numpy()):
            raise InputError(
                f"the tokenizer of {checkpoint.name} no longer gives the tokens that {base.name} read (example {text.example})"
            )
    frames = []
    label = f"maps of {base.name} and {others[0].name if len(others) == 1 else f'{len(others)} others'}"
    with tqdm(total=sum(len(t) for t in texts.texts), unit="tok", unit_scale=True, desc=label, dynamic_ncols=True) as bar:
        for batch in batches:
            tokens = texts.select(batch)
            frames.append(map_divergence(students, tokens, baseline=base.name))
            bar.update(sum(len(t) for t in tokens.texts))
    return pd.concat(frames, ignore_index=True)


def warnings(runs: Sequence[Run], bases: Sequence[Run], models: Sequence[Named]) -> list[str]:
    """What a reader must know."""
    from interp.compare import FEWEST_STUDENTS, by_condition

    told = []
    n = len(runs[0].values.examples)
    if n < 20:
        told.append(f"only {n} examples: intervals and tests over examples are rough")
    single = [
        name for name, group in by_condition([r for r in runs if r.name not in {base.name for base in bases}]).items() if len(group) == 1
    ]
    if single:
        told.append(f"one seed of {', '.join(single)}: tests over examples speak of that student alone, another seed may differ")
    graded = sum(bool(m.accuracy) for m in models)
    if 0 < graded - len(bases) < FEWEST_STUDENTS:
        told.append(
            f"{graded - len(bases)} students with a known accuracy: no p value goes with their correlation (from {FEWEST_STUDENTS} on)"
        )
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


# --- other comparisons ----------------------------------------------------------------------------------------------


def match(config: ShiftsConfig, command: str, models: Sequence[Named], folder: Any) -> int:
    """Two models of other architectures: heads matched by profile."""
    import pandas as pd

    from interp.matching import match_heads, match_layers, profiles, same_words
    from interp.table import EXAMPLES, INPUTS, read

    one, other = models
    say(f"matching the heads of {one.name} and {other.name}")
    words = same_words(read(_folder(one) / "inputs.parquet", INPUTS), read(_folder(other) / "inputs.parquet", INPUTS))
    common = [int(example) for example in words["example"]]
    both = [profiles(read(_folder(m) / "examples.parquet", EXAMPLES), examples_in_common=common) for m in models]
    matches = match_heads(*both, seed=config.seed)
    about = {
        "kind": "match",
        "command": command,
        "baseline": one.name,
        "seed": config.seed,
        "n_examples": len(common),
        "measures": sorted({str(name) for name in both[0].features.get_level_values("measure")}),
        "models": [{**asdict(m), "folder": str(m.folder)} for m in models],
        "warnings": [f"only {len(common)} examples: profiles are rough"] if len(common) < 20 else [],
    }
    folder.write({"matches": matches, "layer_matches": match_layers(*both), "words": words}, about)
    for warning in about["warnings"]:
        print(f"warning: {warning}")
    print(
        f"\nHeads of {one.name} and {other.name} matched by profile over {len(common)} examples ({words['n_words'].sum():,} words, "
        f"{words['n_tokens_one'].sum():,} and {words['n_tokens_other'].sum():,} tokens); similarity: Pearson's r of standardised profiles; "
        "margin above 0: each is the other's most similar; stability: share of bootstrap resamples with the same partner.\n"
    )
    print(
        pd.DataFrame(
            {
                "matched": [len(matches)],
                "similarity, mean": [matches["similarity"].mean()],
                "margin > 0": [f"{(matches['margin'] > 0).mean():.0%}"],
                "stability, mean": [matches["stability"].mean()],
                "depth difference, mean": [matches["depth_difference"].abs().mean()],
            }
        ).to_string(index=False, float_format=lambda value: f"{value:.3g}")
    )
    shown = matches.sort_values(["similarity"], ascending=False, kind="stable").head(15)
    print("\nThe most similar:\n\n" + shown.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    print(f"\ntables:  matches, layer_matches, words in {folder.out}")
    return 0


def compare_published(config: ShiftsConfig, command: str) -> int:
    """The published study's curves and its ranking of heads, from stored maps."""
    import pandas as pd

    from analyses.comparison_folder import ComparisonFolder
    from interp.stored_maps import CURVES, open_published, published_curves, published_heads, variance_ranking

    assert config.published is not None
    models = open_published(config.published)
    folder = ComparisonFolder(config.folder(), force=config.force)
    tables = {
        "curves": pd.concat([published_curves(m) for m in models], ignore_index=True),
        "heads": pd.concat([published_heads(m) for m in models], ignore_index=True),
    }
    if len(models) > 1:
        tables["variance"] = variance_ranking(models)
    about = {
        "kind": "published",
        "command": command,
        "source": str(config.published),
        "n_examples": 1,
        "n_tokens": models[0].n_tokens,
        "n_layers": len(models[0].layers),
        "n_heads": models[0].n_heads,
        "measures": [asdict(info) for info in CURVES.values()],
        "models": [{"name": m.name, "source": str(m.source)} for m in models],
        "warnings": [
            "one text: the curves say nothing of other problems, and no interval can be given",
            *([] if len(models) > 1 else ["one model: there is no variance between models to rank heads by"]),
        ],
    }
    folder.write(tables, about)
    if config.figures:
        folder.draw(config.region)
    for warning in about["warnings"]:
        print(f"warning: {warning}")
    curves = tables["curves"]
    print(
        f"\nPublished curves of {len(models)} models ({len(models[0].layers)} layers x {models[0].n_heads} heads, one text of "
        f"{models[0].n_tokens} tokens), mean over heads:\n"
    )
    print(
        curves.pivot_table(index="layer", columns=["curve", "model"], values="value", observed=True).to_string(float_format="{:.4f}".format)
    )
    if "variance" in tables:
        print(f"\nHeads by variance over the {len(models)} models (mean over all entries of their maps):\n")
        print(tables["variance"].head(10).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    print(f"\ntables:  {', '.join(tables)} in {folder.out}")
    return 0


def compare_trajectories(config: ShiftsConfig, command: str) -> int:
    """When each head moved while its student learnt."""
    raise NotImplementedError


if __name__ == "__main__":
    sys.exit(main())
