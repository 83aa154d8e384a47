"""Options of the student: the section `[student]` of a study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill.settings import require_setting


@dataclass(frozen=True)
class StudentConfig:
    """Which model is trained, and with which adapter.

    Attributes:
        model: hub id, folder, .gguf file or smollm2.
        revision: revision of a hub id.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: dtype of the frozen base: auto, float32, bfloat16 or float16. The adapter is always trained in float32.
        chat: use the chat template; by default, if the tokenizer has one.
        instruction: text added to every question, the same for all conditions, in training and evaluation; "" adds nothing.
        place: where the instruction goes: system, before or after.
        rank: rank of LoRA.
        lora_alpha: the update of LoRA is scaled by lora_alpha / rank.
        dropout: dropout of LoRA's input.
        targets: modules that LoRA adapts, by the end of their names.
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
        """Check the values.

        Raises:
            StudyError: a value is out of range.
        """
        require_setting(self.rank >= 1, f"student.rank is {self.rank}; at least 1 is needed")
        require_setting(0 <= self.dropout < 1, f"student.dropout is {self.dropout}; it must lie in [0, 1)")
        require_setting(
            self.lora_alpha >= 1, f"student.lora_alpha is {self.lora_alpha}; at least 1 is needed, otherwise the adapter changes nothing"
        )
        require_setting(bool(self.targets), "student.targets is empty; name at least one module, such as q_proj")
