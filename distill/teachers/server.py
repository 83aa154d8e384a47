"""TODO_DOC distill/teachers/server.py."""

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
from distill.teachers.written import shortened
from interp.tables.errors import StudyError

# --- servers --------------------------------------------------------------------------------------------------------


class OpenAITeacher(TextTeacher):
    """Any OpenAI-compatible server: text, and the top 20 at most, where the server tells token ids."""

    LARGEST_K = 20

    def __init__(self, config: TeacherConfig) -> None:
        if config.url is None:
            raise StudyError('teacher.kind = "openai" needs teacher.url, such as "http://localhost:8000/v1"')
        if config.signal == "topk" and config.top_k > self.LARGEST_K:
            raise StudyError(f"teacher.top_k is {config.top_k}; OpenAI-compatible servers give at most {self.LARGEST_K}")
        if config.signal == "topk" and config.tokenizer is None:
            raise StudyError(
                'teacher.signal = "topk" of a server needs teacher.tokenizer, the hub id or folder of its tokenizer, '
                "for token ids mean nothing without"
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
            raise StudyError(
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
                seed=row_seed(config, problem),
                **extra,
            )
        except openai.APITimeoutError as error:
            raise StudyError(
                f"{place}: no answer within {config.timeout_s:g} s, {config.retries + 1} times; raise teacher.timeout_s"
            ) from error
        except openai.APIConnectionError as error:
            raise StudyError(
                f"{place}: no connection ({error.__cause__ or error}); is the server running, and does url end in /v1?"
            ) from error
        except openai.RateLimitError as error:
            raise StudyError(
                f"{place}: the server's rate limit (429), {config.retries + 1} times; lower teacher.concurrency or set requests_per_minute"
            ) from error
        except openai.APIStatusError as error:
            hint = f"; ${config.api_key_env} holds the key" if error.status_code in (401, 403) else ""
            raise StudyError(f"{place}: the server says {error.status_code} ({shortened(error.message)}){hint}") from error
        except (openai.OpenAIError, ValueError) as error:
            raise StudyError(f"{place}: an answer that cannot be read ({shortened(error)})") from error
        choices: Any = getattr(said, "choices", None) or []
        text = choices[0].message.content if choices and getattr(choices[0], "message", None) else None
        if not isinstance(text, str):
            raise StudyError(f"{place}: an answer without text ({shortened(said)}); is this an OpenAI-compatible chat server?")
        finish = "eos" if choices[0].finish_reason == "stop" else "length"  # a content filter cuts, too
        ids, signals = _server_topk(choices[0].logprobs, config.top_k, place) if wants else ((), {})
        return Record(problem.index, problem.question, problem.answer, (), ids, text, finish, signals)


def _server_topk(logprobs: Any, k: int, place: str) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """Token ids and the top k from a chat completion's `logprobs`; strings are never tokenised again."""

    def number(token: str) -> int:
        mark, _, digits = token.partition("token_id:")
        if mark or not digits.isdigit():
            raise StudyError(
                f"{place}: the server names tokens by text ({token[:20]!r}), not by id, so their log-probabilities cannot be used; "
                'set teacher.signal = "text", or use a server that honours return_tokens_as_token_ids (vLLM)'
            )
        return int(digits)

    content = getattr(logprobs, "content", None)
    if not content:
        raise StudyError(f'{place}: the server gives no log-probabilities; set teacher.signal = "text"')
    ids = tuple(number(step.token) for step in content)
    tops = [{number(top.token): float(top.logprob) for top in step.top_logprobs} for step in content]
    return ids, stack_topk(tops, k, place)
