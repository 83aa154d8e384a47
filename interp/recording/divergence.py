# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Divergence between the attention maps of the same head in different students on the same text, without holding a complete map.

All students run in lockstep. Each forward stops at every block of queries of every layer (`interp.recording.recorder.MapBlock`) until that
block of all students has been compared, so memory holds one block per student, whatever the length of the text. Each forward has its own
thread, and only one of them runs at a time. Students that share one loaded base differ by their LoRA adapter, which is switched on the
model before each of them continues.

With p_i the row of query i in the baseline's map, q_i that in the student's, R the queries of a region of a text:

    js        mean over i in R of  H((p_i + q_i) / 2) - (H(p_i) + H(q_i)) / 2,  H in nats; an attention sink is one more outcome
    cosine    sum_ij p_ij q_ij / sqrt(sum_ij p_ij^2 sum_ij q_ij^2), over i in R and all keys j
    variance  mean over i in R and the keys j that query i may attend to of the population variance of a_ij over all students

The Jensen-Shannon divergence is that of Lin 1991; its square root is a metric. `analyses.shifts.published.curves` has the variance of
published maps, which is a mean over all T^2 entries instead.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.attention.seam import attention_layers
from interp.checkpoints.adapters import check_switchable
from interp.recording.recorder import MapBlock, record
from interp.tables.errors import InputError
from interp.tables.schema import REGIONS
from interp.tokens import Tokens

ALL = "(all)"
"""Value of the column `model` for the variance, which belongs to all students together."""

BASE = ""
"""Adapter of a student that runs with all adapters off."""


@dataclass(frozen=True)
class Student:
    """A model to compare.

    Attributes:
        name: name of the student in the table.
        model: a causal language model in evaluation mode; several students may share one `PeftModel`.
        adapter: the adapter to switch on; `BASE` to switch all off; None for a model that is never switched.
    """

    name: str
    model: nn.Module
    adapter: str | None = None


def map_divergence(students: Sequence[Student], tokens: Tokens, *, baseline: str) -> pd.DataFrame:
    """Return the divergence of every head's map between students on one batch of texts.

    Memory holds each student's forward and one block of queries of its maps at a time (`interp.attention.blocked`). Padding does not change
    the values of a text. Results of several batches can be concatenated.

    Args:
        students: two or more, with the same layers, heads and masks, on the same kind of device. Their adapters may be switched during the
            call; afterwards, also after an exception, each model is as it was.
        tokens: the texts that all students read, from `annotate`; only queries with `is_query` count, and padding never counts.
        baseline: name of the student that each other student is compared with.

    Returns:
        Rows by example, layer, head, student, measure and region: example, layer, head, model, baseline, region, measure, value, n_queries.
        `js` (nats, 0 to ln 2) and `cosine` (0 to 1) have a row for each student except the baseline; `variance` (0 to 1/4) has `ALL` as its
        model. The value is NaN if a region has no query.

    Raises:
        InputError: fewer than two students, repeated names, an unknown baseline, students that differ in layers, heads or masks, an
            unknown adapter, or a shared model with a student that names no adapter.
        CheckpointError: an adapter cannot be switched.
        RecordingError: as `interp.recording.recorder.record`.
    """
    layers, n_heads = _check(students, tokens, baseline)
    with _switches(students) as switches:
        walks = [_Walk(student, tokens) for student in students]
        sums = _Sums(tokens, layers, n_heads, len(students), [s.name for s in students].index(baseline))
        try:
            for layer in layers:
                for walk, switch in zip(walks, switches, strict=True):
                    switch.turn_on()  # this is where a student continues to its next layer
                    walk.go_on()
                while isinstance(walks[0].item, MapBlock):
                    blocks = [walk.item for walk in walks]
                    sums.add(_aligned(blocks, students))
                    for walk in walks:
                        walk.go_on()
                sums.end_layer(layer, _same_keys([walk.item for walk in walks], layer, students))
            for walk, switch in zip(walks, switches, strict=True):
                switch.turn_on()
                walk.go_on()
        finally:
            for walk in walks:
                walk.close()
    return sums.table([s.name for s in students])


# --- checks ---------------------------------------------------------------------------------------------


def _check(students: Sequence[Student], tokens: Tokens, baseline: str) -> tuple[tuple[int, ...], int]:
    """Return the layers and the number of heads, which all students share."""
    names = [student.name for student in students]
    if len(students) < 2:
        raise InputError(f"students are {names}; a comparison needs two or more")
    repeated = sorted(name for name, n in Counter([*names, ALL]).items() if n > 1)
    if repeated:
        raise InputError(f"student names {', '.join(repeated)} occur twice ({ALL} is reserved); give each student its own name")
    if baseline not in names:
        raise InputError(f"baseline {baseline!r} is not one of the students: {', '.join(names)}")
    shapes = []
    for student in students:
        text = _text_model(student).config.get_text_config(decoder=True)
        layers = attention_layers(_text_model(student).config)
        shapes.append((layers, int(text.num_attention_heads), next(student.model.parameters()).device.type))
        if shapes[-1] != shapes[0]:
            seen = [
                f"{s.name} has {len(la)} attention layers with {h} heads on {d}" for s, (la, h, d) in zip(students, shapes, strict=False)
            ]
            raise InputError(f"{seen[0]}, but {seen[-1]}; students need the same layers and heads on the same kind of device")
        largest = max(int(t.ids.max()) for t in tokens.texts)
        if largest >= text.vocab_size:
            raise InputError(
                f"{student.name} has {text.vocab_size} tokens, but the texts hold id {largest}; use the tokenizer of this model"
            )
    return shapes[0][0], shapes[0][1]


def _text_model(student: Student) -> PreTrainedModel:
    for module in student.model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise InputError(f"{student.name}: {type(student.model).__name__} holds no transformers model")


def _aligned(blocks: Sequence[object], students: Sequence[Student]) -> list[MapBlock]:
    """Return the blocks, after checking that all of them are at the same place."""
    first, same = blocks[0], []
    for block, student in zip(blocks, students, strict=True):
        if not isinstance(block, MapBlock) or not isinstance(first, MapBlock) or _place(block) != _place(first):
            raise InputError(
                f"{student.name} and {students[0].name} differ in their masks or in the number of key-value heads; "
                "compare students of one base model"
            )
        same.append(block)
    return same


def _place(block: MapBlock) -> tuple[object, ...]:
    return block.layer, block.examples, block.heads, block.queries, block.keys, block.has_sink


def _same_keys(ends: Sequence[object], layer: int, students: Sequence[Student]) -> Tensor:
    """Return how many keys each query may attend to, after checking that it is the same for all students."""
    first, *others = ends
    assert isinstance(first, Tensor)  # every student is at the end of the layer
    for end, student in zip(others, students[1:], strict=True):
        if not isinstance(end, Tensor) or not torch.equal(end.cpu(), first.cpu()):
            raise InputError(f"layer {layer}: {student.name} and {students[0].name} differ in the keys that a query may attend to")
    return first


# --- lockstep ---------------------------------------------------------------------------------------------------------


class _Stopped(BaseException):
    """Ends a forward that is no longer needed."""


class _Walk:
    """One student's forward. It runs only inside `go_on`, and stops at each block of a map and at the end of each layer.

    Attributes:
        item: where it stopped: a `MapBlock`, the number of keys of each query of a finished layer, or None at the end.
    """

    def __init__(self, student: Student, tokens: Tokens) -> None:
        self.item: MapBlock | Tensor | None = None
        self._student, self._tokens, self._stop = student, tokens, False
        self._turn = threading.Semaphore(0)
        self._given: queue.SimpleQueue[MapBlock | Tensor | BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"forward of {student.name}", daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """Let the forward run to its next stop, and raise what it raises."""
        self.item = None
        self._turn.release()
        item = self._given.get()
        if isinstance(item, BaseException):
            item.add_note(f"(student {self._student.name})")
            raise item
        self.item = item

    def close(self) -> None:
        """End the forward, wherever it is."""
        self._stop = True
        self._turn.release()
        self._thread.join()

    def read(self, block: MapBlock) -> None:
        self._give(block)

    def end_layer(self, layer: int, n_keys: Tensor) -> None:
        self._give(n_keys)

    def _give(self, item: MapBlock | Tensor) -> None:
        self._given.put(item)
        self._wait()

    def _wait(self) -> None:
        self._turn.acquire()
        if self._stop:
            raise _Stopped

    def _run(self) -> None:
        try:
            self._wait()
            decoder = _text_model(self._student).base_model  # without the output head; it includes PEFT's layers
            device = next(decoder.parameters()).device
            inputs = {name: tensor.to(device) for name, tensor in self._tokens.inputs.items()}
            with torch.no_grad(), record(self._student.model, self._tokens, {}, backend="blocked", reader=self):
                decoder(**inputs, use_cache=False)
            self._given.put(None)
        except _Stopped:
            pass
        except BaseException as error:  # raised by `go_on`
            self._given.put(error)


class _Switch:
    """Switches one student's adapter on, in a model that it may share with others."""

    def __init__(self, adapter: str | None, layers: Sequence[Any], on: dict[int, str], model: int) -> None:
        self._adapter, self._layers, self._on, self._model = adapter, layers, on, model

    def turn_on(self) -> None:
        if self._adapter is None or self._on.get(self._model) == self._adapter:
            return
        for layer in self._layers:
            if self._adapter == BASE:
                layer.enable_adapters(False)
            else:
                layer.enable_adapters(True)
                layer.set_adapter(self._adapter, inference_mode=True)
        self._on[self._model] = self._adapter


@contextmanager
def _switches(students: Sequence[Student]) -> Iterator[list[_Switch]]:
    """Yield a switch for each student; afterwards restore adapters and `requires_grad` of all models."""
    users = Counter(id(student.model) for student in students if student.adapter is not None)
    layers: dict[int, list[Any]] = {}
    for student in students:
        if student.adapter is None and id(student.model) in users:
            raise InputError(f"{student.name} names no adapter, but shares its model with students that do; name one, or BASE for none")
        if student.adapter is not None and id(student.model) not in layers:
            layers[id(student.model)] = _tuner_layers(student)
        if student.adapter not in (None, BASE) and student.adapter not in _configs(student):
            raise InputError(f"{student.name}: the model has no adapter {student.adapter!r}; it has {', '.join(_configs(student))}")
    switched = [layer for each in layers.values() for layer in each]
    active = [(layer, list(layer.active_adapters), layer.disable_adapters) for layer in switched]
    gradients = [(p, p.requires_grad) for layer in switched for p in layer.parameters()]
    on: dict[int, str] = {}
    try:
        yield [_Switch(s.adapter, layers.get(id(s.model), ()), on, id(s.model)) for s in students]
    finally:
        for layer, adapters, disabled in active:
            layer.enable_adapters(True)
            layer.set_adapter(adapters)
            layer.enable_adapters(not disabled)
        for parameter, needed in gradients:
            parameter.requires_grad_(needed)


def _configs(student: Student) -> dict[str, Any]:
    return dict(getattr(student.model, "peft_config", {}))


def _tuner_layers(student: Student) -> list[Any]:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(student.model, PeftModel):
        raise InputError(
            f"{student.name} names adapter {student.adapter!r}, but its model is a {type(student.model).__name__}, not a PeftModel; "
            "open it with interp.checkpoints.adapters.open_adapters"
        )
    for name, config in _configs(student).items():
        check_switchable(config, name)
    layers = [module for module in student.model.modules() if isinstance(module, BaseTunerLayer)]
    if any(layer.merged for layer in layers):
        raise InputError(f"{student.name}: an adapter is merged into the model and cannot be switched; unmerge it first")
    return layers


# --- sums -------------------------------------------------------------------------------------------------------------


class _Sums:
    """Sums over the queries of a region in float64, from which the table is made.

    They hold the divergence and p q of each pair of baseline and student, p^2 of each student, and the variance over students. p q, p^2
    and the variance are summed over keys. Shape: [statistic, example, region, layer, head].
    """

    def __init__(self, tokens: Tokens, layers: tuple[int, ...], n_heads: int, n_students: int, baseline: int) -> None:
        self._examples = [text.example for text in tokens.texts]
        self._layers, self._baseline = layers, baseline
        self._others = [at for at in range(n_students) if at != baseline]
        regions = tokens.pad([np.stack([t.in_region(name) & t.is_query for name in REGIONS]) for t in tokens.texts], False)
        self._regions = torch.from_numpy(regions).double()
        n_statistics = 2 * len(self._others) + n_students + 1
        self._sums = torch.zeros(n_statistics, len(tokens), len(REGIONS), len(layers), n_heads, dtype=torch.float64)
        self._entries = torch.zeros(len(tokens), len(REGIONS), len(layers), dtype=torch.float64)

    def add(self, blocks: Sequence[MapBlock]) -> None:
        """Compare one block of all students."""
        place = blocks[0]
        device = place.probabilities.device
        device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        maps = [block.probabilities.to(device, torch.float64) for block in blocks]
        entropies = [_entropy(p, place.has_sink) for p in maps]
        base = maps[self._baseline]
        rows = []
        for at in self._others:
            mixed = _entropy((base + maps[at]) / 2, place.has_sink)
            rows.append((mixed - (entropies[self._baseline] + entropies[at]) / 2).clamp_(min=0))  # rounding may make it negative
        rows += [torch.linalg.vecdot(base, maps[at]) for at in self._others]
        rows += [torch.linalg.vecdot(p, p) for p in maps]
        mean = sum(maps[1:], maps[0]) / len(maps)
        rows.append(sum(torch.linalg.vecdot(p - mean, p - mean) for p in maps) / len(maps))
        regions = self._regions[place.examples, :, place.queries].to(device)
        added = torch.stack(rows) @ regions.transpose(1, 2)  # [statistic, example, head, region]
        self._sums[:, place.examples, :, self._layers.index(place.layer), place.heads] += added.transpose(2, 3).cpu()

    def end_layer(self, layer: int, n_keys: Tensor) -> None:
        """Count the entries of a layer's map."""
        self._entries[:, :, self._layers.index(layer)] = (self._regions @ n_keys.cpu().double()[:, :, None])[..., 0]

    def table(self, names: Sequence[str]) -> pd.DataFrame:
        """Return the table of `map_divergence`."""
        n = len(self._others)
        sums = self._sums.numpy()
        js, products, squares, spread = np.split(sums, [n, 2 * n, 2 * n + len(names)])
        n_queries = self._regions.sum(-1).numpy()
        with np.errstate(invalid="ignore"):
            js = js / n_queries[:, :, None, None]
            cosine = products / np.sqrt(squares[[self._baseline]] * squares[self._others])
            variance = spread / self._entries.numpy()[..., None]
        others = [names[at] for at in self._others]
        rows = [
            *zip(others, ["js"] * n, js, strict=True),
            *zip(others, ["cosine"] * n, cosine, strict=True),
            (ALL, "variance", variance[0]),
        ]
        axes = [self._examples, REGIONS, self._layers, range(sums.shape[-1])]
        index = pd.MultiIndex.from_product(axes, names=["example", "region", "layer", "head"]).to_frame(index=False)
        counted = np.broadcast_to(n_queries[:, :, None, None], sums.shape[1:]).astype(np.int64).ravel()
        frames = [
            index.assign(model=model, baseline=names[self._baseline], measure=measure, value=value.ravel(), n_queries=counted)
            for model, measure, value in rows
        ]
        frame = pd.concat(frames, ignore_index=True).sort_values(["example", "layer", "head"], kind="stable")
        return frame[["example", "layer", "head", "model", "baseline", "region", "measure", "value", "n_queries"]].reset_index(drop=True)


def _entropy(p: Tensor, has_sink: bool) -> Tensor:
    """Return the entropy of each row [..., key] in nats. A sink gets the rest of the row's probability."""
    entropy = torch.special.entr(p).sum(-1)
    return entropy + torch.special.entr((1 - p.sum(-1)).clamp_(min=0)) if has_sink else entropy
