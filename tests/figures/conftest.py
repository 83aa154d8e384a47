"""Synthetic head runs: tables with plausible values, made from a seed."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from figures.example.page import example_page
from figures.example.read import Example
from interp.tables.example import ALTERNATIVES, EXAMPLE_TABLES, FAINT, STRONG
from interp.tables.heads import HEADS, INPUTS
from interp.tables.schema import REGIONS, ROLES, MeasureInfo, read, write
from interp.tokens import NUMBER, number_roles

INFOS = [
    MeasureInfo("entropy_nats", "Entropy of attention", "nats", 0.0, None, "−Σ p log p"),
    MeasureInfo("entropy_normalized", "Entropy by log of allowed keys", "1", 0.0, 1.0, "entropy / log n"),
    MeasureInfo("renyi2_nats", "Rényi-2 entropy", "nats", 0.0, None, "−log Σ p²"),
    MeasureInfo("max_prob", "Largest attention weight", "probability", 0.0, 1.0, "max p"),
    MeasureInfo("self_mass", "Attention on the token itself", "probability", 0.0, 1.0, "p[q]"),
    MeasureInfo("previous_mass", "Attention on the token before", "probability", 0.0, 1.0, "p[q−1]"),
    MeasureInfo("bos_mass", "Attention on the first token", "probability", 0.0, 1.0, "p[0]"),
    MeasureInfo("mean_distance", "Mean distance looked back", "tokens", 0.0, None, "Σ p (q − k)"),
    MeasureInfo("numeric_mass", "Attention on numbers", "probability", 0.0, 1.0, "Σ p over numeric keys"),
    MeasureInfo("numeric_mass_question", "Attention on the question's numbers", "probability", 0.0, 1.0, "Σ p"),
    MeasureInfo("numeric_mass_operand", "Attention on operands in the response", "probability", 0.0, 1.0, "Σ p"),
    MeasureInfo("numeric_mass_intermediate", "Attention on intermediate results", "probability", 0.0, 1.0, "Σ p"),
    MeasureInfo("numeric_mass_final", "Attention on the final answer", "probability", 0.0, 1.0, "Σ p"),
    MeasureInfo("operator_mass", "Attention on operators", "probability", 0.0, 1.0, "Σ p over operators"),
    MeasureInfo("numeric_mass_without_bos", "Attention on numbers, BOS left out", "probability", 0.0, 1.0, "Σ p / Σ p, both j > 0"),
    MeasureInfo("numeric_enrichment", "Attention on numbers over uniform", "1", 0.0, None, "mass / uniform mass"),
    MeasureInfo("numeric_z", "Attention on numbers against shuffles", "standard deviations", None, None, "(x−μ)/σ"),
    MeasureInfo("duplicate_token_mass", "Attention on earlier copies of the token", "probability", 0.0, 1.0, "Σ p"),
    MeasureInfo("induction_mass", "Attention on what followed earlier copies", "probability", 0.0, 1.0, "Σ p"),
    MeasureInfo("sparsity_010", "Keys with weight above 0.1", "share", 0.0, 1.0, "share of allowed keys"),
    MeasureInfo("sparsity_010_published", "Entries above 0.1, published variant", "share", 0.0, 1.0, "share of T × T"),
]


def make_heads(layers: int, heads: int, *, seed: int = 0, infos: list[MeasureInfo] = INFOS, model: str = "tiny/model-135M") -> pd.DataFrame:
    """A heads table; the final answer's mass is undefined in the question, and a few enrichments everywhere."""
    random = np.random.default_rng(seed)
    frames = []
    layer, head = np.divmod(np.arange(layers * heads), heads)
    for info in infos:
        base = random.beta(0.6, 5.0, layers * heads) * (0.4 + layer / layers)
        for region in REGIONS:
            shift = {"question": 0.7, "response": 1.0, "all": 0.9}[region]
            value = shift * base * random.normal(1.0, 0.1, layers * heads).clip(0.5, 1.5)
            if info.unit == "nats":
                value = 4.5 * (1 - value).clip(0.05)
            elif info.unit == "tokens":
                value = 90 * value
            elif info.name == "numeric_enrichment":
                value = 12 * value**1.5
            elif info.name == "numeric_z":
                value = 20 * (value - 0.12)
            undefined = np.zeros(layers * heads, bool)
            if info.name == "numeric_mass_final" and region == "question":
                undefined[:] = True
            if info.name == "numeric_enrichment":
                undefined[[0, layers * heads // 2, -1]] = True
            value = np.where(undefined, np.nan, value)
            width = 0.05 * np.nan_to_num(value).std() + 0.02 * np.abs(value)
            frames.append(
                pd.DataFrame(
                    {
                        "model": model,
                        "layer": layer,
                        "head": head,
                        "measure": info.name,
                        "region": region,
                        "value": value,
                        "ci_low": value - width,
                        "ci_high": value + width,
                        "n_examples": np.where(undefined, 0, 40),
                        "n_queries": np.where(undefined, 0, {"question": 2100, "response": 3120, "all": 6480}[region]),
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def make_inputs(texts: list[tuple[str, str, str]]) -> pd.DataFrame:
    """An inputs table of one example from (token, region, role)."""
    return pd.DataFrame(
        {
            "example": 0,
            "position": np.arange(len(texts)),
            "token_id": np.arange(len(texts)) + 100,
            "token": [token for token, _, _ in texts],
            "region": [region for _, region, _ in texts],
            "role": [role for _, _, role in texts],
            "is_query": True,
        }
    )


TOKENS = [
    ("<|im_start|>", "template", "special"),
    *[(t, "template", "none") for t in ("user", "\n")],
    *[(t, "question", "none") for t in ("Mina", " buys")],
    (" ", "question", "none"),
    ("3", "question", "question_number"),
    *[(t, "question", "none") for t in (" boxes", " of")],
    (" ", "question", "none"),
    ("1", "question", "question_number"),
    ("2", "question", "question_number"),
    *[(t, "question", "none") for t in (" pencils", ".", " How", " many", " pencils", " is", " that", "?")],
    ("<|im_end|>", "template", "special"),
    ("\n", "template", "none"),
    ("<|im_start|>", "template", "special"),
    *[(t, "template", "none") for t in ("assistant", "\n")],
    *[(t, "response", "none") for t in ("She", " has")],
    (" ", "response", "none"),
    ("3", "response", "operand"),
    (" *", "response", "operator"),
    (" ", "response", "none"),
    ("1", "response", "operand"),
    ("2", "response", "operand"),
    (" =", "response", "operator"),
    (" ", "response", "none"),
    ("3", "response", "intermediate_result"),
    ("6", "response", "intermediate_result"),
    *[(t, "response", "none") for t in (" pencils", ".", "\n", "####", " ")],
    ("3", "response", "final_answer"),
    ("6", "response", "final_answer"),
    ("<|im_end|>", "template", "special"),
]


def make_run(layers: int, heads: int, infos: list[MeasureInfo] = INFOS) -> dict:
    """The contents of a run.json."""
    return {
        "command": "python -m analyses.heads --model tiny/model-135M --out runs/tiny",
        "model": {
            "name": "tiny/model-135M",
            "kind": "hub",
            "id": "tiny/model-135M",
            "revision": "0123456789abcdef0123456789abcdef01234567",
            "weights_sha256": "ab" * 32,
            "adapter": None,
        },
        "versions": {"torch": "2.13.0", "transformers": "5.23.0", "primed-heads": "0.1.0"},
        "dtype": "bfloat16",
        "device": "cpu",
        "seed": 0,
        "text": "reference",
        "chat": True,
        "problems": {"source": "shipped", "split": "test", "n": 40, "sha256": "cd" * 32},
        "measures": [
            {
                "name": info.name,
                "title": info.title,
                "unit": info.unit,
                "low": info.low,
                "high": info.high,
                "formula": info.formula,
                "backend": "blocked",
            }
            for info in infos
        ],
        "timings": {"load": 1.72, "record": 41.3, "bootstrap": 2.25},
        "memory": {"peak_mb": 1210.5},
        "warnings": ["2 of 42 problems were longer than the model's positions and were left out."],
        "n_layers": layers,
        "n_heads": heads,
    }


def make_run_folder(folder: Path, layers: int, heads: int, *, seed: int = 0) -> Path:
    """Write a run folder without figures."""
    folder.mkdir(parents=True, exist_ok=True)
    write(make_heads(layers, heads, seed=seed), HEADS, folder / "heads.parquet")
    write(make_inputs(TOKENS), INPUTS, folder / "inputs.parquet")
    (folder / "run.json").write_text(json.dumps(make_run(layers, heads)), encoding="utf-8")
    return folder


@pytest.fixture
def infos() -> dict[str, MeasureInfo]:
    """The built-in measures, by name."""
    return {info.name: info for info in INFOS}


@pytest.fixture
def head_table() -> Callable[..., pd.DataFrame]:
    """`make_heads`."""
    return make_heads


@pytest.fixture
def small_heads() -> pd.DataFrame:
    """Three layers of four heads, all measures."""
    return make_heads(3, 4)


@pytest.fixture
def sample_inputs() -> pd.DataFrame:
    """One example's tokens, every role at least once."""
    return make_inputs(TOKENS)


@pytest.fixture
def sample_run() -> dict:
    """The contents of a run.json of three layers with four heads."""
    return make_run(3, 4)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run folder of three layers with four heads, without figures."""
    return make_run_folder(tmp_path / "run", 3, 4)


@pytest.fixture
def few_measures(run_folder: Path) -> Path:
    """The run folder with three measures only, which draw quickly."""
    kept = ["entropy_nats", "numeric_mass", "numeric_enrichment"]
    heads = read(run_folder / "heads.parquet", HEADS)
    write(heads.loc[heads["measure"].isin(kept)], HEADS, run_folder / "heads.parquet")
    run = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    run["measures"] = [measure for measure in run["measures"] if measure["name"] in kept]
    (run_folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return run_folder


QUESTION = "Mina buys 3 boxes of 12 pencils and 1,250 pens. How many things is that?"
ANSWERS = (
    "Pencils: 3*12=<<3*12=36>>36.\nAll: 36+1250=<<36+1250=1286>>1286 things.\n#### 1,286",
    "She has 3*12=<<3*12=35>>35 pencils.\nSo 35+1250=1285.\n#### 1285",
)


def make_example(
    folder: Path,
    *,
    question: str = QUESTION,
    answers: Sequence[str] = ANSWERS,
    layers: int = 3,
    heads: int = 4,
    watched: Sequence[tuple[int, int]] | None = None,
    compared: bool = True,
    seed: int = 0,
) -> Path:
    """Write a folder of one problem with plausible numbers: one model per answer, causal attention that sums to 1.

    Args:
        folder: made where it is not there.
        question: the problem.
        answers: what each model reads after it; equal texts for the reference text.
        layers: of the models.
        heads: of a layer.
        watched: heads with whole maps; None for all.
        compared: with a run to compare with.
        seed: of the numbers.
    """
    random = np.random.default_rng(seed)
    names = [f"model-{number}" for number in range(len(answers))]
    all_heads = [(layer, head) for layer in range(layers) for head in range(heads)]
    watched = all_heads if watched is None else list(watched)
    tokens, edges, standing, steps, nexts, models = [], [], [], [], [], []
    for name, answer in zip(names, answers, strict=True):
        frame = _example_tokens(question, answer).assign(model=name)
        tokens.append(frame)
        n, roles = len(frame), frame["role"].astype(str).to_numpy()
        numeric = np.isin(roles, ["question_number", "operand", "intermediate_result", "final_answer"])
        question_numbers, results = roles == "question_number", np.isin(roles, ["intermediate_result", "final_answer"])
        for layer, head in all_heads:
            scores = random.normal(0, 1.5, (n, n)) + 2.0 * numeric * random.random() + 3.0 * (np.arange(n) == 0)
            scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
            p = np.exp(scores - scores.max(1, keepdims=True))
            p = (p / p.sum(1, keepdims=True)).astype(np.float32)
            query, key = np.nonzero(p >= (FAINT if (layer, head) in watched else STRONG))
            edges.append(
                pd.DataFrame({"model": name, "layer": layer, "head": head, "query": query, "key": key, "probability": p[query, key]})
            )
            for step in range(int(frame["step"].max()) + 1):
                rows = (frame["step"] == step).to_numpy()
                earlier = results & (frame["step"] < step).to_numpy() & (frame["step"] >= 0).to_numpy()
                for quantity, keys in (("question_numbers", question_numbers), ("earlier_results", earlier)):
                    value = float(p[rows][:, keys].sum(1).mean()) if keys.any() else np.nan
                    steps.append((name, step, layer, head, quantity, value, int(rows.sum()) if keys.any() else 0))
            for info in INFOS[:10]:
                for region in REGIONS:
                    value, mean, sd = random.beta(1, 5), random.beta(1, 5), random.uniform(0.02, 0.1)
                    t = (value - mean) / sd
                    known = (
                        (mean, sd, 20, t, float(np.exp(-abs(t))), float(np.exp(-abs(t) / 2)))
                        if compared
                        else (np.nan,) * 2 + (0,) + (np.nan,) * 3
                    )
                    standing.append((name, layer, head, info.name, region, value, int(n / 2), *known))
        for position in np.flatnonzero(numeric):
            read_rank = int(random.integers(1, 9))
            probabilities = np.sort(random.dirichlet(np.ones(12)))[::-1]
            for rank in sorted({*range(1, ALTERNATIVES + 1), read_rank}):
                is_read = rank == read_rank
                token = frame["token"].iloc[position] if is_read else f" {rank}"
                nexts.append((name, position, rank, 500 + rank, token, probabilities[rank - 1], is_read))
        models.append(
            {
                "name": name,
                "condition": name,
                "seed": None,
                "response": answer,
                "finish": "stop",
                "n_tokens": n,
                "grade": {"grader": "first_final", "extracted": answer.rpartition("#### ")[2], "correct": answer == answers[0]},
                "steps": [
                    {
                        "text": line,
                        "sums": [{"written": "3*12", "result": "36", "value": "36", "right": "36" in line}] if "*" in line else [],
                    }
                    for line in answer.split("\n")
                ],
                "compared_with": {"source": "runs/tiny", "text": "generated", "n_examples": 20} if compared else None,
                "identity": {"kind": "folder", "name": name, "dtype": "float32", "device": "cpu"},
            }
        )
    head_columns = ["model", "layer", "head"]
    folder.mkdir(parents=True, exist_ok=True)
    frames = {
        "tokens": pd.concat(tokens, ignore_index=True),
        "edges": pd.concat(edges, ignore_index=True),
        "standing": pd.DataFrame(standing, columns=[*head_columns, *EXAMPLE_TABLES["standing"].arrow.names[3:]]),
        "steps": pd.DataFrame(steps, columns=EXAMPLE_TABLES["steps"].arrow.names),
        "next": pd.DataFrame(nexts, columns=EXAMPLE_TABLES["next"].arrow.names),
    }
    for name, frame in frames.items():
        write(frame, EXAMPLE_TABLES[name], folder / f"{name}.parquet")
    run = {
        "command": "python -m analyses.examples --model " + " ".join(names),
        "kind": "example",
        "versions": {"torch": "2.13.0", "primed-heads": "0.1.0"},
        "seed": seed,
        "text": "reference" if len(set(answers)) == 1 else "generated",
        "chat": True,
        "problem": {"source": "shipped", "index": 7, "n": 66, "question": question, "answer": answers[0]},
        "models": models,
        "measures": make_run(layers, heads, INFOS[:10])["measures"],
        "layers": list(range(layers)),
        "n_heads": heads,
        "watched": [list(head) for head in watched],
        "chosen": [list(head) for head in (list(watched) or all_heads)[:3]],
        "foremost": [list(head) for head in dict.fromkeys([*(list(watched) or all_heads)[:3], *all_heads])][:5],
        "by": "numeric_mass",
        "region": "response",
        "shared_tokens": _shared(tokens),
        "warnings": [] if compared else ["no run to compare with"],
    }
    (folder / "run.json").write_text(json.dumps(run, ensure_ascii=False), encoding="utf-8")
    return folder


def _example_tokens(question: str, answer: str) -> pd.DataFrame:
    """Words, digits and signs as tokens, with the roles that the measures find, and half characters where there is an emoji."""
    prompt = "<|im_start|>user\n" + question + "<|im_end|>\n<|im_start|>assistant\n"
    text = prompt + answer + "<|im_end|>"
    begin, start = len("<|im_start|>user\n"), len(prompt)
    spans = [(m.start(), m.end()) for m in re.finditer(r"<\|im_\w+\|>|\d| ?\w+| ?[^\w]", text)]
    roles = np.zeros(len(text), np.uint8)
    roles[begin : begin + len(question)] = number_roles(question, "question")
    roles[start : start + len(answer)] = number_roles(answer, "response")
    numbers = np.full(len(text), -1)
    for count, found in enumerate(NUMBER.finditer(text)):
        numbers[found.start() : found.end()] = count
    lines = np.cumsum([0, *(c == "\n" for c in answer)][:-1])
    rows = []
    for a, b in spans:
        special = text[a:b].startswith("<|im_")
        region = "question" if begin <= a < begin + len(question) else "response" if start <= a < start + len(answer) else "template"
        role = "special" if special else ROLES[int(roles[a:b].max())]
        number = int(numbers[a:b].max()) if role not in ("none", "special", "operator") else -1
        step = int(lines[a - start]) if region == "response" and not special else -1
        row = {"token_id": 100 + len(rows), "token": text[a:b], "shown": text[a:b], "region": region, "role": role, "number": number}
        rows.append({**row, "step": step, "is_query": True})
        if any(ord(c) > 0xFFFF for c in text[a:b]):
            rows.append({**rows[-1], "token_id": 100 + len(rows), "shown": ""})
    frame = pd.DataFrame(rows)
    return frame.assign(position=np.arange(len(frame)))


def _shared(tokens: list[pd.DataFrame]) -> int:
    """Number of tokens at the start that are the same in all models."""
    first, count = tokens[0], min(map(len, tokens))
    for other in tokens[1:]:
        same = (first["token"].to_numpy()[:count] == other["token"].to_numpy()[:count]).tolist()
        count = same.index(False) if False in same else count
    return count


@pytest.fixture
def example_folder(tmp_path: Path) -> Callable[..., Path]:
    """`make_example` in the test's folder."""
    return functools.partial(make_example, tmp_path / "example")


# --- pages in a browser -----------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without network."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser: pip install 'primed-heads[browser]'")
    if CHROMIUM is None:
        pytest.skip("needs Chromium in the path")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path) -> Iterator[Callable[..., Any]]:
    """Open an example's page in a new window. Any request other than for the file, any error and any warning fails the test."""
    wrong: list[str] = []
    contexts = []

    def go(example: Example, *, address: str = "", width: int = 1280, height: int = 900, dark: bool = False, **options: Any) -> Any:
        path = tmp_path / f"page-{len(contexts)}.html"
        path.write_text(example_page(example), encoding="utf-8")
        scheme = "dark" if dark else "light"
        contexts.append(browser.new_context(offline=True, viewport={"width": width, "height": height}, color_scheme=scheme, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: None if request.url.startswith(("file:", "blob:")) else wrong.append(request.url))
        page.goto(path.as_uri() + address)
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield go
    for context in contexts:
        context.close()
    assert wrong == []
