from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from fractions import Fraction
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RevisionResolutionError

from distill.problems.sets import Problem, load_problems, problems_digest
from interp.tables.errors import InputError

SHIPPED = load_problems()
ROOT = Path(__file__).parents[3]
GOOD = {"question": "How many legs do 3 cats have?", "answer": "3*4 = <<3*4=12>>12\n#### 12"}


def evaluate(expression: str) -> Fraction:
    """Return the exact value of + - * / and parentheses over decimal numbers."""

    def visit(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            # the source text, not the parsed float: 0.1 must be exactly one tenth
            return Fraction(ast.get_source_segment(expression, node) or "")
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -visit(node.operand)
        assert isinstance(node, ast.BinOp), f"{ast.dump(node)} in {expression}"
        left, right = visit(node.left), visit(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        assert isinstance(node.op, ast.Div), f"{ast.dump(node.op)} in {expression}"
        return left / right

    return visit(ast.parse(expression, mode="eval").body)


def number(text: str) -> Fraction:
    """Return the value of a number such as 1,250 or 31.50; thousands commas must be in the right places."""
    assert re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?|\d+(\.\d+)?", text), text
    return Fraction(text.replace(",", ""))


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run_python(code: str, **environment: str) -> str:
    """Return what a new interpreter prints; it runs in the root folder, where it finds the packages without an installation."""
    finished = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    return finished.stdout.strip()


def error_of(call: Callable[[], object]) -> str:
    """Return the message of the InputError that a call raises; it must have one or two lines."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert 1 <= len(message.splitlines()) <= 2, message
    return message


# The evaluator itself


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("48/2", Fraction(24)),
        ("1/3+1/6", Fraction(1, 2)),
        ("20*.01*50", Fraction(10)),
        (".1+.2", Fraction(3, 10)),
        ("(2+3)*-4", Fraction(-20)),
        ("10-4-3", Fraction(3)),
    ],
)
def test_evaluate_is_exact(expression: str, value: Fraction) -> None:
    assert evaluate(expression) == value


# The shipped set


def test_shipped_problems_are_varied_and_unique() -> None:
    assert len(SHIPPED) >= 40
    assert [problem.index for problem in SHIPPED] == list(range(len(SHIPPED)))
    assert len({" ".join(words(problem.question)) for problem in SHIPPED}) == len(SHIPPED)
    for what, pattern in {
        "thousands comma": r"\d,\d{3}",
        "decimal": r"\d\.\d",
        "percentage": r"\d%",
        "dollars": r"\$\d",
        "fraction": r"\d/\d",
        "time": r"\d:\d\d [ap]\.m\.",
    }.items():
        assert sum(bool(re.search(pattern, problem.question)) for problem in SHIPPED) >= 3, what


@pytest.mark.parametrize("problem", SHIPPED, ids=lambda problem: str(problem.index))
def test_shipped_solution_is_correct(problem: Problem) -> None:
    steps = re.findall(r"<<([^<>]*)=([^<>=]*)>>", problem.answer)
    assert 2 <= len(steps) <= 6
    assert len(steps) == problem.answer.count("<<") == problem.answer.count(">>")

    for expression, result in steps:
        assert evaluate(expression) == number(result), f"<<{expression}={result}>>"

    # The number right after each mark is the mark's result.
    after_marks = re.findall(r">>([\d,]*\d(?:\.\d+)?)", problem.answer)
    assert [number(text) for text in after_marks] == [number(result) for _, result in steps]

    # The text before each mark is the same calculation: "3 x 4 = $<<3*4=12>>12".
    before_marks = re.findall(r"([\d.()+\-*/x ]*) = \$?<<", problem.answer)
    written = [text.replace(" ", "").replace("x", "*") for text in before_marks]
    assert written == [expression for expression, _ in steps]

    # Only the last line is the answer, and it is the result of the last step.
    lines = problem.answer.split("\n")
    assert [line.startswith("#### ") for line in lines] == [False] * (len(lines) - 1) + [True]
    assert number(problem.final_answer) == number(steps[-1][1])


def test_no_shipped_question_is_in_gsm8k() -> None:
    folder = os.environ.get("PRIMED_HEADS_DATA")
    if not folder:
        pytest.skip("PRIMED_HEADS_DATA is not set; it names the folder with gsm8k/train.jsonl and gsm8k/test.jsonl")
    files = [Path(folder, "gsm8k", f"{split}.jsonl") for split in ("train", "test")]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        pytest.skip(f"not there: {', '.join(missing)}")

    # Stock phrases are shorter than nine words; a paraphrase with the same story shares longer runs.
    def runs(question: str) -> set[tuple[str, ...]]:
        listed = words(question)
        return {tuple(listed[start : start + 9]) for start in range(len(listed) - 8)}

    theirs: set[tuple[str, ...]] = set()
    whole: set[str] = set()
    for file in files:
        for problem in load_problems(str(file)):
            theirs |= runs(problem.question)
            whole.add(" ".join(words(problem.question)))
    assert len(whole) > 8000
    for problem in SHIPPED:
        assert " ".join(words(problem.question)) not in whole
        assert not runs(problem.question) & theirs, problem.question


# Problem, problems_digest


def test_problem_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        SHIPPED[0].answer = "changed"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        ("48/2 = <<48/2=24>>24\n#### 24", "24"),
        ("####   1,250 \n", "1,250"),
        ("#### 3\nno:\n#### 4", "4"),
        ("The answer is 24.", ""),
        ("24\n####", ""),
        ("#### $3.50", "$3.50"),
    ],
)
def test_final_answer(answer: str, final: str) -> None:
    assert Problem(0, "?", answer).final_answer == final


def test_digest_is_pinned() -> None:
    # computed with sha256sum over the two lines [0, "a", "b"] and [1, "\u00e9", "d"].
    problems = [Problem(0, "a", "b"), Problem(1, "é", "d")]
    assert problems_digest(problems) == "a0a20629c868feda01e3827e02b660a5ce3dc4b04a322280365d1f91ac71ad92"


def test_digest_is_the_same_in_another_process() -> None:
    command = "from distill.problems.sets import load_problems, problems_digest; print(problems_digest(load_problems()))"
    assert run_python(command, PYTHONHASHSEED="7", PYTHONIOENCODING="ascii") == problems_digest(SHIPPED)


def test_digest_changes_with_every_field_and_the_order() -> None:
    base = [Problem(0, "a", "b"), Problem(1, "c", "d")]
    changed = [
        [],
        base[:1],
        base[::-1],
        [Problem(0, "a", "b"), Problem(2, "c", "d")],
        [Problem(0, "a", "b"), Problem(1, "c ", "d")],
        [Problem(0, "a", "b"), Problem(1, "c", "d\n")],
        [Problem(0, "ab", ""), Problem(1, "c", "d")],
        [Problem(0, 'a", "b', ""), Problem(1, "c", "d")],
    ]
    digests = {problems_digest(problems) for problems in [base, *changed]}
    assert len(digests) == 1 + len(changed)


# Loading


def test_import_loads_no_heavy_packages() -> None:
    command = (
        "import sys, distill.problems.sets; print([m for m in ('torch', 'transformers', 'pyarrow', 'huggingface_hub') if m in sys.modules])"
    )
    assert run_python(command) == "[]"


def test_limit() -> None:
    assert load_problems(limit=None) == SHIPPED
    assert load_problems(limit=1) == SHIPPED[:1]
    assert load_problems(limit=7) == SHIPPED[:7]
    assert load_problems(limit=10**9) == SHIPPED


@pytest.mark.parametrize("limit", [0, -3])
@pytest.mark.parametrize("source", ["shipped", "gsm8k", "absent.jsonl"])
def test_limit_below_one_is_refused(source: str, limit: int) -> None:
    message = error_of(lambda: load_problems(source, limit=limit))
    assert str(limit) in message
    assert "at least 1" in message


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.json", "my problems.txt", "gsm8k"])
def test_jsonl_file(tmp_path: Path, name: str) -> None:
    path = write_jsonl(tmp_path / name, GOOD, {"question": "Why?", "answer": "No steps.", "source": "ours"})
    assert load_problems(str(path)) == [Problem(0, GOOD["question"], GOOD["answer"]), Problem(1, "Why?", "No steps.")]
    assert load_problems(str(path), limit=1) == [Problem(0, GOOD["question"], GOOD["answer"])]


@pytest.mark.parametrize(
    "data",
    [
        b'{"question": "q", "answer": "a"}',
        b'{"question": "q", "answer": "a"}\r\n',
        b'{"question": "q", "answer": "a"}\n\n  \n\r\n\n',
        b'\xef\xbb\xbf{"question": "q", "answer": "a"}\n',
    ],
    ids=["no newline at the end", "windows", "trailing blank lines", "byte order mark"],
)
def test_jsonl_variants(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(data)
    assert load_problems(str(path)) == [Problem(0, "q", "a")]


def test_jsonl_line_separator_inside_a_string(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "one\u2028two \U0001f422", "answer": "\u00e9"}\n', encoding="utf-8")
    assert load_problems(str(path)) == [Problem(0, "one\u2028two \U0001f422", "\u00e9")]


@pytest.mark.parametrize(
    ("second_line", "seen"),
    [
        (b'{"question": "q", "answer"', ["line 2", "not JSON", "column"]),
        (b'{"question": "q", "answer": "a"} {}', ["line 2", "not JSON"]),
        (b"[" * 100_000, ["line 2"]),
        (b'{"question": "q", "answer": ' + b"9" * 5_000 + b"}", ["line 2"]),
        (b'["q", "a"]', ["line 2", "list", "object"]),
        (b"null", ["line 2", "NoneType", "object"]),
        (b'{"answer": "a", "problem": "q"}', ["line 2", "'question'", "'problem'"]),
        (b'{"question": "q"}', ["line 2", "no field 'answer'", "'question'"]),
        (b"{}", ["line 2", "no field 'question'", "none"]),
        (b'{"question": "", "answer": "a"}', ["line 2", "'question' is empty"]),
        (b'{"question": "q", "answer": " \\n"}', ["line 2", "'answer' is empty"]),
        (b'{"question": "q", "answer": 12}', ["line 2", "'answer'", "int", "string"]),
        (b'{"question": null, "answer": "a"}', ["line 2", "'question'", "NoneType"]),
        (b'{"question": "\\ud800", "answer": "a"}', ["line 2", "'question'", "surrogate"]),
        (b"", ["line 2", "blank"]),
        (b"  \t", ["line 2", "blank"]),
        (b'{"question": "caf\xe9", "answer": "a"}', ["line 2", "UTF-8", "0xe9"]),
    ],
    ids=lambda value: None if isinstance(value, list) else repr(value[:24]),
)
def test_broken_jsonl_line_is_refused(tmp_path: Path, second_line: bytes, seen: list[str]) -> None:
    good = json.dumps(GOOD).encode()
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\n".join([good, second_line, good]) + b"\n")
    for limit in (None, 1):
        message = error_of(lambda limit=limit: load_problems(str(path), limit=limit))
        for part in [str(path), *seen]:
            assert part in message
        assert len(message) < 500


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"], ids=["nothing", "blank lines", "byte order mark"])
def test_empty_jsonl_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(data)
    message = error_of(lambda: load_problems(str(path)))
    assert str(path) in message
    assert "empty" in message


@pytest.mark.parametrize("source", ["absent.jsonl", "GSM8K", "", "a" * 5_000, "null\0byte"])
def test_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    message = error_of(lambda: load_problems(source))
    if source in ("absent.jsonl", "GSM8K"):
        for part in (repr(source), "shipped", "gsm8k", "JSONL"):
            assert part in message


def test_folder_is_refused(tmp_path: Path) -> None:
    message = error_of(lambda: load_problems(str(tmp_path)))
    assert str(tmp_path) in message
    assert "folder" in message


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", GOOD)

    # raised by hand, because root can read files of any mode
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    message = error_of(lambda: load_problems(str(path)))
    assert str(path) in message
    assert "permission" in message


# The Hub, which is never reached


def hub_raises(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(*args: object, **kwargs: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


def hub_gives(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[tuple[tuple[object, ...], dict[str, object]]]:
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = []

    def download(*args: object, **kwargs: object) -> str:
        calls.append((args, kwargs))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return calls


@pytest.mark.parametrize("split", ["train", "test"])
def test_gsm8k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    path = tmp_path / "split.parquet"
    pq.write_table(pa.table({"question": ["q0", "q1"], "answer": ["a0\n#### 1", "a1\n#### 2"]}), path)
    calls = hub_gives(monkeypatch, path)
    problems = [Problem(0, "q0", "a0\n#### 1"), Problem(1, "q1", "a1\n#### 2")]
    assert load_problems("gsm8k", split) == problems
    assert load_problems("gsm8k", split, limit=1) == problems[:1]
    assert calls == [(("openai/gsm8k", f"main/{split}-00000-of-00001.parquet"), {"repo_type": "dataset"})] * 2
    assert load_problems("gsm8k-socratic", split) == problems
    assert calls[2] == (("openai/gsm8k", f"socratic/{split}-00000-of-00001.parquet"), {"repo_type": "dataset"})


@pytest.mark.parametrize("split", ["validation", "", "Test"])
def test_unknown_split_is_refused(split: str) -> None:
    message = error_of(lambda: load_problems("gsm8k", split))
    assert repr(split) in message
    assert "train, test" in message


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("cannot find the requested files in the local cache"),
        OfflineModeIsEnabled("offline mode is enabled"),
        OSError(28, "No space left on device"),
        TimeoutError(),
        RevisionResolutionError("two lines\nof reason"),
        RuntimeError("transfer failed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_hub_error_is_reported_with_alternatives(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    hub_raises(monkeypatch, error)
    message = error_of(lambda: load_problems("gsm8k"))
    for part in ("openai/gsm8k", type(error).__name__, "JSONL file", "shipped"):
        assert part in message


def test_error_of_the_hubs_http_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    # the base class from the Hub's HTTP library, which is not an OSError
    base = HfHubHTTPError.__mro__[1]
    assert not issubclass(base, OSError)
    hub_raises(monkeypatch, base("connection reset"))
    message = error_of(lambda: load_problems("gsm8k"))
    assert "connection reset" in message
    assert "JSONL file" in message


def test_hub_client_in_offline_mode_is_reported(tmp_path: Path) -> None:
    """The real Hub client in offline mode with an empty cache."""
    command = (
        "from distill.problems.sets import InputError, load_problems\n"
        "try:\n    load_problems('gsm8k', 'train')\n"
        "except InputError as error:\n    print(error)\n"
    )
    message = run_python(command, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path), HF_HUB_CACHE=str(tmp_path))
    assert "LocalEntryNotFoundError" in message
    assert "JSONL file" in message


def test_broken_parquet_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "split.parquet"
    hub_gives(monkeypatch, path)

    path.write_bytes(b"PAR1 and then nothing")
    message = error_of(lambda: load_problems("gsm8k"))
    assert str(path) in message
    assert "Delete" in message

    pq.write_table(pa.table({"question": ["q"]}), path)
    assert "answer" in error_of(lambda: load_problems("gsm8k"))

    pq.write_table(pa.table({"question": pa.array([], pa.string()), "answer": pa.array([], pa.string())}), path)
    assert "no rows" in error_of(lambda: load_problems("gsm8k"))

    pq.write_table(pa.table({"question": ["q0", "q1"], "answer": ["a0", None]}), path)
    message = error_of(lambda: load_problems("gsm8k"))
    assert "row 1" in message
    assert "'answer'" in message
