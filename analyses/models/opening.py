"""The models of a comparison, loaded as rarely as possible: LoRA students and their base share one model whose adapters are switched."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.command import say
from analyses.models.named import NamedModel
from analyses.options import ModelOptions
from interp.checkpoints.adapters import open_adapters
from interp.checkpoints.loading import Checkpoint
from interp.checkpoints.opening import identify, open_checkpoint, open_config, open_tokenizer
from interp.tables.errors import CheckpointError

if TYPE_CHECKING:
    from interp.recording.divergence import Student


class OpenModels:
    """Opens the models of a comparison when they are asked for.

    Args:
        models: all models of the comparison; those without a source cannot be opened.
        options: device, dtype, and whether to trust a checkpoint's own code.
    """

    def __init__(self, models: Sequence[NamedModel], options: ModelOptions) -> None:
        self._models, self._options = list(models), options
        self._shared: dict[str, Checkpoint] | None = None
        self._alone: dict[str, Checkpoint] = {}

    def config(self, model: NamedModel) -> Any:
        """Return a model's config; no weights are loaded."""
        return open_config(str(model.source), base=model.base, trust_remote_code=self._options.trust_remote_code)

    def open(self, model: NamedModel) -> Checkpoint:
        """Return a model with its adapter switched on, or with all adapters off for their base; valid until another model is opened."""
        shared = self._adapters()
        if model.name in shared:
            checkpoint = shared[model.name]
            checkpoint.model.base_model.enable_adapter_layers()  # they are off if the base was opened before
            checkpoint.model.set_adapter(checkpoint.adapter)
            checkpoint.model.requires_grad_(False)
            return checkpoint
        if shared and self._content(model) == self._base_of_adapters():
            checkpoint = next(iter(shared.values()))
            checkpoint.model.base_model.disable_adapter_layers()
            tokenizer = open_tokenizer(str(model.source), trust_remote_code=self._options.trust_remote_code)  # adapters may have their own
            identity = {**checkpoint.identity, "name": model.name, "source": str(model.source), "adapter": None}
            return replace(checkpoint, tokenizer=tokenizer, name=model.name, identity=identity, adapter=None)
        if model.name not in self._alone:
            self._alone.clear()  # one separately loaded model at a time
            gc.collect()
            self._alone[model.name] = self._open_alone(model)
        return self._alone[model.name]

    def students(self, models: Sequence[NamedModel]) -> list[Student]:
        """Return models that can run in lockstep: adapters and their base on the shared model, every other one loaded separately."""
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

    def shares(self, models: Sequence[NamedModel]) -> bool:
        """Return whether all of the models run on one loaded model."""
        shared, base = self._adapters(), self._base_of_adapters()
        return bool(shared) and all(m.name in shared or self._content(m) == base for m in models)

    def any_of(self, models: Sequence[NamedModel]) -> Checkpoint:
        """Return one of the models that `students` has opened; tokenizer and config are the same for all."""
        opened = {**self._adapters(), **self._alone}
        return next(opened[m.name] for m in models if m.name in opened)

    def _open_alone(self, model: NamedModel) -> Checkpoint:
        own = self._options
        assert model.source is not None
        return open_checkpoint(model.source, base=model.base, device=own.device, dtype=own.dtype, trust_remote_code=own.trust_remote_code)

    def _adapters(self) -> dict[str, Checkpoint]:
        """Return the adapters on their common base; empty if no base is shared, or, with a note, if they cannot be switched."""
        if self._shared is None:
            self._shared = {}
            adapters = [m for m in self._models if m.source and (Path(m.source).expanduser() / "adapter_config.json").is_file()]
            if len(adapters) > 1 or (adapters and self._names_base_of(adapters[0])):
                own = self._options
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
                    say(f"note: the adapters are opened one by one: {str(error).splitlines()[0]}")
        return self._shared

    def _names_base_of(self, adapter: NamedModel) -> bool:
        """Return whether an adapter's base is one of the models too, under the same name or path."""
        base = adapter.base
        if base is None:
            try:
                base = json.loads((Path(str(adapter.source)).expanduser() / "adapter_config.json").read_text("utf-8"))[
                    "base_model_name_or_path"
                ]
            except (OSError, ValueError, KeyError, TypeError):
                return False  # opening it separately reports what is wrong with its file
            base = str(base)
        places = {base, str(Path(base).expanduser().resolve())}
        return any(m.source and places & {m.source, str(Path(m.source).expanduser().resolve())} for m in self._models)

    def _content(self, model: NamedModel) -> dict[str, Any]:
        about = identify(str(model.source), trust_remote_code=self._options.trust_remote_code)
        return {key: value for key, value in about.items() if key != "name"}

    def _base_of_adapters(self) -> dict[str, Any] | None:
        shared = self._adapters()
        if not shared:
            return None
        adapter = next(m for m in self._models if m.name in shared)
        source = adapter.base or str(
            next(iter(shared.values())).model.peft_config[next(iter(shared.values())).adapter].base_model_name_or_path
        )
        return self._content(NamedModel("base", "base", source=source))
