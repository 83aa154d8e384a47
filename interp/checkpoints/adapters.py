"""Open PEFT adapters: one on its base, or several on one loaded base, to be switched."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from interp.checkpoints.found import FoundFiles, find_checkpoint, first_line
from interp.checkpoints.identity import about_adapter, checkpoint_identity, weights_of
from interp.checkpoints.loading import DTYPES, Checkpoint, choose_device, load_model, load_tokenizer, quiet_transformers
from interp.tables.errors import CheckpointError


def open_adapters(
    sources: Sequence[str | Path],
    *,
    base: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> tuple[Checkpoint, ...]:
    """Open several LoRA adapters of one base on one loaded model, to be switched.

    The checkpoints share their `model`, on which the first adapter is active; `Checkpoint.adapter` names each one's own.

    Args:
        sources: adapters, as folders or hub ids.
        base: base model of all of them; None takes what their configs name, which must be the same model.
        device: as in `open_checkpoint`.
        dtype: as in `open_checkpoint`.
        trust_remote_code: as in `open_checkpoint`.

    Raises:
        CheckpointError: as `open_checkpoint`; also for adapters of different bases, and adapters that cannot be switched
            (`check_switchable`).
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    if not sources:
        raise CheckpointError("no adapter is named; give at least one")
    device = choose_device(device)
    found = [find_checkpoint(str(source), None, trust_remote_code) for source in sources]
    with quiet_transformers():
        configs, base_found = _common_base(found, base, trust_remote_code)
        model, tokenizer, unused = load_model(base_found, device, dtype, trust_remote_code)
        identity = checkpoint_identity(base_found, model, unused)
        opened = []
        for number, (each, config) in enumerate(zip(found, configs, strict=True)):
            name = f"adapter{number}"
            model = _add_adapter(model, each, base_found, name)
            opened.append((_own_tokenizer(each, tokenizer, trust_remote_code), each.name, _adapted(identity, each, config), name))
        model.set_adapter(opened[0][-1])
        model.requires_grad_(False)
    return tuple(Checkpoint(model, *parts) for parts in opened)


def open_adapter(found: FoundFiles, base: str | None, device: str, dtype: str, trust_remote_code: bool) -> Checkpoint:
    """Open one adapter of any kind that adds to weights, on its base.

    Args:
        found: the adapter's files.
        base: base model; None takes what the adapter's config names.
        device: as `choose_device` returns it.
        dtype: one of `DTYPES`.
        trust_remote_code: let the checkpoint run its own code.

    Raises:
        CheckpointError: the adapter or its base cannot be opened, they do not fit, or the adapter changes nothing.
    """
    config, base_found = base_of(found, base, trust_remote_code)
    _check_adapter_file(found)
    model, tokenizer, unused = load_model(base_found, device, dtype, trust_remote_code)
    identity = checkpoint_identity(base_found, model, unused)
    adapted = _add_adapter(model, found, base_found, "default")
    return Checkpoint(adapted, _own_tokenizer(found, tokenizer, trust_remote_code), found.name, _adapted(identity, found, config))


def check_switchable(config: Any, source: str) -> None:
    """Raise if an adapter changes more than it can take back: the base would not be restored when the adapter is switched off.

    Args:
        config: PEFT's config of the adapter.
        source: what messages call it.

    Raises:
        CheckpointError: the adapter is not a LoRA adapter, replaces modules, or trains biases or tokens.
    """
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    reasons = [f"it is {kind}, not LORA"] if kind != "LORA" else []
    reasons += [
        f"it has {name}={getattr(config, name)}"
        for name, plain in (
            ("modules_to_save", None),
            ("bias", "none"),
            ("trainable_token_indices", None),
            ("alora_invocation_tokens", None),
        )
        if getattr(config, name, plain) not in (plain, [], ())
    ]
    if reasons:
        raise CheckpointError(f"{source}: the adapter cannot be switched on a shared model: {', '.join(reasons)}; open it by itself")


def base_of(found: FoundFiles, base: str | None, trust_remote_code: bool, *, weights: bool = True) -> tuple[Any, FoundFiles]:
    """Return an adapter's config, and the files of its base.

    Args:
        found: the adapter's files.
        base: base model; None takes what the config names: a path relative to the adapter's folder, or what `find_checkpoint` takes.
        trust_remote_code: as in `find_checkpoint`.
        weights: as in `find_checkpoint`.

    Raises:
        CheckpointError: the config cannot be read, is of a prompt-learning method, or names a base that cannot be found.
    """
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(found.folder))
    except Exception as error:
        raise CheckpointError(f"{found.source}: its adapter_config.json cannot be read ({first_line(error)})") from error
    if config.is_prompt_learning:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise CheckpointError(
            f"{found.source}: {kind} puts virtual tokens before the text, which cannot be recorded; give a LoRA-like adapter"
        )
    wanted = base or config.base_model_name_or_path
    if not wanted:
        raise CheckpointError(f"{found.source}: the adapter's config names no base model; name it with --base")
    relative = found.folder / wanted
    wanted = str(relative) if base is None and not Path(wanted).is_absolute() and relative.is_dir() else wanted
    try:
        base_found = find_checkpoint(wanted, None if base else config.revision, trust_remote_code, weights=weights)
    except CheckpointError as error:
        raise CheckpointError(f"{found.source}: its base cannot be opened; --base names another place\n{error}") from error
    if base_found.kind == "adapter":
        raise CheckpointError(f"{found.source}: its base {wanted} is an adapter itself; merge that one first")
    return config, base_found


def _common_base(found: Sequence[FoundFiles], base: str | None, trust_remote_code: bool) -> tuple[list[Any], FoundFiles]:
    """Return the configs of adapters that can be switched on one model, and the files of their base."""
    for each in found:
        if each.kind != "adapter":
            raise CheckpointError(f"{each.source} is not an adapter (no adapter_config.json); open_checkpoint opens complete models")
    configs, bases = zip(*(base_of(each, base, trust_remote_code) for each in found), strict=True)
    for each, config, its_base in zip(found, configs, bases, strict=True):
        check_switchable(config, each.source)
        _check_adapter_file(each)
        if its_base.folder.resolve() != bases[0].folder.resolve() and weights_of(its_base) != weights_of(bases[0]):
            raise CheckpointError(
                f"{each.source} is an adapter of {its_base.source}, {found[0].source} one of {bases[0].source}; "
                "adapters that are switched on one model need one base (name it with --base)"
            )
    return list(configs), bases[0]


def _own_tokenizer(found: FoundFiles, tokenizer: Any, trust_remote_code: bool) -> Any:
    """Return the adapter's tokenizer where it has one, else the base's."""
    if (found.folder / "tokenizer_config.json").is_file():
        return load_tokenizer(found.folder, found.source, trust_remote_code)
    return tokenizer


def _adapted(identity: dict[str, Any], found: FoundFiles, config: Any) -> dict[str, Any]:
    """Return the identity of a base with an adapter."""
    return {**identity, "name": found.name, "adapter": about_adapter(found, config)}


def _add_adapter(model: Any, found: FoundFiles, base_found: FoundFiles, name: str) -> Any:
    """Load an adapter on its base, or next to others of the same base, and make it the active one."""
    from peft import PeftModel

    try:
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            if isinstance(model, PeftModel):
                adapted = model
                missing = adapted.load_adapter(str(found.folder), name, is_trainable=False).missing_keys
                adapted.set_adapter(name)
            else:
                adapted, missing = PeftModel.from_pretrained(model, str(found.folder), adapter_name=name, is_trainable=False), []
    except Exception as error:
        detail = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), first_line(error))
        raise CheckpointError(f"{found.source}: the adapter does not fit the base {base_found.source} ({detail[:200]})") from error
    absent = [str(w.message) for w in raised if "missing adapter keys" in str(w.message)]
    absent += [f"Found missing adapter keys: {keys}." for keys in ([key for key in missing if f".{name}." in key],) if keys]
    if absent:
        raise CheckpointError(f"{found.source}: the adapter's weights are incomplete for {base_found.source}: {absent[0][:160]}")
    adapted.eval()
    _check_adapter_changes(adapted, found.source, name)
    adapted.requires_grad_(False)  # after the check: disable_adapter switches the adapter's gradients on when it ends
    return adapted


def _check_adapter_file(found: FoundFiles) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(found.weights[0], "pt") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{found.weights[0]}: damaged or truncated adapter ({first_line(error)})") from error
    if not names:
        raise CheckpointError(f"{found.weights[0]}: the adapter file holds no weights")


def _check_adapter_changes(model: Any, source: str, adapter: str) -> None:
    """Raise if an adapter changes nothing: a comparison with its base would give plausible numbers of one model with itself."""
    matrices = [p for name, p in model.named_parameters() if f"lora_B.{adapter}." in name]
    if matrices and not any(bool(p.any()) for p in matrices):
        raise CheckpointError(
            f"{source}: the adapter changes nothing (all lora_B are zero): it is untrained, or its weights were not loaded"
        )
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    probe = (torch.arange(16) * 7919 % vocabulary)[None].to(next(model.parameters()).device)
    with torch.no_grad():
        with_adapter = model(input_ids=probe, use_cache=False).logits
        with model.disable_adapter():
            without = model(input_ids=probe, use_cache=False).logits
    if torch.equal(with_adapter, without):
        raise CheckpointError(f"{source}: the adapter changes nothing (logits with and without it are equal)")
