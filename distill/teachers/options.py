"""TODO_DOC distill/teachers/options.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from distill.settings import require, require_seed

TIERS = ("text", "topk", "hidden", "dense")


@dataclass(frozen=True)
class TeacherConfig:
    """Who answers, and which signals are kept of it.

    Attributes:
        kind: transformers, vllm, openai, replay or reference (see `distill.teachers.catalog.TEACHERS`).
        model: hub id, folder, adapter folder, .gguf file or smollm2; for openai the model's name at the server.
        revision: of a hub id; for openai a label of your own for what the server serves: another label, other records.
        device: auto, cpu, cuda, cuda:N, mps or balanced.
        dtype: auto, float32, bfloat16 or float16.
        chat: use the chat template; left out: where the tokenizer has one.
        signal: text, topk, hidden or dense: what is stored beside the response's tokens.
        top_k: of topk, how many tokens are kept at each position.
        max_new_tokens: cut of an answer.
        temperature: of sampling; 0 is greedy. (The distillation's own temperature is objective.temperature.)
        top_p: of sampling.
        seed: of sampling.
        batch_size: answers at a time.
        shard_rows: answers of a file of records; what a killed run may lose.
        url: of an OpenAI-compatible server, with /v1.
        tokenizer: of the model behind the server, hub id or folder; needed for topk.
        api_key_env: name of the environment variable with the server's key.
        concurrency: requests at a time.
        requests_per_minute: at most; left out: no limit.
        timeout_s: of one request, in seconds.
        retries: of one request, after an error that may pass.
        responses: of replay, a JSONL file with question and response.
        tensor_parallel: of vllm, GPUs of one model.
        trust_remote_code: run the checkpoint's own model code.
    """

    kind: str = "transformers"
    model: str = "smollm2"
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    chat: bool | None = None
    signal: Literal["text", "topk", "hidden", "dense"] = "hidden"
    top_k: int = 64
    max_new_tokens: int = 350
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 16
    shard_rows: int = 64
    url: str | None = None
    tokenizer: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout_s: float = 120.0
    retries: int = 5
    responses: str | None = None
    tensor_parallel: int = 1
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("top_k", "max_new_tokens", "batch_size", "shard_rows", "concurrency", "tensor_parallel"):
            require(getattr(self, name) >= 1, f"teacher.{name} is {getattr(self, name)}; at least 1 is needed")
        require(0 <= self.temperature < math.inf, f"teacher.temperature is {self.temperature}; 0 (greedy) or more is needed")
        require_seed(self.seed, "teacher.seed")
        require(0 < self.top_p <= 1, f"teacher.top_p is {self.top_p}; it must lie above 0 and at most at 1")
        require(self.retries >= 0 and self.timeout_s > 0, "teacher.retries must be 0 or more and teacher.timeout_s above 0")
        require(self.requests_per_minute is None or self.requests_per_minute > 0, "teacher.requests_per_minute must be above 0")
