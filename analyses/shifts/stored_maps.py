# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Attention maps that lie on disk: the published layout and archives of ours; the published curves and ranking. Knows no torch.

A model's maps are one of

- a folder `raw-NAME/layerL/layer_L_raw_attention/layer_L_head_H.npy`, [query, key] each, layers and heads counted from 0;
- an archive `NAME.npz` or `NAME.safetensors`, of arrays `layer_L`, [head, query, key], or `layer_L_head_H`, [query, key].

Definitions are those of the code of arXiv 2412.17846 (github.com/alonso130r/knowledge-distillation, `SA-convergence-comparison.py` and
`attention-head-locator.py`). a_ij is the stored attention of query i to key j, T the number of tokens, p_ij = a_ij / sum_k a_ik:

    entropy       mean over i of - sum_j p_ij ln p_ij, nats; 0 ln 0 = 0, nothing is added inside the logarithm
    self_focus    mean over i of p_ii
    sparsity      #{(i, j): p_ij > 0.1} / T^2: of all entries, those above the diagonal too
    layer_cosine  sum_ij a_ij b_ij / sqrt(sum_ij a_ij^2 sum_ij b_ij^2), b the same head's map in the layer before
    variance      mean over all T^2 entries of the variance of a_ij over models, divided by their number (ddof 0)

each per layer and head; a curve is the mean over a layer's heads. The published code renormalises rows for the first three only: the
cosine and the variance are of the maps as stored. It computes in float32, we in float64. Its figure of the cosine has no point for the
first layer and so draws each of the others one layer too far left; here a row bears the number of the later of its two layers.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pandas as pd

from interp.tables.errors import InputError
from interp.tables.published import CURVES, SPARSITY_THRESHOLD

ARCHIVES = (".npz", ".safetensors")


SHOWN = 6
"""Faults that a message spells out; the others are counted."""


_NUMBER = "(0|[1-9][0-9]{0,3})"


_LAYER_FOLDER = re.compile(f"layer{_NUMBER}")


_HEAD_FILE = re.compile(rf"layer_{_NUMBER}_head_{_NUMBER}\.npy")


_ARRAY = re.compile(f"layer_{_NUMBER}(?:_head_{_NUMBER})?")


_LAYOUT = (
    "folders raw-NAME/layerL/layer_L_raw_attention/layer_L_head_H.npy, or archives NAME.npz or NAME.safetensors of arrays layer_L "
    "[head, query, key] or layer_L_head_H [query, key]"
)


Index = dict[int, set[int | None]]
"""Heads that a store holds by layer; None stands for one array of all heads."""


class _Store(Protocol):
    """Where the maps of one model lie."""

    first_layer: int | None
    """Number that the first layer must have; None where the arrays' names alone say it."""

    def index(self) -> tuple[Index, list[str]]:
        """What there is, and what does not belong there."""
        ...

    def place(self, layer: int, head: int | None) -> str:
        """Name of an array, below the model's folder or in its archive."""
        ...

    def read(self, place: str) -> np.ndarray:
        """One array as stored."""
        ...


def _read_npy(file: IO[bytes]) -> np.ndarray:
    array = np.lib.format.read_array(file, allow_pickle=False)
    if file.read(1):
        raise ValueError(f"bytes follow the array of shape {array.shape}")
    return array


def _unreadable(error: BaseException) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return f"no readable array of numbers ({said}); pickles are never loaded"


class _Folder:
    """The published layout. Entries that are neither called layer... nor maps, such as .DS_Store and pictures, are not looked at."""

    first_layer: int | None = 0

    def __init__(self, source: Path) -> None:
        self.source = source

    def place(self, layer: int, head: int | None) -> str:
        folder = f"layer{layer}/layer_{layer}_raw_attention"
        return folder if head is None else f"{folder}/layer_{layer}_head_{head}.npy"

    def index(self) -> tuple[Index, list[str]]:
        found: Index = {}
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
        except Exception as error:  # a damaged header fails in Python's own parser: InputError, SyntaxError, TypeError
            raise InputError(f"{place}: {_unreadable(error)}") from error


class _Archive:
    """Arrays by name."""

    first_layer: int | None = None

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def place(self, layer: int, head: int | None) -> str:
        return f"layer_{layer}" if head is None else f"layer_{layer}_head_{head}"

    def index(self) -> tuple[Index, list[str]]:
        found: Index = {}
        odd = [f"{name}: the archive holds it {number} times" for name, number in Counter(self.names).items() if number > 1]
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
            if dtype not in ("F16", "F32", "F64"):  # NumPy knows no bfloat16
                raise InputError(f"{place}: entries are {dtype}, expected F16, F32 or F64")
            return self.archive.get_tensor(place)
        except (SafetensorError, OSError, MemoryError) as error:
            raise InputError(f"{place}: {_unreadable(error)}") from error


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # the folder around it may be listed, but not entered
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
        raise InputError(f"no readable archive ({error})") from error


def _fault(maps: np.ndarray, n_axes: int) -> str | None:
    """What is wrong with an array that should hold attention; None where nothing is."""
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
    """Names of a layer's arrays, with their number of axes."""
    if None in heads:
        return {store.place(layer, None): 3}
    return {store.place(layer, head): 2 for head in sorted(h for h in heads if h is not None)}


@dataclass(frozen=True)
class StoredMaps:
    """The maps of one model, which stay on disk.

    Attributes:
        name: NAME of `raw-NAME` or of the archive.
        source: its folder or archive.
        layers: their numbers, ascending, none left out.
        n_heads: of every layer.
        n_tokens: T; every map is [T, T].
    """

    name: str
    source: Path
    layers: tuple[int, ...]
    n_heads: int
    n_tokens: int

    def layer(self, layer: int) -> np.ndarray:
        """Read one layer as stored (rows not renormalised), float64 [head, query, key], probabilities.

        Raises:
            InputError: there is no such layer, or its files are no longer what they were when the maps were opened.
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
    """Read every map of a model once, one at a time, and say all that is wrong."""
    shown = source.name
    with ExitStack() as stack:
        try:
            store = _open(source, stack)
        except InputError as error:
            return None, [f"{shown}: {error}"]
        found, faults = store.index()
        if not found:
            return None, [f"{shown}/{fault}" for fault in faults] or [f"{shown}: holds no maps"]
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
                faults.append(f"{store.place(layer, None)}: the archive also holds its heads one by one")
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
    """Those that are of another kind than most."""
    if not kinds:
        return []
    usual, number = Counter(kinds.values()).most_common(1)[0]
    return [f"{place}: {kind}, but {number} of {len(kinds)} have {usual}" for place, kind in kinds.items() if kind != usual]


def _sources(folder: Path) -> list[Path]:
    """Where models' maps lie: in a folder of models, in one model's folder, or in one archive."""
    try:
        if folder.is_file() and folder.suffix in ARCHIVES:
            return [folder]
        if not folder.is_dir():
            raise InputError(f"{folder} {'is no archive of maps' if folder.exists() else 'does not exist'}; expected {_LAYOUT}")
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror})") from error
    found = [entry for entry in entries if entry.name.startswith("raw-") or entry.suffix in ARCHIVES]
    layers = [entry.name for entry in entries if _LAYER_FOLDER.fullmatch(entry.name)]
    if found and layers:
        raise InputError(f"{folder} holds both models ({found[0].name}) and a model's layers ({layers[0]}); move one of them away")
    if not found and (layers or folder.absolute().name.startswith("raw-")):
        return [folder.absolute()]
    if not found:
        raise InputError(f"{folder} holds no maps; expected {_LAYOUT}")
    return found


def open_published(folder: Path) -> list[StoredMaps]:
    """Find the models whose maps lie in a folder, and check every file; no map is kept.

    Args:
        folder: of `raw-NAME` folders and archives (other entries are not looked at); or one model's folder, or one archive.

    Returns:
        Models by name, all of the same layers, heads and tokens.

    Raises:
        InputError: there are no maps; or files are missing, damaged or not attention: not square, of another shape than the
            others, not finite, negative, or with a row that sums to 0. The message names the first few and says how many there are.
            Or models differ in layers, heads or tokens, or two have one name.
    """
    folder = Path(folder)
    models: list[StoredMaps] = []
    faults: list[str] = []
    named: dict[str, Path] = {}
    for source in _sources(folder):
        is_archive = source.suffix in ARCHIVES and not _is_folder(source)
        name = (source.stem if is_archive else source.name).removeprefix("raw-")
        if not is_archive and not _is_folder(source):
            faults.append(f"{source.name}: expected a folder raw-NAME")
        elif not name:
            faults.append(f"{source.name}: expected raw-NAME, the name of the model is missing")
        elif name in named:
            faults.append(f"{source.name}: {named[name].name} also names its model {name}")
        else:
            named[name] = source
            model, wrong = _examine(name, source)
            models += [] if model is None else [model]
            faults += wrong
    if faults:
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        listed = "".join(f"\n  {fault}" for fault in faults[:SHOWN])
        raise InputError(f"{folder}: {len(faults)} missing, damaged or odd file{'s' if len(faults) > 1 else ''}:{listed}{more}")
    models.sort(key=lambda model: model.name)
    _comparable(models, f"{folder}: ")
    return models


def _comparable(models: Sequence[StoredMaps], before: str = "") -> None:
    alike: dict[str, list[str]] = {}
    for m in models:
        alike.setdefault(f"layers {m.layers[0]} to {m.layers[-1]}, {m.n_heads} heads, {m.n_tokens} tokens", []).append(m.name)
    if len(alike) > 1:
        said = "; ".join(f"{', '.join(names)}: {kind}" for kind, names in alike.items())
        raise InputError(f"{before}models differ, so their maps cannot be compared ({said}); keep them in folders of their own")


def write_maps(path: Path, maps: Mapping[int, np.ndarray]) -> None:
    """Write one model's maps as an archive, whole or not at all.

    Args:
        path: `NAME.npz` or `NAME.safetensors`.
        maps: attention by layer number, no layer left out between the first and the last; [head, query, key], float16 to float64, of
            one shape.

    Raises:
        InputError: the name ends otherwise, the maps are not attention (as `open_published`), or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in ARCHIVES or not path.stem.removeprefix("raw-"):
        raise InputError(f"{path}: archives of maps are called NAME.npz or NAME.safetensors")
    layers = sorted(maps)
    if not layers or layers[0] < 0 or layers != list(range(layers[0], layers[-1] + 1)):
        raise InputError(f"{path}: layers are {layers}; expected one or more, none left out, counted from 0")
    arrays = {f"layer_{layer}": np.ascontiguousarray(maps[layer]) for layer in layers}
    faults = [f"{name}: {fault}" for name, array in arrays.items() if (fault := _fault(array, 3)) is not None]
    faults = faults or _unlike({name: f"shape {list(array.shape)}" for name, array in arrays.items()})
    if faults:
        raise InputError(f"{path}: {faults[0]}")
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
        else:
            from safetensors import SafetensorError
            from safetensors.numpy import save_file

            temporary.touch()
            mode = temporary.stat().st_mode
            try:
                save_file(arrays, temporary)
            except SafetensorError as error:
                raise OSError(str(error)) from error
            temporary.chmod(mode)  # safetensors leaves files that only their owner may read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def published_heads(maps: StoredMaps) -> pd.DataFrame:
    """Every head's values, of which the published curves are the means (formulas at the head of this module).

    Returns:
        A row per layer, curve and head: model, layer, head, curve (as in `CURVES`), value. The first layer has no `layer_cosine`.

    Raises:
        InputError: as `StoredMaps.layer`.
    """
    frames: list[pd.DataFrame] = []
    before: np.ndarray | None = None
    for layer in maps.layers:
        stored = maps.layer(layer)
        p = stored / stored.sum(-1, keepdims=True)
        values = {
            "entropy": -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1).mean(-1) + 0.0,  # + 0: one-hot rows give 0, not -0
            "self_focus": np.diagonal(p, axis1=-2, axis2=-1).mean(-1),
            "sparsity": (p > SPARSITY_THRESHOLD).mean((-2, -1)),
        }
        if before is not None:
            norms = np.sqrt((stored**2).sum((-2, -1)) * (before**2).sum((-2, -1)))
            values["layer_cosine"] = (stored * before).sum((-2, -1)) / norms
        before = stored
        frames += [pd.DataFrame({"layer": layer, "head": range(maps.n_heads), "curve": name, "value": v}) for name, v in values.items()]
    frame = pd.concat(frames, ignore_index=True)
    frame.insert(0, "model", maps.name)
    return frame


def published_curves(maps: StoredMaps) -> pd.DataFrame:
    """The four published curves over layers: entropy, self-attention focus, sparsity over 0.1, cosine to the layer before.

    Returns:
        A row per layer and curve: model, layer, curve, unit, value (mean over the layer's heads), sd (over the heads, divided by their
        number), n_heads. The first layer has no `layer_cosine`.

    Raises:
        InputError: as `StoredMaps.layer`.
    """
    heads = published_heads(maps).groupby(["model", "layer", "curve"], sort=False)["value"]
    frame = pd.DataFrame({"value": heads.mean(), "sd": heads.std(ddof=0), "n_heads": heads.size()}).reset_index()
    frame.insert(3, "unit", [CURVES[name].unit for name in frame["curve"]])
    return frame


def variance_ranking(models: Sequence[StoredMaps]) -> pd.DataFrame:
    """Heads by how far their maps differ between models (formula at the head of this module).

    Returns:
        A row per head, the largest variance first: layer, head, variance (probability squared), rank (1 = largest; equal variances in
        order of layer and head), n_models.

    Raises:
        InputError: fewer than two models; models of different layers, heads or tokens; or as `StoredMaps.layer`.
    """
    if len(models) < 2:
        raise InputError(f"a variance across models needs two or more, got {[model.name for model in models]}")
    _comparable(models)
    frames: list[pd.DataFrame] = []
    for layer in models[0].layers:
        maps = [model.layer(layer) for model in models]
        variance = [float(np.var(np.stack([stored[head] for stored in maps]), axis=0).mean()) for head in range(models[0].n_heads)]
        frames.append(pd.DataFrame({"layer": layer, "head": range(models[0].n_heads), "variance": variance}))
    frame = pd.concat(frames, ignore_index=True).sort_values("variance", ascending=False, kind="stable", ignore_index=True)
    frame["rank"] = np.arange(1, len(frame) + 1)
    frame["n_models"] = len(models)
    return frame
