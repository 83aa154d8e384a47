"""Options of the teacher: the section `[teacher]` of a study."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distill.settings import require_seed, require_setting
from distill.teachers.catalog import TEACHERS, SignalKind
from interp.tables.plugins import nearest


@dataclass(frozen=True)
class TeacherConfig:
    """Which teacher answers, and which signals are stored with its answers.

    Attributes:
        kind: a name in `distill.teachers.catalog.TEACHERS`: transformers, vllm, openai, replay or reference.
        model: hub id, folder, adapter folder, .gguf file or smollm2; for openai, the name of the model on the server.
        revision: revision of a hub id; for openai, your own label for what the server runs (another label means other records).
        device: auto, cpu, cuda, cuda:N, mps or balanced.
        dtype: auto, float32, bfloat16 or float16.
        chat: use the chat template; left out, use it if the tokenizer has one.
        signal: what is stored in addition to the response's tokens: text (nothing), topk, hidden or dense.
        top_k: for topk, number of tokens that are stored per position.
        max_new_tokens: longest answer, in tokens.
        temperature: sampling temperature; 0 is greedy. (The temperature of the distillation is objective.temperature.)
        top_p: for sampling.
        seed: for sampling.
        batch_size: answers per batch.
        shard_rows: answers per shard file. A killed run loses at most one shard.
        url: address of an OpenAI-compatible server, with /v1.
        tokenizer: tokenizer of the server's model, hub id or folder; needed for topk.
        api_key_env: name of the environment variable that holds the server's key.
        concurrency: number of concurrent requests.
        requests_per_minute: largest request rate; left out, no limit.
        timeout_s: timeout of a request, in seconds.
        retries: number of retries of a request after a temporary error.
        responses: for replay, a JSONL file with question and response.
        tensor_parallel: for vllm, number of GPUs for one model.
        trust_remote_code: run model code that comes with the checkpoint.
    """

    kind: str = "transformers"
    model: str = "smollm2"
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    chat: bool | None = None
    signal: SignalKind = "hidden"
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
        """Check the values.

        Raises:
            StudyError: the kind is unknown, or a value is out of range.
        """
        require_setting(
            self.kind in TEACHERS, f"unknown teacher.kind {self.kind!r}{nearest(self.kind, TEACHERS)}; known: {', '.join(TEACHERS)}"
        )
        for name in ("top_k", "max_new_tokens", "batch_size", "shard_rows", "concurrency", "tensor_parallel"):
            require_setting(getattr(self, name) >= 1, f"teacher.{name} is {getattr(self, name)}; at least 1 is needed")
        require_setting(0 <= self.temperature < math.inf, f"teacher.temperature is {self.temperature}; 0 (greedy) or more is needed")
        require_seed(self.seed, "teacher.seed")
        require_setting(0 < self.top_p <= 1, f"teacher.top_p is {self.top_p}; it must be above 0 and at most 1")
        require_setting(self.retries >= 0 and self.timeout_s > 0, "teacher.retries must be 0 or more and teacher.timeout_s above 0")
        require_setting(self.requests_per_minute is None or self.requests_per_minute > 0, "teacher.requests_per_minute must be above 0")
