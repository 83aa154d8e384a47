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
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from distill.problems.sets import Problem
from distill.strategies import Strategy
from distill.teachers.catalog import TEACHERS, TIERS, open_teacher
from distill.teachers.options import TeacherConfig
from distill.teachers.teacher import same_tokenizer, tokenizer_digest
from distill.teachers.vllm import prompt_topk
from interp.checkpoints.opening import identify, open_checkpoint, open_tokenizer
from interp.checkpoints.unembedding import output_head
from interp.tables.errors import CheckpointError, StudyError

PROBLEMS = [Problem(i, f"How many are {i} and 3?", f"{i}+3 = {i + 3}\n#### {i + 3}") for i in range(4)]
TOLD = Strategy("told", "Be clear.")


# --- in process -----------------------------------------------------------------------------------------------------


@pytest.fixture
def config(checkpoint: Path) -> TeacherConfig:
    return TeacherConfig(model=str(checkpoint), device="cpu", max_new_tokens=6, batch_size=3, top_k=4)


@pytest.mark.parametrize("tier", TIERS["transformers"])
def test_answers_come_with_the_signals_of_their_own_prompt(config: TeacherConfig, checkpoint: Path, tier: Any) -> None:
    teacher = open_teacher(replace(config, signal=tier))
    records = teacher.answer(PROBLEMS, TOLD)
    opened = open_checkpoint(checkpoint, device="cpu")
    for record, problem in zip(records, PROBLEMS, strict=True):
        assert (record.index, record.question, record.reference) == (problem.index, problem.question, problem.answer)
        assert list(record.prompt_ids) == TOLD.encode(opened.tokenizer, problem.question, True)
        assert record.finish == ("eos" if record.response_ids[-1] == 2 else "length")
        with torch.no_grad():
            ids = torch.tensor([[*record.prompt_ids, *record.response_ids]])
            log_p = torch.log_softmax(opened.model(input_ids=ids).logits[0, len(record.prompt_ids) - 1 : -1], -1)
        assert log_p.argmax(-1).tolist() == list(record.response_ids)
        if tier == "text":
            assert record.signals == {}
        elif tier == "topk":
            torch.testing.assert_close(record.signals["topk_log_probs"], log_p.topk(4).values, atol=1e-4, rtol=0)
        elif tier == "hidden":
            head = teacher.head()
            assert head is not None
            torch.testing.assert_close(torch.log_softmax(head.logits(record.signals["hidden"]), -1), log_p, atol=1e-4, rtol=0)
        else:
            torch.testing.assert_close(record.signals["dense_log_probs"], log_p, atol=1e-4, rtol=0)
    assert (teacher.head() is not None) == (tier == "hidden")


def test_prompts_are_scored_as_the_published_code_feeds_them(config: TeacherConfig, checkpoint: Path) -> None:
    """Strategy, a space, the question; no template, no special tokens; the distribution after every token, the last included."""
    (record, *_) = open_teacher(replace(config, signal="dense")).score_prompts(PROBLEMS, TOLD, 9)
    opened = open_checkpoint(checkpoint, device="cpu")
    ids = opened.tokenizer("Be clear. " + PROBLEMS[0].question, add_special_tokens=False)["input_ids"][:9]
    with torch.no_grad():
        log_p = torch.log_softmax(opened.model(input_ids=torch.tensor([ids])).logits[0], -1)
    assert (list(record.prompt_ids), record.response_ids, record.text) == (ids, (), "")
    torch.testing.assert_close(record.signals["dense_log_probs"], log_p, atol=1e-5, rtol=0)


def test_identity_is_known_without_weights_and_free_of_places(
    config: TeacherConfig, checkpoint: Path, save_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = save_checkpoint(tmp_path / checkpoint.name)
    other = save_checkpoint(tmp_path / "other" / checkpoint.name, seed=1)
    monkeypatch.setattr("interp.checkpoints.opening.open_checkpoint", lambda *_, **__: pytest.fail("the weights were loaded"))
    own = open_teacher(config)
    assert own.identity == open_teacher(replace(config, model=str(copy))).identity
    assert own.identity != open_teacher(replace(config, model=str(other))).identity
    assert own.identity != open_teacher(replace(config, chat=False)).identity
    assert str(checkpoint.parent) not in json.dumps(own.identity)
    assert own.tokenizer is not None


@pytest.mark.parametrize("tier", ["text", "topk", "hidden"])
def test_scored_prompts_in_every_tier(config: TeacherConfig, checkpoint: Path, tier: Any) -> None:
    teacher = open_teacher(replace(config, signal=tier))
    assert teacher.tokenizer is not None
    for record, problem in zip(teacher.score_prompts(PROBLEMS, Strategy("none"), 100), PROBLEMS, strict=True):
        assert teacher.tokenizer.decode(record.prompt_ids) == problem.question  # no strategy, so no space before it
        with torch.no_grad():
            logits = open_checkpoint(checkpoint, device="cpu").model(input_ids=torch.tensor([record.prompt_ids])).logits[0]
        if tier == "text":
            assert record.signals == {}
        elif tier == "topk":
            expected = torch.log_softmax(logits, -1).topk(4)
            torch.testing.assert_close(record.signals["topk_log_probs"], expected.values, atol=1e-5, rtol=0)
            assert record.signals["topk_ids"].tolist() == expected.indices.tolist()
        else:
            head = teacher.head()
            assert head is not None
            torch.testing.assert_close(head.logits(record.signals["hidden"]), logits, atol=1e-4, rtol=1e-4)


def test_a_live_teacher_gives_its_model(config: TeacherConfig) -> None:
    teacher = open_teacher(config)
    model, head = teacher.model_and_head()
    assert torch.equal(head.weight, output_head(model).weight)
    teacher.close()
    assert len(teacher.answer(PROBLEMS[:1], TOLD)) == 1  # loaded anew


def test_chat_needs_a_template(config: TeacherConfig, save_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    bare = save_checkpoint(tmp_path / "bare", template=None)
    for kind in ("transformers", "vllm"):
        with pytest.raises(StudyError, match="no chat template"):
            open_teacher(replace(config, kind=kind, signal="topk", model=str(bare), chat=True))
    assert open_teacher(replace(config, model=str(bare))).identity["chat"] is False


# --- made elsewhere -------------------------------------------------------------------------------------------------


def test_reference_solutions_as_they_are() -> None:
    records = open_teacher(TeacherConfig(kind="reference", signal="text")).answer(PROBLEMS, TOLD)
    assert [(r.text, r.finish, r.response_ids) for r in records] == [(p.answer, "eos", ()) for p in PROBLEMS]


def replay(file: Path) -> Any:
    return open_teacher(TeacherConfig(kind="replay", signal="text", responses=str(file)))


def test_replay_pairs_by_question(tmp_path: Path) -> None:
    lines = [{"question": f" {p.question}\n", "response": f"said {p.index}", "more": 1} for p in PROBLEMS[::-1]]
    lines[0]["finish"] = "length"
    file = tmp_path / "said.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert [(r.text, r.finish) for r in replay(file).answer(PROBLEMS, TOLD)] == [
        *((f"said {i}", "eos") for i in range(3)),
        ("said 3", "length"),
    ]
    with pytest.raises(StudyError, match="no response to 1 of 5 questions, the first to problem 9"):
        replay(file).answer([*PROBLEMS, Problem(9, "Why?", "#### 1")], TOLD)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "line 1"),
        ('{"question": "a"}', "KeyError 'response'"),
        ('{"question": "a", "response": 3}', "must be strings"),
        ('{"question": "a", "response": "b", "finish": "x"}', "finish"),
        ("[]", "line 1"),
        ('{"question": "a", "response": "b"}\n{"question": "a", "response": "c"}', "second response"),
        (None, "cannot be read"),
    ],
)
def test_bad_replays(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "said.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StudyError, match=words):
        replay(file)


# --- a real server --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[str]:
    """`transformers serve` with the tiny checkpoint, on a free port of the loopback."""
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


def test_a_real_server_answers_as_the_model_in_process(server: str, checkpoint: Path) -> None:
    pytest.importorskip("openai")
    shared: dict[str, Any] = {"model": str(checkpoint), "signal": "text", "max_new_tokens": 6}
    served = open_teacher(TeacherConfig(kind="openai", url=server, concurrency=2, retries=1, **shared)).answer(PROBLEMS, TOLD)
    own = open_teacher(TeacherConfig(device="cpu", **shared)).answer(PROBLEMS, TOLD)
    assert [(r.index, r.text.strip()) for r in served] == [(r.index, r.text.strip()) for r in own]
    assert [r.response_ids for r in served] == [()] * 4


def test_a_model_that_the_server_does_not_have(server: str) -> None:
    with pytest.raises(StudyError, match=r"problem 0: the server says 4\d\d"):
        open_teacher(TeacherConfig(kind="openai", url=server, model="no/such", signal="text", retries=0)).answer(PROBLEMS[:1], TOLD)


# --- a server that misbehaves ---------------------------------------------------------------------------------------


@dataclass
class Bad:
    """What the next requests get, the last for ever: (status, headers, body), or seconds to sleep."""

    url: str
    replies: list[Any]
    seen: list[dict[str, Any]]


@pytest.fixture
def bad() -> Iterator[Bad]:
    pytest.importorskip("openai")
    state = Bad("", [], [])

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


def said(text: str | None = "5", logprobs: Any = None, finish: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, "logprobs": logprobs}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def ask(bad: Bad, problems: list[Problem] | None = None, strategy: Strategy = TOLD, **settings: Any) -> list[Any]:
    settings = {"model": "m", "signal": "text", "retries": 0, "timeout_s": 5.0, **settings}
    return open_teacher(TeacherConfig(kind="openai", url=bad.url, **settings)).answer(problems or PROBLEMS[:1], strategy)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((401, {}, {"error": {"message": "bad key"}}), r"401 .*bad key.*\$OPENAI_API_KEY"),
        ((404, {}, {"error": {"message": "no model m"}}), "404 .*no model m"),
        ((500, {}, {"error": {"message": "broken"}}), "500"),
        ((429, {}, {"error": {"message": "slow down"}}), r"rate limit \(429\), 1 times.*concurrency"),
        ((200, {}, b"<html>hello</html>"), "without text|cannot be read"),
        ((200, {"Content-Type": "text/html"}, b"<html>hello</html>"), "without text|cannot be read"),
        ((200, {}, {"choices": []}), "without text"),
        ((200, {}, {}), "without text"),
        ((200, {}, said(None)), "without text"),
    ],
)
def test_what_a_server_does_wrong_is_said(bad: Bad, reply: Any, words: str) -> None:
    bad.replies = [reply]
    with pytest.raises(StudyError, match=words) as raised:
        ask(bad)
    assert bad.url in str(raised.value)
    assert "problem 0" in str(raised.value)


def test_a_server_that_is_down_or_slow(bad: Bad) -> None:
    bad.replies = [3.0]
    with pytest.raises(StudyError, match=r"no answer within 0\.2 s, 1 times; raise teacher\.timeout_s"):
        ask(bad, timeout_s=0.2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(StudyError, match=r"no connection .*is the server running"):
        ask(replace(bad, url=nobody))


def test_a_passing_error_is_tried_again_when_the_server_says(bad: Bad) -> None:
    bad.replies = [(429, {"Retry-After": "0.05"}, {}), (503, {"Retry-After": "0.05"}, {}), (200, {}, said("18", finish="length"))]
    (record,) = ask(bad, retries=2)
    assert (record.text, record.finish, len(bad.seen)) == ("18", "length", 3)


def test_only_what_the_teacher_ended_has_an_end(bad: Bad) -> None:
    for reason, finish in (("stop", "eos"), ("length", "length"), ("content_filter", "length")):
        bad.replies = [(200, {}, said("half an ans", finish=reason))]
        assert ask(bad)[0].finish == finish


def test_strategies_become_messages(bad: Bad) -> None:
    bad.replies = [(200, {}, said())]
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


def test_requests_are_spread_over_the_minute(bad: Bad, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket of a minute's requests would be full anew for every shard of records, and could not hold half a request."""
    import aiolimiter

    made: list[tuple[float, float]] = []

    class Seen(aiolimiter.AsyncLimiter):
        def __init__(self, max_rate: float, time_period: float = 60) -> None:
            made.append((max_rate, time_period))
            super().__init__(max_rate, time_period)

    monkeypatch.setattr(aiolimiter, "AsyncLimiter", Seen)
    bad.replies = [(200, {}, said())]
    assert len(ask(bad, PROBLEMS, requests_per_minute=6000.0)) == 4
    assert len(ask(bad, PROBLEMS[:1], requests_per_minute=0.5)) == 1
    assert made == [(1, pytest.approx(0.01)), (1, pytest.approx(120.0))]


def test_every_answer_has_a_seed_of_its_own(bad: Bad) -> None:
    """The same for the same problem, whatever is asked beside it; one for all would give every answer the same random numbers."""
    bad.replies = [(200, {}, said())]
    ask(bad, PROBLEMS, concurrency=1)
    ask(bad, PROBLEMS[::-1], concurrency=1)
    ask(bad, PROBLEMS[:1], seed=1)
    seeds = [request["seed"] for request in bad.seen]
    assert seeds[:4] == seeds[7:3:-1]
    assert len({*seeds}) == 5
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_one_failure_ends_the_others(bad: Bad) -> None:
    """A shard is answered whole or not at all, and nothing more is asked for what would be thrown away."""
    bad.replies = [(200, {}, said()), (500, {}, {}), (200, {}, said())]
    with pytest.raises(StudyError, match="problem 1: the server says 500"):
        ask(bad, PROBLEMS, concurrency=1)
    assert len(bad.seen) <= 3


def test_an_empty_answer_is_kept(bad: Bad) -> None:
    """It is counted, and left out, where texts for the student are made."""
    bad.replies = [(200, {}, said(""))]
    assert [(r.text, r.finish) for r in ask(bad)] == [("", "eos")]


def test_the_key_comes_from_the_environment(bad: Bad, monkeypatch: pytest.MonkeyPatch) -> None:
    bad.replies = [(401, {}, {"error": {"message": "bad key"}})]
    monkeypatch.setenv("MY_KEY", "very-dear")
    with pytest.raises(StudyError, match=r"\$MY_KEY holds the key") as raised:
        ask(bad, api_key_env="MY_KEY")
    assert "very-dear" not in str(raised.value)


@pytest.fixture
def knowing(bad: Bad, checkpoint: Path) -> Callable[[], list[Any]]:
    """Asks for the top 2 with the tokenizer named."""
    return lambda: ask(bad, signal="topk", top_k=2, tokenizer=str(checkpoint))


def steps(*tops: dict[str, float]) -> dict[str, Any]:
    content = [
        {"token": next(iter(top)), "logprob": 0.0, "top_logprobs": [{"token": t, "logprob": p} for t, p in top.items()]} for top in tops
    ]
    return {"content": content}


def test_top_k_from_token_ids(bad: Bad, knowing: Callable[[], list[Any]]) -> None:
    bad.replies = [(200, {}, said("5", steps({"token_id:7": -0.1, "token_id:3": -2.5}, {"token_id:2": -3.0, "token_id:9": -0.2})))]
    (record,) = knowing()
    assert record.response_ids == (7, 2)
    assert record.signals["topk_ids"].tolist() == [[7, 3], [9, 2]]
    assert record.signals["topk_log_probs"].flatten().tolist() == pytest.approx([-0.1, -2.5, -0.2, -3.0])
    assert (bad.seen[0]["top_logprobs"], bad.seen[0]["return_tokens_as_token_ids"]) == (2, True)


@pytest.mark.parametrize(
    ("logprobs", "words"),
    [
        (steps({"Ann": -0.1, "Tom": -2.0}), "names tokens by text .*'Ann'"),
        (steps({"token_id:7": -0.1}), "1 log-probabilities at a token, 2 were asked for"),
        (None, "no log-probabilities"),
    ],
)
def test_log_probabilities_that_cannot_be_used(bad: Bad, knowing: Callable[[], list[Any]], logprobs: Any, words: str) -> None:
    bad.replies = [(200, {}, said("5", logprobs))]
    with pytest.raises(StudyError, match=words):
        knowing()


# --- vLLM, choosing, tokenizers -------------------------------------------------------------------------------------


def test_top_k_from_vllms_prompt_log_probabilities() -> None:
    """Entry i is the distribution from which token i came; the chosen token stands in it though it is none of the k likeliest."""

    @dataclass
    class Logprob:
        logprob: float

    entries = [None, {4: Logprob(-1.0)}, {7: Logprob(-0.1), 3: Logprob(-2.5), 9: Logprob(-8.0)}, {2: Logprob(-3.0), 9: Logprob(-0.2)}]
    found = prompt_topk(entries, 2, 2, "problem 0")
    assert found["topk_ids"].tolist() == [[7, 3], [9, 2]]
    assert found["topk_log_probs"].flatten().tolist() == pytest.approx([-0.1, -2.5, -0.2, -3.0])
    with pytest.raises(StudyError, match="problem 0"):
        prompt_topk([None, None], 1, 2, "problem 0")


@pytest.fixture
def engine(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """In vLLM's place: its documented interface over the tiny model in process. Gives what it was called with."""
    from distill.teachers.generate import Sampling, generate

    seen: list[Any] = []
    opened = open_checkpoint(checkpoint, device="cpu")

    class LLM:
        def __init__(self, **settings: Any) -> None:
            seen.append(settings)

        def generate(self, prompts: list[dict[str, list[int]]], params: Any) -> list[SimpleNamespace]:
            params = params if isinstance(params, list) else [params] * len(prompts)
            seen.append(params)
            return [self._one(p["prompt_token_ids"], how) for p, how in zip(prompts, params, strict=True)]

        def _one(self, ids: list[int], how: SimpleNamespace) -> SimpleNamespace:
            (said,) = generate(opened.model, opened.tokenizer, [ids], Sampling(how.max_tokens), batch_size=1)
            finish = "length" if said.finish == "length" else "stop"
            out = SimpleNamespace(token_ids=list(said.ids), text=said.text, finish_reason=finish)
            with torch.no_grad():
                log_p = torch.log_softmax(opened.model(input_ids=torch.tensor([ids])).logits[0], -1)
            entries: list[Any] = [None]
            for at, token in enumerate(ids[1:]):
                listed = [token, *log_p[at].topk(getattr(how, "prompt_logprobs", 0)).indices.tolist()]  # the token itself comes first
                entries.append({i: SimpleNamespace(logprob=log_p[at, i].item()) for i in listed})
            return SimpleNamespace(outputs=[out], prompt_logprobs=entries)

    fake: Any = ModuleType("vllm")
    fake.LLM, fake.SamplingParams = LLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", fake)
    return seen


@pytest.mark.parametrize("tier", ["text", "topk"])
def test_vllm_answers_as_the_model_in_process(config: TeacherConfig, engine: list[Any], tier: Any) -> None:
    teacher = open_teacher(replace(config, kind="vllm", signal=tier, seed=3))
    assert engine == []  # not started before the first answer
    served, own = teacher.answer(PROBLEMS, TOLD), open_teacher(replace(config, signal=tier)).answer(PROBLEMS, TOLD)
    for one, other in zip(served, own, strict=True):
        assert replace(one, signals={}) == replace(other, signals={})
        assert one.signals.keys() == other.signals.keys()
        for name, rows in one.signals.items():
            torch.testing.assert_close(rows, other.signals[name], atol=1e-4, rtol=0)
    started, chosen, *scored = engine
    assert (started["model"], started["max_logprobs"], started["logprobs_mode"]) == (config.model, 20, "raw_logprobs")
    assert len({how.seed for how in chosen}) == 4
    assert [(how.max_tokens, how.temperature, how.top_p) for how in chosen] == [(6, 0.0, 1.0)] * 4
    assert [(how.max_tokens, how.prompt_logprobs) for calls in scored for how in calls] == ([(1, 4)] * 4 if tier == "topk" else [])


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_is_an_extra(checkpoint: Path) -> None:
    teacher = open_teacher(TeacherConfig(kind="vllm", model=str(checkpoint), signal="topk"))
    with pytest.raises(StudyError, match=r"primed-heads\[vllm\]"):
        teacher.answer(PROBLEMS, TOLD)


def test_what_a_teacher_cannot_do() -> None:
    with pytest.raises(StudyError, match=r"unknown teacher\.kind 'tranformers'; known: transformers, vllm"):
        open_teacher(TeacherConfig(kind="tranformers"))
    with pytest.raises(StudyError, match=r"openai cannot give teacher\.signal = 'hidden'; it can give text, topk"):
        open_teacher(TeacherConfig(kind="openai", url="http://localhost/v1"))
    with pytest.raises(StudyError, match="at most 20"):
        open_teacher(TeacherConfig(kind="openai", url="http://localhost/v1", signal="topk", top_k=21))
    with pytest.raises(StudyError, match=r"teacher\.tokenizer"):
        open_teacher(TeacherConfig(kind="openai", url="http://localhost/v1", signal="topk", top_k=20))
    with pytest.raises(StudyError, match=r"teacher\.url"):
        open_teacher(TeacherConfig(kind="openai", signal="text"))
    with pytest.raises(StudyError, match=r"teacher\.responses"):
        open_teacher(TeacherConfig(kind="replay", signal="text"))
    with pytest.raises(CheckpointError, match="no such model"):
        open_teacher(TeacherConfig(model="./nowhere"))
    reference = open_teacher(TeacherConfig(kind="reference", signal="text"))
    with pytest.raises(StudyError, match="published"):
        reference.score_prompts(PROBLEMS, TOLD, 10)
    with pytest.raises(StudyError, match="live"):
        reference.model_and_head()
    assert set(TEACHERS) == set(TIERS)


def test_tokenizers_are_compared_by_content(tiny_tokenizer: Callable[..., Any]) -> None:
    one, same = tiny_tokenizer(), tiny_tokenizer(None)
    assert same_tokenizer(one, same) is None
    assert tokenizer_digest(one) != tokenizer_digest(same)  # the template shapes prompts
    assert tokenizer_digest(one) == tokenizer_digest(tiny_tokenizer())
    grown = tiny_tokenizer()
    grown.add_tokens(["<new>"])
    assert same_tokenizer(one, grown) == f"id {len(one)} is None to the teacher and '<new>' to the student"
    from tokenizers import pre_tokenizers

    cut = tiny_tokenizer()
    cut.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert "cut the same text differently" in str(same_tokenizer(one, cut))


def test_the_same_vocabulary_with_other_merges(tiny_tokenizer: Callable[..., Any]) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    one = tiny_tokenizer()
    content = json.loads(one.backend_tokenizer.to_str())
    merges = content["model"]["merges"]

    def other(changed: list[Any]) -> Any:
        model = {**content["model"], "merges": changed}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps({**content, "model": model})))

    assert same_tokenizer(one, other(merges)) is None
    for changed in (merges[::-1], merges[1:], merges[:70] + merges[71:], merges[:-1]):
        assert other(changed).get_vocab() == one.get_vocab()
        assert "cut the same text differently" in str(same_tokenizer(one, other(changed)))


def test_checkpoints_tell_who_they_are_without_opening(checkpoint: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.checkpoints.loading.load_model", lambda *_, **__: pytest.fail("the weights were loaded"))
    base, adapted = identify(checkpoint), identify(adapter)
    assert base["weights_sha256"] == adapted["base"]["weights_sha256"] != adapted["weights_sha256"]
    assert open_tokenizer(adapter).get_vocab() == open_tokenizer(checkpoint).get_vocab()
    with pytest.raises(CheckpointError, match="no such model"):
        identify("./nowhere")
