"""TODO_DOC distill/students/options.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill.settings import require_setting


@dataclass(frozen=True)
class StudentConfig:
    """Who learns, and with which adapter.

    Attributes:
        model: hub id, folder, .gguf file or smollm2.
        revision: of a hub id.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: of the frozen base: auto, float32, bfloat16 or float16. The adapter is always trained in float32.
        chat: use the chat template; left out: where the tokenizer has one.
        instruction: put beside every question, the same for all conditions, in training and evaluation; "" puts nothing.
        place: of the instruction: system, before or after.
        rank: of LoRA.
        lora_alpha: of LoRA; the update is scaled by lora_alpha / rank.
        dropout: of LoRA's input.
        targets: modules that LoRA changes, by the end of their names.
        trust_remote_code: run the checkpoint's own model code.
    """

    model: str = "smollm2"
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    chat: bool | None = None
    instruction: str = ""
    place: Literal["system", "before", "after"] = "after"
    rank: int = 8
    lora_alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require_setting(self.rank >= 1, f"student.rank is {self.rank}; at least 1 is needed")
        require_setting(0 <= self.dropout < 1, f"student.dropout is {self.dropout}; it must lie in [0, 1)")
        require_setting(self.lora_alpha >= 1, f"student.lora_alpha is {self.lora_alpha}; at least 1 is needed, or the adapter changes nothing")
        require_setting(bool(self.targets), "student.targets is empty; name at least one module, such as q_proj")
