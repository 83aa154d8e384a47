"""Who answers: teachers of several kinds, each saying which signals it can give.

`TEACHERS` names them. A teacher's identity says what shapes its answers, and is known before its weights are loaded: a study whose
records are complete never loads them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from distill.config import TeacherConfig
from distill.losses import Head
from distill.problems import Problem
from distill.records import Record, record_key
from distill.strategies import Strategy


class TeacherError(ValueError):
    """A teacher that cannot answer; the message says what was seen, what is allowed and what to do."""


class Teacher(Protocol):
    """Who answers.

    Attributes:
        identity: JSON of all that shapes the answers beside strategy and sampling; its `name` is for people.
        tokenizer: None where only text can be had.
    """

    identity: dict[str, Any]

    @property
    def tokenizer(self) -> Any | None:
        """The teacher's tokenizer; None where its answers are text only."""
        ...

    def answer(self, problems: Sequence[Problem], strategy: Strategy) -> list[Record]:
        """One record a problem, in order, with the signals asked for."""
        ...

    def score_prompts(self, problems: Sequence[Problem], strategy: Strategy, max_tokens: int) -> list[Record]:
        """For the published objective: signals at every token of prompt and question, and no answer."""
        ...

    def head(self) -> Head | None:
        """What turns stored hidden states into logits; None where none are given."""
        ...

    def model_and_head(self) -> tuple[Any, Head]:
        """For a live teacher: the model itself."""
        ...

    def close(self) -> None:
        """Frees memory."""
        ...


class _TextTeacher:
    """What teachers have in common that give text and nothing else."""

    identity: dict[str, Any]
    tokenizer: Any | None = None

    def score_prompts(self, problems: Sequence[Problem], strategy: Strategy, max_tokens: int) -> list[Record]:
        raise TeacherError(
            f'a teacher of kind {self.identity["kind"]} cannot score prompts; objective published needs teacher.kind = "transformers"'
        )

    def head(self) -> Head | None:
        return None

    def model_and_head(self) -> tuple[Any, Head]:
        raise TeacherError(
            f'a teacher of kind {self.identity["kind"]} cannot be live; objective.teacher = "live" needs teacher.kind = "transformers"'
        )

    def close(self) -> None:
        pass


# --- in process -----------------------------------------------------------------------------------------------------


def _uses_chat(config: TeacherConfig, tokenizer: Any) -> bool:
    """Whether prompts go through the chat template."""
    has = getattr(tokenizer, "chat_template", None) is not None
    if config.chat and not has:
        raise TeacherError(f"teacher.chat is true, but the tokenizer of {config.model} has no chat template; leave it out")
    return has if config.chat is None else config.chat


def _row_seed(config: TeacherConfig, problem: Problem) -> int:
    """A seed for each problem: with one for all, servers would draw every answer from the same random numbers."""
    digest = hashlib.sha256(f"{config.seed}:{record_key(problem.question, problem.answer)}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1  # 31 bits: some servers take no more


class TransformersTeacher:
    """Any checkpoint, in this process: text, topk, hidden, dense."""

    def __init__(self, config: TeacherConfig) -> None:
        from interp.checkpoints import identify

        self.config = config
        self.chat = _uses_chat(config, self.tokenizer)
        self.identity = {
            "kind": "transformers",
            **identify(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code),
            "dtype": config.dtype,
            "tokenizer": tokenizer_digest(self.tokenizer),
            "chat": self.chat,
        }
        self._open: Any = None

    @cached_property
    def tokenizer(self) -> Any:
        """Loaded without the weights."""
        from interp.checkpoints import open_tokenizer

        return open_tokenizer(self.config.model, revision=self.config.revision, trust_remote_code=self.config.trust_remote_code)

    @property
    def model(self) -> Any:
        """The weights, loaded when they are first needed."""
        from interp.checkpoints import open_checkpoint

        if self._open is None:
            self._open = open_checkpoint(
                self.config.model,
                device=self.config.device,
                dtype=self.config.dtype,
                revision=self.config.revision,
                trust_remote_code=self.config.trust_remote_code,
            )
        return self._open.model

    def answer(self, problems: Sequence[Problem], strategy: Strategy) -> list[Record]:
        """Generated in batches; the signals are those of the steps themselves."""
        from distill.generate import Sampling, generate

        config = self.config
        prompts = [strategy.encode(self.tokenizer, p.question, self.chat) for p in problems]
        answers = generate(
            self.model,
            self.tokenizer,
            prompts,
            Sampling(config.max_new_tokens, config.temperature, config.top_p, config.seed),
            batch_size=config.batch_size,
            signal=config.signal,
            top_k=config.top_k,
            keys=[record_key(p.question, p.answer) for p in problems],
        )
        return [
            Record(
                p.index, p.question, p.answer, tuple(asked), said.ids, said.text, "eos" if said.finish == "eos" else "length", said.signals
            )
            for p, asked, said in zip(problems, prompts, answers, strict=True)
        ]

    def score_prompts(self, problems: Sequence[Problem], strategy: Strategy, max_tokens: int) -> list[Record]:
        """Plain text, strategy before question, no special tokens, cut at `max_tokens`: as the published code feeds its teacher."""
        from distill.output_head import hidden_states

        if strategy.text and strategy.place != "before":
            raise TeacherError(
                f'strategy {strategy.name} stands {strategy.place} the question, but objective published knows "before" only: the strategy '
                "and the question are one plain text"
            )
        if self.config.chat:
            raise TeacherError("teacher.chat is true, but objective published feeds plain text; leave it out")
        head, records = self._head, []
        limit = self._open.position_limit
        for p in problems:
            text = f"{strategy.text} {p.question}" if strategy.text else p.question
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"][:max_tokens]
            if limit is not None and len(ids) > limit:
                raise TeacherError(
                    f"problem {p.index}: prompt and question take {len(ids)} tokens, {self.config.model} has {limit} positions; lower "
                    f"objective.max_tokens to {limit}"
                )
            given = torch.tensor([ids], device=self.model.get_input_embeddings().weight.device)
            with torch.no_grad():
                states = hidden_states(self.model, given, torch.ones_like(given))[0]
                signals = self._signals(states, head)
            records.append(Record(p.index, p.question, p.answer, tuple(ids), (), "", "eos", signals))
        return records

    def _signals(self, states: Tensor, head: Head) -> dict[str, Tensor]:
        if self.config.signal == "text":
            return {}
        if self.config.signal == "hidden":
            return {"hidden": states.cpu()}
        log_probs = torch.log_softmax(head.logits(states), -1)
        if self.config.signal == "dense":
            return {"dense_log_probs": log_probs.cpu()}
        top = log_probs.topk(min(self.config.top_k, log_probs.shape[-1]), -1)
        return {"topk_ids": top.indices.int().cpu(), "topk_log_probs": top.values.cpu()}

    @property
    def _head(self) -> Head:
        from distill.output_head import output_head

        return output_head(self.model)

    def head(self) -> Head | None:
        """The output head, where hidden states are stored."""
        return self._head if self.config.signal == "hidden" else None

    def model_and_head(self) -> tuple[Any, Head]:
        """The model, and its output head."""
        return self.model, self._head

    def close(self) -> None:
        """Frees the weights; they are loaded again if they are needed."""
        self._open = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# --- text made elsewhere --------------------------------------------------------------------------------------------


class ReferenceTeacher(_TextTeacher):
    """The problems' own solutions."""

    def __init__(self, config: TeacherConfig) -> None:
        self.identity = {"kind": "reference", "name": "reference solutions"}

    def answer(self, problems: Sequence[Problem], strategy: Strategy) -> list[Record]:
        """The reference solutions as they are, calculator marks and all."""
        return [Record(p.index, p.question, p.answer, (), (), p.answer, "eos") for p in problems]


class ReplayTeacher(_TextTeacher):
    """Responses made elsewhere: a JSONL file of `question`, `response` and, where it was cut, `"finish": "length"`."""

    def __init__(self, config: TeacherConfig) -> None:
        if config.responses is None:
            raise TeacherError('teacher.kind = "replay" needs teacher.responses, a JSONL file of {"question": "...", "response": "..."}')
        self.file = Path(config.responses)
        try:
            content = self.file.read_bytes()
        except OSError as error:
            raise TeacherError(f"teacher.responses: {self.file} cannot be read ({error.strerror})") from error
        self.identity = {"kind": "replay", "name": self.file.stem, "sha256": hashlib.sha256(content).hexdigest()}
        self.said: dict[str, tuple[str, str]] = {}
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if line.strip():
                question, response, finish = self._line(line, number)
                if self.said.setdefault(question, (response, finish)) != (response, finish):
                    raise TeacherError(f"{self.file}, line {number}: a second response to {question[:60]!r}; give one")

    def _line(self, line: str, number: int) -> tuple[str, str, str]:
        place = f"{self.file}, line {number}"
        try:
            fields = json.loads(line)
            question, response, finish = fields["question"], fields["response"], fields.get("finish", "eos")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TeacherError(
                f'{place}: {type(error).__name__} {error}; each line must be {{"question": "...", "response": "..."}}'
            ) from None
        if not isinstance(question, str) or not isinstance(response, str) or finish not in ("eos", "length"):
            raise TeacherError(f'{place}: question and response must be strings, and finish "eos" or "length"')
        return question.strip(), response, finish

    def answer(self, problems: Sequence[Problem], strategy: Strategy) -> list[Record]:
        """The responses, by question."""
        missing = [p for p in problems if p.question.strip() not in self.said]
        if missing:
            raise TeacherError(
                f"{self.file} has no response to {len(missing)} of {len(problems)} questions, the first to problem {missing[0].index} "
                f"({missing[0].question[:60]!r})"
            )
        found = [self.said[p.question.strip()] for p in problems]
        return [
            Record(p.index, p.question, p.answer, (), (), text, "eos" if finish == "eos" else "length")
            for p, (text, finish) in zip(problems, found, strict=True)
        ]


# --- servers --------------------------------------------------------------------------------------------------------


class OpenAITeacher(_TextTeacher):
    """Any OpenAI-compatible server: text, and the top 20 at most, where the server tells token ids."""

    LARGEST_K = 20

    def __init__(self, config: TeacherConfig) -> None:
        if config.url is None:
            raise TeacherError('teacher.kind = "openai" needs teacher.url, such as "http://localhost:8000/v1"')
        if config.signal == "topk" and config.top_k > self.LARGEST_K:
            raise TeacherError(f"teacher.top_k is {config.top_k}; OpenAI-compatible servers give at most {self.LARGEST_K}")
        if config.signal == "topk" and config.tokenizer is None:
            raise TeacherError(
                'teacher.signal = "topk" of a server needs teacher.tokenizer, the hub id or folder of its tokenizer, '
                "for token ids mean nothing without"
            )
        self.config = config
        self.identity = {"kind": "openai", "name": config.model, "revision": config.revision}
        if config.tokenizer is not None:
            from interp.checkpoints import open_tokenizer

            self.tokenizer = open_tokenizer(config.tokenizer, trust_remote_code=config.trust_remote_code)
            self.identity["tokenizer"] = tokenizer_digest(self.tokenizer)

    def _messages(self, problem: Problem, strategy: Strategy) -> list[dict[str, str]]:
        asked = {"before": f"{strategy.text}\n\n{problem.question}", "after": f"{problem.question}\n\n{strategy.text}"}
        system = [{"role": "system", "content": strategy.text}] if strategy.text and strategy.place == "system" else []
        return [*system, {"role": "user", "content": asked.get(strategy.place, problem.question) if strategy.text else problem.question}]

    def answer(self, problems: Sequence[Problem], strategy: Strategy) -> list[Record]:
        """Asked at once, as many as `concurrency` says; the client library tries again, and waits as the server tells it."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._all(problems, strategy))
        with ThreadPoolExecutor(1) as thread:  # a notebook's own thread has an event loop already
            return thread.submit(asyncio.run, self._all(problems, strategy)).result()

    async def _all(self, problems: Sequence[Problem], strategy: Strategy) -> list[Record]:
        try:
            from aiolimiter import AsyncLimiter
            from openai import AsyncOpenAI
        except ImportError as error:
            raise TeacherError(
                f"teacher.kind = \"openai\" needs a package that is not installed ({error}): pip install 'primed-heads[openai]'"
            ) from error
        config = self.config
        gate = asyncio.Semaphore(config.concurrency)
        # one at a time, evenly: a bucket of a whole minute would be full anew for every shard
        rate = AsyncLimiter(1, 60 / config.requests_per_minute) if config.requests_per_minute else None
        key = os.environ.get(config.api_key_env) or "none"  # local servers ask for none, the client for some
        async with AsyncOpenAI(base_url=config.url, api_key=key, timeout=config.timeout_s, max_retries=config.retries) as client:

            async def one(problem: Problem) -> Record:
                async with gate:
                    if rate is not None:
                        await rate.acquire()
                    return await self._one(client, problem, strategy)

            tasks = [asyncio.create_task(one(p)) for p in problems]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, client: Any, problem: Problem, strategy: Strategy) -> Record:
        import openai

        config = self.config
        wants = config.signal == "topk"
        extra: dict[str, Any] = {"logprobs": True, "top_logprobs": config.top_k} if wants else {}
        if wants:
            extra["extra_body"] = {"return_tokens_as_token_ids": True}
        place = f"{config.url}, problem {problem.index}"
        try:
            said = await client.chat.completions.create(
                model=config.model,
                messages=self._messages(problem, strategy),
                max_tokens=config.max_new_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                seed=_row_seed(config, problem),
                **extra,
            )
        except openai.APITimeoutError as error:
            raise TeacherError(
                f"{place}: no answer within {config.timeout_s:g} s, {config.retries + 1} times; raise teacher.timeout_s"
            ) from error
        except openai.APIConnectionError as error:
            raise TeacherError(
                f"{place}: no connection ({error.__cause__ or error}); is the server running, and does url end in /v1?"
            ) from error
        except openai.RateLimitError as error:
            raise TeacherError(
                f"{place}: the server's rate limit (429), {config.retries + 1} times; lower teacher.concurrency or set requests_per_minute"
            ) from error
        except openai.APIStatusError as error:
            hint = f"; ${config.api_key_env} holds the key" if error.status_code in (401, 403) else ""
            raise TeacherError(f"{place}: the server says {error.status_code} ({_short(error.message)}){hint}") from error
        except (openai.OpenAIError, ValueError) as error:
            raise TeacherError(f"{place}: an answer that cannot be read ({_short(error)})") from error
        choices: Any = getattr(said, "choices", None) or []
        text = choices[0].message.content if choices and getattr(choices[0], "message", None) else None
        if not isinstance(text, str):
            raise TeacherError(f"{place}: an answer without text ({_short(said)}); is this an OpenAI-compatible chat server?")
        finish = "eos" if choices[0].finish_reason == "stop" else "length"  # a content filter cuts, too
        ids, signals = _server_topk(choices[0].logprobs, config.top_k, place) if wants else ((), {})
        return Record(problem.index, problem.question, problem.answer, (), ids, text, finish, signals)


def _short(text: object) -> str:
    return " ".join(str(text).split())[:160]


def _server_topk(logprobs: Any, k: int, place: str) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """Token ids and the top k from a chat completion's `logprobs`; strings are never tokenised again."""

    def number(token: str) -> int:
        mark, _, digits = token.partition("token_id:")
        if mark or not digits.isdigit():
            raise TeacherError(
                f"{place}: the server names tokens by text ({token[:20]!r}), not by id, so their log-probabilities cannot be used; "
                'set teacher.signal = "text", or use a server that honours return_tokens_as_token_ids (vLLM)'
            )
        return int(digits)

    content = getattr(logprobs, "content", None)
    if not content:
        raise TeacherError(f'{place}: the server gives no log-probabilities; set teacher.signal = "text"')
    ids = tuple(number(step.token) for step in content)
    tops = [{number(top.token): float(top.logprob) for top in step.top_logprobs} for step in content]
    return ids, _stack_topk(tops, k, place)


def _stack_topk(tops: Sequence[Mapping[int, float]], k: int, place: str) -> dict[str, Tensor]:
    """The k likeliest of each step, [token, k], likeliest first."""
    ranked = [sorted(top.items(), key=lambda item: -item[1])[:k] for top in tops]
    if any(len(top) < k for top in ranked):
        raise TeacherError(f"{place}: {min(map(len, ranked))} log-probabilities at a token, {k} were asked for; lower teacher.top_k")
    return {
        "topk_ids": torch.from_numpy(np.asarray([[i for i, _ in top] for top in ranked], np.int32).reshape(-1, k)),
        "topk_log_probs": torch.from_numpy(np.asarray([[p for _, p in top] for top in ranked], np.float32).reshape(-1, k)),
    }


class VllmTeacher(_TextTeacher):
    """vLLM in this process, with its own tensor parallelism: it generates, then scores. Text and topk."""

    def __init__(self, config: TeacherConfig) -> None:
        from interp.checkpoints import identify, open_tokenizer

        self.config = config
        self.tokenizer = open_tokenizer(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
        self.chat = _uses_chat(config, self.tokenizer)
        self.identity = {
            "kind": "vllm",
            **identify(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code),
            "dtype": config.dtype,
            "tokenizer": tokenizer_digest(self.tokenizer),
            "chat": self.chat,
        }
        self._engine: Any = None

    @property
    def engine(self) -> Any:
        """Started when it is first needed."""
        if self._engine is None:
            try:
                import vllm  # pyright: ignore[reportMissingImports]
            except ImportError as error:
                raise TeacherError("teacher.kind = \"vllm\" needs vLLM and a GPU: pip install 'primed-heads[vllm]'") from error
            config = self.config
            self._engine = vllm.LLM(
                model=config.model,
                revision=config.revision,
                dtype=config.dtype,
                tensor_parallel_size=config.tensor_parallel,
                seed=config.seed,
                max_logprobs=max(config.top_k, 20),
                logprobs_mode="raw_logprobs",
                trust_remote_code=config.trust_remote_code,
            )
        return self._engine

    def answer(self, problems: Sequence[Problem], strategy: Strategy) -> list[Record]:
        """Generates all answers; with topk, then scores prompt and answer again: prompt log-probabilities know no temperature."""
        config, engine = self.config, self.engine
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        prompts = [strategy.encode(self.tokenizer, p.question, self.chat) for p in problems]
        length, heat, top_p = config.max_new_tokens, config.temperature, config.top_p
        chosen = [SamplingParams(max_tokens=length, temperature=heat, top_p=top_p, seed=_row_seed(config, p)) for p in problems]
        answers = [out.outputs[0] for out in engine.generate([{"prompt_token_ids": ids} for ids in prompts], chosen)]
        signals: list[dict[str, Tensor]] = [{} for _ in problems]
        if config.signal == "topk":
            whole = [{"prompt_token_ids": [*ids, *said.token_ids]} for ids, said in zip(prompts, answers, strict=True)]
            scored = engine.generate(whole, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=config.top_k))
            signals = [
                prompt_topk(out.prompt_logprobs, len(ids), config.top_k, f"problem {p.index}")
                for p, ids, out in zip(problems, prompts, scored, strict=True)
            ]
        return [
            Record(
                p.index,
                p.question,
                p.answer,
                tuple(ids),
                tuple(said.token_ids),
                said.text,
                "eos" if said.finish_reason == "stop" else "length",
                rows,
            )
            for p, ids, said, rows in zip(problems, prompts, answers, signals, strict=True)
        ]

    def close(self) -> None:
        """Frees the engine."""
        self._engine = None


def prompt_topk(prompt_logprobs: Sequence[Mapping[int, Any] | None], first: int, k: int, place: str) -> dict[str, Tensor]:
    """The top k at each response token from vLLM's `prompt_logprobs`: entry i is the distribution from which token i came.

    An entry holds the k likeliest tokens, and the token itself where it is none of them: that one is not taken along.

    Args:
        prompt_logprobs: one mapping a token of prompt and response; the first is None.
        first: position of the first response token.
        k: how many were asked for.
        place: for messages.
    """
    entries = prompt_logprobs[first:]
    if any(entry is None for entry in entries):
        raise TeacherError(f"{place}: vLLM gave no log-probabilities for a response token")
    return _stack_topk([{token: float(about.logprob) for token, about in (entry or {}).items()} for entry in entries], k, place)


# --- choosing -------------------------------------------------------------------------------------------------------

TIERS: dict[str, tuple[str, ...]] = {
    "transformers": ("text", "topk", "hidden", "dense"),
    "vllm": ("text", "topk"),
    "openai": ("text", "topk"),
    "replay": ("text",),
    "reference": ("text",),
}
"""Which signals each kind of teacher can give."""

TEACHERS: dict[str, Callable[[TeacherConfig], Teacher]] = {
    "transformers": TransformersTeacher,
    "vllm": VllmTeacher,
    "openai": OpenAITeacher,
    "replay": ReplayTeacher,
    "reference": ReferenceTeacher,
}
"""The kinds of teachers."""


def check_kind(kind: str) -> None:
    """Refuses a kind of teacher that is not known."""
    if kind not in TEACHERS:
        raise TeacherError(f"unknown teacher.kind {kind!r}; known: {', '.join(TEACHERS)}")


def open_teacher(config: TeacherConfig) -> Teacher:
    """A teacher, its weights not loaded yet.

    Raises:
        TeacherError: an unknown kind, or a signal that it cannot give.
        interp.checkpoints.CheckpointError: a model that cannot be found.
    """
    check_kind(config.kind)
    if config.signal not in TIERS[config.kind]:
        raise TeacherError(
            f"a teacher of kind {config.kind} cannot give teacher.signal = {config.signal!r}; it can give {', '.join(TIERS[config.kind])}"
        )
    return TEACHERS[config.kind](config)


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of all that shapes tokens (vocabulary, merges, how text is cut, added tokens) and of the chat template."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # of the last call
        whole.pop(state, None)
    return hashlib.sha256(json.dumps([whole, getattr(tokenizer, "chat_template", None)], sort_keys=True).encode()).hexdigest()


def same_tokenizer(teacher: Any, student: Any) -> str | None:
    """None where both give every id the same token and cut text alike; else what differs first, in words.

    Sizes of matrices play no part: families pad them differently.
    """
    theirs, ours = ({number: token for token, number in tokenizer.get_vocab().items()} for tokenizer in (teacher, student))
    for number in sorted({*theirs, *ours}):
        if theirs.get(number) != ours.get(number):
            return f"id {number} is {theirs.get(number)!r} to the teacher and {ours.get(number)!r} to the student"
    text = "\n".join(teacher.batch_decode([[number] for number in sorted(theirs)]))  # each token's own text tries how it is put together
    one, two = (tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for tokenizer in (teacher, student))
    if one == two:
        return None
    at = next(i for i, (a, b) in enumerate(zip_longest(one, two)) if a != b)
    cuts = [[theirs[number] for number in ids[at : at + 4]] for ids in (one, two)]
    return f"they cut the same text differently ({cuts[0]} and {cuts[1]} ...)"
