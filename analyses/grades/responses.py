"""Responses from anywhere: the published layout's CSV files, JSONL files, and evaluations of `distill`; models paired by question."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interp.tables.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


COLUMNS = ("question", "answer", "model_answer")
"""A CSV file in the published layout has these, `model_answer` being the response."""


FORMAT = '{"question": "...", "answer": "...", "response": "..."} and may have "model", "cut" (true or false) or "finish"'


@dataclass(frozen=True)
class Response:
    """One model's text on one problem.

    Attributes:
        model: who wrote it.
        question: the problem.
        answer: its reference, with `#### 18` or the number alone.
        text: the response; it may be empty.
        cut: it ran into a limit of length; None where nobody noted it, which graders take as no.
        logged: the verdict that came with it; None where there is none.
        place: file and line, for messages.
    """

    model: str
    question: str
    answer: str
    text: str
    cut: bool | None
    logged: bool | None
    place: str


@dataclass(frozen=True)
class Source:
    """Responses of one file.

    Attributes:
        path: the file, or the folder of an evaluation.
        kind: csv (the published layout), jsonl, or evaluation.
        sha256: of the file's bytes.
        responses: in its order.
    """

    path: Path
    kind: Literal["csv", "jsonl", "evaluation"]
    sha256: str
    responses: tuple[Response, ...]


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """Reads files, and the CSV files, JSONL files and evaluations of folders in the order of their names.

    In a folder, a CSV file without the column `model_answer` holds no responses, as the published list of true answers, and is left out.

    Raises:
        InputError: nothing there, no responses in it, or a file that breaks its format; the message says where.
    """
    sources: list[Source] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; name a folder of CSV files, a JSONL file, or an evaluation of distill")
        if not path.is_dir():
            sources.append(_read_file(path))
            continue
        if (path / "evaluation.json").is_file():
            sources.append(_read_evaluation(path))
            continue
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in (".csv", ".jsonl") and file.is_file())
        folders = sorted(folder.parent for folder in path.glob("*/evaluation.json"))
        held = [file for file in files if file.suffix.lower() == ".jsonl" or "model_answer" in _columns(file)]
        if not held and not folders:
            seen = f"; {', '.join(file.name for file in files)} lack the column model_answer" if files else ""
            raise InputError(
                f"{path} holds no responses{seen}; needed are CSV files with the columns {', '.join(COLUMNS)}, JSONL files, or evaluations"
            )
        for file in files:
            if file not in held:
                print(f"note: {file} is left out: it has no column model_answer, so it holds no responses", file=sys.stderr)
        sources += [*map(_read_file, held), *map(_read_evaluation, folders)]
    return sources


def _read_file(path: Path) -> Source:
    if path.suffix.lower() == ".csv":
        responses = _read_csv(path)
        kind = "csv"
    elif path.suffix.lower() == ".jsonl":
        responses = _read_jsonl(path)
        kind = "jsonl"
    else:
        raise InputError(f"{path} is neither .csv nor .jsonl; a JSONL file has lines of {FORMAT}")
    return Source(path, kind, hashlib.sha256(path.read_bytes()).hexdigest(), tuple(responses))


def _read_csv(path: Path) -> list[Response]:
    responses = []
    for place, fields in _csv_rows(path):
        missing = [name for name in COLUMNS if name not in fields]
        if missing:
            raise InputError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(fields):.200}")
        question, answer = _text(fields, "question", place), _text(fields, "answer", place)
        cut = _reached(fields.get("model_output_tokens", ""), fields.get("model_max_tokens", ""), place)
        logged = _verdict(fields.get("correct", ""), place)
        responses.append(Response(path.stem, question, answer, fields["model_answer"], cut, logged, place))
    if not responses:
        raise InputError(f"{path} has a header and no rows")
    return responses


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, fields) of each row. Not pandas': it takes the end of a torn row for empty fields, and knows no lines."""
    csv.field_size_limit(2**31 - 1)  # its own limit is 131,072 characters
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        begins = 1
        try:
            header = next(reader, None)
            if not header:
                raise InputError(f"{path} is empty; needed are the columns {', '.join(COLUMNS)}")
            begins = reader.line_num + 1
            for row in reader:
                place = f"{path}, line {begins}"
                if row and len(row) != len(header):
                    raise InputError(f"{place}: a row of {len(row)} fields under {len(header)} columns; write the file again")
                if row:
                    yield place, dict(zip(header, row, strict=True))
                begins = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}, line {begins}: cannot be read as CSV ({error!s:.160}); write the file again") from None


def _columns(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}, line 1: cannot be read as CSV ({error!s:.160}); write the file again") from None


def _verdict(text: str, place: str) -> bool | None:
    known = {"": None, "true": True, "1": True, "false": False, "0": False}
    if text.strip().lower() not in known:
        raise InputError(f"{place}: column 'correct' holds {text!r:.40}; allowed: True, False, 1, 0, or nothing")
    return known[text.strip().lower()]


def _reached(tokens: str, limit: str, place: str) -> bool | None:
    """Whether a limit was reached. `model_max_tokens` says it outright in the published files; elsewhere it may be the limit itself."""
    if limit.strip().lower() in ("true", "false"):
        return limit.strip().lower() == "true"
    if not limit.strip() or not tokens.strip():
        return None
    try:
        return float(tokens) >= float(limit)
    except ValueError:
        raise InputError(
            f"{place}: model_output_tokens is {tokens!r:.40} and model_max_tokens {limit!r:.40}; allowed: numbers, the latter also True or "
            "False"
        ) from None


def _read_jsonl(path: Path) -> list[Response]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 (byte {data[error.start]:#04x}); save it as UTF-8") from None
    if not text.strip():
        raise InputError(f"{path} is empty; each line must be {FORMAT}")
    # Only "\n" ends a line: str.splitlines would also cut at U+2028, which JSON allows inside a string.
    return [_response(line, path.stem, f"{path}, line {number}") for number, line in enumerate(text.rstrip().split("\n"), 1)]


def _response(line: str, stem: str, place: str) -> Response:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:  # torn or blank lines, numbers of thousands of digits, thousands of nested lists
        said = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(f"{place}: not JSON ({said:.120}); each line must be {FORMAT}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{place}: a JSON {type(fields).__name__}, not an object; each line must be {FORMAT}")
    model = _text({"model": stem, **fields}, "model", place)
    question, answer = _text(fields, "question", place), _text(fields, "answer", place)
    response = _text(fields, "response", place, empty=True)
    cut, finish = fields.get("cut"), fields.get("finish")
    if not isinstance(cut, bool | None):
        raise InputError(f"{place}: field 'cut' is {cut!r:.40}; allowed: true, false, or nothing")
    if not isinstance(finish, str | None):
        raise InputError(f"{place}: field 'finish' is {finish!r:.40}; allowed: a text, which is \"length\" for a cut response, or nothing")
    if cut is None and finish is not None:
        cut = finish == "length"
    return Response(model, question, answer, response, cut, None, place)


def _text(fields: Mapping[str, Any], name: str, place: str, *, empty: bool = False) -> str:
    if name not in fields:
        raise InputError(f"{place}: no field {name!r} (fields seen: {', '.join(map(repr, fields)) or 'none':.200}); a line is {FORMAT}")
    value = fields[name]
    if not isinstance(value, str):
        raise InputError(f"{place}: field {name!r} is of type {type(value).__name__}; it must be a string")
    if not empty and not value.strip():
        raise InputError(f"{place}: field {name!r} is empty; it must hold text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # an escape such as \ud800 alone, which no table can hold
        raise InputError(f"{place}: field {name!r} holds half of a surrogate pair; it must be valid Unicode") from None
    return value


def _read_evaluation(folder: Path) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / "responses.parquet"
    names = ["problem", "sample", "question", "reference", "response", "finish"]
    try:
        name = json.loads((folder / "evaluation.json").read_text("utf-8"))["settings"]["about"].get("name") or folder.name
        rows = pq.read_table(file, columns=names).to_pylist()
    except (OSError, pa.ArrowException, ValueError, KeyError, AttributeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{folder} holds no whole evaluation ({said:.120}); evaluate it again") from error
    if any(row["sample"] for row in rows):
        raise InputError(
            f"{folder} has several samples a problem, and the tests here are for one; the report of `python -m distill` compares them"
        )
    if not rows:
        raise InputError(f"{folder} has no responses")
    responses = [
        Response(name, r["question"], r["reference"], r["response"], r["finish"] == "length", None, f"{file}, row {number}")
        for number, r in enumerate(rows, 1)
    ]
    return Source(folder, "evaluation", hashlib.sha256(file.read_bytes()).hexdigest(), tuple(responses))


# --- models and problems --------------------------------------------------------------------------------------------


def by_model(sources: Sequence[Source]) -> dict[str, list[Response]]:
    """Each model's responses, in the order in which they were read.

    Raises:
        InputError: a path is named twice, or a model stands in two, so that nobody knows which of its responses count.
    """
    twice = [path for path, n in Counter(source.path.resolve() for source in sources).items() if n > 1]
    if twice:
        raise InputError(f"{twice[0]} is named twice; name each path once")
    models: dict[str, list[Response]] = {}
    home: dict[str, Path] = {}
    for source in sources:
        for response in source.responses:
            if home.setdefault(response.model, source.path) != source.path:
                raise InputError(f"model {response.model!r} is in {home[response.model]} and in {source.path}; rename one of them")
            models.setdefault(response.model, []).append(response)
    return models


def number_problems(models: Mapping[str, Sequence[Response]]) -> dict[str, list[int]]:
    """The problem's number of every response: 0, 1, ... in the order of the first model that has the question, then the next model's.

    Questions are the same where their texts are, blanks around them aside. One that a model answers several times is told apart by
    occurrence: its second is the second of the others.

    Raises:
        InputError: a reference holds no number, or a question has different ones.
    """
    from distill.problems.grading import is_correct
    from distill.problems.numbers import parse_number
    from interp.tables.errors import InputError

    found: dict[tuple[str, int], tuple[int, Fraction | None, str]] = {}
    numbers: dict[str, list[int]] = {}
    for model, responses in models.items():
        before: Counter[str] = Counter()
        numbers[model] = []
        for response in responses:
            try:
                is_correct(None, response.answer)
            except InputError as error:
                raise InputError(f"{response.place}: {error}") from None
            question = response.question.strip()
            reference = parse_number(response.answer.rpartition("####")[2])
            number, first, place = found.setdefault((question, before[question]), (len(found), reference, response.place))
            if first != reference:
                raise InputError(f"{response.place}: the reference is {reference}, and {first} for the same question in {place}")
            before[question] += 1
            numbers[model].append(number)
    return numbers


def facts_table(models: Mapping[str, Sequence[Response]], numbers: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """A row a response: model, problem, characters, cut and logged (both <NA> where unknown)."""
    import pandas as pd

    rows = [
        {"model": model, "problem": number, "characters": len(r.text), "cut": r.cut, "logged": r.logged}
        for model, responses in models.items()
        for number, r in zip(numbers[model], responses, strict=True)
    ]
    return pd.DataFrame(rows).astype({"cut": "boolean", "logged": "boolean"})
