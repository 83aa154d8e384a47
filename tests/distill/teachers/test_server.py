from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from distill.problems.sets import Problem
from distill.strategies import Strategy
from distill.teachers.options import TeacherConfig
from distill.teachers.teacher import open_teacher
from interp.tables.errors import StudyError

PROBLEMS = [Problem(i, f"How many are {i} and 3?", f"{i}+3 = {i + 3}\n#### {i + 3}") for i in range(4)]
TOLD = Strategy("told", "Be clear.")


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[str]:
    """Address of `transformers serve` with the tiny checkpoint, on a free local port."""
    missing = [name for name in ("fastapi", "uvicorn", "openai", "aiolimiter") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the server needs {', '.join(missing)}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(checkpoint), "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if process.poll() is None and probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            pytest.fail("the server did not start within a minute")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def test_answers_of_a_real_server_equal_those_of_transformers(server: str, checkpoint: Path) -> None:
    pytest.importorskip("openai")
    shared: dict[str, Any] = {"model": str(checkpoint), "signal": "text", "max_new_tokens": 6}
    served = open_teacher(TeacherConfig(kind="openai", url=server, concurrency=2, retries=1, **shared)).answer(PROBLEMS, TOLD)
    own = open_teacher(TeacherConfig(device="cpu", **shared)).answer(PROBLEMS, TOLD)
    assert [(r.index, r.text.strip()) for r in served] == [(r.index, r.text.strip()) for r in own]
    assert [r.response_ids for r in served] == [()] * 4


def test_unknown_model_of_a_server_is_reported(server: str) -> None:
    with pytest.raises(StudyError, match=r"problem 0: the server answered with status 4\d\d"):
        open_teacher(TeacherConfig(kind="openai", url=server, model="no/such", signal="text", retries=0)).answer(PROBLEMS[:1], TOLD)


@dataclass
class FakeServer:
    """A server with given replies: (status, headers, body), or seconds to sleep; the last reply is repeated."""

    url: str
    replies: list[Any]
    seen: list[dict[str, Any]]


@pytest.fixture
def bad() -> Iterator[FakeServer]:
    pytest.importorskip("openai")
    state = FakeServer("", [], [])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            reply = state.replies.pop(0) if len(state.replies) > 1 else state.replies[0]
            if isinstance(reply, float):
                time.sleep(reply)
                return
            status, headers, body = reply
            self.send_response(status)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    server.shutdown()
    server.server_close()


def completion(text: str | None = "5", logprobs: Any = None, finish: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, "logprobs": logprobs}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def ask(bad: FakeServer, problems: list[Problem] | None = None, strategy: Strategy = TOLD, **settings: Any) -> list[Any]:
    settings = {"model": "m", "signal": "text", "retries": 0, "timeout_s": 5.0, **settings}
    return open_teacher(TeacherConfig(kind="openai", url=bad.url, **settings)).answer(problems or PROBLEMS[:1], strategy)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((401, {}, {"error": {"message": "bad key"}}), r"401 .*bad key.*\$OPENAI_API_KEY"),
        ((404, {}, {"error": {"message": "no model m"}}), "404 .*no model m"),
        ((500, {}, {"error": {"message": "broken"}}), "500"),
        ((429, {}, {"error": {"message": "slow down"}}), r"rate limit of the server \(429, attempts: 1\).*concurrency"),
        ((200, {}, b"<html>hello</html>"), "has no text|cannot be read"),
        ((200, {"Content-Type": "text/html"}, b"<html>hello</html>"), "has no text|cannot be read"),
        ((200, {}, {"choices": []}), "has no text"),
        ((200, {}, {}), "has no text"),
        ((200, {}, completion(None)), "has no text"),
    ],
)
def test_errors_of_a_server_are_reported(bad: FakeServer, reply: Any, words: str) -> None:
    bad.replies = [reply]
    with pytest.raises(StudyError, match=words) as raised:
        ask(bad)
    assert bad.url in str(raised.value)
    assert "problem 0" in str(raised.value)


def test_unreachable_or_slow_server_is_reported(bad: FakeServer) -> None:
    bad.replies = [3.0]
    with pytest.raises(StudyError, match=r"no answer within 0\.2 s \(attempts: 1\); raise teacher\.timeout_s"):
        ask(bad, timeout_s=0.2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        unused = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(StudyError, match=r"no connection .*is the server running"):
        ask(replace(bad, url=unused))


def test_temporary_errors_are_retried(bad: FakeServer) -> None:
    bad.replies = [(429, {"Retry-After": "0.05"}, {}), (503, {"Retry-After": "0.05"}, {}), (200, {}, completion("18", finish="length"))]
    (record,) = ask(bad, retries=2)
    assert (record.text, record.finish, len(bad.seen)) == ("18", "length", 3)


def test_only_finish_reason_stop_is_an_end(bad: FakeServer) -> None:
    for reason, finish in (("stop", "eos"), ("length", "length"), ("content_filter", "length")):
        bad.replies = [(200, {}, completion("half an ans", finish=reason))]
        assert ask(bad)[0].finish == finish


def test_strategies_become_messages(bad: FakeServer) -> None:
    bad.replies = [(200, {}, completion())]
    question = PROBLEMS[0].question
    for place, wanted in {
        "system": [("system", "Be clear."), ("user", question)],
        "before": [("user", f"Be clear.\n\n{question}")],
        "after": [("user", f"{question}\n\nBe clear.")],
    }.items():
        ask(bad, strategy=Strategy("told", "Be clear.", place))  # pyright: ignore[reportArgumentType]
        assert [(m["role"], m["content"]) for m in bad.seen[-1]["messages"]] == wanted
    ask(bad, strategy=Strategy("none"))
    assert bad.seen[-1]["messages"] == [{"role": "user", "content": question}]


def test_requests_are_evenly_spaced(bad: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limiter over a minute would start full for every shard of records, and could not hold half a request."""
    import aiolimiter

    made: list[tuple[float, float]] = []

    class Seen(aiolimiter.AsyncLimiter):
        def __init__(self, max_rate: float, time_period: float = 60) -> None:
            made.append((max_rate, time_period))
            super().__init__(max_rate, time_period)

    monkeypatch.setattr(aiolimiter, "AsyncLimiter", Seen)
    bad.replies = [(200, {}, completion())]
    assert len(ask(bad, PROBLEMS, requests_per_minute=6000.0)) == 4
    assert len(ask(bad, PROBLEMS[:1], requests_per_minute=0.5)) == 1
    assert made == [(1, pytest.approx(0.01)), (1, pytest.approx(120.0))]


def test_every_problem_has_its_own_seed(bad: FakeServer) -> None:
    """A problem has the same seed whatever else is asked; one seed for all would give every answer the same random numbers."""
    bad.replies = [(200, {}, completion())]
    ask(bad, PROBLEMS, concurrency=1)
    ask(bad, PROBLEMS[::-1], concurrency=1)
    ask(bad, PROBLEMS[:1], seed=1)
    seeds = [request["seed"] for request in bad.seen]
    assert seeds[:4] == seeds[7:3:-1]
    assert len({*seeds}) == 5
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_one_failure_cancels_the_other_requests(bad: FakeServer) -> None:
    """A shard is complete or not kept at all, so no further requests are sent."""
    bad.replies = [(200, {}, completion()), (500, {}, {}), (200, {}, completion())]
    with pytest.raises(StudyError, match="problem 1: the server answered with status 500"):
        ask(bad, PROBLEMS, concurrency=1)
    assert len(bad.seen) <= 3


def test_empty_answer_is_kept(bad: FakeServer) -> None:
    """It is counted and left out later, when texts for the student are made."""
    bad.replies = [(200, {}, completion(""))]
    assert [(r.text, r.finish) for r in ask(bad)] == [("", "eos")]


def test_key_comes_from_the_environment_and_is_not_printed(bad: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    bad.replies = [(401, {}, {"error": {"message": "bad key"}})]
    monkeypatch.setenv("MY_KEY", "very-dear")
    with pytest.raises(StudyError, match=r"\$MY_KEY holds the key") as raised:
        ask(bad, api_key_env="MY_KEY")
    assert "very-dear" not in str(raised.value)


@pytest.fixture
def ask_topk(bad: FakeServer, checkpoint: Path) -> Callable[[], list[Any]]:
    """Ask for the top 2, with the tokenizer named."""
    return lambda: ask(bad, signal="topk", top_k=2, tokenizer=str(checkpoint))


def logprobs_of(*tops: dict[str, float]) -> dict[str, Any]:
    content = [
        {"token": next(iter(top)), "logprob": 0.0, "top_logprobs": [{"token": t, "logprob": p} for t, p in top.items()]} for top in tops
    ]
    return {"content": content}


def test_top_k_from_token_ids(bad: FakeServer, ask_topk: Callable[[], list[Any]]) -> None:
    bad.replies = [
        (200, {}, completion("5", logprobs_of({"token_id:7": -0.1, "token_id:3": -2.5}, {"token_id:2": -3.0, "token_id:9": -0.2})))
    ]
    (record,) = ask_topk()
    assert record.response_ids == (7, 2)
    assert record.signals["topk_ids"].tolist() == [[7, 3], [9, 2]]
    assert record.signals["topk_log_probs"].flatten().tolist() == pytest.approx([-0.1, -2.5, -0.2, -3.0])
    assert (bad.seen[0]["top_logprobs"], bad.seen[0]["return_tokens_as_token_ids"]) == (2, True)


@pytest.mark.parametrize(
    ("logprobs", "words"),
    [
        (logprobs_of({"Ann": -0.1, "Tom": -2.0}), "returns tokens as text .*'Ann'"),
        (logprobs_of({"token_id:7": -0.1}), "1 log-probabilities at a token instead of 2"),
        (None, "no log-probabilities"),
    ],
)
def test_unusable_log_probabilities_are_refused(bad: FakeServer, ask_topk: Callable[[], list[Any]], logprobs: Any, words: str) -> None:
    bad.replies = [(200, {}, completion("5", logprobs))]
    with pytest.raises(StudyError, match=words):
        ask_topk()
