"""Read responses from CSV files in the published layout, JSONL files, and evaluations of `distill`."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from analyses.grades.responses import Response, Source
from interp.tables.errors import InputError
from interp.tables.files import file_sha256
from interp.tables.versions import current_names

_CSV_COLUMNS = ("question", "answer", "model_answer")
"""Columns of a CSV file in the published layout; `model_answer` is the response."""

_JSONL_LINE = '{"question": "...", "answer": "...", "response": "..."} and may have "model", "truncated" (true or false) or "finish"'


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """Return the responses of files, and of the CSV files, JSONL files and evaluations in folders, sorted by name.

    A CSV file in a folder is skipped if it has no column `model_answer`, such as the published list of true answers.

    Raises:
        InputError: a path does not exist, holds no responses, or breaks its format; the message says where.
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
        sources += _read_folder(path)
    return sources


def _read_folder(path: Path) -> list[Source]:
    """Return the responses of a folder that is not an evaluation itself."""
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in (".csv", ".jsonl") and file.is_file())
    folders = sorted(folder.parent for folder in path.glob("*/evaluation.json"))
    held = [file for file in files if file.suffix.lower() == ".jsonl" or "model_answer" in _header_of(file)]
    if not held and not folders:
        seen = f"; {', '.join(file.name for file in files)} have no column model_answer" if files else ""
        raise InputError(
            f"{path} holds no responses{seen}; it must have CSV files with the columns {', '.join(_CSV_COLUMNS)}, JSONL files, or "
            "evaluations"
        )
    for file in files:
        if file not in held:
            print(f"note: {file} is skipped: it has no column model_answer, so it holds no responses", file=sys.stderr)
    return [*map(_read_file, held), *map(_read_evaluation, folders)]


def _read_file(path: Path) -> Source:
    if path.suffix.lower() == ".csv":
        responses = _read_csv(path)
        kind = "csv"
    elif path.suffix.lower() == ".jsonl":
        responses = _read_jsonl(path)
        kind = "jsonl"
    else:
        raise InputError(f"{path} is neither .csv nor .jsonl; a JSONL file has lines of {_JSONL_LINE}")
    return Source(path, kind, file_sha256(path), tuple(responses))


def _read_csv(path: Path) -> list[Response]:
    responses = []
    for place, fields in _csv_rows(path):
        missing = [name for name in _CSV_COLUMNS if name not in fields]
        if missing:
            raise InputError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(fields):.200}")
        question, answer = _text(fields, "question", place), _text(fields, "answer", place)
        truncated = _reached_limit(fields.get("model_output_tokens", ""), fields.get("model_max_tokens", ""), place)
        logged = _verdict(fields.get("correct", ""), place)
        responses.append(Response(path.stem, question, answer, fields["model_answer"], truncated, logged, place))
    if not responses:
        raise InputError(f"{path} has a header and no rows")
    return responses


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (place, fields) of each row. pandas would read a torn row as one with empty fields, and does not report lines."""
    csv.field_size_limit(2**31 - 1)  # the default is 131,072 characters
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        first_line = 1
        try:
            header = next(reader, None)
            if not header:
                raise InputError(f"{path} is empty; it must have the columns {', '.join(_CSV_COLUMNS)}")
            first_line = reader.line_num + 1
            for row in reader:
                place = f"{path}, line {first_line}"
                if row and len(row) != len(header):
                    raise InputError(
                        f"{place}: the row has {len(row)} fields, but the file has {len(header)} columns; write the file again"
                    )
                if row:
                    yield place, dict(zip(header, row, strict=True))
                first_line = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}, line {first_line}: cannot be read as CSV ({error!s:.160}); write the file again") from None


def _header_of(path: Path) -> list[str]:
    """Return the column names of a CSV file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}, line 1: cannot be read as CSV ({error!s:.160}); write the file again") from None


def _verdict(text: str, place: str) -> bool | None:
    """Return a logged verdict, or None for an empty field."""
    known = {"": None, "true": True, "1": True, "false": False, "0": False}
    if text.strip().lower() not in known:
        raise InputError(f"{place}: column 'correct' is {text!r:.40}; allowed: True, False, 1, 0, or empty")
    return known[text.strip().lower()]


def _reached_limit(tokens: str, limit: str, place: str) -> bool | None:
    """Return whether a response reached its limit, or None if this is not known.

    Args:
        tokens: column `model_output_tokens`.
        limit: column `model_max_tokens`: True or False in the published files, the limit itself elsewhere.
        place: file and line, for messages.
    """
    if limit.strip().lower() in ("true", "false"):
        return limit.strip().lower() == "true"
    if not limit.strip() or not tokens.strip():
        return None
    try:
        return float(tokens) >= float(limit)
    except ValueError:
        raise InputError(
            f"{place}: model_output_tokens is {tokens!r:.40} and model_max_tokens is {limit!r:.40}; allowed: numbers, and True or False "
            "for model_max_tokens"
        ) from None


def _read_jsonl(path: Path) -> list[Response]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 (byte {data[error.start]:#04x}); save it as UTF-8") from None
    if not text.strip():
        raise InputError(f"{path} is empty; each line must be {_JSONL_LINE}")
    # Only "\n" ends a line: str.splitlines would also split at U+2028, which JSON allows inside a string.
    return [_response(line, path.stem, f"{path}, line {number}") for number, line in enumerate(text.rstrip().split("\n"), 1)]


def _response(line: str, stem: str, place: str) -> Response:
    """Return the response in one line of a JSONL file, by default of the model that the file is named after."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:  # torn or blank lines, numbers of thousands of digits, thousands of nested lists
        reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(f"{place}: not JSON ({reason:.120}); each line must be {_JSONL_LINE}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{place}: a JSON {type(fields).__name__}, not an object; each line must be {_JSONL_LINE}")
    model = _text({"model": stem, **fields}, "model", place)
    question, answer = _text(fields, "question", place), _text(fields, "answer", place)
    response = _text(fields, "response", place, empty=True)
    name = next((name for name, current in current_names(fields).items() if current == "truncated"), "truncated")
    truncated, finish = fields.get(name), fields.get("finish")
    if not isinstance(truncated, bool | None):
        raise InputError(f"{place}: field {name!r} is {truncated!r:.40}; allowed: true, false, or null")
    if not isinstance(finish, str | None):
        raise InputError(f"{place}: field 'finish' is {finish!r:.40}; allowed: a string ('length' if truncated), or null")
    if truncated is None and finish is not None:
        truncated = finish == "length"
    return Response(model, question, answer, response, truncated, None, place)


def _text(fields: Mapping[str, Any], name: str, place: str, *, empty: bool = False) -> str:
    """Return a field that must be text; empty text only if `empty`."""
    if name not in fields:
        raise InputError(
            f"{place}: no field {name!r} (fields seen: {', '.join(map(repr, fields)) or 'none':.200}); each line must be {_JSONL_LINE}"
        )
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
    """Return the responses of an evaluation of `distill`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / "responses.parquet"
    names = ["problem", "sample", "question", "reference", "response", "finish"]
    try:
        name = json.loads((folder / "evaluation.json").read_text("utf-8"))["settings"]["about"].get("name") or folder.name
        rows = pq.read_table(file, columns=names).to_pylist()
    except (OSError, pa.ArrowException, ValueError, KeyError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{folder} holds no complete evaluation ({reason:.120}); evaluate it again") from error
    if any(row["sample"] for row in rows):
        raise InputError(
            f"{folder} has several samples per problem, but the tests here need one; the report of `python -m distill` compares several"
        )
    if not rows:
        raise InputError(f"{folder} has no responses")
    responses = [
        Response(name, r["question"], r["reference"], r["response"], r["finish"] == "length", None, f"{file}, row {number}")
        for number, r in enumerate(rows, 1)
    ]
    return Source(folder, "evaluation", file_sha256(file), tuple(responses))
