# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Attention maps stored on disk, in the published layout or as archives. Needs no torch.

A model's maps are one of

- a folder `raw-NAME/layerL/layer_L_raw_attention/layer_L_head_H.npy`, [query, key] each, with layers and heads counted from 0;
- an archive `NAME.npz` or `NAME.safetensors` of arrays `layer_L`, [head, query, key], or `layer_L_head_H`, [query, key].
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from interp.tables.errors import InputError

_ARCHIVES = (".npz", ".safetensors")

_SHOWN_FAULTS = 6
"""Number of faults that a message lists; further ones are counted."""

_NUMBER = "(0|[1-9][0-9]{0,3})"
_LAYER_FOLDER = re.compile(f"layer{_NUMBER}")
_HEAD_FILE = re.compile(rf"layer_{_NUMBER}_head_{_NUMBER}\.npy")
_ARRAY = re.compile(f"layer_{_NUMBER}(?:_head_{_NUMBER})?")

_LAYOUT = (
    "folders raw-NAME/layerL/layer_L_raw_attention/layer_L_head_H.npy, or archives NAME.npz or NAME.safetensors of arrays layer_L "
    "[head, query, key] or layer_L_head_H [query, key]"
)


_Index = dict[int, set[int | None]]
"""Heads in a store by layer; None is one array of all heads."""


class _Store(Protocol):
    """The stored maps of one model."""

    first_layer: int | None
    """Number that the first layer must have; None accepts any."""

    def index(self) -> tuple[_Index, list[str]]:
        """Return the heads that are there, and a message for each entry that does not belong there."""
        ...

    def place(self, layer: int, head: int | None) -> str:
        """Return the name of an array, relative to the model's folder or in its archive."""
        ...

    def read(self, place: str) -> np.ndarray:
        """Return one array as stored."""
        ...


def _read_npy(file: IO[bytes]) -> np.ndarray:
    array = np.lib.format.read_array(file, allow_pickle=False)
    if file.read(1):
        raise ValueError(f"bytes follow the array of shape {array.shape}")
    return array


def _unreadable(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return f"not a readable array of numbers ({reason}); pickles are never loaded"


class _Folder:
    """The published layout. Entries that are neither maps nor named layer..., such as .DS_Store and pictures, are ignored."""

    first_layer: int | None = 0

    def __init__(self, source: Path) -> None:
        self.source = source

    def place(self, layer: int, head: int | None) -> str:
        folder = f"layer{layer}/layer_{layer}_raw_attention"
        return folder if head is None else f"{folder}/layer_{layer}_head_{head}.npy"

    def index(self) -> tuple[_Index, list[str]]:
        found: _Index = {}
        odd: list[str] = []
        for outer in self._entries("", odd):
            match = _LAYER_FOLDER.fullmatch(outer)
            if match is None:
                odd.append(f"{outer}: expected a folder layerL")
                continue
            layer = int(match[1])
            found[layer] = set()
            for inner in self._entries(outer, odd):
                if inner != self.place(layer, None):
                    odd.append(f"{inner}: expected a folder layer_{layer}_raw_attention")
                    continue
                for file in self._entries(inner, odd):
                    match = _HEAD_FILE.fullmatch(Path(file).name)
                    if match is None or int(match[1]) != layer:
                        odd.append(f"{file}: expected layer_{layer}_head_H.npy")
                    else:
                        found[layer].add(int(match[2]))
        return found, odd

    def _entries(self, below: str, odd: list[str]) -> list[str]:
        try:
            names = sorted(entry.name for entry in (self.source / below).iterdir())
        except OSError as error:
            odd.append(f"{below}: cannot be listed ({error.strerror})")
            return []
        wanted = [name for name in names if name.startswith("layer") or (name.endswith(".npy") and not name.startswith("."))]
        return [f"{below}/{name}" if below else name for name in wanted]

    def read(self, place: str) -> np.ndarray:
        try:
            with (self.source / place).open("rb") as file:
                return _read_npy(file)
        except Exception as error:  # a damaged header fails in Python's own parser: ValueError, SyntaxError, TypeError
            raise InputError(f"{place}: {_unreadable(error)}") from error


class _Archive:
    """An archive of arrays by name."""

    first_layer: int | None = None

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def place(self, layer: int, head: int | None) -> str:
        return f"layer_{layer}" if head is None else f"layer_{layer}_head_{head}"

    def index(self) -> tuple[_Index, list[str]]:
        found: _Index = {}
        odd = [f"{name}: the archive contains it {number} times" for name, number in Counter(self.names).items() if number > 1]
        for name in sorted(set(self.names)):
            match = _ARRAY.fullmatch(name)
            if match is None:
                odd.append(f"{name}: expected arrays layer_L or layer_L_head_H")
            else:
                found.setdefault(int(match[1]), set()).add(None if match[2] is None else int(match[2]))
        return found, odd


class _Npz(_Archive):
    def __init__(self, archive: zipfile.ZipFile) -> None:
        super().__init__([name.removesuffix(".npy") for name in archive.namelist()])
        self.archive = archive

    def read(self, place: str) -> np.ndarray:
        try:
            with self.archive.open(f"{place}.npy") as file:
                return _read_npy(file)
        except Exception as error:
            raise InputError(f"{place}: {_unreadable(error)}") from error


class _Safetensors(_Archive):
    def __init__(self, archive: Any) -> None:
        super().__init__(list(archive.keys()))
        self.archive = archive

    def read(self, place: str) -> np.ndarray:
        from safetensors import SafetensorError

        try:
            dtype = self.archive.get_slice(place).get_dtype()
            if dtype not in ("F16", "F32", "F64"):  # NumPy has no bfloat16
                raise InputError(f"{place}: entries are {dtype}, expected F16, F32 or F64")
            return self.archive.get_tensor(place)
        except (SafetensorError, OSError, MemoryError) as error:
            raise InputError(f"{place}: {_unreadable(error)}") from error


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # the parent folder can be listed but not entered
        return False


def _open(source: Path, stack: ExitStack) -> _Store:
    if _is_folder(source):
        return _Folder(source)
    from safetensors import SafetensorError, safe_open

    try:
        if source.suffix == ".npz":
            return _Npz(stack.enter_context(zipfile.ZipFile(source)))
        return _Safetensors(stack.enter_context(safe_open(source, "np")))
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile, SafetensorError) as error:
        raise InputError(f"not a readable archive ({error})") from error


def _fault(maps: np.ndarray, n_axes: int) -> str | None:
    """Return what is wrong with an array that should hold attention, or None."""
    if maps.dtype.kind != "f" or maps.dtype.itemsize > 8:
        return f"entries are {maps.dtype}, expected float16, float32 or float64"
    if maps.ndim != n_axes or maps.shape[-1] != maps.shape[-2] or maps.size == 0:
        return f"shape is {list(maps.shape)}, expected {'[head, query, key]' if n_axes == 3 else '[query, key]'}, as many keys as queries"
    for wrong, what in ((~np.isfinite(maps), "are not finite"), (maps < 0, "are negative")):
        if wrong.any():
            at = [int(i) for i in np.argwhere(wrong)[0]]
            return f"{int(wrong.sum())} entries {what}, the first at {at} is {maps[tuple(at)]}"
    empty = ~maps.any(-1)
    if empty.any():
        return f"{int(empty.sum())} rows sum to 0, the first at {[int(i) for i in np.argwhere(empty)[0]]}"
    return None


def _layer_arrays(store: _Store, layer: int, heads: set[int | None]) -> dict[str, int]:
    """Return the names of a layer's arrays, with their number of axes."""
    if None in heads:
        return {store.place(layer, None): 3}
    return {store.place(layer, head): 2 for head in sorted(h for h in heads if h is not None)}


@dataclass(frozen=True)
class StoredMaps:
    """The maps of one model, which stay on disk.

    Attributes:
        name: NAME of `raw-NAME` or of the archive.
        source: the folder or archive.
        layers: layer numbers, ascending and without gaps.
        n_heads: number of heads of every layer.
        n_tokens: T; every map is [T, T].
    """

    name: str
    source: Path
    layers: tuple[int, ...]
    n_heads: int
    n_tokens: int

    def layer(self, layer: int) -> np.ndarray:
        """Return one layer as stored (rows not renormalized): probabilities, float64 [head, query, key].

        Raises:
            InputError: there is no such layer, or its files have changed since the maps were opened.
        """
        if layer not in self.layers:
            raise InputError(f"{self.source} has no layer {layer}; it has {self.layers[0]} to {self.layers[-1]}")
        try:
            with ExitStack() as stack:
                store = _open(self.source, stack)
                heads: set[int | None] = set(range(self.n_heads))
                if not isinstance(store, _Folder):
                    heads = store.index()[0].get(layer, heads)
                maps = [store.read(place) for place in _layer_arrays(store, layer, heads)]
                whole = maps[0] if None in heads else np.stack(maps)
        except ValueError as error:
            raise InputError(f"{self.source}: layer {layer} cannot be read: {error}") from error
        fault = _fault(whole, 3)
        if fault is None and whole.shape != (self.n_heads, self.n_tokens, self.n_tokens):
            fault = f"shape is {list(whole.shape)}"
        if fault is not None:
            raise InputError(f"{self.source}: layer {layer} changed since it was opened: {fault}")
        return whole.astype(np.float64)


def _examine(name: str, source: Path) -> tuple[StoredMaps | None, list[str]]:
    """Read every map of a model once, one at a time; return the maps, or all faults."""
    shown = source.name
    with ExitStack() as stack:
        try:
            store = _open(source, stack)
        except InputError as error:
            return None, [f"{shown}: {error}"]
        found, faults = store.index()
        if not found:
            return None, [f"{shown}/{fault}" for fault in faults] or [f"{shown}: contains no maps"]
        first = min(found) if store.first_layer is None else store.first_layer
        layers = tuple(range(first, max(found) + 1))
        n_split = 1 + max((head for heads in found.values() for head in heads if head is not None), default=-1)
        tokens: dict[str, int] = {}
        n_heads: dict[int, int] = {}
        for layer in layers:
            heads = found.get(layer, set())
            if not heads:
                faults.append(f"{store.place(layer, None)}: missing")
                continue
            if None in heads and len(heads) > 1:
                faults.append(f"{store.place(layer, None)}: the archive also contains its heads one by one")
                continue
            if None not in heads:
                faults += [f"{store.place(layer, head)}: missing" for head in range(n_split) if head not in heads]
                n_heads[layer] = n_split
            for place, n_axes in _layer_arrays(store, layer, heads).items():
                try:
                    maps = store.read(place)
                except InputError as error:
                    faults.append(str(error))
                    continue
                fault = _fault(maps, n_axes)
                if fault is not None:
                    faults.append(f"{place}: {fault}")
                    continue
                tokens[place] = maps.shape[-1]
                if n_axes == 3:
                    n_heads[layer] = maps.shape[0]
    faults += _unlike({place: f"{n} tokens" for place, n in tokens.items()})
    faults += _unlike({store.place(layer, None): f"{n} heads" for layer, n in n_heads.items()})
    if faults:
        return None, [f"{shown}/{fault}" for fault in faults]
    return StoredMaps(name, source, layers, n_heads[layers[0]], next(iter(tokens.values()))), []


def _unlike(kinds: Mapping[str, str]) -> list[str]:
    """Return a message for each entry whose kind differs from the most common one."""
    if not kinds:
        return []
    usual, number = Counter(kinds.values()).most_common(1)[0]
    return [f"{place}: {kind}, but {number} of {len(kinds)} have {usual}" for place, kind in kinds.items() if kind != usual]


def _sources(folder: Path) -> list[Path]:
    """Return the sources of models: those in a folder, or one model's folder or archive itself."""
    try:
        if folder.is_file() and folder.suffix in _ARCHIVES:
            return [folder]
        if not folder.is_dir():
            raise InputError(f"{folder} {'is not an archive of maps' if folder.exists() else 'does not exist'}; expected {_LAYOUT}")
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror})") from error
    found = [entry for entry in entries if entry.name.startswith("raw-") or entry.suffix in _ARCHIVES]
    layers = [entry.name for entry in entries if _LAYER_FOLDER.fullmatch(entry.name)]
    if found and layers:
        raise InputError(f"{folder} contains both models ({found[0].name}) and a model's layers ({layers[0]}); move one of them away")
    if not found and (layers or folder.absolute().name.startswith("raw-")):
        return [folder.absolute()]
    if not found:
        raise InputError(f"{folder} contains no maps; expected {_LAYOUT}")
    return found


def open_published(folder: Path) -> list[StoredMaps]:
    """Return the models whose maps are in a folder, after checking every file; no map stays in memory.

    Args:
        folder: a folder of `raw-NAME` folders and archives (other entries are ignored), one model's folder, or one archive.

    Returns:
        Models sorted by name, all with the same layers, heads and tokens.

    Raises:
        InputError: there are no maps; files are missing, damaged or not attention (not square, of another shape than the others, not
            finite, negative, or with a row that sums to 0), of which the message names the first few and gives the number; models
            differ in layers, heads or tokens; or two models have the same name.
    """
    folder = Path(folder)
    models: list[StoredMaps] = []
    faults: list[str] = []
    named: dict[str, Path] = {}
    for source in _sources(folder):
        is_archive = source.suffix in _ARCHIVES and not _is_folder(source)
        name = (source.stem if is_archive else source.name).removeprefix("raw-")
        if not is_archive and not _is_folder(source):
            faults.append(f"{source.name}: expected a folder raw-NAME")
        elif not name:
            faults.append(f"{source.name}: expected raw-NAME; the name of the model is missing")
        elif name in named:
            faults.append(f"{source.name}: {named[name].name} also names its model {name}")
        else:
            named[name] = source
            model, wrong = _examine(name, source)
            models += [] if model is None else [model]
            faults += wrong
    if faults:
        more = f"\n  and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        listed = "".join(f"\n  {fault}" for fault in faults[:_SHOWN_FAULTS])
        raise InputError(f"{folder}: {len(faults)} missing, damaged or unexpected file{'s' if len(faults) > 1 else ''}:{listed}{more}")
    models.sort(key=lambda model: model.name)
    check_comparable(models, f"{folder}: ")
    return models


def check_comparable(models: Sequence[StoredMaps], before: str = "") -> None:
    """Raise if models differ in layers, heads or tokens.

    Args:
        models: to be compared.
        before: starts the message.

    Raises:
        InputError: they differ; the message lists how.
    """
    similar: dict[str, list[str]] = {}
    for m in models:
        similar.setdefault(f"layers {m.layers[0]} to {m.layers[-1]}, {m.n_heads} heads, {m.n_tokens} tokens", []).append(m.name)
    if len(similar) > 1:
        listed = "; ".join(f"{', '.join(names)}: {kind}" for kind, names in similar.items())
        raise InputError(f"{before}models differ, so their maps cannot be compared ({listed}); put them into separate folders")
