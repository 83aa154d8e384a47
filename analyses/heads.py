"""`python -m analyses.heads`: one checkpoint in; every attention head measured, tables, figures and a page out."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from analyses.command import guarded

if TYPE_CHECKING:
    from analyses.runs import Part, RunFolder
    from distill.problems import Problem
    from interp.checkpoints import Checkpoint
    from interp.measures import Measure
    from interp.tokens import Tokens

PROG = "python -m analyses.heads"
EXAMPLES = """
Examples:

  python -m analyses.heads                                     the embedded model on the shipped problems
  python -m analyses.heads --model Qwen/Qwen3-0.6B --problems gsm8k --limit 100
  python -m analyses.heads --model students/teacher --base meta-llama/Llama-3.1-8B-Instruct
  python -m analyses.heads --model model.gguf --problems my.jsonl --text generated
  accelerate launch -m analyses.heads --model DIR --out runs/dir          examples split over GPUs
  torchrun --nproc-per-node 2 -m analyses.heads --device cpu              examples split over processes of a CPU
"""


class OptionError(Exception):
    """An option out of range, or two that exclude each other. No ValueError: tyro prints those in a box of many lines."""


@dataclass(frozen=True)
class HeadsConfig:
    """Measure every attention head of a causal language model on worked maths problems.

    Attributes:
        model: hub id, local folder, PEFT adapter folder, .gguf file, or smollm2 (the embedded default).
        problems: shipped (our own set), gsm8k (the hub's openai/gsm8k), or a JSONL file in GSM8K's format.
        split: of gsm8k, train or test.
        limit: first N problems only.
        text: gold reads question and reference solution (the same for every model); generated reads the model's own greedy answer.
        out: folder for the results; default runs/MODEL, or runs/MODEL-generated.
        base: base model of an adapter, where its config names none or another place.
        revision: of a hub id.
        device: auto, cpu, cuda, cuda:N, mps, or balanced (layers over all CUDA devices).
        dtype: auto is the checkpoint's own, but float32 on a CPU.
        batch_tokens: padded tokens of a batch, at most (one text may be longer).
        measures: names; all where none is given. An unknown name lists the known.
        way: how statistics are taken: auto, blocked (exact pass over blocks), flash (log-sum-exp of a fused kernel), or triton (one
            GPU kernel; its arithmetic is tested, but it has not been run on a GPU yet). The blocked way takes layers that the others
            cannot express; run.json then says which.
        chat: use the chat template where the tokenizer has one.
        max_new_tokens: cut of generated answers, in tokens.
        seed: of the bootstrap and of the shuffled token sets.
        name: of the model in tables and figures; default from --model.
        resume: go on with an interrupted run.
        force: replace a finished run, or begin an unfinished one anew.
        figures: draw figures and page.
        trust_remote_code: run the checkpoint's own model code.
        debug: show the traceback of an error.
    """

    model: str = "smollm2"
    problems: str = "shipped"
    split: str = "test"
    limit: int | None = None
    text: Literal["gold", "generated"] = "gold"
    out: Path | None = None
    base: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_tokens: int = 2048
    measures: tuple[str, ...] = ()
    way: Literal["auto", "blocked", "flash", "triton"] = "auto"
    chat: bool = True
    max_new_tokens: int = 256
    seed: int = 0
    name: str | None = None
    resume: bool = False
    force: bool = False
    figures: bool = True
    trust_remote_code: bool = False
    debug: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            OptionError: a number below 1, a negative seed, or two options that exclude each other.
        """
        for option in ("batch_tokens", "max_new_tokens"):
            if getattr(self, option) < 1:
                raise OptionError(f"--{option.replace('_', '-')} is {getattr(self, option)}; at least 1 is needed")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"--limit is {self.limit}; at least 1 is needed")
        if self.seed < 0:
            raise OptionError(f"--seed is {self.seed}; 0 or more is needed")
        if self.resume and self.force:
            raise OptionError("--resume goes on with a run and --force begins anew: give one of them")

    def folder(self) -> Path:
        """Where the results go."""
        if self.out is not None:
            return self.out if self.out.name not in ("", "..") and not self.out.is_symlink() else self.out.resolve()
        short = re.sub(r"[^\w.\-]+", "-", self.name or Path(self.model).name.removesuffix(".gguf")) or "model"
        return Path("runs") / (short if self.text == "gold" else f"{short}-generated")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 after an error in the input, 130 when interrupted."""
    try:
        config = tyro.cli(HeadsConfig, prog=PROG, description=(HeadsConfig.__doc__ or "").split("\n")[0] + "\n" + EXAMPLES, args=arguments)
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = shlex.join(["python", "-m", "analyses.heads", *(sys.argv[1:] if arguments is None else arguments)])
    return guarded(
        lambda: run(config, command),
        debug=config.debug,
        interrupted=lambda: _after_interruption(config),
        out=config.folder(),
        kept="batches that were finished are kept for --resume",
        smaller="a smaller --batch-tokens",
    )


def _after_interruption(config: HeadsConfig) -> str:
    kept = config.folder().with_name(config.folder().name + ".partial")
    if not kept.exists():
        return "nothing was finished, and nothing is kept"
    return f"finished batches are kept in {kept}: the same command with --resume goes on"


class InputError(ValueError):
    """Problems and model do not fit together."""


def run(config: HeadsConfig, command: str, opened: Callable[[], Checkpoint] | None = None) -> int:
    """The whole job: problems, model, batches, tables, figures.

    Args:
        config: what to do.
        command: for the record of the run.
        opened: gives the model, where it is open already; None opens `config.model`.
    """
    from analyses.runs import RunFolder
    from distill.problems import load_problems, problems_digest

    started = time.perf_counter()
    problems = load_problems(config.problems, config.split, config.limit)
    from accelerate import PartialState  # the first import of torch: what is wrong with files and options was said before it

    from interp.checkpoints import choose_device, open_checkpoint
    from interp.measures import load_measures

    # processes that are not told that there is no GPU would each take themselves for the only one
    state = PartialState(cpu=choose_device(config.device) == "cpu")
    own_device = config.device == "auto" and state.num_processes > 1 and not str(state.device).startswith("cpu")
    first = state.is_main_process
    measures = load_measures([n for given in config.measures for n in given.split(",") if n] or None)
    folder = None
    if first:
        folder = RunFolder(config.folder(), force=config.force, resume=config.resume)
    state.wait_for_everyone()
    folder = folder or RunFolder(config.folder(), force=config.force, resume=True, lock=False)
    try:
        say(first, f"opening {config.model}")
        if opened is not None:
            checkpoint = opened()
        else:
            checkpoint = open_checkpoint(
                config.model,
                base=config.base,
                device=str(state.device) if own_device else config.device,
                dtype=config.dtype,
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
            )
        open_at = time.perf_counter()
        way = choose(config, checkpoint, measures)
        chat = config.chat and getattr(checkpoint.tokenizer, "chat_template", None) is not None
        texts, batches = plan(config, checkpoint, problems, chat)
        settings = {
            "model": {key: value for key, value in checkpoint.identity.items() if key not in ("source", "name", "device")},
            "problems": problems_digest(problems),
            "measures": list(measures),
            "text": config.text,
            "chat": chat,
            "max_new_tokens": config.max_new_tokens if config.text == "generated" else None,
            "batch_tokens": config.batch_tokens,
            "way": way,
            "seed": config.seed,
            "device": checkpoint.identity["device"].split(":")[0],
        }
        if first:
            folder.begin(settings)
        state.wait_for_everyone()
        todo = [n for n in range(len(batches)) if n % state.num_processes == state.process_index and not folder.has(n)]
        if config.resume:
            say(
                first,
                f"resuming: {len(batches) - len(todo)} of {len(batches)} batches are done" if state.num_processes == 1 else "resuming",
            )
        record_batches(config, checkpoint, texts, batches, todo, measures, way, folder, show=first)
        state.wait_for_everyone()
    except BaseException:
        if first:
            folder.abandon()
        raise
    if not first:
        return 0
    recorded = time.perf_counter()
    say(True, "making tables")
    run_record = assemble(config, checkpoint, problems, measures, folder, len(batches), settings, command)
    tabled = time.perf_counter()
    from analyses.runs import peak_memory_bytes, write_json

    run_record["n_processes"] = state.num_processes
    run_record["timings"] = {
        "open_seconds": round(open_at - started, 3),
        "record_seconds": round(recorded - open_at, 3),
        "tables_seconds": round(tabled - recorded, 3),
    }
    run_record["memory"] = {f"{name}_peak_bytes": size for name, size in peak_memory_bytes().items()}
    write_json(folder.partial / "run.json", run_record)
    drawn: list[Path] = []
    if config.figures:
        from figures.run_folder import draw_run

        say(True, "drawing figures")
        drawn = draw_run(folder.partial)
        run_record["timings"]["figures_seconds"] = round(time.perf_counter() - tabled, 3)
    run_record["timings"]["total_seconds"] = round(time.perf_counter() - started, 3)
    write_json(folder.partial / "run.json", run_record)
    folder.publish()
    for warning in run_record["warnings"]:
        print(f"warning: {warning}")
    print(f"tables:  {folder.out / 'heads.parquet'}, examples.parquet, inputs.parquet, run.json")
    if drawn:
        print(f"figures: {len(drawn) - 1} files in {folder.out / 'figures'}")
        print(f"report:  {folder.out / 'report.html'}")
    return 0


def say(show: bool, text: str) -> None:
    """A line of progress, to standard error."""
    if show:
        print(text, file=sys.stderr, flush=True)


def choose(config: HeadsConfig, checkpoint: Checkpoint, measures: dict[str, Measure]) -> str:
    """The way of recording: as asked, or by the recorder's rule."""
    from interp.ways import check_way, choose_way

    if config.way == "auto":
        return choose_way(checkpoint.model, measures.values())
    check_way(config.way, checkpoint.model, measures.values())
    return config.way


def plan(config: HeadsConfig, checkpoint: Checkpoint, problems: list[Problem], chat: bool) -> tuple[Tokens, list[list[int]]]:
    """Annotated texts (or prompts), and which of them go together: sorted by length, as many as the token budget allows.

    Raises:
        InputError: a text is longer than the model's positions.
    """
    from interp.tokens import annotate

    generated = config.text == "generated"
    texts = annotate(
        checkpoint.tokenizer,
        [p.question for p in problems],
        None if generated else [p.answer for p in problems],
        chat=chat,
        examples=[p.index for p in problems],
    )
    extra = config.max_new_tokens if generated else 0
    lengths = [len(text) + extra for text in texts.texts]
    embedded = checkpoint.model.get_input_embeddings().num_embeddings
    highest = max(int(text.ids.max()) for text in texts.texts)
    if highest >= embedded:
        raise InputError(f"the tokenizer gives token id {highest}, the model knows 0 to {embedded - 1}: the tokenizer is another model's")
    limit = checkpoint.position_limit
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if limit is not None and len(lengths) == 1 and lengths[0] > limit:
        fewer = f"; --max-new-tokens {limit - lengths[0] + extra} fits" if extra and lengths[0] - extra < limit else ""
        new = f" and {extra} new ones" if extra else ""
        raise InputError(f"the problem has {lengths[0] - extra} tokens{new}, the model has {limit} positions{fewer}")
    if limit is not None and lengths[longest] > limit:
        raise InputError(
            f"problem {texts.texts[longest].example} (counted from 0) has {lengths[longest]} tokens"
            f"{f' ({extra} of them new)' if extra else ''}, the model has {limit} positions; "
            f"{sum(n > limit for n in lengths)} of {len(lengths)} problems are too long: leave them out"
        )
    batches: list[list[int]] = [[]]
    for at in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):  # longest first: memory fails early or never
        if batches[-1] and (len(batches[-1]) + 1) * lengths[batches[-1][0]] > config.batch_tokens:
            batches.append([])
        batches[-1].append(at)
    return texts, batches


def record_batches(
    config: HeadsConfig,
    checkpoint: Checkpoint,
    texts: Tokens,
    batches: list[list[int]],
    todo: list[int],
    measures: dict[str, Measure],
    way: str,
    folder: RunFolder,
    *,
    show: bool,
) -> None:
    """Record batch after batch, each kept as soon as it is done."""
    from tqdm import tqdm

    total = sum(len(texts.texts[i]) for number in todo for i in batches[number])
    with tqdm(total=total, unit="tok", unit_scale=True, disable=not show, desc="recording", dynamic_ncols=True) as bar:
        for number in todo:
            folder.write_part(number, record_batch(config, checkpoint, texts, batches[number], measures, way))
            bar.update(sum(len(texts.texts[i]) for i in batches[number]))


def record_batch(
    config: HeadsConfig, checkpoint: Checkpoint, texts: Tokens, batch: list[int], measures: dict[str, Measure], way: str
) -> Part:
    """One batch: the model's answers where asked for, then one recorded forward."""
    import torch

    from analyses.runs import Part
    from interp.recorder import record

    tokens, n_cut = texts.select(batch), 0
    if config.text == "generated":
        tokens, n_cut = write_answers(checkpoint, texts.select(batch, "left"), config.max_new_tokens)
    device = checkpoint.model.device
    inputs = {name: tensor.to(device) for name, tensor in tokens.inputs.items()}
    # the decoder alone: logits of every token are not needed
    decoder = decoder_of(checkpoint.model)
    with torch.inference_mode(), record(checkpoint.model, tokens, measures, way=way, seed=config.seed) as heads:
        decoder(**inputs, use_cache=False)
    values, counts = heads.totals.values()
    blocked = tuple(layer for layer, taken in sorted(heads.ways.items()) if taken != heads.way)
    return Part(list(heads.totals.examples), values, counts, tokens.to_frame(), n_cut, blocked)


def decoder_of(model: Any) -> Any:
    """The model without its language-modelling head (PEFT's layers are inside it)."""
    from transformers import PreTrainedModel

    return next(m for m in model.modules() if isinstance(m, PreTrainedModel)).base_model


def stop_ids(checkpoint: Checkpoint) -> list[int]:
    """Tokens that end the model's text."""
    own = getattr(checkpoint.model, "generation_config", None)
    stop = getattr(own, "eos_token_id", None)
    stop = checkpoint.tokenizer.eos_token_id if stop is None else stop
    return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)


def write_answers(checkpoint: Checkpoint, prompts: Tokens, max_new_tokens: int) -> tuple[Tokens, int]:
    """The model's greedy answers, annotated, and how many of them ran into the cut."""
    import torch
    from transformers import GenerationConfig

    model, stops = checkpoint.model, stop_ids(checkpoint)
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stops or None, pad_token_id=prompts.pad_id, use_cache=True
    )
    inputs = {name: prompts.inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        written = model.generate(**inputs, generation_config=greedy).cpu().numpy()[:, prompts.width :]
    tokens = prompts.extend(written, stops)
    cut = sum(len(text) == len(prompt) + max_new_tokens for text, prompt in zip(tokens.texts, prompts.texts, strict=True))
    from interp.tokens import Tokens as Batch

    return Batch(tokens.texts, "right", prompts.pad_id, prompts.tokenizer, prompts.sources), cut


def assemble(
    config: HeadsConfig,
    checkpoint: Checkpoint,
    problems: list[Problem],
    measures: dict[str, Measure],
    folder: RunFolder,
    n_batches: int,
    settings: dict[str, Any],
    command: str,
) -> dict[str, Any]:
    """Make the tables from the parts, in the problems' order whatever the batches were; return the contents of run.json."""
    import dataclasses

    import numpy as np
    import pandas as pd
    import pyarrow.parquet as pq

    from interp.seam import attention_layers
    from interp.table import EXAMPLES, HEADS, INPUTS, REGIONS, validate, write
    from interp.totals import heads_table
    from interp.versions import versions

    parts = [folder.read_part(number) for number in range(n_batches)]
    order = np.argsort([example for part in parts for example in part.examples])
    values = np.concatenate([part.values for part in parts])[order]
    counts = np.concatenate([part.counts for part in parts])[order]
    inputs = pd.concat([part.inputs for part in parts], ignore_index=True).sort_values(["example", "position"], kind="stable")
    n_cut = sum(part.n_cut for part in parts)
    blocked = [part.blocked for part in parts if part.blocked]
    del parts
    model = config.name or checkpoint.name
    layers, names = attention_layers(checkpoint.model.config), list(measures)
    n_heads = values.shape[2]
    heads = heads_table(model, values, counts, layers, names, config.seed)
    write(heads, HEADS, folder.partial / "heads.parquet")
    write(inputs.reset_index(drop=True), INPUTS, folder.partial / "inputs.parquet")
    numbers = sorted(p.index for p in problems)
    with pq.ParquetWriter(folder.partial / "examples.parquet", EXAMPLES.arrow, compression="zstd") as writer:
        step = max(1, 2_000_000 // values[0].size)
        for at in range(0, len(numbers), step):
            axes = [numbers[at : at + step], layers, range(n_heads), names, REGIONS]
            index = pd.MultiIndex.from_product(axes, names=["example", "layer", "head", "measure", "region"])
            frame = index.to_frame(index=False).assign(model=model)
            frame["value"], frame["n_queries"] = values[at : at + step].ravel(), counts[at : at + step].ravel()
            writer.write_table(validate(frame, EXAMPLES))
    warnings = []
    unused = checkpoint.identity["unused_weights"]
    if unused:
        warnings.append(f"{len(unused)} weights of the checkpoint were not used, the first is {unused[0]}: does its config belong to it?")
    if n_cut:
        warnings.append(f"{n_cut} of {len(problems)} generated answers ran into the cut of {config.max_new_tokens} tokens")
    if blocked:
        which = ", ".join(map(str, sorted(set().union(*blocked))))
        warnings.append(
            f"the {settings['way']} way cannot express layers {which} (in {len(blocked)} of {n_batches} batches): "
            "the blocked way recorded them"
        )
    if len(problems) < 20:
        warnings.append(f"only {len(problems)} examples: the bootstrap intervals are rough")
    undefined = heads.loc[heads["n_examples"] == 0, ["measure", "region"]].drop_duplicates()
    for region, rows in undefined.groupby("region", sort=False):
        warnings.append(f"undefined in region {region} for some heads: {', '.join(rows['measure'])}")
    return {
        "command": command,
        "config": {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(config).items()},
        "versions": versions(),
        "model": {**checkpoint.identity, "name": model},
        "dtype": checkpoint.identity["dtype"],
        "device": checkpoint.identity["device"],
        "seed": config.seed,
        "text": config.text,
        "chat": settings["chat"],
        "problems": {"source": config.problems, "split": config.split, "n": len(problems), "sha256": settings["problems"]},
        "generated": {"max_new_tokens": config.max_new_tokens, "n_cut": n_cut, "decoding": "greedy"}
        if config.text == "generated"
        else None,
        "batch_tokens": config.batch_tokens,
        "n_tokens": len(inputs),
        "n_layers": len(layers),
        "n_heads": n_heads,
        "measures": [{**dataclasses.asdict(m.info), "way": settings["way"]} for m in measures.values()],
        "warnings": warnings,
    }


if __name__ == "__main__":
    sys.exit(main())
