# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Every layout is read, and every fault is named."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses.shifts.published import stored_maps
from analyses.shifts.published.curves import curve_means, curve_values, variance_ranking
from analyses.shifts.published.stored_maps import StoredMaps, open_published
from interp.tables.errors import InputError

DATA = os.environ.get("PRIMED_HEADS_DATA")
LAYERS, HEADS, TOKENS = 3, 2, 5


def attention(seed: int, layers: int = LAYERS, heads: int = HEADS, tokens: int = TOKENS) -> dict[int, np.ndarray]:
    """Return causal maps whose rows sum to about 1, as maps stored in low precision do."""
    rng = np.random.default_rng(seed)
    raw = np.tril(rng.gamma(0.5, size=(layers, heads, tokens, tokens)) + 1e-3)
    maps = raw / raw.sum(-1, keepdims=True) * rng.uniform(0.99, 1.01, (layers, heads, tokens, 1))
    return {layer: maps[layer].astype(np.float32) for layer in range(layers)}


def write_folder(root: Path, maps: Mapping[int, np.ndarray]) -> Path:
    for layer, stored in maps.items():
        for head, map_ in enumerate(stored):
            path = head_file(root, layer, head)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, map_)
    return root


def head_file(root: Path, layer: int, head: int) -> Path:
    return root / f"layer{layer}" / f"layer_{layer}_raw_attention" / f"layer_{layer}_head_{head}.npy"


def write_archive(path: Path, maps: Mapping[int, np.ndarray]) -> None:
    arrays = {f"layer_{layer}": np.ascontiguousarray(stored) for layer, stored in maps.items()}
    if path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **arrays)
    else:
        from safetensors.numpy import save_file

        save_file(arrays, path)


def one(path: Path) -> StoredMaps:
    (model,) = open_published(path)
    return model


def curve(frame: pd.DataFrame, name: str) -> list[float]:
    return frame.loc[frame["curve"] == name, "value"].tolist()


# --- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("split", [False, True])
def test_archives_equal_the_folder(tmp_path: Path, suffix: str, split: bool) -> None:
    maps = attention(5, heads=11)  # head 10 sorts before head 2 as text
    folder = one(write_folder(tmp_path / "folder" / "raw-M", maps))
    path = tmp_path / f"M{suffix}"
    if split:
        from safetensors.numpy import save_file

        arrays = {f"layer_{n}_head_{h}": np.ascontiguousarray(map_) for n, stored in maps.items() for h, map_ in enumerate(stored)}
        np.savez_compressed(path, allow_pickle=False, **arrays) if suffix == ".npz" else save_file(arrays, path)
    else:
        write_archive(path, maps)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [path.name]
    for archive in (one(tmp_path), one(path)):
        assert (archive.name, archive.layers, archive.n_heads, archive.n_tokens) == ("M", folder.layers, 11, TOKENS)
        pd.testing.assert_frame_equal(curve_means(archive), curve_means(folder))
        pd.testing.assert_frame_equal(curve_values(archive), curve_values(folder))
        assert (variance_ranking([archive, folder])["variance"] == 0).all()
        for layer, stored in maps.items():
            assert archive.layer(layer).dtype == np.float64
            np.testing.assert_array_equal(archive.layer(layer), stored)


def test_models_of_several_layouts_in_one_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "raw-base", attention(0))
    write_archive(tmp_path / "AI.npz", attention(1))
    write_archive(tmp_path / "raw-teacher.safetensors", attention(2))
    for other in ("heatmap-AI", "raw-base/pictures"):
        (tmp_path / other).mkdir()
    for other in ("entropy.png", ".DS_Store", "raw-base/.DS_Store", "raw-base/layer0/layer_0_raw_attention/._layer_0_head_0.npy"):
        (tmp_path / other).write_bytes(b"\0")
    assert [m.name for m in open_published(tmp_path)] == ["AI", "base", "teacher"]


def test_the_folder_of_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "raw-AI", attention(0))
    assert one(folder).name == "AI"
    monkeypatch.chdir(folder)
    model = one(Path())
    monkeypatch.chdir(tmp_path)
    assert (model.name, model.layer(0).shape) == ("AI", (HEADS, TOKENS, TOKENS))
    assert one(write_folder(tmp_path / "other" / "student", attention(0))).name == "student"


def test_an_archive_may_start_at_any_layer(tmp_path: Path) -> None:
    maps = attention(0)
    write_archive(tmp_path / "M.npz", {layer + 10: stored for layer, stored in maps.items()})
    model = one(tmp_path)
    assert model.layers == (10, 11, 12)
    frame = curve_means(model)
    assert frame.loc[frame["curve"] == "layer_cosine", "layer"].tolist() == [11, 12]
    with pytest.raises(InputError, match=r"has no layer 0; it has 10 to 12"):
        model.layer(0)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_every_precision_is_read(tmp_path: Path, dtype: str) -> None:
    maps = {layer: stored.astype(dtype) for layer, stored in attention(0).items()}
    for name in ("a.npz", "b.safetensors"):
        write_archive(tmp_path / name, maps)
    for model in [*open_published(tmp_path), one(write_folder(tmp_path / "raw-c", maps))]:
        np.testing.assert_array_equal(model.layer(1), maps[1].astype(np.float64))


def test_maps_are_read_one_layer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "M.npz", attention(0))
    model = one(tmp_path)
    places: list[str] = []
    read = stored_maps._Npz.read
    monkeypatch.setattr(stored_maps._Npz, "read", lambda self, place: (places.append(place), read(self, place))[1])
    model.layer(2)
    assert places == ["layer_2"]
    places.clear()
    curve_means(model)
    assert places == ["layer_0", "layer_1", "layer_2"]


def test_the_modules_need_no_torch(tmp_path: Path) -> None:
    for number, name in enumerate(("a.npz", "b.safetensors")):
        write_archive(tmp_path / name, attention(number))
    code = (
        "import sys; from pathlib import Path; from analyses.shifts.published.curves import *\n"
        "from analyses.shifts.published.stored_maps import *\n"
        f"models = open_published(Path({str(tmp_path)!r})); variance_ranking(models); [curve_means(m) for m in models]\n"
        "assert not {'torch', 'transformers', 'safetensors.torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(stored_maps.__file__).parents[3])


# --- faults ---------------------------------------------------------------------------------------------------------


def edit(change: Callable[[np.ndarray], object]) -> Callable[[Path], None]:
    """Change the array of layer 1, head 0."""

    def act(root: Path) -> None:
        path = head_file(root, 1, 0)
        array = np.load(path, allow_pickle=False)
        changed = change(array)
        np.save(path, array if changed is None else np.asarray(changed))

    return act


def at_file(change: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda root: (change(head_file(root, 1, 0)), None)[1]


class Trap:
    """Unpickled, it would leave a trace."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (os.mkdir, ("trapped",))


def put(array: np.ndarray, at: tuple[int, ...], value: float) -> None:
    array[at] = value


def hostile_header(path: Path) -> None:
    header = repr({"descr": "<f4", "fortran_order": False, "shape": (1 << 24, 1 << 24)}).encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))


WHERE = r"raw-M/layer1/layer_1_raw_attention/layer_1_head_0\.npy: "
UNREADABLE = r"not a readable array of numbers \(.+\); pickles are never loaded"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (at_file(Path.unlink), WHERE + "missing"),
        (at_file(lambda p: p.write_bytes(p.read_bytes()[:-4])), WHERE + UNREADABLE),
        (at_file(lambda p: p.write_bytes(p.read_bytes()[:40])), WHERE + UNREADABLE),
        (at_file(lambda p: p.write_bytes(b"")), WHERE + UNREADABLE),
        (at_file(lambda p: p.write_bytes(p.read_bytes() + b"\0")), WHERE + r".*bytes follow the array"),
        (at_file(lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")), WHERE + UNREADABLE),
        (at_file(hostile_header), WHERE + UNREADABLE),
        (at_file(lambda p: p.write_bytes(p.read_bytes().replace(b"{", b"(", 1))), WHERE + UNREADABLE),
        (at_file(lambda p: p.write_bytes(p.read_bytes().replace(b"'shape'", b"b'hape'", 1))), WHERE + UNREADABLE),
        (at_file(lambda p: p.write_bytes(pickle.dumps(Trap()))), WHERE + UNREADABLE),
        (at_file(lambda p: np.save(p, np.array([[Trap()]]), allow_pickle=True)), WHERE + r"not a readable .*Object arrays.*never loaded"),
        (at_file(lambda p: (p.unlink(), p.mkdir())), WHERE + UNREADABLE),
        (at_file(lambda p: (p.unlink(), p.symlink_to("nowhere"))), WHERE + r"not a readable .*No such file"),
        (edit(lambda a: put(a, (2, 1), np.nan)), WHERE + r"1 entries are not finite, the first at \[2, 1\] is nan"),
        (edit(lambda a: put(a, (4, 0), np.inf)), WHERE + r"1 entries are not finite, the first at \[4, 0\] is inf"),
        (edit(lambda a: put(a, (3, 2), -0.25)), WHERE + r"1 entries are negative, the first at \[3, 2\] is -0\.25"),
        (edit(lambda a: put(a, (3,), 0)), WHERE + r"1 rows sum to 0, the first at \[3\]"),
        (edit(lambda a: a[:4]), WHERE + r"shape is \[4, 5\], expected \[query, key\], as many keys as queries"),
        (edit(lambda a: a[None]), WHERE + r"shape is \[1, 5, 5\], expected \[query, key\]"),
        (edit(lambda a: a[:0, :0]), WHERE + r"shape is \[0, 0\]"),
        (edit(lambda a: a[:4, :4]), WHERE + r"4 tokens, but 5 of 6 have 5 tokens"),
        (edit(lambda a: np.eye(TOKENS, dtype=int)), WHERE + "entries are int64, expected float16, float32 or float64"),
        (edit(lambda a: a.astype(complex)), WHERE + "entries are complex128"),
        (lambda root: (root / "layer1").rename(root / "gone"), r"raw-M/layer1/layer_1_raw_attention: missing"),
        (lambda root: (root / "layer0").rename(root / "gone"), r"raw-M/layer0/layer_0_raw_attention: missing"),
        (lambda root: (root / "layer1").rename(root / "layer01"), r"raw-M/layer01: expected a folder layerL"),
        (lambda root: (root / "layer7").mkdir(), r"raw-M/layer3/.*: missing(.|\n)*raw-M/layer7/layer_7_raw_attention: missing"),
        (lambda root: (root / "layer3").touch(), r"raw-M/layer3: cannot be listed"),
        (lambda root: (root / "layer1" / "layer_2_raw_attention").mkdir(), r"layer_2_raw_attention: expected a folder layer_1_raw"),
        (at_file(lambda p: p.rename(p.with_name("layer_0_head_0.npy"))), r"layer_0_head_0\.npy: expected layer_1_head_H\.npy"),
        (at_file(lambda p: p.with_name("layer_1_head_00.npy").touch()), r"layer_1_head_00\.npy: expected layer_1_head_H\.npy"),
        (at_file(lambda p: p.with_name("extra.npy").touch()), r"extra\.npy: expected layer_1_head_H\.npy"),
        (at_file(lambda p: p.with_name("layer_1_head_3.npy").write_bytes(p.read_bytes())), r"(layer_._head_.\.npy: missing(.|\n)*){3}"),
    ],
)  # fmt: skip
def test_a_faulty_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "maps" / "raw-other", attention(1))
    root = write_folder(tmp_path / "maps" / "raw-M", attention(0))
    damage(root)
    with pytest.raises(InputError, match=said) as caught:
        open_published(tmp_path / "maps")
    assert "raw-other" not in str(caught.value)
    assert not (tmp_path / "trapped").exists()


def test_the_hostile_pickle_runs_if_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the test above can fail."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Trap()))  # noqa: S301
    assert (tmp_path / "trapped").exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("place", ["layer1/layer_1_raw_attention/layer_1_head_0.npy", "layer1/layer_1_raw_attention", "layer1", ""])
def test_an_unreadable_file_is_named(tmp_path: Path, place: str) -> None:
    root = write_folder(tmp_path / "raw-M", attention(0))
    mode = (root / place).stat().st_mode
    (root / place).chmod(0)
    try:
        with pytest.raises(InputError, match=f"{place or 'raw-M'}.*Permission denied"):
            open_published(tmp_path)
    finally:
        (root / place).chmod(mode)


def test_many_faults_are_counted(tmp_path: Path) -> None:
    for name in ("raw-A", "raw-B"):
        root = write_folder(tmp_path / name, attention(0, heads=6))
        for head in range(5):
            head_file(root, 1, head).unlink()
    with pytest.raises(InputError) as caught:
        open_published(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith(": 10 missing, damaged or unexpected files:")
    assert "layer_1_head_0.npy" in lines[1]
    assert "raw-B/" in lines[6]
    assert lines[7:] == ["  and 4 more"]


@pytest.mark.parametrize("kind", ["torn", "flipped", "no zip", "empty", "object", "trailing", "text", "gone layer", "both", "odd", "twice"])
def test_a_faulty_npz_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    maps = {f"layer_{n}": stored for n, stored in attention(0).items()}
    path = tmp_path / "M.npz"
    said = {
        "torn": r"M\.npz: not a readable archive",
        "no zip": r"M\.npz: not a readable archive",
        "empty": r"M\.npz: contains no maps",
        "flipped": r"M\.npz/layer_1: not a readable .*CRC",
        "object": r"M\.npz/layer_1: not a readable .*never loaded",
        "trailing": r"M\.npz/layer_1: .*bytes follow",
        "text": r"M\.npz/layer_1: entries are <U4",
        "gone layer": r"M\.npz/layer_1: missing",
        "both": r"M\.npz/layer_1: the archive also contains its heads one by one",
        "odd": r"M\.npz/vocabulary: expected arrays layer_L or layer_L_head_H",
        "twice": r"M\.npz/layer_1: the archive contains it 2 times",
    }[kind]
    if kind == "object":
        maps["layer_1"] = np.array([[[Trap()]]])
    elif kind == "text":
        maps["layer_1"] = np.full((HEADS, TOKENS, TOKENS), "here")
    elif kind == "gone layer":
        del maps["layer_1"]
    elif kind == "both":
        maps["layer_1_head_0"] = maps["layer_1"][0]
    elif kind == "odd":
        maps["vocabulary"] = np.zeros(3)
    np.savez(path, **({} if kind == "empty" else maps))  # pyright: ignore[reportArgumentType]
    content = path.read_bytes()
    if kind == "torn":
        path.write_bytes(content[:-100])
    elif kind == "no zip":
        path.write_bytes(b"\x93NUMPY")
    elif kind == "flipped":
        at = content.index(maps["layer_1"].tobytes())
        path.write_bytes(content[: at + 8] + bytes([content[at + 8] ^ 1]) + content[at + 9 :])
    elif kind in ("trailing", "twice"):
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, part + (b"\0" if (kind, name) == ("trailing", "layer_1.npy") else b""))
            if kind == "twice":
                with pytest.warns(UserWarning, match="Duplicate name"):
                    archive.writestr("layer_1.npy", parts["layer_1.npy"])
    with pytest.raises(InputError, match=said):
        open_published(tmp_path)
    assert not (tmp_path / "trapped").exists()


def test_a_faulty_safetensors_archive_is_named(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "M.safetensors"
    write_archive(path, attention(0))
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(InputError, match=r"M\.safetensors: not a readable archive"):
        open_published(tmp_path)
    header = json.dumps({"layer_0": {"dtype": "BF16", "shape": [1, 2, 2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(InputError, match=r"M\.safetensors/layer_0: entries are BF16, expected F16, F32 or F64"):
        open_published(tmp_path)
    stored = attention(0)
    stored[1][1, 2] = 0
    save_file({f"layer_{n}": np.ascontiguousarray(map_) for n, map_ in stored.items()}, path)
    with pytest.raises(InputError, match=r"M\.safetensors/layer_1: 1 rows sum to 0, the first at \[1, 2\]"):
        open_published(tmp_path)
    save_file({"layer_0": attention(0)[0], "layer_1": attention(0, heads=3)[1], "layer_2": attention(0)[2]}, path)
    with pytest.raises(InputError, match=r"M\.safetensors/layer_1: 3 heads, but 2 of 3 have 2 heads"):
        open_published(tmp_path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: None, "does not exist; expected folders raw-NAME/"),
        (lambda p: p.mkdir(), "contains no maps; expected folders raw-NAME/"),
        (lambda p: p.touch(), "is not an archive of maps"),
        (lambda p: (p / "raw-AI").mkdir(parents=True), "raw-AI: contains no maps"),
        (lambda p: (p.mkdir(), (p / "raw-AI").touch()), "raw-AI: expected a folder raw-NAME"),
        (lambda p: (p.mkdir(), (p / "raw-AI").symlink_to("nowhere")), "raw-AI: expected a folder raw-NAME"),
        (lambda p: write_folder(p / "raw-", attention(0)), "raw-: expected raw-NAME; the name of the model is missing"),
        (lambda p: (write_folder(p / "raw-AI", attention(0)), write_folder(p, attention(0))), "contains both models .raw-AI. and"),
        (
            lambda p: (write_folder(p / "raw-AI", attention(0)), write_archive(p / "AI.npz", attention(0))),
            r"raw-AI: AI\.npz also names its model AI",
        ),
    ],
)
def test_a_folder_without_maps_is_refused(tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    make(tmp_path / "maps")
    with pytest.raises(InputError, match=said):
        open_published(tmp_path / "maps")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"tokens": 4}, r"a, c: layers 0 to 2, 2 heads, 5 tokens; b: layers 0 to 2, 2 heads, 4 tokens"),
        ({"heads": 3}, r"b: layers 0 to 2, 3 heads, 5 tokens"),
        ({"layers": 2}, r"b: layers 0 to 1, 2 heads, 5 tokens"),
    ],
)
def test_models_of_different_shapes_are_refused(tmp_path: Path, other: dict[str, int], said: str) -> None:
    for name, shape in (("a", {}), ("b", other), ("c", {})):
        write_folder(tmp_path / f"raw-{name}", attention(0, **shape))
    with pytest.raises(InputError, match=said):
        open_published(tmp_path)
    alone = [one(tmp_path / "raw-a"), one(tmp_path / "raw-b")]
    assert len(curve_means(alone[1])) > 0
    with pytest.raises(InputError, match="models differ"):
        variance_ranking(alone)


def test_a_file_that_changes_after_opening_is_named(tmp_path: Path) -> None:
    model = one(write_folder(tmp_path / "raw-AI", attention(0)))
    path = head_file(tmp_path / "raw-AI", 1, 1)
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(InputError, match=r"layer 1 cannot be read: .*layer_1_head_1\.npy"):
        curve_means(model)
    np.save(path, np.full((TOKENS, TOKENS), np.nan, np.float32))
    with pytest.raises(InputError, match=r"layer 1 changed since it was opened: 25 entries are not finite"):
        model.layer(1)
    np.save(path, np.eye(4))
    with pytest.raises(InputError, match="layer 1 cannot be read"):
        model.layer(1)
    path.write_bytes(content)
    assert model.layer(1).shape == (HEADS, TOKENS, TOKENS)
    for suffix in (".npz", ".safetensors"):
        archive = tmp_path / f"M{suffix}"
        write_archive(archive, attention(0))
        model = one(archive)
        write_archive(archive, attention(0, tokens=3))
        with pytest.raises(InputError, match=r"layer 1 changed since it was opened: shape is \[2, 3, 3\]"):
            model.layer(1)
        write_archive(archive, {0: attention(0)[0]})
        with pytest.raises(InputError, match="layer 1 cannot be read"):
            model.layer(1)
        archive.unlink()
        with pytest.raises(InputError, match="layer 1 cannot be read: not a readable archive"):
            model.layer(1)
