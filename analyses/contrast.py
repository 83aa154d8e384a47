"""Many problems: which heads differ between a model's right and its wrong answers, and between students that do and do not solve one."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from analyses.head_runs import Named
    from analyses.open_models import OpenModels
    from distill.problems import Problem
    from interp.compare import Run

KIND = "contrast"
"""As `kind` in run.json."""
FEW = 10
"""With fewer right or wrong answers than this the tests are rough."""
SHOWN = 10
EMBEDDED = "smollm2"


class ContrastInputError(ValueError):
    """Models, runs or a folder that cannot be contrasted; the message says what was seen and what to do."""


@dataclass(frozen=True)
class ContrastConfig:
    """Which heads differ between right and wrong answers.

    Attributes:
        models: hub ids, folders, adapters, .gguf files, smollm2, or finished runs of `analyses.heads --text generated`.
        problems: shipped, gsm8k, or a JSONL file; None: those of the first finished run among the models, else shipped.
        split: of gsm8k.
        limit: first N problems only.
        out: folder for the results.
        grader: one of `distill.grading.GRADERS`.
        max_new_tokens: cut of generated answers; None: that of the first finished run, else 256.
        chat: use the chat template where the tokenizer has one.
        base: base model of adapters, where their config names none.
        measures: names; none: those of the first finished run, else all.
        region: where the queries of printed tables and figures stand.
        device: as `analyses.heads` takes it.
        dtype: likewise.
        batch_tokens: likewise.
        seed: of the bootstrap.
        force: replace a finished contrast, and begin unfinished head runs anew; finished ones of the same settings are kept.
        figures: draw them.
        trust_remote_code: run the checkpoints' own model code.
    """

    models: tuple[str, ...] = (EMBEDDED,)
    problems: str | None = None
    split: str = "test"
    limit: int | None = None
    out: Path = Path("runs/contrast")
    grader: str = "first_final"
    max_new_tokens: int | None = None
    chat: bool = True
    base: str | None = None
    measures: tuple[str, ...] = ()
    region: Literal["question", "response", "all"] = "response"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_tokens: int = 2048
    seed: int = 0
    force: bool = False
    figures: bool = True
    trust_remote_code: bool = False


def contrast(config: ContrastConfig, command: str) -> int:
    """Measures what is not measured, grades every answer, tests every head; tables, figures, and a summary.

    Args:
        config: what to do.
        command: for the record of the run.

    Returns:
        0.

    Raises:
        ContrastInputError: models of one name, an unknown grader, head runs of other problems or settings, or a folder of other things.
        ContrastError: too few right or wrong answers; answers.parquet is there all the same.
        ValueError: as `analyses.head_runs.named`, `analyses.heads.run` and `distill.problems.load_problems` raise.
    """
    import numpy as np

    from analyses.head_runs import all_named, read_head_run
    from analyses.open_models import Opening, OpenModels
    from interp.contrast import ANSWERS, CONTRAST, ContrastError, contrast_table, lengths_table, same_heads

    models = all_named(config.models, config.base)
    _check(config, models)
    folder = _Folder(config.out, force=config.force)
    config, problems = _settled(config, models)
    _check_runs(config, models, problems)
    opened = OpenModels(models, Opening(config.device, config.dtype, config.trust_remote_code))
    models = [m if m.folder else replace(m, folder=_measured(config, m, problems, opened)) for m in models]
    _check_runs(config, models, problems)
    say("grading answers")
    runs = _on_common_measures([read_head_run(m) for m in models])
    answers = [graded(run, _about(m), problems, config.grader) for run, m in zip(runs, models, strict=True)]
    right = np.stack([table["correct"].to_numpy(bool) for table in answers])
    accuracies = [_accuracy(m, table) for m, table in zip(models, answers, strict=True)]
    folder.begin()
    import pandas as pd

    folder.write(pd.concat(answers, ignore_index=True), ANSWERS)
    values = [run.values for run in runs]
    say("contrasting heads")
    try:
        table = contrast_table(values, right, seed=config.seed)
    except ContrastError as error:
        cut = sum(int(each["cut"].sum()) for each in answers)
        hint = f"{cut} of {right.size} answers were cut at {config.max_new_tokens} tokens (--max-new-tokens); " if cut else ""
        weak = "; the embedded model of 135M parameters solves hardly any problem" if _embedded(models) else ""
        raise ContrastError(
            f"{error}. {hint}take more problems (--limit, --problems) or other models{weak}. "
            f"The verdicts are in {folder.out / 'answers.parquet'}"
        ) from error
    lengths = np.stack([each["n_tokens"].to_numpy(float) for each in answers])
    about = {
        "kind": KIND,
        "command": command,
        "seed": config.seed,
        "text": "generated",
        "chat": _about(models[0])["chat"],
        "max_new_tokens": config.max_new_tokens,
        "grader": config.grader,
        "region": config.region,
        "problems": _about(models[0])["problems"],
        "n_examples": len(problems),
        "n_problems_both": int((right.any(0) & ~right.all(0)).sum()) if len(models) > 1 else None,
        "n_layers": len(values[0].layers),
        "n_heads": values[0].n_heads,
        "models": accuracies,
        "lengths": lengths_table([m.name for m in models], lengths, right, seed=config.seed).to_dict("records"),
        "measures": _infos(models[0], values[0].measures),
        "warnings": warnings(models, answers, right, same=same_heads(values)),
    }
    folder.write(table, CONTRAST)
    folder.finish(about)
    if config.figures:
        from figures.contrast import draw_contrast

        say("drawing figures")
        draw_contrast(folder.out)
    summarise(table, about, folder.out)
    return 0


def say(text: str) -> None:
    """A line of progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


# --- head runs ------------------------------------------------------------------------------------------------------


def _check(config: ContrastConfig, models: Sequence[Named]) -> None:
    """What is wrong is said before anything is measured."""
    from distill.grading import GRADERS
    from interp.checkpoints import identify
    from interp.contrast import PAIRED

    if config.grader not in GRADERS:
        raise ContrastInputError(f"--grader {config.grader!r} is not known; known: {', '.join(GRADERS)}")
    if not models:
        raise ContrastInputError("no model to look at; name at least one")
    names = [m.name for m in models]
    repeated = next((name for name in names if names.count(name) > 1 or name == PAIRED), None)
    if repeated is not None:
        raise ContrastInputError(
            f"two models are called {repeated!r}; measure one by python -m analyses.heads --text generated --name OTHER, and name its run"
        )
    for model in models:
        if model.folder is None and model.source is not None:
            identify(model.source, trust_remote_code=config.trust_remote_code)


def _about(model: Named) -> dict[str, Any]:
    from analyses.head_runs import folder_of, read_run_json

    return read_run_json(folder_of(model))


def _settled(config: ContrastConfig, models: Sequence[Named]) -> tuple[ContrastConfig, list[Problem]]:
    """What was not asked for, taken from the first finished run; and the problems."""
    from distill.problems import ProblemError, load_problems

    finished = next((m for m in models if m.folder), None)
    run = _about(finished) if finished else {}
    of_run = run.get("generated") or {}
    config = replace(
        config,
        max_new_tokens=config.max_new_tokens or of_run.get("max_new_tokens", 256),
        measures=config.measures or (tuple(info["name"] for info in run["measures"]) if run.get("config", {}).get("measures") else ()),
        chat=config.chat if not run else bool(run["config"].get("chat", True)),
    )
    if config.problems is None and run:
        known = run["problems"]
        config = replace(config, problems=known["source"], split=known["split"], limit=config.limit or known["n"])
        try:
            return config, load_problems(known["source"], known["split"], config.limit)
        except ProblemError as error:
            raise ContrastInputError(f"{error}. They are those of {finished and finished.folder}: name them with --problems") from error
    source = config.problems or "shipped"
    return replace(config, problems=source), load_problems(source, config.split, config.limit)


def _check_runs(config: ContrastConfig, models: Sequence[Named], problems: Sequence[Problem]) -> None:
    """Finished head runs read their own answers to these problems, all under one setting.

    Raises:
        ContrastInputError: one did not; the message says what differs.
    """
    from distill.problems import problems_digest

    finished = [(m, _about(m)) for m in models if m.folder]
    digest = problems_digest(problems)
    for model, run in finished:
        where = f"{model.name} ({model.folder})"
        if run["text"] != "generated" or not run.get("generated"):
            raise ContrastInputError(
                f"{where} was measured with --text {run['text']}: right and wrong need the model's own answers; measure it with "
                "python -m analyses.heads --text generated, or name the model itself"
            )
        known = run["problems"]
        if known["sha256"] != digest:
            raise ContrastInputError(
                f"{where} read {known['n']} problems of {known['source']} ({known['sha256'][:12]}…), and these are {len(problems)} of "
                f"{config.problems} ({digest[:12]}…): name the run's problems with --problems, --split and --limit, or measure it again"
            )
        if run["generated"]["max_new_tokens"] != config.max_new_tokens:
            raise ContrastInputError(
                f"{where} wrote up to {run['generated']['max_new_tokens']} tokens, the others up to {config.max_new_tokens}: measure all "
                "with one --max-new-tokens"
            )
        if run["chat"] != finished[0][1]["chat"]:
            raise ContrastInputError(
                f"{finished[0][0].name} was measured with the chat template {finished[0][1]['chat']}, {where} with {run['chat']}: measure "
                "one again"
            )


def _measured(config: ContrastConfig, model: Named, problems: Sequence[Problem], opened: OpenModels) -> Path:
    """A model's head run on its own answers: the finished one that is there, the rest of an unfinished one, or a new one."""
    from analyses.heads import HeadsConfig
    from analyses.measuring import measured
    from distill.problems import problems_digest
    from interp.checkpoints import identify

    assert model.source is not None
    assert config.max_new_tokens is not None
    assert config.problems is not None
    folder = config.out / "heads" / model.name
    unfinished = folder.with_name(folder.name + ".partial").exists()
    wanted = HeadsConfig(
        model=model.source,
        problems=config.problems,
        split=config.split,
        limit=config.limit,
        text="generated",
        out=folder,
        base=model.base,
        device=config.device,
        dtype=config.dtype,
        batch_tokens=config.batch_tokens,
        measures=config.measures,
        chat=config.chat,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        name=model.name,
        resume=unfinished and not config.force,
        force=unfinished and config.force,
        figures=False,
        trust_remote_code=config.trust_remote_code,
    )
    identity = identify(model.source, trust_remote_code=config.trust_remote_code)
    return measured(wanted, identity, lambda: opened.open(model), problems_digest(problems))


def _on_common_measures(runs: list[Run]) -> list[Run]:
    common = [m for m in runs[0].values.measures if all(m in run.values.measures for run in runs)]
    if not common:
        names = ", ".join(run.name for run in runs)
        raise ContrastInputError(f"no measure is common to {names}; measure them again with the same --measures")
    restricted = []
    for run in runs:
        columns = [run.values.measures.index(m) for m in common]
        whole = columns == list(range(len(run.values.measures)))
        values = run.values if whole else replace(run.values, measures=tuple(common), values=run.values.values[:, :, :, columns])
        restricted.append(replace(run, values=values))
    return restricted


def _infos(model: Named, measures: Sequence[str]) -> list[dict[str, Any]]:
    known = {info["name"]: {key: value for key, value in info.items() if key != "way"} for info in _about(model)["measures"]}
    return [known[name] for name in measures]


# --- answers --------------------------------------------------------------------------------------------------------


def written_answers(inputs: pd.DataFrame, max_new_tokens: int) -> pd.DataFrame:
    """What a model wrote, from the `inputs` table of its run on generated text.

    The text is that of the answer's tokens in order; special tokens stand in the template's region and are left out. An answer is cut
    where its last token is no special one and `max_new_tokens` were written. The prompt after a question is the same for all, so it is as
    long as the shortest stretch between a question and its answer.

    Args:
        inputs: rows of `interp.table.INPUTS`.
        max_new_tokens: limit of the run.

    Returns:
        example, text, n_tokens (without special ones), cut; a row an example, ascending.
    """
    import pandas as pd

    rows = inputs.sort_values(["example", "position"], kind="stable")
    region, special = rows["region"].astype(str), rows["role"].astype(str) == "special"
    begins = rows[region == "response"].groupby("example")["position"].min()
    asked = rows[region == "question"].groupby("example")["position"].max()
    prompt = int((begins - asked).min()) if len(begins) else 1
    found = []
    for example, own in rows.groupby("example", sort=True):
        said = own[(region[own.index] == "response") & ~special[own.index]]
        last, first = int(own["position"].iloc[-1]), int(asked[example]) + prompt
        cut = not special[own.index[-1]] and last - first + 1 >= max_new_tokens
        found.append((example, "".join(said["token"]), len(said), cut))
    return pd.DataFrame(found, columns=["example", "text", "n_tokens", "cut"])


def graded(run: Run, about: dict[str, Any], problems: Sequence[Problem], grader: str) -> pd.DataFrame:
    """Rows of `interp.contrast.ANSWERS` of one model.

    Args:
        run: its head run on generated text.
        about: that run's run.json.
        problems: of the run, in order.
        grader: one of `distill.grading.GRADERS`.

    Raises:
        ContrastInputError: the run has other examples than there are problems.
        GradingError: a problem's reference holds no number.
    """
    from distill.grading import grade

    written = written_answers(run.inputs, about["generated"]["max_new_tokens"])
    if list(written["example"]) != [p.index for p in problems] or tuple(written["example"]) != run.values.examples:
        raise ContrastInputError(
            f"{run.name} has tables of {len(written)} examples, and there are {len(problems)} problems; measure it again"
        )
    verdicts = [
        grade(text, problem.answer, [grader], cut=cut)[0]
        for text, cut, problem in zip(written["text"], written["cut"].tolist(), problems, strict=True)
    ]
    table = written.rename(columns={"example": "problem"}).drop(columns="text")
    table.insert(0, "model", run.name)
    return table.assign(extracted=[v.extracted or "" for v in verdicts], correct=[v.correct for v in verdicts])


def _accuracy(model: Named, answers: pd.DataFrame) -> dict[str, Any]:
    from distill.statistics import wilson_interval

    n, n_right = len(answers), int(answers["correct"].sum())
    low, high = wilson_interval(n_right, n)
    return {
        "name": model.name,
        "condition": model.condition,
        "seed": model.seed,
        "folder": str(model.folder),
        "identity": _about(model)["model"],
        "accuracy": n_right / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "n_right": n_right,
        "n_problems": n,
        "n_cut": int(answers["cut"].sum()),
    }


def _embedded(models: Sequence[Named]) -> bool:
    return any(_about(m)["model"].get("kind") == "embedded" for m in models)


def warnings(models: Sequence[Named], answers: Sequence[pd.DataFrame], right: np.ndarray, *, same: bool) -> list[str]:
    """What a reader must know of these answers."""
    from interp.contrast import FEWEST

    told = []
    for model, table, one in zip(models, answers, right, strict=True):
        n_right, n_wrong = int(one.sum()), int((~one).sum())
        fewer = min((n_right, "right"), (n_wrong, "wrong"))
        if fewer[0] < FEWEST:
            told.append(f"{model.name} has {fewer[0]} {fewer[1]} of {len(one)} answers: no test of its own (from {FEWEST} on)")
        elif fewer[0] < FEW:
            told.append(f"{model.name} has only {fewer[0]} {fewer[1]} of {len(one)} answers: its tests are rough, take p for a hint")
        if table["cut"].any():
            told.append(
                f"{int(table['cut'].sum())} of {len(one)} answers of {model.name} were cut, which mostly makes them wrong, and long"
            )
    if _embedded(models):
        told.append("the embedded model of 135M parameters solves hardly any problem: its right answers are few, and may be luck")
    if len(models) > 1:
        both = int((right.any(0) & ~right.all(0)).sum())
        if not same:
            told.append("the models have other numbers of layers or heads, so nothing is paired by problem")
        elif both < FEW:
            told.append(f"only {both} problems are solved by some models and not by others: the paired test is rough, or not there")
    return told


# --- the folder -----------------------------------------------------------------------------------------------------


class _Folder:
    """One contrast's output; `run.json` is written last, and says that it is whole."""

    def __init__(self, out: Path, *, force: bool) -> None:
        self.out = out
        if out.exists() and not out.is_dir():
            raise ContrastInputError(f"--out {out} is a file; name a folder")
        if (out / "run.json").is_file():
            try:
                kind = json.loads((out / "run.json").read_text(encoding="utf-8")).get("kind")
            except (OSError, ValueError, AttributeError) as error:
                raise ContrastInputError(f"{out / 'run.json'} is damaged ({error}); name another --out") from error
            if kind != KIND:
                raise ContrastInputError(f"--out {out} holds results of another kind ({kind or 'a head run'}); name another folder")
            if not force:
                raise ContrastInputError(f"--out {out} holds a finished contrast; --force replaces it, or name another folder")
        elif out.is_dir():
            ours = {"heads", "figures", "contrast.parquet", "answers.parquet"}
            strange = sorted(path.name for path in out.iterdir() if path.name not in ours and ".draft" not in path.name)
            if strange:
                raise ContrastInputError(f"--out {out} holds {strange[0]!r}, which no contrast wrote; name another folder")
        out.mkdir(parents=True, exist_ok=True)

    def begin(self) -> None:
        """Drop what an earlier contrast left: none of it may stand among the new."""
        for name in ("run.json", "contrast.parquet", "answers.parquet"):
            (self.out / name).unlink(missing_ok=True)
        shutil.rmtree(self.out / "figures", ignore_errors=True)

    def write(self, table: pd.DataFrame, schema: Any) -> None:
        """One table, whole or not at all."""
        from interp.table import write

        draft = self.out / f".{schema.name}.draft"
        write(table, schema, draft)
        draft.replace(self.out / f"{schema.name}.parquet")

    def finish(self, about: dict[str, Any]) -> None:
        """Write run.json."""
        from distill.atomic import write_whole
        from interp.versions import versions

        whole = _plain({**about, "versions": versions()})
        write_whole(self.out / "run.json", json.dumps(whole, indent=1, ensure_ascii=False, default=str, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """For JSON, which knows neither NaN nor infinity: null."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and value - value != 0 else value


# --- telling --------------------------------------------------------------------------------------------------------


def summarise(table: pd.DataFrame, about: dict[str, Any], out: Path) -> None:
    """Accuracies, lengths, the foremost heads, and what they do not show, in a few lines."""
    import pandas as pd

    from interp.contrast import PAIRED, top_rows

    def shown(rows: list[dict[str, Any]] | pd.DataFrame) -> str:
        return pd.DataFrame(rows).to_string(index=False, na_rep="", float_format=lambda value: f"{value:.3g}")

    region, n_heads = about["region"], about["n_layers"] * about["n_heads"]
    for warning in about["warnings"]:
        print(f"warning: {warning}")
    print(f"\nAnswers to {about['n_examples']} problems, graded by {about['grader']}; Wilson's 95 % intervals:\n")
    columns = {"name": "model", "n_right": "right", "n_problems": "of", "n_cut": "cut", "accuracy": "accuracy"}
    accuracies = [{shown_as: m[key] for key, shown_as in columns.items()} for m in about["models"]]
    for row, model in zip(accuracies, about["models"], strict=True):
        row |= {"low": model["accuracy_low"], "high": model["accuracy_high"]}
    print(shown(accuracies))
    lengths = pd.DataFrame(about["lengths"])[
        ["model", "right_mean", "wrong_mean", "difference", "ci_low", "ci_high", "p", "n_right", "n_wrong"]
    ]
    print("\nLength of the answers in tokens, right minus wrong:\n")
    print(shown(lengths))
    for model in dict.fromkeys(table["model"].astype(str)):
        rows = table[(table["model"] == model) & (table["region"] == region) & table["q"].notna()]
        if rows.empty:
            print(f"\n{model}: no head is tested in region {region}")
            continue
        if model == PAIRED:
            both = f"{about['n_problems_both']} problems that some solve and some do not"
            print(f"\nModels paired by problem: {both}; t test with the variance clustered by problem (CR2)")
        else:
            print(f"\n{model}: right minus wrong answers, which are to different problems; Welch's t test")
        print(f"Benjamini-Hochberg over the {n_heads} heads of a measure, queries in {region}; 95 % intervals. Heads with q <= 0.05:\n")
        clear = [
            {"measure": measure, "q<=0.05": f"{int((group['q'] <= 0.05).sum())} of {len(group)}", "smallest q": group["q"].min()}
            for measure, group in rows.groupby("measure", observed=True, sort=False)
        ]
        print(shown(clear))
        top = top_rows(table, model, region, SHOWN)
        top.insert(0, "layer.head", top["layer"].astype(str) + "." + top["head"].astype(str))
        print(f"\nThe {len(top)} smallest q, of all measures together (q is corrected over heads, not over measures):\n")
        print(shown(top.drop(columns=["model", "layer", "head", "region"])))
    print()
    for caution in cautions(about):
        print(f"note: {caution}")
    print(f"\ntables:  contrast.parquet, answers.parquet, run.json in {out}")
    if (out / "figures").is_dir():
        print(f"figures: {out / 'figures'}")


def cautions(about: dict[str, Any]) -> list[str]:
    """What a difference between right and wrong answers does not show."""
    told = [
        "right answers come from easier, shorter problems: a head that differs within one model may show the problem, not the model",
        "a measure that follows the length of a text differs where the lengths above do",
        "a difference does not say that the head makes answers right",
    ]
    if about["region"] == "question":
        told.append("queries in the question have not seen the answer: within one model they differ by problem alone")
    if len(about["models"]) > 1:
        told.append("pairing takes away what a problem and a model bring along, not the length or the words of each answer")
    return told
