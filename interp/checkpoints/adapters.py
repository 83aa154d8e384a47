"""Open PEFT adapters: one on its base, or several on one loaded base, to be switched."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from interp.checkpoints.found import FoundFiles, find_checkpoint, first_line
from interp.checkpoints.identity import about_adapter, checkpoint_identity, weights_of
from interp.checkpoints.loading import DTYPES, Checkpoint, choose_device, load_model, load_tokenizer, quiet_transformers
from interp.tables.errors import CheckpointError

_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the base as it is; as do True and False."""

_REWRITING_STARTS = ("pissa", "olora")
"""Values of `init_lora_weights` that subtract from the base what can be computed from it again."""


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
            model = _add_adapter(model, each, base_found, name, config)
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
    tokenizer = _own_tokenizer(found, tokenizer, trust_remote_code)
    _fit_vocabulary(model, found, config, len(tokenizer))
    identity = checkpoint_identity(base_found, model, unused)
    adapted = _add_adapter(model, found, base_found, "default", config)
    return Checkpoint(adapted, tokenizer, found.name, _adapted(identity, found, config))


def check_switchable(config: Any, source: str) -> None:
    """Raise if an adapter changes more than it can take back: the base would not be restored when the adapter is switched off.

    Args:
        config: PEFT's config of the adapter.
        source: what messages call it.

    Raises:
        CheckpointError: the adapter is not a LoRA adapter, replaces modules, trains biases or tokens, or rewrote the base when it started.
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
    start = getattr(config, "init_lora_weights", True)
    if start is not None and not isinstance(start, bool) and start not in _PLAIN_STARTS:
        reasons.append(f"it has init_lora_weights={start!r}, which rewrites the base")
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
        CheckpointError: the config cannot be read, is of a method that cannot be recorded or reproduced, or names a base that cannot be
            found.
    """
    from peft import PeftConfig

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about defaults of initializations that are over
            config = PeftConfig.from_pretrained(str(found.folder))
    except Exception as error:
        raise CheckpointError(f"{found.source}: its adapter_config.json cannot be read ({first_line(error)})") from error
    if config.is_prompt_learning:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise CheckpointError(
            f"{found.source}: {kind} puts virtual tokens before the text, which cannot be recorded; give a LoRA-like adapter"
        )
    _check_reproducible(config, found.source)
    if getattr(config, "alora_invocation_tokens", None):
        raise CheckpointError(
            f"{found.source}: it is an activated LoRA adapter (alora_invocation_tokens), which acts only after its invocation tokens; the "
            "texts that are recorded do not hold them, and which tokens it changed is not recorded. Give a plain LoRA adapter"
        )
    wanted = base or config.base_model_name_or_path
    if not wanted:
        raise CheckpointError(f"{found.source}: the adapter's config names no base model; name it with --base")
    if not isinstance(wanted, str):
        raise CheckpointError(
            f"{found.source}: base_model_name_or_path in its adapter_config.json is {str(wanted)[:60]}, which is neither a path nor a hub "
            "id; name the base with --base"
        )
    relative = found.folder / wanted
    with contextlib.suppress(OSError):  # too long for a path
        wanted = str(relative) if base is None and not Path(wanted).is_absolute() and relative.is_dir() else wanted
    try:
        base_found = find_checkpoint(wanted, None if base else config.revision, trust_remote_code, weights=weights)
    except CheckpointError as error:
        raise CheckpointError(f"{found.source}: its base cannot be opened; --base names another place\n{error}") from error
    if base_found.kind == "adapter":
        raise CheckpointError(f"{found.source}: its base {wanted} is an adapter itself; merge that one first")
    return config, base_found


def _check_reproducible(config: Any, source: str) -> None:
    """Raise if the base that the adapter was trained on cannot be computed from the one that its config names."""
    start = getattr(config, "init_lora_weights", True)
    if start is None or isinstance(start, bool) or start in (*_PLAIN_STARTS, *_REWRITING_STARTS):
        return
    why = (
        "a randomized decomposition that differs at each opening"
        if str(start).startswith("pissa_niter_")
        else "a start that rewrites the base in a way that the adapter's files do not hold"
    )
    raise CheckpointError(
        f"{source}: the adapter was initialized with init_lora_weights={start!r}, {why}, so its numbers cannot be reproduced; convert it "
        "where it was trained: PEFT's save_pretrained with path_initial_model_for_weight_conversion writes a plain LoRA adapter; or save "
        "the merged model"
    )


def _common_base(found: Sequence[FoundFiles], base: str | None, trust_remote_code: bool) -> tuple[list[Any], FoundFiles]:
    """Return the configs of adapters that can be switched on one model, and the files of their base."""
    for each in found:
        if each.kind != "adapter":
            raise CheckpointError(f"{each.source} is not an adapter (no adapter_config.json); open_checkpoint opens complete models")
    configs, bases = zip(*(base_of(each, base, trust_remote_code) for each in found), strict=True)
    for each, config, its_base in zip(found, configs, bases, strict=True):
        check_switchable(_plain_config(config), each.source)
        own = [name for name in _check_adapter_file(each) if ".lora_" not in name]
        if own:
            raise CheckpointError(
                f"{each.source}: the adapter cannot be switched on a shared model: it replaces weights of the base ({own[0]}); "
                "open it by itself"
            )
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


def _add_adapter(model: Any, found: FoundFiles, base_found: FoundFiles, name: str, config: Any) -> Any:
    """Load an adapter on its base, or next to others of the same base, and make it the active one. The base's weights stay as they are."""
    from peft import PeftModel

    start = getattr(config, "init_lora_weights", None)
    rewrites = start in _REWRITING_STARTS
    config = _plain_config(config)
    try:
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            if isinstance(model, PeftModel):
                adapted = model
                config.inference_mode = True
                adapted.add_adapter(name, config)
                missing = adapted.load_adapter(str(found.folder), name, is_trainable=False).missing_keys
                adapted.set_adapter(name)
            else:
                adapted, missing = (
                    PeftModel.from_pretrained(model, str(found.folder), adapter_name=name, is_trainable=False, config=config),
                    [],
                )
    except Exception as error:
        detail = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), first_line(error))
        raise CheckpointError(f"{found.source}: the adapter does not fit the base {base_found.source} ({detail[:200]})") from error
    absent = [str(w.message) for w in raised if "missing adapter keys" in str(w.message)]
    absent += [f"Found missing adapter keys: {keys}." for keys in ([key for key in missing if f".{name}." in key],) if keys]
    if absent:
        raise CheckpointError(f"{found.source}: the adapter's weights are incomplete for {base_found.source}: {absent[0][:160]}")
    if rewrites and not _make_plain(adapted, name, start):
        raise CheckpointError(f"{found.source}: the adapter changes nothing (its matrices are those that it was initialized with)")
    adapted.eval()
    _check_adapter_changes(adapted, found.source, name)
    adapted.requires_grad_(False)  # after the check: disable_adapter switches the adapter's gradients on when it ends
    return adapted


def _plain_config(config: Any) -> Any:
    """Return a copy of an adapter's config with which PEFT leaves the base as it is; `_make_plain` does the rest."""
    config = copy.deepcopy(config)
    if getattr(config, "init_lora_weights", None) in _REWRITING_STARTS:
        config.init_lora_weights = True
    return config


def _make_plain(model: Any, name: str, start: str) -> bool:
    """Turn an adapter that was trained on a rewritten base into one of the base itself; return whether training changed it.

    PiSSA and OLoRA take a start B0 A0 out of the base: W = (W0 - s B0 A0) + s B A. Here W0 stays, and the adapter becomes [B, -B0] [A; A0],
    of twice the rank, so that the base can be shared and is the true one while the adapter is off.

    Args:
        model: a `PeftModel` with the adapter's trained matrices.
        name: of the adapter.
        start: one of `_REWRITING_STARTS`.
    """
    from peft.tuners.lora import LoraLayer

    changed = False
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer) and name in module.lora_A]
    for layer in layers:
        a, b, weight = layer.lora_A[name], layer.lora_B[name], layer.get_base_layer().weight
        trained_a, trained_b = a.weight.data, b.weight.data
        original, saved = weight.data, weight.data.clone()
        if start == "olora":
            layer.olora_init(name)
        else:
            layer.pissa_init(name, start)
        original.copy_(saved)  # OLoRA changes it in place
        weight.data = original
        start_a, start_b = a.weight.data.to(trained_a), b.weight.data.to(trained_b)
        changed = changed or not (torch.allclose(start_a, trained_a, rtol=1e-4) and torch.allclose(start_b, trained_b, rtol=1e-4))
        a.weight.data, b.weight.data = torch.cat([trained_a, start_a]), torch.cat([trained_b, -start_b], dim=1)
        a.out_features = b.in_features = len(a.weight)
    return changed


def _check_adapter_file(found: FoundFiles) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of an adapter's tensors; raise if the file is damaged or empty."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(found.weights[0], "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{found.weights[0]}: damaged or truncated adapter ({first_line(error)})") from error
    if not shapes:
        raise CheckpointError(f"{found.weights[0]}: the adapter file holds no weights")
    return shapes


def _fit_vocabulary(model: Any, found: FoundFiles, config: Any, n_tokens: int) -> None:
    """Resize a base's embeddings to the vocabulary that its adapter was trained with; rows that are added come from the adapter.

    Args:
        model: the base.
        found: the adapter's files.
        config: PEFT's config of the adapter.
        n_tokens: size of the adapter's tokenizer, for adapters that train single tokens.

    Raises:
        CheckpointError: the adapter's sizes contradict each other, or it holds no weights for rows that were added.
    """
    shapes = _check_adapter_file(found)
    n_rows = model.get_input_embeddings().weight.shape[0]
    modules = {module: name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    sizes: dict[str, int] = {}
    complete: set[str] = set()
    for module in (embedding, head):
        name = modules.get(module, "")
        trained = _trained_tokens(config, name) or (_trained_tokens(config, modules[embedding]) if tied else set())
        for key, shape in shapes.items():
            ending = key.removeprefix("base_model.model.").removeprefix(f"{name}.")
            if not key.startswith(f"base_model.model.{name}."):
                continue
            if ending in ("weight", "base_layer.weight"):
                sizes[key] = shape[0]
                complete.add(name)
            elif ending in ("lora_embedding_A", "lora_B.weight"):
                sizes[key] = shape[1] if ending == "lora_embedding_A" else shape[0]
        if trained and max(trained) >= n_rows:
            sizes.setdefault("trainable_token_indices", max(n_tokens, max(trained) + 1))
        if trained and trained >= set(range(n_rows, max(sizes.values(), default=n_rows))):
            complete.add(name)
    wanted = set(sizes.values())
    if not wanted or wanted == {n_rows}:
        return
    if len(wanted) > 1:
        seen = ", ".join(f"{key} {size}" for key, size in sorted(sizes.items()))
        raise CheckpointError(f"{found.source}: the adapter names several sizes of the vocabulary: {seen}")
    [size] = wanted
    given = {modules[module] for module in (embedding, head) if module is not None}
    absent = sorted(given - complete) if not (tied and complete) else []
    if size > n_rows and absent:
        raise CheckpointError(
            f"{found.source}: the adapter was trained on a base with {size} tokens, and its base has {n_rows}; it holds no weights of the "
            f'added rows of {", ".join(absent)}, which would be random. Save it with modules_to_save=["embed_tokens", "lm_head"], or '
            "name the resized base with --base"
        )
    model.resize_token_embeddings(size, mean_resizing=False)


def _trained_tokens(config: Any, name: str) -> set[int]:
    """Return the tokens whose rows of a module an adapter trains (`trainable_token_indices`)."""
    trained = getattr(config, "trainable_token_indices", None) or ()
    if isinstance(trained, dict):
        trained = next((indices for key, indices in trained.items() if name == key or name.endswith(f".{key}")), ())
    elif "embed" not in name.rsplit(".", 1)[-1] and name.rsplit(".", 1)[-1] not in ("wte", "word_embeddings"):
        trained = ()  # a list belongs to the input embeddings
    return {int(index) for index in trained}


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
