"""One problem under the lens: what each model reads and writes, how its heads compare with a run's, and the folder that holds all of it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pandas as pd

from analyses.head_runs import InputError, Named, read_run_json
from analyses.measuring import same_weights
from distill.atomic import write_whole
from distill.grading import GRADERS, Grade, grade
from distill.problems import Problem
from distill.steps import Step, steps
from interp.example import EXAMPLE_TABLES, STRONG
from interp.inference import benjamini_hochberg, new_observation
from interp.table import INPUTS, REGIONS, TableError, read, read_values, write

if TYPE_CHECKING:
    from interp.checkpoints import Checkpoint
    from interp.measures import Measure
    from interp.tokens import Tokens
    from interp.trace import Trace

AUTO = 6
"""Heads that `auto` takes."""
FOREMOST = 12
"""Heads that stand out most, as listed."""
FEWEST = 3
"""Other problems that a run must have for a comparison with it to say anything."""


class ExampleError(ValueError):
    """A problem, a head or a folder that cannot be looked at; the message says what was seen and what is allowed."""


@dataclass(frozen=True)
class Wish:
    """What is to be looked at, and how.

    Attributes:
        text: generated: the model's own answer; gold: the reference solution.
        heads: as typed: "12.3", "12" (a whole layer) or "auto".
        watch: likewise, without auto: the only heads whose maps are kept.
        by: measure by which `auto` chooses.
        region: of that measure.
        grader: of the answers.
        chat: use the chat template where there is one.
        max_new_tokens: cut of an answer.
        others: problems that are measured to compare with, where no run is there; 0: none.
        seed: of the shuffled token sets.
    """

    text: Literal["generated", "gold"] = "generated"
    heads: tuple[str, ...] = ("auto",)
    watch: tuple[str, ...] = ()
    by: str = "numeric_mass"
    region: str = "response"
    grader: str = "first_final"
    chat: bool = True
    max_new_tokens: int = 256
    others: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked without a model.

        Raises:
            ExampleError: a value out of range, or no head named.
        """
        if self.text not in ("generated", "gold"):
            raise ExampleError(f"text is {self.text!r}; generated and gold are allowed")
        if self.region not in REGIONS:
            raise ExampleError(f"region is {self.region!r}; allowed: {', '.join(REGIONS)}")
        if self.grader not in GRADERS:
            raise ExampleError(f"grader is {self.grader!r}; known: {', '.join(GRADERS)}")
        if self.max_new_tokens < 1 or self.seed < 0:
            raise ExampleError(f"{self.max_new_tokens} new tokens and seed {self.seed}: at least 1 and 0 are needed")
        if self.others < 0 or 0 < self.others < FEWEST:
            raise ExampleError(f"{self.others} other problems to compare with: 0 for none, or at least {FEWEST}")
        if not any(part.strip() for given in self.heads for part in given.split(",")):
            raise ExampleError("no head is named; write 12.3, 12 (a whole layer) or auto")


class Opens(Protocol):
    """Who opens models: `analyses.open_models.OpenModels`, or a notebook that has them open."""

    def open(self, model: Named) -> Checkpoint:
        """A model that is good until another is asked for."""
        ...


@dataclass(frozen=True)
class Reading:
    """What one model read, and what it wrote."""

    model: Named
    tokens: Tokens
    response: str
    steps: list[Step]
    step_of: np.ndarray
    finish: Literal["stop", "length"] | None
    grade: Grade | None
    standing: pd.DataFrame
    compared_with: dict[str, Any] | None
    notes: list[str]
    identity: dict[str, Any]
    layers: tuple[int, ...]
    n_heads: int


def look(
    models: Sequence[Named], opened: Opens, problem: Problem, wish: Wish, out: Path, about: dict[str, Any], pool: Sequence[Problem]
) -> Path:
    """Look at one problem with every model, and write the folder that figures and page are drawn from.

    Args:
        models: one or more, of names of their own.
        opened: opens them.
        problem: its answer may be "", where it is not known.
        wish: what to look at.
        out: the folder; of an earlier look, its tables are replaced.
        about: for run.json: command, versions, and `problem` (source, index, n).
        pool: problems from which those that a model is compared on are taken, where it has no run.

    Raises:
        ExampleError: see its messages; InputError and others as analyses.heads raises them.
    """
    from interp.measures import load_measures

    measures = load_measures()
    if wish.by not in measures:
        raise ExampleError(f"--by {wish.by} is no measure; known: {', '.join(measures)}")
    named_heads(wish, *_shape(opened.open(models[0])))  # before the model answers
    readings = [read_problem(model, opened, problem, wish, measures, out, pool) for model in models]
    form = (readings[0].layers, readings[0].n_heads)
    for other in readings[1:]:
        if (other.layers, other.n_heads) != form:
            raise ExampleError(
                f"{readings[0].model.name} has {len(form[0])} layers of {form[1]} heads, {other.model.name} {len(other.layers)} of "
                f"{other.n_heads}: side by side are models of one form; look at them one by one"
            )
    order = standing_out([r.standing for r in readings], wish.by, wish.region)
    watched, chosen = choose_heads(readings, wish, order)
    traces: dict[str, Trace] = {}
    for reading in reversed(readings):  # the last is open still
        say(f"looking at the heads of {reading.model.name}")
        traces[reading.model.name] = _trace(opened.open(reading.model), reading, measures, watched, bool(wish.watch), wish.seed)
    _write(readings, traces, measures, (watched, chosen, order[:FOREMOST]), problem, wish, out, about)
    return out


def say(text: str) -> None:
    """A line of progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


# --- reading --------------------------------------------------------------------------------------------------------


def read_problem(
    model: Named, opened: Opens, problem: Problem, wish: Wish, measures: dict[str, Measure], out: Path, pool: Sequence[Problem]
) -> Reading:
    """Let a model answer (or read the reference), and measure its heads on that text."""
    import torch

    from analyses.heads import HeadsConfig, decoder_of, plan, stop_ids, write_answers
    from interp.recorder import record
    from interp.seam import attention_layers

    checkpoint = opened.open(model)
    config = HeadsConfig(model=str(model.source), text=wish.text, max_new_tokens=wish.max_new_tokens, chat=wish.chat)
    chat = wish.chat and getattr(checkpoint.tokenizer, "chat_template", None) is not None
    if checkpoint.model.training:
        raise ExampleError(f"{model.name} is in training mode, so dropout would change its numbers; call model.eval()")
    prompts, _ = plan(config, checkpoint, [problem], chat)
    others, compared, notes = compared_values(model, checkpoint, prompts, wish, list(measures), out, pool, problem)
    finish = None
    if wish.text == "generated":
        if not checkpoint.model.can_generate():
            raise ExampleError(f"{model.name} cannot generate; --text gold lets it read the reference solution")
        say(f"{model.name} answers")
        tokens, _ = write_answers(checkpoint, prompts.select([0], "left"), wish.max_new_tokens)
        finish = "stop" if int(tokens.texts[0].ids[-1]) in stop_ids(checkpoint) else "length"
        start = len(prompts.texts[0].text)
    else:
        tokens = prompts
        start = len(prompts.texts[0].text) - len(problem.answer)
    text = tokens.texts[0]
    response = text.text[start : text.offsets[text.in_region("response"), 1].max(initial=start)]
    found = steps(response, cut=finish == "length")
    verdict = None
    if wish.text == "generated" and problem.final_answer:
        verdict = grade(response, problem.answer, [wish.grader], cut=finish == "length")[0]
    device = checkpoint.model.device
    inputs = {name: tensor.to(device) for name, tensor in tokens.inputs.items()}
    with torch.inference_mode(), record(checkpoint.model, tokens, measures, way="blocked", seed=wish.seed) as heads:
        decoder_of(checkpoint.model)(**inputs, use_cache=False)
    values, counts = heads.totals.values()
    layers, n_heads = attention_layers(checkpoint.model.config), int(values.shape[2])
    return Reading(
        model,
        tokens,
        response,
        found,
        steps_of_tokens(text.offsets, text.in_region("response"), start, found),
        finish,
        verdict,
        standing_table(values[0], counts[0], others, layers, list(measures)),
        compared,
        notes,
        checkpoint.identity,
        layers,
        n_heads,
    )


def steps_of_tokens(offsets: np.ndarray, in_response: np.ndarray, start: int, found: Sequence[Step]) -> np.ndarray:
    """The step that each token's first character stands in, counted from 0, [token]; -1 outside the response and between steps."""
    step_of = np.full(len(offsets), -1, np.int64)
    for number, step in enumerate(found):
        last = np.maximum(offsets[:, 1], offsets[:, 0] + 1)
        inside = (offsets[:, 0] < start + step.stop) & (last > start + step.start)
        step_of[in_response & inside & (step_of < 0)] = number
    return step_of


# --- comparing ------------------------------------------------------------------------------------------------------


def compared_values(
    model: Named,
    checkpoint: Checkpoint,
    tokens: Tokens,
    wish: Wish,
    measures: list[str],
    out: Path,
    pool: Sequence[Problem],
    problem: Problem,
) -> tuple[np.ndarray | None, dict[str, Any] | None, list[str]]:
    """Every head's measures on other problems, [example, layer, head, measure, region], where they are from, and why not from elsewhere.

    They are of the run that was named, of the model's usual run folder, or of a small run that is made here; always of the same kind of
    text, since a head looks otherwise at a reference solution than at an answer.
    """
    usual = Path("runs") / (model.name if wish.text == "gold" else f"{model.name}-generated")
    known = checkpoint.identity.get("weights_sha256") or checkpoint.identity.get("revision")
    tried = dict.fromkeys(folder for folder in (model.folder, usual if known else None) if folder is not None)
    notes: list[str] = []
    for folder in [f for f in tried if (f / "run.json").is_file()]:
        try:
            reason = _unlike(folder, checkpoint, wish, measures)
            found = None if reason else _others(folder, tokens, measures)
        except (InputError, TableError) as error:
            if folder == model.folder:
                raise
            reason, found = str(error), None
        if found is not None and len(found) >= FEWEST:
            return found, {"source": str(folder), "text": wish.text, "n_examples": len(found)}, notes
        reason = reason or f"it has {0 if found is None else len(found)} other problems, {FEWEST} are needed"
        notes.append(f"{model.name} is not compared with {folder}: {reason}")
    others = [p for p in pool if p.question != problem.question][: wish.others]
    if len(others) < FEWEST:
        return None, None, notes
    found = _others(_small_run(model, checkpoint, wish, others, out), tokens, measures)
    return found, {"source": "measured for it", "text": wish.text, "n_examples": len(found)}, notes


def _unlike(folder: Path, checkpoint: Checkpoint, wish: Wish, measures: list[str]) -> str | None:
    """Why a run does not fit; None where it does."""
    run = read_run_json(folder)
    chat = wish.chat and getattr(checkpoint.tokenizer, "chat_template", None) is not None
    if not same_weights(run["model"], checkpoint.identity):
        return "it is of other weights"
    if run["text"] != wish.text or run["chat"] != chat:
        return f"it read {run['text']} text{'' if run['chat'] == chat else ' through another template'} (--text {run['text']} fits it)"
    cut = (run.get("generated") or {}).get("max_new_tokens")
    if wish.text == "generated" and cut != wish.max_new_tokens:
        return f"its answers were cut at {cut} tokens, this one at {wish.max_new_tokens} (--max-new-tokens)"
    here = {"dtype": _dtype(checkpoint), "seed": wish.seed}
    differ = [f"{key} {run.get(key)}, here {value}" for key, value in here.items() if run.get(key) != value]
    if differ:
        return f"it has {' and '.join(differ)}"
    missing = sorted(set(measures) - {info["name"] for info in run["measures"]})
    return f"it lacks {', '.join(missing)}" if missing else None


def _dtype(checkpoint: Checkpoint) -> Any:
    """As options name it."""
    return str(checkpoint.model.dtype).removeprefix("torch.")


def _others(folder: Path, tokens: Tokens, measures: list[str]) -> np.ndarray:
    """A run's values on all problems but this one."""
    values = read_values(folder / "examples.parquet")
    inputs = read(folder / "inputs.parquet", INPUTS)
    text = tokens.texts[0]
    question = text.ids[text.in_region("question")]
    asked = inputs[inputs["region"] == "question"].groupby("example")["token_id"].agg(list)
    kept = [at for at, example in enumerate(values.examples) if not np.array_equal(asked.get(example, []), question)]
    columns = [values.measures.index(name) for name in measures]
    return values.values[kept][:, :, :, columns]


def _small_run(model: Named, checkpoint: Checkpoint, wish: Wish, others: Sequence[Problem], out: Path) -> Path:
    """A head run of a few problems, kept in the folder for the next look."""
    from analyses.heads import HeadsConfig
    from analyses.measuring import measured, written
    from interp.checkpoints import identify

    file = written(others, out / "problems.jsonl")
    wanted = HeadsConfig(
        model=str(model.source),
        problems=str(file),
        text=wish.text,
        max_new_tokens=wish.max_new_tokens,
        out=out / "heads" / model.name,
        base=model.base,
        dtype=_dtype(checkpoint),
        chat=wish.chat,
        seed=wish.seed,
        name=model.name,
        figures=False,
    )
    say(f"{model.name} on {len(others)} other problems, to compare with")
    identity = identify(model.source) if model.source else {}
    known = {"dtype": _dtype(checkpoint), "device": str(checkpoint.model.device), "unused_weights": [], **checkpoint.identity}
    with redirect_stdout(sys.stderr):
        return measured(wanted, identity, lambda: dataclasses.replace(checkpoint, identity=known))


def standing_table(
    values: np.ndarray, counts: np.ndarray, others: np.ndarray | None, layers: Sequence[int], measures: Sequence[str]
) -> pd.DataFrame:
    """The rows of `interp.example.STANDING`, without the model.

    Args:
        values: [layer, head, measure, region], NaN where undefined.
        counts: queries likewise.
        others: [example, layer, head, measure, region] of a run; None: nothing to compare with.
        layers: numbers of the layers.
        measures: names.
    """
    axes = [layers, range(values.shape[1]), measures, REGIONS]
    frame = pd.MultiIndex.from_product(axes, names=["layer", "head", "measure", "region"]).to_frame(index=False)
    frame["value"], frame["n_queries"] = values.ravel().astype(float), counts.ravel()
    if others is None:
        return frame.assign(mean=np.nan, sd=np.nan, n_examples=0, t=np.nan, p=np.nan, q=np.nan)
    found = new_observation(values.ravel().astype(float), others.reshape(len(others), -1).astype(float))
    p = found["p"].reshape(values.shape)
    q = np.stack(
        [[benjamini_hochberg(p[:, :, m, r]) for r in range(p.shape[3])] for m in range(p.shape[2])]
    )  # [measure, region, layer, head]
    return frame.assign(**found, q=q.transpose(2, 3, 0, 1).ravel())


# --- heads ----------------------------------------------------------------------------------------------------------


def parse_heads(typed: Sequence[str], layers: Sequence[int], n_heads: int, option: str) -> list[tuple[int, int]]:
    """(layer, head) of "12.3", of every head of "12", in the order typed; "auto" is left out.

    Raises:
        ExampleError: not of that form, or no such head; the message says the model's shape.
    """
    found: dict[tuple[int, int], None] = {}
    form = f"the model has layers {layers[0]} to {layers[-1]} with heads 0 to {n_heads - 1}"
    for name in [part.strip() for given in typed for part in given.split(",") if part.strip()]:
        if name == "auto":
            continue
        layer, dot, head = name.partition(".")
        if not layer.isdecimal() or not (head.isdecimal() if dot else not head):
            raise ExampleError(
                f"{option} {name!r}: a head is written 12.3, a whole layer 12{', or auto' if option == '--heads' else ''}; {form}"
            )
        if int(layer) not in layers or (dot and int(head) >= n_heads):
            raise ExampleError(f"{option}: there is no head {name}; {form}")
        for one in (int(head),) if dot else range(n_heads):
            found[int(layer), one] = None
    return list(found)


def _shape(checkpoint: Checkpoint) -> tuple[tuple[int, ...], int]:
    from interp.seam import attention_layers

    config = checkpoint.model.config
    return attention_layers(config), int(config.get_text_config(decoder=True).num_attention_heads)


def named_heads(wish: Wish, layers: Sequence[int], n_heads: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The heads of --heads and of --watch.

    Raises:
        ExampleError: one that does not exist, or that is to be shown and not watched.
    """
    named = parse_heads(wish.heads, layers, n_heads, "--heads")
    watched = parse_heads(wish.watch, layers, n_heads, "--watch")
    if watched and named and not set(named) <= set(watched):
        missing = next(head for head in named if head not in watched)
        raise ExampleError(f"--heads {missing[0]}.{missing[1]} is not among the heads of --watch: name it there too")
    return named, watched


def choose_heads(
    readings: Sequence[Reading], wish: Wish, order: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The heads whose maps are kept, and those that are shown first.

    Args:
        readings: of all models.
        wish: which were named.
        order: as `standing_out` gives it.
    """
    named, watched = named_heads(wish, readings[0].layers, readings[0].n_heads)
    asked = {part.strip() for given in wish.heads for part in given.split(",")}
    if watched:
        chosen = named or [head for head in order if head in set(watched)]
        return watched, [*chosen, *(head for head in watched if head not in chosen)][: max(AUTO, len(named))]
    chosen = [*named, *([head for head in order if head not in named][:AUTO] if "auto" in asked or not named else [])]
    return sorted(chosen), chosen


def standing_out(tables: Sequence[pd.DataFrame], by: str, region: str) -> list[tuple[int, int]]:
    """All heads, the one that stands out most first.

    Those that differ from their run at p <= 0.05 (of any model) come first, by the size of the difference; the others follow likewise.
    Without a run, the largest values come first.
    """
    best: dict[tuple[int, int], tuple[bool, float]] = {}
    for table in tables:
        rows = table[(table["measure"] == by) & (table["region"] == region)]
        compared = rows["mean"].notna()
        size = np.where(compared, (rows["value"] - rows["mean"]).abs(), rows["value"] if not compared.any() else -1.0)
        for layer, head, p, each in zip(rows["layer"], rows["head"], rows["p"], size, strict=True):
            key = (bool(p <= 0.05), float(each) if np.isfinite(each) else -1.0)
            best[int(layer), int(head)] = max(best.get((int(layer), int(head)), key), key)
    return sorted(best, key=lambda head: (*(-v for v in best[head]), *head))


# --- writing --------------------------------------------------------------------------------------------------------


def _trace(
    checkpoint: Checkpoint, reading: Reading, measures: dict[str, Measure], watched: Sequence[tuple[int, int]], only: bool, seed: int
) -> Trace:
    from interp.trace import trace

    return trace(
        checkpoint.model, reading.tokens, measures, step_of=reading.step_of, watched=watched, strong=None if only else STRONG, seed=seed
    )


def shared_tokens(readings: Sequence[Reading]) -> int:
    """Tokens from the beginning that are the same in all readings."""
    ids = [reading.tokens.texts[0].ids for reading in readings]
    count = min(map(len, ids))
    differ = [np.flatnonzero(ids[0][:count] != other[:count]) for other in ids[1:]]
    return min([count, *(int(at[0]) for at in differ if len(at))])


def _write(
    readings: Sequence[Reading],
    traces: dict[str, Trace],
    measures: dict[str, Measure],
    heads: tuple[Sequence[tuple[int, int]], ...],
    problem: Problem,
    wish: Wish,
    out: Path,
    about: dict[str, Any],
) -> None:
    from interp.trace import token_rows
    from interp.versions import versions

    out.mkdir(parents=True, exist_ok=True)
    for name in ("run.json", "example.html"):  # run.json's being there says that the tables are whole
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "figures", ignore_errors=True)  # of another problem, perhaps
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in EXAMPLE_TABLES}
    warnings: list[str] = []
    models = []
    for reading in readings:
        name, of = reading.model.name, traces[reading.model.name]
        frames = {
            "tokens": token_rows(reading.tokens.texts[0]).assign(step=reading.step_of),
            "edges": of.edges,
            "standing": reading.standing,
            "steps": of.steps,
            "next": of.next,
        }
        for key, frame in frames.items():
            found[key].append(frame.assign(model=name))
        warnings += reading.notes
        if reading.finish == "length":
            warnings.append(f"{name}: the answer ran into the cut of {wish.max_new_tokens} tokens (--max-new-tokens)")
        if reading.compared_with is None:
            wanted = "" if wish.text == "gold" else " --text generated"
            warnings.append(
                f"{name}: nothing to compare with, so heads are chosen by their value alone; a run of "
                f"python -m analyses.heads{wanted} says what is usual, and so does --others N"
            )
        else:
            n = reading.compared_with["n_examples"]
            if n < 20:
                warnings.append(f"{name}: compared with {n} other problems only; a run of more says more (python -m analyses.heads)")
        if reading.identity.get("unused_weights"):
            warnings.append(f"{name}: {len(reading.identity['unused_weights'])} weights of the checkpoint were not used")
        models.append(
            {
                "name": name,
                "condition": reading.model.condition,
                "seed": reading.model.seed,
                "response": reading.response,
                "finish": reading.finish,
                "n_tokens": len(reading.tokens.texts[0]),
                "grade": None if reading.grade is None else dataclasses.asdict(reading.grade),
                "steps": [
                    {
                        "text": step.text,
                        "sums": [
                            {
                                "written": s.written,
                                "result": s.result,
                                "value": s.exact,
                                "right": s.right,
                            }
                            for s in step.sums
                        ],
                    }
                    for step in reading.steps
                ],
                "compared_with": reading.compared_with,
                "identity": reading.identity,
            }
        )
        rows = reading.standing[(reading.standing["measure"] == wish.by) & (reading.standing["region"] == wish.region)]
        if not (rows["value"].abs() > 0).any():
            title = measures[wish.by].info.title.lower()
            warnings.append(
                f"{name}: no head has any {title} in this text, so the heads shown are arbitrary; choose by another measure (--by)"
            )
    for key, frames in found.items():
        draft = out / f".{key}.draft"
        write(pd.concat(frames, ignore_index=True), EXAMPLE_TABLES[key], draft)
        draft.replace(out / f"{key}.parquet")
    run = {
        **about,
        "kind": "example",
        "versions": versions(),
        "seed": wish.seed,
        "text": wish.text,
        "chat": wish.chat,
        "max_new_tokens": wish.max_new_tokens if wish.text == "generated" else None,
        "problem": {**about["problem"], "question": problem.question, "answer": problem.answer or None},
        "models": models,
        "measures": [dataclasses.asdict(m.info) for m in measures.values()],
        "layers": list(readings[0].layers),
        "n_heads": readings[0].n_heads,
        **{key: [list(head) for head in of] for key, of in zip(("watched", "chosen", "foremost"), heads, strict=True)},
        "by": wish.by,
        "region": wish.region,
        "shared_tokens": shared_tokens(readings),
        "warnings": warnings,
    }
    write_whole(out / "run.json", json.dumps(run, indent=1, ensure_ascii=False, default=str) + "\n")


def check_folder(out: Path) -> None:
    """Refuse a place that holds other things.

    Raises:
        ExampleError: a file, or a folder that no look at a problem has written.
    """
    if out.exists() and not out.is_dir():
        raise ExampleError(f"--out {out} is a file; name a folder")
    ours = {*(f"{name}.parquet" for name in EXAMPLE_TABLES), "run.json", "example.html", "figures", "heads", "problems.jsonl"}
    strange = sorted(p.name for p in out.iterdir() if p.name not in ours and ".draft" not in p.name) if out.is_dir() else []
    kind = "example"
    if (out / "run.json").is_file():
        try:
            kind = json.loads((out / "run.json").read_text(encoding="utf-8")).get("kind", "head run")
        except (ValueError, AttributeError):
            kind = "damaged run"
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise ExampleError(f"--out {out} cannot be written to; name another folder")
    if strange or kind != "example":
        raise ExampleError(
            f"--out {out} holds {strange[0] if strange else f'a {kind}'}, which no look at a problem wrote; name another folder"
        )
