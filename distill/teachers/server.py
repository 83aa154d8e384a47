"""A teacher behind an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

from distill.problems.sets import Problem
from distill.records.record import Record
from distill.strategies import Strategy
from distill.teachers.options import TeacherConfig
from distill.teachers.teacher import TextTeacher, row_seed, stack_topk, tokenizer_digest
from interp.tables.errors import StudyError

_LARGEST_K = 20
"""Log-probabilities per token that OpenAI-compatible servers return at most."""


class OpenAITeacher(TextTeacher):
    """An OpenAI-compatible server; it gives text, and topk if the server returns token ids."""

    def __init__(self, config: TeacherConfig) -> None:
        if config.url is None:
            raise StudyError('teacher.kind = "openai" needs teacher.url, such as "http://localhost:8000/v1"')
        if config.signal == "topk" and config.top_k > _LARGEST_K:
            raise StudyError(f"teacher.top_k is {config.top_k}; OpenAI-compatible servers return at most {_LARGEST_K}")
        if config.signal == "topk" and config.tokenizer is None:
            raise StudyError(
                'teacher.signal = "topk" of a server needs teacher.tokenizer, the hub id or folder of the tokenizer '
                "that gives the token ids their meaning"
            )
        self.config = config
        self.identity = {"kind": "openai", "name": config.model, "revision": config.revision}
        if config.tokenizer is not None:
            from interp.checkpoints.opening import open_tokenizer

            self.tokenizer = open_tokenizer(config.tokenizer, trust_remote_code=config.trust_remote_code)
            self.identity["tokenizer"] = tokenizer_digest(self.tokenizer)

    def _messages(self, problem: Problem, strategy: Strategy) -> list[dict[str, str]]:
        asked = {"before": f"{strategy.text}\n\n{problem.question}", "after": f"{problem.question}\n\n{strategy.text}"}
        system = [{"role": "system", "content": strategy.text}] if strategy.text and strategy.place == "system" else []
        return [*system, {"role": "user", "content": asked.get(strategy.place, problem.question) if strategy.text else problem.question}]

    def answer(self, problems: Sequence[Problem], strategy: Strategy) -> list[Record]:
        """Send `concurrency` requests at a time; the client library retries, and waits as long as the server asks."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._all(problems, strategy))
        with ThreadPoolExecutor(1) as thread:  # the thread of a notebook already runs an event loop
            return thread.submit(asyncio.run, self._all(problems, strategy)).result()

    async def _all(self, problems: Sequence[Problem], strategy: Strategy) -> list[Record]:
        try:
            from aiolimiter import AsyncLimiter
            from openai import AsyncOpenAI
        except ImportError as error:
            raise StudyError(
                f"teacher.kind = \"openai\" needs a package that is not installed ({error}): pip install 'primed-heads[openai]'"
            ) from error
        config = self.config
        gate = asyncio.Semaphore(config.concurrency)
        # one request per interval: a limiter over a minute would start full for every shard
        rate = AsyncLimiter(1, 60 / config.requests_per_minute) if config.requests_per_minute else None
        key = os.environ.get(config.api_key_env) or "none"  # local servers need no key, but the client does
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
        """Ask for one answer and turn it into a record."""
        config = self.config
        place = f"{config.url}, problem {problem.index}"
        answer = await self._request(client, problem, strategy, place)
        choices: Any = getattr(answer, "choices", None) or []
        text = choices[0].message.content if choices and getattr(choices[0], "message", None) else None
        if not isinstance(text, str):
            raise StudyError(f"{place}: the answer has no text ({_shortened(answer)}); is this an OpenAI-compatible chat server?")
        finish = "eos" if choices[0].finish_reason == "stop" else "length"  # a content filter truncates, too
        ids, signals = _server_topk(choices[0].logprobs, config.top_k, place) if config.signal == "topk" else ((), {})
        return Record(problem.index, problem.question, problem.answer, (), ids, text, finish, signals)

    async def _request(self, client: Any, problem: Problem, strategy: Strategy, place: str) -> Any:
        """Return a chat completion.

        Raises:
            StudyError: the server cannot be reached, or refuses; the message says what to change.
        """
        import openai

        config = self.config
        extra: dict[str, Any] = {}
        if config.signal == "topk":
            extra = {"logprobs": True, "top_logprobs": config.top_k, "extra_body": {"return_tokens_as_token_ids": True}}
        attempts = config.retries + 1
        try:
            return await client.chat.completions.create(
                model=config.model,
                messages=self._messages(problem, strategy),
                max_tokens=config.max_new_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                seed=row_seed(config, problem),
                **extra,
            )
        except openai.APITimeoutError as error:
            raise StudyError(f"{place}: no answer within {config.timeout_s:g} s (attempts: {attempts}); raise teacher.timeout_s") from error
        except openai.APIConnectionError as error:
            raise StudyError(
                f"{place}: no connection ({error.__cause__ or error}); is the server running, and does teacher.url end in /v1?"
            ) from error
        except openai.RateLimitError as error:
            raise StudyError(
                f"{place}: rate limit of the server (429, attempts: {attempts}); lower teacher.concurrency or set requests_per_minute"
            ) from error
        except openai.APIStatusError as error:
            hint = f"; ${config.api_key_env} holds the key" if error.status_code in (401, 403) else ""
            raise StudyError(f"{place}: the server answered with status {error.status_code} ({_shortened(error.message)}){hint}") from error
        except (openai.OpenAIError, ValueError) as error:
            raise StudyError(f"{place}: the answer cannot be read ({_shortened(error)})") from error


def _shortened(text: object) -> str:
    return " ".join(str(text).split())[:160]


def _server_topk(logprobs: Any, k: int, place: str) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """Return token ids and the top k from a chat completion's `logprobs`; text is never tokenized again."""

    def number(token: str) -> int:
        mark, _, digits = token.partition("token_id:")
        if mark or not digits.isdigit():
            raise StudyError(
                f"{place}: the server returns tokens as text ({token[:20]!r}), not as ids, so their log-probabilities cannot be used; "
                'set teacher.signal = "text", or use a server that supports return_tokens_as_token_ids (vLLM)'
            )
        return int(digits)

    content = getattr(logprobs, "content", None)
    if not content:
        raise StudyError(f'{place}: the server returns no log-probabilities; set teacher.signal = "text"')
    ids = tuple(number(step.token) for step in content)
    tops = [{number(top.token): float(top.logprob) for top in step.top_logprobs} for step in content]
    return ids, stack_topk(tops, k, place)
