"""The models of a comparison, opened as seldom as can be: LoRA students and their base share a loaded model whose adapters are switched."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.models.named import Named
from interp.checkpoints.adapters import open_adapters
from interp.checkpoints.loading import Checkpoint
from interp.checkpoints.opening import identify, open_checkpoint, open_config, open_tokenizer
from interp.tables.errors import CheckpointError

if TYPE_CHECKING:
    from interp.recording.divergence import Student


@dataclass(frozen=True)
class Opening:
    """How models are opened: as `interp.checkpoints.opening.open_checkpoint` takes it."""

    device: str
    dtype: str
    trust_remote_code: bool


class OpenModels:
    """Opens the models of a comparison when they are asked for.

    Args:
        models: all of them; those without a source cannot be opened.
        opening: how.
    """

    def __init__(self, models: Sequence[Named], opening: Opening) -> None:
        self._models, self._opening = list(models), opening
        self._shared: dict[str, Checkpoint] | None = None
        self._alone: dict[str, Checkpoint] = {}

    def config(self, model: Named) -> Any:
        """A model's config, for which no weights are loaded."""
        return open_config(str(model.source), base=model.base, trust_remote_code=self._opening.trust_remote_code)

    def open(self, model: Named) -> Checkpoint:
        """A model, with its adapter switched on, or all of them off for their base; it is good until another is asked for."""
        shared = self._adapters()
        if model.name in shared:
            checkpoint = shared[model.name]
            checkpoint.model.base_model.enable_adapter_layers()  # off, where the base was asked for before
            checkpoint.model.set_adapter(checkpoint.adapter)
            checkpoint.model.requires_grad_(False)
            return checkpoint
        if shared and self._content(model) == self._base_of_adapters():
            checkpoint = next(iter(shared.values()))
            checkpoint.model.base_model.disable_adapter_layers()
            tokenizer = open_tokenizer(str(model.source), trust_remote_code=self._opening.trust_remote_code)  # adapters may bring their own
            identity = {**checkpoint.identity, "name": model.name, "source": str(model.source), "adapter": None}
            return replace(checkpoint, tokenizer=tokenizer, name=model.name, identity=identity, adapter=None)
        if model.name not in self._alone:
            self._alone.clear()  # one whole model at a time
            gc.collect()
            self._alone[model.name] = self._open_alone(model)
        return self._alone[model.name]

    def students(self, models: Sequence[Named]) -> list[Student]:
        """Models that can run in lockstep: adapters, and their base, on the shared model; each other one loaded by itself."""
        from interp.recording.divergence import BASE, Student

        shared, found = self._adapters(), []
        base = self._base_of_adapters()
        for model in models:
            if model.name in shared:
                found.append(Student(model.name, shared[model.name].model, shared[model.name].adapter))
            elif base is not None and self._content(model) == base:
                found.append(Student(model.name, next(iter(shared.values())).model, BASE))
            else:
                wanted = {m.name for m in models}
                self._alone = {name: checkpoint for name, checkpoint in self._alone.items() if name in wanted}
                if model.name not in self._alone:
                    self._alone[model.name] = self._open_alone(model)
                found.append(Student(model.name, self._alone[model.name].model))
        return found

    def shares(self, models: Sequence[Named]) -> bool:
        """All of them run on one loaded model."""
        shared, base = self._adapters(), self._base_of_adapters()
        return bool(shared) and all(m.name in shared or self._content(m) == base for m in models)

    def any_of(self, models: Sequence[Named]) -> Checkpoint:
        """One of the models that `students` has opened: its tokenizer and its config are those of all."""
        opened = {**self._adapters(), **self._alone}
        return next(opened[m.name] for m in models if m.name in opened)

    def _open_alone(self, model: Named) -> Checkpoint:
        own = self._opening
        assert model.source is not None
        return open_checkpoint(model.source, base=model.base, device=own.device, dtype=own.dtype, trust_remote_code=own.trust_remote_code)

    def _adapters(self) -> dict[str, Checkpoint]:
        """The adapters on their one base; empty where an adapter would share it with none, or they cannot be switched, which is said."""
        if self._shared is None:
            self._shared = {}
            adapters = [m for m in self._models if m.source and (Path(m.source).expanduser() / "adapter_config.json").is_file()]
            if len(adapters) > 1 or (adapters and self._names_base_of(adapters[0])):
                own = self._opening
                try:
                    opened = open_adapters(
                        [str(m.source) for m in adapters],
                        base=adapters[0].base,
                        device=own.device,
                        dtype=own.dtype,
                        trust_remote_code=own.trust_remote_code,
                    )
                    self._shared = {m.name: checkpoint for m, checkpoint in zip(adapters, opened, strict=True)}
                except CheckpointError as error:
                    print(f"note: the adapters are opened one by one: {str(error).splitlines()[0]}", file=sys.stderr)
        return self._shared

    def _names_base_of(self, adapter: Named) -> bool:
        """Whether an adapter's base is one of the models too, under the same name or path."""
        base = adapter.base
        if base is None:
            try:
                base = json.loads((Path(str(adapter.source)).expanduser() / "adapter_config.json").read_text("utf-8"))[
                    "base_model_name_or_path"
                ]
            except (OSError, ValueError, KeyError, TypeError):
                return False  # opened by itself, it is told what is wrong with its file
            base = str(base)
        places = {base, str(Path(base).expanduser().resolve())}
        return any(m.source and places & {m.source, str(Path(m.source).expanduser().resolve())} for m in self._models)

    def _content(self, model: Named) -> dict[str, Any]:
        about = identify(str(model.source), trust_remote_code=self._opening.trust_remote_code)
        return {key: value for key, value in about.items() if key != "name"}

    def _base_of_adapters(self) -> dict[str, Any] | None:
        shared = self._adapters()
        if not shared:
            return None
        adapter = next(m for m in self._models if m.name in shared)
        source = adapter.base or str(
            next(iter(shared.values())).model.peft_config[next(iter(shared.values())).adapter].base_model_name_or_path
        )
        return self._content(Named("base", "base", source=source))
