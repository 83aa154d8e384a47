"""Load word problems in GSM8K's format: `openai/gsm8k` of the Hugging Face Hub, a JSONL file, or the small set of this package.

A solution has one step per line, with calculator marks such as `48/2 = <<48/2=24>>24`, and ends in `#### 24`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from interp.tables.errors import InputError

_SPLITS = ("train", "test")

_HUB_SETS = {"gsm8k": "main", "gsm8k-socratic": "socratic"}
"""Names of sets on the Hub, and the config of `openai/gsm8k` for each. The socratic solutions contain sub-questions."""

_GSM8K = "openai/gsm8k"

_FORMAT = 'each line must be {"question": "...", "answer": "..."}'


@dataclass(frozen=True)
class Problem:
    """A word problem with its reference solution.

    Attributes:
        index: 0-based position in the source.
        question: text of the problem.
        answer: reference solution, with calculator marks if the source has them.
    """

    index: int
    question: str
    answer: str

    @property
    def final_answer(self) -> str:
        """The text after the last `####` of the solution, stripped, such as "1,250"; "" if there is no `####`."""
        _, mark, final = self.answer.rpartition("####")
        return final.strip() if mark else ""


def load_problems(source: str = "shipped", split: str = "test", limit: int | None = None) -> list[Problem]:
    """Return problems in the order of their source.

    The complete source is checked whatever the limit.

    Args:
        source: "shipped" (the small set of this package), "gsm8k" or "gsm8k-socratic" (`openai/gsm8k` of the Hub, config main or
            socratic), or the path of a JSONL file with the string fields `question` and `answer`; further fields are ignored. A file
            with the name of a known set is reached as "./shipped".
        split: "train" or "test"; ignored for sources that are not on the Hub.
        limit: number of problems to take from the beginning, at least 1; None takes all.

    Returns:
        At least one problem, at most `limit`.

    Raises:
        InputError: `limit` is below 1, the split is unknown, the Hub cannot be reached, or the file does not exist, cannot be read or
            has another format.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it must be at least 1, or left out to take all problems")
    if source == "shipped":
        data = resources.files("distill.problems").joinpath("problems.jsonl").read_bytes()
        problems = _parse_jsonl(data, "the shipped problems")
    elif source in _HUB_SETS:
        problems = _load_gsm8k(_HUB_SETS[source], split)
    else:
        problems = _parse_jsonl(_read_file(source), source)
    return problems[:limit]


def problems_digest(problems: Iterable[Problem]) -> str:
    """Return a hash of a list of problems that is the same on every machine.

    Args:
        problems: the problems; their order matters.

    Returns:
        The SHA-256 of index, question and answer of every problem, in hexadecimal.
    """
    digest = hashlib.sha256()
    for problem in problems:
        line = json.dumps([problem.index, problem.question, problem.answer], ensure_ascii=True)
        digest.update(line.encode("ascii") + b"\n")
    return digest.hexdigest()


def _read_file(source: str) -> bytes:
    try:
        return Path(source).read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"problems: {source!r} is neither a known set nor a file; allowed: shipped, {', '.join(_HUB_SETS)}, or the path of a JSONL file"
        ) from None
    except IsADirectoryError:
        raise InputError(f"problems: {source!r} is a folder; name a JSONL file in it") from None
    except PermissionError:
        raise InputError(f"problems: no permission to read {source!r}; change its permissions or name another file") from None
    except (OSError, ValueError) as error:  # a name that is too long or holds a null byte, a failing disk
        raise InputError(f"problems: cannot read {source!r}: {error}; name a readable JSONL file") from error


def _parse_jsonl(data: bytes, source: str) -> list[Problem]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{source}, line {line}: not UTF-8 (byte {data[error.start]:#04x}); save it as UTF-8") from None
    # str.splitlines would also split at U+2028, which JSON allows inside a string.
    lines = text.rstrip().split("\n")
    if lines == [""]:
        raise InputError(f"{source} is empty; {_FORMAT}")
    return [_parse_line(line, index, f"{source}, line {index + 1}") for index, line in enumerate(lines)]


def _parse_line(line: str, index: int, place: str) -> Problem:
    if not line.strip():
        raise InputError(f"{place}: blank; only the last lines may be blank, delete it")
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON ({error.msg}, column {error.colno}); {_FORMAT}") from None
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, thousands of nested lists
        raise InputError(f"{place}: JSON that cannot be read ({error}); {_FORMAT}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{place}: a JSON {type(fields).__name__}, not an object; {_FORMAT}")
    return _problem(index, fields, place)


def _problem(index: int, fields: dict[str, object], place: str) -> Problem:
    return Problem(index, _text(fields, "question", place), _text(fields, "answer", place))


def _text(fields: dict[str, object], name: str, place: str) -> str:
    if name not in fields:
        seen = ", ".join(map(repr, fields)) or "none"
        raise InputError(f"{place}: no field {name!r} (fields seen: {seen:.200}); {_FORMAT}")
    value = fields[name]
    if not isinstance(value, str):
        raise InputError(f"{place}: field {name!r} is of type {type(value).__name__}; it must be a string")
    if not value.strip():
        raise InputError(f"{place}: field {name!r} is empty; it must hold text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # an unpaired escape such as \ud800, which no tokenizer can read
        raise InputError(f"{place}: field {name!r} holds half of a surrogate pair; it must be valid Unicode") from None
    return value


def _load_gsm8k(config: str, split: str) -> list[Problem]:
    if split not in _SPLITS:
        raise InputError(f"gsm8k has no split {split!r}; allowed: {', '.join(_SPLITS)}")
    import pyarrow as pa
    import pyarrow.parquet as pq
    from huggingface_hub import hf_hub_download

    filename = f"{config}/{split}-00000-of-00001.parquet"
    try:
        path = hf_hub_download(_GSM8K, filename, repo_type="dataset")
    # The Hub client's errors have no common class: OSError, errors of its HTTP library, plain Exceptions.
    except Exception as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise InputError(
            f"cannot fetch {filename} of {_GSM8K} from the Hub: {type(error).__name__}: {reason:.200}\n"
            f"Without a network, use shipped, or a local JSONL file instead of gsm8k ({_FORMAT})."
        ) from error
    try:
        rows = pq.read_table(path, columns=["question", "answer"]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot read {path}: {reason:.200}\nDelete this file and fetch it again.") from error
    if not rows:
        raise InputError(f"{path} has no rows; delete this file and fetch it again")
    return [_problem(index, row, f"{path}, row {index}") for index, row in enumerate(rows)]
